//! Which packs are doomed, and which of their chunks are packed again before that.

use crate::contents::footer;
use crate::format::event::AddedPack;
use crate::format::pack::{PACK_HEADER_BYTES, PackEntry, PackKind, RECORD_HEADER_BYTES, footer_bytes_of};
use crate::index::Place;
use crate::packer::{PACK_BYTES_TARGET, PACK_CHUNKS_TARGET};
use crate::references::References;
use crate::repository::Inner;
use crate::state::State;
use chunker::{ChunkId, ChunkKind};
use mover::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};

/// What a look at a pack found.
struct Looked {
    entries: Vec<PackEntry>,
    /// For each, whether it is needed and read from here.
    live: Vec<bool>,
    dead_bytes: u64,
    /// A chunk is needed, and no sound copy of it exists. The pack stays, because it may be possible to save something
    /// of the chunk.
    held: bool,
}

impl Looked {
    /// The result for `pack`. Each of its records is live, or held, or dead.
    fn of(pack: &AddedPack, entries: Vec<PackEntry>, live: Vec<bool>, held: &BTreeSet<usize>) -> Self {
        let is_dead = |at: &usize| !live[*at] && !held.contains(at);
        let dead_bytes = match held.is_empty() && !live.contains(&true) {
            true => pack.bytes,
            false => (0..entries.len()).filter(is_dead).map(|at| record_bytes(&entries[at])).sum(),
        };
        Self { entries, live, dead_bytes, held: !held.is_empty() }
    }
}

/// How long packs will be, once records are in them.
#[derive(Default, Clone, Copy)]
struct Forecast {
    /// Bytes and records of the open pack of each kind.
    open: [(u64, usize); 2],
    complete_bytes: u64,
}

impl Forecast {
    fn add(&mut self, kind: PackKind, record_bytes: u64) {
        let (bytes, records) = &mut self.open[kind as usize];
        *bytes += if *records == 0 { PACK_HEADER_BYTES as u64 } else { 0 } + record_bytes;
        *records += 1;
        if *bytes >= PACK_BYTES_TARGET || *records >= PACK_CHUNKS_TARGET {
            self.complete_bytes += *bytes + footer_bytes_of(*records);
            (*bytes, *records) = (0, 0);
        }
    }

    fn bytes(&self) -> u64 {
        let open = self.open.iter().filter(|(_, records)| *records > 0);
        self.complete_bytes + open.map(|(bytes, records)| bytes + footer_bytes_of(*records)).sum::<u64>()
    }
}

/// What is to become of packs.
#[derive(Default)]
pub(super) struct Choice {
    /// Running numbers of the packs to be doomed.
    pub packs: BTreeSet<u32>,
    /// The packs of these that hold chunks that are needed, with a flag for each record: whether it is to be packed
    /// again.
    pub again: BTreeMap<u32, Vec<bool>>,
    /// Bytes of the new packs that this will make.
    pub bytes_again: u64,
    /// If packs must stay because there is no room to pack their chunks again: the bytes that the smallest of them
    /// would need.
    pub short_bytes: Option<u64>,
    /// Dead bytes of packs, for packs where this number has changed.
    pub dead_bytes: BTreeMap<u32, u64>,
}

impl Inner {
    /// Packs that may be doomed: those that no open session may have filled, or rely on without the log's knowledge (R6).
    pub(super) fn may_be_doomed(state: &State, marked: u64, number: u32) -> bool {
        state.packs().get(&number).is_some_and(|it| it.doomed.is_none() && state.is_settled(it, marked))
    }

