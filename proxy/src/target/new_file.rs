//! A new file that appears under its name only when it is complete.

use chunker::Extent;
use mover::{Error, ErrorKind, Result};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use std::ffi::{CStr, CString};
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
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
    Partial(TempPath, Way),
}

/// How a file gets its final name without replacing another file. The way is found before anything is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It is renamed with renameat2(2) and `RENAME_NOREPLACE`.
    Rename,
    /// It gets a second link (NFS).
    Link,
    /// An empty file of that name (`O_EXCL`), which is then replaced: file systems with neither (exFAT, SFTP).
    Placeholder,
}

/// What may be at the final name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// Nothing may be there.
    Nothing,
    /// A file, which is replaced.
    Anything,
}

impl NewFile {
    /// Creates an empty file that only its owner can read (disks hold secrets). If the file system can do that, the file has
    /// no name yet.
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

    /// Creates such a file under a temporary name, so that other programs can open it.
    pub fn partial(path: &Path) -> io::Result<(Self, File)> {
        let (path, folder) = split(path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let made = tempfile::Builder::new()
            .prefix(&format!(".{name}."))
            .suffix(NEW)
            .make_in(&folder, |path| File::options().read(true).write(true).create_new(true).mode(0o600).open(path))?;
        let (file, made) = made.into_parts();
        let (partial, way) = Way::found(made)?;
        Ok((Self { path, folder, held: Held::Partial(partial, way) }, file))
    }

    /// Its own name, when it has one.
    pub fn partial_path(&self) -> Option<&Path> {
        match &self.held {
            Held::Partial(path, _) => Some(path),
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
            Held::Partial(partial, way) => {
                match over {
                    Over::Nothing => way.name(&partial, &self.path)?,
                    Over::Anything => std::fs::rename(&partial, &self.path)?,
                }
                // Nothing is left at that name, or a second link.
                drop(partial);
            }
        }
        match File::open(&self.folder)?.sync_all() {
            // Some file systems of others (SMB) cannot, and have no way to.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            synced => synced,
        }
    }
}

impl Way {
    /// Gives `made` the name of a partial file, by the first way that works here. The file will get its final name in
    /// the same way.
    fn found(made: TempPath) -> io::Result<(TempPath, Self)> {
        let name = made.as_os_str().as_encoded_bytes();
        let stem = name.strip_suffix(NEW.as_bytes()).unwrap_or(name);
        let mut partial = std::ffi::OsStr::from_bytes(stem).to_owned();
        partial.push(PARTIAL);
        let partial = PathBuf::from(partial);
        let mut failed = None;
        for way in [Self::Rename, Self::Link, Self::Placeholder] {
            match way.name(&made, &partial) {
                Ok(()) => return Ok((TempPath::try_from_path(partial)?, way)),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        Err(failed.unwrap_or_else(|| io::Error::other("no way to name it")))
    }

    /// Renames the file at `from` to `to`. Fails if `to` exists.
    fn name(self, from: &Path, to: &Path) -> io::Result<()> {
        match self {
            Self::Rename => Ok(rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?),
            Self::Link => std::fs::hard_link(from, to),
            Self::Placeholder => {
                File::options().write(true).create_new(true).mode(0o600).open(to)?;
                std::fs::rename(from, to).inspect_err(|_| {
                    let _ = std::fs::remove_file(to);
                })
            }
        }
    }
}

/// Who owns a file that is replaced, and who may use it.
#[derive(Debug)]
pub struct Owner {
    uid: u32,
    gid: u32,
    mode: u32,
    /// Access lists, labels and what else is kept there.
    attributes: Vec<(CString, Vec<u8>)>,
}

impl Owner {
    /// Those of `file`.
    pub fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let mut names = vec![0; ATTRIBUTE_NAMES_BYTES_MAX];
        // File systems without them have none.
        let length = rustix::fs::flistxattr(file, &mut names[..]).unwrap_or(0);
        let names = names[..length].split_inclusive(|byte| *byte == 0);
        let attribute = |name: &[u8]| {
            let name = CStr::from_bytes_with_nul(name).ok()?.to_owned();
            let mut value = vec![0; ATTRIBUTE_BYTES_MAX];
            let length = rustix::fs::fgetxattr(file, &name, &mut value[..]).ok()?;
            value.truncate(length);
            Some((name, value))
        };
        let attributes = names.filter_map(attribute).collect();
        Ok(Self { uid: metadata.uid(), gid: metadata.gid(), mode: metadata.mode() & 0o777, attributes })
    }

    /// Gives `file` the owner, group, mode and attributes of the replaced file. If we may not change the owner, the file stays
    /// ours, nobody else may read it, and a warning is logged.
    pub fn give(&self, file: &File, path: &Path) -> io::Result<()> {
        if let Err(error) = std::os::unix::fs::fchown(file, Some(self.uid), Some(self.gid)) {
            let (uid, gid) = (self.uid, self.gid);
            tracing::warn!(path = %path.display(), %error, uid, gid, "the new file cannot be given to the owner of the old one");
            return Ok(());
        }
        file.set_permissions(Permissions::from_mode(self.mode))?;
        for (name, value) in &self.attributes {
            if let Err(error) = rustix::fs::fsetxattr(file, name, value, rustix::fs::XattrFlags::empty()) {
                tracing::debug!(path = %path.display(), ?name, %error, "an extended attribute could not be kept");
            }
        }
        Ok(())
    }
}

/// The file that is meant by `path`: where a symbolic link leads. A link that leads nowhere is refused, because it was
/// made for a file that is not there, perhaps on a disk that is not mounted.
pub fn behind_links(path: &Path) -> Result<PathBuf> {
    if !std::fs::symlink_metadata(path).is_ok_and(|it| it.is_symlink()) {
        return Ok(path.to_owned());
    }
    match std::fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let to = std::fs::read_link(path).map_err(|error| target_error(error, path))?;
            Err(Error::usage(format!(
                "{} is a symbolic link to {}, which does not exist",
                path.display(),
                to.display()
            ))
            .hint(
                "check whether a disk is not mounted; otherwise remove the link, or give the path of the file itself",
            ))
        }
        found => found.map_err(|error| target_error(error, path)),
    }
}

