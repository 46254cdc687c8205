//! Objects in a directory.

use super::{Failing, Faults, Storage};
use crate::kept::folder;
use mover::World;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use store::Directory;
use store::io::{DiskIo, Fault, FaultIo, Names};
use store::objects::Objects;

/// A directory of its own, on a file system that names files in one way.
pub struct InDirectory {
    folder: tempfile::TempDir,
    names: Names,
}

struct InFiles {
    io: Arc<FaultIo<DiskIo>>,
    planned: AtomicU64,
}

impl Faults for InFiles {
    fn plan(&self, after: u64, fault: Fault) {
        self.planned.store(self.io.operations() + after, SeqCst);
        self.io.plan(after, fault);
    }

    fn has_struck(&self) -> bool {
        self.io.operations() > self.planned.load(SeqCst)
    }
}

impl InDirectory {
    /// A new one where temporary files are: on a disk packs are written past the page cache.
    pub fn on_disk() -> Self {
        Self::of(tempfile::tempdir().expect("a folder"), Names::Links)
    }

    /// A new one in memory.
    pub fn in_memory(names: Names) -> Self {
        Self::of(folder(), names)
    }

    fn of(folder: tempfile::TempDir, names: Names) -> Self {
        let made = Self { folder, names };
        made.directory().make_folders().expect("an empty folder");
        made
    }

    fn io(&self) -> Arc<FaultIo<DiskIo>> {
        let io = FaultIo::new(DiskIo);
        io.name_by(self.names);
        Arc::new(io)
    }

    fn directory(&self) -> Directory {
        Directory::new(self.folder.path(), self.io(), World::system())
    }
}

impl Storage for InDirectory {
    fn open(&self) -> Arc<dyn Objects> {
        Arc::new(self.directory())
    }

    fn failing(&self) -> Failing {
        let io = self.io();
        let objects = Arc::new(Directory::new(self.folder.path(), io.clone(), World::system()));
        Failing { objects, faults: Box::new(InFiles { io, planned: AtomicU64::new(u64::MAX) }) }
    }
}
