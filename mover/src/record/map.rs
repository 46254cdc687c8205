//! The disk map: a Merkle radix tree of pages. Reading it, and building the next one out of the last.

mod leaves;

use crate::world::pool::with_decoder;
use crate::{Error, MapRoot, PAGE_ENTRIES, PAGE_LEVEL_MAX, Page, PageRef, ReadSession, Result, level_of};
use chunker::{Blob, BlobError, ChunkId, ChunkKind, DomainKeys};
use futures::{StreamExt, pin_mut};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tokio::sync::OnceCell;
use tokio::task::coop::consume_budget;

pub(crate) use leaves::{LEAF_BYTES, leaf_blocks};

/// Reads and verifies pages through a session, and keeps the last few.
pub struct MapReader<'a, R> {
    session: &'a R,
    keys: &'a DomainKeys,
    cache: PageCache,
}

/// Pages that were read last. A clone is the same cache. A reader that asks for a page that is on its way waits for it.
#[derive(Clone, Default)]
pub(crate) struct PageCache(Arc<Mutex<Pages>>);

type Pages = HashMap<ChunkId, Arc<OnceCell<Arc<Page>>>>;

impl<'a, R: ReadSession> MapReader<'a, R> {
    /// Reads through `session`.
    pub fn new(session: &'a R, keys: &'a DomainKeys) -> Self {
        Self::sharing(session, keys, PageCache::default())
    }

    /// As [`Self::new`], with a cache that readers of other copies of the same point also use.
    pub(crate) fn sharing(session: &'a R, keys: &'a DomainKeys, cache: PageCache) -> Self {
        Self { session, keys, cache }
    }

    /// The session it reads through.
    pub const fn session(&self) -> &'a R {
        self.session
    }

    /// Reads one page, and checks its id and level.
    ///
    /// # Errors
    /// `Integrity` when it is missing, damaged or not a page of this level.
    pub async fn page(&self, id: ChunkId, level: u8) -> Result<Arc<Page>> {
        let cell = {
            let mut cache = self.cache.0.lock().expect("not poisoned");
            if cache.len() >= CACHED_PAGES_MAX && !cache.contains_key(&id) {
                cache.clear();
            }
            cache.entry(id).or_default().clone()
        };
        // Whoever walks through pages that are at hand would never be told to stop (R23).
        consume_budget().await;
        let page = cell.get_or_try_init(|| self.fetch(id)).await?;
        expect_level(page.clone(), level, id)
    }

    async fn fetch(&self, id: ChunkId) -> Result<Arc<Page>> {
        let blobs = self.session.get(vec![id]);
        pin_mut!(blobs);
        let (_, blob) = blobs
            .next()
            .await
            .and_then(|batch| batch.into_iter().find(|(got, _)| *got == id))
            .ok_or_else(|| Error::internal("a read session gave nothing for a page"))?;
        let mut blob = blob?;
        let mut decoded = self.open(id, &blob);
        if decoded.is_err() {
            // Its checksum is right and its content is not; perhaps another place has it.
            let again = self.session.get_verified(self.keys, vec![id]).await;
            for (_, found) in again {
                blob = found.map_err(|error| Error::from(error).context("a page of the disk map"))?;
                decoded = self.open(id, &blob);
            }
        }
        let plain = decoded.map_err(|error| Error::integrity(format!("page {id}")).because(error))?;
        if blob.header().kind != ChunkKind::Page {
            return Err(Error::integrity(format!("chunk {id} is not a page")));
        }
        let page = Page::decode(&plain).map_err(|error| Error::from(error).context(format!("page {id}")))?;
        Ok(Arc::new(page))
    }

    fn open(&self, id: ChunkId, blob: &Blob) -> Result<Vec<u8>, BlobError> {
        let mut plain = Vec::new();
        with_decoder(|decoder| decoder.decode_verified(self.keys, &id, blob, &mut plain)).map(|()| plain)
    }

    /// Leaf number `index` (64 MiB of disk each); none when it is all zero.
    ///
    /// # Errors
    /// As [`Self::page`].
    pub async fn leaf(&self, root: MapRoot, index: u64) -> Result<Option<Arc<Page>>> {
        if level_above(index) > root.level {
            return Ok(None);
        }
        let mut at = root.id;
        for level in (1..=root.level).rev() {
            let Some(id) = at else { return Ok(None) };
            let page = self.page(id, level).await?;
            at = page.entry(index / PAGE_ENTRIES.pow(u32::from(level) - 1) % PAGE_ENTRIES).chunk();
        }
        match at {
            Some(id) => self.page(id, 0).await.map(Some),
            None => Ok(None),
        }
    }
}

fn expect_level(page: Arc<Page>, level: u8, id: ChunkId) -> Result<Arc<Page>> {
    if page.level() == level {
        return Ok(page);
    }
    Err(Error::integrity(format!("page {id} has level {} where {level} belongs", page.level())))
}

/// The lowest level of a root over leaf `index`.
const fn level_above(index: u64) -> u8 {
    let mut level = 0;
    let mut rest = index;
    while rest > 0 {
        rest /= PAGE_ENTRIES;
        level += 1;
    }
    level
}

/// A page that a builder made: to be stored as a chunk of kind page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPage {
    /// Chunk id of the page.
    pub id: ChunkId,
    /// Plain bytes of the page.
    pub plain: Vec<u8>,
}

