//! A repository in a directory. One of its operations on files can be stopped while something else happens.

use crate::conformance::{Fixture, Lab};
use crate::kept::folder;
use mover::{Pool, Result, World, blocking};
use std::cell::Cell;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use store::io::{DiskIo, FaultIo};
use store::{Access, Local};
use tokio::time::timeout;

/// The fixture.
pub struct Holding {
    /// The repository's directory.
    pub folder: tempfile::TempDir,
    /// The way to its files.
    pub io: Arc<FaultIo<DiskIo>>,
    world: World,
}

impl Fixture for Holding {
    type Repository = Local;

    async fn fresh() -> Self {
        let (folder, world) = (folder(), World::system());
        Local::init(folder.path(), None, &world).expect("an empty repository");
        Self { folder, world, io: Arc::new(FaultIo::new(DiskIo)) }
    }

    async fn sibling(&self) -> Self {
        Self::fresh().await
    }

    fn world(&self) -> World {
        self.world.clone()
    }

    async fn open(&self) -> Result<Local> {
        Local::open_with(self.folder.path(), Access::Write, Pool::new(2)?, self.world(), self.io.clone()).await
    }

    async fn hurt(&self, _: &Local, _: chunker::ChunkId) -> bool {
        false
    }
}

/// Does `first` and stops its operation on files that comes after `after` others. Then does `beside`, and lets the
/// stopped operation go on when `beside` is done, or after `patience`, because `beside` may be waiting for something
/// that `first` holds. False when `first` has fewer operations; then `beside` is done after it.
pub async fn held_at(
    lab: &Lab<Holding>,
    after: u64,
    patience: Duration,
    first: impl Future<Output = ()>,
    beside: impl Future<Output = ()>,
) -> bool {
    let waiting = lab.fixture.io.clone();
    let held = Cell::new(Some(lab.fixture.io.hold(after)));
    let first = async {
        first.await;
        drop(held.take());
    };
    let beside = async {
        let struck = blocking(move || waiting.wait_held()).await;
        let mut beside = pin!(beside);
        let is_done = timeout(patience, &mut beside).await.is_ok();
        drop(held.take());
        if !is_done {
            beside.await;
        }
        struck
    };
    let ((), struck) = tokio::join!(first, beside);
    struck
}
