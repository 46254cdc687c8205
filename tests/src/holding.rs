//! A repository in a directory of which one operation on files can be made to stand still, while something else happens.

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

/// Does `first`, of which the operation on files that comes after `after` more stands still until `beside` is done, or has
/// not come to its end for `patience`: it may need what the one that stands still keeps. False when `first` has fewer
/// operations; `beside` is done after it then.
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