/// Builds a disk map from entries in ascending order, on nothing or on an older map of the same height. Holds one page
/// of each level; finished pages wait in [`Self::take_pages`].
pub struct MapBuilder<'a, R> {
    base: Option<(MapRoot, &'a MapReader<'a, R>)>,
    keys: &'a DomainKeys,
    /// The open page of each level, from the leaf up; none where no entry was set since the place changed.
    open: Vec<Option<OpenPage>>,
    made: Vec<NewPage>,
    root: Option<ChunkId>,
}

struct OpenPage {
    index: u64,
    page: Page,
    base: Option<ChunkId>,
}

impl<'a, R: ReadSession> MapBuilder<'a, R> {
    /// A builder for a disk of `size` bytes; entries that are not set stay as in `base`.
    ///
    /// # Panics
    /// When `base` is of a different height.
    pub fn new(size: u64, base: Option<(MapRoot, &'a MapReader<'a, R>)>, keys: &'a DomainKeys) -> Self {
        let level = level_of(size);
        assert!(base.as_ref().is_none_or(|(root, _)| root.level == level), "a base of the same height");
        let root = base.as_ref().and_then(|(root, _)| root.id);
        Self { base, keys, open: (0..=level).map(|_| None).collect(), made: Vec::new(), root }
    }

    /// Sets the reference of `block`; blocks come in ascending order.
    ///
    /// # Errors
    /// When a page of the base cannot be read.
    pub async fn set(&mut self, block: u64, entry: PageRef) -> Result<()> {
        self.seek(block / PAGE_ENTRIES).await?;
        let leaf = self.open[0].as_mut().expect("seek opened it");
        leaf.page.set(block % PAGE_ENTRIES, entry);
        Ok(())
    }

    /// The pages finished since the last call.
    pub fn take_pages(&mut self) -> Vec<NewPage> {
        std::mem::take(&mut self.made)
    }

    /// Closes every page and gives the new root and the last pages.
    pub fn finish(mut self) -> (MapRoot, Vec<NewPage>) {
        let level = self.open.len() - 1;
        (0..=level).for_each(|at| self.close(at));
        (MapRoot { level: u8::try_from(level).expect("four levels at most"), id: self.root }, self.made)
    }

    async fn seek(&mut self, leaf: u64) -> Result<()> {
        let index_at = |level: usize| leaf / PAGE_ENTRIES.pow(u32::try_from(level).expect("four levels at most"));
        for level in 0..self.open.len() {
            if self.open[level].as_ref().is_some_and(|open| open.index != index_at(level)) {
                self.close(level);
            }
        }
        for level in (0..self.open.len()).rev() {
            if self.open[level].is_some() {
                continue;
            }
            let base = match self.open.get(level + 1) {
                Some(above) => above.as_ref().expect("opened from the top").page.entry(index_at(level) % PAGE_ENTRIES),
                None => self.root.map_or(PageRef::Absent, PageRef::Chunk),
            };
            let base = base.chunk();
            let depth = u8::try_from(level).expect("four levels at most");
            let page = match (base, &self.base) {
                (Some(id), Some((_, reader))) => Page::clone(&*reader.page(id, depth).await?),
                (Some(_), None) => unreachable!("without a base every page is opened once: blocks ascend"),
                (None, _) => Page::disk(depth),
            };
            self.open[level] = Some(OpenPage { index: index_at(level), page, base });
        }
        Ok(())
    }

    fn close(&mut self, level: usize) {
        let Some(open) = self.open[level].take() else { return };
        let id = (!open.page.is_empty()).then(|| {
            let plain = open.page.encode();
            let id = self.keys.id(ChunkKind::Page, &plain);
            if open.base != Some(id) {
                self.made.push(NewPage { id, plain });
            }
            id
        });
        match self.open.get_mut(level + 1) {
            Some(above) => {
                let above = above.as_mut().expect("closed from the leaf up");
                above.page.set(open.index % PAGE_ENTRIES, id.map_or(PageRef::Absent, PageRef::Chunk));
            }
            None => self.root = id,
        }
    }
}

/// Builds the map of a byte stream from its chunks in order.
///
/// # Errors
/// `Usage` when the stream has more chunks than a map holds.
pub fn stream_map(keys: &DomainKeys, chunks: &[(ChunkId, u64)]) -> Result<(MapRoot, Vec<NewPage>)> {
    let mut made = Vec::new();
    let mut entries = chunks.to_vec();
    for level in 0..=PAGE_LEVEL_MAX {
        let per_page = usize::try_from(PAGE_ENTRIES).expect("1,024");
        entries = entries
            .chunks(per_page)
            .map(|run| {
                let plain = Page::stream(level, run).encode();
                let id = keys.id(ChunkKind::Page, &plain);
                made.push(NewPage { id, plain });
                (id, run.iter().map(|(_, length)| length).sum())
            })
            .collect();
        if entries.len() <= 1 {
            return Ok((MapRoot { level, id: entries.first().map(|(id, _)| *id) }, made));
        }
    }
    Err(Error::usage("the attachment is too long"))
}

const CACHED_PAGES_MAX: usize = 256;

#[cfg(test)]
mod tests;
