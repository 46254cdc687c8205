//! A disk as a stream of bytes, in order.

use super::{Job, RestoreReport};
use crate::record::map::LEAF_BYTES;
use crate::{DiskRecord, MapReader, Phase, Pool, Progress, ReadSession, Result, Target};
use bytes::Bytes;
use chunker::{Extent, ExtentSet, Fingerprinter};
use futures::{TryStreamExt, stream};
use std::future::Future;
use std::ops::Range;
use std::sync::Mutex;

/// Takes bytes in order.
pub trait Sink: Send {
    /// Takes the next ones.
    fn write(&mut self, bytes: Bytes) -> impl Future<Output = Result<()>> + Send;
}

/// Writes `disk` to `sink` from its first byte to its last; zeros are written as what they are.
///
/// # Errors
/// As [`restore`](super::restore()), and those of `sink`.
pub async fn restore_stream<R: ReadSession, S: Sink>(
    session: &R,
    prints: &Fingerprinter,
    disk: &DiskRecord,
    mut sink: S,
    pool: &Pool,
    progress: &Progress,
) -> Result<RestoreReport> {
    progress.enter(Phase::Move);
    progress.expect(disk.size);
    let reader = &MapReader::new(session, prints);
    let parts = stream::try_unfold(0, |from| next_part(reader, disk, from));
    let filled = parts.map_ok(|Stretch { start, end, data }| async move {
        let part = match data {
            true => {
                let part = Part::new(start..end);
                let job = Job { reader, prints, disk, target: &part, held: None, pool, progress };
                job.run(start..end).await.map_err(|error| error.context(format_args!("disk {}", disk.name)))?;
                Some(part.bytes.into_inner().expect("no panic while held"))
            }
            false => None,
        };
        Ok((end - start, part))
    });
    let mut filled = std::pin::pin!(filled.try_buffered(PARTS_AHEAD));
    while let Some((mut length, part)) = filled.try_next().await? {
        if let Some(bytes) = part {
            sink.write(bytes.into()).await?;
            continue;
        }
        while length > 0 {
            let piece = length.min(ZEROES.len() as u64);
            sink.write(Bytes::from_static(&ZEROES[..piece as usize])).await?;
            progress.advance(piece);
            length -= piece;
        }
    }
    Ok(RestoreReport { bytes_restored: disk.size, bytes_written: disk.size })
}

/// A part of the disk: one leaf, or the zeros before the next.
struct Stretch {
    start: u64,
    end: u64,
    data: bool,
}

async fn next_part<R: ReadSession>(
    reader: &MapReader<'_, R>,
    disk: &DiskRecord,
    start: u64,
) -> Result<Option<(Stretch, u64)>> {
    if start >= disk.size {
        return Ok(None);
    }
    let leaf = reader.next_leaf(disk.root, start / LEAF_BYTES).await?;
    let next = leaf.map_or(disk.size, |(leaf, _)| leaf.saturating_mul(LEAF_BYTES)).min(disk.size);
    let (end, data) = if next > start { (next, false) } else { ((start + LEAF_BYTES).min(disk.size), true) };
    Ok(Some((Stretch { start, end, data }, end)))
}

/// A part of the disk in memory.
struct Part {
    range: Range<u64>,
    bytes: Mutex<Vec<u8>>,
}

impl Part {
    fn new(range: Range<u64>) -> Self {
        let length = usize::try_from(range.end - range.start).expect("a leaf fits memory");
        Self { range, bytes: Mutex::new(vec![0; length]) }
    }
}

impl Target for Part {
    fn size(&self) -> u64 {
        self.range.end
    }

    async fn write(&self, offset: u64, bytes: Bytes) -> Result<()> {
        let at = usize::try_from(offset - self.range.start).expect("inside a leaf");
        self.bytes.lock().expect("no panic while held")[at..at + bytes.len()].copy_from_slice(&bytes);
        Ok(())
    }

    async fn zero(&self, _: Extent) -> Result<()> {
        Ok(())
    }

    async fn read(&self, extent: Extent) -> Result<Bytes> {
        let at = usize::try_from(extent.offset - self.range.start).expect("inside a leaf");
        let length = usize::try_from(extent.length).expect("inside a leaf");
        Ok(Bytes::copy_from_slice(&self.bytes.lock().expect("no panic while held")[at..at + length]))
    }

    async fn zeroes(&self) -> Result<ExtentSet> {
        Ok(ExtentSet::new())
    }

    async fn finish(self) -> Result<()> {
        Ok(())
    }
}

/// Leaves in memory at once, of 64 MiB each: one is written while the next is fetched.
const PARTS_AHEAD: usize = 2;
static ZEROES: [u8; 1 << 20] = [0; 1 << 20];
