//! The pages that a walk has visited (R23).

use crate::{Error, PageFlavour, Result, Spot, digest};
use chunker::ChunkId;
use std::collections::HashSet;

/// Pages that a walk need not examine again, each with the place in which it was found. So a page that is stored once
/// is examined once, however often maps refer to it. It takes 17 bytes for each page.
#[derive(Debug, Default)]
pub struct Visited(HashSet<u128>);

impl Visited {
    /// Pages of one walk: 900 TiB of disks whose blocks are all in use.
    pub const PAGES_MAX: usize = (1 << 24) / 8 * 7;

    /// Notes a page; false when it was noted before in a place that demands the same.
    ///
    /// # Errors
    /// `Usage` beyond [`Self::PAGES_MAX`].
    pub fn insert(&mut self, page: &ChunkId, spot: Spot) -> Result<bool> {
        if self.0.len() >= Self::PAGES_MAX && !self.contains(page, spot) {
            return Err(Error::usage(format!("the points have more than {} different pages", Self::PAGES_MAX))
                .hint("name fewer points in one command"));
        }
        Ok(self.0.insert(key(page, spot)))
    }

    /// As [`Self::insert`], for a walk to which only the id and level of a page matter, not its place or the size of
    /// its map.
    ///
    /// # Errors
    /// As [`Self::insert`].
    pub fn insert_at(&mut self, page: &ChunkId, level: u8) -> Result<bool> {
        self.insert(page, Spot { flavour: PageFlavour::Disk, level, bytes: 0 })
    }

    /// Whether a page was noted in such a place.
    pub fn contains(&self, page: &ChunkId, spot: Spot) -> bool {
        self.0.contains(&key(page, spot))
    }
}

/// Half of a hash: two pages of the same one are not to be found.
fn key(page: &ChunkId, spot: Spot) -> u128 {
    let mut bytes = [0; 42];
    bytes[..32].copy_from_slice(page.as_bytes());
    bytes[32] = spot.flavour as u8;
    bytes[33] = spot.level;
    bytes[34..].copy_from_slice(&spot.bytes.to_le_bytes());
    u128::from_le_bytes(*digest(&bytes).first_chunk().expect("a hash is longer"))
}
