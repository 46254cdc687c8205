//! Sources of every kind.

use crate::tools::*;
use chunker::ExtentSet;
use mover::{ChangeTracking, ErrorKind, Outcome, Source, TrackingWish};
use std::collections::BTreeSet;

#[tokio::test(flavor = "multi_thread")]
async fn qcow2_full_then_by_bitmap() {
    let place = Place::new();
    let image = place.qcow2("a.qcow2", 64 * MIB);
    qemu_io(&image, "qcow2", &["write -P 1 1M 3M", "write -P 2 40M 64k"]);
    let mut store = Store::default();
    let first = store.backup(text(&image), TrackingWish::Auto).await.unwrap();
    assert_eq!(first.changed.mode, ChangeTracking::Full);
    assert_eq!(first.bytes_read, 3 * MIB + GRID);
    assert!(store.bytes == content(&image, "qcow2"));
    assert_eq!(bitmaps(&image).len(), SET);

    qemu_io(&image, "qcow2", &["write -P 3 2M 1M", "write -P 4 50M 4k", "discard 40M 64k", "write -z 1M 64k"]);
    let second = store.backup(text(&image), TrackingWish::Auto).await.unwrap();
    assert_eq!(second.changed.mode, ChangeTracking::Bitmap, "{}", second.changed.reason);
    // And the last granule, which is dirty always.
    assert_eq!(second.changed.dirty.bytes(), MIB + 4 * GRID);
    assert_eq!(second.bytes_read, MIB + GRID);
    assert!(store.bytes == content(&image, "qcow2"));
    assert_eq!(bitmaps(&image).len(), SET, "the old bitmap went");

    let third = store.backup(text(&image), TrackingWish::Bitmap).await.unwrap();
    assert_eq!((third.changed.mode, third.bytes_read), (ChangeTracking::Bitmap, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_backup_keeps_the_old_proof() {
    let place = Place::new();
    let image = place.qcow2("a.qcow2", 16 * MIB);
    let mut store = Store::default();
    store.backup(text(&image), TrackingWish::Auto).await.unwrap();
    let before = bitmaps(&image);
    qemu_io(&image, "qcow2", &["write -P 3 2M 1M"]);
    let session = open(text(&image), TrackingWish::Auto, &store.committed).await.unwrap();
    assert_eq!(bitmaps(&image).len(), SET + 2);
    session.finish(Outcome::Abandoned).await.unwrap();
    let kept = bitmaps(&image);
    assert!(before.iter().all(|name| kept.contains(name)) && kept.len() == SET, "{before:?}: {kept:?}");
    let next = store.backup(text(&image), TrackingWish::Auto).await.unwrap();
    assert_eq!((next.changed.mode, next.bytes_read), (ChangeTracking::Bitmap, MIB));
    assert!(store.bytes == content(&image, "qcow2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn wishes() {
    let place = Place::new();
    let image = place.qcow2("a.qcow2", 16 * MIB);
    qemu_io(&image, "qcow2", &["write -P 1 1M 1M"]);
    let mut store = Store::default();
    let error = open(text(&image), TrackingWish::Bitmap, &store.committed).await.unwrap();
    assert_eq!(store.read(&error, TrackingWish::Bitmap).await.err().unwrap().kind(), ErrorKind::Tracking);
    error.finish(Outcome::Abandoned).await.unwrap();
    // A fingerprint pass writes nothing into the image.
    let untouched = std::fs::read(&image).unwrap();
    let made = store.backup(text(&image), TrackingWish::Fingerprint).await.unwrap();
    assert_eq!((made.changed.mode, made.changed.checkpoint), (ChangeTracking::Full, None));
    assert!(std::fs::read(&image).unwrap() == untouched);
    // The parent began no checkpoint: the next one cannot be proven, and begins one.
    let made = store.backup(text(&image), TrackingWish::Auto).await.unwrap();
    assert_eq!(made.changed.mode, ChangeTracking::Fingerprint);
    assert!(made.changed.checkpoint.is_some());
    let made = store.backup(text(&image), TrackingWish::Full).await.unwrap();
    assert_eq!(made.changed.mode, ChangeTracking::Full);
    let made = store.backup(text(&image), TrackingWish::Auto).await.unwrap();
    assert_eq!(made.changed.mode, ChangeTracking::Bitmap);
    assert_eq!(bitmaps(&image).len(), SET);
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_file_with_holes_and_an_odd_size() {
    let place = Place::new();
    let size = 10 * MIB + 1000;
    let image = place.raw("a.img", size);
    qemu_io(&image, "raw", &["write -P 7 2M 1M", "write -P 8 9M 512k"]);
    let mut store = Store::default();
    let made = store.backup(text(&image), TrackingWish::Auto).await.unwrap();
    assert!(made.bytes_read < 3 * MIB, "holes are not read: {}", made.bytes_read);
    assert!(store.bytes == std::fs::read(&image).unwrap());
    let made = store.backup(text(&image), TrackingWish::Auto).await.unwrap();
    assert_eq!(made.changed.mode, ChangeTracking::Fingerprint);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_file_that_changes_is_noticed() {
    let place = Place::new();
    let image = place.raw("a.img", 4 * MIB);
    let session = open(text(&image), TrackingWish::Auto, &Default::default()).await.unwrap();
    session.check().await.unwrap();
    // A program that knows no locks.
    std::fs::write(&image, vec![1; 4 << 20]).unwrap();
    assert_eq!(session.check().await.unwrap_err().kind(), ErrorKind::Source);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_machine_is_busy_and_cannot_start_during_a_backup() {
    let place = Place::new();
    for (format, image) in [("raw", place.raw("a.img", 4 * MIB)), ("qcow2", place.qcow2("a.qcow2", 4 * MIB))] {
        let running = machine(&image, format);
        let error = open(text(&image), TrackingWish::Auto, &Default::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy, "{format}: {error}");
        assert!(error.remedy().unwrap().contains("shut the machine down"), "{format}");
        drop(running);
        let session = open(text(&image), TrackingWish::Auto, &Default::default()).await.unwrap();
        let start =
            std::process::Command::new("qemu-io").args(["-f", format, "-c", "write 0 4k", text(&image)]).output();
        let start = start.unwrap();
        assert!(!start.status.success() && String::from_utf8_lossy(&start.stderr).contains("lock"), "{format}");
        session.finish(Outcome::Abandoned).await.unwrap();
        qemu_io(&image, format, &["write 0 4k"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_disks_and_one_that_fails_leaves_nothing_behind() {
    use mover::World;
    use proxy::{NamedSource, SnapshotSession, SourceOptions};
    let place = Place::new();
    let good = place.qcow2("a.qcow2", 4 * MIB);
    let raw = place.raw("b.img", MIB);
    let wish = TrackingWish::Auto;
    let options = SourceOptions {
        wanted: mover::Wanted { repository: repository(), wish, quiesce: mover::Quiesce::Auto },
        image_roots: Vec::new(),
        world: World::system(),
    };
    let named = |name: &str, source: &str| format!("{name}={source}").parse::<NamedSource>().unwrap();
    let committed = BTreeSet::new();
    let past = Remembered { committed: &committed, parent: None };
    let open = |sources| SnapshotSession::open(sources, &options, &past);
    let both = open(vec![named("vda", text(&good)), named("vdb", text(&raw))]).await.unwrap();
    let names: Vec<_> = both.disks().iter().map(|disk| (disk.name.as_str().to_owned(), disk.size)).collect();
    assert_eq!(names, [("vda".to_owned(), 4 * MIB), ("vdb".to_owned(), MIB)]);
    both.finish(Outcome::Abandoned).await.unwrap();
    let error = open(vec![named("vda", text(&good)), named("vdb", "/nowhere/x")]).await.unwrap_err();
    assert!(error.message().contains("vdb"), "{error}");
    assert!(bitmaps(&good).is_empty());
    qemu_io(&good, "qcow2", &["write 0 4k"]);
    // The same file by another name is the same file.
    let link = place.path("link.qcow2");
    std::os::unix::fs::symlink(&good, &link).unwrap();
    let twice = vec![named("a", text(&good)), named("b", text(&link))];
    for sources in [vec![], vec![named("a", text(&good)), named("a", text(&raw))], twice] {
        assert_eq!(open(sources).await.unwrap_err().kind(), ErrorKind::Usage);
    }
    assert!(bitmaps(&good).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn encrypted_images_are_refused_with_a_remedy() {
    let place = Place::new();
    let image = place.path("a.qcow2");
    let secret = "secret,id=s,data=x";
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    run("qemu-img", &["create", "-q", "-f", "qcow2", "--object", secret, "-o", options, text(&image), "1M"]);
    let error = open(text(&image), TrackingWish::Auto, &Default::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.remedy().unwrap().contains("qemu-nbd"));
}

/// What lies in the file as it is is read from there, everything else through `qemu-nbd`: the disk is the same.
#[tokio::test(flavor = "multi_thread")]
async fn clusters_of_every_kind_read_as_qemu_reads_them() {
    let place = Place::new();
    let base = place.qcow2("base.qcow2", 8 * MIB);
    qemu_io(&base, "qcow2", &["write -P 1 0 8M"]);
    let backed = ["-F", "qcow2", "-b", text(&base)];
    let data = format!("data_file={}", text(&place.path("data")));
    let cases: [(&str, &[&str]); 6] = [
        ("plain", &[]),
        ("tiny", &["-o", "cluster_size=512"]),
        ("large", &["-o", "cluster_size=2M"]),
        ("backed", &backed),
        ("parts", &["-o", "extended_l2=on,cluster_size=128k", "-F", "qcow2", "-b", text(&base)]),
        ("outside", &["-o", &data]),
    ];
    for (name, options) in cases {
        let image = place.path(&format!("{name}.qcow2"));
        let create = [&["create", "-q", "-f", "qcow2"][..], options, &[text(&image), "8M"]].concat();
        run("qemu-img", &create);
        let in_image = name != "outside";
        if in_image {
            qemu_io(&image, "qcow2", &["write -c -P 2 2M 2M", "write -c -P 7 6M 2M"]);
        }
        qemu_io(&image, "qcow2", &["write -P 3 1M 100k", "write -P 4 3M 70k", "write -z 3200k 64k", "discard 1M 32k"]);
        if in_image {
            run("qemu-img", &["snapshot", "-c", "before", text(&image)]);
        }
        // Clusters that the snapshot shares are copied: not where they were.
        qemu_io(&image, "qcow2", &["write -P 5 1050k 3k", "write -P 6 5M 1M", "write -P 8 8191k 1k"]);
        let (session, content) =
            (open(text(&image), TrackingWish::Full, &BTreeSet::new()).await.unwrap(), content(&image, "qcow2"));
        // Blocks of one kind, parts of them, and what has several kinds.
        for piece in [4 << 10, GRID, MIB, 8 * MIB] {
            for extent in ExtentSet::whole(8 * MIB).split(piece) {
                let got = session.read(0, extent).await.unwrap();
                assert!(got == content[range(extent)], "{name}, {extent:?}");
            }
        }
        session.finish(Outcome::Abandoned).await.unwrap();
    }
}
