//! Block devices and NBD exports through the real program, as sources and as targets.

use serde_json::Value;
use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use windlass_tests::program::{Bench, LoopDevice, Run};

fn disk(run: &Run) -> Value {
    assert_eq!(run.code, 0, "{}", run.stderr);
    let summary: Value = serde_json::from_str(run.stdout.lines().last().unwrap()).unwrap();
    let mut disk = summary["disks"][0].clone();
    disk["chunks_new"] = summary["chunks_new"].clone();
    disk
}

#[test]
fn a_block_device_is_backed_up_and_restored_to() {
    let bench = Bench::new();
    for name in ["source", "target"] {
        fs::copy(bench.path("disk.raw"), bench.path(name)).unwrap();
    }
    fs::write(bench.path("target"), vec![0xee; 16 << 20]).unwrap();
    fs::write(bench.path("small"), vec![0xee; 8 << 20]).unwrap();
    let [Some(source), Some(target), Some(small)] =
        ["source", "target", "small"].map(|name| LoopDevice::new(&bench.path(name)))
    else {
        println!("SKIPPED: this sandbox has no loop devices, so block devices were not tested through the program");
        return;
    };
    let made = disk(&bench.run(&["backup", "--machine", "dev", "-r", "REPO", &source.path]));
    assert_eq!((&made["size"], &made["change_tracking"]), (&Value::from(16 << 20), &Value::from("full")));
    assert_eq!(made["chunks_new"], 0, "the same disk as the raw file");
    let again = disk(&bench.run(&["backup", "--machine", "dev", "-r", "REPO", &source.path]));
    assert_eq!((&again["change_tracking"], &again["bytes_changed"]), (&Value::from("fingerprint"), &Value::from(0)));
    let restore =
        |arguments: &[&str]| bench.run(&[&["restore", "dev@latest", "-r", "REPO", "--to"], arguments].concat());
    // What is on a device is lost only when that is said, and a device that is too small is not touched.
    for arguments in [&[target.path.as_str()][..], &[small.path.as_str(), "--overwrite"]] {
        let refused = restore(arguments);
        assert_eq!(refused.code, 2, "{arguments:?}: {}", refused.stderr);
    }
    for device in [&target, &small] {
        assert!(fs::read(&device.path).unwrap().iter().all(|byte| *byte == 0xee), "nothing was written");
    }
    let restored = restore(&[&target.path, "--overwrite"]);
    assert_eq!(restored.code, 0, "{}", restored.stderr);
    assert!(fs::read(&target.path).unwrap() == fs::read(bench.path("disk.raw")).unwrap());
}

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// nbdkit on a socket that listens already, so that nobody has to wait for it. Its exports are the files in the folder.
fn nbdkit(bench: &Bench, listener: impl Into<OwnedFd>) -> Running {
    let child = Command::new("sh")
        .args(["-c", "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec nbdkit --foreground --exit-with-parent file \"dir=$1\"", "sh"])
        .arg(bench.path("exports"))
        .stdin(Stdio::from(listener.into()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Running(child.expect("nbdkit is installed"))
}

#[test]
fn an_nbd_export_is_backed_up_and_restored_to() {
    let bench = Bench::new();
    fs::create_dir(bench.path("exports")).unwrap();
    let export = |name: &str| bench.path("exports").join(name);
    fs::copy(bench.path("disk.raw"), export("disk")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let socket = bench.path("nbd.sock");
    let _servers = [nbdkit(&bench, listener), nbdkit(&bench, UnixListener::bind(&socket).unwrap())];
    let tcp = |name: &str| format!("nbd://127.0.0.1:{port}/{name}");
    let unix = |name: &str| format!("nbd+unix:///{name}?socket={}", socket.display());
    for (machine, source, target) in [("tcp", tcp("disk"), tcp("restored")), ("unix", unix("disk"), unix("restored"))] {
        let made = disk(&bench.run(&["backup", "--machine", machine, "-r", "REPO", &source]));
        assert_eq!((&made["size"], &made["chunks_new"]), (&Value::from(16 << 20), &Value::from(0)), "{machine}");
        let shown = bench.run(&["show", &format!("{machine}@latest"), "-r", "REPO"]);
        assert!(shown.stdout.contains("\"nbd\""), "{}", shown.stdout);
        fs::write(export("restored"), vec![0xee; 16 << 20]).unwrap();
        let point = format!("{machine}@latest");
        let run = bench.run(&["restore", &point, "--to", &target, "-r", "REPO"]);
        assert_eq!(run.code, 0, "{machine}: {}", run.stderr);
        assert!(fs::read(export("restored")).unwrap() == fs::read(bench.path("disk.raw")).unwrap(), "{machine}");
    }
    // An export that is too small, one that is not there, and a server that is not there.
    fs::write(export("small"), vec![0xee; 8 << 20]).unwrap();
    let restore = |target: String| bench.run(&["restore", "m@latest", "--to", &target, "-r", "REPO"]).code;
    assert_eq!(restore(tcp("small")), 2);
    assert!(fs::read(export("small")).unwrap().iter().all(|byte| *byte == 0xee));
    assert_ne!(restore(unix("none")), 0);
    assert_eq!(bench.run(&["backup", "--machine", "tcp", "-r", "REPO", &tcp("none")]).code, restore(tcp("none")));
    assert_eq!(restore(format!("nbd+unix:///x?socket={}", bench.path("gone.sock").display())), 20);
}
