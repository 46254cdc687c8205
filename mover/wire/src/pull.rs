//! Copies between nodes: an administrator asks the receiving node, which pulls. Blobs go from node to node, not through the
//! administrator's terminal.

use super::link::{Peer, unexpected};
use super::message::{Failed, PULLED_TOGETHER, Place, PullIn, Pulled, Reply, Request};
use super::quic::Congestion;
use super::remote::Remote;
use mover::{
    CopyReport, Error, ErrorKind, PointFilter, PointId, Progress, RateLimiter, RecoveryPoint, Repository, Result,
    Verification, copy_points, ends_all, in_copy_order,
};
use quinn::{ClientConfig, Endpoint};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};

/// Makes an end point that asks other nodes, and how it shows who it is.
type Reach = dyn Fn(Congestion) -> Result<(Endpoint, ClientConfig)> + Send + Sync;

/// The node's half.
#[derive(Clone)]
pub(super) struct Puller {
    reach: Arc<Reach>,
    turns: Arc<Semaphore>,
}

impl Puller {
    pub fn new(reach: impl Fn(Congestion) -> Result<(Endpoint, ClientConfig)> + Send + Sync + 'static) -> Self {
        Self { reach: Arc::new(reach), turns: Arc::new(Semaphore::new(PULLS_MAX)) }
    }

    /// Copies the points that `pull` names into `to`, oldest first, and tells of each, and every second how far it is.
    ///
    /// # Errors
    /// `Busy`; those that would befall every point.
    pub async fn pull<R: Repository>(
        &self,
        to: &R,
        pull: PullIn,
        receive: Arc<RateLimiter>,
        tell: mpsc::Sender<Reply>,
    ) -> Result<()> {
        let Ok(_turn) = self.turns.clone().try_acquire_owned() else {
            return Err(Error::busy(format!("the node already makes {PULLS_MAX} copies, which is the limit"))
                .hint("copy again when one of them has ended"));
        };
        let Place { host, port, name, congestion } = pull.from;
        let congestion =
            Congestion::of_code(congestion).ok_or_else(|| Error::transport("unknown congestion control"))?;
        let (endpoint, config) = (self.reach)(congestion)?;
        // One connection is enough for another node, and bounds what comes unread.
        let peer = Peer { lanes: 1, patience: PATIENCE, receive, ..Peer::new(host, port, config) };
        let from = Remote::connect(endpoint, peer, &name, None)
            .await
            .map_err(|error| error.context("the node to copy from"))?;
        let made = pull_all(&from, to, &pull.points, pull.verification, &tell).await;
        from.close().await;
        made
    }
}

async fn pull_all<R: Repository>(
    from: &Remote,
    to: &R,
    ids: &[PointId],
    verification: Verification,
    tell: &mpsc::Sender<Reply>,
) -> Result<()> {
    let mut points = from.list(&PointFilter::default()).await?;
    points.retain(|point| ids.contains(&point.id));
    in_copy_order(&mut points);
    let progress = Progress::default();
    let told_of = async |point: &RecoveryPoint, made: Result<CopyReport>| {
        let outcome = match made {
            Ok(report) => Ok(report),
            Err(error) if ends_all(error.kind()) => return Err(error),
            Err(error) => Err(Failed::from(&error)),
        };
        // Whoever asked is gone: what was copied stays.
        let _ = tell.send(Reply::Pulled(Pulled { point: point.id, outcome })).await;
        Ok(())
    };
    told(copy_points(from, to, &points, verification, &progress, told_of), &progress, tell).await?;
    for id in ids.iter().filter(|id| !points.iter().any(|point| point.id == **id)) {
        let gone = Error::not_found(format!("the node to copy from does not have point {id} any more"));
        let _ = tell.send(Reply::Pulled(Pulled { point: *id, outcome: Err(Failed::from(&gone)) })).await;
    }
    Ok(())
}

/// Runs `job` and tells how far it is, for as long as somebody listens.
async fn told<T>(job: impl Future<Output = Result<T>>, progress: &Progress, tell: &mpsc::Sender<Reply>) -> Result<T> {
    let mut every = tokio::time::interval(TELL_EVERY);
    let mut job = std::pin::pin!(job);
    loop {
        tokio::select! {
            done = &mut job => return done,
            () = tell.closed() => return Err(Error::new(ErrorKind::Cancelled, "the client that asked for the copy is gone")),
            _ = every.tick() => drop(tell.try_send(Reply::Pulling(progress.bytes().0))),
        }
    }
}

impl Remote {
    /// Has the node copy points from the repository at `from`, which another node serves, and gives what became of each to
    /// `done`. What breaks off is asked for again.
    ///
    /// # Errors
    /// `Busy`, `NotAuthorised`; those of the way between the nodes; those that would befall every point.
    pub async fn pull(
        &self,
        from: &Place,
        points: &[PointId],
        verification: Verification,
        progress: &Progress,
        mut done: impl FnMut(PointId, Result<CopyReport>) -> Result<()>,
    ) -> Result<()> {
        for points in points.chunks(PULLED_TOGETHER) {
            let mut left: BTreeSet<PointId> = points.iter().copied().collect();
            let mut again = self.link.again();
            while !left.is_empty() {
                again.asked();
                let asked = points.iter().filter(|point| left.contains(point)).copied().collect();
                let (repository, from) = (self.config().id, from.clone());
                let request = Request::Pull(PullIn { repository, from, points: asked, verification });
                let (first, mut rest) = self.link.calls(&request, &[]).await?;
                let (mut next, mut moved) = (Some(first), 0);
                while let Some(frame) = next {
                    match frame.message {
                        Reply::Pulling(bytes) => {
                            progress.advance(bytes.saturating_sub(std::mem::replace(&mut moved, bytes)));
                        }
                        Reply::Pulled(Pulled { point, outcome }) => {
                            if left.remove(&point) {
                                again.came();
                                done(point, outcome.map_err(Error::from))?;
                            }
                        }
                        Reply::Done(()) => {}
                        _ => return Err(unexpected()),
                    }
                    next = rest.next_if_any().await?;
                }
                if !left.is_empty() {
                    again.broke_off()?;
                }
            }
        }
        Ok(())
    }
}

/// Copies that a node pulls at once: each has at most a window on its way.
const PULLS_MAX: usize = 2;
/// How long the node waits for a source node that is away. The administrator waits too, and may give up.
const PATIENCE: Duration = Duration::from_secs(60);
const TELL_EVERY: Duration = Duration::from_secs(1);
