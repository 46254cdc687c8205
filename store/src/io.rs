//! The seam to files: every byte of a repository goes through here (RocksDB's apart, which is disposable), so that a
//! test can fail or cut the n-th operation.

mod fault;

pub use fault::{Fault, FaultIo, Release};

use mover::direct_prefix;
use rustix::fs::{Advice, OFlags, fadvise, fcntl_getfl, fcntl_setfl};
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// File operations, blocking. Each method is one operation that can fail.
pub trait Io: Send + Sync {
    /// Creates a file that must not exist, for writing and reading back.
    fn create(&self, path: &Path) -> io::Result<File>;

    /// As [`Self::create`], for a large file that is written once and not read soon: what is aligned is written past
    /// the page cache where the file system can do that.
    fn create_large(&self, path: &Path) -> io::Result<File>;

    /// Appends all of `parts` to `file`.
    fn append(&self, file: &File, parts: &mut [IoSlice<'_>]) -> io::Result<()>;

    /// Makes a file's content durable. After an error nothing may be assumed about it, and it is not tried again.
    fn sync(&self, file: &File) -> io::Result<()>;

    /// Gives a file a second name. Fails with `AlreadyExists` when there is one: of many that race, one wins.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives a file another name, in place of what has it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a name.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes a directory, and its parents; an existing one is fine.
    fn make_dir(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// The names in a directory, sorted. A directory that is not there is an error, never an empty list.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;

    /// Opens a file for reading.
    fn open(&self, path: &Path) -> io::Result<File>;

    /// Length of an open file.
    fn length(&self, file: &File) -> io::Result<u64>;

    /// Exactly `length` bytes from `offset`.
    fn read_at(&self, file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>>;

    /// What the file system under `path` has left.
    fn space(&self, path: &Path) -> io::Result<Space>;
}

/// Bytes of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// For new files.
    pub free: u64,
    /// Altogether.
    pub total: u64,
}

/// The real file system.
pub struct DiskIo;

impl Io for DiskIo {
    fn create(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create_new(true).open(path)
    }

    fn create_large(&self, path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).custom_flags(OFlags::DIRECT.bits().cast_signed());
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

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
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
        File::open(path)
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
        Ok(Space { free: bytes(stat.f_bavail), total: bytes(stat.f_blocks) })
    }
}

/// Appends what is aligned; gives how many bytes that were: less when the file system wants more than an aligned write.
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

/// Linux takes 1,024 buffers in one call.
const VECTORS_MAX: usize = 1024;
