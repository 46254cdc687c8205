//! Several copies read as one: what the first cannot serve comes from the next, chunk by chunk.

use crate::{ChunkBatch, ChunkError, Error, ErrorKind, Manifest, PointId, ReadSession, Result};
use chunker::{Blob, ChunkId, DomainKeys};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, stream};
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Read sessions on copies of the same points, the preferred one first.
pub struct Failover<R> {
    sessions: Vec<(String, R)>,
    /// Blob bytes served, by the place in `sessions`.
    served: Mutex<BTreeMap<usize, u64>>,
}

impl<R: ReadSession> Failover<R> {
    /// Reads through these sessions, each with the address it is called by.
    pub fn new(sessions: Vec<(String, R)>) -> Self {
        Self { sessions, served: Mutex::default() }
    }

    /// Blob bytes served so far by each address that served any.
    pub fn bytes_from(&self) -> BTreeMap<String, u64> {
        let served = self.served.lock().expect("not poisoned");
        served.iter().map(|(at, bytes)| (self.sessions[*at].0.clone(), *bytes)).collect()
    }

    fn count(&self, at: usize, blob: &Blob) {
        *self.served.lock().expect("not poisoned").entry(at).or_default() += blob.bytes().len() as u64;
    }
}

impl<R: ReadSession> ReadSession for Failover<R> {
    async fn manifest(&self, point: PointId) -> Result<Manifest> {
        let mut failed: Option<Error> = None;
        for (address, session) in &self.sessions {
            match session.manifest(point).await {
                Ok(manifest) => return Ok(manifest),
                Err(error) => failed = Some(failed.unwrap_or(error.context(address))),
            }
        }
        Err(failed.unwrap_or_else(|| Error::new(ErrorKind::NoCopy, "no copy can be reached")))
    }

    fn get(&self, ids: Vec<ChunkId>) -> impl Stream<Item = ChunkBatch> + Send {
        let asking = Asking { copies: self, wanted: Wanted::new(ids), asked: 0, batches: stream::empty().boxed() };
        stream::unfold(asking, |mut asking| async move { asking.next().await.map(|batch| (batch, asking)) })
    }

    async fn get_verified(&self, keys: &DomainKeys, ids: Vec<ChunkId>) -> ChunkBatch {
        let mut wanted = Wanted::new(ids);
        let mut made = ChunkBatch::new();
        for (at, (address, session)) in self.sessions.iter().enumerate() {
            if wanted.0.is_empty() {
                break;
            }
            let found = wanted.take(session.get_verified(keys, wanted.ids()).await);
            found.iter().for_each(|(_, blob)| self.count(at, blob));
            if !found.is_empty() {
                tracing::warn!(
                    copy = address,
                    chunks = found.len(),
                    "read again, after a blob was not what it should be"
                );
            }
            made.extend(found.into_iter().map(|(id, blob)| (id, Ok(blob))));
        }
        made.extend(wanted.given_up());
        made
    }
}

/// Chunks that no copy has given yet, and why the first that was asked did not.
struct Wanted(BTreeMap<ChunkId, Option<ChunkError>>);

impl Wanted {
    fn new(ids: Vec<ChunkId>) -> Self {
        Self(ids.into_iter().map(|id| (id, None)).collect())
    }

    fn ids(&self) -> Vec<ChunkId> {
        self.0.keys().copied().collect()
    }

    /// The blobs in `batch` that were still wanted. Errors wait here for the next copy.
    fn take(&mut self, batch: ChunkBatch) -> Vec<(ChunkId, Blob)> {
        let mut found = Vec::with_capacity(batch.len());
        for (id, blob) in batch {
            match (blob, self.0.get_mut(&id)) {
                (Ok(blob), Some(_)) => {
                    self.0.remove(&id);
                    found.push((id, blob));
                }
                (Err(error), Some(reason)) => {
                    reason.get_or_insert(error);
                }
                (_, None) => {}
            }
        }
        found
    }

    /// The chunks that no copy has given, each with its error.
    fn given_up(&mut self) -> ChunkBatch {
        let reason = |(chunk, reason): (_, Option<_>)| (chunk, Err(reason.unwrap_or(ChunkError::Missing { chunk })));
        std::mem::take(&mut self.0).into_iter().map(reason).collect()
    }
}

/// One call of `get`. When a copy has sent its whole answer, all chunks that it failed or withheld are asked of the
/// next copy in one request. So a copy that dies in the middle costs one more request, and not one for each chunk.
struct Asking<'a, R> {
    copies: &'a Failover<R>,
    wanted: Wanted,
    /// Copies that were asked; the last of them gives `batches`.
    asked: usize,
    batches: BoxStream<'a, ChunkBatch>,
}

impl<R: ReadSession> Asking<'_, R> {
    async fn next(&mut self) -> Option<ChunkBatch> {
        let sessions = &self.copies.sessions;
        while !self.wanted.0.is_empty() {
            if let Some(batch) = self.batches.next().await {
                let found = self.wanted.take(batch);
                found.iter().for_each(|(_, blob)| self.copies.count(self.asked - 1, blob));
                if !found.is_empty() {
                    return Some(found.into_iter().map(|(id, blob)| (id, Ok(blob))).collect());
                }
                continue;
            }
            let Some((address, session)) = sessions.get(self.asked) else { return Some(self.wanted.given_up()) };
            if self.asked > 0 {
                let reason =
                    self.wanted.0.values().flatten().next().map_or_else(|| "withheld".into(), |it| it.to_string());
                let (chunks, from) = (self.wanted.0.len(), &sessions[self.asked - 1].0);
                tracing::warn!(chunks, from, reason, copy = address, "another copy is asked");
            }
            self.asked += 1;
            self.batches = session.get(self.wanted.ids()).boxed();
        }
        None
    }
}
