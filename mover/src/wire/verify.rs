//! Verifications on the node where the repository is: nothing is sent but what is found.

use super::link::{ATTEMPTS, unexpected};
use super::message::{DAMAGES_MAX, Damage, Reply, Request, VERIFIED_POINTS_MAX, Verified, VerifyIn};
use super::remote::Remote;
use super::serve::{Answer, Done, send};
use crate::{Error, Progress, Repository, Result, VerifyOptions, VerifyReport};
use std::sync::Arc;
use std::time::Duration;

/// The node's half: verifies, tells every second how far it is, and what was found at the end. It ends when nobody is there
/// to be told.
pub(super) async fn verify<R: Repository>(repository: &R, options: VerifyOptions, to: &mut Answer) -> Done {
    let progress = Arc::new(Progress::default());
    let mut every = tokio::time::interval(TELL_EVERY);
    let report = {
        let mut job = std::pin::pin!(repository.verify(options, progress.clone()));
        loop {
            tokio::select! {
                report = &mut job => break report?,
                _ = every.tick() => send(to, &Reply::Verifying(progress.counters()), Vec::new(), true).await?,
            }
        }
    };
    let VerifyReport { points, chunks, bytes_read, errors } = report;
    let mut errors = errors.into_iter().map(Damage::from).peekable();
    while errors.peek().is_some() {
        let page = errors.by_ref().take(DAMAGES_MAX).collect();
        send(to, &Reply::Damages(page), Vec::new(), true).await?;
    }
    Ok(send(to, &Reply::Verified(Verified { points, chunks, bytes_read }), Vec::new(), false).await?)
}

impl Remote {
    /// The client's half. An answer that breaks off is asked for again, from the beginning.
    pub(super) async fn verify_there(&self, options: VerifyOptions, progress: &Progress) -> Result<VerifyReport> {
        if options.points.len() > VERIFIED_POINTS_MAX {
            let many = format!("{} points at once, more than {VERIFIED_POINTS_MAX}", options.points.len());
            return Err(Error::usage(many).hint("name fewer, or none to verify everything"));
        }
        let request = Request::Verify(VerifyIn::new(self.config().id, options));
        for _ in 0..ATTEMPTS {
            let (first, mut rest) = self.link.calls(&request, &[]).await?;
            let (mut next, mut report) = (Some(first), VerifyReport::default());
            while let Some(frame) = next {
                match frame.message {
                    Reply::Verifying(counters) => progress.show(&counters),
                    Reply::Damages(page) => report.errors.extend(page.into_iter().map(Into::into)),
                    Reply::Verified(Verified { points, chunks, bytes_read }) => {
                        return Ok(VerifyReport { points, chunks, bytes_read, ..report });
                    }
                    _ => return Err(unexpected()),
                }
                if report.errors.len() > VerifyReport::ERRORS_MAX {
                    return Err(Error::transport("more errors than a node tells"));
                }
                next = rest.next_if_any().await?;
            }
        }
        Err(self.link.broke_off())
    }
}

const TELL_EVERY: Duration = Duration::from_secs(1);
