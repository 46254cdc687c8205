//! One disk of a backup: what may have changed is read, cut, compared and stored; the map follows.

use super::Job;
use crate::{
    ChangeTracking, Changed, DiskDescription, DiskRecord, Error, MapBuilder, MapReader, MapRoot, NewPage, PAGE_ENTRIES,
    Page, PageRef, Presence, RateLimiter, Repository, Result, Source, TrackingRecord, WriteSession, with_compressor,
};
use bytes::Bytes;
use chunker::{Blob, ChunkId, ChunkKind, DomainKeys, Extent, ExtentSet, GRID_BYTES, grid_blocks, is_zero};
use futures::StreamExt;
use futures::future::try_join;
use futures::stream::{FuturesOrdered, FuturesUnordered};
use std::cmp::Ordering;
use std::collections::{BTreeSet, HashSet, VecDeque};
use std::future::{Future, poll_fn};
use std::iter::Peekable;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Where and when the audit of a disk begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Begun {
    /// Offset at which the audit of the parent stopped.
    pub position: u64,
    /// The beginning of the increment's work on this disk.
    pub since: Instant,
}

pub(super) struct DiskPass<'a, R: Repository, S> {
    pub job: &'a Job<'a, R, S>,
    pub index: usize,
    pub description: &'a DiskDescription,
    /// The disk in the parent point.
    pub before: Option<&'a DiskRecord>,
    pub reader: &'a MapReader<'a, R::Session>,
    /// Offsets of blocks whose chunk in the parent is suspect (R16).
    pub suspects: BTreeSet<u64>,
    /// Where its audit begins.
    pub begun: Begun,
}

/// A run of blocks inside one leaf page.
struct Piece {
    extent: Extent,
    /// True when allocation says that it reads as zeros.
    zero: bool,
}

