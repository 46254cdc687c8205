//! Nothing is stored twice, and nothing that is damaged stays so.

use super::kit::{BLOCK, Fixture, LEAF, Lab, options};
use crate::fake::{Machine, Trouble, noise};
use crate::meddle::Meddled;
use chunker::{ChunkId, ChunkKind};
use mover::{ChangeTracking, ErrorKind, MapReader, PageRef, ReadSession, Repository, TrackingWish};

fn template<F: Fixture>(lab: &Lab<F>) -> Machine {
    let machine = Machine::new(&lab.world, &[LEAF, LEAF / 2]);
    machine.write(0, 0, &noise(1, 120 * BLOCK));
    machine.write(1, BLOCK, &noise(2, 30 * BLOCK));
    machine
}

pub async fn identical_second_backup_stores_nothing<F: Fixture>(lab: Lab<F>) {
    let machine = template(&lab);
    let first = lab.backup("same", &machine).await;
    assert_eq!((first.chunks_new, first.bytes_new), (150, 150 * BLOCK));
    assert!(first.bytes_stored >= first.bytes_sent && first.bytes_sent >= first.bytes_new, "noise does not compress");
    for wish in [TrackingWish::Bitmap, TrackingWish::Fingerprint, TrackingWish::Full] {
        let options = mover::BackupOptions { wish, ..options("same") };
        let again = lab.backup_with(&lab.repository, &options, machine.snapshot()).await.unwrap();
        assert_eq!((again.chunks_new, again.bytes_new, again.bytes_sent), (0, 0, 0), "{wish:?}");
        assert!(again.bytes_stored < 4096, "a manifest, and no page: {}", again.bytes_stored);
    }
    assert_eq!(lab.points().await.len(), 4);
}

pub async fn second_machine_of_a_template_stores_under_a_percent<F: Fixture>(lab: Lab<F>) {
    let first = template(&lab);
    let second = first.cloned();
    second.write(0, 7 * BLOCK + 5, b"hostname");
    let one = lab.backup("one", &first).await;
    let two = lab.backup("two", &second).await;
    assert_eq!(two.parent, None);
    assert_ne!(one.point.machine, two.point.machine);
    assert_eq!(two.chunks_new, 1);
    assert!(two.bytes_stored * 100 < one.bytes_stored, "{} after {}", two.bytes_stored, one.bytes_stored);
    assert!(two.bytes_new * 100 < one.bytes_new);
    lab.assert_restores(one.point.id, &first.images()).await;
    lab.assert_restores(two.point.id, &second.images()).await;
}

pub async fn equal_blocks_are_one_chunk<F: Fixture>(lab: Lab<F>) {
    let machine = Machine::new(&lab.world, &[LEAF]);
    machine.write(0, 0, &noise(1, BLOCK).repeat(300));
    let report = lab.backup("echo", &machine).await;
    assert_eq!((report.chunks_new, report.bytes_new), (1, BLOCK));
    assert_eq!(report.disks[0].tracking.bytes_changed, 300 * BLOCK);
    lab.assert_restores(report.point.id, &machine.images()).await;
}

pub async fn broken_off_at_the_end_stores_nothing_twice<F: Fixture>(lab: Lab<F>) {
    let machine = template(&lab);
    let trouble = Trouble { fail_check: true, ..Trouble::default() };
    let broken = lab.backup_with(&lab.repository, &options("again"), machine.snapshot_with(trouble)).await;
    assert_eq!(broken.unwrap_err().kind(), ErrorKind::Source);
    assert!(lab.points().await.is_empty());
    let repository = Meddled::new(&lab.repository);
    let report = lab.backup_with(&repository, &options("again"), machine.snapshot()).await.unwrap();
    assert_eq!((report.chunks_new, report.bytes_sent), (0, 0));
    assert!(report.bytes_stored < 4096, "a manifest, and no page: {}", report.bytes_stored);
    // A client of a node may put pages that are pending, to hold them itself: they are dropped there.
    let blobs = lab.blobs(report.point.id).await;
    let of_page = |id: &ChunkId| blobs.get(id).is_some_and(|blob| blob.header().kind == ChunkKind::Page);
    assert!(repository.meddling.plan().put.iter().all(of_page), "nothing but pages is sent again");
    lab.assert_restores(report.point.id, &machine.images()).await;
}

pub async fn broken_off_and_changed_never_mixes_two_moments<F: Fixture>(lab: Lab<F>) {
    let machine = template(&lab);
    let base = lab.backup("moments", &machine).await;
    let before = machine.images();
    machine.write(0, 0, &noise(11, 60 * BLOCK));
    machine.write(1, 0, &noise(12, 10 * BLOCK));
    // One disk is through, the other is not.
    let trouble = Trouble { vanish_after: Some(4), ..Trouble::default() };
    let broken = lab.backup_with(&lab.repository, &options("moments"), machine.snapshot_with(trouble)).await;
    assert_eq!(broken.unwrap_err().kind(), ErrorKind::Source);
    // What was already read and stored changes: one block to something new, one back to what the parent has.
    machine.write(0, 3 * BLOCK, &noise(13, BLOCK));
    machine.write(0, 0, &noise(1, BLOCK));
    let report = lab.backup("moments", &machine).await;
    assert_eq!(report.parent, Some(base.point.id));
    assert_eq!(report.disks[0].tracking.mode, ChangeTracking::Bitmap, "an abandoned run leaves the old checkpoint");
    lab.assert_restores(report.point.id, &machine.images()).await;
    lab.assert_restores(base.point.id, &before).await;
    // Each block of noise is one chunk however often the runs began.
    let distinct = 150 + 60 + 10 + 1;
    let stats = lab.repository.stats().await.unwrap();
    let structure = stats.chunks - distinct;
    assert!(structure <= 2 * (2 + 1) + 2, "{} chunks, {distinct} of them data", stats.chunks);
}

pub async fn suspects_are_healed_under_a_bitmap<F: Fixture>(lab: Lab<F>) {
    let machine = template(&lab);
    let first = lab.backup("heal", &machine).await;
    let reader = lab.repository.read(&[first.point.id]).await.unwrap();
    let root = reader.manifest(first.point.id).await.unwrap().disks[0].root;
    let page = MapReader::new(&reader, &lab.keys).leaf(root, 0).await.unwrap().unwrap();
    let PageRef::Chunk(victim) = page.entry(17) else { panic!("a hole") };
    drop(reader);
    if !lab.fixture.hurt(&lab.repository, victim).await {
        println!("SKIPPED: this fixture cannot damage chunks");
        return;
    }
    let options = mover::BackupOptions { wish: TrackingWish::Bitmap, ..options("heal") };
    let second = lab.backup_with(&lab.repository, &options, machine.snapshot()).await.unwrap();
    assert_eq!(second.disks[0].tracking.bytes_read, BLOCK, "nothing changed; only the suspect is read");
    assert_eq!(second.chunks_new, 1);
    lab.assert_restores(second.point.id, &machine.images()).await;
    lab.assert_restores(first.point.id, &machine.images()).await;
    assert_eq!(lab.repository.stats().await.unwrap().suspects, 0);
    // A page of the map too: everything is read, and the page is there again.
    if let Some(page) = root.id {
        assert!(lab.fixture.hurt(&lab.repository, page).await);
    }
    machine.write(0, 60 * BLOCK, b"new");
    let third = lab.backup("heal", &machine).await;
    assert_eq!(third.disks[0].tracking.mode, ChangeTracking::Full);
    assert_eq!(third.warnings.len(), 1, "{:?}", third.warnings);
    lab.assert_restores(third.point.id, &machine.images()).await;
}
