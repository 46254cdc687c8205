//! Chunks and packs that the packer has taken, and that the log does not know yet.

use crate::format::event::AddedPack;
use crate::format::pack::PackEntry;
use crate::objects::Incoming;
use chunker::ChunkId;
use mover::{Error, ErrorKind, Result, SessionId, Shape};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

/// Packs that the log does not know yet, and what is in them.
#[derive(Default)]
pub struct Pending {
    chunks: HashMap<ChunkId, PendingChunk>,
    packs: BTreeMap<u64, PendingPack>,
    next_pack: u64,
    logged: Logged,
    failed: Option<(ErrorKind, String)>,
}

/// Counts the packs that were logged, so that a session can tell whether another session had a pack logged since it
/// asked the index.
#[derive(Default)]
struct Logged {
    count: u64,
    last: Option<(SessionId, u64)>,
    /// The count at the last pack of any session other than the one in `last`.
    before: u64,
}

impl Logged {
    fn add(&mut self, session: SessionId) {
        self.count += 1;
        if let Some((_, at)) = self.last.filter(|(last, _)| *last != session) {
            self.before = at;
        }
        self.last = Some((session, self.count));
    }

    fn by_others(&self, session: SessionId) -> u64 {
        self.last.map_or(0, |(last, at)| if last == session { self.before } else { at })
    }
}

/// A chunk that the log does not know yet.
#[derive(Clone, Copy)]
pub struct PendingChunk {
    /// The session that put it first.
    pub session: SessionId,
    /// Kind and length of the chunk.
    pub shape: Shape,
    /// The pack (a number of this process), offset of its record and length of its blob, once it is written.
    pub place: Option<(u64, u32, u32)>,
}

/// A pack that the log does not know yet.
pub struct PendingPack {
    /// Its bytes.
    pub incoming: Arc<dyn Incoming>,
    /// Nonce in the pack's header.
    pub nonce: [u8; 16],
    /// What to log, once it is durable under its own name.
    pub sealed: Option<SealedPack>,
}

/// A pack that is durable under its own name.
#[derive(Clone)]
pub struct SealedPack {
    /// What the log will say of it.
    pub added: AddedPack,
    /// Its records, for the index.
    pub entries: Arc<Vec<PackEntry>>,
}

impl Pending {
    /// What is known of a chunk.
    pub fn chunk(&self, id: &ChunkId) -> Option<PendingChunk> {
        self.chunks.get(id).copied()
    }

    /// A number that grows when chunks that another session put come into the index. If `session` found a chunk missing
    /// when the number was lower, the chunk must be looked up again.
    pub fn logged_by_others(&self, session: SessionId) -> u64 {
        self.logged.by_others(session)
    }

    /// Takes `id` for `session` unless somebody has put it already. A chunk that is taken must be in the packer's queue
    /// before the lock is released: a session that gets the answer "pending" relies on its own flush coming later in
    /// the queue.
    pub(super) fn reserve(&mut self, id: ChunkId, shape: Shape, session: SessionId) -> bool {
        let new = !self.chunks.contains_key(&id);
        if new {
            self.chunks.insert(id, PendingChunk { session, shape, place: None });
        }
        new
    }

    /// True for a chunk whose pack is durable, so that the next record will name it.
    pub fn is_sealed(&self, id: &ChunkId) -> bool {
        let place = self.chunks.get(id).and_then(|chunk| chunk.place);
        place.and_then(|place| self.packs.get(&place.0)).is_some_and(|pack| pack.sealed.is_some())
    }

    /// A pack by its number.
    pub fn pack(&self, number: u64) -> Option<&PendingPack> {
        self.packs.get(&number)
    }

    /// The packs that are durable, by number.
    pub fn sealed(&self) -> Vec<(u64, SealedPack)> {
        self.packs.iter().filter_map(|(number, pack)| Some((*number, pack.sealed.clone()?))).collect()
    }

    /// True when so many packs are durable, or so much is in them, that they should be logged.
    pub fn is_due(&self) -> bool {
        let sealed = || self.packs.values().filter_map(|pack| pack.sealed.as_ref());
        sealed().count() >= SEALED_MAX || sealed().map(|pack| pack.entries.len()).sum::<usize>() >= SEALED_CHUNKS_MAX
    }

