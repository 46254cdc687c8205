//! The conformance suite across the wire: a client, QUIC, and a node that serves a repository in a directory.

use mover::{Pool, Progress, Repository, RepositoryConfig, Result, World, wire::Remote};
use std::sync::Arc;
use store::{Access, Depth, Local, VerifyOptions};
use tokio::sync::Mutex;
use windlass_tests::conformance::Fixture;
use windlass_tests::kept::{damage, folder};
use windlass_tests::node::{Running, Site};

struct OnNode {
    folder: tempfile::TempDir,
    world: World,
    site: Site,
    running: Mutex<Option<(Running, Local)>>,
}

impl OnNode {
    fn made(like: Option<&RepositoryConfig>) -> Self {
        let (folder, world) = (folder(), World::system());
        Local::init(folder.path(), like, &world).expect("an empty repository");
        Self { folder, site: Site::new(&world), world, running: Mutex::default() }
    }
}

/// The node goes before its folder: RocksDB waits a second for one that went away under it.
impl Drop for OnNode {
    fn drop(&mut self) {
        if let Some((node, local)) = self.running.get_mut().take() {
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(node.stop()));
            drop(local);
        }
    }
}

impl Fixture for OnNode {
    type Repository = Remote;

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

    async fn open(&self) -> Result<Remote> {
        let mut running = self.running.lock().await;
        if let Some((node, local)) = running.take() {
            node.stop().await;
            drop(local);
        }
        let local = Local::open(self.folder.path(), Access::Write, Pool::new(2)?, self.world()).await?;
        let node = Running::start(&self.site, "repo", local.clone(), &self.world);
        let remote = node.connect(&self.site, "repo", &self.world).await?;
        *running = Some((node, local));
        Ok(remote)
    }

    async fn hurt(&self, _repository: &Remote, id: chunker::ChunkId) -> bool {
        damage(self.folder.path(), id);
        let running = self.running.lock().await;
        let (_, local) = running.as_ref().expect("it is open");
        let options = VerifyOptions { depth: Depth::Decode, points: Vec::new() };
        let report = local.verify(options, Arc::new(Progress::default())).await.expect("it can be verified");
        assert!(report.errors.iter().any(|error| error.chunk == Some(id)), "{:?}", report.errors);
        true
    }
}

windlass_tests::conformance!(OnNode);
