//! Attending one node: jobs come, and are told about.

use super::machines::Machine;
use super::work::Host;
use mover::{Counters, Error, ErrorKind, JobId, Name, Progress, Result, Stop, StopReason, Stopper};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep};
use wire::Peer;
use wire::control::{Attend, Event, HELD_MAX, HeldJob, Job, Jobs, Made, Order, Report};

/// A node, and its jobs.
pub struct Attendance {
    host: Arc<Host>,
    /// Name of this proxy.
    name: Name,
    node: String,
    peer: Peer,
    jobs: Jobs,
    held: Mutex<Held>,
}

/// Jobs that the node gave.
#[derive(Default)]
struct Held {
    jobs: BTreeMap<JobId, Holding>,
    tasks: JoinSet<()>,
    /// Set when no more are taken.
    stopping: Option<StopReason>,
}

/// A job, for as long as it can be asked for again.
struct Holding {
    about: HeldJob,
    stopper: Stopper,
    /// Its end, and when that was.
    end: Option<(Event, Instant)>,
    /// Whether the node was told of the end.
    told: bool,
}

impl Attendance {
    pub fn new(host: Arc<Host>, name: Name, node: String, peer: Peer) -> Self {
        let jobs = Jobs::new(host.endpoint.clone(), peer.clone());
        Self { host, name, node, peer, jobs, held: Mutex::default() }
    }

