//! What a node knows of proxies and their jobs: no clock, no I/O. Nothing of it is durable. After a restart of the
//! node, proxies tell it which jobs they have, and administrators ask for their jobs again.

use super::super::message::{Failed, Reply};
use super::job::{Attend, Event, Job, JobOf, Report, Run, WARNINGS_MAX};
use mover::{Counters, Error, ErrorKind, JobId, Name, Result};
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
    /// Since when nobody attends under this name.
    away: Option<Instant>,
}

struct Entry {
    /// Jobs of a proxy are given in this order.
    number: u64,
    proxy: Name,
    /// None when the node knows the job only from its proxy.
    job: Option<Job>,
    stage: Stage,
    /// Set when the job is cancelled: the last attendance to which the node said so.
    cancelled: Option<u64>,
    progress: (u64, Counters),
    warnings: Vec<String>,
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
    pub fn attend(&mut self, proxy: &Name, attend: &Attend, now: Instant) -> Result<u64> {
        if !self.proxies.contains_key(proxy) && self.proxies.len() >= PROXIES_MAX {
            // Tried again, unlike a name that somebody else has.
            return Err(Error::transport(format!("this node already has {PROXIES_MAX} proxies, which is the limit")));
        }
        self.last += 1;
        let (turn, instance) = (self.last, attend.instance);
        self.proxies.insert(proxy.clone(), Attendee { turn, instance, away: None });
        let mut lost = Vec::new();
        for (id, entry) in self.jobs.iter_mut().filter(|(_, entry)| entry.proxy == *proxy) {
            let Stage::Given(to) = entry.stage else {
                if matches!(entry.stage, Stage::Waiting) && attend.jobs.contains(id) {
                    entry.stage = Stage::Given(instance);
                }
                continue;
            };
            match (attend.jobs.contains(id), to == instance) {
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
        for id in &attend.jobs {
            // One of before this node was started.
            if !self.jobs.contains_key(id) && self.room(proxy).is_ok() {
                self.insert(*id, proxy, None, Stage::Given(instance));
            }
        }
        Ok(turn)
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
    pub fn next(&mut self, proxy: &Name, turn: u64, instance: [u8; 16]) -> Result<Next> {
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
                entry.stage = Stage::Given(instance);
                Reply::Assigned(job.clone())
            }
            _ => {
                entry.cancelled = Some(turn);
                Reply::CalledOff(JobOf { job: *id })
            }
        }))
    }

    /// An administrator wants a job done. A second request with the same id means the same job.
    pub fn run(&mut self, run: &Run, now: Instant) -> Result<()> {
        if let Some(entry) = self.jobs.get(&run.job.id) {
            if entry.proxy == run.proxy {
                return Ok(());
            }
            return Err(Error::usage(format!("job {} belongs to proxy {}", run.job.id, entry.proxy)));
        }
        if self.gone_at(&run.proxy).is_some_and(|at| at <= now) {
            return Err(self.unknown(&run.proxy));
        }
        self.room(&run.proxy)?;
        self.insert(run.job.id, &run.proxy, Some(run.job.clone()), Stage::Waiting);
        Ok(())
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
            self.insert(id, proxy, None, Stage::Given(instance));
        }
        let entry = self.jobs.get_mut(&id).filter(|entry| entry.proxy == *proxy);
        let entry = entry.ok_or_else(|| Error::not_found(format!("proxy {proxy} has no job {id}")))?;
        match entry.stage {
            Stage::Waiting => entry.stage = Stage::Given(instance),
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
            None => Some(self.began + YOUTH),
        }
    }

    fn unknown(&self, proxy: &Name) -> Error {
        let there: Vec<&str> =
            self.proxies.iter().filter(|(_, it)| it.away.is_none()).map(|(name, _)| name.as_str()).collect();
        let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        let what = format!("proxy {proxy} does not attend this node (attending: {there})");
        Error::not_found(what).hint("start windlass-proxy on that host, with this node in its configuration")
    }

    fn room(&self, proxy: &Name) -> Result<()> {
        let open = self.jobs.values().filter(|entry| !matches!(entry.stage, Stage::Over(..)));
        if open.filter(|entry| entry.proxy == *proxy).count() >= JOBS_MAX || self.jobs.len() >= JOBS_ALL_MAX {
            return Err(Error::busy(format!(
                "too many jobs: proxy {proxy} has {JOBS_MAX}, or this node has {JOBS_ALL_MAX}"
            ))
            .hint("wait until some have ended, or use --wait"));
        }
        Ok(())
    }

    fn insert(&mut self, id: JobId, proxy: &Name, job: Option<Job>, stage: Stage) {
        self.last += 1;
        let entry = Entry {
            number: self.last,
            proxy: proxy.clone(),
            job,
            stage,
            cancelled: None,
            progress: (0, Counters::default()),
            warnings: Vec::new(),
        };
        self.jobs.insert(id, entry);
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

    fn end(&mut self, id: JobId, end: Event, now: Instant) {
        let Some(entry) = self.jobs.get_mut(&id) else { return };
        entry.stage = Stage::Over(end, now);
        let proxy = entry.proxy.clone();
        let over = self.jobs.iter().filter_map(|(id, entry)| match entry.stage {
            Stage::Over(_, at) if entry.proxy == proxy => Some((at, entry.number, *id)),
            _ => None,
        });
        let mut over: Vec<_> = over.collect();
        over.sort_unstable();
        for (_, _, oldest) in &over[..over.len().saturating_sub(RESULTS_MAX)] {
            self.jobs.remove(oldest);
        }
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
/// Jobs of a proxy that are over, and still known.
pub const RESULTS_MAX: usize = 16;
/// How long the node knows a job after its end.
pub const RESULT_KEPT: Duration = Duration::from_secs(600);
/// How long the node waits for a proxy that attended before.
pub const ABSENCE_MAX: Duration = Duration::from_secs(60);
/// How long after its start the node waits for proxies that it has not seen yet. They try again every few seconds, and a try
/// takes up to 5 s.
pub const YOUTH: Duration = Duration::from_secs(15);
