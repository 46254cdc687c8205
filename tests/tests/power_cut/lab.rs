//! A file system on a disk whose writes are logged: QEMU's `blklogwrites` under a file of its FUSE export, under a loop
//! device. Everything lives in mount and process namespaces of its own and on a tmpfs there, so that nothing is left of
//! it, however it ends.

use crate::block_log::flushed_entries;
use anyhow::{Context, Result, bail, ensure};
use rustix::process::geteuid;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use windlass_tests::fake::Image;
use windlass_tests::program::Ended;

/// Set inside the namespaces: an empty folder.
const INSIDE: &str = "WINDLASS_POWER_CUT_INSIDE";

/// Runs `work` with an empty folder, in memory, of the namespaces: in another process, which is this program's test of
/// the name `test` once more.
///
/// # Panics
/// When `work` does, or where there may be no namespaces.
pub fn inside(test: &str, work: impl FnOnce(&Path)) {
    if let Some(folder) = std::env::var_os(INSIDE) {
        run("mount", ["-t", "tmpfs", "-o", "size=80%", "tmpfs"].map(OsStr::new).into_iter().chain([&*folder])).unwrap();
        return work(Path::new(&folder));
    }
    assert!(geteuid().is_root(), "this lab mounts file systems and takes loop devices: run it as root");
    let folder = tempfile::tempdir().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut other = Command::new("setpriv");
    other
        .args(["--pdeathsig", "KILL"])
        .args(["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, folder.path())
        .stdin(Stdio::null())
        .stdout(writer.try_clone().unwrap())
        .stderr(writer);
    let mut running = Ended(other.spawn().expect("setpriv, of util-linux, is needed"));
    // The pipe ends with its last writer.
    drop(other);
    BufReader::new(reader).lines().map_while(Result::ok).for_each(|line| println!("{line}"));
    let status = running.0.wait().unwrap();
    assert!(status.success(), "{test} in namespaces of its own: {status}");
}

/// A kind of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    Ext4,
    Xfs,
    Btrfs,
}

impl FileSystem {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// Close to the least that its maker accepts.
    const fn bytes(self) -> u64 {
        match self {
            Self::Ext4 => 96 << 20,
            Self::Xfs => 320 << 20,
            Self::Btrfs => 256 << 20,
        }
    }

    /// Makes one in the file at `path`.
    fn make(self, path: &Path) -> Result<()> {
        File::create_new(path)?.set_len(self.bytes())?;
        let options: &[&str] = match self {
            // Blocks as on a large disk; and nothing is left to be cleared later, beside the history.
            Self::Ext4 => &["-q", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
            Self::Xfs | Self::Btrfs => &["-q"],
        };
        run(&format!("mkfs.{}", self.name()), options.iter().map(OsStr::new).chain([path.as_os_str()]))
    }
}

/// A mounted file system.
pub struct Mounted {
    at: PathBuf,
    gone: bool,
}

impl Mounted {
    /// Mounts the file system of this kind in `file`, through a loop device that goes with the mount.
    ///
    /// # Errors
    /// When it does not mount: with what `mount` says.
    pub fn new(kind: FileSystem, file: &Path, at: &Path) -> Result<Self> {
        fs::create_dir_all(at)?;
        let options = ["-t", kind.name(), "-o", "loop,nodiscard"].map(OsStr::new);
        run("mount", options.into_iter().chain([file.as_os_str(), at.as_os_str()]))?;
        Ok(Self { at: at.to_owned(), gone: false })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Unmounts it; nobody may use it any more.
    ///
    /// # Errors
    /// When somebody does for long.
    pub fn unmount(mut self) -> Result<()> {
        self.gone = true;
        let started = Instant::now();
        loop {
            let done = run("umount", [self.at.as_os_str()]);
            // Threads of RocksDB end a moment after their database.
            if done.is_ok() || started.elapsed() > UNMOUNT_MAX {
                self.gone = done.is_ok();
                return done;
            }
            std::thread::sleep(TICK);
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.gone {
            let _ = run("umount", [OsStr::new("--lazy"), self.at.as_os_str()]);
        }
    }
}

/// A disk whose writes are logged, with a new file system on it.
pub struct LoggedDisk {
    // Dropped in this order.
    mounted: Mounted,
    export: Export,
    folder: PathBuf,
}

/// The FUSE export, which a killed process leaves mounted.
struct Export {
    daemon: Ended,
    file: PathBuf,
}

impl Drop for Export {
    fn drop(&mut self) {
        let _ = run("umount", [OsStr::new("--lazy"), self.file.as_os_str()]);
    }
}

impl LoggedDisk {
    /// Makes one in the new folder `folder`; gives what was on it before the first entry of the log too.
    ///
    /// # Errors
    /// When anything that it takes is missing.
    pub fn new(kind: FileSystem, folder: &Path) -> Result<(Self, Image)> {
        fs::create_dir(folder)?;
        let [disk, log, file] = ["disk", "log", "export"].map(|name| folder.join(name));
        kind.make(&disk)?;
        let image = read_image(&disk)?;
        File::create_new(&log)?;
        File::create_new(&file)?;
        let node = |text: &str, path: &Path| format!("driver=file,node-name={text},filename={}", path.display());
        let daemon = Command::new("qemu-storage-daemon")
            .args(["--blockdev", &node("disk", &disk), "--blockdev", &node("log", &log)])
            .args(["--blockdev", "driver=blklogwrites,node-name=logged,file=disk,log=log,log-sector-size=512"])
            .arg("--export")
            .arg(format!("type=fuse,id=export,node-name=logged,writable=on,mountpoint={}", file.display()))
            .stdin(Stdio::null())
            .spawn()
            .context("cannot run qemu-storage-daemon, of qemu-utils")?;
        let mut export = Export { daemon: Ended(daemon), file };
        // It says nothing when it is ready.
        let started = Instant::now();
        while fs::metadata(&export.file)?.len() != kind.bytes() {
            if let Some(status) = export.daemon.0.try_wait()? {
                bail!("qemu-storage-daemon ended with {status}; does it lack FUSE exports, or /dev/fuse?");
            }
            ensure!(started.elapsed() < EXPORT_MAX, "qemu-storage-daemon exports nothing");
            std::thread::sleep(TICK);
        }
        let mounted = Mounted::new(kind, &export.file, &folder.join("mounted"))?;
        Ok((Self { mounted, export, folder: folder.to_owned() }, image))
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.mounted.path()
    }

    /// How many entries its log had at the last flush.
    ///
    /// # Panics
    /// When the log cannot be read.
    pub fn flushed_entries(&self) -> usize {
        flushed_entries(&self.folder.join("log")).expect("a log")
    }

    /// Takes it all down, and gives the log.
    ///
    /// # Errors
    /// When it is still in use.
    pub fn into_log(self) -> Result<Vec<u8>> {
        let Self { mounted, export, folder } = self;
        mounted.unmount()?;
        drop(export);
        let log = fs::read(folder.join("log"))?;
        fs::remove_dir_all(folder)?;
        Ok(log)
    }
}

/// Writes `image` into the new file `path`, with holes.
///
/// # Errors
/// When there is no room.
pub fn write_image(image: &Image, path: &Path) -> Result<()> {
    let file = File::create_new(path)?;
    file.set_len(image.size())?;
    for extent in image.zeroes().complement(image.size()).iter() {
        file.write_all_at(&image.read(extent), extent.offset)?;
    }
    Ok(())
}

fn read_image(path: &Path) -> Result<Image> {
    let bytes = fs::read(path)?;
    let mut image = Image::new(bytes.len() as u64);
    image.write(0, &bytes);
    Ok(image)
}

/// Runs a program, whose errors are this one's.
fn run<'a>(program: &str, arguments: impl IntoIterator<Item = &'a OsStr>) -> Result<()> {
    let ran = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let ran =
        ran.with_context(|| format!("cannot run {program}: is its package installed? See the list in ./check"))?;
    let said = String::from_utf8_lossy(&ran.stderr);
    ensure!(ran.status.success(), "{program}: {}", said.trim());
    Ok(())
}

const TICK: Duration = Duration::from_millis(2);
const UNMOUNT_MAX: Duration = Duration::from_secs(10);
const EXPORT_MAX: Duration = Duration::from_secs(30);
