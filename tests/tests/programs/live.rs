//! Backups of machines that run: real QEMUs without an operating system, whose guests write through the monitor.

mod agents;
mod devices;
mod harm;
mod increments;
mod kills;
mod scratch;

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use windlass_tests::program::{Bench, Run, beside};
use windlass_tests::qemu::Qemu;

/// A running machine and what its disks must hold.
struct Guest {
    bench: Bench,
    qemu: Qemu,
    /// Device and content of each disk.
    disks: BTreeMap<&'static str, Vec<u8>>,
}

/// Size of the disks.
const SIZE: u64 = 64 << 20;

impl Guest {
    /// One with a qcow2 image (vda, node0) and a raw one (sda, node1, in an iothread).
    fn new() -> Self {
        let bench = Bench::new();
        let (image, raw) = (image(&bench, "a.qcow2", "qcow2"), image(&bench, "b.raw", "raw"));
        let disks = [
            (image.as_path(), "qcow2", "virtio-blk-pci,drive=DRIVE,id=vda,serial=first,bootindex=1"),
            (raw.as_path(), "raw", "scsi-hd,drive=DRIVE,id=sda,bus=scsi0.0"),
        ];
        let more = match Qemu::has_sound_iothreads() {
            true => ["-object", "iothread,id=io0", "-device", "virtio-scsi-pci,id=scsi0,iothread=io0"],
            false => ["-name", "without-iothread", "-device", "virtio-scsi-pci,id=scsi0"],
        };
        let qemu = Qemu::start(&bench, &disks, &more);
        let disks = ["vda", "sda"].map(|name| (name, vec![0; SIZE as usize])).into();
        Self { bench, qemu, disks }
    }

    /// The guest writes.
    fn write(&mut self, disk: &'static str, pattern: u8, offset: u64, length: u64) {
        self.qemu.write(disk, pattern, offset, length);
        self.disks.get_mut(disk).unwrap()[offset as usize..][..length as usize].fill(pattern);
    }

    /// Backs it up without asking the guest to freeze.
    fn backup(&self, more: &[&str]) -> Run {
        backup(&self.bench, &self.qemu.address(), more)
    }

    /// The same, which must work; gives the summary.
    fn backed_up(&self, more: &[&str]) -> Value {
        let run = self.backup(more);
        assert!(run.code == 0, "{} {}\n{}", run.code, run.stderr, run.stdout);
        assert_eq!(self.qemu.traces(), [""; 0]);
        summary(&run)
    }

    /// Starts a backup that has read something when this returns, and goes on slowly.
    fn slow_backup(&self, more: &[&str]) -> Child {
        let usual = ["backup", "--machine", "web", "--quiesce", "off", "--rate", "1MiB", "-r"];
        let mut command = Command::new(beside("windlass"));
        command.arg("--json").args(usual).arg(self.bench.path("repo")).arg(self.qemu.address()).args(more);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Read byte by byte, so that nothing of what follows is lost.
        let first = line_of(child.stdout.as_mut().unwrap());
        assert!(first.contains("progress"), "{first}");
        child
    }

    /// Restores every disk of the newest point and compares it.
    fn expect(&self, disks: &BTreeMap<&'static str, Vec<u8>>) {
        expect(&self.bench, disks);
    }
}

/// The next line, and not a byte more.
fn line_of(from: &mut impl Read) -> String {
    let mut line = Vec::new();
    let mut byte = [0; 1];
    while from.read(&mut byte).unwrap() > 0 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

/// An empty image of [`SIZE`].
fn image(bench: &Bench, name: &str, format: &str) -> PathBuf {
    let path = bench.path(name);
    let size = SIZE.to_string();
    let made = Command::new("qemu-img").args(["create", "-q", "-f", format]).arg(&path).arg(size).status().unwrap();
    assert!(made.success());
    path
}

fn backup(bench: &Bench, source: &str, more: &[&str]) -> Run {
    bench.run(&[&["backup", "--machine", "web", "--quiesce", "off", "-r", "REPO", source][..], more].concat())
}

fn summary(run: &Run) -> Value {
    serde_json::from_str(run.stdout.lines().last().unwrap()).unwrap()
}

/// The disk of this name in a summary.
fn disk<'a>(summary: &'a Value, name: &str) -> &'a Value {
    summary["disks"].as_array().unwrap().iter().find(|disk| disk["name"] == name).unwrap()
}

fn expect(bench: &Bench, disks: &BTreeMap<&'static str, Vec<u8>>) {
    for (name, content) in disks {
        let target = bench.path("restored.raw");
        let to = target.to_str().unwrap();
        let run = bench.run(&["restore", "web@latest", "--disk", name, "--to", to, "--overwrite", "-r", "REPO"]);
        assert_eq!(run.code, 0, "{}", run.stderr);
        let restored = fs::read(&target).unwrap();
        let differs = restored.iter().zip(content).position(|(a, b)| a != b);
        assert!(restored.len() == content.len() && differs.is_none(), "{name} differs at {differs:?}");
        fs::remove_file(target).unwrap();
    }
}

fn offline(path: &Path) -> String {
    format!("vda={}", path.display())
}
