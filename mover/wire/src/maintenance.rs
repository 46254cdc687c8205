//! Work on a whole repository, done on the node where it is: nothing is sent but how far it is, and what came of it.

use super::link::unexpected;
use super::message::{
    DAMAGES_MAX, Damage, Reply, RepositoryRef, Request, SweepIn, VERIFIED_POINTS_MAX, Verified, VerifyIn,
};
use super::remote::Remote;
use super::serve::{Answer, Done, Refused, send};
use mover::{Error, IndexTotals, Progress, Repository, Result, SweepOptions, SweepReport, VerifyOptions, VerifyReport};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The node's half of a verification.
pub(super) async fn verify<R: Repository>(repository: &R, options: VerifyOptions, to: &mut Answer) -> Done {
    let progress = Arc::new(Progress::default());
    let report = told(repository.verify(options, progress.clone()), &progress, to).await?;
    let VerifyReport { points, chunks, bytes_read, packs_skipped, errors } = report;
    let mut errors = errors.into_iter().map(Damage::from).peekable();
    while errors.peek().is_some() {
        let page = errors.by_ref().take(DAMAGES_MAX).collect();
        send(to, &Reply::Damages(page), Vec::new(), true).await?;
    }
    Ok(send(to, &Reply::Verified(Verified { points, chunks, bytes_read, packs_skipped }), Vec::new(), false).await?)
}

/// The node's half of making an index again.
pub(super) async fn rebuild_index<R: Repository>(repository: &R, to: &mut Answer) -> Done {
    let progress = Arc::new(Progress::default());
    let totals = told(repository.rebuild_index(progress.clone()), &progress, to).await?;
    Ok(send(to, &Reply::Rebuilt(totals), Vec::new(), false).await?)
}

/// The node's half of a sweep.
pub(super) async fn sweep<R: Repository>(repository: &R, options: SweepOptions, to: &mut Answer) -> Done {
    let progress = Arc::new(Progress::default());
    let report = told(repository.sweep(options, progress.clone()), &progress, to).await?;
    Ok(send(to, &Reply::Swept(report), Vec::new(), false).await?)
}

/// Does `job`, and tells the client every second how far it is. Ends when the client is gone.
async fn told<T>(
    job: impl Future<Output = Result<T>>,
    progress: &Progress,
    to: &mut Answer,
) -> std::result::Result<T, Refused> {
    let mut every = tokio::time::interval(TELL_EVERY);
    let mut job = std::pin::pin!(job);
    loop {
        tokio::select! {
            // In this order: what is sent depends on no chance.
            biased;
            made = &mut job => return Ok(made?),
            _ = every.tick() => send(to, &Reply::Working(progress.counters()), Vec::new(), true).await?,
        }
    }
}

impl Remote {
    /// The client's half of a verification.
    pub(super) async fn verify_there(&self, options: VerifyOptions, progress: &Progress) -> Result<VerifyReport> {
        if options.points.len() > VERIFIED_POINTS_MAX {
            let many = format!("{} points in one command, more than {VERIFIED_POINTS_MAX}", options.points.len());
            return Err(Error::usage(many).hint("name fewer, or none to verify everything"));
        }
        let (began, repository) = (Instant::now(), self.config().id);
        let request = |attempt| {
            let mut options = options.clone();
            if attempt > 0 {
                // What was found sound before the answer broke off need not be read again.
                options.outdated_after = Some(options.outdated_after.unwrap_or_default().max(began.elapsed()));
            }
            Request::Verify(VerifyIn::new(repository, options))
        };
        let take = |errors: &mut Vec<_>, reply| match reply {
            Reply::Damages(page) if errors.len() + page.len() <= VerifyReport::ERRORS_MAX => {
                errors.extend(page.into_iter().map(Into::into));
                Ok(None)
            }
            Reply::Verified(Verified { points, chunks, bytes_read, packs_skipped }) => {
                Ok(Some(VerifyReport { points, chunks, bytes_read, packs_skipped, errors: std::mem::take(errors) }))
            }
            _ => Err(unexpected()),
        };
        self.done_there(request, progress, take).await
    }

    /// The client's half of making an index again.
    pub(super) async fn rebuild_index_there(&self, progress: &Progress) -> Result<IndexTotals> {
        let request = |_| Request::RebuildIndex(RepositoryRef { repository: self.config().id });
        let take = |(): &mut (), reply| match reply {
            Reply::Rebuilt(totals) => Ok(Some(totals)),
            _ => Err(unexpected()),
        };
        self.done_there(request, progress, take).await
    }

    /// The client's half of a sweep.
    pub(super) async fn sweep_there(&self, options: SweepOptions, progress: &Progress) -> Result<SweepReport> {
        let request = |_| Request::Sweep(SweepIn { repository: self.config().id, options });
        let take = |(): &mut (), reply| match reply {
            Reply::Swept(report) => Ok(Some(report)),
            _ => Err(unexpected()),
        };
        self.done_there(request, progress, take).await
    }

    /// Has the node do the work, shows how far it is, and gives the rest of the answer to `take` until `take` returns a
    /// result. An answer that breaks off is asked for again; `request` gets the number of attempts before this one.
    async fn done_there<S: Default, T>(
        &self,
        request: impl Fn(u32) -> Request,
        progress: &Progress,
        take: impl Fn(&mut S, Reply) -> Result<Option<T>>,
    ) -> Result<T> {
        let mut again = self.link.again();
        for attempt in 0.. {
            again.asked();
            let (first, mut rest) = self.link.calls(&request(attempt), &[]).await?;
            let (mut next, mut so_far) = (Some(first), S::default());
            while let Some(frame) = next {
                match frame.message {
                    Reply::Working(counters) => progress.show(&counters),
                    other => {
                        if let Some(made) = take(&mut so_far, other)? {
                            return Ok(made);
                        }
                    }
                }
                next = rest.next_if_any().await?;
            }
            again.broke_off()?;
        }
        Err(unexpected())
    }
}

const TELL_EVERY: Duration = Duration::from_secs(1);
