//! Files without their guards.

use std::fs::File;
use std::io::{self, IoSlice};
use std::path::Path;
use store::io::{DiskIo, Io, Space};

/// Real files, some of which nobody makes durable.
#[derive(Clone, Copy)]
pub enum Unsynced {
    /// Their content.
    Content,
    /// Their names.
    Names,
}

impl Io for Unsynced {
    fn create(&self, path: &Path) -> io::Result<File> {
        DiskIo.create(path)
    }

    fn create_large(&self, path: &Path) -> io::Result<File> {
        DiskIo.create_large(path)
    }

    fn append(&self, file: &File, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        DiskIo.append(file, parts)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        match self {
            Self::Content => Ok(()),
            Self::Names => DiskIo.sync(file),
        }
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        DiskIo.link(from, to)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        DiskIo.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        DiskIo.remove(path)
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        DiskIo.make_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        match self {
            Self::Content => DiskIo.sync_dir(path),
            Self::Names => Ok(()),
        }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        DiskIo.list(path)
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        DiskIo.open(path)
    }

    fn length(&self, file: &File) -> io::Result<u64> {
        DiskIo.length(file)
    }

    fn read_at(&self, file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        DiskIo.read_at(file, offset, length)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        DiskIo.space(path)
    }
}