    /// Looks at new packs. Their chunks may be dead from the beginning, if their session never committed a point.
    pub(super) fn look_at_new(&self, references: &References, state: &State, marked: u64) -> Result<()> {
        let old = references.looked_at()?;
        // Up to the first that a session may still be filling.
        let new = state.packs().range(old..).map(|(number, _)| *number);
        let new: Vec<u32> = new.take_while(|number| !Self::is_young(state, marked, *number)).collect();
        let (mut dead_bytes, mut looked_at) = (BTreeMap::new(), old);
        for number in new {
            // Those after one that cannot be read are looked at again the next time, as it is.
            let Some(looked) = self.look_at(references, state, number, &[])? else { break };
            dead_bytes.insert(number, looked.dead_bytes);
            looked_at = number + 1;
        }
        references.note_new_packs(&dead_bytes, looked_at)
    }

    /// Adds up what died in each pack, looks at the packs in which enough died, and chooses. Other packs are not looked
    /// at, because there may be very many in which only a few chunks died. The chunks that are packed again take at
    /// most `room` bytes.
    pub(super) fn choose(
        &self,
        references: &References,
        state: &State,
        marked: u64,
        repack_percent: u8,
        room: u64,
    ) -> Result<Choice> {
        let (mut dead, looked_at) = (references.dead_bytes()?, references.looked_at()?);
        let mut choice = Choice::default();
        let gone = dead.keys().filter(|number| !state.packs().contains_key(number));
        choice.dead_bytes.extend(gone.map(|number| (*number, 0)));
        let mut died = self.died(references, state)?;
        for (number, died) in &died {
            // What died in a pack that no sweep has looked at is found by the one that does.
            if *number < looked_at && Self::may_be_doomed(state, marked, *number) {
                let bytes = dead.entry(*number).or_default();
                *bytes += died.bytes;
                choice.dead_bytes.insert(*number, *bytes);
            }
        }
        let small = self.small_packs(state, marked);
        let worth = |number: u32, dead: u64| {
            state.packs().get(&number).is_some_and(|pack| {
                // When all records are dead, so is the rest.
                let rest = PACK_HEADER_BYTES as u64 + footer_bytes_of(pack.added.chunks as usize);
                is_worth(dead + rest, pack.added.bytes, repack_percent)
            })
        };
        let promising = dead.iter().filter(|(number, dead)| worth(**number, **dead)).map(|(number, _)| *number);
        // What was damaged and is stored elsewhere by now is dead, and nobody has added it up.
        let damaged = state.suspects().iter().filter_map(|(_, pack)| state.pack_number(pack));
        let mut candidates: BTreeSet<u32> = promising.chain(small.iter().copied()).chain(damaged).collect();
        candidates.retain(|number| Self::may_be_doomed(state, marked, *number));
        let mut forecast = Forecast::default();
        for number in candidates {
            let pack = &state.packs()[&number].added;
            let died = died.remove(&number).unwrap_or_default().offsets;
            let Some(looked) = self.look_at(references, state, number, &died)? else { continue };
            choice.dead_bytes.insert(number, looked.dead_bytes);
            if looked.held {
                continue;
            }
            if !looked.live.contains(&true) {
                choice.packs.insert(number);
            } else if small.contains(&number) || is_worth(looked.dead_bytes, pack.bytes, repack_percent) {
                let mut with = forecast;
                let live = looked.entries.iter().zip(&looked.live).filter(|(_, live)| **live);
                live.for_each(|(entry, _)| with.add(pack.kind, record_bytes(entry)));
                if with.bytes() > room {
                    let takes = with.bytes() - forecast.bytes();
                    choice.short_bytes = choice.short_bytes.into_iter().chain([takes]).min();
                    continue;
                }
                forecast = with;
                choice.packs.insert(number);
                choice.again.insert(number, looked.live);
            }
        }
        choice.bytes_again = forecast.bytes();
        Ok(choice)
    }

    fn is_young(state: &State, marked: u64, number: u32) -> bool {
        state.packs().get(&number).is_some_and(|pack| pack.doomed.is_none())
            && !Self::may_be_doomed(state, marked, number)
    }

