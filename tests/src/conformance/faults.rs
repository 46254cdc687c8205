//! When something else fails, the repository stays as it was, and the error keeps its kind.

use super::kit::{BLOCK, Fixture, LEAF, Lab, options};
use crate::fake::{Machine, Target, Trouble, noise};
use crate::meddle::{Meddled, Meddling};
use chunker::{ChunkId, ChunkKind, Extent};
use futures::StreamExt;
use mover::{Audit, ChangeTracking, Error, ErrorKind, Failover, Outcome, ReadSession, Repository, TrackingWish};

fn machine<F: Fixture>(lab: &Lab<F>) -> Machine {
    let machine = Machine::new(&lab.world, &[LEAF, 10 * BLOCK]);
    machine.write(0, 0, &noise(1, 50 * BLOCK));
    machine.write(1, 0, &noise(2, 10 * BLOCK));
    machine
}

/// A backup with this trouble fails with an error of the source and leaves nothing; the next one is fine.
async fn fails<F: Fixture>(lab: Lab<F>, trouble: Trouble) {
    let machine = machine(&lab);
    let first = lab.backup("a", &machine).await;
    let images = machine.images();
    machine.write(0, 10, &noise(3, 30 * BLOCK));
    let failed = lab.backup_with(&lab.repository, &options("a"), machine.snapshot_with(trouble)).await;
    assert_eq!(failed.unwrap_err().kind(), ErrorKind::Source, "an error of the source stays one");
    assert_eq!(machine.outcomes(), [Outcome::Committed, Outcome::Abandoned]);
    assert_eq!(lab.points().await, std::slice::from_ref(&first.point));
    lab.assert_restores(first.point.id, &images).await;
    let next = lab.backup("a", &machine).await;
    assert_eq!(next.disks[0].tracking.mode, ChangeTracking::Bitmap);
    lab.assert_restores(next.point.id, &machine.images()).await;
}

pub async fn source_vanishes<F: Fixture>(lab: Lab<F>) {
    fails(lab, Trouble { vanish_after: Some(1), ..Trouble::default() }).await;
}

pub async fn source_cannot_read<F: Fixture>(lab: Lab<F>) {
    fails(lab, Trouble { fail_read_after: Some(0), ..Trouble::default() }).await;
}

pub async fn source_is_torn<F: Fixture>(lab: Lab<F>) {
    let machine = machine(&lab);
    let torn = machine.snapshot_with(Trouble { live: true, ..Trouble::default() });
    machine.write(0, 0, b"meanwhile");
    let failed = lab.backup_with(&lab.repository, &options("raw"), torn).await;
    assert_eq!(failed.unwrap_err().kind(), ErrorKind::Source);
    assert!(lab.points().await.is_empty());
}

pub async fn source_cannot_be_released<F: Fixture>(lab: Lab<F>) {
    let machine = machine(&lab);
    let clinging = machine.snapshot_with(Trouble { fail_finish: true, ..Trouble::default() });
    let report = lab.backup_with(&lab.repository, &options("a"), clinging).await.unwrap();
    assert_eq!(report.warnings.len(), 1, "a warning, not a failed backup");
    lab.assert_restores(report.point.id, &machine.images()).await;
}

