//! What a restore demands of the pages and chunks in a map. Restores, commits and verifications use the same check
//! (R24).

use crate::{PAGE_ENTRIES, Page, PageFlavour, RecordError};
use chunker::{BlobHeader, ChunkId, ChunkKind, GRID_BYTES};
use std::fmt;

/// A place in the map of a disk or stream: a page belongs there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spot {
    /// The kind of map.
    pub flavour: PageFlavour,
    /// Height of the page.
    pub level: u8,
    /// Bytes of the disk or stream at and below this place: fewer than the page could hold where the disk ends.
    pub bytes: u64,
}

/// The page or chunk to which a reference must lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Demand {
    /// A page for this place.
    Page(Spot),
    /// A chunk of this shape.
    Chunk(Shape),
}

/// What is known of a chunk without decoding it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shape {
    /// Kind of the chunk.
    pub kind: ChunkKind,
    /// Length of its plain bytes.
    pub plain_bytes: u32,
}

impl Spot {
    /// The root of a disk of `size` bytes, whose map has this height.
    pub const fn of_disk(size: u64, level: u8) -> Self {
        let span = span_of(level);
        Self { flavour: PageFlavour::Disk, level, bytes: if size < span { size } else { span } }
    }

    /// The root of a stream of so many bytes.
    pub const fn of_stream(bytes: u64, level: u8) -> Self {
        Self { flavour: PageFlavour::Stream, level, bytes }
    }

    /// Whether `page` may be in this place.
    ///
    /// # Errors
    /// When it is of another map, height or length, or has an entry past the disk's end.
    pub fn check(self, page: &Page) -> Result<(), RecordError> {
        if page.level() != self.level {
            return Err(RecordError::Value { field: "page level", value: page.level().into() });
        }
        page.check_place((self.flavour == PageFlavour::Stream).then_some(self.bytes))?;
        let last = (page.entries().len() as u64).saturating_sub(1);
        if self.flavour == PageFlavour::Disk && self.offset_of(page, last) >= self.bytes {
            return Err(RecordError::Value { field: "page entry past the end of the disk", value: last });
        }
        Ok(())
    }

    /// The id to which entry `at` of `page`, the page in this place, refers, and what must be there. None where the
    /// entry refers to nothing, and past the disk's end, where nobody looks.
    pub fn demand(self, page: &Page, at: u64) -> Option<(ChunkId, Demand)> {
        let id = page.entry(at).chunk()?;
        let bytes = match self.flavour {
            PageFlavour::Disk => self.bytes.checked_sub(self.offset_of(page, at)).filter(|rest| *rest > 0)?,
            PageFlavour::Stream => *page.lengths().get(usize::try_from(at).ok()?)?,
        };
        let demand = match (self.level.checked_sub(1), self.flavour) {
            (Some(level), PageFlavour::Disk) => Demand::Page(Self::of_disk(bytes, level)),
            (Some(level), PageFlavour::Stream) => Demand::Page(Self::of_stream(bytes, level)),
            (None, PageFlavour::Disk) => Demand::block(bytes),
            (None, PageFlavour::Stream) => {
                let plain_bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
                Demand::Chunk(Shape { kind: ChunkKind::Attachment, plain_bytes })
            }
        };
        Some((id, demand))
    }

    /// All references of `page`, the page in this place: number of the entry, id, and what must be there.
    pub fn demands(self, page: &Page) -> impl Iterator<Item = (u64, ChunkId, Demand)> + '_ {
        (0..page.entries().len() as u64)
            .filter_map(move |at| self.demand(page, at).map(|(id, demand)| (at, id, demand)))
    }

    /// Offset of the page or chunk to which entry `at` refers, in bytes from the beginning of this place.
    pub fn offset_of(self, page: &Page, at: u64) -> u64 {
        match self.flavour {
            PageFlavour::Disk => (span_of(self.level) / PAGE_ENTRIES).saturating_mul(at),
            PageFlavour::Stream => {
                let before = usize::try_from(at).unwrap_or(usize::MAX);
                page.lengths().iter().take(before).fold(0, |sum: u64, length| sum.saturating_add(*length))
            }
        }
    }
}

impl Demand {
    /// The demand for a block, when the disk has `rest` bytes from the beginning of the block on.
    pub const fn block(rest: u64) -> Self {
        let plain_bytes = if rest < GRID_BYTES as u64 { rest as u32 } else { GRID_BYTES };
        Self::Chunk(Shape { kind: ChunkKind::Data, plain_bytes })
    }

