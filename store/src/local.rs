//! A repository in a directory, opened by this process.
//!
//! Circle: `Inner` is all that an open repository consists of; `damage`, `points`, `reader`, `room` and `sweep` are parts of
//! what it does, each in a file of its own.

use crate::caches::Caches;
use crate::directory::Lock;
use crate::format::config::ConfigFile;
use crate::format::event::{Event, SessionOpened};
use crate::format::pack::PackName;
use crate::index::Index;
use crate::log::{Author, CommitLog};
use crate::objects::{Object, Objects};
use crate::packer::{Packer, Pending, lock};
use crate::reader::Reader;
use crate::room::reserved;
use crate::session::Session;
use crate::state::{Point, State};
use crate::sweep::DEAD_BYTES;
use crate::verified::Verified;
use chunker::{ChunkId, DomainKeys};
use mover::{
    Begin, Begun, Depth, Error, ErrorKind, GivenUp, Had, IndexTotals, LogEntry, LogHead, MachineId, Name, OwnerId,
    PointChange, PointFilter, PointId, Pool, Progress, Reach, RecoveryPoint, Repository, RepositoryConfig,
    RepositoryId, Result, ScrubTotals, SessionId, Stats, SweepOptions, SweepReport, VerifyOptions, VerifyReport, World,
    blocking,
};
use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, RwLock, Weak};

/// How a repository is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// As the one process that adds packs.
    Write,
    /// To read, beside whoever writes. Only its sessions are written to the log.
    Read,
}

/// A repository in a directory. Cloning gives another handle to the same one.
#[derive(Clone)]
pub struct Local {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub objects: Arc<dyn Objects>,
    pub caches: Caches,
    pub config: ConfigFile,
    pub keys: DomainKeys,
    pub pool: Pool,
    pub world: World,
    pub author: Author,
    /// The log has one owner at a time; what it says is read from `view` without waiting for a sync.
    pub log: Mutex<CommitLog>,
    view: RwLock<Arc<State>>,
    pub index: RwLock<Index>,
    /// It cannot be used until another one is made.
    pub index_failed: AtomicBool,
    /// For threads that may outlive a handle.
    pub me: OnceLock<Weak<Inner>>,
    /// Held while another index is made.
    pub rebuilding: Mutex<()>,
    /// Where a sweep that only looks has its counts, in a process that may not write.
    pub counts: Mutex<Option<PathBuf>>,
    /// Held by a sweep.
    pub sweeping: tokio::sync::Mutex<()>,
    pub pending: Arc<Mutex<Pending>>,
    packer: Mutex<Option<Arc<Packer>>>,
    /// Open packs, a few at most, for readers.
    pub files: Mutex<HashMap<PackName, Arc<PackFile>>>,
    /// The term's first record is the first that needs it.
    term_begun: AtomicBool,
    /// What reads found damaged in which packs, and the log need not know yet; at most [`DAMAGED_MAX`].
    pub damaged: Mutex<BTreeSet<(ChunkId, PackName)>>,
    /// The room that is kept for a full storage was given up, and is to be kept again.
    pub reserve_given_up: AtomicBool,
    /// A reader that could not write its session does not try again.
    unwritable: AtomicBool,
    /// Chunks of which write sessions remember what they were told, all of them together.
    pub told: AtomicUsize,
    /// Proxies are told only of what their owner has had.
    pub owners_apart: AtomicBool,
    /// When packs were verified; read when it is first needed.
    verified: OnceLock<Mutex<Verified>>,
    /// What the scrub has done; none where there is none.
    scrubbed: Mutex<Option<ScrubTotals>>,
    /// Held until the process ends or the repository is closed.
    _lock: Option<Lock>,
}

