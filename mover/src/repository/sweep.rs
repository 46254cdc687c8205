//! Options and report of a sweep of a repository.

use serde::{Deserialize, Serialize};

/// What a sweep may do, and how fast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepOptions {
    /// Only tell what would be reclaimed; nothing is deleted, nothing becomes final.
    pub dry_run: bool,
    /// If at least this percentage of a pack is dead, its live chunks are packed again; 1 to 100.
    pub repack_percent: u8,
    /// Most bytes of packs to read in a second while packing again.
    pub rate: Option<u64>,
    /// Sessions of other processes that are older than so many seconds are ended first. A process that still uses such
    /// a session gets an error.
    pub fence_older_s: Option<u64>,
}

impl Default for SweepOptions {
    fn default() -> Self {
        Self { dry_run: false, repack_percent: 50, rate: None, fence_older_s: None }
    }
}

/// What a sweep did, or would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SweepReport {
    /// Forgotten points that cannot come back any more.
    pub points_final: u64,
    /// Bytes of packs that points need.
    pub bytes_live: u64,
    /// Bytes of packs that no point needs and that stay, because too little of their packs is dead or a session may use
    /// them.
    pub bytes_dead: u64,
    /// Bytes of packs deleted, less those that were packed again.
    pub bytes_reclaimed: u64,
    /// Bytes that were packed again.
    pub bytes_repacked: u64,
    /// Bytes of doomed packs that wait for sessions to end.
    pub bytes_waiting: u64,
    /// Sessions that are waited for.
    pub sessions_waited_for: u64,
    /// Number of packs whose files were deleted.
    pub packs_deleted: u64,
    /// How long each part of the sweep took.
    pub milliseconds: SweepTimes,
}

/// Milliseconds of the parts of a sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SweepTimes {
    /// Counting the references of points since the last sweep.
    pub counting: u64,
    /// Finding what the forgotten points held alone, and in which packs it is.
    pub first_check: u64,
    /// Reading all live pages to see that nothing refers to what is deleted.
    pub second_check: u64,
}
