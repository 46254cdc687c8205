//! Map pages: 1,024 references each. Layout in FORMAT.md, section "Page".

use crate::{RecordError, RecordReader, RecordWriter};
use chunker::{ChunkId, PLAIN_BYTES_MAX};

/// References in a full page.
pub const PAGE_ENTRIES: u64 = 1024;

/// Longest page that anybody makes: a full one of a stream has 42,000 bytes; the rest is for extensions.
pub const PAGE_BYTES_MAX: usize = 64 << 10;

/// Highest level of a page: the root of a map of 1,024^4 = 2^40 chunks.
pub const PAGE_LEVEL_MAX: u8 = 3;

/// The kind of map that a page is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum PageFlavour {
    /// A disk map: entry n of a leaf is block n of its run.
    Disk = 0,
    /// A stream map: each entry has a length, none is absent.
    Stream = 1,
}

/// One entry of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PageRef {
    /// Nothing but zeros below.
    #[default]
    Absent,
    /// A chunk of data (in a leaf) or a page.
    Chunk(ChunkId),
    /// The source could not be read here. Only in leaves of disk maps.
    Unreadable,
}

impl PageRef {
    /// The chunk id, where there is one.
    pub fn chunk(self) -> Option<ChunkId> {
        match self {
            Self::Chunk(id) => Some(id),
            Self::Absent | Self::Unreadable => None,
        }
    }
}

/// A page in memory. Canonical: two pages that mean the same have the same bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    flavour: PageFlavour,
    level: u8,
    entries: Vec<PageRef>,
    lengths: Vec<u64>,
}

impl Page {
    /// An all-zero page of a disk map.
    pub const fn disk(level: u8) -> Self {
        Self { flavour: PageFlavour::Disk, level, entries: Vec::new(), lengths: Vec::new() }
    }

    /// A page of a stream map; each entry with the number of bytes below it.
    ///
    /// # Panics
    /// With more than [`PAGE_ENTRIES`] entries.
    pub fn stream(level: u8, entries: &[(ChunkId, u64)]) -> Self {
        assert!(entries.len() as u64 <= PAGE_ENTRIES, "a page has 1,024 entries at most");
        Self {
            flavour: PageFlavour::Stream,
            level,
            entries: entries.iter().map(|(id, _)| PageRef::Chunk(*id)).collect(),
            lengths: entries.iter().map(|(_, length)| *length).collect(),
        }
    }

    /// The kind of map that the page is part of.
    pub const fn flavour(&self) -> PageFlavour {
        self.flavour
    }

    /// Level of the page: 0 if it refers to chunks, n if it refers to pages of level n - 1.
    pub const fn level(&self) -> u8 {
        self.level
    }

    /// Entry `at` of 1,024.
    pub fn entry(&self, at: u64) -> PageRef {
        usize::try_from(at).ok().and_then(|at| self.entries.get(at)).copied().unwrap_or_default()
    }

    /// The entries up to the last that is not absent.
    pub fn entries(&self) -> &[PageRef] {
        &self.entries
    }

    /// Bytes below each entry of a stream page; empty for disks.
    pub fn lengths(&self) -> &[u64] {
        &self.lengths
    }

    /// Whether the page belongs where it was found: in a disk's map, or in that of a stream which has so many bytes
    /// below this place.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check_place(&self, stream_bytes: Option<u64>) -> Result<(), RecordError> {
        let flavour = if stream_bytes.is_some() { PageFlavour::Stream } else { PageFlavour::Disk };
        if self.flavour != flavour {
            return Err(RecordError::Value { field: "page flavour", value: self.flavour as u64 });
        }
        match total(&self.lengths) {
            have if stream_bytes.is_none_or(|bytes| have == Some(bytes)) => Ok(()),
            have => Err(RecordError::Value { field: "length of the stream", value: have.unwrap_or(u64::MAX) }),
        }
    }

    /// The ids it refers to, in order.
    pub fn chunks(&self) -> impl Iterator<Item = ChunkId> + '_ {
        self.entries.iter().filter_map(|entry| entry.chunk())
    }

    /// Changes entry `at` of a disk page.
    ///
    /// # Panics
    /// When `at` is not below [`PAGE_ENTRIES`].
    pub fn set(&mut self, at: u64, entry: PageRef) {
        assert!(at < PAGE_ENTRIES && self.flavour == PageFlavour::Disk, "entry of a disk page");
        let at = at as usize;
        if at >= self.entries.len() {
            self.entries.resize(at + 1, PageRef::Absent);
        }
        self.entries[at] = entry;
        while self.entries.last() == Some(&PageRef::Absent) {
            self.entries.pop();
        }
    }

    /// True when nothing but zeros is below.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The page's bytes: what is fingerprinted and stored.
    pub fn encode(&self) -> Vec<u8> {
        let mut to = RecordWriter::new();
        let count = u16::try_from(self.entries.len()).expect("1,024 at most");
        to.bytes(PAGE_MAGIC).u8(PAGE_VERSION).u8(self.flavour as u8).u8(self.level).u8(0).u16(count).no_extensions();
        for entry in &self.entries {
            to.u8(match entry {
                PageRef::Absent => ABSENT,
                PageRef::Chunk(_) => CHUNK,
                PageRef::Unreadable => UNREADABLE,
            });
        }
        self.lengths.iter().for_each(|length| {
            to.u64(*length);
        });
        self.chunks().for_each(|id| {
            to.bytes(id.as_bytes());
        });
        to.finish()
    }

    /// Reads a page; refuses every byte string that [`Self::encode`] does not give (extensions apart).
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut from = RecordReader::new(bytes);
        let bad = |field, value: u64| Err(RecordError::Value { field, value });
        if from.bytes("page magic", 4)? != PAGE_MAGIC {
            return bad("page magic", 0);
        }
        match from.u8("page version")? {
            PAGE_VERSION => {}
            value => return Err(RecordError::Newer { field: "page version", value: value.into() }),
        }
        let flavour = match from.u8("page flavour")? {
            0 => PageFlavour::Disk,
            1 => PageFlavour::Stream,
            value => return bad("page flavour", value.into()),
        };
        let (level, reserved, count) = (from.u8("page level")?, from.u8("page reserved")?, from.u16("page count")?);
        if level > PAGE_LEVEL_MAX || reserved != 0 {
            return bad("page level", level.into());
        }
        if u64::from(count) > PAGE_ENTRIES || count == 0 {
            return bad("page count", count.into());
        }
        from.extensions()?;
        let states = from.bytes("page states", count.into())?;
        let lengths = match flavour {
            PageFlavour::Disk => Vec::new(),
            PageFlavour::Stream => (0..count).map(|_| from.u64("page length")).collect::<Result<_, _>>()?,
        };
        let mut entries = Vec::with_capacity(count.into());
        for state in states {
            entries.push(match (*state, flavour, level) {
                (CHUNK, _, _) => PageRef::Chunk(ChunkId(from.array("page reference")?)),
                (ABSENT, PageFlavour::Disk, _) => PageRef::Absent,
                (UNREADABLE, PageFlavour::Disk, 0) => PageRef::Unreadable,
                (state, _, _) => return bad("page state", state.into()),
            });
        }
        if entries.last() == Some(&PageRef::Absent) {
            return bad("page count", count.into());
        }
        // A chunk has a byte at least, and an entry no more than the chunks that can be below it.
        let most = u64::from(PLAIN_BYTES_MAX) * PAGE_ENTRIES.pow(u32::from(level));
        if let Some(length) = lengths.iter().find(|length| !(1..=most).contains(*length)) {
            return bad("page length", *length);
        }
        if total(&lengths).is_none() {
            return bad("page length", u64::MAX);
        }
        from.end()?;
        Ok(Self { flavour, level, entries, lengths })
    }
}

