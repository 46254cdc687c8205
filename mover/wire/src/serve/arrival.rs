//! The chunks of a put. The node looks at their headers before it decodes any of them, because a blob of a few hundred
//! bytes may say that it has sixteen million plain bytes.

use crate::allowance::Allowance;
use crate::bulk;
use crate::message::PUT_PLAIN_BYTES_MAX;
use bytes::Bytes;
use chunker::{Blob, ChunkId, ChunkKind, GRID_BYTES, STREAM_CHUNK_BYTES_MAX};
use mover::{Error, MANIFEST_BYTES_MAX, PAGE_BYTES_MAX, Result, WriteSession};

/// Gives the bulk of a put to a session. False when there was no turn to decode it for a long time.
pub async fn take<S: WriteSession>(allowance: &Allowance, session: &S, lengths: &[u32], beside: Bytes) -> Result<bool> {
    let (mut chunks, mut plain) = (Vec::new(), 0);
    for (id, bytes) in bulk::blobs(lengths, beside)? {
        let blob = parsed(id, bytes)?;
        plain += blob.header().plain_bytes as usize;
        chunks.push((id, blob));
    }
    if plain > PUT_PLAIN_BYTES_MAX {
        let what = format!("one request stores chunks of {plain} plain bytes, more than {PUT_PLAIN_BYTES_MAX}");
        return Err(Error::integrity(what));
    }
    let Some(_turn) = allowance.decoding(plain).await else { return Ok(false) };
    session.put(chunks).await?;
    Ok(true)
}

fn parsed(id: ChunkId, bytes: Bytes) -> Result<Blob> {
    let wrong = |error| Error::integrity(format!("chunk {id} is not a blob")).because(error);
    let blob = Blob::parse(bytes).map_err(wrong)?;
    let (header, max) = (blob.header(), plain_bytes_max(blob.header().kind));
    if header.plain_bytes as usize > max {
        let (kind, plain) = (header.kind, header.plain_bytes);
        return Err(Error::integrity(format!("chunk {id} ({kind:?}) says that it has {plain} bytes, more than {max}")));
    }
    Ok(blob)
}

/// Plain bytes of the longest chunk of this kind that a client makes. Chunks that were stored earlier may be longer,
/// and are read all the same.
const fn plain_bytes_max(kind: ChunkKind) -> usize {
    match kind {
        ChunkKind::Data => GRID_BYTES as usize,
        ChunkKind::Page => PAGE_BYTES_MAX,
        ChunkKind::Manifest => MANIFEST_BYTES_MAX,
        ChunkKind::Attachment => STREAM_CHUNK_BYTES_MAX,
    }
}