pub async fn target_is_full_or_fails<F: Fixture>(lab: Lab<F>) {
    let machine = machine(&lab);
    let point = lab.backup("a", &machine).await.point.id;
    let reader = lab.repository.read(&[point]).await.unwrap();
    let disk = reader.manifest(point).await.unwrap().disks[0].clone();
    for (kind, with) in [
        (ErrorKind::TargetFull, (|what| Error::target_full(what)) as fn(&'static str) -> Error),
        (ErrorKind::Target, |what| Error::target(what)),
        (ErrorKind::Transport, |what| Error::transport(what)),
    ] {
        for after in [0, 1] {
            let (target, screen) = Target::failing(disk.size, after, with);
            let failed = lab.restore(&reader, &disk, (target, screen.clone())).await;
            assert_eq!(failed.err().expect("it fails").kind(), kind);
            assert!(screen.image().is_none(), "an unfinished target is never taken for a restored disk");
        }
    }
}

pub async fn target_too_small<F: Fixture>(lab: Lab<F>) {
    let machine = machine(&lab);
    let point = lab.backup("a", &machine).await.point.id;
    let reader = lab.repository.read(&[point]).await.unwrap();
    let disk = reader.manifest(point).await.unwrap().disks[1].clone();
    let small = lab.restore(&reader, &disk, Target::new(disk.size - 1)).await;
    assert_eq!(small.err().expect("refused").kind(), ErrorKind::Usage);
    let (target, screen) = Target::new(disk.size + 4096);
    lab.restore(&reader, &disk, (target, screen.clone())).await.unwrap();
    assert_eq!(screen.covered().end(), disk.size, "what is past the disk's end is left alone");
}

pub async fn lying_tracking_is_found_out<F: Fixture>(lab: Lab<F>) {
    // T3: allocation says zero, the bitmap says clean, and the parent has data there.
    let machine = machine(&lab);
    lab.backup("liar", &machine).await;
    machine.write(0, 0, b"tracked");
    machine.discard_untracked(0, Extent::new(20 * BLOCK, 2 * BLOCK));
    let bitmap = mover::BackupOptions { wish: TrackingWish::Bitmap, ..options("liar") };
    let refused = lab.backup_with(&lab.repository, &bitmap, machine.snapshot()).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Tracking);
    let report = lab.backup("liar", &machine).await;
    let tracking = &report.disks[0].tracking;
    assert_eq!(tracking.mode, ChangeTracking::Fingerprint);
    assert!(tracking.reason.contains("unchanged"), "the reason is told: {}", tracking.reason);
    assert_eq!(report.disks[1].tracking.mode, ChangeTracking::Bitmap, "the other disk did not lie");
    lab.assert_restores(report.point.id, &machine.images()).await;
    // The same at the disk's very end, where the block is short.
    machine.resize(1, 10 * BLOCK + 9);
    machine.write(1, 10 * BLOCK, b"short");
    lab.backup("liar", &machine).await;
    machine.discard_untracked(1, Extent::new(10 * BLOCK, 9));
    let report = lab.backup("liar", &machine).await;
    assert_eq!(report.disks[1].tracking.mode, ChangeTracking::Fingerprint);
    lab.assert_restores(report.point.id, &machine.images()).await;
}

pub async fn an_audit_finds_what_tracking_hid<F: Fixture>(lab: Lab<F>) {
    // T8: written behind the tracking's back, and without a trace in the allocation.
    let machine = Machine::new(&lab.world, &[40 * BLOCK + 77, BLOCK]);
    machine.write(0, 0, &noise(1, 40 * BLOCK + 77));
    let audited = |wish| mover::BackupOptions { wish, audit: Audit::Percent(25), ..options("liar") };
    let backup = async |wish| lab.backup_with(&lab.repository, &audited(wish), machine.snapshot()).await;
    backup(TrackingWish::Auto).await.unwrap();
    machine.write_untracked(0, 35 * BLOCK + 5, b"hidden");
    machine.write(0, BLOCK, b"tracked");
    // A quarter of 41 blocks, without the one that is dirty; the last finds it.
    let mut audits = Vec::new();
    let found = loop {
        let report = backup(TrackingWish::Auto).await.unwrap();
        let disk = &report.disks[0];
        if disk.tracking.mode != ChangeTracking::Bitmap {
            break report;
        }
        assert!(report.warnings.is_empty(), "{:?}", report.warnings);
        assert_eq!(disk.tracking.bytes_read, if audits.is_empty() { BLOCK } else { 0 });
        audits.push((disk.tracking.bytes_audited / BLOCK, disk.audit.unwrap().position / BLOCK));
    };
    assert_eq!(audits, [(10, 11), (11, 22), (11, 33)]);
    let tracking = &found.disks[0].tracking;
    assert_eq!((tracking.mode, tracking.bytes_changed), (ChangeTracking::Fingerprint, BLOCK));
    assert_eq!(tracking.bytes_audited, 7 * BLOCK + 77);
    let place = (35 * BLOCK).to_string();
    assert!(tracking.reason.contains(&place) && found.warnings[0].contains(&place), "{}", tracking.reason);
    assert_eq!(found.disks[1].tracking.mode, ChangeTracking::Bitmap, "the other disk did not lie");
    lab.assert_restores(found.point.id, &machine.images()).await;
    // Where falling back is forbidden there is no point.
    machine.write_untracked(0, 2 * BLOCK, b"again");
    let refused = backup(TrackingWish::Bitmap).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Tracking);
    assert_eq!(lab.points().await.last().unwrap().id, found.point.id);
    // A turn that finds nothing says when it is complete; one share past the end belongs to the next.
    backup(TrackingWish::Auto).await.unwrap();
    let mut turn = Vec::new();
    for _ in 0..5 {
        let audit = backup(TrackingWish::Bitmap).await.unwrap().disks[0].audit.unwrap();
        turn.push((audit.position / BLOCK, audit.turn_completed, audit.cut_short));
    }
    assert_eq!(turn, [11, 22, 33, 3, 14].map(|position| (position, position == 3, false)));
    lab.assert_restores(lab.points().await.last().unwrap().id, &machine.images()).await;
}

