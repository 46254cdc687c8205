//! A disk of a recovery point is written to a target.

mod again;
mod attachment;
mod delta;
mod in_order;

use crate::record::map::{LEAF_BYTES, leaf_blocks};
use crate::{
    AlignedBuffer, ChunkBatch, ChunkError, Demand, DiskRecord, Error, ErrorKind, MapReader, Page, Phase, Pool,
    Progress, ReadSession, Result, Shape, Target, with_decoder,
};
use bytes::Bytes;
use chunker::{Blob, ChunkId, DomainKeys, Extent, ExtentSet, GRID_BYTES};
use delta::Held;
use futures::{StreamExt, TryStreamExt, stream};
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex};

pub use attachment::read_attachment;
pub use delta::restore_delta;
pub use in_order::{Sink, restore_stream};

/// What a restore did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RestoreReport {
    /// Size of the disk.
    pub bytes_restored: u64,
    /// Bytes written to the target, zeros that it made itself not counted.
    pub bytes_written: u64,
}

/// Writes `disk` to `target`. No byte reaches the target before the fingerprint of its chunk matched. The target is
/// finished on success and dropped otherwise.
///
/// # Errors
/// `Integrity` naming disk, offset, chunk and pack; `Target…` when writing fails; `Usage` when the target is smaller.
pub async fn restore<R: ReadSession, T: Target>(
    session: &R,
    keys: &DomainKeys,
    disk: &DiskRecord,
    target: T,
    pool: &Pool,
    progress: &Progress,
) -> Result<RestoreReport> {
    restore_onto(session, keys, disk, target, None, pool, progress).await
}

/// Writes `disk` to `target`, except what it is known to hold.
async fn restore_onto<R: ReadSession, T: Target>(
    session: &R,
    keys: &DomainKeys,
    disk: &DiskRecord,
    target: T,
    held: Option<Held>,
    pool: &Pool,
    progress: &Progress,
) -> Result<RestoreReport> {
    if target.size() < disk.size {
        return Err(Error::usage(format!(
            "the target has {} bytes, and disk {} has {}",
            target.size(),
            disk.name,
            disk.size
        ))
        .hint("restore to a larger target"));
    }
    progress.enter(Phase::Move);
    progress.expect(disk.size);
    let reader = MapReader::new(session, keys);
    let job = Job { reader: &reader, keys, disk, target: &target, held: held.as_ref(), pool, progress };
    let written = job.run(0..disk.size).await.map_err(|error| error.on_disk(&disk.name))?;
    progress.enter(Phase::Commit);
    target.finish().await?;
    Ok(RestoreReport { bytes_restored: disk.size, bytes_written: written })
}

struct Job<'a, R, T> {
    reader: &'a MapReader<'a, R>,
    keys: &'a DomainKeys,
    disk: &'a DiskRecord,
    target: &'a T,
    /// What the target holds already, when it is updated in place.
    held: Option<&'a Held>,
    pool: &'a Pool,
    progress: &'a Progress,
}

/// Which blocks each chunk belongs to.
type Places = HashMap<ChunkId, Vec<u64>>;

/// Some leaves of the disk. A chunk's places are taken out when it comes, so that none is written twice.
struct Window {
    places: Mutex<Places>,
}

