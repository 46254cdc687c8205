//! Full and incremental backups of a machine that runs, and what they share with those of its images.

use super::{Guest, SIZE, backup, disk, expect, image, offline, summary};
use std::collections::BTreeMap;
use windlass_tests::program::Bench;
use windlass_tests::qemu::Qemu;

#[test]
fn each_point_is_one_moment_of_all_disks() {
    let mut guest = Guest::new();
    guest.write("vda", 1, 0, 8 << 20);
    guest.write("sda", 2, 1 << 20, 2 << 20);
    let full = guest.backed_up(&[]);
    for name in ["vda", "sda"] {
        assert_eq!(disk(&full, name)["change_tracking"], "full", "{full}");
    }
    assert!(full["pause_ms"].as_u64().unwrap() < 5_000 && full["freeze_ms"] == 0, "{full}");
    guest.expect(&guest.disks);
    for round in 0_u64..4 {
        guest.write("vda", 10 + round as u8, round << 22, 1 << 20);
        guest.write("sda", 20 + round as u8, (round << 20) + 4096, 8192);
        let made = guest.backed_up(&["--change-tracking", "bitmap", "--audit", "0"]);
        assert!(disk(&made, "vda")["bytes_read"].as_u64().unwrap() <= (1 << 20) + (2 << 16), "{made}");
        assert!(disk(&made, "sda")["bytes_read"].as_u64().unwrap() <= 3 << 16, "{made}");
        guest.expect(&guest.disks);
    }
    // One bitmap, its twin and the witness of each disk: nothing piles up.
    assert_eq!((guest.qemu.bitmaps("node0").len(), guest.qemu.bitmaps("node1").len()), (3, 3));
    assert_eq!(guest.qemu.state(), "running");
}

/// What the guest writes while its disks are read belongs to the next point.
#[test]
fn writes_meanwhile_belong_to_the_next_point() {
    let mut guest = Guest::new();
    guest.write("vda", 1, 0, 6 << 20);
    guest.write("sda", 2, 0, 6 << 20);
    let then = guest.disks.clone();
    let child = guest.slow_backup(&[]);
    for at in 0..6 {
        guest.write("vda", 3, at << 20, 1 << 19);
        guest.write("sda", 4, at << 20, 1 << 19);
        guest.write("sda", 5, (20 + at) << 20, 1 << 19);
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let made: serde_json::Value =
        serde_json::from_slice(output.stdout.split(|it| *it == b'\n').rev().nth(1).unwrap()).unwrap();
    assert!(made["scratch_bytes_max"].as_u64().unwrap() > 0, "{made}");
    guest.expect(&then);
    guest.backed_up(&["--change-tracking", "bitmap"]);
    guest.expect(&guest.disks);
}

/// A discard is a change, and moves nothing.
#[test]
fn a_discard_is_a_change_and_no_transfer() {
    let mut guest = Guest::new();
    guest.write("vda", 1, 0, 8 << 20);
    guest.backed_up(&[]);
    guest.qemu.discard("vda", 2 << 20, 4 << 20);
    guest.disks.get_mut("vda").unwrap()[2 << 20..6 << 20].fill(0);
    let made = guest.backed_up(&["--change-tracking", "bitmap", "--audit", "0"]);
    // The last block of the disk always counts as changed.
    assert!(disk(&made, "vda")["bytes_read"].as_u64().unwrap() <= 1 << 16, "{made}");
    assert_eq!(disk(&made, "vda")["bytes_changed"], 4 << 20);
    guest.expect(&guest.disks);
}

/// One chain: shut down, running, shut down again, and restarted in between.
#[test]
fn offline_and_running_machines_continue_one_chain() {
    let bench = Bench::new();
    let path = image(&bench, "a.qcow2", "qcow2");
    let mut disks = BTreeMap::from([("vda", vec![0; SIZE as usize])]);
    let made = bench.run(&["backup", "--machine", "web", "--disk", &offline(&path), "-r", "REPO"]);
    assert_eq!(made.code, 0, "{}", made.stderr);
    for round in 0_u8..3 {
        let qemu = Qemu::with_image(&bench, &path);
        for half in 0_u8..2 {
            let (pattern, offset) = (1 + 2 * round + half, u64::from(round) << 22 | u64::from(half) << 20);
            qemu.write("vda", pattern, offset, 1 << 20);
            disks.get_mut("vda").unwrap()[offset as usize..][..1 << 20].fill(pattern);
            let run = backup(&bench, &qemu.address(), &["--change-tracking", "bitmap"]);
            assert_eq!(run.code, 0, "{round} {half}: {}", run.stderr);
            expect(&bench, &disks);
        }
        qemu.write("vda", 99, 40 << 20, 4096);
        disks.get_mut("vda").unwrap()[40 << 20..][..4096].fill(99);
        qemu.quit();
        let disk = offline(&path);
        let run =
            bench.run(&["backup", "--machine", "web", "--disk", &disk, "--change-tracking", "bitmap", "-r", "REPO"]);
        assert_eq!(run.code, 0, "{round}: {}", run.stderr);
        expect(&bench, &disks);
    }
}

/// Two repositories back up one machine; each has its own bitmaps, and neither touches the other's.
#[test]
fn two_repositories_of_one_machine() {
    let mut guest = Guest::new();
    assert_eq!(guest.bench.run(&["init", "-r", "HERE/second"]).code, 0);
    let source = guest.qemu.address();
    let second = |more: &[&str]| {
        let usual = ["backup", "--machine", "web", "--quiesce", "off", "-r", "HERE/second", &source];
        let run = guest.bench.run(&[&usual[..], more].concat());
        assert_eq!(run.code, 0, "{}", run.stderr);
        summary(&run)
    };
    guest.backed_up(&[]);
    second(&[]);
    for _ in 0..2 {
        guest.qemu.write("vda", 7, 3 << 20, 1 << 20);
        guest.disks.get_mut("vda").unwrap()[3 << 20..4 << 20].fill(7);
        second(&["--change-tracking", "bitmap"]);
        guest.backed_up(&["--change-tracking", "bitmap"]);
        guest.expect(&guest.disks);
    }
    assert_eq!(guest.qemu.bitmaps("node0").len(), 6);
}

/// A fingerprint backup begins no bitmap, and leaves those that are there alone.
#[test]
fn a_fingerprint_backup_writes_nothing() {
    let mut guest = Guest::new();
    guest.backed_up(&["--change-tracking", "fingerprint"]);
    assert_eq!(guest.qemu.bitmaps("node0"), [""; 0]);
    guest.backed_up(&[]);
    let before = guest.qemu.bitmaps("node0");
    guest.write("vda", 9, 1 << 20, 4096);
    let made = guest.backed_up(&["--change-tracking", "fingerprint"]);
    assert_eq!(disk(&made, "vda")["change_tracking"], "fingerprint");
    assert_eq!(guest.qemu.bitmaps("node0"), before);
    guest.expect(&guest.disks);
}
