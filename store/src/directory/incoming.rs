//! Packs that are being written, as files under `incoming/`. Where the file system has hard links, a pack that has its
//! final name also keeps its name under `incoming/` until the log knows it. So the packs that a process left when it
//! died are found by listing one small folder.

use super::{Directory, INCOMING_PACK, OpenFile, unread};
use crate::error::storage;
use crate::format::pack::{PackKind, PackName};
use crate::objects::{Incoming, Object, ObjectName};
use mover::{Error, Result};
use std::fs::File;
use std::io::{self, ErrorKind, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

/// A pack under `incoming/`.
pub(super) struct IncomingFile {
    directory: Directory,
    path: PathBuf,
    /// Open for writing; none when it is complete, or was begun by somebody else.
    file: Mutex<Option<File>>,
    /// The name that it is about to get, or has.
    target: OnceLock<PathBuf>,
}

impl IncomingFile {
    /// Creates one. Data is not read again soon, and is written past the page cache where that can be done.
    pub fn create(directory: &Directory, kind: PackKind) -> Result<Self> {
        let path = directory.temporary(INCOMING_PACK);
        let created = match kind {
            PackKind::Data => directory.io.create_large(&path),
            PackKind::Page => directory.io.create(&path),
        };
        let file = created.map_err(|error| storage("cannot create", &path, error))?;
        Ok(Self { file: Mutex::new(Some(file)), ..Self::left(directory, path) })
    }

    /// One that was left there.
    pub fn left(directory: &Directory, path: PathBuf) -> Self {
        Self { directory: directory.clone(), path, file: Mutex::default(), target: OnceLock::new() }
    }

    fn open_at(&self, path: &Path) -> Result<Arc<dyn Object>> {
        let io = self.directory.io.clone();
        let file = io.open(path).map_err(|error| storage("cannot open", path, error))?;
        Ok(Arc::new(OpenFile { io, file, path: path.to_owned(), fail: unread }))
    }

    /// Looks what became of the file after an error of giving it a name. If it has the new name all the same, gives
    /// whether it has lost its name under `incoming/`.
    fn after_failure(&self, target: &Path, error: io::Error) -> Result<bool> {
        match error.kind() {
            // It was given by a try whose answer was lost (R4).
            ErrorKind::AlreadyExists => Ok(false),
            _ if self.directory.is_there(&self.path) => Err(storage("cannot create", target, error)),
            // By this try.
            _ if self.directory.is_there(target) => Ok(true),
            // Nobody takes a pack away that is being written but who begins the writer's next term (R5): then that is
            // what is wrong.
            _ => Err(Error::fenced("another process took over the packs that this one was writing").because(storage(
                "cannot create",
                target,
                error,
            ))),
        }
    }
}

impl Incoming for IncomingFile {
    fn append(&self, bytes: &[u8]) -> Result<()> {
        let file = self.file.lock().expect("no holder panics");
        let file = file.as_ref().ok_or_else(|| Error::internal("bytes for a pack that takes no more"))?;
        let written = self.directory.io.append(file, &mut [IoSlice::new(bytes)]);
        written.map_err(|error| storage("cannot write", &self.path, error))
    }

    fn open(&self) -> Result<Arc<dyn Object>> {
        // It may get its name, and lose the other, at this moment.
        self.open_at(&self.path).or_else(|error| match self.target.get() {
            Some(target) => self.open_at(target),
            None => Err(error),
        })
    }

    fn publish(&self, name: &PackName) -> Result<()> {
        let (io, path) = (&self.directory.io, &self.path);
        let written = self.file.lock().expect("no holder panics").take();
        let file = written.map_or_else(|| io.open(path).map_err(|error| storage("cannot open", path, error)), Ok)?;
        io.sync(&file).map_err(|error| storage("cannot sync", path, error))?;
        let target = self.target.get_or_init(|| self.directory.path(ObjectName::Pack(*name)));
        let moved = self.directory.name(path, target).or_else(|error| self.after_failure(target, error))?;
        self.directory.sync_name(target, moved)
    }

    fn settle(&self) {
        self.directory.remove_incoming(&self.path);
    }
}
