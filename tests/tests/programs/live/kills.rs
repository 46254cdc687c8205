//! The backup is killed before each of its commands to QEMU: the machine goes on, nothing stays in QEMU, and the next
//! backup is right.

use super::{Guest, SIZE, disk, expect, summary};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering::SeqCst};
use windlass_tests::program::beside;
use windlass_tests::qemu::{Relay, until_some};

/// A backup through a relay that kills it before its `nth` command; with 0 never. Gives the commands there were.
fn killed_at(guest: &Guest, nth: usize) -> usize {
    let (process, count) = (Arc::new(AtomicI32::new(0)), Arc::new(AtomicUsize::new(0)));
    let (victim, counter) = (process.clone(), count.clone());
    let relay = Relay::start(
        guest.bench.path("relay"),
        &guest.qemu.socket,
        Arc::new(move |at, _: &str| {
            counter.fetch_max(at, SeqCst);
            if at == nth {
                let pid = until_some(|| Pid::from_raw(victim.load(SeqCst)));
                kill_process(pid, Signal::KILL).unwrap();
            }
            true
        }),
    );
    let child = started(guest, &format!("qmp+unix://{}", relay.path.display()));
    process.store(child.id().cast_signed(), SeqCst);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.success(), nth == 0, "{nth}: {output:?}");
    count.load(SeqCst)
}

fn started(guest: &Guest, address: &str) -> Child {
    let usual = ["--json", "backup", "--machine", "web", "--quiesce", "off", "-r"];
    let mut command = Command::new(beside("windlass"));
    command.args(usual).arg(guest.bench.path("repo")).arg(address);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Everything is as if there had been no backup.
fn expect_untouched(guest: &Guest, what: &str) {
    until_some(|| (guest.qemu.traces().is_empty() && guest.qemu.state() == "running").then_some(()));
    assert_eq!(guest.qemu.state(), "running", "{what}");
}

#[test]
fn killed_before_every_command() {
    let mut guest = Guest::new();
    guest.write("vda", 1, 0, 4 << 20);
    guest.backed_up(&[]);
    let commands = killed_at(&guest, 0);
    assert!(commands > 30, "{commands} commands");
    for nth in 1..=commands {
        guest.write("vda", nth as u8, (nth as u64 % 32) << 20, 65_536);
        guest.write("sda", nth as u8, (nth as u64 % 32) << 20, 4096);
        killed_at(&guest, nth);
        expect_untouched(&guest, &format!("killed before command {nth}"));
        guest.write("vda", nth as u8, 40 << 20, 65_536);
        if nth % 8 == 0 {
            guest.backed_up(&[]);
            guest.expect(&guest.disks);
        }
    }
    let made = guest.backed_up(&[]);
    assert_eq!(disk(&made, "vda")["change_tracking"], "bitmap", "{made}");
    guest.expect(&guest.disks);
    assert_eq!(guest.qemu.bitmaps("node0").len(), 3, "{:?}", guest.qemu.bitmaps("node0"));
}

/// The watchdog is killed too: the next backup finds what is left.
#[test]
fn killed_together_with_its_watchdog() {
    let mut guest = Guest::new();
    guest.write("vda", 1, 0, 8 << 20);
    let mut child = guest.slow_backup(&[]);
    let children = format!("/proc/{0}/task/{0}/children", child.id());
    let watchdog = std::fs::read_to_string(children).unwrap();
    let pids = watchdog.split_whitespace().map(|pid| pid.parse().unwrap()).chain([child.id().cast_signed()]);
    for pid in pids.collect::<Vec<i32>>() {
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    }
    child.wait().unwrap();
    assert!(!guest.qemu.traces().is_empty(), "nobody was left to take the snapshot out");
    guest.write("vda", 2, 1 << 20, 1 << 20);
    let run = guest.backup(&[]);
    assert_eq!(run.code, 4, "{}", run.stderr);
    assert!(run.stdout.contains("had left its snapshot in QEMU"), "{}", run.stdout);
    assert_eq!(summary(&run)["disks"].as_array().unwrap().len(), 2);
    assert_eq!(guest.qemu.traces(), [""; 0]);
    guest.expect(&guest.disks);
}

/// A second backup of the machine waits, and does not take the first for a leftover.
#[test]
fn two_at_once() {
    let mut guest = Guest::new();
    guest.write("vda", 1, 0, 4 << 20);
    let child = guest.slow_backup(&[]);
    // The same socket is taken; another socket of the same QEMU shows the snapshot of the first.
    let second = guest.backup(&[]);
    assert_eq!(second.code, 11, "{} {}", second.stderr, second.stdout);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    guest.expect(&guest.disks);
}

/// QEMU is killed while its disks are read: a failure with a name, and the next backup reads everything.
#[test]
fn qemu_is_killed() {
    let mut guest = Guest::new();
    guest.write("vda", 1, 0, 8 << 20);
    guest.backed_up(&[]);
    guest.write("vda", 2, 0, 8 << 20);
    let child = guest.slow_backup(&[]);
    let Guest { bench, mut qemu, disks } = guest;
    qemu.process.0.kill().unwrap();
    qemu.process.0.wait().unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("QEMU ended"), "{said}");
    let image = super::offline(&bench.path("a.qcow2"));
    let run = bench.run(&["backup", "--machine", "web", "--disk", &image, "-r", "REPO"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let made = summary(&run);
    assert_eq!(disk(&made, "vda")["change_tracking"], "fingerprint", "{made}");
    assert_eq!(disks["vda"].len() as u64, SIZE);
    expect(&bench, &BTreeMap::from([("vda", disks["vda"].clone())]));
}
