//! What goes in comes out.

use super::kit::{BLOCK, Fixture, LEAF, Lab, options};
use crate::fake::{Image, Machine, noise};
use chunker::Extent;
use futures::StreamExt;
use mover::{
    Allow, BackupOptions, ChangeTracking, ErrorKind, MapReader, NewAttachment, Outcome, PointFilter, PointId,
    ReadSession, Repository, TrackingWish, with_decoder,
};

pub async fn full_and_increments<F: Fixture>(lab: Lab<F>) {
    let machine = Machine::new(&lab.world, &[3 * LEAF / 2, 5 * BLOCK]);
    machine.write(0, 0, &noise(1, 40 * BLOCK));
    machine.write(0, LEAF - 5, &noise(2, 3 * BLOCK));
    machine.write(1, 100, &noise(3, 2 * BLOCK));
    let mut history = Vec::new();
    let mut parent = None;
    for step in 0..5 {
        let report = lab.backup("web", &machine).await;
        assert_eq!(report.parent, parent, "the newest point is the parent");
        let mode = if step == 0 { ChangeTracking::Full } else { ChangeTracking::Bitmap };
        assert!(report.disks.iter().all(|disk| disk.tracking.mode == mode));
        parent = Some(report.point.id);
        history.push((report.point.id, machine.images()));
        machine.write(0, step * 7 * BLOCK + 9, &noise(10 + step, BLOCK + 1));
        machine.write(0, LEAF + step, &noise(20 + step, 1));
        machine.discard(1, Extent::new(step * BLOCK / 2, BLOCK / 2));
    }
    assert_eq!(machine.outcomes(), [Outcome::Committed; 5]);
    let lab = lab.reopened().await;
    let points: Vec<PointId> = lab.points().await.iter().map(|point| point.id).collect();
    assert_eq!(points, history.iter().map(|(id, _)| *id).collect::<Vec<_>>());
    for (point, images) in &history {
        lab.assert_restores(*point, images).await;
    }
}

pub async fn unaligned_sizes<F: Fixture>(lab: Lab<F>) {
    let sizes = [1, 511, BLOCK - 1, BLOCK, BLOCK + 1, LEAF - 1, LEAF, LEAF + 1, LEAF + BLOCK + 1];
    let machine = Machine::new(&lab.world, &sizes);
    let touch = |seed: u64| {
        for (disk, size) in sizes.iter().enumerate() {
            machine.write(disk, 0, &noise(seed, 1));
            machine.write(disk, size - 1, &noise(seed + 1, 1));
            machine.write(disk, size / 2, &noise(seed + 2, (size / 2).clamp(1, BLOCK)));
        }
    };
    let mut history = Vec::new();
    for step in 0..3 {
        touch(step * 10);
        let wish = if step == 2 { TrackingWish::Fingerprint } else { TrackingWish::Auto };
        let options = mover::BackupOptions { wish, ..options("odd") };
        let report = lab.backup_with(&lab.repository, &options, machine.snapshot()).await.unwrap();
        history.push((report.point.id, machine.images()));
    }
    for (point, images) in &history {
        lab.assert_restores(*point, images).await;
    }
}

pub async fn tall_maps<F: Fixture>(lab: Lab<F>) {
    // Just over what two levels hold: three levels, nearly all of it nothing.
    let size = 1024 * LEAF + 3 * LEAF + 12_345;
    let machine = Machine::new(&lab.world, &[size]);
    let places = [0, LEAF - 1, 5 * LEAF, 1023 * LEAF + 77, 1024 * LEAF - 1, 1024 * LEAF, size - 1];
    let mut history = Vec::new();
    for (step, wish) in (0..).zip([TrackingWish::Auto, TrackingWish::Bitmap, TrackingWish::Fingerprint]) {
        for (number, place) in (0..).zip(places) {
            machine.write(0, place, &noise(step * 100 + number, (size - place).min(2)));
        }
        machine.discard(0, Extent::new(5 * LEAF, step * 2 * BLOCK + 1));
        let options = mover::BackupOptions { wish, ..options("tall") };
        let report = lab.backup_with(&lab.repository, &options, machine.snapshot()).await.unwrap();
        assert!(report.bytes_stored < 2 << 20, "a few blocks and pages");
        history.push((report.point.id, machine.images()));
    }
    for (point, images) in &history {
        lab.assert_restores(*point, images).await;
    }
}

