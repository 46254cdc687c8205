//! The state of proxies and jobs, step by step.

use super::super::message::{Failed, Reply, error_kind};
use super::job::{Attend, Event, Job, Report, Run, WARNINGS_MAX};
use super::state::{ABSENCE_MAX, Cursor, JOBS_MAX, News, Next, RESULT_KEPT, RESULTS_MAX, State, YOUTH};
use mover::{
    BackupReport, Consistency, Counters, Error, ErrorKind, JobId, JobKind, Name, Phase, PointId, RecoveryPoint,
};
use std::time::Duration;
use tokio::time::Instant;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn run(id: u8) -> Run {
    let job = Job {
        id: JobId([id; 16]),
        machine: name("web"),
        repository: name("main"),
        kind: JobKind::Backup.code(),
        body: Vec::new(),
        extensions: Vec::new(),
    };
    Run { proxy: name("host7"), job }
}

fn attend(instance: u8, jobs: &[u8]) -> Attend {
    Attend { instance: [instance; 16], jobs: jobs.iter().map(|id| JobId([*id; 16])).collect() }
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
    Event::of(Ok(BackupReport {
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
    }))
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
        self.state.attend(&name("host7"), &attend(instance, jobs), self.now).unwrap()
    }

    fn next(&mut self, turn: u64, instance: u8) -> Result<Next, Error> {
        self.state.next(&name("host7"), turn, [instance; 16])
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
        self.state.run(&run(id), self.now)
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
    elsewhere.proxy = name("host8");
    let unknown = at.state.run(&elsewhere, at.now).unwrap_err();
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
    at.state.attend(&name("host8"), &attend(8, &[]), at.now).unwrap();
    at.run(1).unwrap();
    assert_eq!(at.assigned(turn, 1), Some(1));
    let foreign = at.state.report(&name("host8"), &report(1, done(1)), at.now).unwrap_err();
    assert_eq!(foreign.kind(), ErrorKind::NotFound);
    let mut elsewhere = run(1);
    elsewhere.proxy = name("host8");
    assert_eq!(at.state.run(&elsewhere, at.now).unwrap_err().kind(), ErrorKind::Usage);
    // Nor does claiming it help.
    at.state.attend(&name("host8"), &attend(8, &[1]), at.now).unwrap();
    assert_eq!(at.news(1, &mut Cursor::default()), News::Wait(None));
    let many = u8::try_from(JOBS_MAX).unwrap();
    (2..=many).for_each(|id| at.run(id).unwrap());
    assert_eq!(at.run(many + 1).unwrap_err().kind(), ErrorKind::Busy);
    let told = at.tell(many + 1, progress(1)).unwrap_err();
    assert_eq!(told.kind(), ErrorKind::Busy, "nor does telling of jobs make room");
    (1..=many).for_each(|id| at.tell(id, done(id)).unwrap());
    let results = u8::try_from(RESULTS_MAX).unwrap();
    (many + 1..=many + results).for_each(|id| {
        at.run(id).unwrap();
        at.tell(id, done(id)).unwrap();
    });
    let mut kept =
        (1..=many + results).filter(|id| at.state.news(JobId([*id; 16]), &mut Cursor::default(), at.now).is_ok());
    assert!(kept.by_ref().eq(many + 1..=many + results), "the newest");
}
