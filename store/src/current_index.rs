//! The index that is in use. It follows the log. When it fails, places of chunks are read from the footers of packs,
//! until a thread has made another index.

use crate::contents;
use crate::format::event::AddedPack;
use crate::format::pack::PackEntry;
use crate::index::{Forgetting, Index, Place};
use crate::objects::Objects;
use crate::state::State;
use chunker::{ChunkId, DomainKeys};
use mover::{Error, Had, OwnerId, RepositoryId, Result};
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, RwLock, RwLockReadGuard};

/// The index, and whether it can be used.
pub struct CurrentIndex {
    objects: Arc<dyn Objects>,
    keys: DomainKeys,
    repository: RepositoryId,
    index: RwLock<Index>,
    /// It cannot be used until another one is made.
    failed: AtomicBool,
    /// Makes another index. Called once when this one has failed.
    when_failed: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// Held while another index is made.
    rebuilding: Mutex<()>,
}

impl CurrentIndex {
    /// The index as it was opened.
    pub fn new(objects: Arc<dyn Objects>, keys: DomainKeys, repository: RepositoryId, index: Index) -> Self {
        Self {
            objects,
            keys,
            repository,
            index: RwLock::new(index),
            failed: AtomicBool::new(false),
            when_failed: OnceLock::new(),
            rebuilding: Mutex::default(),
        }
    }

    /// Sets the function that is called when the index fails, to make another one. Only the first call counts.
    pub fn when_failed(&self, make: impl Fn() + Send + Sync + 'static) {
        let _ = self.when_failed.set(Box::new(make));
    }

    /// Adds packs that the index does not have, with the records of those that are `known` and the footers of the
    /// others. The caller must hold the log. A pack that cannot be read is left out with a warning. Its chunks count as
    /// missing until the repository is opened and the pack can be read. If the index fails, this is no error for the
    /// caller.
    pub fn add(&self, state: &State, known: impl Fn(&AddedPack) -> Option<Arc<Vec<PackEntry>>>) {
        if self.failed.load(SeqCst) {
            // The next one will have them.
            return;
        }
        if let Err(error) = self.add_to(&self.index, state, known) {
            self.note_failed(&error);
        }
    }

    /// Adds the packs that an index does not have. Only one thread may write. Others can ask the index meanwhile: they
    /// wait only while a pack is noted as added, not while its records are written into the database.
    ///
    /// # Errors
    /// When the index fails.
    pub fn add_to(
        &self,
        into: &RwLock<Index>,
        state: &State,
        known: impl Fn(&AddedPack) -> Option<Arc<Vec<PackEntry>>>,
    ) -> Result<()> {
        let index = || into.write().expect("no holder panics");
        let (again, next) = {
            let mut index = index();
            (index.take_again(), index.next_pack())
        };
        let new = state.packs().range(next..).map(|(number, _)| *number);
        for number in again.into_iter().chain(new) {
            let Some(pack) = state.packs().get(&number) else {
                index().forget(number);
                continue;
            };
            let name = &pack.added.name;
            let entries = match known(&pack.added) {
                Some(entries) => Ok(entries),
                // Twice, because one bad moment would have all of the pack sent again.
                None => self.records(&pack.added).or_else(|_| self.records(&pack.added)).map(Arc::new),
            };
            match entries {
                Ok(entries) => {
                    into.read().expect("no holder panics").write(number, &entries)?;
                    let mut index = index();
                    index.added(number, &entries);
                    // Salvaged: it may be whole again the next time.
                    if entries.len() < pack.added.chunks as usize {
                        index.skip(number);
                    }
                }
                Err(error) => {
                    tracing::warn!(
                        pack = %name, %error,
                        "a pack cannot be read, and its chunks count as missing; it is tried again whenever the repository \
                         is opened, and `windlass verify` shows what needs it"
                    );
                    index().skip(number);
                }
            }
        }
        index().tag(self.repository, state.end())?;
        let index = into.read().expect("no holder panics");
        if index.flush_is_due() { index.flush() } else { Ok(()) }
    }

    fn records(&self, pack: &AddedPack) -> Result<Vec<PackEntry>> {
        contents::records(&*self.objects, &self.keys, pack)
    }

    /// The places of each chunk, earliest pack first; empty where there is none. While the index fails, the footers of
    /// the packs of `state` are read. The chunks of packs that cannot be read count as missing. Blocking.
    pub fn places(&self, ids: &[ChunkId], state: impl Fn() -> Arc<State>) -> Vec<Vec<Place>> {
        let (found, next) = {
            let index = self.read();
            (index.places(ids), index.next_pack())
        };
        match found {
            // It does not take what is new, and may still say what is old.
            Ok(mut found) if self.failed.load(SeqCst) => {
                let new = self.places_in_footers(ids, &state(), next);
                found.iter_mut().zip(new).for_each(|(places, new)| places.extend(new));
                found
            }
            Ok(found) => found,
            Err(error) => {
                self.note_failed(&error);
                self.places_in_footers(ids, &state(), 0)
            }
        }
    }

