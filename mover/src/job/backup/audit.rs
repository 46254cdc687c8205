//! The audit of change tracking (T8): a part of the blocks that the bitmap calls unchanged is read anyway and compared
//! with the parent. The audit of each increment begins where the audit of the one before stopped, so that audits go
//! round the disk.

use super::disk::{DiskPass, whole_blocks};
use crate::{
    ChangeTracking, Changed, DiskId, Error, Manifest, MapRoot, PAGE_ENTRIES, Page, PageRef, RateLimiter, RecordError,
    RecordReader, RecordWriter, Repository, Result, Source, TrackingRecord, TrackingWish,
};
use bytes::Bytes;
use chunker::{ChunkKind, DomainKeys, Extent, ExtentSet, GRID_BYTES, grid_blocks, is_zero};
use futures::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// How much of what the bitmap calls unchanged is read all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Audit {
    /// 1 % of the unchanged bytes, but at most 1 GiB, and at most what can be read in 2 % of the increment's time.
    #[default]
    Usual,
    /// All unchanged bytes in so many percent of the disk, however long this takes; 0 means no audit.
    Percent(u8),
}

/// How far the audit of a disk has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditReport {
    /// Offset at which the next increment goes on.
    pub position: u64,
    /// The end of the disk was passed.
    pub turn_completed: bool,
    /// Less was audited than the share of this increment.
    pub cut_short: bool,
}

/// What an audit came to.
enum Found {
    Nothing,
    AsBefore(u64, AuditReport),
    /// Bytes read until then, and the block that is not what it was.
    Changed(u64, u64),
}

impl<R: Repository, S: Source> DiskPass<'_, R, S> {
    /// Reads, stores and maps the disk. Damage in the parent's map makes it a full pass: pages that are written anew
    /// heal it, and a machine whose last point is damaged can still be backed up.
    pub async fn run(
        mut self,
        changed: Changed,
        warnings: &mut Vec<String>,
    ) -> Result<(MapRoot, TrackingRecord, Option<AuditReport>)> {
        let made = match self.audited(changed.clone(), warnings).await {
            Err(error) if self.before.is_some() && self.job.may_read_all(&error) => {
                let changed = self.of_damaged(changed, &error, warnings)?;
                self.attempt(changed).await.map(|(root, tracking)| (root, tracking, None))
            }
            made => made,
        }?;
        self.give_back(Extent::new(0, self.description.size)).await;
        Ok(made)
    }

    /// Reads everything instead, because the parent's map is damaged.
    pub(super) fn of_damaged(&self, changed: Changed, error: &Error, warnings: &mut Vec<String>) -> Result<Changed> {
        let name = &self.description.name;
        self.job.given.needs_again(&format!("disk {name}: the parent's map cannot be read: {error}"), None)?;
        tracing::warn!(disk = %name, %error, "the parent's map cannot be read; everything is read instead");
        warnings.push(format!("disk {name}: everything was read, because the parent's map cannot be: {error}"));
        let reason = "the parent's map is damaged".into();
        Ok(Changed { mode: ChangeTracking::Full, reason, ..changed })
    }

    /// One pass over the disk, audited. If the audit shows that the bitmap is wrong, the bitmap is not used any more,
    /// and everything is read and compared.
    async fn audited(
        &mut self,
        changed: Changed,
        warnings: &mut Vec<String>,
    ) -> Result<(MapRoot, TrackingRecord, Option<AuditReport>)> {
        let (root, mut tracking) = self.attempt(changed.clone()).await?;
        if tracking.mode != ChangeTracking::Bitmap {
            return Ok((root, tracking, None));
        }
        let (bytes, offset) = match self.audit(&changed).await? {
            Found::Nothing => return Ok((root, tracking, None)),
            Found::AsBefore(bytes, report) => {
                tracking.bytes_audited = bytes;
                return Ok((root, tracking, Some(report)));
            }
            Found::Changed(bytes, offset) => (bytes, offset),
        };
        let lie = format!("the audit found a change at offset {offset}, which the bitmap calls unchanged");
        if self.job.options.wish == TrackingWish::Bitmap {
            return Err(Error::tracking(lie).hint("leave out --change-tracking bitmap to read everything once"));
        }
        self.job.given.needs_again(&lie, Some((&self.description.name, &lie)))?;
        self.tell_lie(&lie, warnings);
        let read_before = tracking.bytes_read;
        let (root, mut tracking) =
            self.attempt(Changed { mode: ChangeTracking::Fingerprint, reason: lie, ..changed }).await?;
        tracking.bytes_read += read_before;
        tracking.bytes_audited = bytes;
        Ok((root, tracking, None))
    }

    /// What the audit of this increment may read, at most; none when nothing is audited.
    pub(super) fn sample(&self, changed: &Changed) -> Option<Sample> {
        let (size, grid) = (self.description.size, u64::from(GRID_BYTES));
        // What is zero by allocation was compared with the parent already, all of it.
        let known =
            changed.dirty.align(grid, size).union(&self.suspect_blocks()).union(&whole_blocks(&changed.zeroes, size));
        let clean = ExtentSet::whole(size).subtract(&known);
        let share = Share::of(self.job.options.audit, size, clean.bytes())?;
        let ring = Ring::new(size, self.begun.position);
        Some(Sample { share, ring, parts: ring.parts(&clean, share.blocks) })
    }

    async fn audit(&self, changed: &Changed) -> Result<Found> {
        let options = self.job.options;
        let Some(Sample { share, ring, parts }) = self.sample(changed) else { return Ok(Found::Nothing) };
        let (began, pacer) = (Instant::now(), &RateLimiter::new(options.rate));
        let limit = share.limit(began.duration_since(self.begun.since), options.rate);
        let (mut planned, mut stopped) = (0, false);
        let pieces = parts.iter().flat_map(Part::pieces).take_while(|piece| {
            // At least one, so that every turn ends.
            let room = planned == 0 || planned < limit.bytes && began.elapsed() < limit.time;
            stopped |= !room;
            planned += if room { piece.extent.length } else { 0 };
            room
        });
        let mut compared = stream::iter(pieces)
            .map(|piece| async move { self.first_difference(piece.extent, pacer).await.map(|found| (piece, found)) })
            .buffered(PIECES_MAX);
        let (mut bytes, mut reached) = (0, ring.from);
        // Nothing else is waited for in here: pieces that nobody polls may stand before it in a queue.
        while let Some(done) = compared.next().await {
            let (piece, difference) = done?;
            bytes += piece.extent.length;
            reached = piece.reached;
            if let Some(offset) = difference {
                return Ok(Found::Changed(bytes, offset));
            }
        }
        drop(compared);
        if !stopped {
            reached = ring.from + share.blocks;
        }
        let report = AuditReport {
            position: reached % ring.blocks * u64::from(GRID_BYTES),
            turn_completed: reached >= ring.blocks,
            cut_short: stopped && planned < share.bytes,
        };
        Ok(Found::AsBefore(bytes, report))
    }

    /// Offset of the first block in `extent` that differs from the parent.
    async fn first_difference(&self, extent: Extent, pacer: &RateLimiter) -> Result<Option<u64>> {
        let before = self.leaf_before(extent).await?;
        let (job, size) = (self.job, self.description.size);
        job.progress.expect(extent.length);
        let bytes = self.read(extent, pacer).await?;
        let keys = job.keys.clone();
        let compare = move || first_difference(&keys, &bytes, extent, size, before.as_deref());
        let found = job.pool.run(compare).await;
        job.progress.advance(extent.length);
        Ok(found)
    }
}

