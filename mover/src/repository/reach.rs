//! What each owner has had of a repository whose owners are kept apart: the others' chunks are to it as if they were not
//! there.

use crate::{OwnerId, Result};
use chunker::ChunkId;

/// How an owner came by a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Had {
    /// It sent the chunk. Of a page that says nothing of what is below it: anybody can name any id.
    Put,
    /// A point that it may see needs the chunk: what is below it belongs to that point as well.
    Reached,
}

/// Remembers that. It is a cache: of what is forgotten the owner sends the chunk again, or reaches it again from its
/// points. Calls wait for storage.
pub trait Reach: Send + Sync {
    /// How `owner` came by each of these chunks; none where it did not.
    ///
    /// # Errors
    /// When the storage fails.
    fn had(&self, owner: OwnerId, ids: &[ChunkId]) -> Result<Vec<Option<Had>>>;

    /// From now on it has had these; what is known already stays at least what it was.
    ///
    /// # Errors
    /// When the storage fails.
    fn note(&self, owner: OwnerId, ids: &[ChunkId], had: Had) -> Result<()>;
}