    /// Small packs that are worth being put together, when there are many of a kind.
    fn small_packs(&self, state: &State, marked: u64) -> BTreeSet<u32> {
        let mut chosen = BTreeSet::new();
        for kind in [PackKind::Data, PackKind::Page] {
            let small = state.packs().iter().filter(|(number, pack)| {
                pack.added.kind == kind
                    && pack.added.bytes < SMALL_BYTES
                    && Self::may_be_doomed(state, marked, **number)
            });
            let small: BTreeSet<u32> = small.map(|(number, _)| *number).collect();
            if small.len() >= SMALL_MIN {
                chosen.extend(small);
            }
        }
        chosen
    }

    /// Which records of a pack are needed; none when the pack cannot be read. Records at the offsets in `died`
    /// (ascending) are known to be dead, so they are not looked up.
    ///
    /// # Errors
    /// When the counts of references fail.
    fn look_at(&self, references: &References, state: &State, number: u32, died: &[u32]) -> Result<Option<Looked>> {
        let pack = &state.packs()[&number].added;
        let entries = match self.records_of(state, number) {
            Ok(entries) => entries,
            Err(error) => {
                tracing::warn!(pack = %pack.name, %error, "a pack that cannot be read is left alone");
                return Ok(None);
            }
        };
        // The earliest sound place of a chunk counts. When those here did at the last look, nothing that came later changes
        // it but damage.
        let is_known = number < references.looked_at()? && self.health.all_sound(state);
        let count_here = is_known && !references.has_duplicates(number)?;
        if is_known && references.dead_bytes_in(number)? == 0 {
            // All were needed then, and what died since is known.
            let live: Vec<bool> = entries.iter().map(|entry| died.binary_search(&entry.offset).is_err()).collect();
            return Ok(Some(Looked::of(pack, entries, live, &BTreeSet::new())));
        }
        let (mut live, mut held, mut elsewhere) = (vec![false; entries.len()], BTreeSet::new(), false);
        let in_doubt = |entry: &PackEntry| died.binary_search(&entry.offset).is_err();
        for_each_batch(&entries, in_doubt, |batch, ids| {
            // What is taken away of these leaves some.
            let counts = references.counts_before(&ids)?;
            let needed = batch.iter().zip(ids).zip(counts).filter(|(_, count)| *count > 0);
            let (needed, ids): (Vec<usize>, Vec<ChunkId>) = needed.map(|((at, id), _)| (*at, id)).unzip();
            if count_here {
                needed.into_iter().for_each(|at| live[at] = true);
                return Ok(());
            }
            for (at, place) in needed.into_iter().zip(self.locate(&ids)?) {
                match place {
                    // A chunk twice in one pack is read from one place.
                    Some(place) => {
                        live[at] = place.pack == number && place.offset == entries[at].offset;
                        elsewhere |= !live[at];
                    }
                    None => drop(held.insert(at)),
                }
            }
            Ok(())
        })?;
        // Of what died it is not known, and it may be unforgotten.
        if !count_here && (elsewhere || died.is_empty()) {
            references.note_duplicates(number, elsewhere)?;
        }
        Ok(Some(Looked::of(pack, entries, live, &held)))
    }

    /// All records of a pack: from its footer, or from the index when the footer cannot be read. An incomplete list is
    /// an error, because the records that are not in it may be needed.
    ///
    /// # Errors
    /// `Integrity` when neither has as many as the log says; of the storage.
    pub(super) fn records_of(&self, state: &State, number: u32) -> Result<Vec<PackEntry>> {
        let pack = &state.packs()[&number].added;
        let whole = |entries: &Vec<PackEntry>| u32::try_from(entries.len()) == Ok(pack.chunks);
        let read = footer(&*self.objects, pack);
        if let Ok(entries) = read
            && whole(&entries)
        {
            return Ok(entries);
        }
        let known = self.index.chunks_of(&BTreeSet::from([number]))?;
        let entry = |(id, Place { offset, blob_bytes, .. })| {
            let kind = if pack.kind == PackKind::Page { ChunkKind::Page } else { ChunkKind::Data };
            // What the index does not say is needed by nobody who asks here.
            PackEntry { id, kind, offset, blob_bytes, plain_bytes: blob_bytes, blob_hash: [0; 16] }
        };
        let mut entries: Vec<PackEntry> = known.into_iter().map(entry).collect();
        entries.sort_unstable_by_key(|entry| entry.offset);
        if whole(&entries) {
            return Ok(entries);
        }
        Err(Error::integrity(format!("only {} of {} records are known", entries.len(), pack.chunks)))
    }

