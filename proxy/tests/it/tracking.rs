//! Bitmaps that lie (T3), pairs left by broken runs (T2), and the command that shows them (T9).

use crate::tools::*;
use mover::{ChangeTracking, ErrorKind, Source, TrackingWish};
use proxy::{NamedSource, SourceAddress, TrackedKind, list_tracking, remove_tracking};
use std::path::Path;

fn address(path: &Path) -> SourceAddress {
    text(path).parse().unwrap()
}

async fn auto(store: &mut Store, image: &Path) -> Report {
    let made = store.backup(text(image), TrackingWish::Auto).await.unwrap();
    assert!(store.bytes == content(image, "qcow2"), "a backup is what the disk holds");
    made
}

#[tokio::test(flavor = "multi_thread")]
async fn shrunk_and_grown_again() {
    for regrow in [&["16M"][..], &["--preallocation=metadata", "16M"]] {
        let place = Place::new();
        let base = place.raw("base.raw", 16 * MIB);
        qemu_io(&base, "raw", &["write -P 9 0 16M"]);
        for backing in [&[][..], &["-F", "raw", "-b", "base.raw"]] {
            if !backing.is_empty() && regrow.len() > 1 {
                continue;
            }
            let image = place.path("a.qcow2");
            run("qemu-img", &[&["create", "-q", "-f", "qcow2"], backing, &[text(&image), "16M"]].concat());
            qemu_io(&image, "qcow2", &["write -P 1 0 16M"]);
            let mut store = Store::default();
            auto(&mut store, &image).await;
            run("qemu-img", &["resize", "-q", "--shrink", text(&image), "8M"]);
            run("qemu-img", &[&["resize", "-q"], &regrow[..regrow.len() - 1], &[text(&image), "16M"]].concat());
            qemu_io(&image, "qcow2", &["write -P 5 16320k 64k"]);
            let made = auto(&mut store, &image).await;
            assert_eq!(made.changed.mode, ChangeTracking::Fingerprint, "{regrow:?} {backing:?}");
            assert!(made.changed.reason.contains("witness"), "{}", made.changed.reason);
            // Its bitmaps go, and begin anew.
            auto(&mut store, &image).await;
            assert_eq!(auto(&mut store, &image).await.changed.mode, ChangeTracking::Bitmap);
            run("qemu-img", &["resize", "-q", text(&image), "24M"]);
            let made = auto(&mut store, &image).await;
            assert_eq!(made.changed.mode, ChangeTracking::Fingerprint);
            assert!(made.changed.reason.contains("25165824"), "{}", made.changed.reason);
        }
    }
}

/// One bitmap, its twin, or all of them, treated so that changes are missed: each time it shows.
#[tokio::test(flavor = "multi_thread")]
async fn bitmaps_that_looked_away() {
    let place = Place::new();
    let image = place.qcow2("a.qcow2", 4 * MIB);
    qemu_io(&image, "qcow2", &["write -P 1 0 4M"]);
    let mut store = Store::default();
    auto(&mut store, &image).await;
    let bitmap = |action: &[&str], name: &str| {
        run("qemu-img", &[&["bitmap"], action, &[text(&image), name]].concat());
    };
    for (turn, actions) in
        [[&["--disable"][..], &["--enable"]], [&[], &["--clear"]], [&["--remove"], &["--add"]]].into_iter().enumerate()
    {
        for which in ["", "-twin-", "all"] {
            let all = bitmaps(&image);
            let of = |name: &&String| match which {
                "all" => true,
                "" => !name.contains("-twin-") && !name.contains("-end-"),
                part => name.contains(part),
            };
            let named: Vec<&String> = all.iter().filter(of).collect();
            assert!(!named.is_empty(), "{all:?}");
            let act = |action: &[&str]| named.iter().filter(|_| !action.is_empty()).for_each(|it| bitmap(action, it));
            act(actions[0]);
            qemu_io(&image, "qcow2", &[&format!("write -P {} 1M 64k", 20 + turn)]);
            qemu_io(&image, "qcow2", &[&format!("write -P {} 2M 64k", 30 + which.len())]);
            act(actions[1]);
            let made = auto(&mut store, &image).await;
            assert_eq!(made.changed.mode, ChangeTracking::Fingerprint, "{actions:?} {which}");
            auto(&mut store, &image).await;
            let made = auto(&mut store, &image).await;
            assert_eq!(made.changed.mode, ChangeTracking::Bitmap, "{actions:?} {which}: {}", made.changed.reason);
        }
    }
}

