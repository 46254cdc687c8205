//! A new file that appears under its name only when it is complete.

use chunker::Extent;
use mover::{Error, ErrorKind, Result};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use tempfile::TempPath;

/// A file on its way to `path`.
#[derive(Debug)]
pub struct NewFile {
    path: PathBuf,
    folder: PathBuf,
    held: Held,
}

#[derive(Debug)]
enum Held {
    /// Without any name: the kernel forgets it with us, even after kill -9.
    Unnamed,
    /// Under a name of its own beside `path`; removed when dropped.
    Partial(TempPath),
}

/// What may be at the final name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// Nothing.
    Nothing,
    /// A file, which goes.
    Anything,
}

impl NewFile {
    /// An empty file that only its owner can read (disks hold secrets), without a name where the file system can.
    pub fn unnamed(path: &Path) -> io::Result<(Self, File)> {
        let (path, folder) = split(path)?;
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        match rustix::fs::open(&folder, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => Ok((Self { path, folder, held: Held::Unnamed }, file.into())),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR | rustix::io::Errno::INVAL) => {
                Self::partial(&path)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The same under a name of its own, which other programs can be told.
    pub fn partial(path: &Path) -> io::Result<(Self, File)> {
        let (path, folder) = split(path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let made = tempfile::Builder::new()
            .prefix(&format!(".{name}."))
            .suffix(".windlass-partial")
            .make_in(&folder, |path| File::options().read(true).write(true).create_new(true).mode(0o600).open(path))?;
        let (file, partial) = made.into_parts();
        Ok((Self { path, folder, held: Held::Partial(partial) }, file))
    }

    /// Its own name, when it has one.
    pub fn partial_path(&self) -> Option<&Path> {
        match &self.held {
            Held::Partial(path) => Some(path),
            Held::Unnamed => None,
        }
    }

    /// Gives `file`, which is durable already, its final name, durably.
    pub fn appear(self, file: &File, over: Over) -> io::Result<()> {
        match self.held {
            Held::Unnamed => {
                let held = format!("/proc/self/fd/{}", file.as_raw_fd());
                rustix::fs::linkat(CWD, held, CWD, &self.path, AtFlags::SYMLINK_FOLLOW)?;
            }
            Held::Partial(partial) => {
                let flags = if over == Over::Nothing { RenameFlags::NOREPLACE } else { RenameFlags::empty() };
                match rustix::fs::renameat_with(CWD, &*partial, CWD, &self.path, flags) {
                    // File systems without this flag (NFS) have links.
                    Err(rustix::io::Errno::INVAL) => std::fs::hard_link(&partial, &self.path)?,
                    renamed => renamed?,
                }
                // Nothing is left at that name, or a second link.
                drop(partial);
            }
        }
        File::open(&self.folder)?.sync_all()
    }
}

/// `error` of reading what a target at `path` holds.
pub fn read_error(error: io::Error, path: &Path, extent: Extent) -> Error {
    let Extent { offset, length } = extent;
    Error::target(format!("cannot read {length} bytes at {offset} of {}", path.display()))
        .because(error)
        .hint("restore without --delta: that reads nothing of the target")
}

/// `error` as one of a target at `path`.
pub fn target_error(error: io::Error, path: &Path) -> Error {
    let kind = match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => ErrorKind::TargetFull,
        _ => ErrorKind::Target,
    };
    Error::new(kind, format!("cannot write {}", path.display())).because(error)
}

/// The error for a file that is there.
pub fn exists(path: &Path) -> Error {
    Error::usage(format!("{} exists", path.display())).hint("say --overwrite to lose what is in it")
}

/// The error for a file that is to be updated and is not there.
pub fn nothing_to_update(path: &Path) -> Error {
    Error::usage(format!("{} does not exist, and --delta updates what is there", path.display()))
        .hint("leave --delta out to make it")
}

/// The error for a file that somebody uses.
pub fn in_use(path: &Path) -> Error {
    Error::busy(format!("{} is in use by another process", path.display()))
        .hint("shut down the machine that uses it, or restore to another place")
}

/// Nothing to be written to: `Ok` when no file is at `path`.
pub fn must_not_exist(path: &Path) -> Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(_) => Err(exists(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(target_error(error, path)),
    }
}

fn split(path: &Path) -> io::Result<(PathBuf, PathBuf)> {
    let path = std::path::absolute(path)?;
    let folder = path.parent().ok_or_else(|| io::Error::other("it has no folder"))?.to_owned();
    Ok((path, folder))
}
