//! Where chunks are: what the index says; and while it fails, what the packs say themselves.

use crate::contents;
use crate::format::event::AddedPack;
use crate::format::pack::PackEntry;
use crate::index::{Index, IndexAccess, Place};
use crate::local::Inner;
use crate::state::State;
use chunker::ChunkId;
use mover::{Error, Progress, Result};
use std::collections::HashMap;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, RwLock};
use std::time::Duration;

impl Inner {
    /// Adds packs that the index does not have from their footers. One that cannot be read is left out with a warning:
    /// what is in it counts as missing until it can be read when the repository is opened.
    pub fn index_new_packs(&self, state: &State) {
        self.add_to_index(state, |_| None);
    }

    /// As [`Self::index_new_packs`], with the records of packs that are `known`. An index that fails fails nobody's work.
    pub fn add_to_index(&self, state: &State, known: impl Fn(&AddedPack) -> Option<Arc<Vec<PackEntry>>>) {
        if self.index_failed.load(SeqCst) {
            // The next one will have them.
            return;
        }
        if let Err(error) = self.index_packs(&self.index, state, known) {
            self.note_index_failed(&error);
        }
    }

    /// Adds to `index` what it does not have. It has one writer, and whoever asks meanwhile waits for single packs' notes
    /// only, not for the database.
    pub fn index_packs(
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
                None => contents::records(&*self.objects, &self.keys, &pack.added)
                    .or_else(|_| contents::records(&*self.objects, &self.keys, &pack.added))
                    .map(Arc::new),
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
        index().tag(self.config.config.id, state.end())?;
        let index = into.read().expect("no holder panics");
        if index.flush_is_due() { index.flush() } else { Ok(()) }
    }

    /// The usable place of each chunk: the earliest pack that holds it, is not doomed, and where it is not suspect
    /// (R9). Blocking.
    ///
    /// # Errors
    /// When the index fails.
    pub fn locate(&self, ids: &[ChunkId]) -> Result<Vec<Option<Place>>> {
        let places = self.places(ids)?;
        let state = self.state();
        let all_sound = state.suspects().is_empty() && self.nothing_damaged();
        let usable = |id: &ChunkId, place: &Place| match all_sound {
            true => state.is_live(place.pack),
            false => self.is_usable(&state, id, place.pack),
        };
        Ok(ids.iter().zip(places).map(|(id, places)| places.into_iter().find(|place| usable(id, place))).collect())
    }

    /// A place of each chunk in a doomed pack that is not known to be damaged there. Nothing new may rely on it. Blocking.
    ///
    /// # Errors
    /// When the index fails.
    pub fn locate_doomed(&self, ids: &[ChunkId]) -> Result<Vec<Option<Place>>> {
        let places = self.places(ids)?;
        let state = self.state();
        let damaged = self.damaged.lock().expect("no holder panics");
        let readable = |id: &ChunkId, place: &Place| {
            state.packs().get(&place.pack).is_some_and(|pack| {
                let here = (*id, pack.added.name);
                pack.doomed.is_some() && !state.suspects().contains(&here) && !damaged.contains(&here)
            })
        };
        Ok(ids.iter().zip(places).map(|(id, places)| places.into_iter().find(|place| readable(id, place))).collect())
    }

    /// The places of each chunk, earliest pack first; empty where there is none. Blocking.
    ///
    /// # Errors
    /// None of the index: then the footers of all packs are read. Packs that cannot be read count as not there.
    pub fn places(&self, ids: &[ChunkId]) -> Result<Vec<Vec<Place>>> {
        let (found, next) = {
            let index = self.index.read().expect("no holder panics");
            (index.places(ids), index.next_pack())
        };
        match found {
            // It does not take what is new, and may still say what is old.
            Ok(mut found) if self.index_failed.load(SeqCst) => {
                let new = self.places_in_footers(ids, next);
                found.iter_mut().zip(new).for_each(|(places, new)| places.extend(new));
                Ok(found)
            }
            Ok(found) => Ok(found),
            Err(error) => {
                self.note_index_failed(&error);
                Ok(self.places_in_footers(ids, 0))
            }
        }
    }

    /// The places of all chunks whose ids begin with these 8 bytes; none when the index cannot tell. Blocking.
    pub fn places_by_head(&self, heads: &[u64]) -> Option<Vec<Place>> {
        let found = self.index.read().expect("no holder panics").places_by_head(heads);
        found.inspect_err(|error| self.note_index_failed(error)).ok().filter(|_| !self.index_failed.load(SeqCst))
    }

