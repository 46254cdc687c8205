//! A file that travels with the machine is given back.

use super::Sink;
use crate::{Attachment, ChunkError, Error, MapReader, ReadSession, Result, with_decoder};
use bytes::Bytes;
use chunker::{ChunkId, ChunkKind, DomainKeys};
use futures::StreamExt;

/// Writes `attachment` to `sink`. No byte reaches it before the fingerprint of its chunk matched.
///
/// # Errors
/// `Integrity` when something is missing, damaged or of another length than the manifest says; those of `sink`.
pub async fn read_attachment<R: ReadSession, S: Sink>(
    session: &R,
    keys: &DomainKeys,
    attachment: &Attachment,
    mut sink: S,
) -> Result<()> {
    let reader = MapReader::new(session, keys);
    let mut left = attachment.bytes;
    let wrong = || Error::integrity("its length is not what the point says").context(&attachment.kind);
    // What is still to be written, the next last: a page of this level (one below 0 is a chunk) and its bytes.
    let mut stack = Vec::from_iter(attachment.root.id.map(|id| (id, u32::from(attachment.root.level) + 1, left)));
    while let Some((id, level, bytes)) = stack.pop() {
        let Some(level) = level.checked_sub(1) else {
            left = left.checked_sub(bytes).ok_or_else(wrong)?;
            sink.write(vec![chunk(session, keys, id, bytes).await?]).await?;
            continue;
        };
        let page = reader.page(id, u8::try_from(level).expect("it came from a byte")).await?;
        page.check_place(Some(bytes)).map_err(|error| Error::from(error).context(format_args!("page {id}")))?;
        let below = page.entries().iter().zip(page.lengths()).rev();
        stack.extend(below.filter_map(|(entry, length)| entry.chunk().map(|id| (id, level, *length))));
    }
    if left == 0 { Ok(()) } else { Err(wrong()) }
}

async fn chunk<R: ReadSession>(session: &R, keys: &DomainKeys, id: ChunkId, bytes: u64) -> Result<Bytes> {
    let mut batches = std::pin::pin!(session.get(vec![id]));
    let blob = match batches.next().await.and_then(|batch| batch.into_iter().find(|(got, _)| *got == id)) {
        Some((_, blob)) => blob,
        None => Err(ChunkError::Missing { chunk: id }),
    };
    let mut plain = Vec::new();
    let mut opened = open(keys, id, blob?, &mut plain);
    if opened.is_err() {
        // Its checksum is right and its content is not; perhaps another place has it.
        for (_, blob) in session.get_verified(keys, vec![id]).await {
            opened = open(keys, id, blob?, &mut plain);
        }
    }
    opened?;
    if plain.len() as u64 == bytes {
        return Ok(plain.into());
    }
    Err(Error::integrity(format!("chunk {id} has {} bytes instead of {bytes}", plain.len())))
}

fn open(keys: &DomainKeys, id: ChunkId, blob: chunker::Blob, plain: &mut Vec<u8>) -> Result<()> {
    plain.clear();
    let opened = with_decoder(|decoder| decoder.decode_verified(keys, &id, &blob, plain));
    opened.map_err(|error| Error::integrity(format!("chunk {id}")).because(error))?;
    match blob.header().kind {
        ChunkKind::Attachment => Ok(()),
        _ => Err(Error::integrity(format!("chunk {id} does not belong to an attachment"))),
    }
}