pub async fn a_damaged_map_is_found_by_the_audit<F: Fixture>(lab: Lab<F>) {
    // No block of the second leaf is zero, so that nothing else looks at it.
    let machine = Machine::new(&lab.world, &[LEAF + 3 * BLOCK]);
    machine.write(0, LEAF, &noise(1, 3 * BLOCK));
    let options = mover::BackupOptions { audit: Audit::Usual, ..options("map") };
    let first = lab.backup_with(&lab.repository, &options, machine.snapshot()).await.unwrap();
    let pages = lab.blobs(first.point.id).await.into_iter().filter(|(_, blob)| blob.header().kind == ChunkKind::Page);
    let mut rotten: Vec<_> = pages.map(|(id, _)| id).collect();
    let reader = lab.repository.read(&[first.point.id]).await.unwrap();
    let root = reader.manifest(first.point.id).await.unwrap().disks[0].root.id.unwrap();
    drop(reader);
    rotten.retain(|id| *id != root);
    let repository = Meddled::new(&lab.repository);
    repository.meddling.plan().rotten.extend(rotten);
    // Without the audit nobody would look at that leaf, and the new point would have the damage too.
    let report = lab.backup_with(&repository, &options, machine.snapshot()).await.unwrap();
    let tracking = &report.disks[0].tracking;
    assert_eq!((tracking.mode, report.warnings.len()), (ChangeTracking::Full, 1), "{}", tracking.reason);
    lab.assert_restores(report.point.id, &machine.images()).await;
}

pub async fn broken_at_every_operation<F: Fixture>(lab: Lab<F>) {
    let machine = machine(&lab);
    let first = lab.backup("a", &machine).await;
    let mut acknowledged = vec![(first.point.id, machine.images())];
    let repository = Meddled::new(&lab.repository);
    for after in 0.. {
        assert!(after < 200, "a backup ends");
        machine.write(0, after * 1000, &noise(100 + after, 70_000));
        repository.meddling.reset();
        repository.meddling.plan().fail_after = Some(after);
        let made = lab.backup_with(&repository, &options("a"), machine.snapshot()).await;
        let through = repository.meddling.plan().fail_after.is_some_and(|left| left > 0);
        if let Ok(report) = &made {
            acknowledged.push((report.point.id, machine.images()));
        } else {
            // A chunk that cannot be read has no kind of its own.
            let kind = made.as_ref().unwrap_err().kind();
            assert!([ErrorKind::Transport, ErrorKind::StoreIo].contains(&kind), "{made:?}");
        }
        let points: Vec<_> = lab.points().await.iter().map(|point| point.id).collect();
        assert_eq!(points, acknowledged.iter().map(|(id, _)| *id).collect::<Vec<_>>(), "broken after {after}");
        if through {
            break;
        }
    }
    assert!(acknowledged.len() >= 2);
    for (point, images) in &acknowledged {
        lab.assert_restores(*point, images).await;
    }
}

pub async fn one_rotten_chunk_of_two_copies<F: Fixture>(lab: Lab<F>) {
    let machine = machine(&lab);
    let point = lab.backup("a", &machine).await.point;
    let other = lab.sibling().await;
    lab.copy_to(&other.repository, &point).await.unwrap();
    let rotten = block(&lab, 7);
    let (near, far) = (Meddled::new(&lab.repository), Meddled::new(&other.repository));
    near.meddling.plan().rotten.insert(rotten);
    let sessions = vec![
        ("near".to_owned(), near.read(&[point.id]).await.unwrap()),
        ("far".to_owned(), far.read(&[point.id]).await.unwrap()),
    ];
    let both = Failover::new(sessions);
    lab.assert_reader_restores(&both, point.id, &machine.images()).await;
    let from = both.bytes_from();
    assert!(from["near"] > 50 * BLOCK && from["far"] > BLOCK && from["far"] < 2 * BLOCK, "{from:?}");
    assert_eq!(far.meddling.plan().read, [rotten], "nothing else is asked of the other copy");
    // Alone, or rotten in both, it is an error that names the place.
    let disk = both.manifest(point.id).await.unwrap().disks[0].clone();
    far.meddling.plan().rotten.insert(rotten);
    let failed = lab.restore(&both, &disk, Target::new(disk.size)).await.err().expect("it fails");
    assert_eq!(failed.kind(), ErrorKind::Integrity);
    let text = failed.to_string();
    assert!(
        text.contains("sda") && text.contains(&(7 * BLOCK).to_string()) && text.contains(&rotten.to_string()),
        "{text}"
    );
}

/// A point in two copies, both meddled with.
macro_rules! two_copies {
    ($lab:ident, $machine:ident, $point:ident, $near:ident, $far:ident, $both:ident) => {
        let $machine = machine(&$lab);
        let $point = $lab.backup("a", &$machine).await.point;
        let other = $lab.sibling().await;
        $lab.copy_to(&other.repository, &$point).await.unwrap();
        let ($near, $far) = (Meddled::new(&$lab.repository), Meddled::new(&other.repository));
        let $both = Failover::new(vec![
            ("near".to_owned(), $near.read(&[$point.id]).await.unwrap()),
            ("far".to_owned(), $far.read(&[$point.id]).await.unwrap()),
        ]);
    };
}

