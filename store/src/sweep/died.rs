//! Where the chunks are that died. Chunks that came with one point usually lie in the same packs. So a sample of the
//! dead chunks is looked up, and packs in which many of the sample are found are read. That costs less than to look up
//! each chunk. Dead chunks that are in none of these packs are looked up one by one.

use super::choice::record_bytes;
use crate::format::pack::RECORD_HEADER_BYTES;
use crate::index::Place;
use crate::references::{References, head};
use crate::repository::Inner;
use crate::state::State;
use mover::Result;
use std::collections::{BTreeMap, BTreeSet};

/// What died in one pack.
#[derive(Default)]
pub(super) struct Died {
    /// Bytes of the records that died.
    pub bytes: u64,
    /// Offsets at which these records begin, ascending.
    pub offsets: Vec<u32>,
}

impl Died {
    fn add(&mut self, offset: u32, bytes: u64) {
        self.offsets.push(offset);
        self.bytes += bytes;
    }
}

/// A search for chunks.
struct Search {
    /// The beginnings of their ids, ascending.
    heads: Vec<u64>,
    /// Which of them were found.
    found: Vec<bool>,
    /// Running numbers of packs that were read.
    read: BTreeSet<u32>,
    died: BTreeMap<u32, Died>,
}

impl Inner {
    /// What died in which packs. Memory: up to 21 bytes for each chunk that died.
    pub(super) fn died(&self, references: &References, state: &State) -> Result<BTreeMap<u32, Died>> {
        let (mut heads, mut sampled) = (Vec::new(), Some(BTreeMap::<u32, u64>::new()));
        references.dead(|dead| {
            let sample: Vec<u64> = dead.iter().copied().step_by(SAMPLE).collect();
            let places = self.index.places_by_head(&sample);
            sampled = places.zip(sampled.take()).map(|(places, mut sampled)| {
                places.iter().for_each(|place| *sampled.entry(place.pack).or_default() += 1);
                sampled
            });
            heads.extend(dead);
            Ok(())
        })?;
        let much = |(number, found): &(&u32, &u64)| {
            let chunks = state.packs().get(number).map_or(u64::MAX, |pack| pack.added.chunks.into());
            **found * SAMPLE as u64 * WORTH >= chunks
        };
        let found = vec![false; heads.len()];
        let mut search = Search { heads, found, read: BTreeSet::new(), died: BTreeMap::new() };
        let promising = sampled.iter().flatten().filter(much).map(|(number, _)| *number);
        self.look_in(&mut search, references, state, promising)?;
        let left = search.heads.iter().zip(&search.found).filter(|(_, found)| !**found).map(|(head, _)| *head);
        let left: Vec<u64> = left.collect();
        let places: Option<Vec<Vec<Place>>> =
            left.chunks(TOGETHER).map(|heads| self.index.places_by_head(heads)).collect();
        match places {
            Some(places) => {
                for place in places.into_iter().flatten().filter(|place| !search.read.contains(&place.pack)) {
                    let bytes = RECORD_HEADER_BYTES as u64 + u64::from(place.blob_bytes);
                    search.died.entry(place.pack).or_default().add(place.offset, bytes);
                }
            }
            // Without an index packs are all there is.
            None => self.look_in(&mut search, references, state, state.packs().keys().copied())?,
        }
        search.died.values_mut().for_each(|here| here.offsets.sort_unstable());
        Ok(search.died)
    }

    fn look_in(
        &self,
        search: &mut Search,
        references: &References,
        state: &State,
        packs: impl Iterator<Item = u32>,
    ) -> Result<()> {
        for number in packs {
            if !state.packs().contains_key(&number) || search.read.contains(&number) {
                continue;
            }
            // Those of a pack that cannot be read are looked up.
            let Ok(mut entries) = self.records_of(state, number) else { continue };
            entries.sort_unstable_by_key(|entry| entry.id);
            // What has a duplicate here may have counted in another.
            let is_place = !references.has_duplicates(number)?;
            let (here, mut from) = (search.died.entry(number).or_default(), 0);
            for entry in &entries {
                let head = head(&entry.id);
                from += search.heads[from..].partition_point(|dead| *dead < head);
                if search.heads.get(from) == Some(&head) {
                    search.found[from] |= is_place;
                    here.add(entry.offset, record_bytes(entry));
                }
            }
            search.read.insert(number);
        }
        Ok(())
    }
}

/// One dead chunk of this many is in the sample, which is looked up first.
const SAMPLE: usize = 64;
/// A pack is read when, judging from the sample, at least one of this many of its chunks died.
const WORTH: u64 = 16;
/// Chunks that are looked up together.
const TOGETHER: usize = 4096;
