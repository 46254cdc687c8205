//! What a node knows of proxies and their jobs: no clock, no I/O. Nothing of it is durable. After a restart of the
//! node, proxies tell it which jobs they have, and administrators ask for their jobs again.

mod choosing;
mod history;
mod telling;

use super::super::message::{Failed, Reply};
use super::job::{Attend, Event, HeldJob, Job, JobOf, Report, Run, WARNINGS_MAX};
use super::site::{MACHINES_WEIGHT_MAX, OfferedMachine, ProxyChoice};
use mover::{Counters, Error, ErrorKind, Holder, JobId, JobKind, MachineId, Name, OwnerId, Result};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;
use tokio::time::Instant;

/// What a node knows of proxies and their jobs.
pub struct State {
    began: Instant,
    proxies: BTreeMap<Name, Attendee>,
    jobs: HashMap<JobId, Entry>,
    /// Counts attendances and jobs.
    last: u64,
}

/// A proxy that attends, or did not long ago.
struct Attendee {
    /// The attendance that counts: the newest.
    turn: u64,
    instance: [u8; 16],
    holder: Holder,
    /// Since when it attends, over lost connections.
    since: Instant,
    /// Since when nobody attends under this name.
    away: Option<Instant>,
    labels: Vec<Name>,
    machines: Vec<OfferedMachine>,
    /// When it was given its last job, by the count of [`State::last`].
    given: u64,
}

struct Entry {
    /// Jobs of a proxy are given in this order.
    number: u64,
    proxy: Name,
    /// What it is about; none when the node knows only that its proxy has it.
    about: Option<HeldJob>,
    /// The machine.
    machine: Option<Machine>,
    /// Who asked for it.
    by: Option<Name>,
    /// None when the node knows the job only from its proxy, or when it is over.
    job: Option<Job>,
    stage: Stage,
    asked: Instant,
    given: Option<Instant>,
    /// Set when the job is cancelled: the last attendance to which the node said so.
    cancelled: Option<u64>,
    progress: (u64, Counters),
    warnings: Vec<String>,
}

/// Which machine a job is about.
#[derive(Debug, Clone)]
struct Machine {
    owner: OwnerId,
    id: Option<MachineId>,
    name: Name,
}

enum Stage {
    /// It is still to be given to its proxy.
    Waiting,
    /// This instance of its proxy has it.
    Given([u8; 16]),
    /// It ended at this time, as the event says.
    Over(Event, Instant),
}

/// What comes next for a proxy.
#[derive(Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time, for a moment")]
pub enum Next {
    /// Send this reply.
    Say(Reply),
    /// There is nothing to send yet.
    Wait,
    /// The same proxy attends on another stream.
    Elsewhere,
}

/// What comes next for an administrator who waits for a job.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// This event. Nothing follows the end of the job.
    Event(Event),
    /// Nothing yet. Ask again at this time, if there is one.
    Wait(Option<Instant>),
}

/// What became of a request for a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// This proxy has it, or will have it.
    Taken(Name),
    /// Ask again at this time, or when something has changed: the node was started a short time ago, and proxies that
    /// could have the job may come back until then.
    Wait(Instant),
}

/// How much of a job's news one administrator has got.
#[derive(Debug, Default)]
pub struct Cursor {
    warnings: usize,
    progress: u64,
}

impl State {
    /// No proxies and no jobs.
    pub fn new(now: Instant) -> Self {
        Self { began: now, proxies: BTreeMap::new(), jobs: HashMap::new(), last: 0 }
    }

    /// Notes that a proxy attends, and gives the number of this attendance. The newest attendance counts, because the
    /// node may not know yet that the process of an older one was killed.
    pub fn attend(&mut self, holder: &Holder, attend: &Attend, now: Instant) -> Result<u64> {
        let proxy = &holder.name;
        self.make_room_for(proxy, attend)?;
        self.last += 1;
        let (turn, instance) = (self.last, attend.instance);
        let before = self.proxies.get(proxy);
        let same = before.filter(|it| it.instance == instance);
        let attendee = Attendee {
            turn,
            instance,
            holder: holder.clone(),
            since: same.map_or(now, |it| it.since),
            away: None,
            labels: attend.labels.clone(),
            machines: attend.machines.clone(),
            given: before.map_or(0, |it| it.given),
        };
        self.proxies.insert(proxy.clone(), attendee);
        let mut lost = Vec::new();
        for (id, entry) in self.jobs.iter_mut().filter(|(_, entry)| entry.proxy == *proxy) {
            let has = attend.jobs.iter().any(|job| job.id == *id);
            let Stage::Given(to) = entry.stage else {
                if matches!(entry.stage, Stage::Waiting) && has {
                    entry.give(instance, now);
                }
                continue;
            };
            match (has, to == instance) {
                (true, _) => entry.stage = Stage::Given(instance),
                // It was on its way when the connection was lost.
                (false, true) if entry.job.is_some() => entry.stage = Stage::Waiting,
                _ => lost.push(*id),
            }
        }
        for id in lost {
            let error = Error::transport(format!("proxy {proxy} was started again during the job"));
            self.end(id, failed(&error.hint("run the backup again: what was stored already is not sent again")), now);
        }
        self.learn(proxy, attend, now);
        Ok(turn)
    }

