//! Asking a job to stop: it ends between two batches and tidies up.

use crate::{
    Changed, DiskDescription, Error, ErrorKind, Outcome, ParentDisk, Result, Snapshot, Source, Target, TrackingWish,
};
use bytes::Bytes;
use chunker::{Extent, ExtentSet};
use std::future::Future;
use tokio::sync::watch;

/// Why a job is to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The program got SIGINT.
    Interrupt,
    /// The program got SIGTERM.
    Terminate,
    /// SIGHUP: its terminal is gone.
    Hangup,
    /// The program got SIGQUIT.
    Quit,
    /// An administrator cancelled it.
    Cancel,
    /// The proxy that runs it stops.
    Shutdown,
}

/// Tells whether to stop. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Stop(watch::Receiver<Option<StopReason>>);

/// Asks every job that holds its [`Stop`] to stop.
#[derive(Debug)]
pub struct Stopper(watch::Sender<Option<StopReason>>);

impl Stopper {
    /// A stopper, and the [`Stop`] that it stops.
    pub fn new() -> (Self, Stop) {
        let (sender, receiver) = watch::channel(None);
        (Self(sender), Stop(receiver))
    }

    /// Asks; the first reason counts. False when it was asked before.
    pub fn stop(&self, reason: StopReason) -> bool {
        self.0.send_if_modified(|asked| {
            let first = asked.is_none();
            asked.get_or_insert(reason);
            first
        })
    }
}

impl Stop {
    /// The reason to stop; none while the job may go on.
    pub fn reason(&self) -> Option<StopReason> {
        *self.0.borrow()
    }

    /// Fails once the job is to stop.
    ///
    /// # Errors
    /// `Cancelled`.
    pub fn check(&self) -> Result<()> {
        self.reason().map_or(Ok(()), |reason| Err(stopped(reason)))
    }

    /// Waits until the job is asked to stop.
    pub async fn asked(&self) -> StopReason {
        let mut asked = self.0.clone();
        let reason = asked.wait_for(Option::is_some).await.ok().and_then(|reason| *reason);
        match reason {
            Some(reason) => reason,
            // Whoever could ask is gone.
            None => std::future::pending().await,
        }
    }

    /// The result of `work`, or an error as soon as the job is to stop; `work` is dropped then.
    ///
    /// # Errors
    /// Those of `work`; `Cancelled`.
    pub async fn race<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            done = work => done,
            reason = self.asked() => Err(stopped(reason)),
        }
    }
}

fn stopped(reason: StopReason) -> Error {
    let why = match reason {
        StopReason::Interrupt | StopReason::Terminate | StopReason::Hangup | StopReason::Quit => "stopped by a signal",
        StopReason::Cancel => "cancelled by an administrator",
        StopReason::Shutdown => "the proxy stops",
    };
    Error::new(ErrorKind::Cancelled, why)
}

/// A source or target that fails once the job is to stop, so that the job ends in order: the snapshot session is
/// finished as abandoned, and an update in place says that it is not complete. Work that changes an image is never
/// dropped half way.
pub struct Stoppable<S> {
    /// What is read or written.
    pub inner: S,
    /// Tells when to end.
    pub stop: Stop,
}

impl<S: Source> Source for Stoppable<S> {
    fn disks(&self) -> &[DiskDescription] {
        self.inner.disks()
    }

    fn snapshot(&self) -> &Snapshot {
        self.inner.snapshot()
    }

    async fn changed(&self, disk: usize, parent: Option<ParentDisk<'_>>, wish: TrackingWish) -> Result<Changed> {
        self.stop.check()?;
        self.stop.race(self.inner.changed(disk, parent, wish)).await
    }

    async fn read(&self, disk: usize, extent: Extent) -> Result<Bytes> {
        self.stop.check()?;
        self.stop.race(self.inner.read(disk, extent)).await
    }

    async fn check(&self) -> Result<()> {
        self.stop.check()?;
        self.stop.race(self.inner.check()).await
    }

    fn keeps_for_reader(&self) -> bool {
        self.inner.keeps_for_reader()
    }

    async fn release(&self, disk: usize, extent: Extent) {
        self.inner.release(disk, extent).await;
    }

    fn scratch_bytes_max(&self) -> u64 {
        self.inner.scratch_bytes_max()
    }

    async fn stopped(&self) -> Error {
        stopped(self.stop.asked().await)
    }

    async fn finish(self, outcome: Outcome) -> Result<()> {
        self.inner.finish(outcome).await
    }
}

impl<T: Target> Target for Stoppable<T> {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    async fn write(&self, offset: u64, bytes: Bytes) -> Result<()> {
        self.stop.check()?;
        self.stop.race(self.inner.write(offset, bytes)).await
    }

    async fn zero(&self, extent: Extent) -> Result<()> {
        self.stop.check()?;
        self.stop.race(self.inner.zero(extent)).await
    }

    async fn read(&self, extent: Extent) -> Result<Bytes> {
        self.stop.check()?;
        self.stop.race(self.inner.read(extent)).await
    }

    async fn zeroes(&self) -> Result<ExtentSet> {
        self.stop.race(self.inner.zeroes()).await
    }

    async fn finish(self) -> Result<()> {
        self.stop.check()?;
        self.inner.finish().await
    }
}