    /// Of packs from number `first` on.
    fn places_in_footers(&self, ids: &[ChunkId], first: u32) -> Vec<Vec<Place>> {
        let mut found: HashMap<ChunkId, Vec<Place>> = ids.iter().map(|id| (*id, Vec::new())).collect();
        for (number, pack) in self.state().packs().range(first..) {
            match contents::records(&*self.objects, &self.keys, &pack.added) {
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

    /// The index cannot be used: another one is made beside it, by a thread of its own. Meanwhile packs tell where chunks
    /// are. Who may only read, and has no index of its own, keeps one in memory from here on.
    fn note_index_failed(&self, error: &Error) {
        if self.index_failed.swap(true, SeqCst) {
            return;
        }
        tracing::error!(%error, "the index failed and is rebuilt; no data is lost");
        let Some(inner) = self.me.get().cloned() else { return };
        let make = move || {
            for pause in PAUSES.iter().chain(std::iter::repeat(PAUSES.last().expect("some"))) {
                let Some(inner) = inner.upgrade() else { return };
                let Err(error) = inner.make_another_index() else { return };
                tracing::error!(%error, "the index cannot be rebuilt; chunks are looked up in the packs, which is slow");
                drop(inner);
                std::thread::sleep(*pause);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("index".into()).spawn(make) {
            tracing::error!(%error, "no thread can be started; run `windlass rebuild-index`");
        }
    }

    /// Opens the index again that could not be opened for writing, if there is one. Blocking.
    pub fn reopen_index(&self) {
        if self.author.term == 0 || !self.index.read().expect("no holder panics").is_makeshift() {
            return;
        }
        let _one = self.rebuilding.lock().expect("no holder panics");
        let opened = Index::open(&self.caches.index(), IndexAccess::Owner, self.config.config.id);
        let Ok(opened) = opened.map(RwLock::new) else { return };
        let log = self.log.lock().expect("no holder panics");
        let is_made = !opened.read().expect("no holder panics").is_makeshift();
        if is_made && self.index_packs(&opened, log.state(), |_| None).is_ok() {
            *self.index.write().expect("no holder panics") = opened.into_inner().expect("no holder panics");
        }
    }

    fn make_another_index(&self) -> Result<()> {
        if self.author.term > 0 {
            return self.rebuild_index(&Progress::default()).map(drop);
        }
        let made = RwLock::new(Index::in_memory());
        self.index_packs(&made, &self.state(), |_| None)?;
        // What came meanwhile, while nobody adds anything.
        let log = self.log.lock().expect("no holder panics");
        self.index_packs(&made, log.state(), |_| None)?;
        *self.index.write().expect("no holder panics") = made.into_inner().expect("no holder panics");
        self.index_failed.store(false, SeqCst);
        Ok(())
    }
}

/// Before it is tried again.
const PAUSES: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30), Duration::from_secs(300)];

#[cfg(test)]
mod tests {
    use crate::local::{Access, Local};
    use chunker::{ChunkKind, Compression, DomainKeys};
    use mover::{Begin, PointId, Pool, Repository, Verification, World, WriteSession, with_compressor};
    use std::sync::atomic::Ordering::SeqCst;

    /// RocksDB that takes nothing more, and still reads: what is new is found all the same.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_an_index_that_failed_did_not_take_is_found() {
        let (folder, world) = (tempfile::tempdir().unwrap(), World::system());
        Local::init(folder.path(), None, &world).unwrap();
        let local = Local::open(folder.path(), Access::Write, Pool::new(1).unwrap(), world).await.unwrap();
        let keys = DomainKeys::new(&local.config().domain);
        let mut ids = Vec::new();
        for (number, fails) in [(1u8, false), (2, true)] {
            local.inner.index_failed.store(fails, SeqCst);
            let blob =
                with_compressor(Compression::None, |compressor| compressor.compress(ChunkKind::Data, &[number; 100]));
            ids.push(keys.id(ChunkKind::Data, &[number; 100]));
            let (point, verification) = (PointId([number; 16]), Verification::Checksum);
            let begin = Begin { point, parents: Vec::new(), holder: None, verification };
            let (session, _) = local.begin(begin).await.unwrap();
            session.put(vec![(*ids.last().unwrap(), blob)]).await.unwrap();
            session.flush().await.unwrap();
            session.abandon().await.unwrap();
        }
        let asked = ids.clone();
        let found = local.with(move |inner| inner.locate(&asked)).await.unwrap();
        assert!(found.iter().all(Option::is_some), "{found:?}");
        local.close().await.unwrap();
    }
}