/// A pack open for reading.
pub(crate) struct PackFile {
    pub pack: Arc<dyn Object>,
    pub nonce: [u8; 16],
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
        let view = RwLock::new(log.state().clone());
        Self {
            keys: DomainKeys::new(&config.config.domain),
            objects,
            caches,
            config,
            pool,
            world,
            author,
            log: Mutex::new(log),
            view,
            index: RwLock::new(index),
            index_failed: AtomicBool::new(false),
            me: OnceLock::new(),
            rebuilding: Mutex::default(),
            counts: Mutex::default(),
            sweeping: tokio::sync::Mutex::default(),
            pending: Arc::default(),
            packer: Mutex::default(),
            files: Mutex::default(),
            term_begun: AtomicBool::new(false),
            damaged: Mutex::default(),
            told: AtomicUsize::new(0),
            reserve_given_up: AtomicBool::new(false),
            unwritable: AtomicBool::new(false),
            owners_apart: AtomicBool::new(false),
            verified: OnceLock::new(),
            scrubbed: Mutex::default(),
            _lock: lock,
        }
    }

    /// The state as of the last record this process has read or written.
    pub fn state(&self) -> Arc<State> {
        self.view.read().expect("no holder panics").clone()
    }

    /// The packer of a repository opened for writing.
    ///
    /// # Errors
    /// When it was opened for reading, or is closed.
    pub fn packer(&self) -> Result<Arc<Packer>> {
        let packer = self.packer.lock().expect("no holder panics").clone();
        packer.ok_or_else(|| Error::usage("the repository is open for reading only"))
    }

    pub fn set_packer(&self, packer: Option<Packer>) {
        *self.packer.lock().expect("no holder panics") = packer.map(Arc::new);
    }

    /// Reads the log to its end, and adds packs that others added. Blocking.
    ///
    /// # Errors
    /// `Integrity`, `Version`, or of the storage; once writing has failed, what it failed with.
    pub fn catch_up(&self) -> Result<Arc<State>> {
        let mut log = self.log.lock().expect("no holder panics");
        lock(&self.pending).check()?;
        log.catch_up()?;
        let state = self.publish_view(&log);
        self.index_new_packs(&state);
        Ok(state)
    }

    /// As [`Self::catch_up`], for who only reads. Once writing has failed it gives what was known before: the last record may
    /// be there and not be durable, and nobody may be told of a point that a power cut takes back. Blocking.
    ///
    /// # Errors
    /// `Integrity`, `Version`, or of the storage; `Fenced` when somebody else writes, and deletes.
    pub fn known(&self) -> Result<Arc<State>> {
        let stopped = lock(&self.pending).stopped();
        match stopped {
            None | Some(ErrorKind::Fenced) => self.catch_up(),
            Some(_) => Ok(self.state()),
        }
    }

    fn publish_view(&self, log: &CommitLog) -> Arc<State> {
        let state = log.state().clone();
        *self.view.write().expect("no holder panics") = state.clone();
        state
    }

    /// Appends the events that `make` gives, together with the packs that became durable since the last record, and
    /// brings the index up to it. `make` is asked again whenever somebody else was faster. Blocking.
    ///
    /// # Errors
    /// As [`CommitLog::append`]. After an error of the storage all writing has stopped.
    pub fn append(&self, mut make: impl FnMut(&State) -> Result<Vec<Event>>) -> Result<Arc<State>> {
        let mut log = self.log.lock().expect("no holder panics");
        lock(&self.pending).check()?;
        let mut no_room = false;
        let begins_term = self.author.term > 0 && !self.term_begun.load(SeqCst);
        let sealed = lock(&self.pending).sealed();
        let appended = log.append(self.author, |state| {
            let made = make(state)?;
            let mut events = if begins_term { self.term_events(state) } else { Vec::new() };
            if !sealed.is_empty() {
                events.push(Event::PacksAdded(sealed.iter().map(|(_, pack)| pack.added.clone()).collect()));
            }
            // Nothing is written for a term alone, nor for damage: that goes with what comes next.
            let wanted = !made.is_empty() || !sealed.is_empty();
            if wanted {
                // Before anything is written: what fails in the middle stops all writing.
                self.make_room_for_record().inspect_err(|_| no_room = true)?;
            }
            events.extend(made);
            events.extend(self.suspect_events(state));
            Ok(if wanted { events } else { Vec::new() })
        });
        let appended = match appended {
            Ok(appended) => appended,
            Err(error) => {
                let storage = !no_room && matches!(error.kind(), ErrorKind::StoreIo | ErrorKind::StoreFull);
                if storage && self.author.term > 0 {
                    lock(&self.pending).fail(&error);
                } else if storage {
                    self.unwritable.store(true, SeqCst);
                }
                return Err(error);
            }
        };
        let state = self.publish_view(&log);
        if appended.is_some() {
            self.term_begun.store(true, SeqCst);
            let known: HashMap<PackName, _> =
                sealed.iter().map(|(_, pack)| (pack.added.name, pack.entries.clone())).collect();
            // Who holds the log is the one who writes into the index.
            self.add_to_index(&state, |pack| known.get(&pack.name).cloned());
            for (number, _) in sealed {
                let incoming = lock(&self.pending).logged(number);
                if let Some(incoming) = incoming {
                    incoming.settle();
                }
            }
        }
        if self.author.term > 0
            && self.has_room_to_spare()
            && let Err(error) = log.digest_when_due()
        {
            // The record is durable all the same; the next one is refused.
            lock(&self.pending).fail(&error);
        }
        Ok(state)
    }

    /// When packs were verified. The first time it is read from its file.
    pub fn verified(&self) -> MutexGuard<'_, Verified> {
        let verified = self.verified.get_or_init(|| Verified::load(&*self.objects, self.config.config.id).into());
        verified.lock().expect("no holder panics")
    }

    /// Keeps it for the next process. Blocking.
    pub fn save_verified(&self) {
        if let Err(error) = self.verified().save(&*self.objects, &self.state()) {
            tracing::debug!(%error, "what was verified will be verified again");
        }
    }

    /// Adds what is known of verifications.
    fn tell_verified(&self, state: &State, stats: &mut Stats) {
        let (now, verified) = (self.world.now(), self.verified());
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

    /// What reads found since the last record.
    fn suspect_events(&self, state: &State) -> Vec<Event> {
        let damaged = self.damaged.lock().expect("no holder panics");
        let new = damaged
            .iter()
            .filter(|(chunk, pack)| state.pack_number(pack).is_some() && !state.suspects().contains(&(*chunk, *pack)));
        new.take(SUSPECTS_TOGETHER).map(|(chunk, pack)| Event::ChunkSuspect(*chunk, *pack)).collect()
    }

    /// Notes that a chunk does not read in a pack: from here on its place does not count, and the log is told with the
    /// next record.
    pub fn note_damaged(&self, chunk: ChunkId, pack: PackName) {
        let mut damaged = self.damaged.lock().expect("no holder panics");
        if damaged.len() < DAMAGED_MAX && damaged.insert((chunk, pack)) {
            tracing::warn!(%chunk, %pack, "a chunk cannot be read");
        }
    }

    /// Notes that chunks are sound where they were taken for damaged.
    pub fn note_sound(&self, places: &[(ChunkId, PackName)]) {
        let mut damaged = self.damaged.lock().expect("no holder panics");
        for place in places {
            damaged.remove(place);
        }
    }

    /// True when no read has found damage.
    pub fn nothing_damaged(&self) -> bool {
        self.damaged.lock().expect("no holder panics").is_empty()
    }

    /// True for a place that may be relied on.
    pub fn is_usable(&self, state: &State, chunk: &ChunkId, pack: u32) -> bool {
        let Some(it) = state.packs().get(&pack).filter(|it| it.doomed.is_none()) else { return false };
        let place = (*chunk, it.added.name);
        !state.suspects().contains(&place) && !self.damaged.lock().expect("no holder panics").contains(&place)
    }

    /// A new term, and the end of leases that nobody can still hold.
    fn term_events(&self, state: &State) -> Vec<Event> {
        let oldest = self.world.now().0.saturating_sub(SESSION_AGE_MAX_NS);
        let stale = state.sessions().values().filter(|it| it.writer != self.author.writer && it.time.0 < oldest);
        let fenced = stale.map(|session| Event::SessionFenced(session.opened.session));
        [Event::WriterTerm].into_iter().chain(fenced).collect()
    }

    /// Damaged chunks that are nowhere sound: those after `after`, in order, at most `max`. Blocking.
    ///
    /// # Errors
    /// `Integrity` of the log; of the index.
    pub fn wanted(&self, after: Option<ChunkId>, max: usize) -> Result<Vec<ChunkId>> {
        let state = self.catch_up()?;
        let mut from = after.map_or(Bound::Unbounded, |id| Bound::Excluded((id, PackName([0xff; 32]))));
        let mut wanted = Vec::new();
        loop {
            let some = state.suspects().range((from, Bound::Unbounded)).take(SUSPECTS_TOGETHER);
            let mut some: Vec<ChunkId> = some.map(|(chunk, _)| *chunk).collect();
            some.dedup();
            let Some(last) = some.last() else { return Ok(wanted) };
            from = Bound::Excluded((*last, PackName([0xff; 32])));
            for (chunk, place) in some.iter().zip(self.locate(&some)?) {
                if place.is_none() && wanted.len() < max {
                    wanted.push(*chunk);
                }
            }
            if wanted.len() == max {
                return Ok(wanted);
            }
        }
    }

    /// Damaged chunks that are nowhere sound. Blocking.
    ///
    /// # Errors
    /// When the index fails.
    pub fn unhealed(&self, state: &State) -> Result<BTreeSet<ChunkId>> {
        let suspects: BTreeSet<ChunkId> = state.suspects().iter().map(|(chunk, _)| *chunk).collect();
        let suspects: Vec<ChunkId> = suspects.into_iter().collect();
        let places = self.locate(&suspects)?;
        Ok(suspects.into_iter().zip(places).filter(|(_, place)| place.is_none()).map(|(chunk, _)| chunk).collect())
    }
}

