//! What the write sessions of a repository are told of chunks, and how much of it they remember, all of them together.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// That of one repository.
#[derive(Default)]
pub struct Answers {
    /// Chunks of which sessions remember what they were told.
    remembered: AtomicUsize,
    /// Proxies are told only of what their owner has had.
    owners_apart: AtomicBool,
}

impl Answers {
    /// So many more may be remembered.
    pub fn room(&self) -> usize {
        REMEMBERED_MAX.saturating_sub(self.remembered.load(Ordering::Relaxed))
    }

    /// Notes that a session remembers so many more.
    pub fn remember(&self, chunks: usize) {
        self.remembered.fetch_add(chunks, Ordering::Relaxed);
    }

    /// Notes that a session has forgotten so many.
    pub fn forget(&self, chunks: usize) {
        self.remembered.fetch_sub(chunks, Ordering::Relaxed);
    }

    /// From now on a proxy is told only of chunks that its owner has had.
    pub fn keep_owners_apart(&self) {
        self.owners_apart.store(true, Ordering::SeqCst);
    }

    /// True from then on.
    pub fn are_owners_apart(&self) -> bool {
        self.owners_apart.load(Ordering::SeqCst)
    }
}

/// Chunks that the sessions of a repository remember having asked for: 49 MiB, in a table that is full to seven eighths.
/// Beyond that a commit asks the index again.
const REMEMBERED_MAX: usize = (1 << 20) / 8 * 7;
