//! Scratch space: only what is still to be read takes room, and one that is slow or hangs does not harm the guest.

use super::{Guest, disk, line_of, summary};
use serde_json::Value;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Child;
use std::time::{Duration, Instant};
use windlass_tests::program::Run;

const MIB: u64 = 1 << 20;

/// Waits until a slow backup has moved so many bytes.
fn moved(child: &mut Child, bytes: u64) {
    loop {
        let line = line_of(child.stdout.as_mut().unwrap());
        let event: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"));
        assert_eq!(event["event"], "progress", "{line}");
        if event["bytes_done"].as_u64().is_some_and(|done| done >= bytes) {
            return;
        }
    }
}

fn ended(child: Child) -> Run {
    let output = child.wait_with_output().unwrap();
    Run {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// What neither changed nor is audited is given back before anything is read.
#[test]
fn only_what_is_still_to_be_read_is_kept() {
    let mut guest = Guest::new();
    guest.write("vda", 1, 0, 32 * MIB);
    guest.write("sda", 2, 0, 32 * MIB);
    guest.backed_up(&[]);
    guest.write("vda", 3, 0, 4 * MIB);
    let then = guest.disks.clone();
    let mut child = guest.slow_backup(&["--audit", "0", "--change-tracking", "bitmap"]);
    moved(&mut child, 1);
    // Nothing of this will be read.
    guest.write("vda", 4, 8 * MIB, 16 * MIB);
    guest.write("sda", 5, 0, 32 * MIB);
    let run = ended(child);
    assert_eq!(run.code, 0, "{} {}", run.stderr, run.stdout);
    let kept = summary(&run)["scratch_bytes_max"].as_u64().unwrap();
    assert!(kept < 2 * MIB, "{kept}");
    guest.expect(&then);
    assert_eq!(guest.qemu.traces(), [""; 0]);
    guest.backed_up(&["--change-tracking", "bitmap"]);
    guest.expect(&guest.disks);
}

/// What was read and stored is given back: the guest can overwrite the whole disk, and little is kept at any time.
#[test]
fn what_was_read_is_given_back() {
    let mut guest = Guest::new();
    guest.write("vda", 1, 0, 8 * MIB);
    let then = guest.disks.clone();
    let mut child = guest.slow_backup(&[]);
    moved(&mut child, 5 * MIB);
    guest.write("vda", 2, 0, 4 * MIB);
    // Never written before, so not to be read.
    guest.write("vda", 3, 32 * MIB, 16 * MIB);
    let run = ended(child);
    assert_eq!(run.code, 0, "{} {}", run.stderr, run.stdout);
    let kept = summary(&run)["scratch_bytes_max"].as_u64().unwrap();
    assert!(kept < 2 * MIB, "{kept}");
    guest.expect(&then);
}

/// Bytes that changed behind QEMU's back: the audit finds them when much was given back, so the snapshot is taken once
/// more, and the point is right.
#[test]
fn a_bitmap_that_lies_is_found_although_much_was_given_back() {
    let mut guest = Guest::new();
    guest.write("sda", 1, 0, 16 * MIB);
    guest.backed_up(&[]);
    guest.write("sda", 2, 0, MIB);
    let raw = File::options().write(true).open(guest.bench.path("b.raw")).unwrap();
    raw.write_all_at(&[9; 4096], 12 * MIB).unwrap();
    drop(raw);
    guest.disks.get_mut("sda").unwrap()[12 * MIB as usize..][..4096].fill(9);
    let run = guest.backup(&["--audit", "100"]);
    assert_eq!(run.code, 4, "{} {}", run.stderr, run.stdout);
    let said = summary(&run);
    assert!(run.stdout.contains("the snapshot was taken twice"), "{}", run.stdout);
    assert_eq!(disk(&said, "sda")["change_tracking"], "fingerprint", "{said}");
    assert_eq!(disk(&said, "vda")["change_tracking"], "bitmap", "{said}");
    assert_eq!(guest.qemu.traces(), [""; 0]);
    guest.expect(&guest.disks);
    guest.backed_up(&["--change-tracking", "bitmap"]);
}

/// Scratch space that answers late, but in time.
#[test]
fn slow_scratch_costs_the_guest_the_wait() {
    let mut guest = Guest::new();
    guest.write("vda", 1, 0, 8 * MIB);
    let then = guest.disks.clone();
    let slow = guest.bench.hanging_file_system();
    let child = guest.slow_backup(&["--scratch", slow.path.to_str().unwrap()]);
    slow.hang();
    let took = std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let began = Instant::now();
            guest.write("vda", 2, 7 * MIB, MIB);
            began.elapsed()
        });
        std::thread::sleep(Duration::from_secs(3));
        slow.let_go();
        writing.join().unwrap()
    });
    assert!(took < Duration::from_secs(10), "{took:?}");
    let run = ended(child);
    assert_eq!(run.code, 0, "{} {}", run.stderr, run.stdout);
    guest.expect(&then);
}

/// Scratch space that hangs: one write of the guest waits, once and not for ever; the backup fails with a name; the
/// snapshot is taken out when the folder answers again, and not before, because that would stop the guest.
#[test]
fn hung_scratch_stops_one_write_once() {
    let mut guest = Guest::new();
    guest.write("vda", 1, 0, 32 * MIB);
    let hung = guest.bench.hanging_file_system();
    let mut child = guest.slow_backup(&["--scratch", hung.path.to_str().unwrap()]);
    moved(&mut child, 1);
    hung.hang();
    let began = Instant::now();
    guest.write("vda", 2, 24 * MIB, MIB);
    let (first, again) = (began.elapsed(), Instant::now());
    guest.write("vda", 3, 26 * MIB, MIB);
    let second = again.elapsed();
    assert!(first > Duration::from_secs(10) && first < Duration::from_secs(30), "{first:?}");
    assert!(second < Duration::from_secs(5), "{second:?}");
    let run = ended(child);
    assert_eq!(run.code, 1, "{} {}", run.stderr, run.stdout);
    assert!(run.stderr.contains("snapshot was given up") && run.stderr.contains("does not answer"), "{}", run.stderr);
    // The guest goes on all the time.
    let again = Instant::now();
    guest.write("vda", 4, 28 * MIB, MIB);
    assert!(again.elapsed() < Duration::from_secs(5));
    hung.let_go();
    let deadline = Instant::now() + Duration::from_secs(60);
    while guest.qemu.traces() != [""; 0] {
        assert!(Instant::now() < deadline, "{:?}", guest.qemu.traces());
        std::thread::sleep(Duration::from_millis(100));
    }
    guest.backed_up(&[]);
    guest.expect(&guest.disks);
}