/// Compares by chunk id, as everywhere before a block is called unchanged (T7). A block that could not be read when the
/// parent was made proves nothing.
fn first_difference(keys: &DomainKeys, bytes: &Bytes, extent: Extent, size: u64, before: Option<&Page>) -> Option<u64> {
    let differs = |block: &Extent| {
        let was =
            before.map_or(PageRef::Absent, |page| page.entry(block.offset / u64::from(GRID_BYTES) % PAGE_ENTRIES));
        let from = usize::try_from(block.offset - extent.offset).expect("a piece fits memory");
        let plain = &bytes[from..from + usize::try_from(block.length).expect("a block fits memory")];
        match was {
            PageRef::Unreadable => false,
            PageRef::Absent => !is_zero(plain),
            PageRef::Chunk(id) => keys.id(ChunkKind::Data, plain) != id,
        }
    };
    grid_blocks(extent, size).find(differs).map(|block| block.offset)
}

/// The part of an audit that one increment does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Share {
    /// Most blocks of the disk by which the position moves on.
    blocks: u64,
    /// Clean bytes to read, at most.
    bytes: u64,
    capped: bool,
}

/// What the audit of one increment is about.
pub(super) struct Sample {
    share: Share,
    ring: Ring,
    parts: [Part; 2],
}

impl Sample {
    /// All that the audit may read. It reads pieces from the first on, and may stop early.
    pub fn extents(&self) -> ExtentSet {
        let bytes_max = if self.share.capped { self.share.bytes.min(BYTES_MAX) } else { u64::MAX };
        let mut planned = 0;
        let pieces = self.parts.iter().flat_map(Part::pieces).map(|piece| piece.extent);
        let within = pieces.take_while(|extent| {
            let room = planned == 0 || planned < bytes_max;
            planned += extent.length;
            room
        });
        within.collect()
    }
}

/// Limits at which an increment stops even if it has not done its share.
struct Limit {
    bytes: u64,
    time: Duration,
}

impl Share {
    /// None when nothing is to be audited.
    ///
    /// A percentage that was asked for is a percentage of the disk, because only then ⌈100 / percent⌉ shares are a
    /// turn, from any position and whatever changes. The usual share is a part of the clean bytes. Ranges that are not
    /// allocated cost nothing to pass, and no increment has to read much more than another.
    fn of(audit: Audit, size: u64, clean: u64) -> Option<Self> {
        let blocks = size.div_ceil(GRID_BYTES.into());
        match audit {
            _ if clean == 0 => None,
            Audit::Percent(0) => None,
            Audit::Percent(percent) => {
                let blocks = (blocks * u64::from(percent.min(100))).div_ceil(100);
                Some(Self { blocks, bytes: u64::MAX, capped: false })
            }
            Audit::Usual => Some(Self { blocks, bytes: clean.div_ceil(100), capped: true }),
        }
    }

