//! Making the index again, beside the one that is in use.

use crate::error::storage;
use crate::format::event::AddedPack;
use crate::format::pack::ENTRY_BYTES;
use crate::index::{Index, IndexAccess};
use crate::local::Inner;
use mover::{Error, IndexTotals, Phase, Progress, Result};
use std::path::Path;
use std::sync::RwLock;
use std::sync::atomic::Ordering::SeqCst;

impl Inner {
    /// See [`mover::Repository::rebuild_index`]. A process that dies meanwhile leaves the old index, or none, which is made
    /// again when the repository is opened. Blocking.
    ///
    /// # Errors
    /// Of the storage; when the repository was opened for reading.
    pub fn rebuild_index(&self, progress: &Progress) -> Result<IndexTotals> {
        self.packer()?;
        let _one = self.rebuilding.lock().expect("no holder panics");
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
        self.index_packs(&made, &state, |pack| {
            progress.advance(footer_bytes(pack));
            None
        })?;
        progress.enter(Phase::Commit);
        // What came meanwhile, and the exchange, while nobody adds anything.
        let log = self.log.lock().expect("no holder panics");
        let state = log.state().clone();
        self.index_packs(&made, &state, |_| None)?;
        let mut made = made.into_inner().expect("no holder panics");
        made.flush()?;
        made.close();
        {
            let mut index = self.index.write().expect("no holder panics");
            index.close();
            Index::remove(&folder)?;
            std::fs::rename(beside, &folder).map_err(|error| storage("cannot rename", beside, error))?;
            *index = Index::open(&folder, IndexAccess::Owner, id)?;
            self.index_failed.store(false, SeqCst);
        }
        progress.enter(Phase::Done);
        let chunks = state.packs().values().map(|pack| u64::from(pack.added.chunks)).sum();
        Ok(IndexTotals { packs: state.packs().len() as u64, chunks })
    }
}