impl<R: ReadSession, T: Target> Job<'_, R, T> {
    /// Writes a part of the disk, whole leaves of it.
    async fn run(&self, part: Range<u64>) -> Result<u64> {
        let to = part.end;
        // Windows only bound memory: batches of the next one are fetched while the last of this one are written.
        let batches = stream::try_unfold(part.start, move |from| self.window(from, to))
            .map_ok(|window| {
                let window = Arc::new(window);
                let ids: Vec<ChunkId> = window.places.lock().expect("not poisoned").keys().copied().collect();
                let batches = self.reader.session().get(ids);
                let last = window.clone();
                let given = batches.map(move |batch| window.arrived(batch)).map(Ok);
                given.chain(stream::iter([()]).filter_map(move |()| std::future::ready(last.left_over().map(Err))))
            })
            .try_flatten();
        let written = batches.map_ok(|arrived| self.write(arrived)).try_buffer_unordered(BATCHES_MAX);
        futures::pin_mut!(written);
        let mut total = 0;
        while let Some(bytes) = written.try_next().await? {
            total += bytes;
        }
        Ok(total)
    }

    /// Collects the references of the next leaves from `from` on, and writes the zeros around and between them. Also
    /// gives the offset at which the window ends. None when `from` has reached `to`.
    async fn window(&self, from: u64, to: u64) -> Result<Option<(Window, u64)>> {
        if from >= to {
            return Ok(None);
        }
        let (leaves, end) = self.next_leaves(from, to).await?;
        let (mut places, mut zeroes, mut gaps) = (HashMap::new(), ExtentSet::new(), ExtentSet::new());
        // All at once: from far away one after the other would take long.
        let mut pages = stream::iter(leaves.clone())
            .map(|(_, id)| async move {
                match id {
                    Some(id) => self.reader.page(id, 0).await.map(Some),
                    None => Ok(None),
                }
            })
            .buffered(WINDOW_LEAVES);
        let mut at = from;
        for (index, _) in leaves {
            let extent = Extent::from(index * LEAF_BYTES..((index + 1) * LEAF_BYTES).min(to));
            gaps.insert(Extent::from(at..extent.offset));
            at = extent.end();
            match pages.try_next().await?.flatten() {
                None => zeroes.insert(extent),
                Some(page) => self.sort_leaf(&page, extent, &mut places, &mut zeroes)?,
            }
        }
        gaps.insert(Extent::from(at..end));
        match self.held {
            // Nothing is held there either.
            Some(held) => {
                self.progress.advance(gaps.bytes());
                (places, zeroes) = self.differing(held, places, zeroes).await?;
            }
            None => zeroes = zeroes.union(&gaps),
        }
        for extent in zeroes.iter() {
            self.target.zero(extent).await?;
            self.progress.advance(extent.length);
        }
        Ok(Some((Window { places: Mutex::new(places) }, end)))
    }

    /// The next leaves that must be examined, and the offset up to which no other leaf must be. Ranges without data in
    /// the disk and in the target cost nothing, however large they are.
    async fn next_leaves(&self, from: u64, to: u64) -> Result<(Vec<(u64, Option<ChunkId>)>, u64)> {
        let (mut leaves, mut at) = (Vec::new(), from);
        while at < to {
            if leaves.len() == WINDOW_LEAVES {
                return Ok((leaves, at));
            }
            let there = self.reader.next_leaf(self.disk.root, at / LEAF_BYTES).await?;
            let held = self.held.and_then(|held| held.next(at)).map(|offset| offset / LEAF_BYTES);
            let next = match (there, held) {
                (Some((leaf, id)), held) if held.is_none_or(|held| leaf <= held) => (leaf, Some(id)),
                (_, Some(leaf)) => (leaf, None),
                (_, None) => break,
            };
            if next.0 * LEAF_BYTES >= to {
                break;
            }
            at = ((next.0 + 1) * LEAF_BYTES).min(to);
            leaves.push(next);
        }
        Ok((leaves, to))
    }

    fn sort_leaf(&self, page: &Page, extent: Extent, places: &mut Places, zeroes: &mut ExtentSet) -> Result<()> {
        for block in leaf_blocks(page, self.disk.size, extent)? {
            match block? {
                (block, None) => zeroes.insert(block),
                (block, Some(id)) => places.entry(id).or_default().push(block.offset / u64::from(GRID_BYTES)),
            }
        }
        Ok(())
    }

    /// Decodes and verifies a batch on the pool, each run of neighbouring blocks into one buffer, and writes it. This
    /// is done in parts, because a few chunks may belong to many blocks.
    async fn write(&self, arrived: Vec<Arrived>) -> Result<u64> {
        let mut written = 0;
        for part in parts(arrived) {
            for (offset, bytes) in self.decoded(part).await? {
                let length = bytes.len() as u64;
                self.target.write(offset, bytes).await?;
                self.progress.advance(length);
                written += length;
            }
        }
        Ok(written)
    }

    async fn decoded(&self, part: Vec<Arrived>) -> Result<Vec<(u64, Bytes)>> {
        let (keys, size, again) = (self.keys.clone(), self.disk.size, part.clone());
        match self.pool.run(move || decode(&keys, size, part)).await {
            Err(error) if error.kind() == ErrorKind::Integrity => {
                let (keys, arrived) = (self.keys.clone(), self.replace_wrong(again).await);
                self.pool.run(move || decode(&keys, size, arrived)).await
            }
            decoded => decoded,
        }
    }
}