impl Reach for Inner {
    fn had(&self, owner: OwnerId, ids: &[ChunkId]) -> Result<Vec<Option<Had>>> {
        self.index.read().expect("no holder panics").had(owner, ids)
    }

    fn note(&self, owner: OwnerId, ids: &[ChunkId], had: Had) -> Result<()> {
        self.index.read().expect("no holder panics").note_had(owner, ids, had)
    }
}

impl Local {
    /// Runs blocking work on the repository.
    pub(crate) async fn with<T: Send + 'static>(&self, work: impl FnOnce(&Inner) -> T + Send + 'static) -> T {
        let inner = self.inner.clone();
        blocking(move || work(&inner)).await
    }

    /// From now on a proxy is told only of chunks that its owner has had; what that is, is remembered with what this gives.
    pub fn keep_owners_apart(&self) -> Arc<dyn Reach> {
        self.inner.owners_apart.store(true, SeqCst);
        self.inner.clone()
    }

    /// Ends all writing: what is durable but not in the log is logged, and the index made last. Without it the next
    /// opening does the same.
    ///
    /// # Errors
    /// When the storage fails.
    pub async fn close(self) -> Result<()> {
        let packer = self.inner.packer().ok();
        if let Some(packer) = &packer {
            packer.flush().await?;
        }
        self.with(move |inner| {
            if packer.is_some() {
                inner.append(|_| Ok(Vec::new()))?;
                inner.set_packer(None);
            }
            inner.keep_reserve_again();
            if let Err(error) = inner.index.read().expect("no holder panics").flush() {
                tracing::warn!(%error, "the next opening adds to the index what this one could not");
            }
            Ok(())
        })
        .await
    }

    /// A read session that pins `points`; also without any, packs that are there when it begins stay until it ends.
    pub(crate) async fn hold(&self, points: &[PointId]) -> Result<Reader> {
        let (session, pins) = (SessionId::random(&self.inner.world), points.to_vec());
        let (owner, point) = (OwnerId::default(), PointId::default());
        let opened = SessionOpened { session, writes: false, owner, point, pins, extensions: Vec::new() };
        let pinned = self.with(move |inner| {
            let unpinned = |state: &State| gone(state, &opened).map_or(Ok(false), Err);
            if inner.unwritable.load(SeqCst) {
                return unpinned(&*inner.catch_up()?);
            }
            match inner.open_session(&opened) {
                Ok(()) => Ok(true),
                // Full, failing, read-only, or written by a newer program: what is there can be read all the same.
                Err(error) if matches!(error.kind(), ErrorKind::StoreIo | ErrorKind::StoreFull | ErrorKind::Version) => {
                    tracing::warn!(%error, "the repository cannot be written: reading without a session, which would keep the points from a sweep");
                    unpinned(&inner.state())
                }
                Err(error) => Err(error),
            }
        });
        Ok(if pinned.await? { Reader::pinned(self.clone(), session) } else { Reader::unpinned(self.clone()) })
    }

    /// The end of the log that this process has seen.
    pub fn end(&self) -> LogHead {
        self.inner.state().end()
    }
}

