//! Chunks that are known to be damaged: what is said of them, and how a blob is noticed whose checksum is right and
//! whose content is not.

use crate::index::Place;
use crate::local::{Inner, Local};
use crate::reader;
use chunker::{ChunkId, DomainKeys};
use mover::{ChunkBatch, ChunkError, Result, verified};
use std::collections::{BTreeMap, BTreeSet};

impl Inner {
    /// Why a chunk that has no usable place but these cannot be had: a place in a pack that is there is known to be
    /// damaged; anything else is missing.
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

    /// Notes that the place each chunk is read from holds something else; gives what to say of it. Blocking.
    fn note_wrong(&self, wrong: Vec<(ChunkId, String)>) -> Vec<(ChunkId, ChunkError)> {
        let ids: Vec<ChunkId> = wrong.iter().map(|(id, _)| *id).collect();
        let places = self.locate(&ids).unwrap_or_else(|_| vec![None; ids.len()]);
        let state = self.state();
        let note = |((chunk, what), place): ((ChunkId, String), Option<Place>)| {
            let pack = place.and_then(|place| state.packs().get(&place.pack)).map(|pack| pack.added.name);
            let Some(pack) = pack else { return (chunk, ChunkError::Wrong { chunk, what }) };
            self.note_damaged(chunk, pack);
            (chunk, ChunkError::Damaged { chunk, pack: pack.to_string(), what })
        };
        wrong.into_iter().zip(places).map(note).collect()
    }
}

fn known(chunk: ChunkId, pack: String) -> ChunkError {
    ChunkError::Damaged { chunk, pack, what: "it was found damaged before, and no other pack has it".into() }
}

/// The blobs of `ids`, decoded and compared. A place whose content is wrong is noted as damaged, and the next one tried.
pub async fn get_verified(local: &Local, keys: &DomainKeys, ids: Vec<ChunkId>) -> ChunkBatch {
    let mut made = ChunkBatch::new();
    let mut found_wrong: BTreeMap<ChunkId, ChunkError> = BTreeMap::new();
    let mut rest = ids;
    for _ in 0..PLACES_TRIED_MAX {
        if rest.is_empty() {
            break;
        }
        let mut wrong = Vec::new();
        for (id, blob) in verified(reader::get(local.clone(), rest.clone()), keys, rest).await {
            match blob {
                Err(ChunkError::Wrong { what, .. }) => wrong.push((id, what)),
                // The first place's error says more than that there is no other.
                Err(error) => made.push((id, Err(found_wrong.remove(&id).unwrap_or(error)))),
                Ok(blob) => made.push((id, Ok(blob))),
            }
        }
        let noted = local.with(move |inner| inner.note_wrong(wrong)).await;
        rest = noted.iter().map(|(id, _)| *id).collect();
        for (id, error) in noted {
            found_wrong.entry(id).or_insert(error);
        }
    }
    let given_up = |chunk| (chunk, Err(found_wrong.remove(&chunk).unwrap_or(ChunkError::Missing { chunk })));
    made.extend(rest.into_iter().map(given_up));
    made
}

/// Places of one chunk that are looked at: more than that wrong would mean that the reading is.
const PLACES_TRIED_MAX: usize = 4;
