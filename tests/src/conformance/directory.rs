//! The fixture of a repository in a directory; across the wire the same directory is served.

use super::Fixture;
use crate::kept::{damage, folder};
use mover::{Depth, VerifyOptions};
use mover::{Pool, Progress, Repository, RepositoryConfig, Result, World};
use std::sync::Arc;
use store::{Access, Local};

/// A repository in a directory of its own.
pub struct InDirectory {
    folder: tempfile::TempDir,
    world: World,
}

impl InDirectory {
    fn made(like: Option<&RepositoryConfig>) -> Self {
        let (folder, world) = (folder(), World::system());
        Local::init(folder.path(), like, &world).expect("an empty repository");
        Self { folder, world }
    }
}

impl Fixture for InDirectory {
    type Repository = Local;

    async fn fresh() -> Self {
        Self::made(None)
    }

    async fn sibling(&self) -> Self {
        let like = Local::open(self.folder.path(), Access::Read, Pool::new(1).expect("a thread"), self.world()).await;
        Self::made(Some(like.expect("it opens").config()))
    }

    fn world(&self) -> World {
        self.world.clone()
    }

    async fn open(&self) -> Result<Local> {
        Local::open(self.folder.path(), Access::Write, Pool::new(2)?, self.world()).await
    }

    async fn hurt(&self, repository: &Local, id: chunker::ChunkId) -> bool {
        damage(self.folder.path(), id);
        let options = VerifyOptions::new(Depth::Decode);
        let report = repository.verify(options, Arc::new(Progress::default())).await.expect("it can be verified");
        assert!(report.errors.iter().any(|error| error.chunk == Some(id)), "{:?}", report.errors);
        true
    }
}
