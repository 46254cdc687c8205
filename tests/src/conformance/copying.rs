//! From one repository to another.

use super::kit::{BLOCK, Fixture, LEAF, Lab, committed};
use crate::fake::{Machine, noise};
use crate::meddle::Meddled;
use chunker::ChunkKind;
use mover::{CopyReport, ErrorKind, PointId, ReadSession, Repository, WriteSession};

fn machine<F: Fixture>(lab: &Lab<F>) -> Machine {
    let machine = Machine::new(&lab.world, &[20 * LEAF]);
    for leaf in 0..20 {
        machine.write(0, leaf * LEAF, &noise(leaf, 5 * BLOCK));
    }
    machine
}

pub async fn blobs_go_verbatim<F: Fixture>(lab: Lab<F>) {
    let machine = machine(&lab);
    machine.write(0, 3 * LEAF, &b"compressible".repeat(20_000));
    let point = lab.backup("a", &machine).await.point;
    let other = lab.sibling().await;
    let report = lab.copy_to(&other.repository, &point).await.unwrap();
    assert_eq!(report.points, 1);
    let other = other.reopened().await;
    assert!(other.blobs(point.id).await == lab.blobs(point.id).await, "byte for byte");
    other.assert_restores(point.id, &machine.images()).await;
    let copied = other.points().await.remove(0);
    assert_eq!((copied.id, copied.manifest, copied.machine), (point.id, point.manifest, point.machine));
    assert_eq!(copied.origin, (lab.repository.config().id, point.commit_time));
    assert_eq!((copied.bytes_new, copied.snapshot_time), (point.bytes_new, point.snapshot_time));
}

pub async fn copying_twice_does_nothing<F: Fixture>(lab: Lab<F>) {
    let point = lab.backup("a", &machine(&lab)).await.point;
    let other = lab.sibling().await;
    lab.copy_to(&other.repository, &point).await.unwrap();
    let (points, stats) = (other.points().await, other.stats().await);
    assert_eq!(lab.copy_to(&other.repository, &point).await.unwrap(), CopyReport::default());
    assert_eq!(other.points().await, points);
    assert_eq!(other.stats().await, stats);
}

pub async fn only_what_is_missing_moves<F: Fixture>(lab: Lab<F>) {
    let machine = machine(&lab);
    let other = lab.sibling().await;
    let first = lab.backup("a", &machine).await;
    let report = lab.copy_to(&other.repository, &first.point).await.unwrap();
    assert_eq!(report.chunks_moved, first.chunks_new);
    let before = machine.images();
    machine.write(0, 7 * LEAF + 3 * BLOCK, &noise(99, 2 * BLOCK));
    let second = lab.backup("a", &machine).await;
    let report = lab.copy_to(&other.repository, &second.point).await.unwrap();
    assert_eq!((report.points, report.chunks_moved), (1, second.chunks_new));
    assert_eq!(report.bytes_moved, second.bytes_stored, "what the increment brought, pages and manifest too");
    other.assert_restores(first.point.id, &before).await;
    other.assert_restores(second.point.id, &machine.images()).await;
    // A machine that the target has under another name brings its own blocks only.
    let twin = machine.cloned();
    twin.write(0, 0, b"x");
    let third = lab.backup("b", &twin).await;
    assert_eq!(lab.copy_to(&other.repository, &third.point).await.unwrap().chunks_moved, 1);
}

pub async fn broken_copy_is_resumed<F: Fixture>(lab: Lab<F>) {
    let machine = machine(&lab);
    let point = lab.backup("a", &machine).await.point;
    let other = lab.sibling().await;
    let target = Meddled::new(&other.repository);
    let mut tries = 0;
    for after in (1..).step_by(3) {
        assert!(after < 500, "a copy ends");
        target.meddling.plan().fail_after = Some(after);
        match lab.copy_to(&target, &point).await {
            Ok(_) => break,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Transport),
        }
        assert!(other.points().await.is_empty(), "half a copy is not listed");
        tries += 1;
    }
    assert!(tries > 3);
    other.assert_restores(point.id, &machine.images()).await;
    // What a broken copy had flushed stays: nothing is stored twice.
    let (here, there) = (lab.repository.stats().await.unwrap(), other.repository.stats().await.unwrap());
    assert_eq!(here.chunks, there.chunks);
}

pub async fn other_domains_are_refused<F: Fixture>(lab: Lab<F>) {
    let point = lab.backup("a", &machine(&lab)).await.point;
    let stranger = Lab::<F>::new().await;
    let refused = lab.copy_to(&stranger.repository, &point).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Domain);
    assert!(stranger.points().await.is_empty());
}

pub async fn pinned_subtrees_are_not_walked<F: Fixture>(lab: Lab<F>) {
    let machine = machine(&lab);
    let other = lab.sibling().await;
    let first = lab.backup("a", &machine).await.point;
    lab.copy_to(&other.repository, &first).await.unwrap();
    machine.write(0, 11 * LEAF, &noise(99, BLOCK));
    let second = lab.backup("a", &machine).await.point;
    let (from, to) = (Meddled::new(&lab.repository), Meddled::new(&other.repository));
    let progress = mover::Progress::default();
    mover::copy(&from, &to, &second, mover::Verification::Decode, &progress).await.unwrap();
    let (read, plan) = (from.meddling.plan().read.clone(), to.meddling.plan());
    // The root and one leaf to compare and again to move them, and the block.
    assert!(read.len() <= 5, "{} chunks were read", read.len());
    assert!(plan.asked[&ChunkKind::Page] <= 2 && plan.asked[&ChunkKind::Data] == 1, "{:?}", plan.asked);
    assert_eq!(plan.put.len(), 3);
}

