//! A real guest with a database under load: each point has exactly the rows that were committed when the guest was frozen.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use windlass_tests::draw::Draw;
use windlass_tests::guest::{Guest, Task, Told, images};
use windlass_tests::program::Bench;
use windlass_tests::qemu::Relay;

/// The guest as the moment of a snapshot found it.
#[derive(Debug, Clone, Copy)]
struct Moment {
    /// The last row that it had told to be committed.
    committed: u64,
    /// The last row that it had told to be begun: the same, or one more.
    begun: u64,
}

/// A point, and what it must hold.
struct Point {
    id: String,
    moment: Moment,
}

/// Rows begun after the thaw must not be there, rows committed before the freeze must, in 21 points of which three are restored
/// and booted.
#[test]
fn points_have_exactly_the_rows_committed_before_the_freeze() {
    let bench = Bench::new();
    let original = || {
        ["system", "data"].map(|name| {
            let (from, to) = (images().join(format!("{name}.qcow2")), bench.path(&format!("{name}.qcow2")));
            fs::copy(from, &to).unwrap();
            to
        })
    };
    let guest = Guest::start(&bench, Task::Write, original, |told| told.committed >= ROWS_BETWEEN);
    let points = backups(&bench, &guest);
    drop(guest);
    let seed = std::env::var("WINDLASS_GUEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from_le_bytes(mover::World::system().random_bytes()) >> 16);
    println!("again: WINDLASS_GUEST_SEED={seed}");
    let mut draw = Draw::new(seed);
    let mut left: Vec<&Point> = points.iter().collect();
    for _ in 0..RESTORED {
        let point = left.swap_remove(draw.below(left.len()));
        expect(&bench, point);
    }
}

/// A full backup and increments, each of which must rely on bitmaps.
fn backups(bench: &Bench, guest: &Guest) -> Vec<Point> {
    let mut points: Vec<Point> = Vec::new();
    let mut full_read = 0;
    for round in 0..=INCREMENTS {
        let wanted = points.last().map_or(0, |last| last.moment.begun) + ROWS_BETWEEN;
        assert!(guest.waits(ROWS_TIMEOUT, |told| told.committed >= wanted), "{:?}", guest.told.lock().unwrap());
        let (made, moment) = backup(bench, guest, if round == 0 { "auto" } else { "bitmap" });
        let disks = made["disks"].as_array().unwrap();
        let sum = |field: &str| disks.iter().map(|disk| disk[field].as_u64().unwrap()).sum::<u64>();
        println!(
            "{round}: freeze {} ms, pause {} ms, all {} ms, read {} KiB, changed {} KiB, {moment:?}",
            made["freeze_ms"],
            made["pause_ms"],
            made["duration_ms"],
            sum("bytes_read") >> 10,
            sum("bytes_changed") >> 10,
        );
        assert_eq!((disks.len(), &made["consistency"]), (2, &Value::from("filesystem")), "{made}");
        if round == 0 {
            full_read = sum("bytes_read");
        } else {
            assert!(disks.iter().all(|disk| disk["change_tracking"] == "bitmap"), "{made}");
            assert!(sum("bytes_read") < full_read / 2, "not an increment: {made}");
        }
        points.push(Point { id: made["point"].as_str().unwrap().to_owned(), moment });
        assert_eq!((guest.qemu.traces().len(), guest.qemu.state().as_str()), (0, "running"));
    }
    points
}

/// One backup: its summary, and what the guest had told when all of its processors stood still.
fn backup(bench: &Bench, guest: &Guest, tracking: &str) -> (Value, Moment) {
    for attempt in 1..=FREEZE_ATTEMPTS {
        let moment = Arc::new(Mutex::new(None));
        let (found, told) = (moment.clone(), guest.told.clone());
        // The first `cont` ends the time in which the snapshot is made: the guest is frozen, and nothing more comes from it.
        let relay = Relay::start(
            bench.path("relay"),
            &guest.qemu.socket,
            Arc::new(move |_, text: &str| {
                if text.contains("\"cont\"") {
                    found.lock().unwrap().get_or_insert_with(|| {
                        let mut told = told.lock().unwrap();
                        told.take_in();
                        Moment { committed: told.committed, begun: told.begun }
                    });
                }
                true
            }),
        );
        let before = guest.told.lock().unwrap().committed;
        let source = guest.address(&relay.path);
        let usual = ["backup", "--machine", "web", "--quiesce", "require", "-r", "REPO", &source];
        let run = bench.run(&[&usual[..], &["--change-tracking", tracking]].concat());
        // A guest without KVM on a busy machine can take longer than a freeze may. Then there is no point.
        if run.code == NOT_QUIESCED {
            println!("attempt {attempt}: {}", run.stderr.trim());
            continue;
        }
        assert_eq!(run.code, 0, "{} {}", run.stderr, run.stdout);
        let moment = moment.lock().unwrap().expect("the machine was stopped and went on");
        assert!(moment.committed >= before, "{moment:?} {before}");
        return (serde_json::from_str(run.stdout.lines().last().unwrap()).unwrap(), moment);
    }
    panic!("the guest was not frozen in {FREEZE_ATTEMPTS} attempts");
}

/// Restores the point, starts it, and compares its rows.
fn expect(bench: &Bench, point: &Point) {
    let restored = ["system", "data"].map(|name| restore(bench, &point.id, name));
    let overlays = || ["system", "data"].map(|name| overlay(bench, name));
    let ended = |told: &Told| told.lines.iter().any(|line| line == "END");
    let guest = Guest::start(bench, Task::Read, overlays, ended);
    let lines = guest.told.lock().unwrap().lines.clone();
    drop(guest);
    println!("point {} of {:?}: {lines:?}", point.id, point.moment);
    assert_eq!(lines[1..], ["WHOLE", "END"], "{lines:?}");
    let numbers: Vec<u64> = lines[0].split(' ').skip(1).map(|it| it.parse().unwrap()).collect();
    let [count, first, last, wrong, total] = numbers[..] else { panic!("{lines:?}") };
    // No gap, no row twice, and each transaction as a whole.
    assert_eq!((count, first, wrong, total), (last, 1, 0, last), "{lines:?}");
    assert!(last == point.moment.committed || last == point.moment.begun, "{last} {:?}", point.moment);
    restored.iter().for_each(|path| fs::remove_file(path).unwrap());
}

/// Restores a disk, whose file system must be as a freeze leaves it: complete without its journal.
fn restore(bench: &Bench, point: &str, name: &str) -> PathBuf {
    let target = bench.path(&format!("{name}.raw"));
    let to = target.to_str().unwrap();
    let run = bench.run(&["restore", point, "--disk", name, "--to", to, "-r", "REPO"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let checked = Command::new("e2fsck").args(["-f", "-n"]).arg(&target).output().expect("e2fsprogs is installed");
    let said = String::from_utf8_lossy(&checked.stdout);
    assert!(checked.status.success() && !said.contains("recover"), "{name}: {said}");
    target
}

/// An image above the restored disk, so that a second start finds what the first one found.
fn overlay(bench: &Bench, name: &str) -> PathBuf {
    let path = bench.path(&format!("{name}.overlay"));
    let below: &Path = &bench.path(&format!("{name}.raw"));
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(below).arg(&path);
    assert!(command.status().unwrap().success());
    path
}

const INCREMENTS: usize = 20;
const RESTORED: usize = 3;
/// At least so many rows are new in each point.
const ROWS_BETWEEN: u64 = 100;
/// For them. It takes a second on a machine that does nothing else.
const ROWS_TIMEOUT: Duration = Duration::from_secs(120);
const FREEZE_ATTEMPTS: u32 = 6;
/// Exit code of a backup whose guest did not freeze.
const NOT_QUIESCED: i32 = 16;