pub async fn all_zero_disk<F: Fixture>(lab: Lab<F>) {
    let machine = Machine::new(&lab.world, &[LEAF + 5]);
    // Allocated zeros, not only holes.
    machine.write(0, 0, &vec![0; 200_000]);
    let report = lab.backup("nil", &machine).await;
    assert_eq!((report.chunks_new, report.bytes_new), (0, 0));
    lab.assert_restores(report.point.id, &machine.images()).await;
    machine.write(0, LEAF, b"x");
    let something = lab.backup("nil", &machine).await;
    machine.write(0, LEAF, b"\0");
    let again = lab.backup("nil", &machine).await;
    assert_eq!(again.chunks_new, 0);
    let reader = lab.repository.read(&[report.point.id, again.point.id]).await.unwrap();
    let before = reader.manifest(report.point.id).await.unwrap();
    assert_eq!(before.disks[0].root.id, None);
    assert_eq!(reader.manifest(again.point.id).await.unwrap().disks[0].root, before.disks[0].root);
    let mut image = Image::new(LEAF + 5);
    image.write(LEAF, b"x");
    lab.assert_restores(something.point.id, &[image]).await;
    lab.assert_restores(again.point.id, &machine.images()).await;
}

/// If a disk has shrunk, or has another format, it is probably the wrong disk. So it is not backed up unless an option
/// allows that.
pub async fn changes_need_a_word<F: Fixture>(lab: Lab<F>) {
    let machine = Machine::new(&lab.world, &[4 * BLOCK]);
    machine.write(0, 0, &noise(1, BLOCK));
    let first = lab.backup("steady", &machine).await.point.id;
    let strict = BackupOptions { allow: Allow::default(), ..options("steady") };
    let format =
        |allowed| BackupOptions { allow: Allow { shrink: false, format_change: allowed }, ..options("steady") };
    machine.resize(0, 4 * BLOCK - 1);
    let refused = lab.backup_with(&lab.repository, &strict, machine.snapshot()).await.unwrap_err();
    assert!(refused.kind() == ErrorKind::Usage && refused.remedy().unwrap().contains("--allow-shrink"), "{refused}");
    machine.resize(0, 5 * BLOCK);
    machine.call_format(0, "qcow2");
    let refused = lab.backup_with(&lab.repository, &format(false), machine.snapshot()).await.unwrap_err();
    assert!(refused.remedy().unwrap().contains("--allow-format-change"), "{refused}");
    assert_eq!(lab.repository.list(&PointFilter::default()).await.unwrap().len(), 1);
    // What a server serves is the disk itself, whatever stores it.
    machine.call_format(0, "nbd");
    let served = lab.backup_with(&lab.repository, &strict, machine.snapshot()).await.unwrap();
    machine.call_format(0, "qcow2");
    lab.backup_with(&lab.repository, &strict, machine.snapshot()).await.unwrap();
    machine.call_format(0, "raw");
    let changed = lab.backup_with(&lab.repository, &format(true), machine.snapshot()).await.unwrap();
    assert_ne!(changed.disks[0].tracking.mode, ChangeTracking::Bitmap, "its bytes mean something else");
    assert_ne!(served.point.id, first);
    lab.assert_restores(changed.point.id, &machine.images()).await;
}

