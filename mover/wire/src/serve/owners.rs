//! How a node answers a proxy where owners are kept apart: chunks that the proxy's owner never had are missing.
//! `access::sees` decides which points an owner sees.

use chunker::{Blob, ChunkId, ChunkKind};
use futures::{Stream, StreamExt as _, stream};
use mover::{ChunkBatch, ChunkError, Had, Manifest, OwnerId, Page, Reach, Result, blocking, with_decoder};
use std::collections::HashMap;
use std::sync::Arc;

/// What one owner may see of the chunks in a repository.
#[derive(Clone)]
pub(super) struct Sight {
    reach: Arc<dyn Reach>,
    owner: OwnerId,
}

impl Sight {
    pub const fn new(reach: Arc<dyn Reach>, owner: OwnerId) -> Self {
        Self { reach, owner }
    }

    /// Notes that the owner has reached the roots of `manifest`, whose point it may see.
    pub async fn showing(&self, manifest: &Manifest) -> Result<()> {
        let disks = manifest.disks.iter().filter_map(|disk| disk.root.id);
        let roots = disks.chain(manifest.attachments.iter().filter_map(|it| it.root.id)).collect();
        self.note(roots).await
    }

    /// Those of `ids` that may be asked for, and how the owner came by them; the others are answered as missing.
    pub async fn seen(&self, ids: Vec<ChunkId>) -> Result<(HashMap<ChunkId, Had>, ChunkBatch)> {
        let (reach, owner, asked) = (self.reach.clone(), self.owner, ids.clone());
        let had = blocking(move || reach.had(owner, &asked)).await?;
        let (mut seen, mut missing) = (HashMap::new(), Vec::new());
        for (id, had) in ids.into_iter().zip(had) {
            match had {
                Some(had) => {
                    seen.insert(id, had);
                }
                None => missing.push((id, Err(ChunkError::Missing { chunk: id }))),
            }
        }
        Ok((seen, missing))
    }

    /// The answer to the owner: that the chunks in `missing` are missing, and then the chunks that are `seen`, as they
    /// come in `batches`.
    pub fn shown<'a>(
        &'a self,
        seen: &'a HashMap<ChunkId, Had>,
        missing: ChunkBatch,
        batches: impl Stream<Item = ChunkBatch> + Send + 'a,
    ) -> impl Stream<Item = ChunkBatch> + Send + 'a {
        let batches = batches.then(move |batch| async move {
            // Else they ask in vain for what is below, which hurts nobody else.
            if let Err(error) = self.note_below(seen, &batch).await {
                tracing::warn!(%error, "what an owner has reached cannot be noted");
            }
            batch
        });
        stream::iter((!missing.is_empty()).then_some(missing)).chain(batches)
    }

    /// Notes, before chunks are given out, that the owner has also reached the chunks below the pages that it has
    /// reached.
    async fn note_below(&self, seen: &HashMap<ChunkId, Had>, batch: &ChunkBatch) -> Result<()> {
        let is_reached = |id: &ChunkId| seen.get(id) == Some(&Had::Reached);
        let pages = batch.iter().filter(|(id, _)| is_reached(id)).filter_map(|(_, blob)| blob.as_ref().ok());
        let pages: Vec<Blob> = pages.filter(|blob| blob.header().kind == ChunkKind::Page).cloned().collect();
        let below = |blob: &Blob| -> Option<Vec<ChunkId>> {
            let mut plain = Vec::new();
            // One that does not read is told by whoever asked for it.
            with_decoder(|decoder| decoder.decode(blob, &mut plain)).ok()?;
            Page::decode(&plain).ok().map(|page| page.chunks().collect())
        };
        let below: Vec<ChunkId> = blocking(move || pages.iter().filter_map(below).flatten().collect()).await;
        self.note(below).await
    }

    async fn note(&self, ids: Vec<ChunkId>) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let (reach, owner) = (self.reach.clone(), self.owner);
        blocking(move || reach.note(owner, &ids, Had::Reached)).await
    }
}
