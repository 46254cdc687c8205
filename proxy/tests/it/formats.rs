//! Nothing that a guest, or whoever made an image, writes into it decides what is opened (T10); all that is opened is named
//! (T12).

use crate::tools::*;
use mover::{ChangeTracking, Error, ErrorKind, Outcome, Source, TrackingWish, World};
use proxy::{NamedSource, SnapshotSession, SourceOptions};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

async fn open_under(source: &str, roots: &[PathBuf]) -> Result<SnapshotSession, Error> {
    let (wish, committed) = (TrackingWish::Auto, BTreeSet::new());
    let options = SourceOptions {
        wanted: mover::Wanted { repository: repository(), wish, quiesce: mover::Quiesce::Auto },
        image_roots: roots.to_vec(),
        world: World::system(),
    };
    let past = Remembered { committed: &committed, parent: None };
    SnapshotSession::open(vec![NamedSource::only(source.parse()?)], &options, &past).await
}

async fn refused(source: &str) -> Error {
    let began = Instant::now();
    let error = open_under(source, &[]).await.map(drop).unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(20), "{error}");
    error
}

/// The paths of the files that make the disk up, as a point would name them.
async fn chain(source: &str, roots: &[PathBuf]) -> Vec<String> {
    let session = open_under(source, roots).await.unwrap();
    let chain = session.disks()[0].chain.iter().map(|layer| layer.path.clone()).collect();
    session.finish(Outcome::Abandoned).await.unwrap();
    chain
}

