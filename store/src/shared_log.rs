//! The log of an open repository, and the state that it gives. One thread appends at a time. All others read the last
//! state without waiting for a sync.

use crate::format::event::Event;
use crate::log::{Author, CommitLog};
use crate::state::State;
use mover::{LogHead, Result, World};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

/// The log, its view, and the term of this process.
pub struct SharedLog {
    author: Author,
    world: World,
    log: Mutex<CommitLog>,
    view: RwLock<Arc<State>>,
    /// The term of this process has begun. It begins with the first record that is appended, and not earlier.
    term_begun: AtomicBool,
    /// A reader that could not write its session does not try again.
    unwritable: AtomicBool,
}

impl SharedLog {
    /// The log as it was opened.
    pub fn new(author: Author, world: World, log: CommitLog) -> Self {
        let view = RwLock::new(log.state().clone());
        let (term_begun, unwritable) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { author, world, log: Mutex::new(log), view, term_begun, unwritable }
    }

    /// The writer and term under which this process appends.
    pub const fn author(&self) -> Author {
        self.author
    }

    /// True for the one process that adds packs.
    pub const fn is_writer(&self) -> bool {
        self.author.term > 0
    }

    /// The state as of the last record this process has read or written.
    pub fn state(&self) -> Arc<State> {
        self.view.read().expect("no holder panics").clone()
    }

    /// Takes the log, and waits while another thread has it.
    pub fn hold(&self) -> HeldLog<'_> {
        HeldLog { of: self, log: self.log.lock().expect("no holder panics") }
    }

    /// Notes that nothing can be written, not even a session.
    pub fn note_unwritable(&self) {
        self.unwritable.store(true, SeqCst);
    }

    /// True after [`Self::note_unwritable`].
    pub fn is_unwritable(&self) -> bool {
        self.unwritable.load(SeqCst)
    }

    /// Events that begin a new term, and that fence the sessions of other processes that are older than a week.
    fn term_events(&self, state: &State) -> Vec<Event> {
        let oldest = self.world.now().0.saturating_sub(SESSION_AGE_MAX_NS);
        let stale = state.sessions().values().filter(|it| it.writer != self.author.writer && it.time.0 < oldest);
        let fenced = stale.map(|session| Event::SessionFenced(session.opened.session));
        [Event::WriterTerm].into_iter().chain(fenced).collect()
    }
}

/// The log while nobody else has it.
pub struct HeldLog<'a> {
    of: &'a SharedLog,
    log: MutexGuard<'a, CommitLog>,
}

impl HeldLog<'_> {
    /// The state after the last record.
    pub fn state(&self) -> &Arc<State> {
        self.log.state()
    }

    /// True when the log once ended with `seen`: see [`CommitLog::passed`].
    ///
    /// # Errors
    /// As [`CommitLog::open`].
    pub fn passed(&self, seen: LogHead) -> Result<bool> {
        self.log.passed(seen)
    }

    /// Reads the log to its end.
    ///
    /// # Errors
    /// As [`CommitLog::catch_up`].
    pub fn catch_up(&mut self) -> Result<Arc<State>> {
        self.log.catch_up()?;
        Ok(self.publish())
    }

    /// Appends one record of the events that `make` gives for the state before it; none when it gives none. This process's
    /// first record begins its term. Gives whether there is a record.
    ///
    /// # Errors
    /// As [`CommitLog::append`].
    pub fn append(&mut self, mut make: impl FnMut(&State) -> Result<Vec<Event>>) -> Result<(Arc<State>, bool)> {
        let of = self.of;
        let begins_term = of.is_writer() && !of.term_begun.load(SeqCst);
        let appended = self.log.append(of.author, |state| {
            let made = make(state)?;
            // Nothing is written for a term alone.
            let term = if begins_term && !made.is_empty() { of.term_events(state) } else { Vec::new() };
            Ok(term.into_iter().chain(made).collect())
        })?;
        if appended.is_some() {
            of.term_begun.store(true, SeqCst);
        }
        Ok((self.publish(), appended.is_some()))
    }

    /// Writes a digest when one is due: see [`CommitLog::digest_when_due`].
    ///
    /// # Errors
    /// When the storage fails.
    pub fn digest_when_due(&mut self) -> Result<()> {
        self.log.digest_when_due()
    }

    fn publish(&self) -> Arc<State> {
        let state = self.log.state().clone();
        *self.of.view.write().expect("no holder panics") = state.clone();
        state
    }
}

/// Leases of other processes are fenced after a week.
const SESSION_AGE_MAX_NS: i64 = 7 * 24 * 3600 * 1_000_000_000;
