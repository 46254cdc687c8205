//! What happens while one file operation stands still: jobs that go away in the middle, and commits beside the puts of
//! others.

use chunker::ChunkKind;
use mover::{Commit, PointId, Presence, WriteSession};
use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::timeout;
use windlass_tests::conformance::Lab;
use windlass_tests::holding::{Holding, held_at};
use windlass_tests::kept::stored;

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
        let made = OnceCell::new();
        let commit = async { made.set(asker.commit(&draft).await).expect("once") };
        let meanwhile = async { putter.put(vec![(id, blob.clone())]).await.unwrap() };
        let struck = held_at(&lab, after, PATIENCE, commit, meanwhile).await;
        let there = stored(lab.fixture.folder.path()).contains_key(&id);
        match made.into_inner().unwrap().unwrap() {
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