impl<R: Repository, S: Source> DiskPass<'_, R, S> {
    /// One pass over the disk, as [`DiskPass::settle`] decided.
    pub(super) async fn attempt(&mut self, changed: Changed) -> Result<(MapRoot, TrackingRecord)> {
        let size = self.description.size;
        if changed.mode == ChangeTracking::Full {
            self.before = None;
        }
        let (candidates, zeroes) = (self.candidates(&changed), whole_blocks(&changed.zeroes, size));
        let (read, zero) = (candidates.subtract(&zeroes), candidates.intersect(&zeroes));
        self.job.progress.expect(read.bytes());

        let patched = self.before.filter(|_| changed.mode == ChangeTracking::Bitmap);
        let base = patched.map(|record| (record.root, self.reader));
        let mut builder = MapBuilder::new(size, base, self.job.keys);
        // Where the parent has nothing there is nothing that zeros could replace.
        let zero = match self.before {
            Some(before) => self.reader.with_data(before.root, &zero).await?,
            None => ExtentSet::new(),
        };
        let pacer = RateLimiter::new(self.job.options.rate);
        let mut tracking = changed.record();
        let this = &*self;
        let flow = Flow::new();
        let store = async |cut: Option<Cut>, pages: Vec<NewPage>| {
            flow.pages.fetch_add(pages.len(), Relaxed);
            let of_cut = async {
                if let Some(cut) = cut {
                    this.keep(cut, &pacer, &flow).await?;
                    flow.active.fetch_sub(1, Relaxed);
                }
                Ok(())
            };
            let of_pages = async {
                let many = pages.len();
                this.job.store_pages(pages).await?;
                flow.pages.fetch_sub(many, Relaxed);
                Ok(())
            };
            try_join(of_cut, of_pages).await.map(drop)
        };
        let mut work = Work {
            pieces: pieces(&read, &zero).peekable(),
            cutting: FuturesOrdered::new(),
            cut: VecDeque::new(),
            storing: FuturesUnordered::new(),
            flow: &flow,
        };
        while let Some(cut) = work.next(|piece| this.cut(piece, &pacer)).await? {
            let place = async {
                for (block, entry) in &cut.refs {
                    builder.set(*block, *entry).await?;
                }
                Ok(builder.take_pages())
            };
            let pages = work.go_on_during(place).await?;
            tracking.bytes_read += cut.bytes_read;
            tracking.bytes_changed += cut.bytes_changed;
            work.storing.push(store(Some(cut), pages));
        }
        let (root, pages) = builder.finish();
        work.storing.push(store(None, pages));
        work.stored().await?;
        Ok((root, tracking))
    }

    /// What may differ from the parent, in whole blocks.
    pub(super) fn candidates(&self, changed: &Changed) -> ExtentSet {
        let size = self.description.size;
        let candidates = match changed.mode {
            ChangeTracking::Bitmap => changed.dirty.align(u64::from(GRID_BYTES), size),
            ChangeTracking::Fingerprint | ChangeTracking::Full => ExtentSet::whole(size),
        };
        candidates.union(&self.suspect_blocks())
    }

    /// Exactly the bytes of `extent`, at the pace that was asked for.
    pub(super) async fn read(&self, extent: Extent, pacer: &RateLimiter) -> Result<Bytes> {
        pacer.wait(extent.length).await;
        let bytes = self.job.source.read(self.index, extent).await?;
        if bytes.len() as u64 == extent.length {
            return Ok(bytes);
        }
        Err(Error::source(format!("read only {} of {} bytes at offset {}", bytes.len(), extent.length, extent.offset)))
    }

    /// Blocks whose chunk in the parent is suspect.
    pub(super) fn suspect_blocks(&self) -> ExtentSet {
        let size = self.description.size;
        self.suspects.iter().flat_map(|offset| grid_blocks(Extent::new(*offset, 1), size)).collect()
    }

    async fn cut(&self, piece: Piece, pacer: &RateLimiter) -> Result<Cut> {
        let (extent, size) = (piece.extent, self.description.size);
        if piece.zero {
            let before = self.leaf_before(extent).await?;
            let number = |block: &Extent| block.offset / u64::from(GRID_BYTES);
            let was_data = |block: &Extent| {
                before.as_ref().is_some_and(|page| page.entry(number(block) % PAGE_ENTRIES) != PageRef::Absent)
            };
            let gone: Vec<Extent> = grid_blocks(extent, size).filter(was_data).collect();
            let refs = gone.iter().map(|block| (number(block), PageRef::Absent)).collect();
            let bytes_changed = gone.iter().map(|block| block.length).sum();
            return Ok(Cut { extent, refs, changed: Vec::new(), bytes_read: 0, bytes_changed });
        }
        self.read_and_cut(extent, pacer).await
    }

    /// Brings the changed blocks of a piece into the repository.
    async fn keep(&self, mut cut: Cut, pacer: &RateLimiter, flow: &Flow) -> Result<()> {
        let (extent, bytes_read) = (cut.extent, cut.bytes_read);
        let ids: Vec<ChunkId> = cut.changed.iter().map(|(id, _)| *id).collect();
        if !ids.is_empty() {
            let light = flow.is_slow_and_knows_all();
            if light {
                cut.changed = Vec::new();
            }
            let asked = self.job.session.missing(ChunkKind::Data, &ids);
            let present = flow.ask(if light { &flow.light } else { &flow.waiting }, asked).await?;
            let mut turn = None;
            if light && present.contains(&Presence::Missing) {
                turn = Some(flow.again.acquire().await.expect("never closed"));
                cut = self.read_and_cut(extent, pacer).await?;
                if !cut.changed.iter().map(|(id, _)| id).eq(&ids) {
                    let at = extent.offset;
                    return Err(Error::source(format!(
                        "the bytes at offset {at} were different when they were read again"
                    ))
                    .hint("the disk changed while it was read: check how its snapshot is made, and back up again"));
                }
            }
            self.put_missing(cut.changed, present).await?;
            drop(turn);
        }
        if bytes_read > 0 {
            self.give_back(extent).await;
        }
        self.job.progress.advance(bytes_read);
        Ok(())
    }

    async fn read_and_cut(&self, extent: Extent, pacer: &RateLimiter) -> Result<Cut> {
        let before = self.leaf_before(extent).await?;
        let bytes = self.read(extent, pacer).await?;
        let suspects: Vec<u64> = self.suspects.range(extent.range()).copied().collect();
        let (keys, size) = (self.job.keys.clone(), self.description.size);
        Ok(self.job.pool.run(move || cut(&keys, &bytes, extent, size, before.as_deref(), &suspects)).await)
    }

    pub(super) async fn leaf_before(&self, extent: Extent) -> Result<Option<Arc<Page>>> {
        match self.before {
            Some(before) => self.reader.leaf(before.root, extent.offset / (PAGE_ENTRIES * u64::from(GRID_BYTES))).await,
            None => Ok(None),
        }
    }

    /// Compresses and puts those that are missing.
    async fn put_missing(&self, chunks: Vec<(ChunkId, Bytes)>, present: Vec<Presence>) -> Result<()> {
        let mut twice = HashSet::new();
        let missing = chunks.into_iter().zip(present).filter(|(_, it)| *it == Presence::Missing);
        let missing: Vec<(ChunkId, Bytes)> =
            missing.map(|(chunk, _)| chunk).filter(|(id, _)| twice.insert(*id)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let compression = self.job.options.compression;
        let compress = move |(id, plain): (ChunkId, Bytes)| -> (ChunkId, Blob) {
            (id, with_compressor(compression, |compressor| compressor.compress(ChunkKind::Data, &plain)))
        };
        let blobs = self.job.pool.run(move || missing.into_iter().map(compress).collect()).await;
        self.job.session.put(blobs).await
    }
}