fn backed(place: &Place) -> (std::path::PathBuf, std::path::PathBuf, std::path::PathBuf) {
    let (base, other) = (place.raw("base.raw", 4 * MIB), place.raw("other.raw", 4 * MIB));
    qemu_io(&base, "raw", &["write -P 1 0 4M"]);
    qemu_io(&other, "raw", &["write -P 2 0 4M"]);
    let image = place.path("top.qcow2");
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base.raw", text(&image)]);
    qemu_io(&image, "qcow2", &["write -P 3 0 64k"]);
    (image, base, other)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backing_chain_that_stays_is_no_obstacle() {
    let place = Place::new();
    let (image, _, _) = backed(&place);
    let mut store = Store::default();
    auto(&mut store, &image).await;
    qemu_io(&image, "qcow2", &["write -P 4 1M 64k"]);
    let made = auto(&mut store, &image).await;
    assert_eq!((made.changed.mode, made.bytes_read), (ChangeTracking::Bitmap, 2 * GRID), "{}", made.changed.reason);
}

#[tokio::test(flavor = "multi_thread")]
async fn rebased_unsafely() {
    let place = Place::new();
    let (image, _, _) = backed(&place);
    let mut store = Store::default();
    auto(&mut store, &image).await;
    run("qemu-img", &["rebase", "-u", "-F", "raw", "-b", "other.raw", text(&image)]);
    let made = auto(&mut store, &image).await;
    assert_eq!(made.changed.mode, ChangeTracking::Fingerprint);
    assert!(made.changed.reason.contains("below the image is not what it was"), "{}", made.changed.reason);
    run("qemu-img", &["rebase", "-u", "-b", "", text(&image)]);
    let made = auto(&mut store, &image).await;
    assert_eq!(made.changed.mode, ChangeTracking::Fingerprint);
    assert!(made.changed.reason.contains("0 files below it and had 1"), "{}", made.changed.reason);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_backing_file_was_written() {
    let place = Place::new();
    let (image, base, _) = backed(&place);
    let mut store = Store::default();
    auto(&mut store, &image).await;
    qemu_io(&base, "raw", &["write -P 5 2M 64k"]);
    let made = auto(&mut store, &image).await;
    assert_eq!(made.changed.mode, ChangeTracking::Fingerprint);
    assert!(made.changed.reason.contains("base.raw"), "{}", made.changed.reason);
    // And while it is read.
    let session = open(text(&image), TrackingWish::Auto, &store.committed).await.unwrap();
    session.check().await.unwrap();
    std::fs::write(&base, vec![6; 4 << 20]).unwrap();
    assert_eq!(session.check().await.unwrap_err().kind(), ErrorKind::Source);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_external_data_file_refuses_bitmaps() {
    let place = Place::new();
    let image = place.path("a.qcow2");
    let data = place.path("data");
    let options = format!("data_file={},data_file_raw=on", text(&data));
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options, text(&image), "4M"]);
    qemu_io(&image, "qcow2", &["write -P 1 0 4M"]);
    let mut store = Store::default();
    let made = auto(&mut store, &image).await;
    assert_eq!(made.changed.checkpoint, None, "nothing is begun");
    assert!(bitmaps(&image).is_empty());
    qemu_io(&data, "raw", &["write -P 2 1M 64k"]);
    let made = auto(&mut store, &image).await;
    assert_eq!(made.changed.mode, ChangeTracking::Fingerprint);
    assert!(made.changed.reason.contains("its data is in"), "{}", made.changed.reason);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_ways_to_lose_tracking() {
    let place = Place::new();
    let image = place.qcow2("a.qcow2", 4 * MIB);
    let mut store = Store::default();
    auto(&mut store, &image).await;
    let mut expect = async |what: &str, change: &dyn Fn(&str), reason: &str| {
        let name = changes(&image);
        change(&name);
        let made = auto(&mut store, &image).await;
        assert_eq!(made.changed.mode, ChangeTracking::Fingerprint, "{what}");
        assert!(made.changed.reason.contains(reason), "{what}: {}", made.changed.reason);
        let made = auto(&mut store, &image).await;
        assert_eq!(made.changed.mode, ChangeTracking::Bitmap, "{what} is over: {}", made.changed.reason);
        assert_eq!(bitmaps(&image).len(), SET, "{what}: nothing piles up");
    };
    let bitmap = |arguments: &[&str], name: &str| {
        run("qemu-img", &[&["bitmap"], arguments, &[text(&image), name]].concat());
    };
    expect("removed", &|name| bitmap(&["--remove"], name), "no sound bitmap").await;
    expect("disabled", &|name| bitmap(&["--disable"], name), "no sound bitmap").await;
    let other_granularity = |name: &str| {
        bitmap(&["--remove"], name);
        bitmap(&["--add", "-g", "4k"], name);
    };
    expect("another granularity", &other_granularity, "granularity 4096").await;
    // A machine that was killed: its bitmap was not saved.
    let killed = |_: &str| {
        use std::io::{BufRead, BufReader, Write};
        let mut running = machine(&image, "qcow2");
        writeln!(running.0.stdin.as_mut().unwrap(), "write -P 7 0 64k").unwrap();
        let mut lines = BufReader::new(running.0.stdout.as_mut().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("wrote")));
    };
    expect("killed machine", &killed, "no sound bitmap").await;
}

/// A copy carries its bitmap along, which tells the truth about the copy, but not since the parent's checkpoint.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_copy_put_back() {
    let place = Place::new();
    let image = place.qcow2("a.qcow2", 4 * MIB);
    let mut store = Store::default();
    auto(&mut store, &image).await;
    std::fs::copy(&image, place.path("copy")).unwrap();
    qemu_io(&image, "qcow2", &["write -P 1 1M 64k"]);
    auto(&mut store, &image).await;
    std::fs::rename(place.path("copy"), &image).unwrap();
    qemu_io(&image, "qcow2", &["write -P 2 2M 64k"]);
    let made = auto(&mut store, &image).await;
    assert_eq!(made.changed.mode, ChangeTracking::Fingerprint);
    assert!(made.changed.reason.contains("no sound bitmap of the parent's checkpoint"), "{}", made.changed.reason);
}