    /// Why a chunk of this shape cannot be there; none when it can.
    pub fn misfit(self, chunk: &ChunkId, have: Shape) -> Option<String> {
        let fits = match self {
            Self::Page(_) => have.kind == ChunkKind::Page,
            Self::Chunk(wanted) => have == wanted,
        };
        (!fits).then(|| format!("chunk {chunk} is {have}, but {self} is needed there, so a restore would fail"))
    }
}

impl Shape {
    /// Kind and plain length of a chunk, as the header of its blob says.
    pub const fn of(blob: &BlobHeader) -> Self {
        Self { kind: blob.kind, plain_bytes: blob.plain_bytes }
    }
}

impl fmt::Display for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Page(_) => f.write_str("a page"),
            Self::Chunk(shape) => shape.fmt(f),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            ChunkKind::Data => "a block",
            ChunkKind::Page => "a page",
            ChunkKind::Manifest => "a manifest",
            ChunkKind::Attachment => "a piece of an attachment",
        };
        write!(f, "{what} of {} bytes", self.plain_bytes)
    }
}

/// Bytes of a disk that a page of this level covers.
const fn span_of(level: u8) -> u64 {
    let mut span = GRID_BYTES as u64;
    let mut at = 0;
    while at <= level {
        span = span.saturating_mul(PAGE_ENTRIES);
        at += 1;
    }
    span
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PageRef;

    const GRID: u64 = GRID_BYTES as u64;

    fn disk(level: u8, entries: &[u64]) -> Page {
        let mut page = Page::disk(level);
        entries.iter().for_each(|at| page.set(*at, PageRef::Chunk(ChunkId([1; 32]))));
        page
    }

    fn block(plain_bytes: u32) -> Demand {
        Demand::Chunk(Shape { kind: ChunkKind::Data, plain_bytes })
    }

    #[test]
    fn the_last_block_ends_with_the_disk() {
        let spot = Spot::of_disk(2 * GRID + 5, 0);
        let page = disk(0, &[0, 2, 3]);
        let demands: Vec<_> = spot.demands(&page).map(|(at, _, demand)| (at, demand)).collect();
        assert_eq!(demands, [(0, block(GRID_BYTES)), (2, block(5))]);
        assert!(spot.check(&page).is_err(), "an entry past the end");
        assert_eq!(spot.check(&disk(0, &[0, 2])), Ok(()));
        assert!(spot.check(&disk(1, &[0])).is_err() && spot.check(&Page::stream(0, &[(ChunkId([1; 32]), 5)])).is_err());
    }

    #[test]
    fn equal_pages_in_whole_parts_of_a_disk_stand_in_equal_spots() {
        let (leaf, size) = (GRID * PAGE_ENTRIES, (GRID * PAGE_ENTRIES) * 3 + 1);
        let root = Spot::of_disk(size, 1);
        assert_eq!(root.bytes, size);
        let page = disk(1, &[0, 1, 3]);
        let below: Vec<_> = root.demands(&page).map(|(_, _, demand)| demand).collect();
        let whole = Demand::Page(Spot::of_disk(leaf, 0));
        assert_eq!(below, [whole, whole, Demand::Page(Spot::of_disk(1, 0))]);
        assert_eq!(Spot::of_disk(1 << 56, 3).bytes, 1 << 56);
        assert_eq!(Spot::of_disk(1 << 56, 3).check(&disk(3, &[1023])), Ok(()));
    }

    #[test]
    fn pieces_of_streams_are_as_long_as_their_entries_say() {
        let page = Page::stream(0, &[(ChunkId([1; 32]), 10), (ChunkId([2; 32]), 20)]);
        let spot = Spot::of_stream(30, 0);
        assert_eq!(spot.check(&page), Ok(()));
        assert!(Spot::of_stream(31, 0).check(&page).is_err());
        let piece = |plain_bytes| Demand::Chunk(Shape { kind: ChunkKind::Attachment, plain_bytes });
        assert_eq!(spot.demands(&page).map(|(_, _, demand)| demand).collect::<Vec<_>>(), [piece(10), piece(20)]);
        assert_eq!(spot.offset_of(&page, 1), 10);
    }

    #[test]
    fn kind_and_length_must_fit() {
        let id = ChunkId([1; 32]);
        let shape = |kind, plain_bytes| Shape { kind, plain_bytes };
        assert_eq!(block(5).misfit(&id, shape(ChunkKind::Data, 5)), None);
        assert!(block(5).misfit(&id, shape(ChunkKind::Data, 6)).is_some());
        assert!(block(5).misfit(&id, shape(ChunkKind::Attachment, 5)).is_some());
        let page = Demand::Page(Spot::of_disk(GRID, 0));
        assert_eq!(page.misfit(&id, shape(ChunkKind::Page, 50)), None);
        assert!(page.misfit(&id, shape(ChunkKind::Data, 50)).is_some());
    }
}
