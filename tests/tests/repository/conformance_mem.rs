//! The conformance suite on a repository in memory.

use futures::StreamExt;
use mover::{Mem, ReadSession, Repository, Result, World};
use windlass_tests::conformance::Fixture;

struct InMemory {
    repository: Mem,
    world: World,
}

impl Fixture for InMemory {
    type Repository = Mem;

    async fn fresh() -> Self {
        let world = World::system();
        Self { repository: Mem::new(&world), world }
    }

    async fn sibling(&self) -> Self {
        let domain = self.repository.config().domain.clone();
        Self { repository: Mem::in_domain(&self.world, domain), world: self.world.clone() }
    }

    fn world(&self) -> World {
        self.world.clone()
    }

    async fn open(&self) -> Result<Mem> {
        self.repository.crash();
        Ok(self.repository.clone())
    }

    async fn hurt(&self, repository: &Mem, id: chunker::ChunkId) -> bool {
        self.repository.damage(id);
        let reader = repository.read(&[]).await.expect("a reader of nothing");
        assert!(reader.get(vec![id]).concat().await[0].1.is_err());
        true
    }
}

windlass_tests::conformance!(InMemory);