/// A conversion takes the bitmaps along, and what a backing file showed that was there for a moment only. No bitmap knows
/// of that, so another file in the image's place is another disk; one that was moved is the same.
#[tokio::test(flavor = "multi_thread")]
async fn another_file_in_its_place() {
    let place = Place::new();
    let image = place.qcow2("a.qcow2", 4 * MIB);
    let other = place.raw("other.raw", 4 * MIB);
    qemu_io(&other, "raw", &["write -P 9 0 4M"]);
    qemu_io(&image, "qcow2", &["write -P 1 0 1M"]);
    let mut store = Store::default();
    auto(&mut store, &image).await;
    run("qemu-img", &["rebase", "-u", "-F", "raw", "-b", "other.raw", text(&image)]);
    let made = place.path("made.qcow2");
    run("qemu-img", &["convert", "--bitmaps", "-O", "qcow2", text(&image), text(&made)]);
    std::fs::rename(&made, &image).unwrap();
    let made = auto(&mut store, &image).await;
    assert_eq!(made.changed.mode, ChangeTracking::Fingerprint);
    assert!(made.changed.reason.contains("another file"), "{}", made.changed.reason);
    let moved = place.path("moved.qcow2");
    std::fs::rename(&image, &moved).unwrap();
    assert_eq!(auto(&mut store, &moved).await.changed.mode, ChangeTracking::Bitmap);
}

