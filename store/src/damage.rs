//! Chunks that are known to be damaged, and the errors that describe them.

use crate::format::pack::PackName;
use crate::health::SUSPECTS_TOGETHER;
use crate::index::Place;
use crate::repository::Inner;
use crate::state::State;
use chunker::ChunkId;
use mover::{ChunkError, ErrorKind, Result};
use std::collections::BTreeSet;
use std::ops::Bound;

impl Inner {
    /// Why a chunk without a usable place cannot be read; `places` are all places that it has. If one of them is in a
    /// pack that is not doomed, the chunk is known to be damaged there. Otherwise the chunk is missing.
    pub fn why_not(&self, chunk: ChunkId, places: &[Place]) -> ChunkError {
        let state = self.state();
        let mut packs = places.iter().filter_map(|place| state.packs().get(&place.pack));
        match packs.find(|pack| pack.doomed.is_none()) {
            Some(pack) => known(chunk, pack.added.name.to_string()),
            None => ChunkError::Missing { chunk },
        }
    }

    /// Those of `ids` that have no usable place, each once, and why. Blocking.
    ///
    /// # Errors
    /// When the index fails.
    pub fn not_usable(&self, ids: Vec<ChunkId>) -> Result<Vec<(ChunkId, ChunkError)>> {
        let places = self.locate(&ids)?;
        let lost: BTreeSet<ChunkId> =
            ids.into_iter().zip(places).filter(|(_, place)| place.is_none()).map(|(id, _)| id).collect();
        let lost: Vec<ChunkId> = lost.into_iter().collect();
        let places = self.places(&lost)?;
        Ok(lost.into_iter().zip(places).map(|(id, places)| (id, self.why_not(id, &places))).collect())
    }

    /// Notes that these chunks are damaged in the places from which they are read, because the content there is wrong.
    /// Gives the error for each. Blocking.
    pub fn note_wrong(&self, wrong: Vec<(ChunkId, String)>) -> Vec<(ChunkId, ChunkError)> {
        let ids: Vec<ChunkId> = wrong.iter().map(|(id, _)| *id).collect();
        let places = self.locate(&ids).unwrap_or_else(|_| vec![None; ids.len()]);
        let state = self.state();
        let note = |((chunk, what), place): ((ChunkId, String), Option<Place>)| {
            let pack = place.and_then(|place| state.packs().get(&place.pack)).map(|pack| pack.added.name);
            let Some(pack) = pack else { return (chunk, ChunkError::Wrong { chunk, what }) };
            self.health.note_damaged(chunk, pack);
            (chunk, ChunkError::Damaged { chunk, pack: pack.to_string(), what })
        };
        wrong.into_iter().zip(places).map(note).collect()
    }

    /// Damaged chunks of which no sound copy exists: those after `after`, in order, at most `max`. Blocking.
    ///
    /// # Errors
    /// `Integrity` of the log; of the index.
    pub fn wanted(&self, after: Option<ChunkId>, max: usize) -> Result<Vec<ChunkId>> {
        let state = self.catch_up()?;
        let mut from = after.map_or(Bound::Unbounded, |id| Bound::Excluded((id, PackName([0xff; 32]))));
        let mut wanted = Vec::new();
        loop {
            let some = state.suspects().range((from, Bound::Unbounded)).take(SUSPECTS_TOGETHER);
            let mut some: Vec<ChunkId> = some.map(|(chunk, _)| *chunk).collect();
            some.dedup();
            let Some(last) = some.last() else { return Ok(wanted) };
            from = Bound::Excluded((*last, PackName([0xff; 32])));
            for (chunk, place) in some.iter().zip(self.locate(&some)?) {
                if place.is_none() && wanted.len() < max {
                    wanted.push(*chunk);
                }
            }
            if wanted.len() == max {
                return Ok(wanted);
            }
        }
    }

    /// All damaged chunks of which no sound copy exists. Blocking.
    ///
    /// # Errors
    /// When the index fails.
    pub fn unhealed(&self, state: &State) -> Result<BTreeSet<ChunkId>> {
        let suspects: BTreeSet<ChunkId> = state.suspects().iter().map(|(chunk, _)| *chunk).collect();
        let suspects: Vec<ChunkId> = suspects.into_iter().collect();
        let places = self.locate(&suspects)?;
        Ok(suspects.into_iter().zip(places).filter(|(_, place)| place.is_none()).map(|(chunk, _)| chunk).collect())
    }
}

/// What was read, unless it is damaged.
pub fn unless_damaged<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Err(error) if error.kind() == ErrorKind::Integrity => Ok(None),
        read => read.map(Some),
    }
}

fn known(chunk: ChunkId, pack: String) -> ChunkError {
    ChunkError::Damaged { chunk, pack, what: "it was found damaged before, and no other pack has it".into() }
}
