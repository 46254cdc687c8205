//! A disk as a stream of bytes, in order.

use super::RestoreReport;
use crate::{DiskView, Phase, Progress, ReadSession, Result};
use bytes::Bytes;
use chunker::Extent;
use std::future::Future;

/// Takes bytes in order.
pub trait Sink: Send {
    /// Takes the next bytes, in pieces that follow each other.
    fn write(&mut self, parts: Vec<Bytes>) -> impl Future<Output = Result<()>> + Send;
}

/// Writes a disk to `sink` from its first byte to its last; zeros are written as zero bytes. The view fetches ahead
/// while the sink takes what is there.
///
/// # Errors
/// As [`DiskView::read`], and those of `sink`.
pub async fn restore_stream<R: ReadSession + 'static, S: Sink>(
    view: &DiskView<R>,
    mut sink: S,
    progress: &Progress,
) -> Result<RestoreReport> {
    let size = view.size();
    progress.enter(Phase::Move);
    progress.expect(size);
    let mut at = 0;
    while at < size {
        let piece = Extent::from(at..(at + PIECE_BYTES).min(size));
        sink.write(view.read_parts(piece).await?).await?;
        progress.advance(piece.length);
        at = piece.end();
    }
    Ok(RestoreReport { bytes_restored: size, bytes_written: size })
}

/// Bytes that are read from the view at once.
const PIECE_BYTES: u64 = 4 << 20;
