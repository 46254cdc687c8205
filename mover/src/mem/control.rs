//! What tests do to a repository in memory behind its back.

use super::{Fault, Mem};
use crate::PointId;
use bytes::Bytes;
use chunker::{BLOB_HEADER_BYTES, Blob, ChunkId, ChunkKind};
use std::collections::{BTreeMap, BTreeSet, HashSet};

impl Mem {
    /// Plans a fault; several may be planned.
    pub fn plan(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// Takes back every fault that has not struck; tells whether there was one.
    pub fn calm(&self) -> bool {
        !std::mem::take(&mut self.state().faults).is_empty()
    }

    /// How often each operation was called.
    pub fn operations(&self) -> BTreeMap<&'static str, u64> {
        self.state().operations.clone()
    }

    /// Every durable chunk.
    pub fn chunks(&self) -> BTreeMap<ChunkId, ChunkKind> {
        self.state().chunks.iter().map(|(id, held)| (*id, held.blob.header().kind)).collect()
    }

    /// Sessions and readers that are open.
    pub fn sessions(&self) -> usize {
        self.state().sessions.values().filter(|lease| !lease.ended).count()
    }

    /// Takes a chunk away; the index knows.
    ///
    /// # Panics
    /// When it is not there.
    pub fn lose(&self, id: ChunkId) {
        let mut state = self.state();
        state.chunks.remove(&id).expect("a chunk to lose");
        state.losses += 1;
    }

    /// Turns over a bit of a chunk's payload (of its checksum when there is none); nobody knows before it is read.
    ///
    /// # Panics
    /// When it is not there.
    pub fn damage(&self, id: ChunkId) {
        let mut state = self.state();
        let held = state.chunks.get_mut(&id).expect("a chunk to damage");
        let mut bytes = held.blob.bytes().to_vec();
        let at = (bytes.len() - 1).max(BLOB_HEADER_BYTES - 4);
        bytes[at] ^= 0x20;
        held.blob = Blob::parse(Bytes::from(bytes)).expect("lengths are as before");
    }

    /// Puts a blob in the place of another, so that checksums match and the fingerprint does not.
    ///
    /// # Panics
    /// When the chunk is not there.
    pub fn swap(&self, id: ChunkId, blob: Blob) {
        self.state().chunks.get_mut(&id).expect("a chunk to swap").blob = blob;
    }

    /// Marks a chunk as suspect.
    pub fn suspect(&self, id: ChunkId) {
        let mut state = self.state();
        state.suspects.insert(id);
        state.losses += 1;
    }

    /// Forgets a point; final with the next sweep that nothing pins it against.
    pub fn forget(&self, point: PointId) {
        let mut state = self.state();
        state.append();
        state.points.iter_mut().filter(|it| it.id == point).for_each(|it| it.forgotten = true);
    }

    /// One round of garbage collection. Drops what was doomed before, is still unreachable, and whose sessions have
    /// ended; dooms what cannot be reached now and was added before the oldest open session began (R6).
    pub fn sweep(&self) {
        let mut state = self.state();
        state.append();
        state.losses += 1;
        let open: BTreeSet<_> = state.sessions.iter().filter(|(_, it)| !it.ended).map(|(id, _)| *id).collect();
        let pinned: HashSet<PointId> = open.iter().flat_map(|id| state.sessions[id].pins.clone()).collect();
        state.points.retain(|point| !point.forgotten || pinned.contains(&point.id));
        let mut reachable = HashSet::new();
        for point in &state.points {
            reachable.insert(point.manifest);
            if let Ok(manifest) = state.manifest(point.id, &self.0.prints) {
                manifest.roots().for_each(|root| {
                    state.walk(root, &self.0.prints, &mut |id, _| {
                        reachable.insert(id);
                    });
                });
            }
        }
        let free = |(id, waits): (&ChunkId, &BTreeSet<_>)| {
            (!reachable.contains(id) && waits.is_disjoint(&open)).then_some(*id)
        };
        let dropped: Vec<ChunkId> = state.doomed.iter().filter_map(free).collect();
        for id in dropped {
            state.doomed.remove(&id);
            state.chunks.remove(&id);
        }
        let oldest = open.iter().map(|id| state.sessions[id].opened).min().unwrap_or(u64::MAX);
        let dead = |id: &ChunkId, added: u64| !reachable.contains(id) && added < oldest;
        let doomed: Vec<ChunkId> =
            state.chunks.iter().filter(|(id, held)| dead(id, held.added)).map(|(id, _)| *id).collect();
        for id in doomed {
            state.doomed.entry(id).or_insert_with(|| open.clone());
        }
    }

    /// Loses what is not durable and fences every session, as a crash and a new start would.
    pub fn crash(&self) {
        let mut state = self.state();
        state.open.clear();
        state.sessions.clear();
        state.append();
    }
}
