//! The state of proxies and jobs, step by step.

use super::super::message::{Failed, Reply, error_kind};
use super::job::{Attend, Event, HeldJob, Job, Made, Report, Run, WARNINGS_MAX};
use super::site::{JobStage, OfferedMachine, ProxyChoice, machine_places};
use super::state::{
    ABSENCE_MAX, Asked, Cursor, JOBS_MAX, News, Next, RESULT_KEPT, RESULTS_BYTES_MAX, RESULTS_MAX, State, YOUTH,
};
use mover::{
    BackupReport, Consistency, Counters, Error, ErrorKind, Holder, JobId, JobKind, MachineId, Name, Phase, PointId,
    Power, RecoveryPoint, Role,
};
use std::time::Duration;
use tokio::time::Instant;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// A proxy that has an owner of its own, or `owner`'s.
fn proxy(called: &str, owner: Option<&str>) -> Holder {
    Holder { owner: owner.map(name), ..Holder::new(Role::Proxy, name(called)) }
}

/// A job of a machine of its own, for a proxy that is named.
fn run(id: u8) -> Run {
    Run { proxy: Some(name("host7")), ..run_of(id, &format!("web{id}")) }
}

/// A job of this machine, for whoever offers it.
fn run_of(id: u8, machine: &str) -> Run {
    let job = Job {
        id: JobId([id; 16]),
        machine: name(machine),
        repository: name("main"),
        kind: JobKind::Backup.code(),
        body: Vec::new(),
        extensions: Vec::new(),
    };
    Run { proxy: None, label: None, again: false, job }
}

fn attend(instance: u8, jobs: &[u8]) -> Attend {
    let jobs = jobs.iter().map(|id| HeldJob::from(&run(*id).job)).collect();
    Attend { instance: [instance; 16], jobs, labels: Vec::new(), machines: Vec::new() }
}

fn machine(called: &str, id: u8, power: Power) -> OfferedMachine {
    let id = (id > 0).then_some(MachineId([id; 16]));
    OfferedMachine { name: name(called), id, power, disks: Vec::new(), tags: Vec::new() }
}

fn offering(instance: u8, machines: &[OfferedMachine]) -> Attend {
    Attend { machines: machines.to_vec(), ..attend(instance, &[]) }
}

fn report(id: u8, event: Event) -> Report {
    Report { job: JobId([id; 16]), event }
}

fn progress(bytes_done: u64) -> Event {
    Event::Progress(Counters { phase: Phase::Move, bytes_done, bytes_total: 100 })
}

fn done(id: u8) -> Event {
    let point = RecoveryPoint {
        id: PointId([id; 16]),
        manifest: chunker::ChunkId([0; 32]),
        owner: mover::OwnerId::default(),
        owner_name: None,
        stamped: mover::OwnerId::default(),
        holder: None,
        machine: mover::MachineId::default(),
        machine_name: name("web"),
        group: None,
        snapshot_time: mover::Timestamp(0),
        commit_time: mover::Timestamp(0),
        origin: (mover::RepositoryId::default(), mover::Timestamp(0)),
        protected_until: mover::Timestamp(0),
        bytes_logical: 0,
        bytes_new: 0,
        bytes_stored: 0,
        pinned: false,
        forgotten: false,
        labels: Default::default(),
        number: 1,
    };
    Event::of(Ok(Made::Backup(Box::new(BackupReport {
        point,
        parent: None,
        consistency: Consistency::Crash,
        freeze_ms: 0,
        pause_ms: 0,
        scratch_bytes_max: 0,
        disks: Vec::new(),
        chunks_new: 0,
        bytes_new: 0,
        bytes_sent: 0,
        bytes_stored: 0,
        warnings: Vec::new(),
    }))))
}

/// A node that is not young any more.
struct At {
    state: State,
    now: Instant,
}

impl At {
    fn new() -> Self {
        let began = Instant::now();
        Self { state: State::new(began), now: began + YOUTH }
    }

    fn attend(&mut self, instance: u8, jobs: &[u8]) -> u64 {
        self.state.attend(&proxy("host7", None), &attend(instance, jobs), self.now).unwrap()
    }