/// What was read, unless it is damaged.
pub(crate) fn unless_damaged<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Err(error) if error.kind() == ErrorKind::Integrity => Ok(None),
        read => read.map(Some),
    }
}

impl Repository for Local {
    type Session = Session;
    type Reader = Reader;

    fn config(&self) -> &RepositoryConfig {
        &self.inner.config.config
    }

    fn owner(&self) -> OwnerId {
        OwnerId::default()
    }

    async fn begin(&self, begin: Begin) -> Result<(Session, Begun)> {
        let packer = self.inner.packer()?;
        self.with(|inner| inner.check_room().inspect(|()| inner.reopen_index())).await?;
        let session = SessionId::random(&self.inner.world);
        let opened = SessionOpened {
            session,
            writes: true,
            owner: begin.owner(),
            point: begin.point,
            pins: begin.parents.clone(),
            extensions: Vec::new(),
        };
        self.with(move |inner| inner.open_session(&opened)).await?;
        let session = Session::new(self.clone(), session, packer, &begin);
        let suspects = self.suspects(&session, &begin.parents).await?;
        Ok((session, Begun { suspects }))
    }

    async fn read(&self, points: &[PointId]) -> Result<Reader> {
        if points.is_empty() { Ok(Reader::unpinned(self.clone())) } else { self.hold(points).await }
    }