    /// The places of each chunk in packs from number `first` on, read from the footers of these packs.
    fn places_in_footers(&self, ids: &[ChunkId], state: &State, first: u32) -> Vec<Vec<Place>> {
        let mut found: HashMap<ChunkId, Vec<Place>> = ids.iter().map(|id| (*id, Vec::new())).collect();
        for (number, pack) in state.packs().range(first..) {
            match self.records(&pack.added) {
                Ok(entries) => {
                    for entry in &entries {
                        if let Some(places) = found.get_mut(&entry.id) {
                            // A chunk twice in one pack is read from its first record.
                            if places.last().is_none_or(|place| place.pack != *number) {
                                places.push(Place::of(*number, entry));
                            }
                        }
                    }
                }
                Err(error) => tracing::warn!(pack = %pack.added.name, %error, "a pack cannot be read"),
            }
        }
        ids.iter().map(|id| found[id].clone()).collect()
    }

    /// The places of all chunks whose ids begin with these 8 bytes; none when the index cannot tell. Blocking.
    pub fn places_by_head(&self, heads: &[u64]) -> Option<Vec<Place>> {
        let found = self.read().places_by_head(heads);
        found.inspect_err(|error| self.note_failed(error)).ok().filter(|_| !self.failed.load(SeqCst))
    }

    /// All chunks of these packs: see [`Index::chunks_of`].
    ///
    /// # Errors
    /// When the index fails.
    pub fn chunks_of(&self, packs: &BTreeSet<u32>) -> Result<Vec<(ChunkId, Place)>> {
        self.read().chunks_of(packs)
    }

    /// Prepares the removal of places: see [`Index::forgetting`].
    ///
    /// # Errors
    /// When the index fails.
    pub fn forgetting(&self, number: u32, ids: &[ChunkId]) -> Result<Option<Forgetting>> {
        self.read().forgetting(number, ids)
    }

    /// Removes the places: see [`Index::forget_places`]. The caller must hold the log.
    ///
    /// # Errors
    /// When the index fails.
    pub fn forget_places(&self, forgetting: Forgetting) -> Result<bool> {
        self.read().forget_places(forgetting)
    }

    /// How an owner has had each of these chunks.
    ///
    /// # Errors
    /// When the index fails.
    pub fn had(&self, owner: OwnerId, ids: &[ChunkId]) -> Result<Vec<Option<Had>>> {
        self.read().had(owner, ids)
    }

    /// Notes that an owner has had these chunks.
    ///
    /// # Errors
    /// When the index fails.
    pub fn note_had(&self, owner: OwnerId, ids: &[ChunkId], had: Had) -> Result<()> {
        self.read().note_had(owner, ids, had)
    }

    /// Makes what was added last: see [`Index::flush`].
    ///
    /// # Errors
    /// When the index fails.
    pub fn flush(&self) -> Result<()> {
        self.read().flush()
    }

    /// True when it stands in for one that could not be opened for writing.
    pub fn is_makeshift(&self) -> bool {
        self.read().is_makeshift()
    }

    /// The lock for making another index: only one thread may do it at a time.
    pub fn rebuilding(&self) -> MutexGuard<'_, ()> {
        self.rebuilding.lock().expect("no holder panics")
    }

    /// Puts another index in the place of this one, which `exchange` may close. All other users of the index wait
    /// meanwhile. When `exchange` fails, the old index stays, even if it is closed by then.
    ///
    /// # Errors
    /// Those of `exchange`.
    pub fn exchange(&self, exchange: impl FnOnce(&mut Index) -> Result<Index>) -> Result<()> {
        let mut index = self.index.write().expect("no holder panics");
        *index = exchange(&mut index)?;
        self.failed.store(false, SeqCst);
        Ok(())
    }

    /// Notes that the index cannot be used, and starts the making of another one, unless that has been started already.
    fn note_failed(&self, error: &Error) {
        if self.failed.swap(true, SeqCst) {
            return;
        }
        tracing::error!(%error, "the index failed and is rebuilt; no data is lost");
        if let Some(make) = self.when_failed.get() {
            make();
        }
    }

    /// Marks the index as failed or as good, for tests.
    #[cfg(test)]
    pub fn set_failed(&self, failed: bool) {
        self.failed.store(failed, SeqCst);
    }

    fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().expect("no holder panics")
    }
}
