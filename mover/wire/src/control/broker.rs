//! A node's half: the streams on which proxies attend and administrators wait, over one [`State`].

use super::super::message::{Reply, Request};
use super::super::serve::{Answer, Done, Refused, send};
use super::job::{Attend, Event, Given, Run};
use super::site::ProxyChoice;
use super::state::{Asked, Cursor, News, Next, State};
use mover::{Error, Holder, JobId, Name, Result};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// Where jobs are handed over.
pub struct JobBroker {
    state: Mutex<State>,
    choice: ProxyChoice,
    /// Counts changes of it.
    changes: watch::Sender<u64>,
    stopping: AtomicBool,
}

/// One attendance, for as long as it lives.
struct Attendance<'a> {
    broker: &'a JobBroker,
    proxy: &'a Name,
    turn: u64,
}

impl Drop for Attendance<'_> {
    fn drop(&mut self) {
        self.broker.change(|state| state.leave(self.proxy, self.turn, Instant::now()));
    }
}

impl JobBroker {
    /// A broker without proxies and jobs, which chooses proxies in this way.
    pub fn new(choice: ProxyChoice) -> Self {
        let (changes, _) = watch::channel(0);
        Self { state: Mutex::new(State::new(Instant::now())), choice, changes, stopping: AtomicBool::new(false) }
    }