pub async fn growing_and_shrinking<F: Fixture>(lab: Lab<F>) {
    let machine = Machine::new(&lab.world, &[10 * BLOCK + 1]);
    machine.write(0, 0, &noise(1, 10 * BLOCK + 1));
    let mut history = vec![(lab.backup("elastic", &machine).await.point.id, machine.images())];
    let sizes = [10 * BLOCK + 2, LEAF, LEAF + 1, 3 * LEAF, LEAF - 7, BLOCK / 2, 1025 * LEAF, 9 * BLOCK];
    for (step, size) in (0..).zip(sizes) {
        machine.resize(0, size);
        if step % 2 == 0 {
            machine.write(0, size - 1, &noise(step, 1));
        }
        let report = lab.backup("elastic", &machine).await;
        assert_ne!(report.disks[0].tracking.mode, ChangeTracking::Bitmap, "a resized disk has no proven bitmap");
        history.push((report.point.id, machine.images()));
    }
    // Shrunk and grown back between two backups: the size alone does not tell, and what was cut off is zeros now.
    machine.resize(0, LEAF);
    machine.write(0, 0, &noise(50, LEAF / 4));
    history.push((lab.backup("elastic", &machine).await.point.id, machine.images()));
    machine.resize(0, BLOCK);
    machine.resize(0, LEAF);
    let report = lab.backup("elastic", &machine).await;
    assert_eq!(report.disks[0].tracking.mode, ChangeTracking::Fingerprint);
    assert!(report.warnings.iter().any(|warning| warning.contains("lack that change")), "{:?}", report.warnings);
    history.push((report.point.id, machine.images()));
    for (point, images) in &history {
        lab.assert_restores(*point, images).await;
    }
}

pub async fn discards<F: Fixture>(lab: Lab<F>) {
    let size = 2 * LEAF + 100;
    let machine = Machine::new(&lab.world, &[size]);
    machine.write(0, 0, &noise(1, 50 * BLOCK));
    machine.write(0, 2 * LEAF - BLOCK, &noise(2, BLOCK + 100));
    let mut history = vec![(lab.backup("trim", &machine).await.point.id, machine.images())];
    let cuts = [
        (Extent::new(BLOCK, 3 * BLOCK), 3 * BLOCK),
        (Extent::new(10 * BLOCK + 1, BLOCK), 2 * BLOCK),
        (Extent::new(2 * LEAF, 100), 100),
        (Extent::new(0, size), 48 * BLOCK),
    ];
    for (cut, bytes_changed) in cuts {
        machine.discard(0, cut);
        let report = lab.backup("trim", &machine).await;
        assert_eq!(report.disks[0].tracking.mode, ChangeTracking::Bitmap);
        assert_eq!(report.disks[0].tracking.bytes_changed, bytes_changed, "{cut:?}");
        history.push((report.point.id, machine.images()));
    }
    for (point, images) in &history {
        lab.assert_restores(*point, images).await;
    }
    // By fingerprint the same changes are counted.
    machine.write(0, 0, &noise(3, 4 * BLOCK));
    lab.backup("trim", &machine).await;
    machine.discard(0, Extent::new(0, 2 * BLOCK));
    let options = mover::BackupOptions { wish: TrackingWish::Fingerprint, ..options("trim") };
    let report = lab.backup_with(&lab.repository, &options, machine.snapshot()).await.unwrap();
    assert_eq!(report.disks[0].tracking.bytes_changed, 2 * BLOCK);
    lab.assert_restores(report.point.id, &machine.images()).await;
}

