//! The bulk of messages: ids, or ids and then their blobs.

use bytes::{BufMut, Bytes, BytesMut};
use chunker::{Blob, ChunkId};
use mover::{Error, Result};

/// Ids, one after another.
pub fn of_ids(ids: impl ExactSizeIterator<Item = ChunkId>) -> Bytes {
    let mut bytes = BytesMut::with_capacity(ids.len() * ID_BYTES);
    ids.for_each(|id| bytes.put_slice(&id.0));
    bytes.freeze()
}

/// The ids of chunks, then their blobs, which are not copied; and the length of each.
pub fn of_blobs(chunks: &[(ChunkId, Blob)]) -> (Vec<u32>, Vec<Bytes>) {
    let lengths = chunks.iter().map(|(_, blob)| blob.header().blob_bytes()).collect();
    let ids = of_ids(chunks.iter().map(|(id, _)| *id));
    let blobs = chunks.iter().map(|(_, blob)| blob.bytes().clone());
    (lengths, [ids].into_iter().chain(blobs).collect())
}

/// Reads what [`of_ids`] wrote.
///
/// # Errors
/// `Transport` when a part of one is left over.
pub fn ids(bytes: &[u8]) -> Result<Vec<ChunkId>> {
    let (ids, rest) = bytes.as_chunks::<ID_BYTES>();
    if !rest.is_empty() {
        return Err(Error::transport("a message with an incomplete id"));
    }
    Ok(ids.iter().copied().map(ChunkId).collect())
}

/// The ids and the bytes of blobs of these lengths.
///
/// # Errors
/// `Transport` when the lengths do not fit.
pub fn blobs(lengths: &[u32], mut bulk: Bytes) -> Result<Vec<(ChunkId, Bytes)>> {
    let blobs: u64 = lengths.iter().map(|length| u64::from(*length)).sum();
    if bulk.len() as u64 != (lengths.len() * ID_BYTES) as u64 + blobs {
        return Err(Error::transport("a message with lengths that do not match"));
    }
    let ids = ids(&bulk.split_to(lengths.len() * ID_BYTES))?;
    Ok(ids.into_iter().zip(lengths).map(|(id, length)| (id, bulk.split_to(*length as usize))).collect())
}

/// Bytes of an id.
pub const ID_BYTES: usize = 32;