    fn limit(&self, spent: Duration, rate: Option<u64>) -> Limit {
        if !self.capped {
            return Limit { bytes: self.bytes, time: Duration::MAX };
        }
        let time = spent / TIME_SHARE;
        let paced = rate.map_or(u64::MAX, |rate| (rate as f64 * time.as_secs_f64()) as u64);
        Limit { bytes: self.bytes.min(BYTES_MAX).min(paced), time }
    }
}

/// A disk as blocks in a ring.
#[derive(Debug, Clone, Copy)]
struct Ring {
    size: u64,
    blocks: u64,
    /// The block at which this increment begins.
    from: u64,
}

/// Clean extents on one side of the end of the disk.
struct Part {
    clean: ExtentSet,
    /// Blocks of the ring before the blocks of this part: 0 up to the end of the disk, and all blocks for the part
    /// after it.
    passed: u64,
}

/// A read of the audit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    extent: Extent,
    /// Number of the block after this piece; numbers go on after the end of the disk.
    reached: u64,
}

impl Ring {
    /// A position past the end (the disk was larger) is the beginning.
    fn new(size: u64, position: u64) -> Self {
        let grid = u64::from(GRID_BYTES);
        let blocks = size.div_ceil(grid);
        let from = if position / grid < blocks { position / grid } else { 0 };
        Self { size, blocks, from }
    }

    /// What is `clean` in the next `blocks` of the ring: as far as the end of the disk, and from its beginning.
    fn parts(self, clean: &ExtentSet, blocks: u64) -> [Part; 2] {
        let (grid, end) = (u64::from(GRID_BYTES), self.from + blocks.min(self.blocks));
        let part = |from: u64, to: u64| -> ExtentSet {
            let part = [Extent::from(from * grid..(to * grid).min(self.size))].into_iter().collect();
            clean.intersect(&part)
        };
        let wrapped = part(0, end.saturating_sub(self.blocks));
        [Part { clean: part(self.from, end.min(self.blocks)), passed: 0 }, Part { clean: wrapped, passed: self.blocks }]
    }
}

impl Part {
    fn pieces(&self) -> impl Iterator<Item = Piece> + '_ {
        let reached = |extent: Extent| self.passed + extent.end().div_ceil(GRID_BYTES.into());
        self.clean.split(PIECE_BYTES).map(move |extent| Piece { extent, reached: reached(extent) })
    }
}

/// Where the audit of each disk goes on, as `manifest` has it. When the positions cannot be read, audits begin at the
/// beginning of the disk. This is no error, because no restore depends on them.
pub(super) fn positions(manifest: &Manifest) -> BTreeMap<DiskId, u64> {
    read_positions(&manifest.extensions).unwrap_or_default()
}

fn read_positions(extensions: &[u8]) -> Result<BTreeMap<DiskId, u64>, RecordError> {
    let mut from = RecordReader::new(extensions);
    while from.remaining() > 0 {
        let (tag, _flags, length) = (from.u16("tag")?, from.u16("tag flags")?, from.u32("tag length")?);
        let value = from.bytes("tag", usize::try_from(length).map_err(|_| RecordError::Short { field: "tag" })?)?;
        if tag == POSITIONS_TAG {
            let mut value = RecordReader::new(value);
            let one = |from: &mut RecordReader<'_>| Ok((DiskId(from.array("disk")?), from.u64("audit position")?));
            return Ok(value.list("audit positions", 24, one)?.into_iter().collect());
        }
    }
    Ok(BTreeMap::new())
}

/// The extension of a manifest that says where each audit goes on; nothing when all are at the beginning.
pub(super) fn extension(positions: &BTreeMap<DiskId, u64>) -> Vec<u8> {
    let positions: Vec<_> = positions.iter().filter(|(_, position)| **position > 0).collect();
    if positions.is_empty() {
        return Vec::new();
    }
    let mut value = RecordWriter::new();
    value.list(&positions, |to, (disk, position)| {
        to.bytes(&disk.0).u64(**position);
    });
    let length = u32::try_from(value.len()).expect("a manifest has few disks");
    let mut to = RecordWriter::new();
    to.u16(POSITIONS_TAG).u16(0).u32(length).bytes(value.as_slice());
    to.finish()
}

/// Tag of the manifest's extension with these positions. A reader that does not know it may ignore it.
const POSITIONS_TAG: u16 = 2;
/// Bytes of one read: a whole number of blocks, a whole part of a leaf.
const PIECE_BYTES: u64 = 1 << 20;
/// Pieces on their way at once: enough for two processors, and little to wait for when time is up.
const PIECES_MAX: usize = 3;
/// Most bytes of the usual audit.
const BYTES_MAX: u64 = 1 << 30;
/// The usual audit takes at most one of so many parts of the increment's time.
const TIME_SHARE: u32 = 50;

#[cfg(test)]
mod tests;