/// Counts the pieces of a disk by their state. A repository far away answers late, so pieces that only wait for its
/// answer make room for others.
struct Flow {
    /// Pieces that are read, cut, compressed or put.
    active: AtomicUsize,
    /// Pieces that wait for an answer, with their bytes.
    waiting: AtomicUsize,
    /// Pieces that wait for an answer without their bytes. After many answers "have", "have" is expected for these
    /// pieces too; a piece for which the answer is "missing" is read again.
    light: AtomicUsize,
    /// Number of chunks that the repository had, since the last one that it did not have.
    there: AtomicUsize,
    /// Pages that are being stored.
    pages: AtomicUsize,
    /// Limits the pieces that are read again at once; without it all of them could be.
    again: Semaphore,
}

impl Flow {
    /// At the start nothing has been missing yet. Until the first answer comes, pieces are begun as if no chunk were
    /// missing.
    fn new() -> Self {
        let none = || AtomicUsize::new(0);
        Self {
            active: none(),
            waiting: none(),
            light: none(),
            there: AtomicUsize::new(LIGHT_AFTER),
            pages: none(),
            again: Semaphore::new(PIECES_MAX),
        }
    }

    /// Waits for the answer. Meanwhile the piece is counted in `those` and not in `active`.
    async fn ask(
        &self,
        those: &AtomicUsize,
        asked: impl Future<Output = Result<Vec<Presence>>>,
    ) -> Result<Vec<Presence>> {
        those.fetch_add(1, Relaxed);
        self.active.fetch_sub(1, Relaxed);
        let answer = asked.await;
        self.active.fetch_add(1, Relaxed);
        those.fetch_sub(1, Relaxed);
        let present = answer?;
        match present.contains(&Presence::Missing) {
            true => self.there.store(0, Relaxed),
            false => drop(self.there.fetch_add(present.len(), Relaxed)),
        }
        Ok(present)
    }

    /// Whether answers are late and have all been "have" for a long time. Pieces then wait without their bytes, which
    /// would only hold up other pieces. Before the first answer this is a guess, and it is made only when little room
    /// is left; if it is wrong, the pieces are read again.
    fn is_slow_and_knows_all(&self) -> bool {
        let (waiting, light) = (self.waiting.load(Relaxed), self.light.load(Relaxed));
        match self.there.load(Relaxed).cmp(&LIGHT_AFTER) {
            Ordering::Less => false,
            Ordering::Equal => waiting >= WAITING_MAX - PIECES_MAX,
            Ordering::Greater => waiting + light >= PIECES_MAX,
        }
    }

    /// Whether one more piece may be begun while `begun` others are on their way.
    fn has_room(&self, begun: usize) -> bool {
        self.active.load(Relaxed) < PIECES_MAX
            && self.waiting.load(Relaxed) < WAITING_MAX
            && self.pages.load(Relaxed) < PAGES_MAX
            && begun < if self.there.load(Relaxed) > LIGHT_AFTER { BEGUN_MAX } else { GUESSED_MAX }
    }
}

/// Pieces on their way. They are cut in order, because the map is made in order. Requests to the repository, which may
/// be far away, are made for pieces and pages in any order.
struct Work<'a, P: Iterator, F: Future, G> {
    pieces: Peekable<P>,
    cutting: FuturesOrdered<F>,
    /// Results of the first pieces of `cutting`, which are done.
    cut: VecDeque<F::Output>,
    storing: FuturesUnordered<G>,
    flow: &'a Flow,
}

