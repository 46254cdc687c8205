//! Repair of a refused commit (R8): chunks that the repository lost since it said "have" are found again and put.

use super::Job;
use super::disk::Begun;
use super::disk::DiskPass;
use crate::{
    ChangeTracking, Changed, ChunkBatch, DiskRecord, Error, ErrorKind, Manifest, MapReader, PageRef, ReadSession,
    Repository, Result, Source, TreeDiff, Visited, WriteSession, with_compressor, with_decoder,
};
use chunker::{Blob, ChunkId, ChunkKind, Extent, ExtentSet, GRID_BYTES, grid_blocks};
use futures::StreamExt;
use std::collections::BTreeSet;
use tokio::time::Instant;

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
            let keys = self.keys.clone();
            let proven = move |(id, blob): &(ChunkId, Blob)| {
                with_decoder(|decoder| decoder.decode_verified(&keys, id, blob, &mut Vec::new())).is_ok()
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
        let mut made_again = false;
        for (index, disk) in manifest.disks.iter().enumerate() {
            match self.find_again(index, disk, &mut lost).await {
                Err(error) if error.kind() == ErrorKind::Integrity => {
                    tracing::warn!(disk = %disk.name, %error, "a part of the map was lost; the disk is read again");
                    self.map_again(index, disk).await?;
                    made_again = true;
                }
                found => found?,
            }
        }
        match lost.first() {
            // What is still lacking, the next commit tells.
            Some(id) if !made_again => Err(Error::integrity(format!(
                "the repository lost chunk {id}, and the source does not have it any more"
            ))
            .hint("run the backup again")),
            _ => Ok(()),
        }
    }

    /// Puts those of `lost` that belong to this disk, and removes them from `lost`.
    async fn find_again(&self, index: usize, disk: &DiskRecord, lost: &mut BTreeSet<ChunkId>) -> Result<()> {
        let reader = MapReader::new(self.session, self.keys);
        let (none, mut visited) = (crate::MapRoot { level: disk.root.level, id: None }, Visited::default());
        let mut leaves = TreeDiff::new((none, &reader), (disk.root, &reader), &mut visited);
        while !lost.is_empty()
            && let Some(step) = leaves.next().await?
        {
            for changed in step.blocks() {
                let PageRef::Chunk(id) = changed.new else { continue };
                if lost.remove(&id) {
                    let block = Extent::new(changed.block * u64::from(GRID_BYTES), 1);
                    self.read_again(index, id, block, disk.size).await?;
                }
            }
        }
        Ok(())
    }

    /// Makes the map of a disk again after a page of it was lost. Only the source can tell what the page referred to,
    /// so the whole disk is read. Chunks that are there already are not sent.
    async fn map_again(&self, index: usize, disk: &DiskRecord) -> Result<()> {
        self.given.needs_again("the repository lost a part of a map", None)?;
        let reader = MapReader::new(self.session, self.keys);
        let description = &self.source.disks()[index];
        let (suspects, begun) = (BTreeSet::new(), Begun { position: 0, since: Instant::now() });
        let mut pass = DiskPass { job: self, index, description, before: None, reader: &reader, suspects, begun };
        let everything = Changed {
            lie: None,
            mode: ChangeTracking::Full,
            reason: "a part of the map was lost".into(),
            dirty: ExtentSet::new(),
            zeroes: ExtentSet::new(),
            checkpoint: None,
        };
        let (root, _) = pass.attempt(everything).await?;
        if root == disk.root {
            return Ok(());
        }
        Err(Error::source(format!("disk {} reads differently now", disk.name))
            .hint("the source changed while it was read; run the backup again"))
    }

    async fn read_again(&self, disk: usize, id: ChunkId, within: Extent, size: u64) -> Result<()> {
        self.given.needs_again("the repository lost chunks", None)?;
        let block = grid_blocks(within, size).next().ok_or_else(|| Error::internal("a block past the disk's end"))?;
        let plain = self.source.read(disk, block).await?;
        if self.keys.id(ChunkKind::Data, &plain) != id {
            return Err(Error::source(format!("offset {} reads differently now", block.offset))
                .hint("the source changed while it was read; run the backup again"));
        }
        let compression = self.options.compression;
        let compress = move || with_compressor(compression, |compressor| compressor.compress(ChunkKind::Data, &plain));
        let blob = self.pool.run(compress).await;
        self.session.put(vec![(id, blob)]).await
    }
}
