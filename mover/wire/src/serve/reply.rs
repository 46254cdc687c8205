//! What a node says to a request: one message or several, to somebody who takes them in time.

use super::caller::{Caller, Done};
use crate::allowance::Allowance;
use crate::bulk;
use crate::frame::{self, FrameError};
use crate::message::{Chunks, FailedChunk, Reply};
use bytes::Bytes;
use chunker::{Blob, ChunkId};
use futures::StreamExt;
use mover::{ChunkBatch, RecoveryPoint};
use quinn::{SendStream, StreamId, VarInt};
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

/// Where the answer of a request goes.
pub(crate) struct Answer {
    id: StreamId,
    said: Arc<Said>,
    pub(super) caller: Arc<Caller>,
}

/// The stream of an answer, and when something was said on it.
struct Said {
    stream: Mutex<SendStream>,
    last: std::sync::Mutex<Instant>,
}

impl Said {
    fn now(&self) {
        *self.last.lock().expect("no holder panics") = Instant::now();
    }

    fn last(&self) -> Instant {
        *self.last.lock().expect("no holder panics")
    }
}

impl Answer {
    /// An answer that is sent on this stream.
    pub(super) fn new(stream: SendStream, caller: Arc<Caller>) -> Self {
        let id = stream.id();
        let said = Said { last: std::sync::Mutex::new(Instant::now()), stream: Mutex::new(stream) };
        Self { id, said: Arc::new(said), caller }
    }

    /// Tells the client that the node is at work whenever nothing was sent for a while, so that the client can tell it
    /// from a node that hangs. Never ends. Drop it only after a message was sent whole.
    pub(super) fn alive(&self) -> impl Future<Output = Infallible> + Send + 'static {
        let (said, every) = (self.said.clone(), self.caller.allowance.patience() / SAID_OF_PATIENCE);
        async move {
            loop {
                let last = said.last();
                sleep_until(last + every).await;
                let mut stream = said.stream.lock().await;
                if said.last() > last {
                    continue;
                }
                said.now();
                let sent = frame::send(&mut stream, &Reply::Waiting(()), Vec::new(), true).await;
                // Whoever looks whether the answer is still wanted needs it too.
                drop(stream);
                if sent.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    /// Waits until nobody wants the answer any more.
    pub(crate) async fn unwanted(&self) {
        let stopped = self.said.stream.lock().await.stopped();
        let _ = stopped.await;
    }

    /// Ends the answer. Resets the stream when the answer is not whole, or when the client does not take the rest in
    /// time.
    pub(super) async fn end(self, is_whole: bool) {
        let patience = self.caller.allowance.patience();
        let mut stream = self.said.stream.lock().await;
        let taken = is_whole && stream.finish().is_ok();
        if !taken || tokio::time::timeout(patience * LAST_PATIENCE, stream.stopped()).await.is_err() {
            let _ = stream.reset(VarInt::from_u32(0));
        }
    }
}

/// Sends a message to somebody who takes it.
pub(crate) async fn send(to: &mut Answer, reply: &Reply, bulk: Vec<Bytes>, more: bool) -> Result<(), FrameError> {
    let sent = in_time(&to.caller.allowance, &bulk, async {
        let mut stream = to.said.stream.lock().await;
        frame::send(&mut stream, reply, bulk.clone(), more).await
    });
    let sent = sent.await;
    to.said.now();
    sent
}

async fn in_time(
    allowance: &Allowance,
    bulk: &[Bytes],
    sent: impl Future<Output = Result<(), FrameError>>,
) -> Result<(), FrameError> {
    let bytes: usize = bulk.iter().map(Bytes::len).sum();
    let parts = u32::try_from(bytes / PART_BYTES).expect("messages are bounded") + 1;
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

/// As [`blobs`], but with each message on a stream of its own, because on one stream all messages would wait for each
/// lost packet.
pub(super) async fn spread(to: &mut Answer, batches: impl futures::Stream<Item = ChunkBatch> + Send) -> Done {
    let (mut number, caller) = (0, to.caller.clone());
    futures::pin_mut!(batches);
    while let Some(batch) = batches.next().await {
        for (message, bulk) in parts(batch) {
            caller.allowance.widen_sending();
            let bytes = bulk.iter().map(Bytes::len).sum();
            let mut part = caller.allowance.part(to.id, number, bytes).await?;
            let reply = Reply::Chunks(message);
            in_time(&caller.allowance, &bulk, frame::send(&mut part, &reply, bulk.clone(), false)).await?;
            to.said.now();
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
/// Of the patience: how often a node says at least that it is at work.
const SAID_OF_PATIENCE: u32 = 6;
const POINTS_TOGETHER: usize = 1024;
const FAILED_TOGETHER: usize = 128;
/// How many times the patience the end of an answer has, which may be a whole window.
const LAST_PATIENCE: u32 = 10;
