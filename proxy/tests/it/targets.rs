//! Targets of every kind.

use crate::tools::*;
use bytes::Bytes;
use chunker::Extent;
use mover::{ErrorKind, Target};
use proxy::{DiskTarget, Existing, TargetAddress};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

async fn open(target: &str, size: u64, existing: Existing) -> mover::Result<DiskTarget> {
    DiskTarget::open(&target.parse::<TargetAddress>()?, size, existing).await
}

/// Writes a pattern as a restore does: every byte of the disk once, in any order. Gives what the disk holds then.
async fn restore(target: &DiskTarget, size: u64) -> mover::Result<Vec<u8>> {
    let mut want = vec![0; size as usize];
    let mut at = size;
    // Backwards, because order means nothing.
    while at > 0 {
        let from = at.saturating_sub(MIB).div_ceil(GRID) * GRID;
        let from = if from >= at { 0 } else { from };
        let extent = Extent::from(from..at);
        if (at / MIB).is_multiple_of(3) {
            target.zero(extent).await?;
        } else {
            let byte = (at / MIB) as u8 | 1;
            want[range(extent)].fill(byte);
            target.write(from, Bytes::from(vec![byte; extent.length as usize])).await?;
        }
        at = from;
    }
    Ok(want)
}

fn entries(place: &Place) -> usize {
    std::fs::read_dir(place.path("")).unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn new_files_appear_when_they_are_complete() {
    let size = 12 * MIB + 512;
    for (name, format) in [("a.raw", "raw"), ("a.qcow2", "qcow2")] {
        let place = Place::new();
        let path = place.path(name);
        let target = open(text(&path), size, Existing::Refuse).await.unwrap();
        assert_eq!(target.size(), size);
        let want = restore(&target, size).await.unwrap();
        assert!(!path.exists(), "not before it is complete");
        target.finish().await.unwrap();
        assert!(content(&path, format) == want, "{name}");
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.mode() & 0o777, 0o600, "disks hold secrets");
        assert!(metadata.blocks() * 512 < size - 3 * MIB, "zeros take no room in {name}");
        assert_eq!(entries(&place), 1, "nothing else is left");
        let error = open(text(&path), size, Existing::Refuse).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.remedy().unwrap().contains("--overwrite"));
    }
    let place = Place::new();
    let path = place.path("a.qcow2");
    open(text(&path), MIB, Existing::Refuse).await.unwrap().finish().await.unwrap();
    run("qemu-img", &["check", text(&path)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_breaks_off_leaves_no_file() {
    for name in ["a.raw", "a.qcow2"] {
        let place = Place::new();
        let target = open(text(&place.path(name)), 4 * MIB, Existing::Refuse).await.unwrap();
        target.write(0, Bytes::from_static(&[1; 4096])).await.unwrap();
        drop(target);
        assert_eq!(entries(&place), 0, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_taken_meanwhile_is_not_overwritten() {
    for name in ["a.raw", "a.qcow2"] {
        let place = Place::new();
        let target = open(text(&place.path(name)), MIB, Existing::Refuse).await.unwrap();
        std::fs::write(place.path(name), b"somebody's").unwrap();
        assert_eq!(target.finish().await.unwrap_err().kind(), ErrorKind::Usage, "{name}");
        assert_eq!(std::fs::read(place.path(name)).unwrap(), b"somebody's");
        assert_eq!(entries(&place), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn existing_files_are_replaced_or_kept() {
    for (name, format) in [("a.raw", "raw"), ("a.qcow2", "qcow2")] {
        let place = Place::new();
        let path = place.path(name);
        let size = 4 * MIB;
        run("qemu-img", &["create", "-q", "-f", format, text(&path), &size.to_string()]);
        qemu_io(&path, format, &["write -P 9 0 4M"]);
        // Kept: what is not written stays.
        let target = open(text(&path), size, Existing::Keep).await.unwrap();
        target.write(MIB, Bytes::from(vec![1; 4096])).await.unwrap();
        target.zero(Extent::new(2 * MIB, 1000)).await.unwrap();
        target.finish().await.unwrap();
        let mut want = vec![9; size as usize];
        want[1 << 20..][..4096].fill(1);
        want[2 << 20..][..1000].fill(0);
        assert!(content(&path, format) == want, "{name}");
        // Replaced: nothing of it stays.
        let target = open(text(&path), size, Existing::Replace).await.unwrap();
        let want = restore(&target, size).await.unwrap();
        target.finish().await.unwrap();
        assert!(content(&path, format) == want, "{name}");
        assert_eq!(entries(&place), 1);
        // Broken off: the file was there before and is not removed.
        drop(open(text(&path), size, Existing::Replace).await.unwrap());
        assert!(path.exists(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_machine_is_not_overwritten() {
    let place = Place::new();
    for (name, format) in [("a.raw", "raw"), ("a.qcow2", "qcow2")] {
        let path = place.path(name);
        run("qemu-img", &["create", "-q", "-f", format, text(&path), "1M"]);
        let _running = machine(&path, format);
        for existing in [Existing::Replace, Existing::Keep] {
            let error = open(text(&path), MIB, existing).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Busy, "{name} {existing:?}: {error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_written() {
    let place = Place::new();
    let size = 8 * MIB;
    let (_server, uri) = nbdkit(&place, "s", &["memory", "8M"]);
    let target = open(&uri, size, Existing::Refuse).await.unwrap();
    target.write(0, Bytes::from(vec![7; 8 << 20])).await.unwrap();
    let want = restore(&target, size).await.unwrap();
    target.finish().await.unwrap();
    let copy = place.path("copy");
    run("nbdcopy", &[&uri, text(&copy)]);
    assert!(std::fs::read(&copy).unwrap() == want);
    let error = open(&uri, size + 1, Existing::Refuse).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.message().contains("8388608") && error.message().contains("8388609"), "{error}");
    // A server that cannot zero gets zeros, one that cannot flush is not asked to.
    let (_server, uri) = nbdkit(&place, "t", &["--filter=nozero", "memory", "8M"]);
    let target = open(&uri, size, Existing::Refuse).await.unwrap();
    let want = restore(&target, size).await.unwrap();
    target.finish().await.unwrap();
    let copy = place.path("copy2");
    run("nbdcopy", &[&uri, text(&copy)]);
    assert!(std::fs::read(&copy).unwrap() == want);
    let (_server, uri) = nbdkit(&place, "u", &["-r", "memory", "8M"]);
    assert_eq!(open(&uri, size, Existing::Refuse).await.unwrap_err().kind(), ErrorKind::Usage);
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_a_target_have_their_names() {
    let place = Place::new();
    for (at, (error, kind)) in [("ENOSPC", ErrorKind::TargetFull), ("EIO", ErrorKind::Target)].into_iter().enumerate() {
        let failing = format!("error-pwrite={error}");
        let arguments = ["--filter=error", "memory", "8M", &failing, "error-pwrite-rate=100%"];
        let (_server, uri) = nbdkit(&place, &at.to_string(), &arguments);
        let target = open(&uri, MIB, Existing::Refuse).await.unwrap();
        let failed = target.write(0, Bytes::from_static(&[1; 4096])).await.unwrap_err();
        assert_eq!(failed.kind(), kind, "{failed}");
    }
    for name in ["/nowhere/a.raw", "/nowhere/a.qcow2"] {
        assert_eq!(open(name, MIB, Existing::Refuse).await.unwrap_err().kind(), ErrorKind::Target);
    }
    let gone = format!("nbd+unix:///?socket={}", text(&place.path("none")));
    assert_eq!(open(&gone, MIB, Existing::Refuse).await.unwrap_err().kind(), ErrorKind::Transport);
}

/// Undoes a mount or a loop device.
struct Undo(&'static str, Vec<String>);

impl Drop for Undo {
    fn drop(&mut self) {
        let _ = Command::new(self.0).args(&self.1).status();
    }
}

fn small_file_system(place: &Place) -> Option<Undo> {
    let folder = place.path("small");
    std::fs::create_dir(&folder).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "none", text(&folder)]).status();
    mounted.ok()?.success().then(|| Undo("umount", vec!["--lazy".into(), text(&folder).to_owned()]))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_space_is_told_as_such() {
    let place = Place::new();
    let Some(_mounted) = small_file_system(&place) else {
        eprintln!("SKIPPED: mounting needs root");
        return;
    };
    for name in ["small/a.raw", "small/a.qcow2"] {
        let target = open(text(&place.path(name)), 8 * MIB, Existing::Refuse).await.unwrap();
        let mut failed = None;
        for at in 0..8 {
            failed = failed.or(target.write(at * MIB, Bytes::from(vec![1; 1 << 20])).await.err());
        }
        let failed = failed.expect("eight times more than there is room for");
        assert_eq!(failed.kind(), ErrorKind::TargetFull, "{name}: {failed}");
        drop(target);
        // What ended may still hold the file for a moment.
        while std::fs::read_dir(place.path("small")).unwrap().count() > 0 {
            tokio::task::yield_now().await;
        }
    }
}

fn loop_device(file: &Path) -> Option<(String, Undo)> {
    let output = Command::new("losetup").args(["-f", "--show", text(file)]).output().ok()?;
    let device = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    output.status.success().then(|| (device.clone(), Undo("losetup", vec!["-d".into(), device])))
}

/// A mounted file is no place to restore to, and takes no lock that would tell.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_behind_a_loop_device_is_in_use() {
    let place = Place::new();
    let file = place.path("disk.raw");
    std::fs::write(&file, vec![5; 1 << 20]).unwrap();
    let Some((_, undo)) = loop_device(&file) else {
        eprintln!("SKIPPED: loop devices need root");
        return;
    };
    for existing in [Existing::Replace, Existing::Keep] {
        let refused = open(text(&file), MIB, existing).await.unwrap_err();
        assert!(refused.kind() == ErrorKind::Busy && refused.remedy().unwrap().contains("losetup"), "{refused}");
    }
    assert!(std::fs::read(&file).unwrap() == vec![5; 1 << 20], "nothing was written");
    drop(undo);
    open(text(&file), MIB, Existing::Replace).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_device_is_written_and_read() {
    let place = Place::new();
    let size = 8 * MIB;
    let file = place.raw("disk", size);
    qemu_io(&file, "raw", &["write -P 9 0 8M"]);
    let Some((device, _undo)) = loop_device(&file) else {
        eprintln!("SKIPPED: loop devices need root");
        return;
    };
    let target = open(&device, size, Existing::Refuse).await.unwrap();
    let want = restore(&target, size).await.unwrap();
    // Exclusive: a second writer and a reader that wants one moment both learn of it.
    assert_eq!(open(&device, size, Existing::Refuse).await.unwrap_err().kind(), ErrorKind::Busy);
    target.finish().await.unwrap();
    let mut store = Store::default();
    store.backup(&device, mover::TrackingWish::Auto).await.unwrap();
    assert!(store.bytes == want);
    let error = open(&device, size + 512, Existing::Refuse).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    // A header that the guest may have written is not followed.
    let inner = place.qcow2("inner", MIB);
    std::fs::write(&device, std::fs::read(&inner).unwrap()).unwrap();
    store.backup(&device, mover::TrackingWish::Auto).await.unwrap();
    assert!(store.bytes == std::fs::read(&device).unwrap(), "the parent says that it is raw");
    let mut nothing_known = Store::default();
    let error = nothing_known.backup(&device, mover::TrackingWish::Auto).await.err().unwrap();
    assert!(error.remedy().unwrap().contains("format=raw"), "{error}");
    nothing_known.backup(&format!("{device}?format=raw"), mover::TrackingWish::Auto).await.unwrap();
}

/// As `qemu-img convert` makes it, and no larger: what a new image does not hold reads as zeros without a word of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_thin_image_is_as_small_as_qemu_makes_it() {
    let place = Place::new();
    let size = 100 << 30;
    let (path, raw, peer) = (place.path("a.qcow2"), place.raw("a.raw", size), place.path("peer.qcow2"));
    qemu_io(&raw, "raw", &["write -P 5 900M 200k"]);
    let target = open(text(&path), size, Existing::Refuse).await.unwrap();
    target.zero(Extent::new(0, 900 * MIB)).await.unwrap();
    target.write(900 * MIB, Bytes::from(vec![5; 200 << 10])).await.unwrap();
    target.zero(Extent::from(901 * MIB..size)).await.unwrap();
    target.finish().await.unwrap();
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", text(&raw), text(&peer)]);
    let on_disk = |path: &Path| std::fs::metadata(path).unwrap().blocks() * 512;
    assert!(on_disk(&path) * 10 <= on_disk(&peer) * 12, "{} and QEMU's {}", on_disk(&path), on_disk(&peer));
    run("qemu-img", &["compare", text(&path), text(&raw)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_image_stays_where_and_whose_it_was() {
    for name in ["a.qcow2", "a.raw"] {
        let place = Place::new();
        let format = name.split_once('.').unwrap().1;
        let (real, link) = (place.path(&format!("real.{format}")), place.path(name));
        run("qemu-img", &["create", "-q", "-f", format, text(&real), "1M"]);
        let root = std::os::unix::fs::chown(&real, Some(64055), Some(64056)).is_ok();
        std::fs::set_permissions(&real, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let target = open(text(&link), MIB, Existing::Replace).await.unwrap();
        target.write(0, Bytes::from(vec![3; 1 << 20])).await.unwrap();
        target.finish().await.unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink(), "{name}");
        assert!(content(&real, format) == vec![3; 1 << 20], "{name}");
        let metadata = std::fs::metadata(&real).unwrap();
        assert_eq!(metadata.mode() & 0o777, 0o640, "{name}");
        if root {
            assert_eq!((metadata.uid(), metadata.gid()), (64055, 64056), "{name}");
        } else {
            println!("SKIPPED: giving files away needs root");
        }
        // A link that leads nowhere is told as such, and nothing is made.
        std::fs::remove_file(&real).unwrap();
        for existing in [Existing::Refuse, Existing::Replace, Existing::Keep] {
            let error = open(text(&link), MIB, existing).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.message().contains("symbolic link") && error.message().contains("real."), "{error}");
        }
        assert_eq!(entries(&place), 1);
    }
}

/// What is in a file never decides what it is, and an update writes nothing that the header names.
#[tokio::test(flavor = "multi_thread")]
async fn content_never_decides_what_a_target_is() {
    let (place, other) = (Place::new(), Place::new());
    let header = std::fs::read(place.qcow2("header.qcow2", MIB)).unwrap();
    // By its name a raw disk, whatever the guest wrote.
    let raw = place.raw("a.raw", 2 * MIB);
    std::fs::write(place.path("b.img"), &header).unwrap();
    qemu_io(&raw, "raw", &["write -P 1 0 2M"]);
    std::os::unix::fs::FileExt::write_all_at(&std::fs::File::options().write(true).open(&raw).unwrap(), &header, 0)
        .unwrap();
    let target = open(text(&raw), 2 * MIB, Existing::Keep).await.unwrap();
    target.write(0, Bytes::from(vec![6; 4096])).await.unwrap();
    target.finish().await.unwrap();
    assert_eq!(std::fs::read(&raw).unwrap()[..4096], [6; 4096]);
    // A name that says too little: both ways out are told.
    let loosely = text(&place.path("b.img")).to_owned();
    for existing in [Existing::Keep, Existing::Replace] {
        let error = open(&loosely, MIB, existing).await.unwrap_err();
        let remedy = error.remedy().unwrap().to_owned();
        assert!(remedy.contains("?format=raw") && remedy.contains("?format=qcow2"), "{error}");
    }
    open(&format!("{loosely}?format=qcow2"), MIB, Existing::Keep).await.unwrap().finish().await.unwrap();
    // By its name an image, and none.
    std::fs::write(place.path("c.qcow2"), vec![1; 1 << 20]).unwrap();
    let error = open(text(&place.path("c.qcow2")), MIB, Existing::Keep).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Usage && error.message().contains("not a qcow2 image"), "{error}");
    // An image whose data or base lies elsewhere.
    let elsewhere = other.raw("secret.raw", MIB);
    let option = format!("data_file={},data_file_raw=on", text(&elsewhere));
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &option, text(&place.path("d.qcow2")), "1M"]);
    qemu_io(&elsewhere, "raw", &["write -P 9 0 1M"]);
    let before = std::fs::read(&elsewhere).unwrap();
    let based = place.path("e.qcow2");
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", text(&elsewhere), "-F", "raw", text(&based)]);
    for name in ["d.qcow2", "e.qcow2"] {
        let error = open(text(&place.path(name)), MIB, Existing::Keep).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Usage && error.message().contains("secret.raw"), "{name}: {error}");
    }
    // Beside it they are parts of it.
    std::fs::copy(&elsewhere, place.path("base.raw")).unwrap();
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", text(&place.path("f.qcow2"))]);
    let target = open(text(&place.path("f.qcow2")), MIB, Existing::Keep).await.unwrap();
    target.write(0, Bytes::from(vec![4; 4096])).await.unwrap();
    target.finish().await.unwrap();
    // A replaced one names nothing any more.
    let target = open(text(&place.path("d.qcow2")), MIB, Existing::Replace).await.unwrap();
    target.write(0, Bytes::from(vec![4; 4096])).await.unwrap();
    target.finish().await.unwrap();
    assert!(std::fs::read(&elsewhere).unwrap() == before && std::fs::read(place.path("base.raw")).unwrap() == before);
}

/// A disk of an odd size on a server that takes whole blocks.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_block_of_an_export_is_filled_up() {
    let place = Place::new();
    let (size, room) = (1_000_001, 1_003_520);
    let file = place.raw("t.raw", room);
    qemu_io(&file, "raw", &["write -P 9 0 1003520"]);
    let policy =
        ["--filter=blocksize-policy", "file", text(&file), "blocksize-minimum=4096", "blocksize-error-policy=error"];
    let (_server, uri) = nbdkit(&place, "s", &policy);
    for zero in [false, true] {
        let target = open(&uri, size, Existing::Refuse).await.unwrap();
        let last = Extent::from(15 * GRID..size);
        match zero {
            false => target.write(last.offset, Bytes::from(vec![3; last.length as usize])).await.unwrap(),
            true => target.zero(last).await.unwrap(),
        }
        let read = target.read(last).await.unwrap();
        assert!(read.len() as u64 == last.length && read.iter().all(|byte| *byte == if zero { 0 } else { 3 }));
        target.finish().await.unwrap();
        assert!(std::fs::read(&file).unwrap()[size as usize..].iter().all(|byte| *byte == 9), "what follows stays");
    }
}

/// exFAT has no links, and through FUSE no way to rename without replacing.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_without_links_is_restored_to() {
    let place = Place::new();
    let (disk, folder) = (place.raw("exfat", 64 * MIB), place.path("mounted"));
    std::fs::create_dir(&folder).unwrap();
    let tool = |program: &str, arguments: &[&str]| {
        Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
    };
    let made = tool("mkfs.exfat", &[text(&disk)]);
    let device = loop_device(&disk).filter(|(device, _)| made && tool("mount.exfat-fuse", &[device, text(&folder)]));
    let Some((_, _device)) = device else {
        println!("SKIPPED: exfat-fuse and exfatprogs are not here, or loop devices and FUSE are not");
        return;
    };
    let _mounted = Undo("umount", vec!["--lazy".into(), text(&folder).to_owned()]);
    assert!(std::fs::hard_link(place.path("exfat"), folder.join("link")).is_err());
    for (name, format) in [("a.raw", "raw"), ("a.qcow2", "qcow2")] {
        let path = folder.join(name);
        let target = open(text(&path), 4 * MIB, Existing::Refuse).await.unwrap();
        let want = restore(&target, 4 * MIB).await.unwrap();
        target.finish().await.unwrap();
        assert!(content(&path, format) == want, "{name}");
        let target = open(text(&folder.join("b.raw")), MIB, Existing::Refuse).await.unwrap();
        std::fs::write(folder.join("b.raw"), b"somebody's").unwrap();
        assert_eq!(target.finish().await.unwrap_err().kind(), ErrorKind::Usage);
        assert_eq!(std::fs::read(folder.join("b.raw")).unwrap(), b"somebody's");
        std::fs::remove_file(folder.join("b.raw")).unwrap();
    }
}