pub async fn a_page_in_the_target_does_not_vouch<F: Fixture>(lab: Lab<F>) {
    // R7: the target has every page, and no data.
    let machine = machine(&lab);
    let report = lab.backup("a", &machine).await;
    let other = lab.sibling().await;
    let blobs = lab.blobs(report.point.id).await;
    let pages: Vec<_> = blobs.into_iter().filter(|(_, blob)| blob.header().kind == ChunkKind::Page).collect();
    assert_eq!(pages.len(), 21);
    let session = other.session().await;
    session.put(pages).await.unwrap();
    session.flush().await.unwrap();
    session.abandon().await.unwrap();
    let copied = lab.copy_to(&other.repository, &report.point).await.unwrap();
    assert_eq!(copied.chunks_moved, report.chunks_new);
    other.assert_restores(report.point.id, &machine.images()).await;
}

pub async fn refused_commit_is_repaired_by_copy<F: Fixture>(lab: Lab<F>) {
    let machine = machine(&lab);
    let point = lab.backup("a", &machine).await.point;
    let other = lab.sibling().await;
    let target = Meddled::new(&other.repository);
    // Everything is said to be there, pages too: it comes level by level.
    let all = lab.blobs(point.id).await;
    target.meddling.plan().have.extend(all.into_keys());
    let report = lab.copy_to(&target, &point).await.unwrap();
    assert_eq!((report.points, report.chunks_moved), (1, 100));
    assert_eq!(target.meddling.plan().operations["commit"], 4, "a root, leaves, data, and the last");
    other.assert_restores(point.id, &machine.images()).await;
}

pub async fn newer_point_first<F: Fixture>(lab: Lab<F>) {
    let machine = machine(&lab);
    let first = lab.backup("a", &machine).await.point;
    let before = machine.images();
    machine.write(0, 0, &noise(50, 3 * BLOCK));
    machine.resize(0, 1030 * LEAF);
    let second = lab.backup("a", &machine).await.point;
    let other = lab.sibling().await;
    lab.copy_to(&other.repository, &second).await.unwrap();
    lab.copy_to(&other.repository, &first).await.unwrap();
    other.assert_restores(first.id, &before).await;
    other.assert_restores(second.id, &machine.images()).await;
}

pub async fn origin_survives_a_chain<F: Fixture>(lab: Lab<F>) {
    let machine = machine(&lab);
    let point = lab.backup("a", &machine).await.point;
    let (two, three) = (lab.sibling().await, lab.sibling().await);
    lab.copy_to(&two.repository, &point).await.unwrap();
    let copied = two.points().await.remove(0);
    two.copy_to(&three.repository, &copied).await.unwrap();
    let last = three.points().await.remove(0);
    assert_eq!(last.origin, (lab.repository.config().id, point.commit_time));
    assert_eq!(last.manifest, point.manifest);
    // Where the first repository is gone a backup goes on with all that is there, but builds on nothing that was brought (R21).
    let reader = three.repository.read(&[last.id]).await.unwrap();
    assert_eq!(reader.manifest(last.id).await.unwrap().point, point.id);
    machine.write(0, 5, b"promoted");
    let next = three.backup("a", &machine).await;
    assert_eq!((next.parent, next.chunks_new), (None, 1));
    assert_eq!(next.disks[0].tracking.mode, mover::ChangeTracking::Full);
    three.assert_restores(next.point.id, &machine.images()).await;
}

pub async fn manifests_of_later_versions_go_byte_for_byte<F: Fixture>(lab: Lab<F>) {
    let point = PointId::random(&lab.world);
    let session = lab.session_of(point, &[]).await;
    let chunk = lab.block(1);
    let (root, pages) = lab.map(&[(3, chunk.0)]).await;
    session.put(pages).await.unwrap();
    session.put(vec![chunk]).await.unwrap();
    session.flush().await.unwrap();
    // Two extensions, one without a value. With bit 0 it would have to be understood.
    let extensions = |flags: u8| [&[9, 0, flags, 0, 3, 0, 0, 0][..], b"abc", &[8, 0, 0, 0, 0, 0, 0, 0]].concat();
    let mut draft = lab.draft(point, root);
    draft.manifest.extensions = extensions(1);
    let refused = session.commit(std::slice::from_ref(&draft)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Version, "{refused}");
    draft.manifest.extensions = extensions(0);
    let made = committed(session.commit(&[draft]).await.unwrap()).remove(0);
    let (other, third) = (lab.sibling().await, lab.sibling().await);
    lab.copy_to(&other.repository, &made).await.unwrap();
    let copied = other.points().await.remove(0);
    other.copy_to(&third.repository, &copied).await.unwrap();
    for copy in [&other, &third] {
        assert_eq!(copy.points().await[0].manifest, made.manifest);
        let reader = copy.repository.read(&[point]).await.unwrap();
        assert_eq!(reader.manifest(point).await.unwrap().extensions, extensions(0));
    }
}