    /// Attends for ever, over lost connections. Ends when somebody else attends under the same name.
    pub async fn run(self: Arc<Self>) -> Result<()> {
        let mut attended = false;
        loop {
            let error = match self.attend(&mut attended).await {
                Ok(()) => {
                    sleep(PAUSE_SHORT).await;
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::Busy => return Err(error.context(&self.node)),
                Err(error) => error,
            };
            tracing::warn!(node = self.node, %error, hint = error.remedy(), "the node cannot be attended, trying again");
            sleep(PAUSE).await;
        }
    }

    /// One attendance, until its connection is lost.
    async fn attend(self: &Arc<Self>, attended: &mut bool) -> Result<()> {
        let mut machines = self.host.machines.watch();
        let mut orders = self.jobs.attend(self.present(&mut machines)).await?;
        tracing::info!(node = self.node, "attending");
        if !*attended {
            // For who started this, if anybody reads it: from here on it can be asked.
            let _ = writeln!(std::io::stdout(), "attending {}", self.node);
            *attended = true;
        }
        loop {
            let order = tokio::select! {
                order = orders.next() => order?,
                Ok(()) = machines.changed() => {
                    // The node gives again on the new stream what was on its way on the old one.
                    orders = self.jobs.attend(self.present(&mut machines)).await?;
                    continue;
                }
            };
            let Some(order) = order else { return Ok(()) };
            match order {
                Order::Job(job) => self.take(job),
                Order::Cancel(id) => {
                    let held = self.held.lock().expect("no holder panics");
                    if let Some(holding) = held.jobs.get(&id) {
                        holding.stopper.stop(StopReason::Cancel);
                    }
                }
            }
        }
    }

    /// What the node is told: the jobs whose end it does not know, and what can be backed up here.
    fn present(&self, machines: &mut watch::Receiver<Arc<Vec<Arc<Machine>>>>) -> Attend {
        let held = self.held.lock().expect("no holder panics");
        let jobs = held.jobs.values().filter(|holding| !holding.told).map(|holding| holding.about.clone()).collect();
        let machines = machines.borrow_and_update().iter().map(|it| it.offered.clone()).collect();
        Attend { instance: self.host.instance, jobs, labels: self.host.labels.clone(), machines }
    }

    /// Begins a job. If a job with this id ended before, tells its end again.
    fn take(self: &Arc<Self>, job: Job) {
        let mut held = self.held.lock().expect("no holder panics");
        let held = &mut *held;
        while held.tasks.try_join_next().is_some() {}
        held.make_room();
        let (id, full) = (job.id, held.jobs.len() >= HELD_MAX);
        match held.jobs.get_mut(&id) {
            Some(Holding { end: Some((end, _)), told: told @ true, .. }) => {
                *told = false;
                held.tasks.spawn(self.clone().tell_end(id, end.clone()));
            }
            Some(_) => {}
            None if full => {
                let full = Error::busy(format!("it already has {HELD_MAX} jobs of this node, which is the limit"));
                held.tasks.spawn(self.clone().tell_end(id, Event::of(Err(full.context(self.of_us())))));
            }
            None => {
                let (stopper, stop) = Stopper::new();
                if let Some(reason) = held.stopping {
                    stopper.stop(reason);
                }
                held.jobs.insert(id, Holding { about: HeldJob::from(&job), stopper, end: None, told: false });
                held.tasks.spawn(self.clone().job(job, stop));
            }
        }
    }

    /// A job from its beginning until the node knows its end.
    async fn job(self: Arc<Self>, job: Job, stop: Stop) {
        let (id, progress, runtime) = (job.id, Arc::new(Progress::default()), Handle::current());
        tracing::info!(job = %id, machine = %job.machine, repository = %job.repository, "begun");
        // On a thread of its own: the compiler cannot see that a backup may go from one thread to another.
        let work = spawn_blocking({
            let (attendance, progress, host) = (self.clone(), progress.clone(), self.host.clone());
            let say = move |what: String| {
                let event = Event::Warning(format!("{}: it {what}", attendance.of_us()));
                let attendance = attendance.clone();
                Handle::current().spawn(async move { attendance.jobs.report(Report { job: id, event }).await });
            };
            let peer = self.peer.clone();
            move || runtime.block_on(host.carry_out(job, peer, stop, progress, say))
        });
        let made = tokio::select! {
            made = work => made.unwrap_or_else(|broken| Err(Error::internal("the job ended unexpectedly").because(broken))),
            never = self.tell_progress(id, &progress) => match never {},
        };
        self.ended(id, made).await;
    }

    async fn ended(self: Arc<Self>, id: JobId, made: Result<Made>) {
        match &made {
            Ok(_) => tracing::info!(job = %id, "done"),
            Err(error) => tracing::warn!(job = %id, %error, "failed"),
        }
        let end = Event::of(made.map_err(|error| error.context(self.of_us())));
        if let Some(holding) = self.held.lock().expect("no holder panics").jobs.get_mut(&id) {
            holding.end = Some((end.clone(), Instant::now()));
        }
        self.tell_end(id, end).await;
    }

    /// Tells the node the end of a job, and tries again for as long as somebody may ask for it.
    async fn tell_end(self: Arc<Self>, id: JobId, event: Event) {
        let until = Instant::now() + END_KEPT;
        loop {
            match self.jobs.report(Report { job: id, event: event.clone() }).await {
                Ok(()) => break,
                Err(error) if error.kind() == ErrorKind::Transport && Instant::now() < until => sleep(PAUSE).await,
                Err(error) => {
                    tracing::warn!(job = %id, node = self.node, %error, "its end could not be reported");
                    break;
                }
            }
        }
        if let Some(holding) = self.held.lock().expect("no holder panics").jobs.get_mut(&id) {
            holding.told = true;
        }
    }

    /// Tells the node how far a job is. A state that cannot be told before the next one is left out.
    async fn tell_progress(&self, id: JobId, progress: &Progress) -> Infallible {
        let mut told: Option<Counters> = None;
        loop {
            let counters = progress.counters();
            if told != Some(counters) {
                match self.jobs.report(Report { job: id, event: Event::Progress(counters) }).await {
                    Ok(()) => told = Some(counters),
                    Err(error) => tracing::debug!(job = %id, %error, "its progress could not be reported"),
                }
            }
            sleep(PROGRESS).await;
        }
    }

    /// Ends all jobs; those that still come end at once.
    pub fn stop(&self, reason: StopReason) {
        let mut held = self.held.lock().expect("no holder panics");
        held.stopping = Some(reason);
        for holding in held.jobs.values() {
            holding.stopper.stop(reason);
        }
    }

    /// Waits until the node knows the end of every job, or telling it was given up.
    pub async fn finished(&self) {
        loop {
            let mut tasks = std::mem::take(&mut self.held.lock().expect("no holder panics").tasks);
            if tasks.is_empty() {
                return;
            }
            while tasks.join_next().await.is_some() {}
        }
    }

    /// Tells the node that nothing more comes.
    pub async fn close(&self) {
        self.jobs.close().await;
    }

    fn of_us(&self) -> String {
        format!("proxy {}", self.name)
    }
}

impl Held {
    /// Forgets jobs whose end the node knows and for which nobody asks any more. If there is still no room, also
    /// forgets the oldest job whose end the node knows.
    fn make_room(&mut self) {
        self.jobs
            .retain(|_, holding| !holding.told || holding.end.as_ref().is_none_or(|(_, at)| at.elapsed() < END_KEPT));
        let told = self.jobs.iter().filter(|(_, holding)| holding.told);
        let oldest = told.min_by_key(|(_, holding)| holding.end.as_ref().map(|(_, at)| *at)).map(|(id, _)| *id);
        if let Some(oldest) = oldest.filter(|_| self.jobs.len() >= HELD_MAX) {
            self.jobs.remove(&oldest);
        }
    }
}

/// How long the end of a job is told, and known.
const END_KEPT: Duration = Duration::from_secs(600);
/// Between two reports of progress.
const PROGRESS: Duration = Duration::from_secs(1);
/// Pause before a node is attended again after its connection was lost.
const PAUSE_SHORT: Duration = Duration::from_millis(100);
/// Pause before a node is asked again that could not be reached.
const PAUSE: Duration = Duration::from_secs(2);