    fn next(&mut self, turn: u64, instance: u8) -> Result<Next, Error> {
        self.state.next(&name("host7"), turn, [instance; 16], self.now)
    }

    /// The job that the proxy is given next.
    fn assigned(&mut self, turn: u64, instance: u8) -> Option<u8> {
        match self.next(turn, instance).unwrap() {
            Next::Say(Reply::Assigned(job)) => Some(job.id.0[0]),
            Next::Wait => None,
            other => panic!("{other:?}"),
        }
    }

    fn run(&mut self, id: u8) -> Result<(), Error> {
        self.ask(&run(id)).map(drop)
    }

    fn ask(&mut self, run: &Run) -> Result<Asked, Error> {
        self.state.run(run, &name("anna"), ProxyChoice::RoundRobin, self.now)
    }

    /// The proxy that is chosen for a job.
    fn chosen(&mut self, run: &Run) -> String {
        match self.ask(run).unwrap() {
            Asked::Taken(proxy) => proxy.to_string(),
            waits => panic!("{waits:?}"),
        }
    }

    fn tell(&mut self, id: u8, event: Event) -> Result<(), Error> {
        self.state.report(&name("host7"), &report(id, event), self.now)
    }

    fn news(&mut self, id: u8, cursor: &mut Cursor) -> News {
        self.state.news(JobId([id; 16]), cursor, self.now).unwrap()
    }

