//! The conformance suite across the wire: a client, QUIC, and a node that serves a repository in a directory.

use mover::{Result, World};
use store::Local;
use tokio::sync::Mutex;
use windlass_tests::conformance::{Fixture, InDirectory};
use windlass_tests::node::{Running, Site};
use wire::Remote;

struct OnNode {
    directory: InDirectory,
    site: Site,
    running: Mutex<Option<(Running, Local)>>,
}

impl OnNode {
    fn on(directory: InDirectory) -> Self {
        Self { site: Site::new(&directory.world()), directory, running: Mutex::default() }
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
        Self::on(InDirectory::fresh().await)
    }

    async fn sibling(&self) -> Self {
        Self::on(self.directory.sibling().await)
    }

    fn world(&self) -> World {
        self.directory.world()
    }

    async fn open(&self) -> Result<Remote> {
        let mut running = self.running.lock().await;
        if let Some((node, local)) = running.take() {
            node.stop().await;
            drop(local);
        }
        let local = self.directory.open().await?;
        let node = Running::start(&self.site, "repo", local.clone(), &self.world());
        let remote = node.connect(&self.site, "repo", &self.world()).await?;
        *running = Some((node, local));
        Ok(remote)
    }

    async fn hurt(&self, _repository: &Remote, id: chunker::ChunkId) -> bool {
        let running = self.running.lock().await;
        let (_, local) = running.as_ref().expect("it is open");
        self.directory.hurt(local, id).await
    }
}

windlass_tests::conformance!(OnNode);
