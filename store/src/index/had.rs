//! Rows of the index that tell which chunks an owner has had, for a repository that keeps owners apart.

use super::{Index, IndexAccess, failed, unusable};
use chunker::ChunkId;
use mover::{Had, OwnerId, Result};
use rocksdb::WriteBatch;
use std::collections::HashMap;

/// A key has a length that no chunk id has: a mark, the owner, and the first half of the chunk's id. Half of the id is
/// enough, because nobody can find another chunk with the same 128 bits.
type Key = [u8; 35];

/// Rows in memory, of an index that has no database to write to.
pub type HadRows = HashMap<Key, Had>;

impl Index {
    /// How `owner` came by each of these chunks.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn had(&self, owner: OwnerId, ids: &[ChunkId]) -> Result<Vec<Option<Had>>> {
        let keys = ids.iter().map(|id| key(owner, id));
        let had = self.had.lock().expect("no holder panics");
        let Some(database) = &self.database else {
            return match self.access {
                IndexAccess::Owner => Err(unusable()),
                IndexAccess::Guest => Ok(keys.map(|key| had.get(&key).copied()).collect()),
            };
        };
        let found = keys.clone().zip(database.multi_get(keys)).map(|(key, found)| {
            let row =
                found.map_err(failed)?.and_then(|row| Some(if *row.first()? == 0 { Had::Put } else { Had::Reached }));
            Ok(row.max(had.get(&key).copied()))
        });
        found.collect()
    }

    /// Notes how `owner` came by these chunks. A note that says more already is not replaced.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn note_had(&self, owner: OwnerId, ids: &[ChunkId], had: Had) -> Result<()> {
        let known = self.had(owner, ids)?;
        let new = ids.iter().zip(known).filter(|(_, known)| *known < Some(had)).map(|(id, _)| key(owner, id));
        let Some(database) = self.database.as_ref().filter(|_| self.access == IndexAccess::Owner) else {
            self.had.lock().expect("no holder panics").extend(new.map(|key| (key, had)));
            return Ok(());
        };
        let mut batch = WriteBatch::default();
        new.for_each(|key| batch.put(key, [had as u8]));
        // With RocksDB's log, unlike everything else here: a restore goes on after the node was killed, and asks for what is
        // below pages that it was given before.
        database.write(batch).map_err(failed)
    }
}

fn key(owner: OwnerId, id: &ChunkId) -> Key {
    let mut key = [0; 35];
    key[..3].copy_from_slice(b"own");
    key[3..19].copy_from_slice(&owner.0);
    key[19..].copy_from_slice(&id.as_bytes()[..16]);
    key
}
