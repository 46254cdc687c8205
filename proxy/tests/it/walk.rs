//! The whole walk: a real image through `mover::backup` into a repository in memory, and back by `mover::restore`.

use crate::tools::*;
use chunker::{Compression, DomainKeys};
use mover::PastOf;
use mover::{
    Audit, BackupOptions, BackupReport, ChangeTracking, Mem, Pool, Progress, ReadSession, Repository, TrackingWish,
    Verification, World, backup, restore,
};
use proxy::{DiskTarget, Existing, NamedSource, SnapshotSession, SourceOptions};
use std::path::Path;

struct Walk {
    repository: Mem,
    world: World,
    pool: Pool,
}

impl Walk {
    fn new() -> Self {
        let world = World::system();
        Self { repository: Mem::new(&world), world, pool: Pool::new(2).unwrap() }
    }

    async fn backup(&self, image: &Path) -> BackupReport {
        let wish = TrackingWish::Auto;
        let of = SourceOptions {
            wanted: mover::Wanted { repository: self.repository.config().id, wish, quiesce: mover::Quiesce::Auto },
            image_roots: Vec::new(),
            world: self.world.clone(),
        };
        let source = NamedSource::only(text(image).parse().unwrap());
        let options = BackupOptions {
            machine_name: "m".parse().unwrap(),
            machine: None,
            point: None,
            wish,
            compression: Compression::default(),
            verification: Verification::Decode,
            tags: Vec::new(),
            attachments: Vec::new(),
            rate: None,
            audit: Audit::Percent(0),
            allow: mover::Allow::default(),
            quiesce: mover::Quiesce::Auto,
        };
        let past = PastOf { repository: &self.repository, options: &options };
        let source = SnapshotSession::open(vec![source], &of, &past).await.unwrap();
        backup(&self.repository, source, &options, &self.pool, &self.world, &Progress::default()).await.unwrap()
    }

    async fn restore(&self, report: &BackupReport, target: &str) {
        let reader = self.repository.read(&[report.point.id]).await.unwrap();
        let manifest = reader.manifest(report.point.id).await.unwrap();
        let disk = &manifest.disks[0];
        let target = DiskTarget::open(&target.parse().unwrap(), disk.size, Existing::Refuse).await.unwrap();
        let keys = DomainKeys::new(&self.repository.config().domain);
        restore(&reader, &keys, disk, target, &self.pool, &Progress::default()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn there_and_back() {
    let place = Place::new();
    let image = place.qcow2("a.qcow2", 256 * MIB + 512);
    qemu_io(&image, "qcow2", &["write -P 1 1M 30M", "write -P 2 200M 4k"]);
    let walk = Walk::new();
    let first = walk.backup(&image).await;
    let then = content(&image, "qcow2");
    qemu_io(&image, "qcow2", &["write -P 3 2M 1M", "discard 10M 5M", "write -P 4 262144k 512"]);
    let second = walk.backup(&image).await;
    let tracking = &second.disks[0].tracking;
    assert_eq!(tracking.mode, ChangeTracking::Bitmap, "{}", tracking.reason);
    assert_eq!(tracking.bytes_read, MIB + 512);
    for (report, name, format, want) in [
        (&first, "1.raw", "raw", &then),
        (&second, "2.raw", "raw", &content(&image, "qcow2")),
        (&second, "2.qcow2", "qcow2", &content(&image, "qcow2")),
    ] {
        let target = place.path(name);
        walk.restore(report, text(&target)).await;
        assert!(content(&target, format) == *want, "{name}");
    }
}

/// The lie of T3 that only source and mover together see.
#[tokio::test(flavor = "multi_thread")]
async fn shrunk_and_grown_between_two_backups() {
    let place = Place::new();
    let image = place.qcow2("a.qcow2", 16 * MIB);
    qemu_io(&image, "qcow2", &["write -P 1 0 16M"]);
    let walk = Walk::new();
    walk.backup(&image).await;
    run("qemu-img", &["resize", "-q", "--shrink", text(&image), "8M"]);
    run("qemu-img", &["resize", "-q", text(&image), "16M"]);
    let second = walk.backup(&image).await;
    assert_eq!(second.disks[0].tracking.mode, ChangeTracking::Fingerprint);
    let target = place.path("b.raw");
    walk.restore(&second, text(&target)).await;
    assert!(content(&target, "raw") == content(&image, "qcow2"));
}
