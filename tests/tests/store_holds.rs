//! What happens while one file operation stands still: jobs that go away in the middle, and commits beside the puts of
//! others.

use chunker::ChunkKind;
use mover::{Commit, PointId, Pool, Presence, Result, World, WriteSession, blocking};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use store::io::{DiskIo, FaultIo};
use store::{Access, Local};
use tokio::time::timeout;
use windlass_tests::conformance::{Fixture, Lab};
use windlass_tests::kept::{folder, stored};

struct Holding {
    folder: tempfile::TempDir,
    world: World,
    io: Arc<FaultIo<DiskIo>>,
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

/// Longer than anything that does not wait for the operation which is held.
const PATIENCE: Duration = Duration::from_millis(500);

/// A put that is dropped while it waits for room in the packer's queue has promised nothing to anybody: its chunk is
/// missing, and not "pending" for ever with nobody who brings it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_put_leaves_nothing_pending() {
    let lab = Lab::<Holding>::new().await;
    let (quitter, point) = (lab.session().await, PointId::random(&lab.world));
    let other = lab.session_of(point, &[]).await;
    let io = lab.fixture.io.clone();
    let held = io.hold(0);
    let (mut taken, mut seed) = (Vec::new(), 0);
    // The packer stands still at its first operation: some batches find room in its queue, then one has to wait.
    let (id, blob) = loop {
        seed += 1;
        assert!(seed < 100, "the packer's queue has an end");
        let (id, blob) = lab.block(seed);
        match timeout(PATIENCE, quitter.put(vec![(id, blob.clone())])).await {
            Ok(put) => put.unwrap(),
            Err(_) => break (id, blob),
        }
        taken.push(id);
    };
    assert!(io.wait_held() && !taken.is_empty());
    assert_eq!(other.missing(ChunkKind::Data, &[id]).await.unwrap(), [Presence::Missing]);
    let told = other.missing(ChunkKind::Data, &taken).await.unwrap();
    assert!(told.iter().all(|it| *it == Presence::Pending), "{told:?}");
    drop(held);
    // Who was told so gets it: by a put of its own, and what is pending by its flush.
    other.put(vec![(id, blob)]).await.unwrap();
    let (root, pages) = lab.map(&[(0, id), (1, taken[0])]).await;
    other.put(pages).await.unwrap();
    let made = other.commit(&[lab.draft(point, root)]).await.unwrap();
    assert!(matches!(made, Commit::Committed(_)), "{made:?}");
    lab.assert_restores(point, &[lab.image(&[(0, seed), (1, 1)])]).await;
}

/// At every operation of a commit another session puts the chunk that the commit needs and nobody had. Either the commit
/// is refused, or the log names the chunk's pack.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_relies_on_durable_chunks_only() {
    let (mut refused, mut committed) = (BTreeSet::new(), BTreeSet::new());
    for after in 0.. {
        assert!(after < 200, "a commit ends");
        let lab = Lab::<Holding>::new().await;
        let (putter, point) = (lab.session().await, PointId::random(&lab.world));
        let asker = lab.session_of(point, &[]).await;
        let (id, blob) = lab.block(1);
        let (root, pages) = lab.map(&[(0, id)]).await;
        asker.put(pages).await.unwrap();
        asker.flush().await.unwrap();
        let draft = [lab.draft(point, root)];
        let (io, waiting) = (lab.fixture.io.clone(), lab.fixture.io.clone());
        let held = Cell::new(Some(io.hold(after)));
        let commit = async {
            let made = asker.commit(&draft).await;
            drop(held.take());
            made
        };
        let meanwhile = async {
            let struck = blocking(move || waiting.wait_held()).await;
            if struck {
                // It need not come through before the operation goes on, which may keep what it needs.
                let _ = timeout(PATIENCE, putter.put(vec![(id, blob.clone())])).await;
            }
            drop(held.take());
            struck
        };
        let (made, struck) = tokio::join!(commit, meanwhile);
        let there = stored(lab.fixture.folder.path()).contains_key(&id);
        match made.unwrap() {
            Commit::Committed(_) => {
                assert!(there, "operation {after}: committed without a chunk");
                committed.insert(after);
            }
            Commit::Missing(ids) => {
                assert_eq!(ids, [id], "operation {after}");
                refused.insert(after);
                putter.put(vec![(id, blob)]).await.unwrap();
                let again = asker.commit(&draft).await.unwrap();
                assert!(matches!(again, Commit::Committed(_)), "operation {after}: {again:?}");
            }
        }
        lab.assert_restores(point, &[lab.image(&[(0, 1)])]).await;
        if !struck {
            break;
        }
    }
    assert!(!committed.is_empty() && refused.len() > 3, "committed at {committed:?}, refused at {refused:?}");
}