/// Two bitmaps of the repository in one image: what a run that broke off leaves (T2).
#[tokio::test(flavor = "multi_thread")]
async fn a_pair_is_settled_first() {
    for was_committed in [false, true] {
        let place = Place::new();
        let image = place.qcow2("a.qcow2", 4 * MIB);
        let mut store = Store::default();
        auto(&mut store, &image).await;
        qemu_io(&image, "qcow2", &["write -P 1 1M 128k"]);
        let session = open(text(&image), TrackingWish::Auto, &store.committed).await.unwrap();
        let (_, bytes, record) = store.read(&session, TrackingWish::Auto).await.unwrap();
        if was_committed {
            store.committed.extend(record.tracking.checkpoint);
            (store.bytes, store.parent) = (bytes, Some(record));
        }
        // Killed before it could tidy up.
        drop(session);
        assert_eq!(bitmaps(&image).len(), SET + 2);
        qemu_io(&image, "qcow2", &["write -P 2 3M 64k"]);
        let made = auto(&mut store, &image).await;
        assert_eq!(made.changed.mode, ChangeTracking::Bitmap, "{}", made.changed.reason);
        assert_eq!(made.bytes_read, if was_committed { GRID } else { 3 * GRID });
        assert_eq!(bitmaps(&image).len(), SET);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bitmaps_of_others_stay() {
    let place = Place::new();
    let image = place.qcow2("a.qcow2", 4 * MIB);
    let foreign = format!("windlass-00112233-{}-{}", "ab".repeat(16), "00".repeat(16));
    run("qemu-img", &["bitmap", "--add", text(&image), "cp0"]);
    run("qemu-img", &["bitmap", "--add", text(&image), &foreign]);
    let mut store = Store::default();
    for _ in 0..3 {
        auto(&mut store, &image).await;
    }
    let names = bitmaps(&image);
    assert_eq!(names.len(), SET + 2, "{names:?}");
    assert!(names.contains(&"cp0".to_owned()) && names.contains(&foreign));
    // A bitmap named in the address proves nothing by itself.
    let named = format!("{}?bitmap=cp0", text(&image));
    let made = store.backup(&named, TrackingWish::Auto).await.unwrap();
    assert_eq!(made.changed.mode, ChangeTracking::Fingerprint);
    assert!(made.changed.reason.contains("cp0"), "{}", made.changed.reason);
}

#[tokio::test(flavor = "multi_thread")]
async fn listed_and_removed() {
    let place = Place::new();
    let image = place.qcow2("a.qcow2", 4 * MIB);
    run("qemu-img", &["snapshot", "-c", "s", text(&image)]);
    run("qemu-img", &["bitmap", "--add", text(&image), "cp0"]);
    assert!(list_tracking(&address(&image), &[]).await.unwrap().is_empty());
    let mut store = Store::default();
    auto(&mut store, &image).await;
    auto(&mut store, &image).await;
    let listed = list_tracking(&address(&image), &[]).await.unwrap();
    let checkpoint = store.parent.as_ref().unwrap().tracking.checkpoint.unwrap();
    let mut kinds: Vec<_> = listed.iter().map(|it| (it.kind, it.recording)).collect();
    kinds.sort_by_key(|(kind, _)| format!("{kind:?}"));
    let [(TrackedKind::Changes { checkpoint: of, base: Some(_) }, true), twin, witness] = kinds[..] else {
        panic!("{listed:?}")
    };
    assert_eq!((of, twin, witness), (checkpoint, (TrackedKind::Twin(checkpoint), true), (TrackedKind::Witness, false)));
    for it in &listed {
        assert_eq!((&it.repository[..], it.granularity, it.consistent), (&repository().0[..4], GRID, true));
    }
    assert_eq!(remove_tracking(&address(&image), Some("cp0"), &[]).await.unwrap_err().kind(), ErrorKind::Usage);
    assert_eq!(remove_tracking(&address(&image), None, &[]).await.unwrap(), listed);
    assert_eq!(bitmaps(&image), ["cp0"]);
    assert!(remove_tracking(&address(&image), None, &[]).await.unwrap().is_empty());
    let raw = place.raw("b.img", MIB);
    assert_eq!(list_tracking(&address(&raw), &[]).await.unwrap_err().kind(), ErrorKind::Usage);
    let _running = machine(&image, "qcow2");
    assert_eq!(list_tracking(&address(&image), &[]).await.unwrap_err().kind(), ErrorKind::Busy);
    let _ = NamedSource::only(address(&raw));
}
