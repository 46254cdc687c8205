//! The halves of administrators and proxies.

use super::super::answer::Replies;
use super::super::frame::{Frame, FrameError};
use super::super::link::{Link, Peer, unexpected};
use super::super::message::{Reply, Request};
use super::job::{Attend, Event, Job, JobOf, Report, Run};
use mover::{BackupReport, JobId, Progress, Result};
use quinn::Endpoint;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// The jobs that a node hands over.
#[derive(Debug)]
pub struct Jobs {
    link: Arc<Link>,
}

/// What a proxy is told to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Carry this job out.
    Job(Job),
    /// End the job with this id.
    Cancel(JobId),
}

/// Orders as they come.
pub struct Orders {
    replies: Replies,
}

impl Jobs {
    /// Connects when it is used.
    pub fn new(endpoint: Endpoint, peer: Peer) -> Self {
        Self { link: Arc::new(Link::new(endpoint, peer)) }
    }

    /// Has a proxy carry a job out, and waits for its end; asks again when the connection is lost on the way. The proxy
    /// goes on in any case.
    ///
    /// # Errors
    /// Those of the job; `NotFound` for an unknown proxy, `Busy`, `NotAuthorised`, `Transport`.
    pub async fn run(&self, run: &Run, progress: &Progress, mut warn: impl FnMut(&str)) -> Result<BackupReport> {
        let (mut told, mut again) = (0, self.link.again());
        loop {
            let asked = Instant::now();
            again.asked();
            let (first, mut rest) = self.link.calls(&Request::Run(run.clone()), &[]).await?;
            let (mut frame, mut warnings) = (Some(first), 0);
            while let Some(Frame { message, .. }) = frame {
                match message {
                    Reply::Taken(()) => {}
                    Reply::Event(Event::Progress(counters)) => progress.show(&counters),
                    Reply::Event(Event::Warning(warning)) => {
                        warnings += 1;
                        // They come from the beginning each time.
                        if warnings > told {
                            told = warnings;
                            warn(&warning);
                        }
                    }
                    Reply::Event(Event::Ended(report)) => return report.backup(),
                    _ => return Err(unexpected()),
                }
                frame = following(&mut rest).await?;
            }
            if asked.elapsed() > AT_WORK {
                again.came();
            }
            again.broke_off()?;
            sleep(PAUSE).await;
        }
    }

    /// Has a job end.
    ///
    /// # Errors
    /// `NotFound`, `Transport`.
    pub async fn cancel(&self, job: JobId) -> Result<()> {
        self.done(&Request::Cancel(JobOf { job })).await
    }

    /// Attends as a proxy.
    ///
    /// # Errors
    /// The node's; `Transport`.
    pub async fn attend(&self, attend: Attend) -> Result<Orders> {
        match self.link.calls(&Request::Attend(attend), &[]).await? {
            (Frame { message: Reply::Taken(()), .. }, replies) => Ok(Orders { replies }),
            _ => Err(unexpected()),
        }
    }

    /// Tells of a job.
    ///
    /// # Errors
    /// `NotFound` when it is another proxy's; `Transport`.
    pub async fn report(&self, report: Report) -> Result<()> {
        self.done(&Request::Report(report)).await
    }

    /// Tells the node that nothing more comes.
    pub async fn close(&self) {
        self.link.close().await;
    }

    async fn done(&self, request: &Request) -> Result<()> {
        match self.link.call(request, &[]).await? {
            (Reply::Done(()), _) => Ok(()),
            _ => Err(unexpected()),
        }
    }
}

impl Orders {
    /// The next order; none when the connection was lost. Then call [`Jobs::attend`] again.
    ///
    /// # Errors
    /// The node's.
    pub async fn next(&mut self) -> Result<Option<Order>> {
        match following(&mut self.replies).await?.map(|frame| frame.message) {
            None => Ok(None),
            Some(Reply::Assigned(job)) => Ok(Some(Order::Job(job))),
            Some(Reply::CalledOff(it)) => Ok(Some(Order::Cancel(it.job))),
            Some(_) => Err(unexpected()),
        }
    }
}

/// The next reply; none when the replies broke off.
async fn following(replies: &mut Replies) -> Result<Option<Frame<Reply>>> {
    match replies.next().await {
        Ok(frame) => Ok(frame),
        Err(FrameError::Lost(_) | FrameError::Slow | FrameError::NoRoom) => Ok(None),
        Err(FrameError::Nonsense(error)) => Err(error),
    }
}

/// After a connection that lasted this long, earlier failures do not count. A job may take days, and many connections.
const AT_WORK: Duration = Duration::from_secs(10);
/// Between two requests for the same thing.
const PAUSE: Duration = Duration::from_millis(100);