    /// Refuses a proxy for which there is no room. It tries again, unlike one whose name somebody else has.
    fn make_room_for(&self, proxy: &Name, attend: &Attend) -> Result<()> {
        if !self.proxies.contains_key(proxy) && self.proxies.len() >= PROXIES_MAX {
            return Err(Error::transport(format!("this node already has {PROXIES_MAX} proxies, which is the limit")));
        }
        let others = self.proxies.iter().filter(|(name, _)| *name != proxy).flat_map(|(_, it)| &it.machines);
        let weight: usize = others.chain(&attend.machines).map(OfferedMachine::weight).sum();
        if weight > MACHINES_WEIGHT_MAX {
            return Err(Error::transport("all proxies together offer more machines than this node keeps in memory"));
        }
        Ok(())
    }

    /// Takes over jobs of before this node was started, and what a job is about of which only the id was known.
    fn learn(&mut self, proxy: &Name, attend: &Attend, now: Instant) {
        for job in &attend.jobs {
            if !self.jobs.contains_key(&job.id) && self.room(proxy).is_ok() {
                let given = Stage::Given(attend.instance);
                self.insert(job.id, Entry::new(proxy, given, now));
            }
            let machine = self.machine_at(proxy, &job.machine);
            if let Some(entry) = self.jobs.get_mut(&job.id).filter(|it| it.proxy == *proxy && it.about.is_none()) {
                (entry.about, entry.machine) = (Some(job.clone()), machine);
            }
        }
    }

    /// Notes that an attendance has ended.
    pub fn leave(&mut self, proxy: &Name, turn: u64, now: Instant) {
        if let Some(attendee) = self.proxies.get_mut(proxy).filter(|it| it.turn == turn) {
            attendee.away = Some(now);
        }
    }

    /// What the node must tell the proxy next in this attendance.
    ///
    /// # Errors
    /// `Busy` when another process has begun to attend under this name.
    pub fn next(&mut self, proxy: &Name, turn: u64, instance: [u8; 16], now: Instant) -> Result<Next> {
        match self.proxies.get(proxy) {
            Some(attendee) if attendee.turn == turn => {}
            Some(attendee) if attendee.instance != instance => {
                return Err(Error::busy(format!("another process attends as proxy {proxy}"))
                    .hint("give each proxy an identity of its own"));
            }
            _ => return Ok(Next::Elsewhere),
        }
        let of_it = self.jobs.iter_mut().filter(|(_, entry)| entry.proxy == *proxy);
        let to_be_told = of_it.filter(|(_, entry)| match entry.stage {
            Stage::Waiting => true,
            Stage::Given(_) => entry.cancelled.is_some_and(|told| told != turn),
            Stage::Over(..) => false,
        });
        let Some((id, entry)) = to_be_told.min_by_key(|(_, entry)| entry.number) else { return Ok(Next::Wait) };
        Ok(Next::Say(match (&entry.stage, &entry.job) {
            (Stage::Waiting, Some(job)) => {
                let job = job.clone();
                entry.give(instance, now);
                Reply::Assigned(job)
            }
            _ => {
                entry.cancelled = Some(turn);
                Reply::CalledOff(JobOf { job: *id })
            }
        }))
    }