    /// Those of `packs` that can go: without them every chunk that is needed can still be read (R9), from a pack that
    /// is not in `distrusted`.
    pub(super) fn expendable(
        &self,
        references: &References,
        state: &State,
        packs: &BTreeSet<u32>,
        distrusted: &BTreeSet<u32>,
    ) -> Result<BTreeSet<u32>> {
        let mut kept = BTreeSet::new();
        loop {
            let leaving: BTreeSet<u32> = packs.difference(&kept).copied().collect();
            let without: BTreeSet<u32> = leaving.union(distrusted).copied().collect();
            let mut more = false;
            for number in &leaving {
                let lost = self.records_of(state, *number).and_then(|entries| {
                    let mut lost = false;
                    for_each_batch(
                        &entries,
                        |_| true,
                        |_, ids| {
                            let counts = references.counts(&ids)?;
                            let needed: Vec<ChunkId> =
                                ids.into_iter().zip(counts).filter(|(_, count)| *count > 0).map(|(id, _)| id).collect();
                            lost = lost || !self.only_in(state, &needed, &without)?.is_empty();
                            Ok(())
                        },
                    )?;
                    Ok(lost)
                });
                if lost.unwrap_or(true) {
                    more |= kept.insert(*number);
                }
            }
            if !more {
                return Ok(leaving);
            }
        }
    }

    /// Those of `ids` that cannot be read when `packs` are gone.
    pub(super) fn only_in(&self, state: &State, ids: &[ChunkId], packs: &BTreeSet<u32>) -> Result<Vec<ChunkId>> {
        let places = self.places(ids)?;
        let lost = |(id, places): &(&ChunkId, Vec<Place>)| {
            !places.iter().any(|place| !packs.contains(&place.pack) && self.health.is_usable(state, id, place.pack))
        };
        Ok(ids.iter().zip(places).filter(lost).map(|(id, _)| *id).collect())
    }
}

fn is_worth(dead_bytes: u64, bytes: u64, percent: u8) -> bool {
    dead_bytes > 0 && dead_bytes.saturating_mul(100) >= bytes.saturating_mul(percent.into())
}

/// Gives positions and ids of those entries for which `which` is true, many at a time. They are in the order of their
/// ids, because databases store them in this order.
pub(super) fn for_each_batch(
    entries: &[PackEntry],
    which: impl Fn(&PackEntry) -> bool,
    mut each: impl FnMut(&[usize], Vec<ChunkId>) -> Result<()>,
) -> Result<()> {
    let mut order: Vec<usize> = (0..entries.len()).filter(|at| which(&entries[*at])).collect();
    order.sort_unstable_by_key(|at| entries[*at].id);
    order.chunks(TOGETHER).try_for_each(|batch| each(batch, batch.iter().map(|at| entries[*at].id).collect()))
}

pub(super) fn record_bytes(entry: &PackEntry) -> u64 {
    RECORD_HEADER_BYTES as u64 + u64::from(entry.blob_bytes)
}

/// Chunks that are looked at together. RocksDB holds the block of each meanwhile: 65,536 took 360 MiB more.
const TOGETHER: usize = 4096;
/// Packs below this size are put together.
const SMALL_BYTES: u64 = 8 << 20;
/// Fewest small packs of a kind that are put together.
const SMALL_MIN: usize = 16;
