//! Where the chunks are that died. What points brought together lies together: packs in which a sample of the dead is found
//! often are read, which costs less than to ask for each chunk; what is in none of them is looked up.

use super::choice::record_bytes;
use super::marking::head;
use crate::format::pack::RECORD_HEADER_BYTES;
use crate::local::Inner;
use crate::references::References;
use crate::state::State;
use chunker::ChunkId;
use mover::Result;
use std::collections::BTreeMap;

/// What died in one pack.
#[derive(Default)]
pub(super) struct Died {
    /// Of the records.
    pub bytes: u64,
    /// Where they begin, ascending.
    pub offsets: Vec<u32>,
}

impl Died {
    fn add(&mut self, offset: u32, bytes: u64) {
        self.offsets.push(offset);
        self.bytes += bytes;
    }
}

impl Inner {
    /// What died in which packs. Memory: 13 bytes for each chunk that died.
    pub(super) fn died(&self, references: &References, state: &State) -> Result<BTreeMap<u32, Died>> {
        let (mut heads, mut sampled) = (Vec::new(), BTreeMap::<u32, u64>::new());
        references.dead(|ids| {
            heads.extend(ids.iter().map(head));
            let sample: Vec<ChunkId> = ids.into_iter().step_by(SAMPLE).collect();
            for place in self.places(&sample)?.iter().flatten() {
                *sampled.entry(place.pack).or_default() += 1;
            }
            Ok(())
        })?;
        let mut died = BTreeMap::new();
        let mut placed = vec![false; heads.len()];
        let many = |number: u32, found: u64| {
            let chunks = state.packs().get(&number).map_or(u64::MAX, |pack| pack.added.chunks.into());
            found * SAMPLE as u64 * WORTH >= chunks
        };
        for (number, _) in sampled.into_iter().filter(|(number, found)| many(*number, *found)) {
            // Otherwise each is looked up.
            let Ok(mut entries) = self.records_of(state, number) else { continue };
            entries.sort_unstable_by_key(|entry| entry.id);
            let (here, mut from): (&mut Died, usize) = (died.entry(number).or_default(), 0);
            for entry in &entries {
                let head = head(&entry.id);
                from += heads[from..].partition_point(|dead| *dead < head);
                if heads.get(from) == Some(&head) {
                    placed[from] = true;
                    here.add(entry.offset, record_bytes(entry));
                }
            }
        }
        if placed.contains(&false) {
            let mut from = 0;
            references.taken_ids(|ids| {
                let left = ids.into_iter().filter(|id| {
                    from += heads[from..].partition_point(|dead| *dead < head(id));
                    heads.get(from) == Some(&head(id)) && !placed[from]
                });
                for place in self.places(&left.collect::<Vec<_>>())?.iter().flatten() {
                    let bytes = RECORD_HEADER_BYTES as u64 + u64::from(place.blob_bytes);
                    died.entry(place.pack).or_default().add(place.offset, bytes);
                }
                Ok(())
            })?;
        }
        for here in died.values_mut() {
            here.offsets.sort_unstable();
        }
        Ok(died)
    }
}

/// One of so many is looked up first.
const SAMPLE: usize = 16;
/// A pack is read when one of so many of its chunks died, by the sample.
const WORTH: u64 = 16;
