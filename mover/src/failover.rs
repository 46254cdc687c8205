//! Several copies read as one: what the first cannot serve comes from the next, chunk by chunk.

use crate::{ChunkBatch, ChunkError, Error, ErrorKind, Manifest, PointId, ReadSession, Result};
use chunker::{Blob, ChunkId};
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

    /// What the sessions from number `from` on give for one chunk.
    async fn elsewhere(&self, from: usize, id: ChunkId, first: ChunkError) -> Result<Blob, ChunkError> {
        for (at, (address, session)) in self.sessions.iter().enumerate().skip(from) {
            let found = session.get(vec![id]);
            futures::pin_mut!(found);
            while let Some(batch) = found.next().await {
                if let Some(blob) = batch.into_iter().find_map(|(got, blob)| blob.ok().filter(|_| got == id)) {
                    tracing::warn!(chunk = %id, copy = address, reason = %first, "served by another copy");
                    self.count(at, &blob);
                    return Ok(blob);
                }
            }
        }
        Err(first)
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
        let batches = stream::iter(self.sessions.first()).flat_map(move |(_, first)| first.get(ids.clone()));
        batches.then(move |batch| async move {
            let mut made = Vec::with_capacity(batch.len());
            for (id, blob) in batch {
                let blob = match blob {
                    Ok(blob) => {
                        self.count(0, &blob);
                        Ok(blob)
                    }
                    Err(error) => self.elsewhere(1, id, error).await,
                };
                made.push((id, blob));
            }
            made
        })
    }
}
