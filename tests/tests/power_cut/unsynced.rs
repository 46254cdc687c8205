//! Files without their guards.

use std::io;
use store::io::DiskIo;
use windlass_tests::around::{Before, Operation, Then};

/// Real files, some of which nobody makes durable.
#[derive(Clone, Copy)]
pub enum Unsynced {
    /// Their content.
    Content,
    /// Their names.
    Names,
}

impl Before for Unsynced {
    type Files = DiskIo;

    fn files(&self) -> &DiskIo {
        &DiskIo
    }

    fn before(&self, operation: Operation<'_>) -> io::Result<Then> {
        Ok(match (self, operation) {
            (Self::Content, Operation::Sync) | (Self::Names, Operation::SyncDir) => Then::Pretend,
            _ => Then::Do,
        })
    }
}
