//! SIGINT and SIGTERM: the job ends between two batches and tidies up; a second signal ends the program at once.

use bytes::Bytes;
use chunker::{Extent, ExtentSet};
use mover::{
    Changed, DiskDescription, Error, ErrorKind, Outcome, ParentDisk, Result, Source, Target, Timestamp, TrackingWish,
};
use std::future::Future;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Tells whether to stop. Cheap to clone.
#[derive(Clone)]
pub struct Stop(watch::Receiver<Option<u8>>);

impl Stop {
    /// Listens for the signals; needs a runtime.
    pub fn listen() -> Result<Self> {
        let failed = |error| Error::internal("cannot listen for signals").because(error);
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let (sender, receiver) = watch::channel(None);
        tokio::spawn(async move {
            loop {
                let code = tokio::select! {
                    _ = interrupt.recv() => EXIT_INTERRUPTED,
                    _ = terminate.recv() => EXIT_TERMINATED,
                };
                if sender.borrow().is_some() {
                    std::process::exit(code.into());
                }
                sender.send_replace(Some(code));
            }
        });
        Ok(Self(receiver))
    }

    /// The exit code that belongs to the signal, when there was one.
    pub fn exit_code(&self) -> Option<u8> {
        *self.0.borrow()
    }

    /// An error once a signal came.
    pub fn check(&self) -> Result<()> {
        if self.exit_code().is_some() { Err(stopped()) } else { Ok(()) }
    }

    /// The result of `work`, or an error as soon as a signal comes; `work` is dropped then.
    pub async fn race<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut signal = self.0.clone();
        tokio::select! {
            biased;
            done = work => done,
            _ = signal.wait_for(Option::is_some) => Err(stopped()),
        }
    }
}

fn stopped() -> Error {
    Error::new(ErrorKind::Cancelled, "stopped by a signal")
}

/// A source or target that fails once a signal came, so that the job over it ends in order: the snapshot session is
/// finished as abandoned, an update in place tells how far it came. What changes an image is never dropped half way.
pub struct Stoppable<S> {
    pub inner: S,
    pub stop: Stop,
}

impl<S: Source> Source for Stoppable<S> {
    fn disks(&self) -> &[DiskDescription] {
        self.inner.disks()
    }

    fn snapshot_time(&self) -> Timestamp {
        self.inner.snapshot_time()
    }

    async fn changed(&self, disk: usize, parent: Option<ParentDisk<'_>>, wish: TrackingWish) -> Result<Changed> {
        self.stop.check()?;
        self.inner.changed(disk, parent, wish).await
    }

    async fn read(&self, disk: usize, extent: Extent) -> Result<Bytes> {
        self.stop.check()?;
        self.stop.race(self.inner.read(disk, extent)).await
    }

    async fn check(&self) -> Result<()> {
        self.stop.check()?;
        self.inner.check().await
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

const EXIT_INTERRUPTED: u8 = 130;
const EXIT_TERMINATED: u8 = 143;
