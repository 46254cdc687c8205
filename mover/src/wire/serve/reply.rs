//! What a node says to a request: one message or several, to somebody who takes them in time.

use super::{Caller, Done};
use crate::wire::bulk;
use crate::wire::frame::{self, FrameError};
use crate::wire::limits::Allowance;
use crate::wire::message::{Chunks, FailedChunk, Reply};
use crate::{ChunkBatch, RecoveryPoint};
use bytes::Bytes;
use chunker::{Blob, ChunkId};
use futures::StreamExt;
use quinn::{SendStream, VarInt};
use std::sync::Arc;

/// Where the answer of a request goes.
pub(in crate::wire) struct Answer {
    pub(in crate::wire) stream: SendStream,
    pub(super) caller: Arc<Caller>,
}

impl Answer {
    /// Says that this was all of it; what nobody takes does not stay.
    pub(super) async fn end(mut self, is_whole: bool) {
        let patience = self.caller.allowance.patience();
        let taken = is_whole && self.stream.finish().is_ok();
        if !taken || tokio::time::timeout(patience * LAST_PATIENCE, self.stream.stopped()).await.is_err() {
            let _ = self.stream.reset(VarInt::from_u32(0));
        }
    }
}

/// Sends a message to somebody who takes it.
pub(in crate::wire) async fn send(
    to: &mut Answer,
    reply: &Reply,
    bulk: Vec<Bytes>,
    more: bool,
) -> Result<(), FrameError> {
    send_on(&mut to.stream, &to.caller.allowance, reply, bulk, more).await
}

async fn send_on(
    stream: &mut SendStream,
    allowance: &Allowance,
    reply: &Reply,
    bulk: Vec<Bytes>,
    more: bool,
) -> Result<(), FrameError> {
    let bytes: usize = bulk.iter().map(Bytes::len).sum();
    let parts = u32::try_from(bytes / PART_BYTES).expect("messages are bounded") + 1;
    let sent = frame::send(stream, reply, bulk, more);
    let slow = |_| FrameError::Lost("the answer is not taken".into());
    tokio::time::timeout(allowance.patience() * parts, sent).await.map_err(slow)?
}

pub(super) async fn say(to: &mut Answer, reply: Reply) -> Done {
    Ok(send(to, &reply, Vec::new(), false).await?)
}

pub(super) async fn points(to: &mut Answer, points: Vec<RecoveryPoint>) -> Done {
    let mut pages = points.chunks(POINTS_TOGETHER).peekable();
    if pages.peek().is_none() {
        return say(to, Reply::Points(Vec::new())).await;
    }
    while let Some(page) = pages.next() {
        send(to, &Reply::Points(page.to_vec()), Vec::new(), pages.peek().is_some()).await?;
    }
    Ok(())
}

pub(super) async fn blobs(to: &mut Answer, batches: impl futures::Stream<Item = ChunkBatch> + Send) -> Done {
    futures::pin_mut!(batches);
    while let Some(batch) = batches.next().await {
        for (message, bulk) in parts(batch) {
            to.caller.allowance.widen_sending();
            send(to, &Reply::Chunks(message), bulk, true).await?;
        }
    }
    let nothing = Chunks { lengths: Vec::new(), failed: Vec::new() };
    Ok(send(to, &Reply::Chunks(nothing), Vec::new(), false).await?)
}

/// The same, each message on a stream of its own: on one stream all would wait for each packet that is lost.
pub(super) async fn spread(to: &mut Answer, batches: impl futures::Stream<Item = ChunkBatch> + Send) -> Done {
    let (mut number, caller) = (0, to.caller.clone());
    futures::pin_mut!(batches);
    while let Some(batch) = batches.next().await {
        for (message, bulk) in parts(batch) {
            caller.allowance.widen_sending();
            let bytes = bulk.iter().map(Bytes::len).sum();
            let mut part = caller.allowance.part(to.stream.id(), number, bytes).await?;
            send_on(&mut part, &caller.allowance, &Reply::Chunks(message), bulk, false).await?;
            let _ = part.finish();
            number += 1;
        }
    }
    say(to, Reply::Parts(number)).await
}

/// Messages that carry a batch.
fn parts(batch: ChunkBatch) -> Vec<(Chunks, Vec<Bytes>)> {
    let mut made: Vec<(Chunks, Vec<Bytes>)> = Vec::new();
    let (mut found, mut bytes): (Vec<(ChunkId, Blob)>, usize) = (Vec::new(), 0);
    let mut close = |found: &mut Vec<(ChunkId, Blob)>| {
        let (lengths, bulk) = bulk::of_blobs(found);
        found.clear();
        made.push((Chunks { lengths, failed: Vec::new() }, bulk));
    };
    let mut failed: Vec<FailedChunk> = Vec::new();
    for (id, blob) in batch {
        match blob {
            Ok(blob) => {
                let length = blob.bytes().len();
                if bytes + length > PART_BYTES && !found.is_empty() {
                    close(&mut found);
                    bytes = 0;
                }
                bytes += length;
                found.push((id, blob));
            }
            Err(error) => failed.push(error.into()),
        }
    }
    if !found.is_empty() {
        close(&mut found);
    }
    for some in failed.chunks(FAILED_TOGETHER) {
        made.push((Chunks { lengths: Vec::new(), failed: some.to_vec() }, Vec::new()));
    }
    made
}

/// Bytes of blobs in one reply.
const PART_BYTES: usize = 1 << 20;
const POINTS_TOGETHER: usize = 1024;
const FAILED_TOGETHER: usize = 128;
/// How many times the patience the end of an answer has, which may be a whole window.
const LAST_PATIENCE: u32 = 10;
