//! Killed at every point of the T4 sequence: the next backup is right, by a proven bitmap or by reading everything.

use crate::tools::*;
use mover::{ChangeTracking, CheckpointId, Outcome, Source, TrackingWish};
use rustix::process::{Pid, Signal};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// Run again as a process of its own: a backup of `WINDLASS_TEST_IMAGE` that says when it has committed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "only as a child of the tests below"]
async fn child() {
    let Ok(image) = std::env::var("WINDLASS_TEST_IMAGE") else { return };
    let committed = std::env::var("WINDLASS_TEST_COMMITTED").unwrap();
    let committed: BTreeSet<CheckpointId> = committed.split_terminator(',').map(|it| it.parse().unwrap()).collect();
    let session = open(&image, TrackingWish::Auto, &committed).await.unwrap();
    println!("\nwindlass opened");
    let (made, _, _) = Store::default().read(&session, TrackingWish::Auto).await.unwrap();
    println!("\nwindlass committed {}", made.changed.checkpoint.unwrap().0);
    session.finish(Outcome::Committed).await.unwrap();
    println!("\nwindlass finished");
}

/// Starts [`child`] and kills it `after` some time or else when it has said `enough`; gives what it said. Everything it
/// started is over then: all of it inherits descriptor 9, so its output ends with the last of them.
fn killed(image: &Path, committed: &BTreeSet<CheckpointId>, after: Option<Duration>, enough: &str) -> String {
    let committed: String = committed.iter().map(|it| format!("{it},")).collect();
    let child = Command::new("sh")
        .args(["-c", "exec \"$0\" \"$@\" 9>&1"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "kill::child", "--ignored", "--nocapture"])
        .env("WINDLASS_TEST_IMAGE", image)
        .env("WINDLASS_TEST_COMMITTED", committed)
        .process_group(0)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut running = Running(child.unwrap());
    let group = Pid::from_child(&running.0);
    // The whole group, as Ctrl-C or a closed terminal would: what may not be interrupted has to have left it.
    let kill = || rustix::process::kill_process_group(group, Signal::KILL).unwrap();
    let output = BufReader::new(running.0.stdout.take().unwrap());
    let (say, lines) = mpsc::channel();
    std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| say.send(line)));
    if let Some(after) = after {
        // The delay is the point that is tried, nothing is synchronised by it.
        std::thread::sleep(after);
        kill();
    }
    let mut said = String::new();
    loop {
        match lines.recv_timeout(Duration::from_secs(60)) {
            Ok(line) => {
                said.push_str(&line);
                if after.is_none() && line.contains(enough) {
                    kill();
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return said,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("a process survived"),
        }
    }
}

/// Takes over what a killed child committed: the image did not change meanwhile.
fn take_over(store: &mut Store, image: &Path, output: &str) {
    let Some(rest) = output.split("windlass committed ").nth(1) else { return };
    let checkpoint: CheckpointId = rest[..32].parse().unwrap();
    store.committed.insert(checkpoint);
    store.bytes = content(image, "qcow2");
    store.parent.as_mut().unwrap().tracking.checkpoint = Some(checkpoint);
}

async fn right(store: &mut Store, image: &Path, what: &str) -> ChangeTracking {
    let made = store.backup(text(image), TrackingWish::Auto).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(store.bytes == content(image, "qcow2"), "{what}: wrong bytes by {:?}", made.changed.mode);
    assert_eq!(bitmaps(image).len(), SET, "{what}: bitmaps pile up");
    made.changed.mode
}

#[tokio::test(flavor = "multi_thread")]
async fn our_process_is_killed() {
    let place = Place::new();
    let image = place.qcow2("killed.qcow2", 8 * MIB);
    let mut store = Store::default();
    store.backup(text(&image), TrackingWish::Auto).await.unwrap();
    let mut by_bitmap = 0;
    let points = ["windlass opened", "windlass committed", "windlass finished"].map(|point| (None, point));
    let delays = (0..40).map(|step| (Some(Duration::from_millis(step * 4)), ""));
    for (round, (after, point)) in points.into_iter().chain(delays).enumerate() {
        qemu_io(&image, "qcow2", &[&format!("write -P {} {}k 64k", round + 1, round * 128)]);
        let output = killed(&image, &store.committed, after, point);
        take_over(&mut store, &image, &output);
        qemu_io(&image, "qcow2", &[&format!("write -P {} {}k 4k", round + 2, 4096 + round * 64)]);
        let mode = right(&mut store, &image, &format!("{after:?} {point}")).await;
        by_bitmap += usize::from(mode == ChangeTracking::Bitmap);
        assert!(after.is_some() || mode == ChangeTracking::Bitmap, "{point}: the proof was kept");
    }
    // qemu-img is never interrupted by our end, so the proof holds wherever we were killed.
    assert_eq!(by_bitmap, 43, "tracking was lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_img_is_killed_at_every_write() {
    if Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).status().map_or(true, |it| !it.success()) {
        eprintln!("SKIPPED: strace cannot trace here");
        return;
    }
    let mut lost = 0;
    for what in ["--add", "--remove"] {
        let mut killed = 0;
        for point in 1..=10 {
            let place = Place::new();
            let image = place.qcow2("a.qcow2", 4 * MIB);
            let mut store = Store::default();
            store.backup(text(&image), TrackingWish::Auto).await.unwrap();
            let checkpoint = store.parent.as_ref().unwrap().tracking.checkpoint.unwrap();
            let prefix: String = repository().0[..4].iter().map(|byte| format!("{byte:02x}")).collect();
            let next = format!("windlass-{prefix}-{}-{checkpoint}", "cd".repeat(16));
            if what == "--remove" {
                run("qemu-img", &["bitmap", "--add", "-g", "64k", text(&image), &next]);
            }
            qemu_io(&image, "qcow2", &["write -P 1 1M 64k"]);
            let inject = format!("inject=pwrite64,pwritev,fdatasync:signal=KILL:when={point}");
            let status = Command::new("strace")
                .args(["-f", "-qq", "-o", "/dev/null", "-e", &inject, "qemu-img", "bitmap", what])
                .args(if what == "--add" { &["-g", "64k"][..] } else { &[] })
                .args([text(&image), &next])
                .stderr(Stdio::null())
                .status()
                .unwrap();
            qemu_io(&image, "qcow2", &["write -P 2 2M 64k"]);
            let mode = right(&mut store, &image, &format!("{what} killed at write {point}")).await;
            lost += usize::from(mode != ChangeTracking::Bitmap);
            killed += usize::from(!status.success());
        }
        // strace counts for each thread, and QEMU writes from several: which point is tried is a matter of luck.
        assert!(killed >= 3, "{what} was hardly ever killed");
    }
    println!("tracking was lost at {lost} points");
}
