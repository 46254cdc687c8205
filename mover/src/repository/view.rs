//! Random access to one disk of a recovery point, over one copy or several. Every byte is verified. Chunks that were
//! read last are kept in memory, and for a reader that reads in order the next chunks are fetched ahead.
//!
//! | file | what it is about |
//! |---|---|
//! | `ahead` | which readers read in order, and how far ahead to fetch for them |
//! | `cache` | chunks that were read, and those on their way |

mod ahead;
mod cache;
#[cfg(test)]
mod tests;

use crate::record::map::{LEAF_BYTES, PageCache, leaf_blocks};
use crate::{ChunkError, Demand, DiskRecord, Error, MapReader, Pool, ReadSession, Result, Shape, with_decoder};
use ahead::Streams;
use bytes::{Bytes, BytesMut};
use cache::{Cache, Claims, Fetched};
use chunker::{Blob, ChunkId, DomainKeys, Extent, ExtentSet, GRID_BYTES, grid_blocks};
use futures::StreamExt;
use std::sync::{Arc, Mutex};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// One disk of a point, open for reads at any offset. Several readers may use it at once.
///
/// Memory: [`ViewOptions::cache_bytes`] of chunks, 100 MiB on their way (also for readers that have given up), what readers
/// have got and not dropped yet, and pages of the disk map (about 4 MiB).
pub struct DiskView<R> {
    shared: Arc<Shared<R>>,
    streams: Mutex<Streams>,
}

/// How much a view keeps and fetches ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ViewOptions {
    /// Plain bytes of chunks that are kept; those that were not used for longest go first.
    pub cache_bytes: usize,
    /// How many bytes are fetched ahead for a reader that reads in order; at most half of the cache. With 0 nothing is
    /// fetched ahead.
    pub ahead_bytes: u64,
}

impl Default for ViewOptions {
    fn default() -> Self {
        Self { cache_bytes: 128 << 20, ahead_bytes: 32 << 20 }
    }
}

struct Shared<R> {
    session: Arc<R>,
    keys: DomainKeys,
    disk: DiskRecord,
    pool: Pool,
    pages: PageCache,
    cache: Mutex<Cache>,
    /// Pieces that may be fetched ahead at once.
    room: Semaphore,
    /// Chunks that may be on their way at once.
    on_their_way: Semaphore,
    /// What is being fetched; none once the view is closed.
    tasks: Mutex<Option<JoinSet<()>>>,
}

impl<R: ReadSession + 'static> DiskView<R> {
    /// Longest read, in bytes.
    pub const READ_BYTES_MAX: u64 = 32 << 20;

    /// Opens `disk` of a point that `session` has pinned; nothing is read yet. `keys` are of the repository's domain.
    pub fn new(session: Arc<R>, keys: &DomainKeys, disk: &DiskRecord, pool: &Pool, options: ViewOptions) -> Self {
        let ahead_bytes = options.ahead_bytes.min(options.cache_bytes as u64 / 2);
        Self {
            shared: Arc::new(Shared {
                session,
                keys: keys.clone(),
                disk: disk.clone(),
                pool: pool.clone(),
                pages: PageCache::default(),
                cache: Mutex::new(Cache::new(options.cache_bytes)),
                room: Semaphore::new(PIECES_AHEAD),
                on_their_way: Semaphore::new(CHUNKS_ON_THEIR_WAY_MAX as usize),
                tasks: Mutex::new(Some(JoinSet::new())),
            }),
            streams: Mutex::new(Streams::new(ahead_bytes, disk.size)),
        }
    }

    /// The disk's size in bytes.
    pub fn size(&self) -> u64 {
        self.shared.disk.size
    }

    /// The bytes of `extent`, verified. Where it lies in one chunk nothing is copied.
    ///
    /// # Errors
    /// `Usage` past the disk's end, or for more than [`Self::READ_BYTES_MAX`]; `Integrity` naming offset and chunk when
    /// no copy has a sound one; those of the repositories.
    pub async fn read(&self, extent: Extent) -> Result<Bytes> {
        let mut parts = self.read_parts(extent).await?;
        if parts.len() == 1 {
            return Ok(parts.remove(0));
        }
        let mut bytes = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        Ok(bytes.freeze())
    }

    /// As [`Self::read`], in pieces that follow each other, as they lie in memory.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn read_parts(&self, extent: Extent) -> Result<Vec<Bytes>> {
        if extent.end() > self.size() || extent.length > Self::READ_BYTES_MAX {
            return Err(Error::usage(format!(
                "{} bytes at {} cannot be read at once from a disk of {}",
                extent.length,
                extent.offset,
                self.size()
            )));
        }
        if extent.length == 0 {
            return Ok(Vec::new());
        }
        self.fetch_ahead(extent);
        self.shared.parts(extent).await
    }

    /// The part of `extent` that is not known to be zero. An old point may have chunks that hold only zeros; they count
    /// as data.
    ///
    /// # Errors
    /// As [`Self::read`], when the disk's map cannot be read.
    pub async fn data(&self, extent: Extent) -> Result<ExtentSet> {
        self.shared.data(extent).await
    }

    /// Ends all fetches, and waits until no task of this view holds the session any more.
    pub async fn close(self) {
        let tasks = self.shared.tasks.lock().expect("no holder panics").take();
        if let Some(mut tasks) = tasks {
            tasks.shutdown().await;
        }
    }

    /// Begins to fetch the next pieces for a reader that reads in order.
    fn fetch_ahead(&self, extent: Extent) {
        let next = self.streams.lock().expect("no holder panics").next(extent);
        for piece in next {
            let shared = self.shared.clone();
            self.shared.spawn(async move {
                let _room = shared.room.acquire().await.expect("never closed");
                // Whoever comes to read it meets the error again, and is told.
                if let Err(error) = shared.parts(piece).await {
                    tracing::debug!(offset = piece.offset, %error, "cannot be fetched ahead");
                }
            });
        }
    }
}