    /// An administrator wants a job done. A second request with the same id means the same job.
    ///
    /// # Errors
    /// `NotFound` when nobody is there who could do it, `Busy` when another job of the machine is under way, `Usage` when
    /// it is not clear which machine is meant.
    pub fn run(&mut self, run: &Run, by: &Name, choice: ProxyChoice, now: Instant) -> Result<Asked> {
        if let Some(entry) = self.jobs.get(&run.job.id) {
            if run.proxy.as_ref().is_none_or(|proxy| entry.proxy == *proxy) {
                return Ok(Asked::Taken(entry.proxy.clone()));
            }
            return Err(Error::usage(format!("job {} belongs to proxy {}", run.job.id, entry.proxy)));
        }
        let proxy = match &run.proxy {
            Some(proxy) if self.gone_at(proxy).is_some_and(|at| at <= now) => return Err(self.unknown(proxy)),
            Some(proxy) => proxy.clone(),
            // Proxies that have not come back yet may have it.
            None if run.again && now < self.began + YOUTH => return Ok(Asked::Wait(self.began + YOUTH)),
            None => match self.choose(run, choice, now)? {
                Some(proxy) => proxy,
                None => return Ok(Asked::Wait(self.began + YOUTH)),
            },
        };
        let machine = self.machine_at(&proxy, &run.job.machine);
        if run.job.kind != JobKind::Examine.code() {
            self.refuse_second(machine.as_ref(), &run.job.machine)?;
        }
        self.room(&proxy)?;
        let job = run.job.clone();
        let about = Some(HeldJob::from(&job));
        let entry = Entry::new(&proxy, Stage::Waiting, now);
        self.insert(job.id, Entry { about, machine, by: Some(by.clone()), job: Some(job), ..entry });
        if let Some(attendee) = self.proxies.get_mut(&proxy) {
            attendee.given = self.last;
        }
        Ok(Asked::Taken(proxy))
    }

    /// What there is to tell of a job.
    ///
    /// # Errors
    /// `NotFound` when it is not known, or not any more.
    pub fn news(&mut self, id: JobId, cursor: &mut Cursor, now: Instant) -> Result<News> {
        self.end_abandoned(id, now);
        let entry = self.jobs.get(&id).ok_or_else(|| Error::not_found(format!("job {id} is not known any more")))?;
        if let Some(warning) = entry.warnings.get(cursor.warnings) {
            cursor.warnings += 1;
            return Ok(News::Event(Event::Warning(warning.clone())));
        }
        if let Stage::Over(end, _) = &entry.stage {
            return Ok(News::Event(end.clone()));
        }
        let (number, progress) = entry.progress;
        if number > cursor.progress {
            cursor.progress = number;
            return Ok(News::Event(Event::Progress(progress)));
        }
        Ok(News::Wait(self.gone_at(&entry.proxy)))
    }

