//! Finds the leaves that have data. Subtrees of zeros are passed without reading, however large the disk is.

use super::{MapReader, MapRoot, level_above};
use crate::{Error, PAGE_ENTRIES, Page, PageRef, ReadSession, Result, Spot};
use chunker::{ChunkId, Extent, ExtentSet, GRID_BYTES, grid_blocks};

/// Bytes of disk under a leaf: 64 MiB.
pub(crate) const LEAF_BYTES: u64 = PAGE_ENTRIES * GRID_BYTES as u64;

/// The blocks of `extent`, which lies under one leaf of a disk of `size` bytes, and the chunk of each that is not zero.
///
/// # Errors
/// `Integrity` when the page does not belong there, or a block could not be read when it was backed up.
pub(crate) fn leaf_blocks(
    page: &Page,
    size: u64,
    extent: Extent,
) -> Result<impl Iterator<Item = Result<(Extent, Option<ChunkId>)>>> {
    let begin = extent.offset / LEAF_BYTES * LEAF_BYTES;
    let spot = Spot::of_disk(size - begin, 0);
    spot.check(page).map_err(|error| Error::from(error).at_offset(begin))?;
    Ok(grid_blocks(extent, size).map(|block| match page.entry(block.offset / u64::from(GRID_BYTES) % PAGE_ENTRIES) {
        PageRef::Absent => Ok((block, None)),
        PageRef::Chunk(id) => Ok((block, Some(id))),
        PageRef::Unreadable => {
            Err(Error::integrity("it could not be read when it was backed up").at_offset(block.offset))
        }
    }))
}

impl<R: ReadSession> MapReader<'_, R> {
    /// The first leaf from number `from` on that is not all zero, and its page.
    ///
    /// # Errors
    /// As [`Self::page`].
    pub async fn next_leaf(&self, root: MapRoot, mut from: u64) -> Result<Option<(u64, ChunkId)>> {
        let Some(top) = root.id else { return Ok(None) };
        'from_the_top: while level_above(from) <= root.level {
            let mut at = top;
            for level in (1..=root.level).rev() {
                let page = self.page(at, level).await?;
                let below = PAGE_ENTRIES.pow(u32::from(level) - 1);
                let (first, number) = (from / below, from / below % PAGE_ENTRIES);
                let there = |entry: u64| page.entry(entry).chunk().map(|id| (entry, id));
                let Some((entry, id)) = (number..PAGE_ENTRIES).find_map(there) else {
                    from = (first - number + PAGE_ENTRIES) * below;
                    continue 'from_the_top;
                };
                if entry > number {
                    from = (first - number + entry) * below;
                }
                at = id;
            }
            return Ok(Some((from, at)));
        }
        Ok(None)
    }

    /// The parts of `extents` that lie under leaves that are not all zero.
    ///
    /// # Errors
    /// As [`Self::page`].
    pub async fn with_data(&self, root: MapRoot, extents: &ExtentSet) -> Result<ExtentSet> {
        let mut found = ExtentSet::new();
        for extent in extents.iter() {
            let mut at = extent.offset;
            while at < extent.end() {
                let Some((leaf, _)) = self.next_leaf(root, at / LEAF_BYTES).await? else { return Ok(found) };
                let from = at.max(leaf * LEAF_BYTES);
                at = (leaf + 1) * LEAF_BYTES;
                if from < extent.end() {
                    found.insert(Extent::from(from..at.min(extent.end())));
                }
            }
        }
        Ok(found)
    }
}