/// `error` of reading what a target at `path` holds.
pub fn read_error(error: io::Error, path: &Path, extent: Extent) -> Error {
    let Extent { offset, length } = extent;
    Error::target(format!("cannot read {length} bytes at {offset} of {}", path.display()))
        .because(error)
        .hint("restore without --delta, which does not read the target")
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
    Error::usage(format!("{} already exists", path.display())).hint("use --overwrite to replace what is in it")
}

/// The error for a file that is to be updated and is not there.
pub fn nothing_to_update(path: &Path) -> Error {
    Error::usage(format!("{} does not exist, and --delta updates an existing target", path.display()))
        .hint("leave out --delta to create it")
}

/// The error for a file that somebody uses.
pub fn in_use(path: &Path) -> Error {
    Error::busy(format!("{} is in use by another process", path.display()))
        .hint("shut down the machine that uses it (a loop device: `losetup -j` shows it), or restore to another place")
}

/// Checks that no file is at `path`.
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

/// Endings of the names of unfinished files: before it is known which [`Way`] works, and after that.
const NEW: &str = ".windlass-new";
const PARTIAL: &str = ".windlass-partial";
/// The kernel's own limits.
const ATTRIBUTE_NAMES_BYTES_MAX: usize = 64 << 10;
const ATTRIBUTE_BYTES_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_takes_nobodys_name() {
        for way in [Way::Rename, Way::Link, Way::Placeholder] {
            let place = tempfile::tempdir().unwrap();
            let (from, to) = (place.path().join("from"), place.path().join("to"));
            std::fs::write(&from, b"new").unwrap();
            std::fs::write(&to, b"somebody's").unwrap();
            assert_eq!(way.name(&from, &to).unwrap_err().kind(), io::ErrorKind::AlreadyExists, "{way:?}");
            assert_eq!(std::fs::read(&to).unwrap(), b"somebody's");
            std::fs::remove_file(&to).unwrap();
            way.name(&from, &to).unwrap();
            assert_eq!(std::fs::read(&to).unwrap(), b"new", "{way:?}");
        }
    }
}
