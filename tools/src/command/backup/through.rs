//! A backup that a proxy makes.

use crate::address::At;
use crate::cli::Backup;
use crate::context::Context;
use crate::job::watched;
use crate::open;
use mover::{BackupOptions, BackupReport, Error, ErrorKind, JobId, Name, PointId, Progress, Result};
use std::time::Duration;
use tokio::time::{sleep, timeout};
use wire::client;
use wire::control::{Job, Jobs, Run};

pub async fn attempt(
    context: &Context,
    arguments: &Backup,
    proxy: &Name,
    options: &BackupOptions,
) -> Result<BackupReport> {
    let address = &arguments.place.repository;
    let At::Node { host, port, name, congestion } = address.at() else {
        return Err(Error::usage(format!("{address} is not on a storage node, and --proxy needs a repository on one"))
            .hint("write the repository as quic://host/name, or leave out --proxy"));
    };
    let (id, point) = (JobId::random(&context.world), PointId::random(&context.world));
    let job = Job::backup(id, point, name.clone(), options)?;
    let jobs = Jobs::new(client()?, open::peer(context, host, *port, *congestion).await?);
    let progress = Progress::default();
    let run = Run { proxy: proxy.clone(), job };
    let made = watched(&context.out, &progress, until_stopped(context, &jobs, &run, &progress)).await;
    jobs.close().await;
    made.map_err(|error| match error.kind() {
        // What the node says of us or of itself.
        ErrorKind::Transport | ErrorKind::NotAuthorised => error.context(address),
        _ => error,
    })
}

/// The job's end. After a signal it is cancelled, and its end waited for: it may have been done already.
async fn until_stopped(context: &Context, jobs: &Jobs, run: &Run, progress: &Progress) -> Result<BackupReport> {
    let running = jobs.run(run, progress, |warning| context.out.warn(warning));
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
        let error = Error::new(ErrorKind::Cancelled, format!("proxy {} has not answered since the signal", run.proxy));
        Err(error.hint("the job may still run there"))
    })
}

const CANCEL_AGAIN: Duration = Duration::from_secs(1);
/// For a job to end after it was cancelled.
const CANCEL_PATIENCE: Duration = Duration::from_secs(30);
