//! The `windlass` program on a small machine: a repository with one point, and what tests break.

use rustix::process::Signal;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// A folder with a disk of 16 MiB (`disk.raw`) and a repository (`repo`) that has it as the point `m@latest`.
pub struct Bench {
    folder: TempDir,
}

/// What a run of the program gave.
pub struct Run {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// Its messages: the standard error output.
    pub stderr: String,
}

/// A child that ends with the test.
pub struct Ended(pub Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A loop device. The kernel removes it when its last descriptor is closed, so also when this process is killed.
pub struct LoopDevice {
    /// Its node.
    pub path: String,
    _open: File,
}

impl LoopDevice {
    /// None where the sandbox has no loop devices.
    ///
    /// # Panics
    /// When one that was made cannot be let go.
    pub fn new(file: &Path) -> Option<Self> {
        let made = Command::new("losetup").args(["--find", "--show"]).arg(file).output().ok()?;
        if !made.status.success() {
            return None;
        }
        let path = String::from_utf8(made.stdout).unwrap().trim().to_owned();
        let open = File::open(&path);
        // In use by us, so it only marks it to go when nobody has it any more.
        let marked = Command::new("losetup").args(["--detach", &path]).status().unwrap();
        assert!(marked.success(), "{path} stays behind");
        Some(Self { path, _open: open.unwrap() })
    }
}

/// A small file system in memory that is unmounted with the test.
pub struct SmallFileSystem {
    /// Where it is mounted.
    pub path: PathBuf,
}

impl SmallFileSystem {
    /// Makes it, of so many MiB, in a folder that is made. Needs root.
    ///
    /// # Panics
    /// When that fails.
    pub fn at(path: PathBuf, mebibytes: u32) -> Self {
        fs::create_dir(&path).unwrap();
        let size = format!("size={mebibytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&path).status();
        assert!(mounted.is_ok_and(|status| status.success()), "mounting a tmpfs needs root");
        Self { path }
    }

    /// From now on nobody writes there.
    ///
    /// # Panics
    /// When that fails.
    pub fn freeze(&self) {
        let frozen = Command::new("mount").args(["-o", "remount,ro"]).arg(&self.path).status();
        assert!(frozen.is_ok_and(|status| status.success()), "needs root");
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        // Also when somebody who is ending still has a file there.
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
    }
}

/// A file system on a loop device that can be made to hang: writes wait until it is let go. It is unmounted with the test.
pub struct HangingFileSystem {
    /// Where it is mounted.
    pub path: PathBuf,
    _device: LoopDevice,
}

impl HangingFileSystem {
    /// Makes it, of 64 MiB, in a folder that is made. Needs root.
    ///
    /// # Panics
    /// When that fails, as all of these.
    pub fn at(path: PathBuf) -> Self {
        let image = path.with_extension("ext4");
        File::create(&image).unwrap().set_len(64 << 20).unwrap();
        fs::create_dir(&path).unwrap();
        let made = Command::new("mkfs.ext4").args(["-q", "-F", "-O", "^has_journal"]).arg(&image).status().unwrap();
        assert!(made.success());
        let device = LoopDevice::new(&image).expect("loop devices need root");
        let mounted = Command::new("mount").arg(&device.path).arg(&path).status().unwrap();
        assert!(mounted.success());
        Self { path, _device: device }
    }

    /// From now on writes hang.
    pub fn hang(&self) {
        assert!(Command::new("fsfreeze").arg("--freeze").arg(&self.path).status().unwrap().success());
    }

    /// They go on.
    pub fn let_go(&self) {
        assert!(Command::new("fsfreeze").arg("--unfreeze").arg(&self.path).status().unwrap().success());
    }
}

impl Drop for HangingFileSystem {
    fn drop(&mut self) {
        // Refused when it does not hang.
        let _ = Command::new("fsfreeze").arg("--unfreeze").arg(&self.path).stderr(Stdio::null()).status();
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
    }
}

impl Default for Bench {
    fn default() -> Self {
        Self::new()
    }
}

impl Bench {
    /// Makes the disk, the repository and its point.
    ///
    /// # Panics
    /// When anything fails, as all of these.
    pub fn new() -> Self {
        let bench = Self { folder: tempfile::tempdir().unwrap() };
        // Compresses to half: rows of one random half and one of zeros, no two blocks alike.
        let mut noise = blake3::Hasher::new().update(b"disk").finalize_xof();
        let mut disk = vec![0; 16 << 20];
        disk.chunks_mut(8192).for_each(|row| noise.fill(&mut row[..4096]));
        fs::write(bench.path("disk.raw"), disk).unwrap();
        for arguments in [&["init", "-r", "REPO"][..], &["backup", "--machine", "m", "-r", "REPO", "DISK"]] {
            let run = bench.run(arguments);
            assert_eq!(run.code, 0, "{arguments:?}: {}", run.stderr);
        }
        bench
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs `windlass --json` with REPO, DISK and HERE replaced by their paths.
    pub fn run(&self, arguments: &[&str]) -> Run {
        finish(self.command(arguments).spawn().unwrap())
    }

    /// Runs a job and interrupts it as soon as it reports progress, as a person would with Ctrl-C.
    pub fn run_interrupted(&self, arguments: &[&str]) -> Run {
        let mut child = self.command(arguments).spawn().unwrap();
        let mut first = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut first).unwrap();
        assert!(first.contains("progress"), "{first}");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, Signal::INT).unwrap();
        finish(child)
    }

    /// Runs a job and sends it a signal as soon as `file` is no longer `content` (or when it has ended before that).
    pub fn run_signalled(&self, arguments: &[&str], file: &Path, content: &[u8], signal: Signal) -> Run {
        let mut child = self.command(arguments).spawn().unwrap();
        while child.try_wait().unwrap().is_none() && fs::read(file).unwrap() == content {}
        let pid = rustix::process::Pid::from_child(&child);
        // It is our child until it was waited for, so the number is still its own.
        if child.try_wait().unwrap().is_none() {
            rustix::process::kill_process(pid, signal).unwrap();
        }
        finish(child)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let here = self.folder.path().to_str().unwrap().to_owned();
        let place = |argument: &&str| match *argument {
            "REPO" => format!("{here}/repo"),
            "DISK" => format!("{here}/disk.raw"),
            other => other.replace("HERE", &here),
        };
        let mut command = Command::new(beside("windlass"));
        command.arg("--json").args(arguments.iter().map(place));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The packs of `repo`.
    pub fn packs(&self) -> Vec<PathBuf> {
        let shards = fs::read_dir(self.path("repo/packs")).unwrap().map(|it| it.unwrap().path());
        shards.flat_map(|shard| fs::read_dir(shard).unwrap().map(|it| it.unwrap().path())).collect()
    }

    /// The disk as a qcow2 image.
    pub fn qcow2(&self) -> PathBuf {
        let image = self.path("disk.qcow2");
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-f", "raw", "-O", "qcow2"]).arg(self.path("disk.raw")).arg(&image);
        let made = convert.status().expect("qemu-img is installed");
        assert!(made.success());
        image
    }

    /// Opens an image for writing, as a running machine does.
    pub fn hold_image(&self, image: &Path) -> Ended {
        let mut child = Command::new("qemu-io")
            .args(["-f", "qcow2"])
            .arg(image)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu-io is installed");
        // Its answer proves that the image is open.
        child.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
        let mut answer = [0; 1];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut answer).unwrap();
        Ended(child)
    }

    /// An NBD server of the disk in which the second half cannot be read.
    pub fn nbdkit_failing(&self, socket: &Path) -> Ended {
        let trigger = self.path("trigger");
        fs::write(&trigger, b"").unwrap();
        let (disk, trigger) = (self.path("disk.raw"), format!("error-file={}", trigger.display()));
        let failing = ["error=EIO", "error-pread-rate=100%", &trigger];
        self.nbdkit(socket, &disk, &[&["--filter=error"], &failing[..]].concat())
    }

    /// An NBD server of a file. Arguments that begin with `--` go before the plugin, others behind the file.
    pub fn nbdkit(&self, socket: &Path, file: &Path, arguments: &[&str]) -> Ended {
        let (before, behind): (Vec<&str>, Vec<&str>) = arguments.iter().partition(|it| it.starts_with("--"));
        let child = Command::new("nbdkit")
            .args(["--foreground", "--exit-with-parent", "--unix"])
            .arg(socket)
            .args(before)
            .arg("file")
            .arg(file)
            .args(behind)
            .stderr(Stdio::null())
            .spawn()
            .expect("nbdkit is installed");
        let ended = Ended(child);
        // Its name is there a moment before it takes connections.
        while std::os::unix::net::UnixStream::connect(socket).is_err() {
            std::thread::yield_now();
        }
        ended
    }

    /// A file system that can be made to hang.
    pub fn hanging_file_system(&self) -> HangingFileSystem {
        HangingFileSystem::at(self.path("hanging"))
    }

    /// A tmpfs of so many MiB.
    pub fn small_file_system(&self, mebibytes: u32) -> SmallFileSystem {
        SmallFileSystem::at(self.path("small"), mebibytes)
    }
}

fn finish(child: Child) -> Run {
    let output = child.wait_with_output().unwrap();
    Run {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A UDP port of the loopback address that nobody has at the moment.
pub fn free_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Starts a program that serves, and waits until it says this word. What it complains of is added to a file.
///
/// # Panics
/// When it says something else, or ends.
pub fn served(program: &str, config: &Path, says: &str, log: &Path, variables: &[(&str, &Path)]) -> Ended {
    let mut child = Command::new(beside(program))
        .args(["serve", "--config"])
        .arg(config)
        .envs(variables.iter().copied())
        .stdout(Stdio::piped())
        .stderr(File::options().create(true).append(true).open(log).unwrap())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains(says), "{}", fs::read_to_string(log).unwrap());
    Ended(child)
}

/// A program as it ships, beside this test in the target folder.
pub fn beside(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().and_then(Path::parent).unwrap().join(name);
    assert!(program.exists(), "{} is missing: run `cargo build --release --workspace --bins` first", program.display());
    program
}
