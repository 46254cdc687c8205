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
        let (root, space) = (self.directory.root(), self.space()?);
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

    /// How much a sweep may pack again before it deletes: the rest is for the log and the index.
    ///
    /// # Errors
    /// Of the storage.
    pub fn room_for_sweeps(&self) -> Result<u64> {
        let space = self.space()?;
        Ok(if space.total == 0 { u64::MAX } else { space.free.saturating_sub(reserved(space) / 4) })
    }

    fn space(&self) -> Result<Space> {
        let root = self.directory.root();
        self.directory.io().space(root).map_err(|error| storage("cannot ask for the room on", root, error))
    }
}

/// What new chunks may not take: packs that are on their way, the log, the index's compaction, and what a sweep packs again
/// before it deletes.
pub fn reserved(space: Space) -> u64 {
    (space.total / 20).min(RESERVED_BYTES_MAX)
}

const RESERVED_BYTES_MAX: u64 = 512 << 20;
