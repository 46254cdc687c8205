//! Room on the storage: new chunks stop before it is full, so that commits and sweeps still have some.

use crate::error::storage;
use crate::io::Space;
use crate::local::Inner;
use mover::{Error, Result};

impl Inner {
    /// Refuses new chunks while too little is left; when there is more again they are taken. Blocking, a microsecond.
    ///
    /// # Errors
    /// `StoreFull`.
    pub fn check_room(&self) -> Result<()> {
        let root = self.directory.root();
        let space =
            self.directory.io().space(root).map_err(|error| storage("cannot ask for the room on", root, error))?;
        if space.total == 0 || space.free >= reserved(space) {
            return Ok(());
        }
        let (free, kept) = (space.free >> 20, reserved(space) >> 20);
        Err(Error::store_full(format!(
            "{} has {free} MiB left, and {kept} MiB are kept for commits and sweeps",
            root.display()
        ))
        .hint("forget points and run `windlass sweep`, or free space; nothing that was committed is affected"))
    }
}

/// What new chunks may not take: packs that are on their way, the log, the index's compaction, and what a sweep packs again
/// before it deletes.
pub fn reserved(space: Space) -> u64 {
    (space.total / 20).min(RESERVED_BYTES_MAX)
}

const RESERVED_BYTES_MAX: u64 = 512 << 20;