    /// Ends the streams of all proxies and administrators that wait. They ask again when the node is there again.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.changes.send_modify(|count| *count += 1);
    }

    /// Forgets jobs that ended long ago and proxies that have been gone for long. Then every stream is checked again,
    /// so that the node notices a holder that was shut out.
    pub fn forget(&self) {
        self.change(|state| state.forget(Instant::now()));
    }

    /// Does a request about jobs. `allowed` is called again before each reply, because these streams live long.
    pub async fn request(
        &self,
        holder: &Holder,
        request: Request,
        to: &mut Answer,
        allowed: impl Fn() -> Result<()> + Send + Sync,
    ) -> Done {
        let now = Instant::now();
        match request {
            Request::Attend(attend) => return self.attend(holder, attend, to, allowed).await,
            Request::Run(run) => return self.run(&holder.name, run, to, allowed).await,
            Request::Follow(it) => return self.follow(it.job, to, allowed).await,
            Request::Proxies(()) => self.tell_proxies(to).await?,
            Request::Jobs(()) => self.tell_jobs(to).await?,
            Request::Cancel(it) => self.change(|state| state.cancel(it.job, now))?,
            Request::Report(report) => self.change(|state| state.report(&holder.name, &report, now))?,
            _ => return Err(Error::internal("not a request about jobs").into()),
        }
        Ok(send(to, &Reply::Done(()), Vec::new(), false).await?)
    }

    async fn attend(
        &self,
        holder: &Holder,
        attend: Attend,
        to: &mut Answer,
        allowed: impl Fn() -> Result<()> + Send + Sync,
    ) -> Done {
        let proxy = &holder.name;
        let mut changes = self.changes.subscribe();
        attend.check()?;
        let turn = self.change(|state| state.attend(holder, &attend, Instant::now()))?;
        let _attendance = Attendance { broker: self, proxy, turn };
        tracing::info!(%proxy, jobs = attend.jobs.len(), machines = attend.machines.len(), "attends");
        // What it offers is in the state, and need not be kept twice for as long as it attends.
        let instance = attend.instance;
        drop(attend);
        send(to, &Reply::Taken(()), Vec::new(), true).await?;
        loop {
            self.go_on(&mut changes, &allowed)?;
            loop {
                let next = self.look(|state| state.next(proxy, turn, instance, Instant::now()))?;
                match next {
                    Next::Say(reply) => send(to, &reply, Vec::new(), true).await?,
                    Next::Wait => break,
                    Next::Elsewhere => return Err(Refused::Gone),
                }
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = to.unwanted() => return Err(Refused::Gone),
            }
        }
    }

    async fn run(&self, by: &Name, run: Run, to: &mut Answer, allowed: impl Fn() -> Result<()> + Send + Sync) -> Done {
        let mut changes = self.changes.subscribe();
        run.job.check()?;
        let proxy = loop {
            self.go_on(&mut changes, &allowed)?;
            // Only what changes something wakes others.
            match self.look(|state| state.run(&run, by, self.choice, Instant::now()))? {
                Asked::Taken(proxy) => break proxy,
                Asked::Wait(until) => wait(&mut changes, to, Some(until)).await?,
            }
        };
        self.changes.send_modify(|count| *count += 1);
        tracing::info!(job = %run.job.id, %proxy, machine = %run.job.machine, "asked for");
        send(to, &Reply::Given(Given { proxy }), Vec::new(), true).await?;
        self.tell_news(run.job.id, changes, to, allowed).await
    }

    async fn follow(&self, job: JobId, to: &mut Answer, allowed: impl Fn() -> Result<()> + Send + Sync) -> Done {
        let mut changes = self.changes.subscribe();
        let status = loop {
            self.go_on(&mut changes, &allowed)?;
            match self.look(|state| state.followed(job, Instant::now()))? {
                Some(status) => break status,
                None => wait(&mut changes, to, Some(self.look(|state| state.young_until()))).await?,
            }
        };
        send(to, &Reply::Job(status), Vec::new(), true).await?;
        self.tell_news(job, changes, to, allowed).await
    }

    /// Tells what happens to a job, until its end.
    async fn tell_news(
        &self,
        job: JobId,
        mut changes: watch::Receiver<u64>,
        to: &mut Answer,
        allowed: impl Fn() -> Result<()> + Send + Sync,
    ) -> Done {
        let mut cursor = Cursor::default();
        loop {
            self.go_on(&mut changes, &allowed)?;
            let until = loop {
                match self.look(|state| state.news(job, &mut cursor, Instant::now()))? {
                    News::Event(Event::Failed(failed)) => return Err(Refused::Told(failed)),
                    News::Event(end @ Event::Ended(_)) => {
                        return Ok(send(to, &Reply::Event(end), Vec::new(), false).await?);
                    }
                    News::Event(event) => send(to, &Reply::Event(event), Vec::new(), true).await?,
                    News::Wait(until) => break until,
                }
            };
            wait(&mut changes, to, until).await?;
        }
    }

    async fn tell_proxies(&self, to: &mut Answer) -> Done {
        // One after another: what all of them offer is much.
        for name in self.look(|state| state.proxies()) {
            if let Some(proxy) = self.look(|state| state.proxy(&name, Instant::now())) {
                send(to, &Reply::Proxy(proxy), Vec::new(), true).await?;
            }
        }
        Ok(())
    }

    async fn tell_jobs(&self, to: &mut Answer) -> Done {
        for id in self.look(|state| state.jobs()) {
            if let Ok(job) = self.look(|state| state.job(id, Instant::now())) {
                send(to, &Reply::Job(job), Vec::new(), true).await?;
            }
        }
        Ok(())
    }

    /// Whether a stream is still served; changes from here on are heard.
    fn go_on(&self, changes: &mut watch::Receiver<u64>, allowed: impl Fn() -> Result<()>) -> Done {
        changes.mark_unchanged();
        if self.stopping.load(Ordering::Relaxed) {
            return Err(Refused::Gone);
        }
        Ok(allowed()?)
    }

    /// As [`Self::change`], and nobody is woken.
    fn look<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().expect("no holder panics"))
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let made = self.look(change);
        self.changes.send_modify(|count| *count += 1);
        made
    }
}

/// Waits until something changes, or until this time.
async fn wait(changes: &mut watch::Receiver<u64>, to: &Answer, until: Option<Instant>) -> Done {
    let absent = async {
        match until {
            Some(until) => sleep_until(until).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = changes.changed() => Ok(()),
        () = to.unwanted() => Err(Refused::Gone),
        () = absent => Ok(()),
    }
}
