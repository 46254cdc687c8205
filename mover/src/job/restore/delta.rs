//! Brings a target that holds an older state to the state of a point. Blocks that the target holds already are neither
//! fetched nor written.

use super::{Job, Places, RestoreReport, restore_onto};
use crate::{DiskRecord, Error, Pool, Progress, ReadSession, Result, Target};
use bytes::Bytes;
use chunker::{ChunkId, ChunkKind, DomainKeys, Extent, ExtentSet, GRID_BYTES, grid_blocks, is_zero};
use futures::{StreamExt, TryStreamExt, stream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Brings `target`, which holds an older state of `disk` or anything else, to the state of the point: each block is
/// read and compared by its fingerprint, and only those that differ are fetched, verified and written. What lies behind
/// the disk's end is left alone.
///
/// This is not an atomic step. If it fails after the first write, the target holds parts of both states, and the error
/// says so. The same call again finishes the update.
///
/// # Errors
/// As [`restore`](super::restore()).
pub async fn restore_delta<R: ReadSession, T: Target>(
    session: &R,
    keys: &DomainKeys,
    disk: &DiskRecord,
    target: T,
    pool: &Pool,
    progress: &Progress,
) -> Result<RestoreReport> {
    let touched = AtomicBool::new(false);
    let held = Held { data: target.zeroes().await?.complement(disk.size) };
    let target = Watched { target, touched: &touched };
    let made = restore_onto(session, keys, disk, target, Some(held), pool, progress).await;
    made.map_err(|error| if touched.load(Relaxed) { unfinished(&error) } else { error })
}

/// `error`, with the note that the target is only partly updated.
fn unfinished(error: &Error) -> Error {
    let again = "run the same command again to finish the update; until then the target holds parts of both states";
    let hint = error.remedy().map_or_else(|| again.into(), |hint| format!("{hint}; then {again}"));
    Error::new(error.kind(), format!("the target is only partly updated: {}", error.message())).hint(hint)
}

/// What a target holds before it is updated.
pub(super) struct Held {
    /// Where it may hold anything but zeros.
    data: ExtentSet,
}

impl Held {
    /// The first byte from `offset` on that may be anything but zero.
    pub(super) fn next(&self, offset: u64) -> Option<u64> {
        self.data.next(offset)
    }
}

/// A block of the disk and what it should hold: a chunk, or zeros.
type Wanted = (Extent, Option<ChunkId>);

impl<R: ReadSession, T: Target> Job<'_, R, T> {
    /// Those chunks and zeros of a window that the target does not hold already.
    pub(super) async fn differing(
        &self,
        held: &Held,
        places: Places,
        zeroes: ExtentSet,
    ) -> Result<(Places, ExtentSet)> {
        let (mut wanted, mut differ) = (Vec::new(), Vec::new());
        for (block, want) in self.blocks(places, &zeroes) {
            match want {
                _ if held.data.intersects(block) => wanted.push((block, want)),
                Some(_) => differ.push((block, want)),
                None => self.progress.advance(block.length),
            }
        }
        let neighbours = |one: &Wanted, next: &Wanted| {
            one.0.end() == next.0.offset && one.0.offset / READ_BYTES_MAX == next.0.offset / READ_BYTES_MAX
        };
        let runs = wanted.chunk_by(neighbours).map(<[Wanted]>::to_vec);
        let mut compared = stream::iter(runs.map(|run| self.compare(run))).buffer_unordered(READS_MAX);
        while let Some(found) = compared.try_next().await? {
            differ.extend(found);
        }
        differ.sort_unstable();
        let (mut places, mut zeroes) = (Places::new(), ExtentSet::new());
        for (block, want) in differ {
            match want {
                Some(id) => places.entry(id).or_default().push(block.offset / u64::from(GRID_BYTES)),
                None => zeroes.insert(block),
            }
        }
        Ok((places, zeroes))
    }

    /// The blocks of a window in order, each with what it should hold.
    fn blocks(&self, places: Places, zeroes: &ExtentSet) -> Vec<Wanted> {
        let (size, grid) = (self.disk.size, u64::from(GRID_BYTES));
        let block = |number: u64| Extent::from(number * grid..((number + 1) * grid).min(size));
        let chunks =
            places.into_iter().flat_map(|(id, of)| of.into_iter().map(move |number| (block(number), Some(id))));
        let zeroes = zeroes.iter().flat_map(|extent| grid_blocks(extent, size)).map(|block| (block, None));
        let mut blocks: Vec<Wanted> = chunks.chain(zeroes).collect();
        blocks.sort_unstable();
        blocks
    }

    /// Reads neighbouring blocks, and gives those that do not hold what they should.
    async fn compare(&self, run: Vec<Wanted>) -> Result<Vec<Wanted>> {
        let extent = Extent::from(run[0].0.offset..run[run.len() - 1].0.end());
        let bytes = self.target.read(extent).await?;
        if bytes.len() as u64 != extent.length {
            return Err(Error::internal(format!("a target gave {} of {} bytes", bytes.len(), extent.length)));
        }
        let keys = self.keys.clone();
        let differ = move || {
            let holds = |(block, want): &Wanted| {
                let at = usize::try_from(block.offset - extent.offset).expect("inside a read");
                let bytes = &bytes[at..at + usize::try_from(block.length).expect("a block")];
                // By fingerprint alone, as everywhere: no weaker checksum ever says that two blocks are equal (T7).
                want.map_or_else(|| is_zero(bytes), |id| keys.id(ChunkKind::Data, bytes) == id)
            };
            run.into_iter().partition::<Vec<Wanted>, _>(holds)
        };
        let (equal, differ) = self.pool.run(differ).await;
        self.progress.advance(equal.iter().map(|(block, _)| block.length).sum());
        Ok(differ)
    }
}

/// A target, and whether anything was changed in it.
struct Watched<'a, T> {
    target: T,
    touched: &'a AtomicBool,
}

impl<T: Target> Target for Watched<'_, T> {
    fn size(&self) -> u64 {
        self.target.size()
    }

    async fn write(&self, offset: u64, bytes: Bytes) -> Result<()> {
        self.touched.store(true, Relaxed);
        self.target.write(offset, bytes).await
    }

    async fn zero(&self, extent: Extent) -> Result<()> {
        self.touched.store(true, Relaxed);
        self.target.zero(extent).await
    }

    async fn read(&self, extent: Extent) -> Result<Bytes> {
        self.target.read(extent).await
    }

    async fn zeroes(&self) -> Result<ExtentSet> {
        self.target.zeroes().await
    }

    async fn finish(self) -> Result<()> {
        self.target.finish().await
    }
}

/// Longest read of a target: 16 blocks.
const READ_BYTES_MAX: u64 = 1 << 20;

/// Reads of a target under way, with their comparison: 16 MiB.
const READS_MAX: usize = 16;
