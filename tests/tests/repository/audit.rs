//! The audit of change tracking (T8) on a real image, whose bytes are changed behind the bitmap's back.

use serde_json::Value;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use windlass_tests::program::{Bench, Run};

const BLOCK: u64 = 65_536;
/// Of the disk, which is written everywhere. Its last block is marked in every bitmap, and read each time.
const SIZE: u64 = 16 << 20;

fn backup(bench: &Bench, image: &Path, arguments: &[&str]) -> Run {
    bench.run(&[&["backup", "--machine", "web", "-r", "REPO", image.to_str().unwrap()], arguments].concat())
}

fn disk(run: &Run) -> Value {
    let summary: Value = serde_json::from_str(run.stdout.lines().last().unwrap()).unwrap();
    summary["disks"][0].clone()
}

fn qemu(tool: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(tool).args(arguments).output().unwrap_or_else(|error| panic!("{tool}: {error}"));
    assert!(output.status.success(), "{tool} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Changes a byte of the disk by writing into the image's file where QEMU keeps it: no bitmap sees that.
fn change_behind_the_bitmap(image: &Path, offset: u64) {
    let map = qemu("qemu-img", &["map", "--output=json", "-f", "qcow2", image.to_str().unwrap()]);
    let map: Vec<Value> = serde_json::from_slice(&map).unwrap();
    let field = |extent: &Value, name: &str| extent[name].as_u64().unwrap();
    let holds =
        |extent: &&Value| (field(extent, "start")..field(extent, "start") + field(extent, "length")).contains(&offset);
    let extent = map.iter().find(holds).expect("the disk is written everywhere");
    let at = field(extent, "offset") + offset - field(extent, "start");
    let file = fs::OpenOptions::new().read(true).write(true).open(image).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
}

fn assert_restores(bench: &Bench, image: &Path) {
    let target = bench.path("restored.raw");
    let run = bench.run(&["restore", "web@latest", "--to", target.to_str().unwrap(), "-r", "REPO"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    qemu("qemu-img", &["compare", target.to_str().unwrap(), image.to_str().unwrap()]);
    fs::remove_file(target).unwrap();
}

#[test]
fn a_share_in_each_increment_and_a_turn_in_four() {
    let bench = Bench::new();
    let image = bench.qcow2();
    assert_eq!(
        disk(&backup(&bench, &image, &["--audit", "25"]))["bytes_audited"],
        0,
        "a full backup has nothing to audit"
    );
    for number in 1..=8 {
        let run = backup(&bench, &image, &["--audit", "25"]);
        assert_eq!(run.code, 0, "{}", run.stderr);
        let disk = disk(&run);
        let audited = SIZE / 4 - if number % 4 == 0 { BLOCK } else { 0 };
        assert_eq!(
            (&disk["bytes_audited"], &disk["bytes_read"]),
            (&Value::from(audited), &Value::from(BLOCK)),
            "{disk}"
        );
        assert_eq!(disk["audit_position"], number % 4 * (SIZE / 4));
        assert_eq!(disk["audit_turn_completed"], number % 4 == 0);
        assert_eq!(disk["audit_cut_short"], false);
    }
    // What is dirty is read as such and not audited, and without an audit its place is kept.
    qemu("qemu-io", &["-f", "qcow2", "-c", "write -P 7 0 64k", image.to_str().unwrap()]);
    let dirty = disk(&backup(&bench, &image, &["--audit", "25"]));
    assert_eq!((&dirty["bytes_audited"], &dirty["bytes_read"]), (&(SIZE / 4 - BLOCK).into(), &(2 * BLOCK).into()));
    let none = disk(&backup(&bench, &image, &["--audit", "0"]));
    assert_eq!((&none["bytes_audited"], &none["audit_position"]), (&Value::from(0), &Value::Null));
    assert_eq!(disk(&backup(&bench, &image, &["--audit", "25"]))["audit_position"], SIZE / 2);
    let shown = bench.run(&["show", "web@latest", "-r", "REPO"]);
    assert!(shown.stdout.contains(&format!("\"bytes_audited\":{}", SIZE / 4)), "{}", shown.stdout);
    assert_eq!(backup(&bench, &image, &["--audit", "101"]).code, 2);
}

#[test]
fn what_the_bitmap_hid_is_found_within_a_turn() {
    let bench = Bench::new();
    let image = bench.qcow2();
    backup(&bench, &image, &[]);
    let place = SIZE / 4 * 3 + 5 * BLOCK;
    change_behind_the_bitmap(&image, place + 17);
    for _ in 0..3 {
        let run = backup(&bench, &image, &["--audit", "25"]);
        assert_eq!((run.code, &disk(&run)["change_tracking"]), (0, &Value::from("bitmap")), "{}", run.stderr);
    }
    // Forbidden to fall back: no point, and the next one knows as much as before.
    let refused = backup(&bench, &image, &["--audit", "25", "--change-tracking", "bitmap"]);
    assert_eq!(refused.code, 17, "{}{}", refused.stdout, refused.stderr);
    assert!(refused.stderr.contains(&place.to_string()), "{}", refused.stderr);
    let found = backup(&bench, &image, &["--audit", "25"]);
    assert_eq!(found.code, 4, "points that are there lack the change: {}", found.stderr);
    let told = disk(&found);
    assert_eq!(told["change_tracking"], "fingerprint");
    assert!(told["reason"].as_str().unwrap().contains(&place.to_string()), "{told}");
    assert_eq!(told["bytes_changed"], BLOCK);
    assert!(told["bytes_audited"].as_u64().unwrap() > 0 && told["bytes_read"].as_u64().unwrap() >= SIZE - BLOCK);
    assert_restores(&bench, &image);
    let healed = backup(&bench, &image, &["--audit", "100", "--change-tracking", "bitmap"]);
    assert_eq!((healed.code, &disk(&healed)["bytes_audited"]), (0, &Value::from(SIZE - BLOCK)), "{}", healed.stderr);
}

/// Without the option there is an audit too. However little time it gets, it goes on by at least one read of 1 MiB, so
/// on this disk a turn takes sixteen increments at most.
#[test]
fn the_usual_audit_comes_round() {
    let bench = Bench::new();
    let image = bench.qcow2();
    backup(&bench, &image, &[]);
    change_behind_the_bitmap(&image, SIZE - BLOCK - 1);
    let found = (1..=16).find(|_| {
        let disk = disk(&backup(&bench, &image, &[]));
        assert!(disk["bytes_audited"].as_u64().unwrap() > 0, "{disk}");
        disk["change_tracking"] == "fingerprint"
    });
    assert!(found.is_some_and(|number| number > 1), "{found:?}");
    assert_restores(&bench, &image);
}

/// A lie that the witness gives away, which no audit had to find, and a disk that only grew, which is none.
#[test]
fn a_bitmap_that_a_resize_made_lie_is_told_as_a_warning() {
    let bench = Bench::new();
    let image = bench.qcow2();
    let path = image.to_str().unwrap();
    assert_eq!(backup(&bench, &image, &["--audit", "0"]).code, 0);
    qemu("qemu-img", &["resize", "-q", "--shrink", path, "8M"]);
    qemu("qemu-img", &["resize", "-q", path, "16M"]);
    let told = backup(&bench, &image, &["--audit", "0", "-q"]);
    assert_eq!(told.code, 4, "{}{}", told.stdout, told.stderr);
    assert!(
        told.stdout.contains("\"warning\"") && told.stdout.contains("made smaller and larger again"),
        "{}",
        told.stdout
    );
    assert_eq!(disk(&told)["change_tracking"], "fingerprint");
    assert_restores(&bench, &image);
    assert_eq!(backup(&bench, &image, &["--audit", "0"]).code, 0);
    qemu("qemu-img", &["resize", "-q", path, "24M"]);
    let grown = backup(&bench, &image, &["--audit", "0"]);
    assert_eq!(grown.code, 0, "{}{}", grown.stdout, grown.stderr);
    assert!(disk(&grown)["reason"].as_str().unwrap().contains("had 16777216 in the parent"), "{}", grown.stdout);
    assert_restores(&bench, &image);
}
