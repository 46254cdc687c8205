//! Every device that a disk can hang on.

use super::{SIZE, backup, disk, expect, image};
use std::collections::BTreeMap;
use windlass_tests::program::Bench;
use windlass_tests::qemu::Qemu;

/// Name, more arguments, the device, the bus that the point must record, and where the guest's requests go in.
const DEVICES: [(&str, &[&str], &str, &str, &str); 8] = [
    ("virtio-blk", &[], "virtio-blk-pci,drive=DRIVE,id=d", "virtio", "/machine/peripheral/d/virtio-backend"),
    (
        "virtio-blk with an iothread",
        &["-object", "iothread,id=io0"],
        "virtio-blk-pci,drive=DRIVE,id=d,iothread=io0",
        "virtio",
        "/machine/peripheral/d/virtio-backend",
    ),
    ("virtio-scsi", &["-device", "virtio-scsi-pci,id=s0"], "scsi-hd,drive=DRIVE,id=d,bus=s0.0", "scsi", "d"),
    (
        "virtio-scsi with an iothread",
        &["-object", "iothread,id=io0", "-device", "virtio-scsi-pci,id=s0,iothread=io0"],
        "scsi-hd,drive=DRIVE,id=d,bus=s0.0",
        "scsi",
        "d",
    ),
    ("nvme", &[], "nvme,serial=x,drive=DRIVE,id=d", "nvme", "d"),
    ("SATA", &[], "ide-hd,drive=DRIVE,id=d", "ide", "d"),
    ("LSI", &["-device", "lsi53c895a,id=l0"], "scsi-hd,drive=DRIVE,id=d,bus=l0.0", "scsi", "d"),
    (
        "USB",
        &["-device", "qemu-xhci,id=x0", "-device", "usb-bot,id=b0,bus=x0.0"],
        "scsi-hd,drive=DRIVE,id=d,bus=b0.0",
        "scsi",
        "d",
    ),
];

#[test]
fn every_device_lets_a_snapshot_below_it() {
    for (name, more, device, bus, place) in DEVICES {
        if name.contains("iothread") && !Qemu::has_sound_iothreads() {
            expect_refused(more, device);
            continue;
        }
        let bench = Bench::new();
        let path = image(&bench, "a.qcow2", "qcow2");
        let qemu = Qemu::start(&bench, &[(&path, "qcow2", device)], more);
        let mut disks = BTreeMap::from([("d", vec![0; SIZE as usize])]);
        for round in 0_u8..2 {
            qemu.write(place, 5 + round, u64::from(round) << 20, 1 << 20);
            disks.get_mut("d").unwrap()[usize::from(round) << 20..][..1 << 20].fill(5 + round);
            let how = if round == 0 { "auto" } else { "bitmap" };
            let run = backup(&bench, &qemu.address(), &["--change-tracking", how]);
            assert_eq!(run.code, 0, "{name}: {}", run.stderr);
            expect(&bench, &disks);
        }
        let shown = bench.run(&["show", "web@latest", "-r", "REPO"]);
        let shown: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
        assert_eq!(disk(&shown, "d")["bus"], bus, "{name}: {shown}");
        assert_eq!((qemu.traces().len(), qemu.state().as_str()), (0, "running"), "{name}");
    }
}

/// An older QEMU whose disk is in an iothread is left alone.
fn expect_refused(more: &[&str], device: &str) {
    let bench = Bench::new();
    let path = image(&bench, "a.qcow2", "qcow2");
    let qemu = Qemu::start(&bench, &[(&path, "qcow2", device)], more);
    let run = backup(&bench, &qemu.address(), &[]);
    assert!(run.code == 2 && run.stderr.contains("with iothreads may end"), "{}", run.stderr);
    assert_eq!(qemu.state(), "running");
}

/// Drives that are no disks are named and left out; a machine that stands still stays so.
#[test]
fn what_is_no_disk_is_left_out() {
    let bench = Bench::new();
    let (path, medium) = (image(&bench, "a.qcow2", "qcow2"), image(&bench, "cd.iso", "raw"));
    let cd = format!("file={},format=raw,if=none,id=cd,media=cdrom", medium.display());
    let more = ["-drive", &cd, "-device", "ide-cd,drive=cd,id=cd0", "-S"];
    let qemu = Qemu::start(&bench, &[(&path, "qcow2", "virtio-blk-pci,drive=DRIVE,id=vda")], &more);
    let run = backup(&bench, &qemu.address(), &[]);
    assert_eq!(run.code, 4, "{}", run.stderr);
    assert!(run.stdout.contains("not backed up: cd is a removable medium"), "{}", run.stdout);
    assert_eq!(super::summary(&run)["disks"].as_array().unwrap().len(), 1);
    assert_eq!(qemu.state(), "prelaunch");
    // QEMU before 8 keeps open files until the machine runs, whatever it is told.
    let left = qemu.traces().into_iter().filter(|it| Qemu::has_sound_iothreads() || !it.contains("fdset-id"));
    assert_eq!(left.collect::<Vec<_>>(), [""; 0]);
}
