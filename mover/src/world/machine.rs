//! A machine that can be backed up.

use crate::{CheckpointId, DiskRecord, Name, RepositoryId, Result, Source, TrackingWish};
use serde::{Deserialize, Serialize};
use std::future::Future;

/// A machine. A backup opens all its disks in one moment, and the machine also does what must happen around that moment
/// (commands of the administrator, the guest agent).
pub trait MachineSource: Send + Sync {
    /// The open disks.
    type Session: Source;

    /// Opens all disks. `past` is asked only where the disks themselves do not tell enough.
    ///
    /// # Errors
    /// `Usage` for what cannot be backed up, `Busy` for a disk that somebody writes to, `Quiesce` when the machine
    /// could not be brought to the state that is required, `Source`, `Transport`, those of `past`. After an error
    /// nothing stays open or frozen; the next run cleans up what was begun in an image.
    fn open(&self, wanted: &Wanted, past: &impl Past) -> impl Future<Output = Result<Self::Session>> + Send;

    /// True when the machine, or something in it, stands still while it is opened: then everything else is made ready
    /// before, and nothing is tried twice.
    fn stands_still(&self) -> bool {
        false
    }
}

/// What a machine is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The repository of the backup: bitmaps bear its id.
    pub repository: RepositoryId,
    /// How changes may be found; with [`TrackingWish::Fingerprint`] nothing is written into any image.
    pub wish: TrackingWish,
    /// Whether the machine's file systems are to stand still for the moment of the snapshot.
    pub quiesce: Quiesce,
}

/// Whether the file systems of a running machine are frozen for the moment of its snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Quiesce {
    /// Where that is possible; otherwise the point is crash consistent, and a warning says why.
    #[default]
    Auto,
    /// Frozen, or there is no point.
    Require,
    /// Not frozen.
    Off,
}

/// What was backed up before, as far as it can be trusted.
pub trait Past: Sync {
    /// True when a point that this owner made in this repository names this checkpoint. Points of other owners do not
    /// count, because they can name any checkpoint.
    fn is_committed(&self, checkpoint: CheckpointId) -> impl Future<Output = Result<bool>> + Send;

    /// A disk in the point that a backup would continue; none when there is none.
    fn disk(&self, name: &Name) -> impl Future<Output = Result<Option<DiskRecord>>> + Send;
}