impl<R> Drop for DiskView<R> {
    fn drop(&mut self) {
        // They hold the session. Dropping them asks them to end; `close` also waits.
        drop(self.shared.tasks.lock().expect("no holder panics").take());
    }
}

impl<R: ReadSession + 'static> Shared<R> {
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().expect("no holder panics");
        let Some(tasks) = tasks.as_mut() else { return };
        while let Some(ended) = tasks.try_join_next() {
            if let Err(error) = ended {
                tracing::warn!(%error, "reading ahead ended");
            }
        }
        tasks.spawn(work);
    }

    fn reader(&self) -> MapReader<'_, R> {
        MapReader::sharing(&*self.session, &self.keys, self.pages.clone())
    }

    async fn parts(self: &Arc<Self>, extent: Extent) -> Result<Vec<Bytes>> {
        let grid = u64::from(GRID_BYTES);
        let blocks = self.blocks(extent).await?;
        let ids = blocks.iter().filter_map(|(_, chunk)| *chunk).collect();
        let chunks = self.chunks(ids).await;
        let mut parts = Vec::with_capacity(blocks.len());
        for (offset, id) in blocks {
            let from = extent.offset.max(offset) - offset;
            let to = extent.end().min(offset + grid) - offset;
            let Some(id) = id else {
                parts.push(Bytes::from_static(&ZEROES[..(to - from) as usize]));
                continue;
            };
            let at = |error: Error| error.at_offset(offset).on_disk(&self.disk.name);
            let chunk = chunks.get(&id).cloned().unwrap_or(Err(ChunkError::Missing { chunk: id }));
            let chunk = chunk.map_err(|error| at(error.into()))?;
            if let Some(what) = Demand::block(self.disk.size - offset).misfit(&id, chunk.shape) {
                return Err(at(Error::integrity(what)));
            }
            parts.push(chunk.bytes.slice(from as usize..to as usize));
        }
        Ok(parts)
    }

    /// The blocks that `extent` touches, in order: where each begins, and its chunk where it is not zero.
    async fn blocks(&self, extent: Extent) -> Result<Vec<(u64, Option<ChunkId>)>> {
        let of_disk = |error: Error| error.on_disk(&self.disk.name);
        let (size, grid, mut blocks) = (self.disk.size, u64::from(GRID_BYTES), Vec::new());
        let touched = Extent::from(extent.offset / grid * grid..extent.end());
        for part in ExtentSet::from_iter([touched]).split(LEAF_BYTES) {
            match self.reader().leaf(self.disk.root, part.offset / LEAF_BYTES).await.map_err(of_disk)? {
                Some(leaf) => {
                    for block in leaf_blocks(&leaf, size, part).map_err(of_disk)? {
                        let (block, chunk) = block.map_err(of_disk)?;
                        blocks.push((block.offset, chunk));
                    }
                }
                None => blocks.extend(grid_blocks(part, size).map(|block| (block.offset, None))),
            }
        }
        Ok(blocks)
    }

    async fn data(&self, extent: Extent) -> Result<ExtentSet> {
        let mut data = ExtentSet::new();
        let asked = ExtentSet::from_iter([Extent::from(extent.offset..extent.end().min(self.disk.size))]);
        for part in self.reader().with_data(self.disk.root, &asked).await?.split(LEAF_BYTES) {
            for (offset, chunk) in self.blocks(part).await? {
                if chunk.is_some() {
                    data.insert(Extent::from(offset..(offset + u64::from(GRID_BYTES)).min(self.disk.size)));
                }
            }
        }
        Ok(data.intersect(&asked))
    }

    /// Each of `ids`, from the cache or fetched. A chunk that another request is fetching is not fetched twice.
    async fn chunks(self: &Arc<Self>, ids: Vec<ChunkId>) -> Fetched {
        let Claims { mut there, waits, claimed } = self.cache.lock().expect("no holder panics").claim(ids);
        if let Some((ids, claim)) = claimed {
            let shared = self.clone();
            // On its own: whoever asked may give up, and others wait for it.
            self.spawn(async move {
                let chunks = u32::try_from(ids.len()).unwrap_or(u32::MAX).min(CHUNKS_ON_THEIR_WAY_MAX);
                let _turn = shared.on_their_way.acquire_many(chunks).await.expect("never closed");
                let fetched = shared.fetch(ids).await;
                shared.cache.lock().expect("no holder panics").arrived(claim, fetched);
            });
        }
        for wait in waits {
            there.extend(wait.fetched().await);
        }
        there
    }

    async fn fetch(&self, ids: Vec<ChunkId>) -> Fetched {
        let decoded = self.session.get(ids.clone()).map(|batch| self.decode(batch)).buffered(BATCHES_AT_ONCE);
        let mut fetched: Fetched = decoded.map(futures::stream::iter).flatten().collect().await;
        let wrong = |id: &ChunkId| matches!(fetched.get(id), Some(Err(ChunkError::Wrong { .. })));
        let wrong: Vec<ChunkId> = ids.into_iter().filter(wrong).collect();
        if !wrong.is_empty() {
            // Its checksum is right and its content is not: another place or copy may have it.
            let again = self.session.get_verified(&self.keys, wrong).await;
            fetched.extend(self.decode(again).await);
        }
        fetched
    }

    async fn decode(
        &self,
        batch: Vec<(ChunkId, Result<Blob, ChunkError>)>,
    ) -> Vec<(ChunkId, Result<Chunk, ChunkError>)> {
        let keys = self.keys.clone();
        let open = move |id: ChunkId, blob: Blob| {
            let mut plain = Vec::with_capacity(blob.header().plain_bytes.min(GRID_BYTES) as usize);
            with_decoder(|decoder| decoder.decode_verified(&keys, &id, &blob, &mut plain))
                .map_err(|error| ChunkError::Wrong { chunk: id, what: error.to_string() })?;
            Ok(Chunk { shape: Shape::of(blob.header()), bytes: plain.into() })
        };
        let work = move || batch.into_iter().map(|(id, blob)| (id, blob.and_then(|blob| open(id, blob)))).collect();
        self.pool.run(work).await
    }
}

/// A chunk in memory, verified.
#[derive(Debug, Clone)]
struct Chunk {
    shape: Shape,
    bytes: Bytes,
}

/// Pieces of [`ahead::PIECE_BYTES`] that are fetched ahead at once.
const PIECES_AHEAD: usize = 9;
/// Blocks of 64 KiB: 36 MiB ahead of readers, and 64 MiB that readers wait for.
const CHUNKS_ON_THEIR_WAY_MAX: u32 = 1600;
/// Batches of one piece that are decoded at once.
const BATCHES_AT_ONCE: usize = 4;
static ZEROES: [u8; GRID_BYTES as usize] = [0; GRID_BYTES as usize];
