//! Files with a hook before each operation. This is the one place that passes all operations on.

use std::fs::File;
use std::io::{self, IoSlice};
use std::ops::Deref;
use std::path::Path;
use store::io::{Io, Space};

/// An operation on files.
#[derive(Debug, Clone, Copy)]
pub enum Operation<'a> {
    /// Appends these bytes to the end of this file.
    Append(&'a File, &'a [IoSlice<'a>]),
    /// Makes the content of a file durable.
    Sync,
    /// Makes the names in a directory durable.
    SyncDir,
    /// Any other that changes something.
    Change,
    /// One that only reads.
    Read,
}

/// What to do with an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It is done.
    Do,
    /// It is not done, and the caller gets no error. Only for operations without a result.
    Pretend,
}

/// What comes before each operation.
pub trait Before: Send + Sync {
    /// The files on which the operations are done.
    type Files: Io;

    /// The files on which the operations are done.
    fn files(&self) -> &Self::Files;

    /// Called before each.
    ///
    /// # Errors
    /// Those with which the operation is to fail.
    fn before(&self, operation: Operation<'_>) -> io::Result<Then>;
}

/// Files with a hook before each operation.
pub struct Around<B>(pub B);

impl<B> Deref for Around<B> {
    type Target = B;

    fn deref(&self) -> &B {
        &self.0
    }
}

impl<B: Before> Around<B> {
    fn on<T>(&self, operation: Operation<'_>, work: impl FnOnce(&B::Files) -> io::Result<T>) -> io::Result<T> {
        assert_eq!(self.before(operation)?, Then::Do, "{operation:?} gives something");
        work(self.files())
    }

    fn unless_pretended(
        &self,
        operation: Operation<'_>,
        work: impl FnOnce(&B::Files) -> io::Result<()>,
    ) -> io::Result<()> {
        match self.before(operation)? {
            Then::Do => work(self.files()),
            Then::Pretend => Ok(()),
        }
    }
}

impl<B: Before> Io for Around<B> {
    fn create(&self, path: &Path) -> io::Result<File> {
        self.on(Operation::Change, |files| files.create(path))
    }

    fn create_large(&self, path: &Path) -> io::Result<File> {
        self.on(Operation::Change, |files| files.create_large(path))
    }

    fn append(&self, file: &File, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        match self.before(Operation::Append(file, &*parts))? {
            Then::Do => self.files().append(file, parts),
            Then::Pretend => Ok(()),
        }
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.unless_pretended(Operation::Sync, |files| files.sync(file))
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.unless_pretended(Operation::Change, |files| files.link(from, to))
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.unless_pretended(Operation::Change, |files| files.rename_new(from, to))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.unless_pretended(Operation::Change, |files| files.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.unless_pretended(Operation::Change, |files| files.remove(path))
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        self.unless_pretended(Operation::Change, |files| files.make_dir(path))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.unless_pretended(Operation::Change, |files| files.remove_dir(path))
    }

    fn set_aside(&self, file: &File, bytes: u64) -> io::Result<()> {
        self.unless_pretended(Operation::Change, |files| files.set_aside(file, bytes))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.unless_pretended(Operation::SyncDir, |files| files.sync_dir(path))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.on(Operation::Read, |files| files.list(path))
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        self.on(Operation::Read, |files| files.open(path))
    }

    fn length(&self, file: &File) -> io::Result<u64> {
        self.on(Operation::Read, |files| files.length(file))
    }

    fn read_at(&self, file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.on(Operation::Read, |files| files.read_at(file, offset, length))
    }

    /// No operation: it reads and changes nothing.
    fn space(&self, path: &Path) -> io::Result<Space> {
        self.files().space(path)
    }
}
