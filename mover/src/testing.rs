//! What the unit tests share: worlds without chance, maps built through a repository in memory, models of maps.

use crate::{
    Begin, MapBuilder, MapReader, MapRoot, Mem, MemSession, NewPage, PAGE_ENTRIES, PageRef, PointId, Random,
    Repository, Timestamp, Verification, World, WriteSession, level_of, with_compressor,
};
use chunker::{ChunkId, ChunkKind, Compression, DomainKey, DomainKeys, GRID_BYTES};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What a map refers to, by block; absent blocks are not in it.
pub type Model = BTreeMap<u64, ChunkId>;

struct Counting(AtomicU64);

impl crate::Clock for Counting {
    fn now(&self) -> Timestamp {
        Timestamp(i64::try_from(self.0.fetch_add(1, Relaxed)).unwrap())
    }
}

impl Random for Counting {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill_with(|| blake3::hash(&self.0.fetch_add(1, Relaxed).to_le_bytes()).as_bytes()[0]);
    }
}

pub fn world() -> World {
    World::new(Arc::new(Counting(AtomicU64::new(1))), Arc::new(Counting(AtomicU64::new(7))))
}

pub fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}

pub fn chunk(number: u64) -> ChunkId {
    ChunkId(*blake3::hash(&number.to_le_bytes()).as_bytes())
}

/// A session on an empty repository that keeps the pages of maps.
pub struct Shelf {
    pub session: MemSession,
    pub keys: DomainKeys,
}

impl Shelf {
    pub async fn new() -> Self {
        let domain = DomainKey([9; 32]);
        let mem = Mem::in_domain(&world(), domain.clone());
        let begin =
            Begin { point: PointId::default(), parents: Vec::new(), holder: None, verification: Verification::Decode };
        let (session, _) = mem.begin(begin).await.unwrap();
        Self { session, keys: DomainKeys::new(&domain) }
    }

    pub fn reader(&self) -> MapReader<'_, MemSession> {
        MapReader::new(&self.session, &self.keys)
    }

    /// Builds a map on nothing or on `base`, and keeps its pages.
    pub async fn build(&self, size: u64, base: Option<MapRoot>, changes: &BTreeMap<u64, PageRef>) -> MapRoot {
        let reader = self.reader();
        let mut builder = MapBuilder::new(size, base.map(|root| (root, &reader)), &self.keys);
        for (at, (block, entry)) in changes.iter().enumerate() {
            builder.set(*block, *entry).await.unwrap();
            if at % 7 == 0 {
                self.keep(builder.take_pages()).await;
            }
        }
        let (root, pages) = builder.finish();
        self.keep(pages).await;
        self.session.flush().await.unwrap();
        root
    }

    pub async fn of(&self, size: u64, model: &Model) -> MapRoot {
        self.build(size, None, &entries(model)).await
    }

    pub async fn keep(&self, pages: Vec<NewPage>) {
        let compress = |plain: &[u8]| {
            with_compressor(Compression::Zstd(1), |compressor| compressor.compress(ChunkKind::Page, plain))
        };
        self.session.put(pages.into_iter().map(|page| (page.id, compress(&page.plain))).collect()).await.unwrap();
    }
}

pub fn entries(model: &Model) -> BTreeMap<u64, PageRef> {
    model.iter().map(|(block, id)| (*block, PageRef::Chunk(*id))).collect()
}

/// Sizes of every height up to four levels, exact and odd.
pub fn sizes() -> impl Strategy<Value = u64> {
    let grid = u64::from(GRID_BYTES);
    let leaf = grid * PAGE_ENTRIES;
    prop::sample::select(vec![
        1,
        grid + 1,
        leaf,
        leaf + 1,
        5 * leaf,
        PAGE_ENTRIES * leaf,
        PAGE_ENTRIES * leaf + 1,
        3 * PAGE_ENTRIES * leaf - 1,
        PAGE_ENTRIES * PAGE_ENTRIES * leaf + 7 * leaf,
    ])
}

/// Some blocks of a disk of `size` bytes, near the edges of pages more often than not.
pub fn models(size: u64) -> impl Strategy<Value = Model> {
    let blocks = size.div_ceil(u64::from(GRID_BYTES));
    let edges: Vec<u64> = (0..=u32::from(level_of(size)) + 1)
        .flat_map(|level| {
            let span = PAGE_ENTRIES.pow(level);
            [0, span.saturating_sub(1), span, 2 * span, blocks - 1]
        })
        .filter(|block| *block < blocks)
        .collect();
    let block = prop_oneof![prop::sample::select(edges), 0..blocks, 0..blocks.min(2100)];
    // Few different chunks, so that equal pages occur.
    prop::collection::btree_map(block, (0..6u64).prop_map(chunk), 0..40)
}

pub fn sized_pairs() -> impl Strategy<Value = (u64, Model, Model)> {
    sizes().prop_flat_map(|size| (Just(size), models(size), models(size)))
}