/// A raw disk of 2 MiB on which a guest wrote a header that names the file of somebody else.
fn guest_written(place: &Place, name: &str) -> PathBuf {
    let secret = place.raw("secret", MIB);
    qemu_io(&secret, "raw", &["write -P 42 0 1M"]);
    let (header, disk) = (place.path("header"), place.raw(name, 2 * MIB));
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", text(&secret), "-F", "raw", text(&header), "1M"]);
    let written = std::fs::read(&header).unwrap();
    let mut bytes = std::fs::read(&disk).unwrap();
    bytes[..written.len()].copy_from_slice(&written);
    std::fs::write(&disk, bytes).unwrap();
    disk
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_does_not_choose_what_its_disk_is() {
    let place = Place::new();
    for (name, said) in [("disk.raw", ""), ("disk.img", "?format=raw"), ("disk", "?format=raw")] {
        let disk = guest_written(&place, name);
        let before = std::fs::read(&disk).unwrap();
        let source = format!("{}{said}", text(&disk));
        let session = open_under(&source, &[]).await.unwrap();
        let description = &session.disks()[0];
        assert_eq!((description.size, description.format.as_str(), description.chain.len()), (2 * MIB, "raw", 1));
        assert_eq!(description.warning.is_some(), said.is_empty(), "what contradicts the name is told");
        session.finish(Outcome::Abandoned).await.unwrap();
        let mut store = Store::default();
        store.backup(&source, TrackingWish::Auto).await.unwrap();
        assert!(store.bytes == before && std::fs::read(&disk).unwrap() == before, "as it is, and nothing written");
    }
    for name in ["disk.img", "disk"] {
        let error = refused(text(&place.path(name))).await;
        let remedy = error.remedy().unwrap();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(remedy.contains("?format=qcow2") && remedy.contains("?format=raw"), "{remedy}");
    }
    // Said to be qcow2, and not one.
    let raw = place.raw("short.qcow2", MIB);
    assert!(refused(text(&raw)).await.remedy().unwrap().contains("?format=raw"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_header_names_is_opened_where_it_is_allowed() {
    let (place, elsewhere) = (Place::new(), Place::new());
    let (beside, far) = (place.raw("base.raw", MIB), elsewhere.raw("base.raw", MIB));
    let image = place.path("top.qcow2");
    let name = |backing: &str, format: &str| {
        run("qemu-img", &["create", "-q", "-u", "-f", "qcow2", "-F", format, "-b", backing, text(&image), "1M"]);
    };
    name("base.raw", "raw");
    let real = |path: &Path| std::fs::canonicalize(path).unwrap().to_str().unwrap().to_owned();
    assert_eq!(chain(text(&image), &[]).await, [text(&image).to_owned(), real(&beside)]);
    name(text(&far), "raw");
    let error = refused(text(&image)).await;
    assert!(error.remedy().unwrap().contains("--image-root"), "{error}");
    let roots = [far.parent().unwrap().to_owned()];
    assert_eq!(chain(text(&image), &roots).await, [text(&image).to_owned(), real(&far)]);
    // A link leads out of the folder.
    std::os::unix::fs::symlink(&far, place.path("link.raw")).unwrap();
    name("link.raw", "raw");
    assert!(refused(text(&image)).await.remedy().unwrap().contains("--image-root"));
    // What is no file is not opened, however long it would wait.
    run("mkfifo", &[text(&place.path("pipe.raw"))]);
    let json = format!("json:{{\"driver\":\"raw\",\"file\":{{\"driver\":\"file\",\"filename\":\"{}\"}}}}", text(&far));
    for backing in
        ["pipe.raw", json.as_str(), "nbd:unix:/nowhere", "nbd://127.0.0.1:1/x", "http://127.0.0.1:1/x", "/dev/zero"]
    {
        name(backing, "raw");
        refused(text(&image)).await;
    }
    // Nor is one probed that a guest may have written, nor followed twice.
    let guest = guest_written(&place, "guest.raw");
    name(guest.file_name().unwrap().to_str().unwrap(), "raw");
    assert_eq!(chain(text(&image), &[]).await, [text(&image).to_owned(), real(&guest)]);
    name("top.qcow2", "qcow2");
    assert!(refused(text(&image)).await.to_string().contains("its own backing file"));
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_can_change_bytes_is_named() {
    let place = Place::new();
    let (mid, data, image) = (place.path("mid.qcow2"), place.path("data.raw"), place.path("top.qcow2"));
    let options = format!("data_file={},data_file_raw=on", text(&data));
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options, text(&mid), "1M"]);
    qemu_io(&mid, "qcow2", &["write -P 1 0 1M"]);
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "mid.qcow2", text(&image)]);
    let named = chain(text(&image), &[]).await;
    assert!(named.len() == 3 && named[2].ends_with("/data.raw"), "{named:?}");
    // A write that only the data file of the layer below shows.
    let mut store = Store::default();
    store.backup(text(&image), TrackingWish::Auto).await.unwrap();
    qemu_io(&data, "raw", &["write -P 2 256k 64k"]);
    let made = store.backup(text(&image), TrackingWish::Auto).await.unwrap();
    assert_eq!(made.changed.mode, ChangeTracking::Fingerprint, "{}", made.changed.reason);
    assert!(made.changed.reason.contains("data.raw") && store.bytes == content(&image, "qcow2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_lost_its_end_is_no_disk_of_zeros() {
    let place = Place::new();
    for layout in ["cluster_size=65536", "cluster_size=512", "cluster_size=65536,extended_l2=on", "compat=0.10"] {
        let image = place.path("a.qcow2");
        run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", layout, text(&image), "8M"]);
        qemu_io(&image, "qcow2", &["write -P 1 0 3M", "write -z 4M 64k", "write -P 3 5M 512"]);
        let whole = std::fs::read(&image).unwrap();
        open_under(text(&image), &[]).await.unwrap().finish(Outcome::Abandoned).await.unwrap();
        for share in [95, 50, 20, 1] {
            std::fs::write(&image, &whole[..whole.len() * share / 100]).unwrap();
            let error = refused(text(&image)).await;
            assert_eq!(error.kind(), ErrorKind::Source, "{layout} {share} %: {error}");
        }
        std::fs::write(&image, &whole[..100]).unwrap();
        refused(text(&image)).await;
        // The same below another.
        let top = place.path("top.qcow2");
        std::fs::write(&image, &whole[..whole.len() / 2]).unwrap();
        run("qemu-img", &["create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "a.qcow2", text(&top), "8M"]);
        assert!(refused(text(&top)).await.to_string().contains("is truncated"), "{layout}");
    }
}
