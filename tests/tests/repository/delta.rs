//! `restore --delta` with the real programs: raw, qcow2 and NBD targets that hold an older state.

use rustix::process::Signal;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use windlass_tests::program::{Bench, Run};

const MIB: usize = 1 << 20;
const BLOCK: usize = 1 << 16;

/// A machine of which the disk as it was on day 1 is kept, and that has a point of day 2.
struct Days {
    bench: Bench,
    day1: Vec<u8>,
    day2: Vec<u8>,
}

impl Days {
    fn new(change: impl FnOnce(&mut [u8])) -> Self {
        let bench = Bench::new();
        let day1 = fs::read(bench.path("disk.raw")).unwrap();
        let mut day2 = day1.clone();
        change(&mut day2);
        fs::write(bench.path("disk.raw"), &day2).unwrap();
        let run = bench.run(&["backup", "--machine", "m", "-r", "REPO", "DISK"]);
        assert_eq!(run.code, 0, "{}", run.stderr);
        Self { bench, day1, day2 }
    }

    /// Two blocks changed, three made zero.
    fn few() -> Self {
        Self::new(|disk| {
            disk[5 * MIB + 10] ^= 1;
            disk[9 * MIB - 1] ^= 1;
            disk[12 * MIB..12 * MIB + 3 * BLOCK].fill(0);
        })
    }

    /// Every block changed.
    fn all() -> Self {
        Self::new(|disk| disk.chunks_mut(BLOCK).for_each(|block| block[7] ^= 1))
    }

    /// The disk as it was on day 1.
    fn old(&self, name: &str) -> PathBuf {
        let path = self.bench.path(name);
        fs::write(self.bench.path("old"), &self.day1).unwrap();
        let format = if name.ends_with("qcow2") { "qcow2" } else { "raw" };
        let (old, target) = (self.bench.path("old"), path.to_str().unwrap());
        qemu_img(&["convert", "-f", "raw", "-O", format, old.to_str().unwrap(), target]);
        path
    }

    fn update(&self, target: &str) -> Run {
        self.bench.run(&["restore", "m@latest", "--to", target, "--delta", "--wait=60s", "-r", "REPO"])
    }

    /// The update goes well, writes so much, and the image is that of day 2.
    fn updates(&self, target: &str, image: &Path, bytes: Option<usize>) {
        let run = self.update(target);
        assert_eq!(run.code, 0, "{target}: {}{}", run.stdout, run.stderr);
        let summary: serde_json::Value = serde_json::from_str(run.stdout.lines().last().unwrap()).unwrap();
        assert_eq!(summary["bytes_restored"], self.day2.len());
        if let Some(bytes) = bytes {
            assert_eq!(summary["bytes_written"], bytes, "{target}");
        }
        qemu_img(&["compare", image.to_str().unwrap(), self.bench.path("disk.raw").to_str().unwrap()]);
    }
}

fn qemu_img(arguments: &[&str]) -> String {
    let output = Command::new("qemu-img").args(arguments).output().expect("qemu-img is installed");
    let words = [output.stdout, output.stderr].concat();
    let words = String::from_utf8_lossy(&words).into_owned();
    assert!(output.status.success(), "{arguments:?}: {words}");
    words
}

#[test]
fn only_what_differs_is_written() {
    let days = Days::few();
    for name in ["a.raw", "a.qcow2"] {
        let image = days.old(name);
        days.updates(image.to_str().unwrap(), &image, Some(2 * BLOCK));
        days.updates(image.to_str().unwrap(), &image, Some(0));
    }
    qemu_img(&["check", days.bench.path("a.qcow2").to_str().unwrap()]);
    let (image, socket) = (days.old("n.raw"), days.bench.path("n.sock"));
    let _server = days.bench.nbdkit(&socket, &image, &[]);
    days.updates(&format!("nbd+unix:///?socket={}", socket.display()), &image, Some(2 * BLOCK));
    // An empty image is an older state as well.
    let empty = days.bench.path("empty.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", empty.to_str().unwrap(), "16M"]);
    days.updates(empty.to_str().unwrap(), &empty, Some(days.day2.len() - 3 * BLOCK));
}

#[test]
fn what_lies_behind_the_disk_stays() {
    let days = Days::few();
    let image = days.old("a.raw");
    fs::write(&image, [&days.day1[..], b"behind"].concat()).unwrap();
    let run = days.update(image.to_str().unwrap());
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(fs::read(&image).unwrap() == [&days.day2[..], b"behind"].concat());
}

