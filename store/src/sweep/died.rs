//! Where the chunks are that died. What points brought together lies together: packs in which a sample of the dead is found
//! often are read, which costs less than to ask for each chunk; what is in none of them is looked up.

use super::choice::record_bytes;
use crate::format::pack::RECORD_HEADER_BYTES;
use crate::local::Inner;
use crate::references::{References, head};
use crate::state::State;
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
        let (mut heads, mut sampled) = (Vec::new(), Some(BTreeMap::<u32, u64>::new()));
        references.dead(|dead| {
            let sample: Vec<u64> = dead.iter().copied().step_by(SAMPLE).collect();
            let places = self.places_by_head(&sample);
            sampled = places.zip(sampled.take()).map(|(places, mut sampled)| {
                places.iter().for_each(|place| *sampled.entry(place.pack).or_default() += 1);
                sampled
            });
            heads.extend(dead);
            Ok(())
        })?;
        let much = |(number, found): &(u32, u64)| {
            let chunks = state.packs().get(number).map_or(u64::MAX, |pack| pack.added.chunks.into());
            found * SAMPLE as u64 * WORTH >= chunks
        };
        let packs: Vec<u32> = match sampled {
            Some(sampled) => sampled.into_iter().filter(much).map(|(number, _)| number).collect(),
            // Without an index packs are all there is.
            None => state.packs().keys().copied().collect(),
        };
        let (mut died, mut placed) = (BTreeMap::new(), vec![false; heads.len()]);
        for number in packs {
            // Those of a pack that cannot be read are looked up.
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
        let left: Vec<u64> =
            heads.into_iter().zip(placed).filter(|(_, placed)| !placed).map(|(head, _)| head).collect();
        for place in left.chunks(TOGETHER).filter_map(|heads| self.places_by_head(heads)).flatten() {
            let bytes = RECORD_HEADER_BYTES as u64 + u64::from(place.blob_bytes);
            died.entry(place.pack).or_default().add(place.offset, bytes);
        }
        died.values_mut().for_each(|here| here.offsets.sort_unstable());
        Ok(died)
    }
}

/// One of so many is looked up first.
const SAMPLE: usize = 64;
/// A pack is read when one of so many of its chunks died, by the sample.
const WORTH: u64 = 16;
/// Chunks that are looked up together.
const TOGETHER: usize = 4096;
