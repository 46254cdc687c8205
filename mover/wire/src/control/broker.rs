//! A node's half: the streams on which proxies attend and administrators wait, over one [`State`].

use super::super::message::{Reply, Request};
use super::super::serve::{Answer, Done, Refused, send};
use super::job::{Attend, Event, Run};
use super::state::{Cursor, News, Next, State};
use mover::{Error, Holder, Name, Result};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// Where jobs are handed over.
pub struct JobBroker {
    state: Mutex<State>,
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
    /// A broker without proxies and jobs.
    pub fn new() -> Self {
        let (changes, _) = watch::channel(0);
        Self { state: Mutex::new(State::new(Instant::now())), changes, stopping: AtomicBool::new(false) }
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
            Request::Attend(attend) => return self.attend(&holder.name, attend, to, allowed).await,
            Request::Run(run) => return self.run(run, to, allowed).await,
            Request::Cancel(it) => self.change(|state| state.cancel(it.job, now))?,
            Request::Report(report) => self.change(|state| state.report(&holder.name, &report, now))?,
            _ => return Err(Error::internal("not a request about jobs").into()),
        }
        Ok(send(to, &Reply::Done(()), Vec::new(), false).await?)
    }

    async fn attend(
        &self,
        proxy: &Name,
        attend: Attend,
        to: &mut Answer,
        allowed: impl Fn() -> Result<()> + Send + Sync,
    ) -> Done {
        let mut changes = self.changes.subscribe();
        let turn = self.change(|state| state.attend(proxy, &attend, Instant::now()))?;
        let _attendance = Attendance { broker: self, proxy, turn };
        tracing::info!(%proxy, jobs = attend.jobs.len(), "attends");
        send(to, &Reply::Taken(()), Vec::new(), true).await?;
        loop {
            self.go_on(&mut changes, &allowed)?;
            loop {
                let next = self.state.lock().expect("no holder panics").next(proxy, turn, attend.instance)?;
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

    async fn run(&self, run: Run, to: &mut Answer, allowed: impl Fn() -> Result<()> + Send + Sync) -> Done {
        let mut changes = self.changes.subscribe();
        run.job.check()?;
        self.change(|state| state.run(&run, Instant::now()))?;
        tracing::info!(job = %run.job.id, proxy = %run.proxy, machine = %run.job.machine, "asked for");
        send(to, &Reply::Taken(()), Vec::new(), true).await?;
        let mut cursor = Cursor::default();
        loop {
            self.go_on(&mut changes, &allowed)?;
            let until = loop {
                let news =
                    self.state.lock().expect("no holder panics").news(run.job.id, &mut cursor, Instant::now())?;
                match news {
                    News::Event(Event::Failed(failed)) => return Err(Refused::Told(failed)),
                    News::Event(end @ Event::Ended(_)) => {
                        return Ok(send(to, &Reply::Event(end), Vec::new(), false).await?);
                    }
                    News::Event(event) => send(to, &Reply::Event(event), Vec::new(), true).await?,
                    News::Wait(until) => break until,
                }
            };
            let absent = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = changes.changed() => {}
                () = to.unwanted() => return Err(Refused::Gone),
                () = absent => {}
            }
        }
    }

    /// Whether a stream is still served; changes from here on are heard.
    fn go_on(&self, changes: &mut watch::Receiver<u64>, allowed: impl Fn() -> Result<()>) -> Done {
        changes.mark_unchanged();
        if self.stopping.load(Ordering::Relaxed) {
            return Err(Refused::Gone);
        }
        Ok(allowed()?)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let made = change(&mut self.state.lock().expect("no holder panics"));
        self.changes.send_modify(|count| *count += 1);
        made
    }
}
