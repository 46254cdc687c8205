//! What a repository knows of a machine's past.

use super::parent_of;
use crate::{BackupOptions, CheckpointId, DiskRecord, Name, Past, PointFilter, ReadSession as _, Repository, Result};

/// What a repository knows of the machine that `options` name.
#[derive(Debug, Clone, Copy)]
pub struct PastOf<'a, R> {
    /// Repository that has the machine's points.
    pub repository: &'a R,
    /// Options of the backup; they name the machine.
    pub options: &'a BackupOptions,
}

impl<R: Repository> Past for PastOf<'_, R> {
    /// Reads every manifest, the newest first. The cost does not matter, because this is asked only after a run that
    /// was interrupted.
    async fn is_committed(&self, checkpoint: CheckpointId) -> Result<bool> {
        let points = self.repository.list(&PointFilter::default()).await?;
        let (here, owner) = (self.repository.config().id, self.repository.owner());
        for point in points.iter().rev().filter(|point| point.is_base_for(owner, here)) {
            let manifest = self.repository.read(&[point.id]).await?.manifest(point.id).await?;
            if manifest.disks.iter().any(|disk| disk.tracking.checkpoint == Some(checkpoint)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn disk(&self, name: &Name) -> Result<Option<DiskRecord>> {
        let Some(parent) = parent_of(self.repository, self.options).await? else { return Ok(None) };
        let manifest = self.repository.read(&[parent.id]).await?.manifest(parent.id).await?;
        Ok(manifest.disk(name).cloned())
    }
}
