//! Methods for tests: they look into a repository in memory, damage it, and make its operations fail.

use super::{Fault, Mem};
use bytes::Bytes;
use chunker::{BLOB_HEADER_BYTES, Blob, ChunkId, ChunkKind};
use std::collections::BTreeMap;

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

    /// Turns over a bit of a chunk's payload (of its checksum when there is none); nothing notices this before the
    /// chunk is read.
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

    /// Loses what is not durable and fences every session, as a crash and a new start would.
    pub fn crash(&self) {
        let mut state = self.state();
        state.open.clear();
        state.sessions.clear();
        state.append();
    }
}
