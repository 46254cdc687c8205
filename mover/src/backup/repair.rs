//! Repair of a refused commit (R8): chunks that the repository lost since it said "have" are found again and put.

use super::Job;
use crate::{
    ChunkBatch, Error, ErrorKind, Manifest, MapReader, PageRef, ReadSession, Repository, Result, Source, WriteSession,
    diff::TreeDiff, with_opener, with_sealer,
};
use chunker::{Blob, ChunkId, ChunkKind, Extent, GRID_BYTES, grid_blocks};
use futures::StreamExt;
use std::collections::BTreeSet;

impl<R: Repository, S: Source> Job<'_, R, S> {
    /// Puts `ids` again: from the repository itself where it can still read them (doomed, not dropped), else from the
    /// source, whose snapshot is still open.
    pub(super) async fn repair(&self, manifest: &Manifest, ids: Vec<ChunkId>) -> Result<()> {
        let mut lost: BTreeSet<ChunkId> = ids.iter().copied().collect();
        // Read to the end before anything is put: a read that stands still may hold what the put waits for.
        let batches: Vec<ChunkBatch> = self.session.get(ids).collect().await;
        for batch in batches {
            let found: Vec<_> = batch.into_iter().filter_map(|(id, blob)| blob.ok().map(|blob| (id, blob))).collect();
            // What may be damaged is put again only when it is proven not to be.
            let prints = self.prints.clone();
            let proven = move |(id, blob): &(ChunkId, Blob)| {
                with_opener(|opener| opener.open_verified(&prints, id, blob, &mut Vec::new())).is_ok()
            };
            let found: Vec<_> = self.pool.run(move || found.into_iter().filter(proven).collect()).await;
            found.iter().for_each(|(id, _)| {
                lost.remove(id);
            });
            self.session.put(found).await?;
        }
        if !lost.is_empty() {
            for attachment in &self.options.attachments {
                for id in self.attach(attachment).await?.1 {
                    lost.remove(&id);
                }
            }
        }
        let reader = MapReader::new(self.session, self.prints);
        for (index, disk) in manifest.disks.iter().enumerate() {
            let none = crate::MapRoot { level: disk.root.level, id: None };
            let mut leaves = TreeDiff::new((none, &reader), (disk.root, &reader));
            while !lost.is_empty()
                && let Some(step) = leaves.next().await.map_err(lost_page)?
            {
                for changed in step.blocks() {
                    let PageRef::Chunk(id) = changed.new else { continue };
                    if lost.remove(&id) {
                        let block = Extent::new(changed.block * u64::from(GRID_BYTES), 1);
                        self.read_again(index, id, block, disk.size).await?;
                    }
                }
            }
        }
        match lost.first() {
            None => Ok(()),
            Some(id) => Err(Error::integrity(format!("the repository lost chunk {id}, which the source cannot give"))
                .hint("run the backup again")),
        }
    }

    async fn read_again(&self, disk: usize, id: ChunkId, within: Extent, size: u64) -> Result<()> {
        let block = grid_blocks(within, size).next().ok_or_else(|| Error::internal("a block past the disk's end"))?;
        let plain = self.source.read(disk, block).await?;
        if self.prints.id(ChunkKind::Data, &plain) != id {
            return Err(Error::source(format!("offset {} reads differently now", block.offset))
                .hint("the source changed while it was read; run the backup again"));
        }
        let compression = self.options.compression;
        let seal = move || with_sealer(compression, |sealer| sealer.seal(ChunkKind::Data, &plain));
        let blob = self.pool.run(seal).await;
        self.session.put(vec![(id, blob)]).await
    }
}

/// A page that the repository was said to have and has not: what it refers to cannot be told without reading all that is
/// below it, which the next backup does.
fn lost_page(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Integrity => Error::integrity("the repository lost a part of the map that it had")
            .because(error)
            .hint("run the backup again"),
        _ => error,
    }
}