pub async fn attachments<F: Fixture>(lab: Lab<F>) {
    let machine = Machine::new(&lab.world, &[BLOCK]);
    let contents = [Vec::new(), b"<domain/>".to_vec(), noise(9, 3 << 20)];
    let attach = |(number, bytes): (usize, &Vec<u8>)| NewAttachment {
        kind: format!("kind{number}").parse().unwrap(),
        name: format!("file {number}"),
        bytes: bytes.clone().into(),
    };
    let mut options = options("kit");
    options.attachments = contents.iter().enumerate().map(attach).collect();
    let report = lab.backup_with(&lab.repository, &options, machine.snapshot()).await.unwrap();
    assert!(report.chunks_new > 10 && report.bytes_new >= 3 << 20);
    let reader = lab.repository.read(&[report.point.id]).await.unwrap();
    let manifest = reader.manifest(report.point.id).await.unwrap();
    let maps = MapReader::new(&reader, &lab.keys);
    for (attachment, bytes) in manifest.attachments.iter().zip(&contents) {
        assert_eq!(attachment.bytes, bytes.len() as u64);
        let mut have = Vec::new();
        if let Some(root) = attachment.root.id {
            assert_eq!(attachment.root.level, 0);
            for id in maps.page(root, 0).await.unwrap().chunks() {
                let read = reader.get(vec![id]).concat().await;
                let blob = read[0].1.clone().unwrap();
                with_decoder(|decoder| decoder.decode_verified(&lab.keys, &id, &blob, &mut have)).unwrap();
            }
        }
        assert!(have == *bytes, "attachment {}", attachment.name);
    }
    let again = lab.backup_with(&lab.repository, &options, machine.snapshot()).await.unwrap();
    assert_eq!(again.chunks_new, 0);
}

pub async fn tracking_wishes<F: Fixture>(lab: Lab<F>) {
    let machine = Machine::new(&lab.world, &[20 * BLOCK]);
    machine.write(0, 0, &noise(1, 20 * BLOCK));
    let with = |wish| mover::BackupOptions { wish, ..options("wish") };
    let first = lab.backup_with(&lab.repository, &with(TrackingWish::Bitmap), machine.snapshot()).await;
    assert_eq!(first.unwrap_err().kind(), ErrorKind::Tracking);
    assert!(lab.points().await.is_empty());
    for (wish, mode) in [
        (TrackingWish::Auto, ChangeTracking::Full),
        (TrackingWish::Bitmap, ChangeTracking::Bitmap),
        (TrackingWish::Fingerprint, ChangeTracking::Fingerprint),
        (TrackingWish::Full, ChangeTracking::Full),
    ] {
        machine.write(0, 3 * BLOCK, b"changed");
        let report = lab.backup_with(&lab.repository, &with(wish), machine.snapshot()).await.unwrap();
        let tracking = &report.disks[0].tracking;
        assert_eq!(tracking.mode, mode);
        assert_eq!(tracking.bytes_read, if mode == ChangeTracking::Bitmap { BLOCK } else { 20 * BLOCK });
        lab.assert_restores(report.point.id, &machine.images()).await;
    }
    machine.lose_checkpoints();
    let lost = lab.backup_with(&lab.repository, &with(TrackingWish::Bitmap), machine.snapshot()).await;
    assert_eq!(lost.unwrap_err().kind(), ErrorKind::Tracking);
    let report = lab.backup("wish", &machine).await;
    assert_eq!(report.disks[0].tracking.mode, ChangeTracking::Fingerprint);
    assert_eq!(report.chunks_new, 0);
}

pub async fn random_histories<F: Fixture>(lab: Lab<F>) {
    let mut state = 42u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let machine = Machine::new(&lab.world, &[LEAF + 3 * BLOCK]);
    let mut history = Vec::new();
    for step in 0..12 {
        let size = machine.images()[0].size();
        for write in 0..random(6) {
            let offset = random(size);
            let length = (random(3 * BLOCK) + 1).min(size - offset);
            match random(4) {
                0 => machine.discard(0, Extent::new(offset, length)),
                1 => machine.write(0, offset, &vec![0; usize::try_from(length).unwrap()]),
                // Few seeds: blocks come back.
                _ => machine.write(0, offset / BLOCK * BLOCK, &noise(write, BLOCK.min(size - offset / BLOCK * BLOCK))),
            }
        }
        match random(8) {
            0 => machine.resize(0, random(2 * LEAF) + 1),
            1 => machine.lose_checkpoints(),
            _ => {}
        }
        let report = lab.backup("chance", &machine).await;
        history.push((step, report.point.id, machine.images()));
    }
    let lab = lab.reopened().await;
    for (step, point, images) in &history {
        println!("step {step}");
        lab.assert_restores(*point, images).await;
    }
}