    async fn list(&self, filter: &PointFilter) -> Result<Vec<RecoveryPoint>> {
        let state = self.with(Inner::known).await?;
        let fits = |point: &RecoveryPoint| {
            filter.machine.as_ref().is_none_or(|name| point.machine_name == *name)
                && point.forgotten == filter.forgotten
        };
        let mut ids: Vec<_> = state.points().iter().map(|(id, point)| (point.since, *id)).collect();
        ids.sort_unstable();
        Ok(ids.into_iter().filter_map(|(_, id)| state.recovery_point(id)).filter(fits).collect())
    }

    async fn stats(&self) -> Result<Stats> {
        let state = self.with(Inner::known).await?;
        let points = state.points().values().filter(|point| point.forgotten.is_none());
        let (mut stats, packs) = (Stats::default(), state.packs().values());
        for point in points {
            stats.points += 1;
            stats.bytes_logical = stats.bytes_logical.saturating_add(point.committed.bytes_logical);
        }
        for pack in packs {
            stats.packs += 1;
            stats.chunks += u64::from(pack.added.chunks);
            stats.bytes_stored += pack.added.bytes;
            stats.bytes_waiting += if pack.doomed.is_some() { pack.added.bytes } else { 0 };
        }
        self.inner.tell_verified(&state, &mut stats);
        stats.bytes_dead = state.setting(DEAD_BYTES).and_then(|text| text.parse().ok());
        if let Ok(space) = self.inner.objects.space() {
            (stats.bytes_free, stats.bytes_reserved) = (Some(space.free), reserved(space));
        }
        stats.suspects = self.with(move |inner| inner.unhealed(&state)).await?.len() as u64;
        Ok(stats)
    }

    async fn log_head(&self) -> Result<LogHead> {
        Ok(self.with(Inner::known).await?.end())
    }

    async fn has_been(&self, seen: LogHead) -> Result<bool> {
        self.with(move |inner| {
            inner.known()?;
            inner.log.lock().expect("no holder panics").passed(seen)
        })
        .await
    }