fn total(lengths: &[u64]) -> Option<u64> {
    lengths.iter().try_fold(0, |sum: u64, length| sum.checked_add(*length))
}

const PAGE_MAGIC: &[u8; 4] = b"WLPG";
const PAGE_VERSION: u8 = 1;
const ABSENT: u8 = 0;
const CHUNK: u8 = 1;
const UNREADABLE: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn round_trip(level in 0..=PAGE_LEVEL_MAX, sets in prop::collection::vec((0..1024u64, 0..3u8, any::<u8>()), 1..40)) {
            let mut page = Page::disk(level);
            for (at, state, byte) in sets {
                page.set(at, match state {
                    0 => PageRef::Absent,
                    2 if level == 0 => PageRef::Unreadable,
                    _ => PageRef::Chunk(ChunkId([byte; 32])),
                });
            }
            prop_assume!(!page.is_empty());
            let bytes = page.encode();
            prop_assert_eq!(Page::decode(&bytes), Ok(page));
            for cut in 0..bytes.len() {
                prop_assert!(Page::decode(&bytes[..cut]).is_err());
            }
        }

        #[test]
        fn what_decodes_is_canonical(mut bytes in prop::collection::vec(0..4u8, 14..80)) {
            bytes[..6].copy_from_slice(b"WLPG\x01\x00");
            if let Ok(page) = Page::decode(&bytes) {
                prop_assert_eq!(page.encode(), bytes);
            }
        }
    }

    #[test]
    fn stream_pages_have_lengths_and_no_gaps() {
        let page = Page::stream(0, &[(ChunkId([1; 32]), 10), (ChunkId([2; 32]), 20)]);
        let bytes = page.encode();
        assert_eq!(Page::decode(&bytes), Ok(page));
        let mut gap = bytes;
        gap[14] = ABSENT;
        assert!(Page::decode(&gap).is_err());
    }

    #[test]
    fn no_page_stands_above_the_highest_root() {
        let mut page = Page::disk(PAGE_LEVEL_MAX);
        page.set(0, PageRef::Chunk(ChunkId([1; 32])));
        let mut bytes = page.encode();
        assert_eq!(Page::decode(&bytes), Ok(page));
        bytes[6] += 1;
        assert!(Page::decode(&bytes).is_err());
    }

    #[test]
    fn lengths_of_streams_can_be() {
        let chunk = u64::from(PLAIN_BYTES_MAX);
        let id = ChunkId([1; 32]);
        for (level, length, good) in [
            (0, 0, false),
            (0, 1, true),
            (0, chunk, true),
            (0, chunk + 1, false),
            (1, chunk << 10, true),
            (1, (chunk << 10) + 1, false),
            (3, chunk << 30, true),
            (3, u64::MAX, false),
        ] {
            let page = Page::stream(level, &[(id, length)]);
            assert_eq!(Page::decode(&page.encode()).is_ok(), good, "{length} bytes at level {level}");
        }
        // Each can be, the sum cannot.
        assert!(Page::decode(&Page::stream(3, &[(id, chunk << 30); 1023]).encode()).is_ok());
        assert!(Page::decode(&Page::stream(3, &[(id, chunk << 30); 1024]).encode()).is_err());
    }

    #[test]
    fn a_page_is_of_the_map_it_stands_in() {
        let stream = Page::stream(0, &[(ChunkId([1; 32]), 10), (ChunkId([2; 32]), 20)]);
        assert_eq!(stream.check_place(Some(30)), Ok(()));
        assert!(stream.check_place(Some(29)).is_err() && stream.check_place(None).is_err());
        assert_eq!(Page::disk(0).check_place(None), Ok(()));
        assert!(Page::disk(0).check_place(Some(0)).is_err());
    }
}