pub async fn chunks_withheld_by_one_copy<F: Fixture>(lab: Lab<F>) {
    two_copies!(lab, machine, point, near, far, both);
    let withheld = [block(&lab, 3), block(&lab, 40)];
    near.meddling.plan().withheld.extend(withheld);
    let root = both.manifest(point.id).await.unwrap().disks[1].root.id.unwrap();
    near.meddling.plan().withheld.insert(root);
    lab.assert_reader_restores(&both, point.id, &machine.images()).await;
    let mut asked = far.meddling.plan().read.clone();
    asked.sort_unstable();
    let mut want = [withheld[0], withheld[1], root];
    want.sort_unstable();
    assert_eq!(asked, want, "nothing else is asked of the other copy");
    // Withheld by both it is an error, not a hole.
    far.meddling.plan().withheld.insert(withheld[0]);
    let disk = both.manifest(point.id).await.unwrap().disks[0].clone();
    let failed = lab.restore(&both, &disk, Target::new(disk.size)).await.err().expect("it fails");
    assert_eq!(failed.kind(), ErrorKind::Integrity);
    assert!(failed.to_string().contains(&withheld[0].to_string()), "{failed}");
}

pub async fn a_copy_that_dies_in_the_middle<F: Fixture>(lab: Lab<F>) {
    two_copies!(lab, machine, point, near, far, both);
    // After the manifest and the first page: every chunk of data is asked of the other copy.
    near.meddling.plan().fail_after = Some(2);
    lab.assert_reader_restores(&both, point.id, &machine.images()).await;
    let plan = far.meddling.plan();
    assert!(plan.read.len() >= 60, "{} chunks", plan.read.len());
    let batches = plan.operations["get"];
    assert!(batches < 20, "{batches} batches: what is lost is asked for together");
}

pub async fn content_that_is_not_what_its_id_says<F: Fixture>(lab: Lab<F>) {
    two_copies!(lab, machine, point, near, far, both);
    let root = both.manifest(point.id).await.unwrap().disks[0].root.id.unwrap();
    let page = near.read(&[point.id]).await.unwrap().get(vec![root]).concat().await.remove(0).1.unwrap();
    let (wrong, other) = (block(&lab, 7), lab.block(99).1);
    // A block, a page, and a block that does not even have the right length.
    let swapped = [(wrong, other.clone()), (root, other), (block(&lab, 20), page)];
    near.meddling.plan().swapped.extend(swapped.clone());
    lab.assert_reader_restores(&both, point.id, &machine.images()).await;
    let mut asked = far.meddling.plan().read.clone();
    asked.sort_unstable();
    asked.dedup();
    assert_eq!(asked.len(), 3, "nothing else is asked of the other copy");
    // Wrong in both, it never reaches the target.
    far.meddling.plan().swapped.insert(wrong, swapped[0].1.clone());
    let disk = both.manifest(point.id).await.unwrap().disks[0].clone();
    let (target, screen) = Target::new(disk.size);
    let failed = lab.restore(&both, &disk, (target, screen.clone())).await.err().expect("it fails");
    assert_eq!(failed.kind(), ErrorKind::Integrity);
    let (text, offset) = (failed.to_string(), (7 * BLOCK).to_string());
    assert!(text.contains("sda") && text.contains(&offset) && text.contains(&wrong.to_string()), "{text}");
    assert!(!screen.covered().contains(7 * BLOCK));
}

pub async fn withheld_and_repeated_chunks<F: Fixture>(lab: Lab<F>) {
    // A reader that breaks its promise must not leave a hole in the target, nor write a byte twice.
    let machine = machine(&lab);
    let point = lab.backup("a", &machine).await.point.id;
    let repository = Meddled::new(&lab.repository);
    let reader = repository.read(&[point]).await.unwrap();
    let disk = reader.manifest(point).await.unwrap().disks[0].clone();
    let meddling: &Meddling = &repository.meddling;
    meddling.plan().repeat = true;
    lab.assert_reader_restores(&reader, point, &machine.images()).await;
    meddling.plan().withheld.insert(block(&lab, 3));
    let (target, screen) = Target::new(disk.size);
    let failed = lab.restore(&reader, &disk, (target, screen.clone())).await.err().expect("it fails");
    assert_eq!(failed.kind(), ErrorKind::Integrity);
    assert!(screen.image().is_none());
}

/// The chunk of a block of the first disk of [`machine`].
fn block<F: Fixture>(lab: &Lab<F>, number: usize) -> ChunkId {
    let bytes = noise(1, 50 * BLOCK);
    lab.keys.id(ChunkKind::Data, &bytes[number << 16..(number + 1) << 16])
}