/// A batch in parts of at most [`PART_BLOCKS_MAX`] blocks, in the order of its chunks.
fn parts(arrived: Vec<Arrived>) -> impl Iterator<Item = Vec<Arrived>> {
    let mut rest: VecDeque<Arrived> = arrived.into();
    std::iter::from_fn(move || {
        let (mut part, mut room) = (Vec::new(), PART_BLOCKS_MAX);
        while room > 0
            && let Some((id, mut of, blob)) = rest.pop_front()
        {
            let behind = of.split_off(of.len().min(room));
            room -= of.len();
            if !behind.is_empty() {
                rest.push_front((id, behind, blob.clone()));
            }
            part.push((id, of, blob));
        }
        (!part.is_empty()).then_some(part)
    })
}

/// A chunk that came, and the blocks it belongs to.
type Arrived = (ChunkId, Vec<u64>, Result<Blob, ChunkError>);

impl Window {
    fn arrived(&self, batch: ChunkBatch) -> Vec<Arrived> {
        let mut places = self.places.lock().expect("not poisoned");
        batch.into_iter().filter_map(|(id, blob)| places.remove(&id).map(|of| (id, of, blob))).collect()
    }

    /// An error if a chunk has not come by the end, because it would leave a hole in the target.
    fn left_over(&self) -> Option<Error> {
        let places = self.places.lock().expect("not poisoned");
        let (id, of) = places.iter().next()?;
        let offset = of.first().copied().unwrap_or_default() * u64::from(GRID_BYTES);
        Some(Error::integrity(format!("offset {offset}: chunk {id} did not arrive ({} missing in all)", places.len())))
    }
}

/// Runs of neighbouring blocks, each in memory that can be written directly. The batch's compressed bytes go on the way.
fn decode(keys: &DomainKeys, size: u64, arrived: Vec<Arrived>) -> Result<Vec<(u64, Bytes)>> {
    let mut blocks: Vec<(u64, ChunkId, Blob)> = Vec::with_capacity(arrived.len());
    for (id, places, blob) in arrived {
        let blob = blob.map_err(|error: ChunkError| Error::from(error).at_offset(places[0] * u64::from(GRID_BYTES)))?;
        blocks.extend(places.iter().map(|place| (*place, id, blob.clone())));
    }
    blocks.sort_unstable_by_key(|(block, _, _)| *block);
    let follows = |a: &(u64, ChunkId, Blob), b: &(u64, ChunkId, Blob)| a.0 + 1 == b.0;
    let runs = blocks.chunk_by(follows).flat_map(|run| run.chunks(RUN_BLOCKS_MAX));
    runs.map(|run| Ok((run[0].0 * u64::from(GRID_BYTES), decode_run(keys, size, run)?))).collect()
}

fn decode_run(keys: &DomainKeys, size: u64, run: &[(u64, ChunkId, Blob)]) -> Result<Bytes> {
    let mut bytes = AlignedBuffer::with_capacity(run.len() * GRID_BYTES as usize);
    for (block, id, blob) in run {
        let offset = block * u64::from(GRID_BYTES);
        let before = bytes.len();
        bytes
            .append_with(|plain| with_decoder(|decoder| decoder.decode_verified(keys, id, blob, plain)))
            .map_err(|error| Error::integrity(format!("offset {offset}, chunk {id}")).because(error))?;
        let have =
            Shape { kind: blob.header().kind, plain_bytes: u32::try_from(bytes.len() - before).expect("a block") };
        if let Some(what) = Demand::block(size - offset).misfit(id, have) {
            return Err(Error::integrity(format!("offset {offset}: {what}")));
        }
    }
    Ok(bytes.freeze())
}

/// Leaves looked at together: a GiB of disk, about a megabyte of places.
const WINDOW_LEAVES: usize = 16;

/// Blocks that are decoded before they are written: 16 MiB.
const PART_BLOCKS_MAX: usize = 256;

/// Batches decoded and written at once.
const BATCHES_MAX: usize = 8;

/// Blocks of the longest write: 4 MiB.
const RUN_BLOCKS_MAX: usize = 64;