    /// A job is to end; one that is over stays as it is.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn cancel(&mut self, id: JobId, now: Instant) -> Result<()> {
        let entry = self.jobs.get_mut(&id).ok_or_else(|| Error::not_found(format!("job {id} is not known")))?;
        match entry.stage {
            Stage::Waiting => {
                let error = Error::new(ErrorKind::Cancelled, "cancelled by an administrator before it began");
                self.end(id, failed(&error), now);
            }
            Stage::Given(_) => {
                entry.cancelled.get_or_insert(0);
            }
            Stage::Over(..) => {}
        }
        Ok(())
    }

    /// A proxy tells of a job.
    ///
    /// # Errors
    /// `NotFound` when it is another one's.
    pub fn report(&mut self, proxy: &Name, report: &Report, now: Instant) -> Result<()> {
        let id = report.job;
        let instance = self.proxies.get(proxy).map_or([0; 16], |attendee| attendee.instance);
        if !self.jobs.contains_key(&id) {
            // Told before it attends a node that was started again.
            self.room(proxy)?;
            self.insert(id, Entry::new(proxy, Stage::Given(instance), now));
        }
        let entry = self.jobs.get_mut(&id).filter(|entry| entry.proxy == *proxy);
        let entry = entry.ok_or_else(|| Error::not_found(format!("proxy {proxy} has no job {id}")))?;
        match entry.stage {
            Stage::Waiting => entry.give(instance, now),
            Stage::Given(_) => {}
            Stage::Over(..) => return Ok(()),
        }
        match &report.event {
            Event::Progress(counters) => entry.progress = (entry.progress.0 + 1, *counters),
            Event::Warning(warning) if entry.warnings.len() < WARNINGS_MAX => entry.warnings.push(warning.clone()),
            Event::Warning(_) => {}
            Event::Ended(_) => self.end(id, report.event.clone(), now),
            // Its texts are cut to what a reply holds.
            Event::Failed(it) => self.end(id, failed(&Error::from(it.clone())), now),
        }
        Ok(())
    }

    /// Forgets what is over for long, and proxies that are gone for long.
    pub fn forget(&mut self, now: Instant) {
        for id in self.jobs.keys().copied().collect::<Vec<_>>() {
            self.end_abandoned(id, now);
        }
        self.jobs.retain(|_, entry| match entry.stage {
            Stage::Over(_, at) => now < at + RESULT_KEPT,
            _ => true,
        });
        self.proxies.retain(|_, attendee| attendee.away.is_none_or(|away| now < away + ABSENCE_MAX));
    }

    /// When the node stops waiting for a proxy that does not attend; none while it attends.
    fn gone_at(&self, proxy: &Name) -> Option<Instant> {
        match self.proxies.get(proxy) {
            Some(attendee) => attendee.away.map(|away| away + ABSENCE_MAX),
            None => Some(self.young_until()),
        }
    }

    /// Until when proxies may still come that the node has not seen since its start.
    pub fn young_until(&self) -> Instant {
        self.began + YOUTH
    }

    fn open_jobs(&self, proxy: &Name) -> usize {
        self.jobs.values().filter(|entry| !entry.is_over() && entry.proxy == *proxy).count()
    }

    fn unknown(&self, proxy: &Name) -> Error {
        let there: Vec<&str> =
            self.proxies.iter().filter(|(_, it)| it.away.is_none()).map(|(name, _)| name.as_str()).collect();
        let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        let what = format!("proxy {proxy} does not attend this node (attending: {there})");
        Error::not_found(what).hint("start windlass-proxy on that host, with this node in its configuration")
    }

    fn room(&self, proxy: &Name) -> Result<()> {
        if self.open_jobs(proxy) >= JOBS_MAX || self.jobs.len() >= JOBS_ALL_MAX {
            return Err(Error::busy(format!(
                "too many jobs: proxy {proxy} has {JOBS_MAX}, or this node has {JOBS_ALL_MAX}"
            ))
            .hint("wait until some have ended, or use --wait"));
        }
        Ok(())
    }

    fn insert(&mut self, id: JobId, entry: Entry) {
        self.last += 1;
        self.jobs.insert(id, Entry { number: self.last, ..entry });
    }

    /// Ends a job when the node does not wait for its proxy any more.
    fn end_abandoned(&mut self, id: JobId, now: Instant) {
        let Some(entry) = self.jobs.get(&id) else { return };
        if self.gone_at(&entry.proxy).is_none_or(|at| at > now) {
            return;
        }
        let error = match entry.stage {
            Stage::Over(..) => return,
            Stage::Waiting => self.unknown(&entry.proxy),
            Stage::Given(_) => {
                let what =
                    format!("proxy {} has not been connected for more than {} s", entry.proxy, ABSENCE_MAX.as_secs());
                Error::transport(what).hint("check whether windlass-proxy runs there; `windlass points` shows whether the job made its point all the same")
            }
        };
        self.end(id, failed(&error), now);
    }
}

impl Entry {
    fn new(proxy: &Name, stage: Stage, now: Instant) -> Self {
        let given = matches!(stage, Stage::Given(_)).then_some(now);
        Self {
            number: 0,
            proxy: proxy.clone(),
            about: None,
            machine: None,
            by: None,
            job: None,
            stage,
            asked: now,
            given,
            cancelled: None,
            progress: (0, Counters::default()),
            warnings: Vec::new(),
        }
    }

    /// This instance of its proxy has it from now on.
    fn give(&mut self, instance: [u8; 16], now: Instant) {
        self.stage = Stage::Given(instance);
        self.given.get_or_insert(now);
    }

    const fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over(..))
    }
}

fn failed(error: &Error) -> Event {
    Event::Failed(Failed::from(error))
}

/// Most proxies that attend a node.
pub const PROXIES_MAX: usize = 256;
/// Jobs of a proxy that are not over.
pub const JOBS_MAX: usize = 16;
/// Jobs of all proxies, with those that are over.
pub const JOBS_ALL_MAX: usize = 1024;
/// Jobs that are over, and still known.
pub const RESULTS_MAX: usize = 256;
/// Bytes of what these made.
pub const RESULTS_BYTES_MAX: usize = 8 << 20;
/// How long the node knows a job after its end.
pub const RESULT_KEPT: Duration = Duration::from_secs(24 * 3600);
/// How long the node waits for a proxy that attended before.
pub const ABSENCE_MAX: Duration = Duration::from_secs(60);
/// How long after its start the node waits for proxies that it has not seen yet. They try again every few seconds, and a try
/// takes up to 5 s.
pub const YOUTH: Duration = Duration::from_secs(15);
