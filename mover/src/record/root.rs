//! Roots of maps: what a manifest says of a disk or stream.

use crate::PAGE_ENTRIES;
use chunker::{ChunkId, GRID_BYTES};

/// The root of a disk map or stream map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MapRoot {
    /// Height: a root of level 0 refers to chunks.
    pub level: u8,
    /// The root page; none when everything is zero (or the stream is empty).
    pub id: Option<ChunkId>,
}

/// The height of the map of a disk of `size` bytes.
pub const fn level_of(size: u64) -> u8 {
    let mut covered = PAGE_ENTRIES * GRID_BYTES as u64;
    let mut level = 0;
    while covered < size {
        covered = covered.saturating_mul(PAGE_ENTRIES);
        level += 1;
    }
    level
}
