//! The seam to files: every byte of a repository goes through here (RocksDB's apart, which is disposable), so that a
//! test can fail or cut the n-th operation.

mod fault;

pub use crate::objects::Space;
pub use fault::{Fault, FaultIo, Release};

use mover::direct_prefix;
use rustix::fs::{
    Advice, CWD, FallocateFlags, OFlags, RenameFlags, fadvise, fallocate, fcntl_getfl, fcntl_setfl, renameat_with,
};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// File operations, blocking. Each method is one operation that can fail. What is made is for its owner alone.
pub trait Io: Send + Sync {
    /// Creates a file that must not exist, for writing and reading back.
    fn create(&self, path: &Path) -> io::Result<File>;

    /// As [`Self::create`], for a large file that is written once and not read soon. Aligned parts are written past the
    /// page cache where the file system can do that.
    fn create_large(&self, path: &Path) -> io::Result<File>;

    /// Appends all of `parts` to `file`.
    fn append(&self, file: &File, parts: &mut [IoSlice<'_>]) -> io::Result<()>;

    /// Makes a file's content durable. After an error nothing may be assumed about it, and it is not tried again.
    fn sync(&self, file: &File) -> io::Result<()>;

    /// Gives a file a second name. Fails with `AlreadyExists` when there is one: of many that race, one wins.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives a file another name. Fails with `AlreadyExists` when something has it: of many that race, one wins.
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives a file another name, in place of what has it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file's name.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes a directory for its owner alone, and its parents; an existing one is fine.
    fn make_dir(&self, path: &Path) -> io::Result<()>;

    /// Removes a directory that is empty.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// Sets so many bytes aside for a file. Fails with `Unsupported` where the file system cannot.
    fn set_aside(&self, file: &File, bytes: u64) -> io::Result<()>;

    /// Makes the names in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// The names in a directory, sorted. A directory that is not there is an error, never an empty list.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;

    /// Opens a file for reading. A symbolic link, or anything that is not a regular file, gives `InvalidData` at once,
    /// without waiting (for example for the other end of a pipe).
    fn open(&self, path: &Path) -> io::Result<File>;

    /// Length of an open file.
    fn length(&self, file: &File) -> io::Result<u64>;

    /// Exactly `length` bytes from `offset`.
    fn read_at(&self, file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>>;

    /// What the file system under `path` has left.
    fn space(&self, path: &Path) -> io::Result<Space>;
}

/// How a file system lets a complete file come to a name that nothing has.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Names {
    /// By a second name, link(2).
    #[default]
    Links,
    /// By another name, renameat2(2) with `RENAME_NOREPLACE`.
    Renames,
    /// By rename(2), which replaces a file that has the name already.
    Replaces,
}

/// The real file system.
pub struct DiskIo;

impl Io for DiskIo {
    fn create(&self, path: &Path) -> io::Result<File> {
        // A name that is taken, also by a symbolic link, is never written to.
        OpenOptions::new().read(true).write(true).create_new(true).mode(FILE_MODE).open(path)
    }

    fn create_large(&self, path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create_new(true)
            .mode(FILE_MODE)
            .custom_flags(OFlags::DIRECT.bits().cast_signed());
        match options.open(path) {
            // The file may be there all the same: the flag is looked at last.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                let _ = fs::remove_file(path);
                self.create(path)
            }
            opened => opened,
        }
    }

    fn append(&self, mut file: &File, mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        let flags = fcntl_getfl(file)?;
        if flags.contains(OFlags::DIRECT) {
            if let [only] = parts {
                let direct = append_direct(file, direct_prefix(only))?;
                IoSlice::advance_slices(&mut parts, direct);
            }
            if !parts.is_empty() {
                fcntl_setfl(file, flags.difference(OFlags::DIRECT))?;
            }
        }
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            match file.write_vectored(&parts[..parts.len().min(VECTORS_MAX)]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut parts, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data().inspect_err(|_| {
            // What could not be written may count as clean from here on. Who reads it next is to see what is on the storage.
            let _ = fadvise(file, 0, None, Advice::DontNeed);
        })
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn set_aside(&self, file: &File, bytes: u64) -> io::Result<()> {
        Ok(fallocate(file, FallocateFlags::empty(), 0, bytes)?)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(path)? {
            let name: PathBuf = entry?.file_name().into();
            names.push(name.to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        open_regular(path, OpenOptions::new().read(true))
    }

    fn length(&self, file: &File) -> io::Result<u64> {
        Ok(file.metadata()?.len())
    }

    fn read_at(&self, file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        // Into memory that was not cleared before: clearing costs as much as reading from the page cache.
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let at = offset + bytes.len() as u64;
            match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut bytes), at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // The allocator may give more than was asked for.
        bytes.truncate(length);
        Ok(bytes)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let stat = rustix::fs::statvfs(path)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        // Where files are not counted there are none altogether.
        let files = if stat.f_files == 0 { u64::MAX } else { stat.f_favail };
        Ok(Space { free: bytes(stat.f_bavail), total: bytes(stat.f_blocks), files })
    }
}

/// Opens a regular file. A symbolic link is not followed, and a pipe is not waited for: a repository has none, so
/// somebody may have put it there as a trap.
///
/// # Errors
/// `InvalidData` for anything else.
pub fn open_regular(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let strange = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what);
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = options.custom_flags(flags.bits().cast_signed()).open(path).map_err(|error| {
        match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
            Some(rustix::io::Errno::LOOP) => strange("it is a symbolic link, and a repository has none"),
            // A socket, or a pipe that nobody reads.
            Some(rustix::io::Errno::NXIO) => strange(NO_FILE),
            _ => error,
        }
    })?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(strange(NO_FILE)) }
}

/// Appends the aligned part of `bytes` and gives its length. The length is less when the file system needs a larger
/// alignment.
fn append_direct(mut file: &File, bytes: &[u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match file.write(&bytes[done..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => done += written,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

const NO_FILE: &str = "it is not a regular file";
/// Mode of new files: for their owner alone, because anybody who can read the configuration of a repository can read
/// every disk.
const FILE_MODE: u32 = 0o600;
/// Mode of new folders: for their owner alone.
const FOLDER_MODE: u32 = 0o700;
/// Linux takes 1,024 buffers in one call.
const VECTORS_MAX: usize = 1024;
