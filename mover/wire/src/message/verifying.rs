//! Messages of verifications.

use super::{Name, PointId, RepositoryId, WHAT_CHARS_MAX};
use chunker::ChunkId;
use mover::{Depth, Error, Result, VerifyError, VerifyOptions};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Has the node look whether everything is there and sound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyIn {
    /// Id of the repository.
    pub repository: RepositoryId,
    /// 0 structure, 1 the stored bytes of some packs, 2 every chunk.
    pub depth: u8,
    /// Of depth 1, 1 to 100 per cent of the packs.
    pub percent: u8,
    /// Only what these need; at most [`VERIFIED_POINTS_MAX`], everything when there are none.
    pub points: Vec<PointId>,
    /// Milliseconds: packs found sound no longer ago are not read again.
    pub outdated_after_ms: Option<u64>,
    /// Most bytes that are read in a second.
    pub rate: Option<u64>,
}

impl VerifyIn {
    /// The request for these options.
    pub fn new(repository: RepositoryId, options: VerifyOptions) -> Self {
        let (depth, percent) = match options.depth {
            Depth::Structure => (0, 0),
            Depth::ReadData { percent } => (1, percent),
            Depth::Decode => (2, 0),
        };
        let milliseconds = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let (outdated_after_ms, rate) = (options.outdated_after.map(milliseconds), options.rate);
        Self { repository, depth, percent, points: options.points, outdated_after_ms, rate }
    }

    /// The options that the request carries.
    ///
    /// # Errors
    /// `Transport` for a depth that there is not.
    pub fn options(self) -> Result<VerifyOptions> {
        let depth = match (self.depth, self.percent) {
            (0, _) => Depth::Structure,
            (1, percent @ 1..=100) => Depth::ReadData { percent },
            (2, _) => Depth::Decode,
            _ => return Err(Error::transport("an unknown depth of verification")),
        };
        let outdated_after = self.outdated_after_ms.map(Duration::from_millis);
        Ok(VerifyOptions { depth, points: self.points, outdated_after, rate: self.rate })
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// A point that needs it.
    pub point: Option<PointId>,
    /// Name of the disk, or kind of the attachment.
    pub disk: Option<Name>,
    /// Offset in it, in bytes.
    pub offset: Option<u64>,
    /// The damaged or missing chunk.
    pub chunk: Option<[u8; 32]>,
    /// Name of the pack that is damaged, or that has the damaged chunk.
    pub pack: Option<String>,
    /// What is wrong, for people.
    pub what: String,
    /// It could not be read.
    pub unread: bool,
}

impl From<VerifyError> for Damage {
    fn from(error: VerifyError) -> Self {
        let cut = |what: String| what.chars().take(WHAT_CHARS_MAX).collect();
        let VerifyError { point, disk, offset, chunk, pack, what, unread } = error;
        Self { point, disk, offset, chunk: chunk.map(|it| it.0), pack: pack.map(cut), what: cut(what), unread }
    }
}

impl From<Damage> for VerifyError {
    fn from(damage: Damage) -> Self {
        let Damage { point, disk, offset, chunk, pack, what, unread } = damage;
        Self { point, disk, offset, chunk: chunk.map(ChunkId), pack, what, unread }
    }
}

/// The end of a verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Points whose maps were walked.
    pub points: u64,
    /// Distinct chunks that were looked at.
    pub chunks: u64,
    /// Bytes of packs read.
    pub bytes_read: u64,
    /// Packs that were not read again.
    pub packs_skipped: u64,
}

/// Points that one request verifies.
pub const VERIFIED_POINTS_MAX: usize = 2048;
/// Damages in one message.
pub const DAMAGES_MAX: usize = 64;
/// Of [`DAMAGES_MAX`] damages: characters take four bytes at most.
pub(super) const DAMAGES_BYTES_MAX: usize = DAMAGES_MAX * (2 * 4 * WHAT_CHARS_MAX + 256);
