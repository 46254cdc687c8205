//! What must not harm the guest, and what must not become a wrong point.

use super::{Guest, SIZE, backup};
use serde_json::json;
use std::os::unix::net::{UnixListener, UnixStream};
use windlass_tests::program::Bench;
use windlass_tests::qemu::Qemu;

/// Scratch space is full: the guest's writes succeed, the backup says why it failed, and the next one is right.
#[test]
fn full_scratch_costs_the_guest_nothing() {
    let mut guest = Guest::new();
    guest.write("vda", 1, 0, 8 << 20);
    guest.backed_up(&[]);
    guest.write("vda", 2, 0, 8 << 20);
    let small = guest.bench.small_file_system(1);
    let child = guest.slow_backup(&["--scratch", small.path.to_str().unwrap()]);
    for at in 2..8 {
        guest.write("vda", 3, at << 20, 1 << 20);
    }
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("snapshot was given up") && said.contains("--scratch"), "{said}");
    assert_eq!(guest.qemu.traces(), [""; 0]);
    guest.backed_up(&["--change-tracking", "bitmap"]);
    guest.expect(&guest.disks);
}

/// Somebody else's NBD server runs in this QEMU, and somebody else's bitmap: both are left alone.
#[test]
fn other_products_are_left_alone() {
    let mut guest = Guest::new();
    let theirs = json!({"node": "node0", "name": "backup-of-another-product", "granularity": 65536});
    guest.qemu.ask("block-dirty-bitmap-add", theirs);
    guest.write("vda", 1, 0, 1 << 20);
    guest.backed_up(&[]);
    assert!(guest.qemu.bitmaps("node0").iter().any(|it| it == "backup-of-another-product"));
    let path = guest.bench.path("theirs").to_str().unwrap().to_owned();
    guest.qemu.ask("nbd-server-start", json!({"addr": {"type": "unix", "data": {"path": path}}}));
    let run = guest.backup(&[]);
    assert_eq!(run.code, 11, "{}", run.stderr);
    assert!(run.stderr.contains("NBD server of somebody else"), "{}", run.stderr);
    assert_eq!(guest.qemu.traces(), [""; 0]);
    UnixStream::connect(path).expect("their server still runs");
}

/// A bitmap that somebody disabled for a while, and one that was cleared: everything is read.
#[test]
fn tracking_that_looked_away_is_not_believed() {
    let mut guest = Guest::new();
    guest.write("vda", 1, 0, 4 << 20);
    guest.backed_up(&[]);
    let name = |guest: &Guest| {
        let names = guest.qemu.bitmaps("node0");
        names.into_iter().find(|it| !it.contains("-twin-") && !it.contains("-end-")).unwrap()
    };
    let bitmap = json!({"node": "node0", "name": name(&guest)});
    guest.qemu.ask("block-dirty-bitmap-disable", bitmap.clone());
    guest.write("vda", 2, 1 << 20, 1 << 20);
    guest.qemu.ask("block-dirty-bitmap-enable", bitmap);
    let run = guest.backup(&[]);
    assert_eq!(run.code, 4, "{}", run.stdout);
    assert!(run.stdout.contains("twin differ"), "{}", run.stdout);
    guest.expect(&guest.disks);
    guest.write("vda", 3, 2 << 20, 1 << 20);
    guest.qemu.ask("block-dirty-bitmap-clear", json!({"node": "node0", "name": name(&guest)}));
    let run = guest.backup(&[]);
    assert_eq!(run.code, 4, "{}", run.stdout);
    assert!(run.stdout.contains("lacks the mark"), "{}", run.stdout);
    guest.expect(&guest.disks);
    guest.backed_up(&["--change-tracking", "bitmap"]);
}

/// Smaller and larger again while it runs: the witness tells.
#[test]
fn a_disk_that_shrank_and_grew_is_read_whole() {
    let mut guest = Guest::new();
    guest.write("vda", 1, 60 << 20, 4 << 20);
    guest.backed_up(&[]);
    for size in [SIZE / 2, SIZE] {
        guest.qemu.ask("block_resize", json!({"node-name": "node0", "size": size}));
    }
    guest.disks.get_mut("vda").unwrap()[SIZE as usize / 2..].fill(0);
    let run = guest.backup(&[]);
    assert!(run.stdout.contains("smaller and larger"), "{} {}", run.stdout, run.stderr);
    guest.expect(&guest.disks);
}

/// The view is taken away in the middle, by somebody who repairs things by hand.
#[test]
fn a_snapshot_that_is_taken_away_is_noticed() {
    let mut guest = Guest::new();
    guest.write("vda", 1, 0, 8 << 20);
    let child = guest.slow_backup(&[]);
    for export in guest.qemu.ask("query-block-exports", json!({})).as_array().unwrap() {
        guest.qemu.ask("block-export-del", json!({"id": export["id"], "mode": "hard"}));
    }
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("closed the snapshot"), "{said}");
    assert_eq!(guest.qemu.traces(), [""; 0]);
    guest.backed_up(&[]);
    guest.expect(&guest.disks);
}

#[test]
fn sockets_that_are_no_qemu() {
    let bench = Bench::new();
    let run = |socket: &str| backup(&bench, &format!("qmp+unix://{}", bench.path(socket).display()), &[]);
    let missing = run("missing");
    assert_eq!(missing.code, 10, "{}", missing.stderr);
    assert!(missing.stderr.contains("check that the machine runs"), "{}", missing.stderr);
    let _silent = UnixListener::bind(bench.path("silent")).unwrap();
    let silent = run("silent");
    assert_eq!(silent.code, 11, "{}", silent.stderr);
    let talking = UnixListener::bind(bench.path("talking")).unwrap();
    let talker = std::thread::spawn(move || {
        let (mut client, _) = talking.accept().unwrap();
        std::io::Write::write_all(&mut client, b"SSH-2.0-OpenSSH\r\n").unwrap();
    });
    let run = run("talking");
    assert_eq!(run.code, 2, "{}", run.stderr);
    assert!(run.stderr.contains("not the QMP socket"), "{}", run.stderr);
    talker.join().unwrap();
    let disk = bench.run(&["backup", "--machine", "m", "--disk", "a=qmp+unix:///x", "-r", "REPO"]);
    assert_eq!(disk.code, 2, "{}", disk.stderr);
}

/// A machine without any disk.
#[test]
fn a_machine_without_disks() {
    let bench = Bench::new();
    let qemu = Qemu::start(&bench, &[], &[]);
    let run = backup(&bench, &qemu.address(), &[]);
    assert_eq!(run.code, 2, "{}", run.stderr);
}