impl<P, F, G> Work<'_, P, F, G>
where
    P: Iterator<Item = Piece>,
    F: Future<Output = Result<Cut>>,
    G: Future<Output = Result<()>>,
{
    /// Gives the next cut and begins as many pieces as may be begun meanwhile; none at the end.
    async fn next(&mut self, mut begin: impl FnMut(Piece) -> F) -> Result<Option<Cut>> {
        poll_fn(|context| {
            loop {
                self.poll_storing(context)?;
                let mut more = false;
                while self.flow.has_room(self.cutting.len() + self.cut.len() + self.storing.len())
                    && let Some(piece) = self.pieces.next()
                {
                    self.flow.active.fetch_add(1, Relaxed);
                    self.cutting.push_back(begin(piece));
                    more = true;
                }
                if let Some(cut) = self.cut.pop_front() {
                    return Poll::Ready(cut.map(Some));
                }
                match self.cutting.poll_next_unpin(context) {
                    // Those that are stored make room.
                    Poll::Ready(None) if self.pieces.peek().is_some() => return Poll::Pending,
                    Poll::Ready(cut) => return Poll::Ready(cut.transpose()),
                    Poll::Pending if more => {}
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await
    }

    /// Waits for `place` while everything else goes on. A piece that nobody polls may be the first in a queue of the
    /// repository, and `place` would wait behind it for ever. This is why no `buffered()` stream is used here.
    async fn go_on_during<T>(&mut self, place: impl Future<Output = Result<T>>) -> Result<T> {
        let mut place = std::pin::pin!(place);
        poll_fn(|context| {
            self.poll_storing(context)?;
            while let Poll::Ready(Some(cut)) = self.cutting.poll_next_unpin(context) {
                self.cut.push_back(cut);
            }
            place.as_mut().poll(context)
        })
        .await
    }

    /// Waits until everything is stored.
    async fn stored(&mut self) -> Result<()> {
        poll_fn(|context| {
            self.poll_storing(context)?;
            if self.storing.is_empty() { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await
    }

    fn poll_storing(&mut self, context: &mut Context<'_>) -> Result<()> {
        while let Poll::Ready(Some(stored)) = self.storing.poll_next_unpin(context) {
            stored?;
        }
        Ok(())
    }
}

/// A piece cut into blocks.
struct Cut {
    extent: Extent,
    refs: Vec<(u64, PageRef)>,
    /// Blocks that differ from the parent, and blocks whose chunk there is suspect.
    changed: Vec<(ChunkId, Bytes)>,
    bytes_read: u64,
    /// Bytes of those that changed, or became zero.
    bytes_changed: u64,
}

/// Blocks are compared by chunk id, never by a weaker checksum (T7); suspect ones always count as changed.
fn cut(keys: &DomainKeys, bytes: &Bytes, extent: Extent, size: u64, before: Option<&Page>, suspects: &[u64]) -> Cut {
    let mut made = Cut { extent, refs: Vec::new(), changed: Vec::new(), bytes_read: extent.length, bytes_changed: 0 };
    for block in grid_blocks(extent, size) {
        let number = block.offset / u64::from(GRID_BYTES);
        let from = usize::try_from(block.offset - extent.offset).expect("a piece fits memory");
        let plain = bytes.slice(from..from + usize::try_from(block.length).expect("a block fits memory"));
        let was = before.map_or(PageRef::Absent, |page| page.entry(number % PAGE_ENTRIES));
        let now = if is_zero(&plain) { PageRef::Absent } else { PageRef::Chunk(keys.id(ChunkKind::Data, &plain)) };
        made.refs.push((number, now));
        match now {
            PageRef::Chunk(id) if now != was || suspects.contains(&block.offset) => {
                made.bytes_changed += block.length;
                made.changed.push((id, plain));
            }
            PageRef::Absent if now != was => made.bytes_changed += block.length,
            _ => {}
        }
    }
    made
}

/// The grid blocks that lie in `set` entirely.
pub(super) fn whole_blocks(set: &ExtentSet, size: u64) -> ExtentSet {
    set.complement(size).align(u64::from(GRID_BYTES), size).complement(size)
}

/// Both sets in ascending order, cut so that no piece is longer than [`PIECE_BYTES`] (zeros: a leaf) or leaves its leaf.
fn pieces(read: &ExtentSet, zero: &ExtentSet) -> impl Iterator<Item = Piece> {
    let leaf_bytes = PAGE_ENTRIES * u64::from(GRID_BYTES);
    let mut read = read.split(PIECE_BYTES).map(|extent| Piece { extent, zero: false }).peekable();
    let mut zero = zero.split(leaf_bytes).map(|extent| Piece { extent, zero: true }).peekable();
    std::iter::from_fn(move || match (read.peek(), zero.peek()) {
        (Some(a), Some(b)) if b.extent.offset < a.extent.offset => zero.next(),
        (Some(_), _) => read.next(),
        (None, _) => zero.next(),
    })
}

/// Bytes of one read: a whole number of blocks, a whole part of a leaf.
const PIECE_BYTES: u64 = 1 << 20;

/// Pieces at work at once: read, cut, compressed or put; and as many that are read again.
const PIECES_MAX: usize = 16;
/// Pieces that wait for an answer with their bytes, in addition to [`PIECES_MAX`]: as many as 1 Gbit/s of blobs needs
/// at 150 ms. The sum of both, times [`PIECE_BYTES`], bounds the plain bytes held.
const WAITING_MAX: usize = 48;
/// Pages of the map on their way, of 34 KiB at most.
const PAGES_MAX: usize = 128;
/// Pieces begun, including those that wait without their bytes; each of these holds 2 KiB. So many may have to be read
/// again.
const BEGUN_MAX: usize = 4096;
/// The same limit, as long as it is not known whether pieces will have to be read again.
const GUESSED_MAX: usize = 1024;
/// Chunks in a row that must have been there before the next ones wait without their bytes.
const LIGHT_AFTER: usize = 1024;
