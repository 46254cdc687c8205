//! Making the index again while the old one is in use.

use crate::error::storage;
use crate::format::event::AddedPack;
use crate::format::pack::ENTRY_BYTES;
use crate::index::{Index, IndexAccess};
use crate::repository::Inner;
use mover::{Error, IndexTotals, Phase, Progress, Result};
use std::path::Path;
use std::sync::{Arc, RwLock};
use std::time::Duration;

impl Inner {
    /// See [`mover::Repository::rebuild_index`]. If the process dies meanwhile, the old index is left, or none; then
    /// the next opening of the repository makes one. Blocking.
    ///
    /// # Errors
    /// Of the storage; when the repository was opened for reading.
    pub fn rebuild_index(&self, progress: &Progress) -> Result<IndexTotals> {
        self.packs.packer()?;
        let _one = self.index.rebuilding();
        let beside = self.caches.index_new();
        self.rebuilt(&beside, progress).inspect_err(|_| {
            // There may be no room, and what was made of it is of no use.
            let _ = Index::remove(&beside);
        })
    }

    fn rebuilt(&self, beside: &Path, progress: &Progress) -> Result<IndexTotals> {
        let folder = self.caches.index();
        let id = self.config.config.id;
        Index::remove(beside)?;
        let made = Index::open(beside, IndexAccess::Owner, id)?;
        if made.is_makeshift() {
            return Err(Error::store_io(format!("cannot make an index in {}", beside.display()))
                .hint("when its file system can be written again, run `windlass rebuild-index`"));
        }
        let made = RwLock::new(made);
        let state = self.catch_up()?;
        let footer_bytes = |pack: &AddedPack| u64::from(pack.chunks) * ENTRY_BYTES as u64;
        progress.expect(state.packs().values().map(|pack| footer_bytes(&pack.added)).sum());
        progress.enter(Phase::Move);
        self.index.add_to(&made, &state, |pack| {
            progress.advance(footer_bytes(pack));
            None
        })?;
        progress.enter(Phase::Commit);
        // What came meanwhile, and the exchange, while nobody adds anything.
        let log = self.log.hold();
        let state = log.state().clone();
        self.index.add_to(&made, &state, |_| None)?;
        let mut made = made.into_inner().expect("no holder panics");
        made.flush()?;
        made.close();
        self.index.exchange(|index| {
            index.close();
            Index::remove(&folder)?;
            std::fs::rename(beside, &folder).map_err(|error| storage("cannot rename", beside, error))?;
            Index::open(&folder, IndexAccess::Owner, id)
        })?;
        progress.enter(Phase::Done);
        let chunks = state.packs().values().map(|pack| u64::from(pack.added.chunks)).sum();
        Ok(IndexTotals { packs: state.packs().len() as u64, chunks })
    }

    /// If the index could not be opened for writing, tries again to open it. Blocking.
    pub fn reopen_index(&self) {
        if !self.log.is_writer() || !self.index.is_makeshift() {
            return;
        }
        let _one = self.index.rebuilding();
        let opened = Index::open(&self.caches.index(), IndexAccess::Owner, self.config.config.id);
        let Ok(opened) = opened.map(RwLock::new) else { return };
        let log = self.log.hold();
        let is_made = !opened.read().expect("no holder panics").is_makeshift();
        if is_made && self.index.add_to(&opened, log.state(), |_| None).is_ok() {
            let _ = self.index.exchange(|_| Ok(opened.into_inner().expect("no holder panics")));
        }
    }

    fn make_another_index(&self) -> Result<()> {
        if self.log.is_writer() {
            return self.rebuild_index(&Progress::default()).map(drop);
        }
        let made = RwLock::new(Index::in_memory());
        self.index.add_to(&made, &self.state(), |_| None)?;
        // What came meanwhile, while nobody adds anything.
        let log = self.log.hold();
        self.index.add_to(&made, log.state(), |_| None)?;
        self.index.exchange(|_| Ok(made.into_inner().expect("no holder panics")))
    }
}

/// Starts a thread that makes another index whenever the one in use fails. Meanwhile places of chunks are read from the
/// footers of packs. A process that may only read cannot write an index, so it makes one in memory.
pub fn rebuild_when_failed(inner: &Arc<Inner>) {
    // The thread may outlive all handles.
    let weak = Arc::downgrade(inner);
    inner.index.when_failed(move || {
        let inner = weak.clone();
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
    });
}

/// Pauses before the making of an index is tried again; the last pause is repeated.
const PAUSES: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30), Duration::from_secs(300)];
