//! Which chunks each owner has had, for a repository that keeps its owners apart. For an owner, chunks that only other
//! owners have had are as if they were not there.

use crate::{OwnerId, Result};
use chunker::ChunkId;

/// How an owner came by a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Had {
    /// The owner sent the chunk. For a page this says nothing about the chunks below it, because a page can name any
    /// id.
    Put,
    /// A point that the owner may see needs the chunk. The chunks below it belong to that point as well.
    Reached,
}

/// Remembers which chunks each owner has had. It is a cache: if an entry is lost, the owner sends the chunk again, or
/// the chunk is reached again from the owner's points. Calls wait for storage.
pub trait Reach: Send + Sync {
    /// How `owner` came by each of these chunks; none where it did not.
    ///
    /// # Errors
    /// When the storage fails.
    fn had(&self, owner: OwnerId, ids: &[ChunkId]) -> Result<Vec<Option<Had>>>;

    /// Notes that `owner` has had these chunks. An entry that is `Reached` already does not become `Put` again.
    ///
    /// # Errors
    /// When the storage fails.
    fn note(&self, owner: OwnerId, ids: &[ChunkId], had: Had) -> Result<()>;
}
