//! The halves of administrators and proxies.

use super::super::answer::Replies;
use super::super::frame::{Frame, FrameError};
use super::super::link::{Link, Peer, unexpected};
use super::super::message::{Reply, Request};
use super::job::{Attend, Event, Job, JobOf, JobReport, Report, Run};
use super::site::{JobStatus, ProxyStatus};
use super::state::{JOBS_ALL_MAX, PROXIES_MAX};
use mover::{JobId, Name, Progress, Result};
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

/// What is told of a job before its end, beside its progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told<'a> {
    /// This proxy has it.
    Given(&'a Name),
    /// It goes on, but somebody should know this.
    Warning(&'a str),
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
    /// Those of the job; `NotFound` when no proxy can do it, `Usage` when it is not clear which machine is meant, `Busy`,
    /// `NotAuthorised`, `Transport`.
    pub async fn run(&self, run: &Run, progress: &Progress, tell: impl FnMut(Told<'_>)) -> Result<JobReport> {
        let again = |given: Option<&Name>| {
            let proxy = given.or(run.proxy.as_ref()).cloned();
            Request::Run(Run { proxy, again: true, ..run.clone() })
        };
        self.watch(Request::Run(run.clone()), again, progress, tell).await
    }

    /// What happens to a job from now on, until its end; also its end when that was not long ago.
    ///
    /// # Errors
    /// Those of the job; `NotFound` for one that the node does not know (any more), `NotAuthorised`, `Transport`.
    pub async fn follow(&self, job: JobId, progress: &Progress, tell: impl FnMut(Told<'_>)) -> Result<JobReport> {
        let follow = Request::Follow(JobOf { job });
        self.watch(follow.clone(), |_| follow.clone(), progress, tell).await
    }

    /// Waits for the end of a job that `first` asks for. When the connection is lost, `again` makes the next request, for the
    /// proxy that has the job, if that is known.
    async fn watch(
        &self,
        first: Request,
        again: impl Fn(Option<&Name>) -> Request,
        progress: &Progress,
        mut tell: impl FnMut(Told<'_>),
    ) -> Result<JobReport> {
        let (mut told, mut patience) = (0, self.link.again());
        let (mut request, mut given) = (first, None::<Name>);
        loop {
            let asked = Instant::now();
            patience.asked();
            let (first, mut rest) = self.link.calls(&request, &[]).await?;
            let (mut frame, mut warnings) = (Some(first), 0);
            while let Some(Frame { message, .. }) = frame {
                let proxy = match message {
                    Reply::Given(it) => Some(it.proxy),
                    Reply::Job(it) => Some(it.proxy),
                    Reply::Event(Event::Progress(counters)) => {
                        progress.show(&counters);
                        None
                    }
                    Reply::Event(Event::Warning(warning)) => {
                        warnings += 1;
                        // They come from the beginning each time.
                        if warnings > told {
                            told = warnings;
                            tell(Told::Warning(&warning));
                        }
                        None
                    }
                    Reply::Event(Event::Ended(report)) => return Ok(report),
                    _ => return Err(unexpected()),
                };
                if let (Some(proxy), None) = (proxy, &given) {
                    tell(Told::Given(&proxy));
                    given = Some(proxy);
                }
                frame = following(&mut rest).await?;
            }
            if asked.elapsed() > AT_WORK {
                patience.came();
            }
            patience.broke_off()?;
            sleep(PAUSE).await;
            request = again(given.as_ref());
        }
    }

    /// All proxies of the node.
    ///
    /// # Errors
    /// `NotAuthorised`, `Transport`.
    pub async fn proxies(&self) -> Result<Vec<ProxyStatus>> {
        let take = |proxies: &mut Vec<ProxyStatus>, frame: Frame<Reply>| match frame.message {
            Reply::Proxy(proxy) if proxies.len() < PROXIES_MAX => {
                proxies.push(proxy);
                Ok(())
            }
            Reply::Done(()) => Ok(()),
            _ => Err(unexpected()),
        };
        Ok(self.link.gather(&Request::Proxies(()), &[], take).await?)
    }

    /// All jobs that the node knows, in the order in which it heard of them.
    ///
    /// # Errors
    /// `NotAuthorised`, `Transport`.
    pub async fn jobs(&self) -> Result<Vec<JobStatus>> {
        let take = |jobs: &mut Vec<JobStatus>, frame: Frame<Reply>| match frame.message {
            Reply::Job(job) if jobs.len() < JOBS_ALL_MAX => {
                jobs.push(job);
                Ok(())
            }
            Reply::Done(()) => Ok(()),
            _ => Err(unexpected()),
        };
        Ok(self.link.gather(&Request::Jobs(()), &[], take).await?)
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