    /// Enters a pack that is begun and gives its number.
    pub(super) fn begin_pack(&mut self, incoming: Arc<dyn Incoming>, nonce: [u8; 16]) -> u64 {
        let number = self.next_pack;
        self.next_pack += 1;
        self.packs.insert(number, PendingPack { incoming, nonce, sealed: None });
        number
    }

    /// Enters where records of a pack are, which are written.
    pub(super) fn written<'a>(&mut self, pack: u64, entries: impl IntoIterator<Item = &'a PackEntry>) {
        for entry in entries {
            if let Some(chunk) = self.chunks.get_mut(&entry.id) {
                chunk.place.get_or_insert((pack, entry.offset, entry.blob_bytes));
            }
        }
    }

    /// Enters that a pack is durable under its name.
    pub(super) fn seal(&mut self, pack: u64, sealed: SealedPack) {
        if let Some(waiting) = self.packs.get_mut(&pack) {
            waiting.sealed = Some(sealed);
        }
    }

    /// Forgets a pack that is in the log and the index now, and gives it to be settled.
    pub fn logged(&mut self, number: u64) -> Option<Arc<dyn Incoming>> {
        let pack = self.packs.remove(&number)?;
        for entry in pack.sealed.iter().flat_map(|sealed| sealed.entries.iter()) {
            let here = |chunk: &PendingChunk| chunk.place.is_some_and(|place| place.0 == number);
            if self.chunks.get(&entry.id).is_some_and(here)
                && let Some(chunk) = self.chunks.remove(&entry.id)
            {
                self.logged.add(chunk.session);
            }
        }
        Some(pack.incoming)
    }

    /// Stops all writing until the repository is opened again; the first error stays (never retry a failed sync).
    pub fn fail(&mut self, error: &Error) {
        self.failed.get_or_insert_with(|| (error.kind(), error.message()));
    }

    /// The kind of the error that stopped all writing; none while writing goes on.
    pub fn stopped(&self) -> Option<ErrorKind> {
        self.failed.as_ref().map(|(kind, _)| *kind)
    }

    /// Fails when writing has stopped.
    ///
    /// # Errors
    /// The first error, again.
    pub fn check(&self) -> Result<()> {
        let Some((kind, message)) = &self.failed else { return Ok(()) };
        let hint = match kind {
            ErrorKind::Fenced => "run the job again; nothing that was committed is affected",
            ErrorKind::StoreFull => {
                "free space on its storage, restart windlass-store if it serves the repository, and run the job again; \
                 nothing that was committed is affected"
            }
            _ => "repair the storage, then run the job again; nothing that was committed is affected",
        };
        Err(Error::new(*kind, format!("the repository stopped writing: {message}")).hint(hint))
    }
}

/// Locks what is pending.
pub fn lock(pending: &Mutex<Pending>) -> MutexGuard<'_, Pending> {
    pending.lock().expect("no holder panics")
}

/// Durable packs that wait for a log record.
const SEALED_MAX: usize = 8;
/// Chunks in durable packs that wait for a log record. They are kept in memory until then, about 200 bytes for each
/// chunk.
const SEALED_CHUNKS_MAX: usize = 1 << 17;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_logged_is_told_from_what_oneself_did() {
        let [a, b, c] = [1, 2, 3].map(|byte| SessionId([byte; 16]));
        let mut logged = Logged::default();
        let seen = |logged: &Logged| [a, b, c].map(|session| logged.by_others(session));
        assert_eq!(seen(&logged), [0, 0, 0]);
        // Who logged, and for whom the number must have grown: everybody else.
        for who in [a, a, b, a, c, c, b, b, a, b] {
            let before = seen(&logged);
            logged.add(who);
            for ((session, before), now) in [a, b, c].into_iter().zip(before).zip(seen(&logged)) {
                assert_eq!(now > before, session != who, "{session:?} after {who:?}");
            }
        }
    }
}
