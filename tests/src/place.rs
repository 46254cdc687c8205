//! A site of real processes: a storage node with one repository, proxies, and `windlass` as its administrator.

use crate::program::{Ended, beside, free_port, served};
use rustix::process::{Pid, Signal};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A folder with a site (`site`), the repository of its node (`repo`) and a disk (`disk.raw`).
pub struct Place {
    folder: tempfile::TempDir,
    /// UDP port of the node.
    pub port: u16,
}

impl Place {
    /// A site with one node that has one repository, and a disk.
    ///
    /// # Panics
    /// When anything fails, as all of these.
    pub fn new(mebibytes: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
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
        place.serve_also("main", "repo");
        place
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `windlass --json` with REPO, NODE, DISK and HERE replaced, as the site's administrator.
    pub fn windlass(&self, arguments: &[&str]) -> Command {
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

    /// The same, run, with success.
    pub fn done(&self, arguments: &[&str]) -> Output {
        let output = self.windlass(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    /// The same for a command that must fail: gives its exit code and its messages.
    pub fn fails(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.windlass(arguments).output().unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Writes a repository more into the node's configuration.
    pub fn serve_also(&self, name: &str, folder: &str) {
        let mut config = fs::OpenOptions::new().append(true).open(self.path("site/windlass-store.toml")).unwrap();
        writeln!(config, "[[repository]]\nname = {name:?}\npath = {:?}", self.path(folder)).unwrap();
    }

    /// Starts the node and waits until it answers.
    pub fn node(&self) -> Ended {
        self.started("windlass-store", &self.path("site/windlass-store.toml"), "listening", &[])
    }

    /// An identity, in the folder of its name.
    pub fn issue(&self, role: &str, name: &str, more: &[&str]) {
        let mut issue = Command::new(beside("windlass-store"));
        issue.args(["issue", "--role", role, "--name", name]).args(more);
        issue.arg("--out").arg(self.path(name)).arg(self.path("site"));
        assert!(issue.output().unwrap().status.success());
    }

    /// The proxy of this name: makes its identity, and a configuration in which `machines` follow.
    pub fn make_proxy(&self, name: &str, machines: &str) -> PathBuf {
        self.issue("proxy", name, &[]);
        let config = self.path(&format!("{name}.toml"));
        let node = format!("quic://127.0.0.1:{}", self.port);
        fs::write(&config, format!("identity = {name:?}\nnodes = [{node:?}]\n{machines}")).unwrap();
        config
    }

    /// Starts a proxy and waits until it attends the node.
    pub fn proxy(&self, config: &Path) -> Ended {
        self.started("windlass-proxy", config, "attending", &[])
    }

    /// Starts a program that serves, with these variables in its environment, and waits until it prints this word.
    pub fn started(&self, program: &str, config: &Path, says: &str, variables: &[(&str, &Path)]) -> Ended {
        served(program, config, says, &self.path(&format!("{program}.log")), variables)
    }

    /// Restores the newest point of `web` and compares it with the disk.
    pub fn assert_restores(&self, from: &str) {
        self.done(&["restore", "web@latest", "--to", "HERE/restored.raw", "--overwrite", "-r", from]);
        assert!(fs::read(self.path("restored.raw")).unwrap() == fs::read(self.path("disk.raw")).unwrap());
    }

    /// The repository's packs.
    pub fn packs(&self) -> Vec<PathBuf> {
        below(&self.path("repo/packs")).flat_map(|shard| below(&shard).collect::<Vec<_>>()).collect()
    }

    /// Bytes of the repository's packs, unfinished ones too.
    pub fn packs_bytes(&self) -> u64 {
        let packs = below(&self.path("repo/incoming")).chain(self.packs());
        packs.filter_map(|path| fs::metadata(path).ok()).map(|it| it.len()).sum()
    }
}

fn below(path: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(path).into_iter().flatten().map(|entry| entry.unwrap().path())
}

/// Looks again and again, for a minute.
///
/// # Panics
/// When it does not come true.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Sends a signal to a child.
///
/// # Panics
/// When it is gone.
pub fn signal(child: &Child, signal: Signal) {
    rustix::process::kill_process(Pid::from_child(child), signal).unwrap();
}
