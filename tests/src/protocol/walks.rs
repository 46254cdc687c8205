//! Walks over the trees of points, and where their chunks are.

use super::log::{Chunks, Event, Packs, Points, Replayed, bit8, bit16, chunks_of};
use super::rules::Clause;
use super::state::{State, Writer};
use super::{Config, Job};

impl Config {
    /// The chunks that a writer must upload, as far as it knows, and the packs that hold the others.
    pub(super) fn missing(&self, state: &State, slot: u8, known: &Replayed) -> (Chunks, Packs) {
        let writer = &state.writers[slot as usize];
        if self.job(slot, writer).repairs {
            let damaged = known.suspects.iter().fold(0, |all, chunks| all | chunks);
            let nowhere = |chunk: &u8| usable_place(self, state, known, *chunk).is_none();
            return (chunks_of(damaged).filter(nowhere).fold(0, |all, chunk| all | bit8(chunk)), 0);
        }
        let inherited = self.inherited(slot, known);
        let have = |chunk: u8| usable_place(self, state, known, chunk).is_some();
        let wanted = chunks_of(writer.wanted).filter(|chunk| !have(*chunk)).fold(0, |all, chunk| all | bit8(chunk));
        let (mut missing, mut told) = (wanted, 0);
        let mut todo = self.trees[self.job(slot, writer).point as usize] & !inherited;
        let mut seen = 0;
        while let Some(chunk) = chunks_of(todo & !seen).next() {
            seen |= bit8(chunk);
            match usable_place(self, state, known, chunk) {
                Some(pack) => told |= bit16(pack),
                None => missing |= bit8(chunk),
            }
            if !have(chunk) || self.rules.has(Clause::DescendUnpinned) {
                todo |= self.children[chunk as usize] & !inherited;
            }
        }
        (missing, told)
    }

    /// The walk before a commit. Gives the packs with the chunks that the pinned parent does not have; or the chunks
    /// that are in no pack.
    pub(super) fn walk(&self, state: &State, slot: u8, known: &Replayed) -> Result<Packs, Chunks> {
        let roots = self.trees[self.job(slot, &state.writers[slot as usize]).point as usize];
        let all = if self.rules.has(Clause::CommitWalks) { self.below(roots) } else { roots };
        let (mut relies, mut absent) = (0, 0);
        for chunk in chunks_of(all & !self.inherited(slot, known)) {
            match usable_place(self, state, known, chunk) {
                Some(pack) => relies |= bit16(pack),
                None => absent |= bit8(chunk),
            }
        }
        if absent == 0 { Ok(relies) } else { Err(absent) }
    }

    /// The chunks that a sweep copies out of a pack: those that it has marked and that are sound there; out of a doomed
    /// pack those that no other pack has.
    pub(super) fn to_copy(&self, state: &State, known: &Replayed, marked: Points, pack: u8) -> Chunks {
        match known.doomed & bit16(pack) {
            0 => self.chunks_of(marked) & known.sound(&state.headers, pack),
            _ => known.needed_of(self, &state.headers, pack),
        }
    }

    /// All chunks of the points that this session pinned.
    pub(super) fn inherited(&self, slot: u8, known: &Replayed) -> Chunks {
        let pins = known.sessions[slot as usize].map_or(0, |session| session.pins);
        self.chunks_of(pins)
    }

    /// Whether a chunk can be read from where this replayer believes it to be, and is sound there.
    pub(super) fn readable(&self, state: &State, known: &Replayed, chunk: u8) -> bool {
        known.place(self, &state.headers, chunk).is_some_and(|pack| self.holds(state, known, pack, chunk))
    }

    /// Whether a sound copy of a chunk is in this pack's object.
    pub(super) fn holds(&self, state: &State, known: &Replayed, pack: u8, chunk: u8) -> bool {
        state.stored & bit16(pack) != 0 && known.sound(&state.headers, pack) & bit8(chunk) != 0
    }

    pub(super) fn prunable(&self, state: &State) -> u8 {
        let needed = if self.rules.has(Clause::TwoDigests) { 2 } else { 1 };
        state.digests.len().checked_sub(needed).map_or(0, |index| state.digests[index])
    }

    pub(super) fn job(&self, slot: u8, writer: &Writer) -> Job {
        self.jobs[slot as usize][writer.job as usize]
    }

    pub(super) fn term(&self, state: &State, slot: u8, event: Event) -> u8 {
        let term = state.writers.get(slot as usize).map_or(0, |writer| writer.term);
        if event == Event::TermTaken { term + 1 } else { term }
    }
}

/// Where a chunk may be deduplicated against.
fn usable_place(config: &Config, state: &State, known: &Replayed, chunk: u8) -> Option<u8> {
    known.place(config, &state.headers, chunk).filter(|pack| known.usable() & bit16(*pack) != 0)
}