#[test]
fn a_target_that_cannot_be_updated_is_left_alone() {
    let days = Days::few();
    let refused = |target: &str, code: i32, says: &str, hint: &str| {
        let run = days.bench.run(&["restore", "m@latest", "--to", target, "--delta", "-r", "REPO"]);
        assert_eq!(run.code, code, "{target}: {}", run.stderr);
        assert!(run.stderr.contains(says) && run.stderr.contains(hint), "{target}: {}", run.stderr);
    };
    for name in ["HERE/none.raw", "HERE/none.qcow2"] {
        refused(name, 2, "does not exist", "leave out --delta");
    }
    let small = days.bench.path("small.raw");
    fs::write(&small, &days.day1[1..]).unwrap();
    refused("HERE/small.raw", 2, "16777215 bytes", "qemu-img resize");
    assert!(fs::read(&small).unwrap() == days.day1[1..]);
    let small = days.bench.path("small.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", small.to_str().unwrap(), "8M"]);
    refused("HERE/small.qcow2", 2, "8388608 bytes", "qemu-img resize");
    // Written as raw, an image would be destroyed; a name that says raw is believed all the same (T10).
    let image = days.old("a.qcow2");
    fs::copy(&image, days.bench.path("wrong.img")).unwrap();
    refused("HERE/wrong.img", 2, "begins like a qcow2 image", "?format=raw");
    let before = fs::read(&image).unwrap();
    let holder = days.bench.hold_image(&image);
    refused("HERE/a.qcow2", 11, "in use", "shut down");
    drop(holder);
    assert!(fs::read(&image).unwrap() == before);
    // A server that cannot read what it holds.
    let (image, socket) = (days.old("n.raw"), days.bench.path("n.sock"));
    let _server = days.bench.nbdkit(&socket, &image, &["--filter=error", "error=EIO", "error-pread-rate=100%"]);
    refused(&format!("nbd+unix:///?socket={}", socket.display()), 1, "\"code\":\"target\"", "");
    assert!(fs::read(&image).unwrap() == days.day1);
}

#[test]
fn killed_in_the_middle_it_is_finished_by_the_same_command() {
    let days = Days::all();
    for name in ["a.raw", "a.qcow2"] {
        let image = days.old(name);
        let (target, before) = (image.to_str().unwrap(), fs::read(&image).unwrap());
        let arguments = ["restore", "m@latest", "--to", target, "--delta", "-r", "REPO"];
        days.bench.run_signalled(&arguments, &image, &before, Signal::KILL);
        assert!(image.exists());
        days.updates(target, &image, None);
    }
    let checked = Command::new("qemu-img").arg("check").arg(days.bench.path("a.qcow2")).status().unwrap();
    assert!(matches!(checked.code(), Some(0 | 3)), "clusters may leak, nothing else: {checked}");
}

#[test]
fn interrupted_it_tells_how_to_finish() {
    let days = Days::all();
    let (image, socket) = (days.old("n.raw"), days.bench.path("n.sock"));
    // So slow that there is a middle.
    let slow = ["--filter=noparallel", "--filter=delay", "wdelay=100ms"];
    let server = days.bench.nbdkit(&socket, &image, &slow);
    let target = format!("nbd+unix:///?socket={}", socket.display());
    let arguments = ["restore", "m@latest", "--to", &target, "--delta", "-r", "REPO"];
    let run = days.bench.run_signalled(&arguments, &image, &days.day1, Signal::INT);
    assert_eq!(run.code, 130, "{}{}", run.stdout, run.stderr);
    assert!(run.stderr.contains("partly updated") && run.stderr.contains("same command"), "{}", run.stderr);
    assert!(run.stderr.contains("n.sock: the target"), "it says which: {}", run.stderr);
    drop(server);
    let now = fs::read(&image).unwrap();
    assert!(now != days.day1 && now != days.day2);
    fs::remove_file(&socket).unwrap();
    // The same for a server that fails in the middle.
    let failing = ["--filter=error", "error=EIO", "error-pwrite-rate=100%"];
    let server = days.bench.nbdkit(&socket, &image, &failing);
    let run = days.update(&target);
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(run.stderr.contains("partly updated"), "{}", run.stderr);
    drop(server);
    fs::remove_file(&socket).unwrap();
    let _server = days.bench.nbdkit(&socket, &image, &[]);
    days.updates(&target, &image, None);
}

#[test]
fn an_interrupted_image_is_closed_in_order() {
    let days = Days::all();
    let image = days.old("a.qcow2");
    // Its bitmap makes the next backup of it cheap, and would be lost with a process that is killed.
    let (path, bitmap) = (image.to_str().unwrap(), "windlass-test");
    qemu_img(&["bitmap", "--add", path, bitmap]);
    let before = fs::read(&image).unwrap();
    let arguments = ["restore", "m@latest", "--to", path, "--delta", "-r", "REPO"];
    let run = days.bench.run_signalled(&arguments, &image, &before, Signal::INT);
    assert!([0, 130].contains(&run.code), "{}", run.stderr);
    qemu_img(&["check", path]);
    let info = qemu_img(&["info", path]);
    assert!(info.contains(bitmap) && !info.contains("in-use") && !info.contains("inconsistent"), "{info}");
    days.updates(path, &image, None);
}
