//! The turn to sweep: one sweep at a time. Also the folder in which the sweep has its counts.

use crate::index::Index;
use mover::{Error, Result};
use std::path::PathBuf;
use std::sync::Mutex;
use tokio::sync::MutexGuard;

/// The turn of one sweep at a time.
pub struct SweepTurn {
    /// Where the counts of references are.
    folder: PathBuf,
    /// Another folder for the counts, used by a sweep that only looks in a process that may not write.
    elsewhere: Mutex<Option<PathBuf>>,
    /// Held by a sweep.
    sweeping: tokio::sync::Mutex<()>,
}

impl SweepTurn {
    /// No sweep is running yet; counts are under `folder`.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, elsewhere: Mutex::default(), sweeping: tokio::sync::Mutex::default() }
    }

    /// Takes the turn.
    ///
    /// # Errors
    /// `Busy` when somebody has it.
    pub fn take(&self) -> Result<MutexGuard<'_, ()>> {
        let busy = |_| Error::busy("another sweep of the repository is running").hint("use --wait");
        self.sweeping.try_lock().map_err(busy)
    }

    /// Where the counts are now.
    pub fn counts(&self) -> PathBuf {
        self.elsewhere.lock().expect("no holder panics").clone().unwrap_or_else(|| self.folder.clone())
    }

    /// Moves the place of the counts to another folder, until [`Self::give_back`].
    pub fn count_in(&self, folder: PathBuf) {
        *self.elsewhere.lock().expect("no holder panics") = Some(folder);
    }

    /// Removes the folder of [`Self::count_in`]. The next sweep that only looks makes another one.
    pub fn give_back(&self) {
        if let Some(folder) = self.elsewhere.lock().expect("no holder panics").take() {
            let _ = std::fs::remove_dir_all(folder);
        }
    }

    /// Removes the counts: they are a cache, and the next sweep begins with new ones.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn remove_counts(&self) -> Result<()> {
        Index::remove(&self.folder)
    }
}
