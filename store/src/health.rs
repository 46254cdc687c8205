//! What is known of the health of packs: what reads found damaged, when each was last found sound, and what the scrub
//! has done.

use crate::format::event::Event;
use crate::format::pack::PackName;
use crate::objects::Objects;
use crate::state::State;
use crate::verified::Verified;
use chunker::ChunkId;
use mover::{Depth, RepositoryId, ScrubTotals, Stats, Timestamp};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

/// The health of the packs of one repository, as this process knows it.
pub struct Health {
    objects: Arc<dyn Objects>,
    repository: RepositoryId,
    /// Chunks that reads found damaged, each with its pack. The log may not know them yet. At most [`DAMAGED_MAX`].
    damaged: Mutex<BTreeSet<(ChunkId, PackName)>>,
    /// When packs were verified; read when it is first needed.
    verified: OnceLock<Mutex<Verified>>,
    /// What the scrub has done; none where there is none.
    scrubbed: Mutex<Option<ScrubTotals>>,
}

impl Health {
    /// Nothing is known yet.
    pub fn new(objects: Arc<dyn Objects>, repository: RepositoryId) -> Self {
        let (damaged, scrubbed) = (Mutex::default(), Mutex::default());
        Self { objects, repository, damaged, verified: OnceLock::new(), scrubbed }
    }

    /// Notes that a chunk cannot be read from a pack. From now on this place does not count, and the next record says
    /// so in the log.
    pub fn note_damaged(&self, chunk: ChunkId, pack: PackName) {
        let mut damaged = self.damaged();
        if damaged.len() < DAMAGED_MAX && damaged.insert((chunk, pack)) {
            tracing::warn!(%chunk, %pack, "a chunk cannot be read");
        }
    }

    /// Notes that chunks are sound where they were taken for damaged.
    pub fn note_sound(&self, places: &[(ChunkId, PackName)]) {
        let mut damaged = self.damaged();
        for place in places {
            damaged.remove(place);
        }
    }

    /// True when neither the log nor a read knows of damage.
    pub fn all_sound(&self, state: &State) -> bool {
        state.suspects().is_empty() && self.damaged().is_empty()
    }

    /// True for a place that may be relied on.
    pub fn is_usable(&self, state: &State, chunk: &ChunkId, pack: u32) -> bool {
        let Some(it) = state.packs().get(&pack).filter(|it| it.doomed.is_none()) else { return false };
        !self.is_damaged(state, (*chunk, it.added.name))
    }

    /// True for a place in a doomed pack that is not known to be damaged. Nothing new may rely on it.
    pub fn is_left(&self, state: &State, chunk: &ChunkId, pack: u32) -> bool {
        let Some(it) = state.packs().get(&pack).filter(|it| it.doomed.is_some()) else { return false };
        !self.is_damaged(state, (*chunk, it.added.name))
    }

    fn is_damaged(&self, state: &State, place: (ChunkId, PackName)) -> bool {
        state.suspects().contains(&place) || self.damaged().contains(&place)
    }

    /// Events for the damage that reads found since the last record.
    pub fn suspect_events(&self, state: &State) -> Vec<Event> {
        let damaged = self.damaged();
        let new = damaged
            .iter()
            .filter(|(chunk, pack)| state.pack_number(pack).is_some() && !state.suspects().contains(&(*chunk, *pack)));
        new.take(SUSPECTS_TOGETHER).map(|(chunk, pack)| Event::ChunkSuspect(*chunk, *pack)).collect()
    }

    fn damaged(&self) -> MutexGuard<'_, BTreeSet<(ChunkId, PackName)>> {
        self.damaged.lock().expect("no holder panics")
    }

    /// When packs were verified. The first time it is read from its object.
    pub fn verified(&self) -> MutexGuard<'_, Verified> {
        let verified = self.verified.get_or_init(|| Verified::load(&*self.objects, self.repository).into());
        verified.lock().expect("no holder panics")
    }

    /// Stores when packs were verified, for the next process. Blocking.
    pub fn save_verified(&self, state: &State) {
        if let Err(error) = self.verified().save(&*self.objects, state) {
            tracing::debug!(%error, "what was verified will be verified again");
        }
    }

    /// Adds to `stats` what is known of verifications at the time `now`.
    pub fn tell_verified(&self, state: &State, now: Timestamp, stats: &mut Stats) {
        let verified = self.verified();
        for pack in state.packs().values().filter(|pack| pack.doomed.is_none()) {
            let last = verified.last(&pack.added.name, Depth::Decode, now);
            stats.packs_unverified += u64::from(last.is_none());
            stats.oldest_verified = [stats.oldest_verified, last].into_iter().flatten().min();
        }
        stats.scrub = self.scrubbed(|totals| *totals);
    }

    /// Looks at, or changes, what the scrub has done.
    pub fn scrubbed<T>(&self, with: impl FnOnce(&mut Option<ScrubTotals>) -> T) -> T {
        with(&mut self.scrubbed.lock().expect("no holder panics"))
    }
}

/// Damaged chunks that one process remembers; the rest is found again.
const DAMAGED_MAX: usize = 1 << 20;
/// Chunks marked suspect in one record, besides its other events: a third of the longest record.
pub const SUSPECTS_TOGETHER: usize = 4_096;