    /// How the job failed.
    fn failure(&mut self, id: u8) -> (ErrorKind, String) {
        match self.news(id, &mut Cursor::default()) {
            News::Event(Event::Failed(failed)) => (error_kind(failed.code), failed.message),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_job_goes_to_its_proxy_once_and_its_news_to_who_asks() {
    let mut at = At::new();
    let turn = at.attend(1, &[]);
    at.run(1).unwrap();
    at.run(2).unwrap();
    at.run(1).unwrap();
    assert_eq!((at.assigned(turn, 1), at.assigned(turn, 1), at.assigned(turn, 1)), (Some(1), Some(2), None));
    let mut cursor = Cursor::default();
    assert_eq!(at.news(1, &mut cursor), News::Wait(None));
    at.tell(1, progress(1)).unwrap();
    at.tell(1, Event::Warning("slow".into())).unwrap();
    at.tell(1, progress(2)).unwrap();
    assert_eq!(at.news(1, &mut cursor), News::Event(Event::Warning("slow".into())));
    assert_eq!(at.news(1, &mut cursor), News::Event(progress(2)), "only the latest");
    assert_eq!(at.news(1, &mut cursor), News::Wait(None));
    at.tell(1, done(1)).unwrap();
    // What comes late changes nothing.
    at.tell(1, progress(3)).unwrap();
    at.tell(1, Event::Failed(Failed::from(&Error::internal("no")))).unwrap();
    assert_eq!(at.news(1, &mut cursor), News::Event(done(1)));
    // Whoever lost the connection asks again: the same end, and nothing begins again.
    at.run(1).unwrap();
    assert_eq!(at.assigned(turn, 1), None);
    assert_eq!(at.news(1, &mut Cursor::default()), News::Event(Event::Warning("slow".into())));
    for _ in 0..2 * WARNINGS_MAX {
        at.tell(2, Event::Warning("more".into())).unwrap();
    }
    let mut cursor = Cursor::default();
    let told = std::iter::from_fn(|| match at.news(2, &mut cursor) {
        News::Event(Event::Warning(_)) => Some(()),
        _ => None,
    });
    assert_eq!(told.count(), WARNINGS_MAX);
    at.now += RESULT_KEPT;
    at.state.forget(at.now);
    let forgotten = at.state.news(JobId([1; 16]), &mut Cursor::default(), at.now).unwrap_err();
    assert_eq!(forgotten.kind(), ErrorKind::NotFound);
    assert_eq!(at.news(2, &mut cursor), News::Wait(None), "what is not over is kept");
}

#[test]
fn a_lost_connection_loses_no_job_and_a_new_process_does() {
    let mut at = At::new();
    let first = at.attend(1, &[]);
    at.run(1).unwrap();
    at.run(2).unwrap();
    assert_eq!((at.assigned(first, 1), at.assigned(first, 1)), (Some(1), Some(2)));
    // 2 was on its way when the connection was lost.
    let again = at.attend(1, &[1]);
    assert_eq!(at.next(first, 1).unwrap(), Next::Elsewhere);
    at.state.leave(&name("host7"), first, at.now);
    assert_eq!(at.news(1, &mut Cursor::default()), News::Wait(None), "an older attendance that ends changes nothing");
    assert_eq!((at.assigned(again, 1), at.assigned(again, 1)), (Some(2), None));
    at.run(3).unwrap();
    let new = at.attend(2, &[]);
    assert_eq!(at.next(again, 1).unwrap_err().kind(), ErrorKind::Busy, "two processes of one name");
    for id in [1, 2] {
        let (kind, told) = at.failure(id);
        assert!(kind == ErrorKind::Transport && told.contains("started again"), "{told}");
    }
    assert_eq!((at.assigned(new, 2), at.assigned(new, 2)), (Some(3), None), "what nobody had is given");
}

#[test]
fn a_node_that_was_started_again_learns_what_there_is() {
    let mut at = At::new();
    at.now -= YOUTH;
    // The administrator is there first, then a report, then the proxy.
    at.run(1).unwrap();
    at.run(2).unwrap();
    let News::Wait(Some(until)) = at.news(1, &mut Cursor::default()) else { panic!("waited for ever") };
    assert_eq!(until, at.now + YOUTH);
    at.tell(2, progress(7)).unwrap();
    at.tell(3, done(3)).unwrap();
    let turn = at.attend(1, &[1, 2, 3, 4]);
    assert_eq!(at.assigned(turn, 1), None, "it has them all");
    at.run(3).unwrap();
    at.run(4).unwrap();
    assert_eq!(at.assigned(turn, 1), None, "neither what is over nor what it has is begun again");
    assert_eq!(at.news(2, &mut Cursor::default()), News::Event(progress(7)));
    assert_eq!(at.news(3, &mut Cursor::default()), News::Event(done(3)));
    assert_eq!(at.news(4, &mut Cursor::default()), News::Wait(None));
}

#[test]
fn who_is_not_there_is_waited_for_within_limits() {
    let mut at = At::new();
    let unknown = at.run(1).unwrap_err();
    assert!(unknown.kind() == ErrorKind::NotFound && unknown.message().contains("attending: none"), "{unknown}");
    let turn = at.attend(1, &[]);
    let mut elsewhere = run(1);
    elsewhere.proxy = Some(name("host8"));
    let unknown = at.ask(&elsewhere).unwrap_err();
    assert!(unknown.message().contains("attending: host7"), "{unknown}");
    at.run(1).unwrap();
    assert_eq!(at.assigned(turn, 1), Some(1));
    at.state.leave(&name("host7"), turn, at.now);
    at.run(2).unwrap();
    assert_eq!(at.news(2, &mut Cursor::default()), News::Wait(Some(at.now + ABSENCE_MAX)));
    at.now += ABSENCE_MAX;
    assert_eq!(at.failure(1).0, ErrorKind::Transport, "it may have ended well");
    assert_eq!(at.failure(2).0, ErrorKind::NotFound, "it never began");
    at.state.forget(at.now);
    assert_eq!(at.run(3).unwrap_err().kind(), ErrorKind::NotFound);
    // Nobody waits, and it ends all the same.
    let turn = at.attend(1, &[]);
    at.run(4).unwrap();
    assert_eq!(at.assigned(turn, 1), Some(4));
    at.state.leave(&name("host7"), turn, at.now);
    at.now += ABSENCE_MAX + Duration::from_secs(1);
    at.state.forget(at.now);
    assert_eq!(at.failure(4).0, ErrorKind::Transport);
}

#[test]
fn jobs_are_cancelled_wherever_they_are() {
    let mut at = At::new();
    let turn = at.attend(1, &[]);
    at.run(1).unwrap();
    assert_eq!(at.assigned(turn, 1), Some(1));
    at.run(2).unwrap();
    let cancel = |at: &mut At, id: u8| at.state.cancel(JobId([id; 16]), at.now);
    cancel(&mut at, 2).unwrap();
    assert_eq!(at.failure(2).0, ErrorKind::Cancelled, "nobody had it");
    cancel(&mut at, 1).unwrap();
    cancel(&mut at, 1).unwrap();
    let called_off = |next: Next| matches!(next, Next::Say(Reply::CalledOff(it)) if it.job.0[0] == 1);
    assert!(called_off(at.next(turn, 1).unwrap()));
    assert_eq!(at.next(turn, 1).unwrap(), Next::Wait, "told once");
    let again = at.attend(1, &[1]);
    assert!(called_off(at.next(again, 1).unwrap()), "and in each attendance");
    at.tell(1, done(1)).unwrap();
    cancel(&mut at, 1).unwrap();
    assert_eq!(at.news(1, &mut Cursor::default()), News::Event(done(1)), "it was faster");
    assert_eq!(cancel(&mut at, 9).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn jobs_are_their_own_proxys_and_bounded() {
    let mut at = At::new();
    let turn = at.attend(1, &[]);
    at.state.attend(&proxy("host8", None), &attend(8, &[]), at.now).unwrap();
    at.run(1).unwrap();
    assert_eq!(at.assigned(turn, 1), Some(1));
    let foreign = at.state.report(&name("host8"), &report(1, done(1)), at.now).unwrap_err();
    assert_eq!(foreign.kind(), ErrorKind::NotFound);
    let mut elsewhere = run(1);
    elsewhere.proxy = Some(name("host8"));
    assert_eq!(at.ask(&elsewhere).unwrap_err().kind(), ErrorKind::Usage);
    // Nor does claiming it help.
    at.state.attend(&proxy("host8", None), &attend(8, &[1]), at.now).unwrap();
    assert_eq!(at.news(1, &mut Cursor::default()), News::Wait(None));
    let many = u8::try_from(JOBS_MAX).unwrap();
    (2..=many).for_each(|id| at.run(id).unwrap());
    assert_eq!(at.run(many + 1).unwrap_err().kind(), ErrorKind::Busy);
    let told = at.tell(many + 1, progress(1)).unwrap_err();
    assert_eq!(told.kind(), ErrorKind::Busy, "nor does telling of jobs make room");
    (1..=many).for_each(|id| at.tell(id, done(id)).unwrap());
}

/// The newest are kept, and nobody makes the node forget the jobs of others.
#[test]
fn what_is_over_is_kept_within_limits() {
    let mut at = At::new();
    let long = |name: &str, number: u32, bytes: usize| {
        let id =
            JobId([number.to_le_bytes(), [u8::from(name == "host8"); 4], [0; 4], [0; 4]].concat().try_into().unwrap());
        let made = super::job::JobReport { kind: 1, body: vec![0; bytes] };
        (id, Report { job: id, event: Event::Ended(made) })
    };
    let known = |at: &At, id| at.state.job(id, at.now).is_ok();
    let (quiet, told) = long("host8", 0, 100);
    at.state.report(&name("host8"), &told, at.now).unwrap();
    for (count, bytes) in [(RESULTS_MAX, 0), (RESULTS_BYTES_MAX >> 17, 128 << 10)] {
        let count = u32::try_from(count).unwrap();
        for number in 0..2 * count {
            let (_, told) = long("host7", number + 1000 * count, bytes);
            at.state.report(&name("host7"), &told, at.now).unwrap();
        }
        let newest = |number| known(&at, long("host7", number + 1000 * count, 0).0);
        assert!(newest(2 * count - 1) && newest(count + 2) && !newest(count - 2), "{count}");
        assert!(known(&at, quiet), "another proxy's");
    }
}

/// Two proxies of one owner that offer the same machine.
fn pair(machines: [OfferedMachine; 2]) -> At {
    let mut at = At::new();
    for (host, machine) in ["host7", "host8"].into_iter().zip(machines) {
        at.state.attend(&proxy(host, Some("cluster1")), &offering(1, &[machine]), at.now).unwrap();
    }
    at
}

#[test]
fn proxies_take_turns_and_the_least_loaded_comes_first_where_that_is_wished() {
    let web = || machine("web", 4, Power::Running);
    let mut at = pair([web(), web()]);
    let mut turns = Vec::new();
    for id in 1..=4 {
        turns.push(at.chosen(&run_of(id, "web")));
        at.state.report(&name(turns.last().unwrap()), &report(id, done(id)), at.now).unwrap();
    }
    assert!(turns == ["host7", "host8", "host7", "host8"], "{turns:?}");
    // Others keep host7 at work.
    at.run(5).unwrap();
    at.run(6).unwrap();
    for id in 7..9 {
        let chosen = at.state.run(&run_of(id, "web"), &name("anna"), ProxyChoice::LeastLoaded, at.now).unwrap();
        assert_eq!(chosen, Asked::Taken(name("host8")));
        at.state.report(&name("host8"), &report(id, done(id)), at.now).unwrap();
    }
    // Known more of, or attending: such a one is taken first.
    let mut at = pair([machine("web", 0, Power::Off), web()]);
    assert_eq!(at.chosen(&run_of(1, "web")), "host8");
    let mut at = pair([web(), web()]);
    at.state.leave(&name("host7"), 1, at.now);
    assert_eq!(at.chosen(&run_of(1, "web")), "host8");
    // By its id, as hypervisors write it.
    let mut at = pair([web(), machine("db", 5, Power::Running)]);
    assert_eq!(at.chosen(&run_of(1, "05050505-0505-0505-0505-050505050505")), "host8");
    assert_eq!(MachineId::of_uuid("00000000-0000-0000-0000-000000000000"), None);
}

#[test]
fn labels_limit_the_choice() {
    let mut at = pair([machine("web", 4, Power::Running), machine("web", 4, Power::Running)]);
    let labelled = Attend { labels: vec![name("ssd")], ..offering(1, &[machine("web", 4, Power::Running)]) };
    at.state.attend(&proxy("host8", Some("cluster1")), &labelled, at.now).unwrap();
    let with = |label: &str, id| Run { label: Some(name(label)), ..run_of(id, "web") };
    for id in 1..4 {
        assert_eq!(at.chosen(&with("ssd", id)), "host8");
        at.state.report(&name("host8"), &report(id, done(id)), at.now).unwrap();
    }
    let nobody = at.ask(&with("hdd", 9)).unwrap_err();
    assert!(nobody.kind() == ErrorKind::NotFound && nobody.message().contains("label hdd"), "{nobody}");
}

#[test]
fn a_machine_has_one_job_at_a_time() {
    let mut at = pair([machine("web", 4, Power::Running), machine("renamed", 4, Power::Running)]);
    at.state.attend(&proxy("other", None), &offering(3, &[machine("web", 0, Power::Off)]), at.now).unwrap();
    let to = |host: &str, id, called: &str| Run { proxy: Some(name(host)), ..run_of(id, called) };
    at.ask(&to("host7", 1, "web")).unwrap();
    for second in [to("host7", 2, "web"), to("host8", 2, "renamed"), run_of(2, "renamed")] {
        let busy = at.ask(&second).unwrap_err();
        let named = busy.message().contains(&JobId([1; 16]).to_string()) && busy.message().contains("host7");
        assert!(busy.kind() == ErrorKind::Busy && named, "{busy}");
    }
    assert_eq!(at.chosen(&to("host7", 1, "web")), "host7", "the same job is no second one");
    let look = Run { proxy: Some(name("host7")), ..run_of(3, "web") };
    let look = Run { job: Job::examine(JobId([3; 16]), name("web"), name("main")), ..look };
    at.ask(&look).unwrap();
    at.ask(&to("other", 4, "web")).unwrap();
    at.tell(1, done(1)).unwrap();
    at.ask(&to("host8", 2, "renamed")).unwrap();
}

/// A proxy does not get the jobs of another owner's machine by offering its name, or its id.
#[test]
fn machines_of_different_owners_are_never_mixed() {
    for id in [0, 4, 5] {
        let mut at = At::new();
        at.state.attend(&proxy("host7", None), &offering(1, &[machine("web", 4, Power::Off)]), at.now).unwrap();
        at.state.attend(&proxy("rogue", None), &offering(2, &[machine("web", id, Power::Running)]), at.now).unwrap();
        let unclear = at.ask(&run_of(1, "web")).unwrap_err();
        let named = unclear.message().contains("host7") && unclear.message().contains("rogue");
        assert!(unclear.kind() == ErrorKind::Usage && named, "{unclear}");
        at.run(1).unwrap();
    }
    // Nor is it clear which of two machines of one owner is meant.
    let mut at = pair([machine("web", 4, Power::Running), machine("web", 5, Power::Running)]);
    assert_eq!(at.ask(&run_of(1, "web")).unwrap_err().kind(), ErrorKind::Usage);
}

#[test]
fn a_node_that_was_just_started_waits_for_those_who_may_have_a_job() {
    let web = machine("web", 4, Power::Running);
    let mut at = At::new();
    at.now -= YOUTH;
    let ends = at.now + YOUTH;
    let again = Run { again: true, ..run_of(1, "web") };
    assert_eq!(at.ask(&run_of(1, "web")).unwrap(), Asked::Wait(ends), "nobody is there");
    at.state.attend(&proxy("host8", Some("cluster1")), &offering(8, std::slice::from_ref(&web)), at.now).unwrap();
    assert_eq!(at.ask(&again).unwrap(), Asked::Wait(ends), "somebody else may have it");
    assert_eq!(
        at.state.followed(JobId([1; 16]), at.now).unwrap(),
        None,
        "nor is who follows it told that there is none"
    );
    let has = Attend { jobs: vec![HeldJob::from(&again.job)], ..offering(7, &[web]) };
    at.state.attend(&proxy("host7", Some("cluster1")), &has, at.now).unwrap();
    assert_eq!(at.chosen(&again), "host7");
    // What it is about was learned from its proxy.
    let known = at.state.job(JobId([1; 16]), at.now).unwrap();
    assert_eq!((known.machine, known.stage), (Some(name("web")), JobStage::Given));
    assert!(at.state.followed(JobId([1; 16]), at.now).unwrap().is_some());
    assert_eq!(at.ask(&run_of(2, "web")).unwrap_err().kind(), ErrorKind::Busy);
    at.now = ends;
    assert_eq!(at.state.followed(JobId([9; 16]), at.now).unwrap_err().kind(), ErrorKind::NotFound);
    let nobody = at.ask(&run_of(3, "db")).unwrap_err();
    assert!(nobody.kind() == ErrorKind::NotFound && nobody.message().contains("machine db"), "{nobody}");
}

#[test]
fn proxies_and_jobs_are_told_as_they_are() {
    let mut at = pair([machine("web", 4, Power::Running), machine("web", 0, Power::Off)]);
    at.ask(&run_of(1, "web")).unwrap();
    at.now += Duration::from_secs(2);
    let told: Vec<_> = at.state.proxies().iter().map(|it| at.state.proxy(it, at.now).unwrap()).collect();
    assert_eq!(
        told.iter().map(|it| (it.jobs, it.attends, it.since_ms)).collect::<Vec<_>>(),
        [(1, true, 2000), (0, true, 2000)]
    );
    let places = machine_places(&told);
    assert!(places.len() == 1 && places[0].machine.id.is_some() && places[0].proxies.len() == 2, "{places:?}");
    let job = |at: &At| at.state.job(at.state.jobs()[0], at.now).unwrap();
    assert_eq!((job(&at).stage, job(&at).by, job(&at).given_ms), (JobStage::Waiting, Some(name("anna")), None));
    at.tell(1, progress(5)).unwrap();
    at.state.cancel(JobId([1; 16]), at.now).unwrap();
    assert_eq!((job(&at).stage, job(&at).counters.bytes_done), (JobStage::Cancelling, 5));
    at.tell(1, done(1)).unwrap();
    at.now += Duration::from_secs(1);
    assert_eq!((job(&at).stage, job(&at).asked_ms, job(&at).ended_ms), (JobStage::Done, 3000, Some(1000)));
    assert_eq!(at.state.job(JobId([9; 16]), at.now).unwrap_err().kind(), ErrorKind::NotFound);
}
