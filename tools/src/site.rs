//! Asking a node about its proxies and jobs, and having a proxy do one.

use crate::address::{At, RepositoryAddress};
use crate::cli::{AtNode, Through};
use crate::context::Context;
use crate::open;
use mover::event::{GivenEvent, JobEvent};
use mover::{Error, ErrorKind, JobId, Name, Progress, Result};
use std::time::Duration;
use tokio::time::{sleep, timeout};
use wire::control::{Job, JobReport, JobStatus, Jobs, Run, Told};
use wire::{Congestion, client};

/// A node that is asked.
pub struct Node {
    jobs: Jobs,
    /// For messages.
    name: String,
}

impl Node {
    /// The node that the arguments name. Connects when it is used.
    pub async fn at(context: &Context, at: &AtNode) -> Result<Self> {
        let (address, congestion) = match (&at.node, &at.repository) {
            (Some(node), _) => (node.at.clone(), node.congestion),
            (None, Some(repository)) => (repository.node()?, Congestion::default()),
            (None, None) => return Err(Error::usage("no node is given").hint("give it with --node")),
        };
        let name = format!("quic://{}:{}", address.host, address.port);
        let jobs = Jobs::new(client()?, open::peer(context, &address.host, address.port, congestion).await?);
        Ok(Self { jobs, name })
    }

    /// The node of a repository, and the repository's name there. `what` cannot be done elsewhere.
    pub async fn of(context: &Context, address: &RepositoryAddress, what: &str) -> Result<(Self, Name)> {
        let At::Node { host, port, name, congestion } = address.at() else {
            let why = format!("{address} is not on a storage node, and {what} needs a repository on one");
            return Err(Error::usage(why)
                .hint("write the repository as quic://host/name, or give the disks (SOURCE or --disk NAME=SOURCE)"));
        };
        let jobs = Jobs::new(client()?, open::peer(context, host, *port, *congestion).await?);
        Ok((Self { jobs, name: address.to_string() }, name.clone()))
    }

    /// Asks it, and says of whom an error is about.
    pub async fn asked<T>(self, ask: impl AsyncFnOnce(&Jobs) -> Result<T>) -> Result<T> {
        let made = ask(&self.jobs).await;
        self.jobs.close().await;
        made.map_err(|error| self.about(error))
    }

    /// Has a proxy do a job, and waits for its end. `tell` hears what is told before.
    pub async fn run(
        self,
        context: &Context,
        through: &Through,
        job: Job,
        progress: &Progress,
        tell: impl FnMut(Told<'_>),
    ) -> Result<JobReport> {
        let (proxy, label) = (through.proxy.clone(), through.proxy_label.clone());
        let run = Run { proxy, label, again: false, job };
        let made = until_stopped(context, &self.jobs, &run, progress, tell).await;
        self.jobs.close().await;
        made.map_err(|error| self.about(error))
    }

    /// What the node says of us or of itself.
    fn about(&self, error: Error) -> Error {
        match error.kind() {
            ErrorKind::Transport | ErrorKind::NotAuthorised => error.context(&self.name),
            _ => error,
        }
    }
}

/// The job of which these are the first digits.
pub fn job_called(jobs: Vec<JobStatus>, digits: &str) -> Result<JobStatus> {
    if digits.len() < DIGITS_MIN || !digits.bytes().all(|it| it.is_ascii_hexdigit()) {
        return Err(Error::usage(format!("{digits:?} is not the id of a job"))
            .hint(format!("give at least {DIGITS_MIN} digits of an id that `windlass job list` shows")));
    }
    let digits = digits.to_ascii_lowercase();
    let mut found = jobs.into_iter().filter(|job| job.id.to_string().starts_with(&digits));
    match (found.next(), found.next()) {
        (Some(job), None) => Ok(job),
        (Some(_), Some(_)) => {
            Err(Error::usage(format!("several jobs begin with {digits}")).hint("give more digits of the id"))
        }
        (None, _) => Err(Error::not_found(format!("there is no job {digits}")).hint(
            "`windlass job list` shows all; a node knows jobs for 24 hours after their end, until it is restarted",
        )),
    }
}

/// Prints what is told of a job before its end.
pub fn tell(context: &Context, job: JobId, told: Told<'_>) {
    match told {
        Told::Warning(warning) => context.out.warn(warning),
        Told::Given(proxy) => {
            context.out.event(&JobEvent::Given(GivenEvent { job: job.to_string(), proxy: proxy.to_string() }));
            context.out.note(&format!("job {job} at proxy {proxy}"));
        }
    }
}

/// The job's end. After a signal it is cancelled, and its end waited for: it may have been done already.
async fn until_stopped(
    context: &Context,
    jobs: &Jobs,
    run: &Run,
    progress: &Progress,
    tell: impl FnMut(Told<'_>),
) -> Result<JobReport> {
    let running = jobs.run(run, progress, tell);
    tokio::pin!(running);
    tokio::select! {
        made = &mut running => return made,
        _ = context.stop.asked() => {}
    }
    let cancelled = async {
        // A node that was just started again may not know the job yet.
        while jobs.cancel(run.job.id).await.is_err() {
            sleep(CANCEL_AGAIN).await;
        }
        std::future::pending().await
    };
    let ended = async {
        tokio::select! {
            made = &mut running => made,
            never = cancelled => never,
        }
    };
    timeout(CANCEL_PATIENCE, ended).await.unwrap_or_else(|_| {
        let who = run.proxy.as_ref().map_or("the proxy".to_owned(), |proxy| format!("proxy {proxy}"));
        let error = Error::new(ErrorKind::Cancelled, format!("{who} has not answered since the signal"));
        Err(error.hint(format!("the job may still run there: `windlass job show {}` tells", run.job.id)))
    })
}

/// Digits that name a job.
const DIGITS_MIN: usize = 4;
const CANCEL_AGAIN: Duration = Duration::from_secs(1);
/// For a job to end after it was cancelled.
const CANCEL_PATIENCE: Duration = Duration::from_secs(30);
