//! Storage nodes as they ship: real processes, killed and started again in the middle of a client's work.

use rustix::process::Signal;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use windlass_tests::program::{Ended, beside};

struct Place {
    folder: tempfile::TempDir,
    port: u16,
}

impl Place {
    /// A site with one node that has one repository, and a disk.
    fn new(mebibytes: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let place = Self { folder, port };
        // Half of it compresses.
        let mut noise = blake3::Hasher::new().update(b"disk").finalize_xof();
        let mut disk = vec![0; mebibytes << 20];
        disk.chunks_mut(8192).for_each(|row| noise.fill(&mut row[..4096]));
        fs::write(place.path("disk.raw"), disk).unwrap();
        let listen = format!("127.0.0.1:{port}");
        let site = place.path("site");
        let init = ["init", "--site", "test", "--listen", &listen, site.to_str().unwrap()];
        assert!(Command::new(beside("windlass-store")).args(init).output().unwrap().status.success());
        assert!(place.windlass(&["init", "-r", "REPO"]).output().unwrap().status.success());
        let mut config = fs::read_to_string(place.path("site/windlass-store.toml")).unwrap();
        config += &format!("[[repository]]\nname = \"main\"\npath = {:?}\n", place.path("repo"));
        fs::write(place.path("site/windlass-store.toml"), config).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `windlass` with REPO, NODE, DISK and HERE replaced.
    fn windlass(&self, arguments: &[&str]) -> Command {
        let here = self.folder.path().to_str().unwrap();
        let mut command = Command::new(beside("windlass"));
        command.env("WINDLASS_IDENTITY", self.path("site/admin")).stdin(Stdio::null());
        command.arg("--json").args(arguments.iter().map(|argument| match *argument {
            "REPO" => format!("{here}/repo"),
            "NODE" => format!("quic://127.0.0.1:{}/main", self.port),
            "DISK" => format!("{here}/disk.raw"),
            other => other.replace("HERE", here),
        }));
        command
    }

    fn done(&self, arguments: &[&str]) -> Output {
        let output = self.windlass(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    /// Starts the node and waits until it answers.
    fn node(&self) -> Ended {
        let mut child = Command::new(beside("windlass-store"))
            .args(["serve", "--config"])
            .arg(self.path("site/windlass-store.toml"))
            .stdout(Stdio::piped())
            .stderr(File::options().create(true).append(true).open(self.path("node.log")).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("listening"), "{}", fs::read_to_string(self.path("node.log")).unwrap());
        Ended(child)
    }

    fn assert_restores(&self, from: &str) {
        self.done(&["restore", "web@latest", "--to", "HERE/restored.raw", "--overwrite", "-r", from]);
        assert!(fs::read(self.path("restored.raw")).unwrap() == fs::read(self.path("disk.raw")).unwrap());
    }
}

fn packs_bytes(folder: &Path) -> u64 {
    let below = |path: &Path| fs::read_dir(path).into_iter().flatten().map(|entry| entry.unwrap().path());
    let incoming = below(&folder.join("incoming"));
    let packs = below(&folder.join("packs")).flat_map(|shard| below(&shard).collect::<Vec<_>>());
    incoming.chain(packs).filter_map(|path| fs::metadata(path).ok()).map(|it| it.len()).sum()
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn signal(child: &Child, signal: Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
}

#[test]
fn every_command_of_a_directory_works_on_a_node() {
    let place = Place::new(8);
    let mut node = place.node();
    let made = place.done(&["backup", "--machine", "web", "-r", "NODE", "DISK"]);
    assert!(String::from_utf8_lossy(&made.stdout).contains("\"summary\""));
    let again = place.done(&["backup", "--machine", "web", "-r", "NODE", "DISK"]);
    let again: serde_json::Value =
        serde_json::from_str(String::from_utf8_lossy(&again.stdout).lines().last().unwrap()).unwrap();
    assert_eq!((again["chunks_new"].as_u64(), again["bytes_new"].as_u64()), (Some(0), Some(0)));
    for arguments in [
        &["points", "-r", "NODE"][..],
        &["show", "web@latest", "-r", "NODE"],
        &["diff", "web@latest~1", "web@latest", "-r", "NODE"],
        &["stats", "-r", "NODE"],
        &["init", "-r", "HERE/second", "--like", "NODE"],
        &["copy", "--all", "-r", "NODE", "--to", "HERE/second"],
    ] {
        place.done(arguments);
    }
    place.assert_restores("NODE");
    place.assert_restores("HERE/second");
    // What does not work there says so, and how it works.
    let refused = place.windlass(&["verify", "-r", "NODE"]).output().unwrap();
    assert!(refused.status.code() == Some(2) && String::from_utf8_lossy(&refused.stderr).contains("directory only"));
    // The directory is the node's.
    assert_eq!(
        place.windlass(&["backup", "--machine", "web", "-r", "REPO", "DISK"]).output().unwrap().status.code(),
        Some(11)
    );
    signal(&node.0, Signal::TERM);
    assert!(node.0.wait().unwrap().success(), "a graceful stop");
    place.done(&["verify", "--decode", "-r", "REPO"]);
}

#[test]
fn a_node_killed_and_started_again_costs_no_backup() {
    let place = Place::new(256);
    let mut node = place.node();
    let backup = place.windlass(&["backup", "--machine", "web", "-r", "NODE", "DISK"]);
    let mut backup = { backup }.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    for mebibytes in [10, 60] {
        wait_until("it is under way", || packs_bytes(&place.path("repo")) > mebibytes << 20);
        assert!(backup.try_wait().unwrap().is_none(), "killed in the middle");
        signal(&node.0, Signal::KILL);
        node.0.wait().unwrap();
        node = place.node();
    }
    let ended = backup.wait_with_output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    place.assert_restores("NODE");
    signal(&node.0, Signal::TERM);
    assert!(node.0.wait().unwrap().success());
    place.done(&["verify", "--decode", "-r", "REPO"]);
}

#[test]
fn a_node_killed_and_started_again_costs_no_restore() {
    let place = Place::new(256);
    let mut node = place.node();
    place.done(&["backup", "--machine", "web", "-r", "NODE", "DISK"]);
    let mut command = place.windlass(&["restore", "web@latest", "--to", "HERE/restored.raw", "-r", "NODE"]);
    let mut restore = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(restore.stdout.as_mut().unwrap()).read_line(&mut first).unwrap();
    signal(&node.0, Signal::KILL);
    node.0.wait().unwrap();
    let _node = place.node();
    let ended = restore.wait_with_output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    assert!(fs::read(place.path("restored.raw")).unwrap() == fs::read(place.path("disk.raw")).unwrap());
}
