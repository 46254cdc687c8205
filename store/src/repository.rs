//! What an open repository consists of. Each part is in a file of its own, and it alone changes the data that it owns.
//! This file has the operations that need several parts: reading the log to its end, and appending to it.

use crate::answers::Answers;
use crate::caches::Caches;
use crate::current_index::CurrentIndex;
use crate::directory::Lock;
use crate::format::config::ConfigFile;
use crate::format::event::Event;
use crate::format::pack::PackName;
use crate::health::Health;
use crate::index::Index;
use crate::log::{Author, CommitLog};
use crate::objects::Objects;
use crate::packs::Packs;
use crate::room::Room;
use crate::shared_log::SharedLog;
use crate::state::State;
use crate::sweep_turn::SweepTurn;
use chunker::DomainKeys;
use mover::{ErrorKind, Pool, Result, World, blocking};
use std::collections::HashMap;
use std::sync::Arc;

/// An open repository. Fields that are not parts never change.
pub struct Inner {
    pub objects: Arc<dyn Objects>,
    pub caches: Caches,
    pub config: ConfigFile,
    pub keys: DomainKeys,
    pub pool: Pool,
    pub world: World,
    /// The log, and the state that it gives.
    pub log: SharedLog,
    /// Where chunks are.
    pub index: CurrentIndex,
    /// Packs that are written, and that are open.
    pub packs: Packs,
    /// What is damaged, and what is verified.
    pub health: Health,
    /// How much may still be written.
    pub room: Room,
    /// Who sweeps.
    pub sweep_turn: SweepTurn,
    /// What write sessions are told.
    pub answers: Answers,
    /// Held until the process ends or the repository is closed. It is the last field, so that it is dropped after the
    /// threads that write have ended.
    _lock: Option<Lock>,
}

impl Inner {
    pub fn new(
        (objects, caches): (Arc<dyn Objects>, Caches),
        (config, pool, world): (ConfigFile, Pool, World),
        author: Author,
        log: CommitLog,
        index: Index,
        lock: Option<Lock>,
    ) -> Self {
        let (keys, id) = (DomainKeys::new(&config.config.domain), config.config.id);
        Self {
            log: SharedLog::new(author, world.clone(), log),
            index: CurrentIndex::new(objects.clone(), keys.clone(), id, index),
            packs: Packs::new(objects.clone()),
            health: Health::new(objects.clone(), id),
            room: Room::new(objects.clone(), author.term > 0),
            sweep_turn: SweepTurn::new(caches.references()),
            answers: Answers::default(),
            objects,
            caches,
            config,
            keys,
            pool,
            world,
            _lock: lock,
        }
    }

    /// Runs blocking work on the repository.
    pub async fn with<T: Send + 'static>(self: &Arc<Self>, work: impl FnOnce(&Self) -> T + Send + 'static) -> T {
        let inner = self.clone();
        blocking(move || work(&inner)).await
    }

    /// The state as of the last record this process has read or written.
    pub fn state(&self) -> Arc<State> {
        self.log.state()
    }

    /// Reads the log to its end, and adds packs that others added. Blocking.
    ///
    /// # Errors
    /// `Integrity`, `Version`, or of the storage; once writing has failed, what it failed with.
    pub fn catch_up(&self) -> Result<Arc<State>> {
        let mut log = self.log.hold();
        self.packs.check()?;
        let state = log.catch_up()?;
        self.index.add(&state, |_| None);
        Ok(state)
    }

    /// As [`Self::catch_up`], for callers that only read. After writing has failed, it gives the state that was known
    /// before. The last record may exist without being durable then, and a power cut could take its point back, so
    /// readers must not see it. Blocking.
    ///
    /// # Errors
    /// `Integrity`, `Version`, or of the storage; `Fenced` when another process has become the writer, and may delete.
    pub fn known(&self) -> Result<Arc<State>> {
        match self.packs.stopped() {
            None | Some(ErrorKind::Fenced) => self.catch_up(),
            Some(_) => Ok(self.state()),
        }
    }

    /// Appends the events that `make` gives, together with the packs that became durable since the last record, and
    /// brings the index up to it. `make` is called again whenever another process has appended first. Blocking.
    ///
    /// # Errors
    /// As [`CommitLog::append`]. After an error of the storage all writing has stopped.
    pub fn append(&self, mut make: impl FnMut(&State) -> Result<Vec<Event>>) -> Result<Arc<State>> {
        let mut log = self.log.hold();
        self.packs.check()?;
        let mut no_room = false;
        let sealed = self.packs.pending().sealed();
        let appended = log.append(|state| {
            let made = make(state)?;
            let packs = sealed.iter().map(|(_, pack)| pack.added.clone()).collect();
            let packs = (!sealed.is_empty()).then_some(Event::PacksAdded(packs));
            // Nothing is written for damage alone: that goes with what comes next.
            if made.is_empty() && packs.is_none() {
                return Ok(Vec::new());
            }
            // Before anything is written: what fails in the middle stops all writing.
            self.room.make_room_for_record().inspect_err(|_| no_room = true)?;
            Ok(packs.into_iter().chain(made).chain(self.health.suspect_events(state)).collect())
        });
        let (state, is_new) = appended.inspect_err(|error| {
            let storage = !no_room && matches!(error.kind(), ErrorKind::StoreIo | ErrorKind::StoreFull);
            if storage && self.log.is_writer() {
                self.packs.fail(error);
            } else if storage {
                self.log.note_unwritable();
            }
        })?;
        if is_new {
            let known: HashMap<PackName, _> =
                sealed.iter().map(|(_, pack)| (pack.added.name, pack.entries.clone())).collect();
            // Who holds the log is the one who writes into the index.
            self.index.add(&state, |pack| known.get(&pack.name).cloned());
            self.packs.logged(sealed.iter().map(|(number, _)| *number));
        }
        if self.log.is_writer()
            && self.room.has_room_to_spare()
            && let Err(error) = log.digest_when_due()
        {
            // The record is durable all the same; the next one is refused.
            self.packs.fail(&error);
        }
        Ok(state)
    }

    /// Keeps for the next process when packs were verified. Blocking.
    pub fn save_verified(&self) {
        self.health.save_verified(&self.state());
    }
}
