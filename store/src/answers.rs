//! What a repository answers its write sessions about chunks, and how many answers all sessions together may remember.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The rules for answers of one repository, and the number of answers that its sessions remember.
#[derive(Default)]
pub struct Answers {
    /// Number of answers that sessions remember, one for each chunk.
    remembered: AtomicUsize,
    /// A proxy may learn only about chunks that its owner has had.
    owners_apart: AtomicBool,
}

impl Answers {
    /// How many more answers sessions may remember.
    pub fn room(&self) -> usize {
        REMEMBERED_MAX.saturating_sub(self.remembered.load(Ordering::Relaxed))
    }

    /// Notes that a session remembers the answers about this many more chunks.
    pub fn remember(&self, chunks: usize) {
        self.remembered.fetch_add(chunks, Ordering::Relaxed);
    }

    /// Notes that a session has forgotten the answers about this many chunks.
    pub fn forget(&self, chunks: usize) {
        self.remembered.fetch_sub(chunks, Ordering::Relaxed);
    }

    /// From now on a proxy learns only about chunks that its owner has had.
    pub fn keep_owners_apart(&self) {
        self.owners_apart.store(true, Ordering::SeqCst);
    }

    /// True after [`Self::keep_owners_apart`].
    pub fn are_owners_apart(&self) -> bool {
        self.owners_apart.load(Ordering::SeqCst)
    }
}

/// Most answers that the sessions of a repository remember together: 49 MiB, in a table that is full to seven eighths.
/// When there is no room for an answer, a commit asks the index again.
const REMEMBERED_MAX: usize = (1 << 20) / 8 * 7;