    async fn peer(&self, repository: RepositoryId) -> Result<Option<LogHead>> {
        Ok(self.with(Inner::known).await?.peer(repository))
    }

    async fn change_points(&self, points: &[PointId], change: PointChange) -> Result<()> {
        let points = points.to_vec();
        self.with(move |inner| {
            let changed = inner.change_points(&points, change);
            inner.keep_reserve_again();
            changed
        })
        .await
    }

    async fn annotate(&self, point: PointId, labels: &[(String, String)]) -> Result<()> {
        let labels = labels.to_vec();
        self.with(move |inner| inner.annotate(point, &labels)).await
    }

    async fn wanted(&self, after: Option<ChunkId>) -> Result<Vec<ChunkId>> {
        self.with(move |inner| inner.wanted(after, Self::WANTED_MAX)).await
    }

    async fn log(&self, after: u64) -> Result<Vec<LogEntry>> {
        self.with(move |inner| inner.log_after(after)).await
    }

    async fn move_machine(&self, machine: MachineId, origin: RepositoryId, owner: Option<Name>) -> Result<()> {
        self.with(move |inner| inner.move_machine((machine, origin), owner.as_ref())).await
    }

    async fn given_up(&self) -> Result<Vec<GivenUp>> {
        Ok(self.with(Inner::known).await?.given_up().take(GivenUp::MAX).collect())
    }

    async fn sweep(&self, options: SweepOptions, progress: Arc<Progress>) -> Result<SweepReport> {
        // Whoever asked may go away: what was begun comes to its end.
        let local = self.clone();
        let swept = tokio::spawn(async move { local.sweep_through(options, progress).await }).await;
        swept.map_err(|error| Error::internal("the sweep ended").because(error))?
    }

    async fn rebuild_index(&self, progress: Arc<Progress>) -> Result<IndexTotals> {
        self.with(move |inner| inner.rebuild_index(&progress)).await
    }

    async fn verify(&self, options: VerifyOptions, progress: Arc<Progress>) -> Result<VerifyReport> {
        self.look_through(options, progress).await
    }
}

impl Inner {
    fn open_session(&self, opened: &SessionOpened) -> Result<()> {
        self.check_room_for_record()?;
        self.append(|state| {
            if let Some(error) = gone(state, opened) {
                return Err(error);
            }
            Ok(vec![Event::SessionOpened(opened.clone())])
        })
        .map(|_| ())
    }

    /// Ends a lease when its holder is gone. Blocking, a few milliseconds.
    pub fn close_session(&self, session: SessionId) {
        let closed = self.append(|state| {
            let open = state.sessions().contains_key(&session);
            Ok(if open { vec![Event::SessionClosed(session)] } else { Vec::new() })
        });
        if let Err(error) = closed {
            tracing::debug!(%error, "a session stays open until it is fenced");
        }
    }
}

/// The error for the first point that the session needs and that is not there, or another owner's. A parent that was forgotten is no parent:
/// the next doom may make it final.
fn gone(state: &State, opened: &SessionOpened) -> Option<Error> {
    let of_owner = |point: &Point| opened.owner == OwnerId::default() || state.owner_of(point).0 == opened.owner;
    let there = |pin: &&PointId| {
        let found = state.points().get(*pin).filter(|point| of_owner(point));
        found.is_some_and(|point| !opened.writes || point.forgotten.is_none())
    };
    let gone = opened.pins.iter().find(|pin| !there(pin))?;
    Some(Error::not_found(format!("there is no point {gone}")).hint("`windlass points` lists them"))
}

/// Damaged chunks that one process remembers; the rest is found again.
const DAMAGED_MAX: usize = 1 << 20;
/// Chunks marked suspect in one record, besides its other events: a third of the longest record.
pub const SUSPECTS_TOGETHER: usize = 4_096;
/// Leases of other processes are fenced after a week.
const SESSION_AGE_MAX_NS: i64 = 7 * 24 * 3600 * 1_000_000_000;
