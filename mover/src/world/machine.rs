//! A machine that can be backed up.

use crate::{CheckpointId, DiskRecord, Name, RepositoryId, Result, Source, TrackingWish};
use std::future::Future;

/// A machine: what is opened for a backup is all of it, its disks in one moment, with whatever must happen around that
/// moment (commands of the administrator, the guest agent).
pub trait MachineSource: Send + Sync {
    /// The open disks.
    type Session: Source;

    /// Opens all disks. `past` is asked only where the disks themselves do not tell enough.
    ///
    /// # Errors
    /// `Usage` for what cannot be backed up, `Busy` for a disk that somebody writes to, `Quiesce` when the machine could not
    /// be brought to the state that is required, `Source`, `Transport`, those of `past`. Nothing stays open or frozen
    /// then; what was begun in an image is settled by the next run.
    fn open(&self, wanted: &Wanted, past: &impl Past) -> impl Future<Output = Result<Self::Session>> + Send;
}

/// What a machine is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The repository of the backup: bitmaps bear its id.
    pub repository: RepositoryId,
    /// How changes may be found; with [`TrackingWish::Fingerprint`] nothing is written into any image.
    pub wish: TrackingWish,
}

/// What was backed up before, as far as it may be believed.
pub trait Past: Sync {
    /// True when some point that this owner made here was begun at this checkpoint: others may name any.
    fn is_committed(&self, checkpoint: CheckpointId) -> impl Future<Output = Result<bool>> + Send;

    /// A disk in the point that a backup would continue; none when there is none.
    fn disk(&self, name: &Name) -> impl Future<Output = Result<Option<DiskRecord>>> + Send;
}
