//! What the log says: a pure fold over its records. Everybody who reads the same log has the same state, down to which
//! events are void.
//!
//! Architecture Invariant: no I/O, no clock, no randomness here; nothing depends on RocksDB or on what files exist.

mod digest;
mod protected;
mod validate;

use crate::format::event::{AddedPack, CommittedPoint, Event, SessionOpened};
use crate::format::pack::PackName;
use crate::format::record::LogRecord;
use chunker::ChunkId;
use mover::{
    GivenUp, LogHead, MachineId, Manifest, Name, OwnerId, PointId, RecordError, RecoveryPoint, RepositoryId, SessionId,
    Timestamp, WriterId,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};

pub use digest::{DIGEST_BYTES_MAX, Digest};
pub use validate::Void;

/// The state after some record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    repository: RepositoryId,
    end: LogHead,
    writers: BTreeMap<WriterId, Writer>,
    sessions: BTreeMap<SessionId, Session>,
    /// By number, in the order in which they were added; numbers are never used again.
    packs: BTreeMap<u32, Pack>,
    numbers: HashMap<PackName, u32>,
    next_pack: u32,
    /// Names of dropped packs: never to be added again (R4).
    dropped: BTreeSet<PackName>,
    points: BTreeMap<PointId, Point>,
    suspects: BTreeSet<(ChunkId, PackName)>,
    sweep: Option<[u8; 16]>,
    role: u8,
    settings: BTreeMap<String, String>,
    peers: BTreeMap<RepositoryId, LogHead>,
    /// Ends of the log that an administrator gave up.
    lost: BTreeSet<Lost>,
    /// Codes of critical events of later versions, which this version does not know: so it must not write.
    not_understood: BTreeSet<u16>,
}

/// A part of the log that was rolled back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lost {
    /// Its last record that anybody is known to have seen.
    pub end: LogHead,
    /// The record that gave it up: everything from this number to the end was replaced.
    pub at: u64,
}

/// A process that appends records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Writer {
    /// Its present term; 0 for a reader.
    pub term: u64,
    /// The last record that it appended.
    pub last: LogHead,
}

/// An open session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// What it is for; its pins ascend, each once.
    pub opened: SessionOpened,
    /// The writer that holds the session.
    pub writer: WriterId,
    /// Term of that writer.
    pub term: u64,
    /// The record that opened it.
    pub since: u64,
    /// Time of opening, by the writer's clock.
    pub time: Timestamp,
}

/// A pack that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pack {
    /// What the log says of it.
    pub added: AddedPack,
    /// The record that added it.
    pub since: u64,
    /// The record that doomed it.
    pub doomed: Option<u64>,
}

/// A point that exists, forgotten or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// What the log says of it.
    pub committed: CommittedPoint,
    /// The record that committed it.
    pub since: u64,
    /// The record that made it a root last: its commit, or when it was unforgotten.
    pub rooted: u64,
    /// By the clock of the committing record.
    pub time: Timestamp,
    /// Kept whatever retention says.
    pub pinned: bool,
    /// The record that forgot it.
    pub forgotten: Option<u64>,
    /// Labels set after the commit.
    pub labels: BTreeMap<String, String>,
}

impl State {
    /// The state of an empty log. The chain begins with the hash of `config`, so that a log cannot be moved to another
    /// configuration.
    pub fn new(repository: RepositoryId, config: &[u8]) -> Self {
        Self {
            repository,
            end: LogHead { sequence: 0, hash: mover::digest(config) },
            writers: BTreeMap::new(),
            sessions: BTreeMap::new(),
            packs: BTreeMap::new(),
            numbers: HashMap::new(),
            next_pack: 0,
            dropped: BTreeSet::new(),
            points: BTreeMap::new(),
            suspects: BTreeSet::new(),
            sweep: None,
            role: 0,
            settings: BTreeMap::new(),
            peers: BTreeMap::new(),
            lost: BTreeSet::new(),
            not_understood: BTreeSet::new(),
        }
    }

    /// The codes of critical events that this program does not know: it must not write.
    pub const fn not_understood(&self) -> &BTreeSet<u16> {
        &self.not_understood
    }

    /// The last record applied.
    pub const fn end(&self) -> LogHead {
        self.end
    }

    /// Id of the repository.
    pub const fn repository(&self) -> RepositoryId {
        self.repository
    }

    /// The present term of a writer; 0 when it never had one.
    pub fn term(&self, writer: WriterId) -> u64 {
        self.writers.get(&writer).map_or(0, |it| it.term)
    }

    /// Writers that matter: with a term, or with open sessions.
    pub const fn writers(&self) -> &BTreeMap<WriterId, Writer> {
        &self.writers
    }

    /// Open sessions by id.
    pub const fn sessions(&self) -> &BTreeMap<SessionId, Session> {
        &self.sessions
    }

    /// Packs by number.
    pub const fn packs(&self) -> &BTreeMap<u32, Pack> {
        &self.packs
    }

    /// Running number of a pack; none when it is not there.
    pub fn pack_number(&self, name: &PackName) -> Option<u32> {
        self.numbers.get(name).copied()
    }

    /// True for a name that must not come back.
    pub fn was_dropped(&self, name: &PackName) -> bool {
        self.dropped.contains(name)
    }

    /// True for a pack that "have" may refer to.
    pub fn is_live(&self, number: u32) -> bool {
        self.packs.get(&number).is_some_and(|pack| pack.doomed.is_none())
    }

    /// Points that are not finally forgotten, by id.
    pub const fn points(&self) -> &BTreeMap<PointId, Point> {
        &self.points
    }

    /// Damaged chunks, each with the pack in which it is damaged.
    pub const fn suspects(&self) -> &BTreeSet<(ChunkId, PackName)> {
        &self.suspects
    }

    /// The sweep that is under way.
    pub const fn sweep(&self) -> Option<[u8; 16]> {
        self.sweep
    }

    /// Value of a setting; none when it is not set.
    pub fn setting(&self, key: &str) -> Option<&str> {
        self.settings.get(key).map(String::as_str)
    }

    /// How far points of each machine were made final.
    pub fn given_up(&self) -> impl Iterator<Item = GivenUp> {
        let settings = self.settings.range(GIVEN_UP.to_owned()..);
        let settings = settings.map_while(|(key, value)| Some((key.strip_prefix(GIVEN_UP)?, value)));
        settings.filter_map(|(key, value)| {
            let (machine, origin) = key.split_once('.')?;
            let newest = Timestamp(value.parse().ok()?);
            Some(GivenUp { machine: machine.parse().ok()?, origin: origin.parse().ok()?, newest })
        })
    }

    /// What was last seen of another repository.
    pub fn peer(&self, repository: RepositoryId) -> Option<LogHead> {
        self.peers.get(&repository).copied()
    }

    /// True for an end in a part of the log that an administrator gave up. Views and peers that have seen this end are
    /// no sign of another rollback.
    pub fn gave_up(&self, seen: LogHead) -> bool {
        self.lost.iter().any(|lost| (lost.at..=lost.end.sequence).contains(&seen.sequence))
    }

    /// True when `last` is the last record of this writer, in this term. If it is not true of the state in a digest,
    /// the digest was made by a process that did not know the record (R3).
    pub fn accounts_for(&self, writer: WriterId, term: u64, last: LogHead) -> bool {
        self.writers.get(&writer) == Some(&Writer { term, last })
    }

    /// The present owner of a point, and the owner's name where it is known. The owner is the one for whom the point
    /// was made, unless an administrator has handed the machine over since.
    pub fn owner_of(&self, point: &Point) -> (OwnerId, Option<Name>) {
        let it = &point.committed;
        let origin = it.origin.map_or(self.repository, |(repository, _)| repository);
        let moved = self.setting(&owner_setting(it.machine, origin));
        match moved.map(str::parse::<Name>) {
            Some(Ok(name)) => (OwnerId::of(&name), Some(name)),
            // What is no name stands for the site's own.
            Some(Err(_)) => (OwnerId::default(), None),
            None => (it.owner, it.made_by().and_then(|(holder, _)| holder.owner_name().cloned())),
        }
    }

    /// The points, forgotten ones too, that have the id or the machine of one of `manifests`.
    pub fn concerned<'a>(&self, manifests: impl Iterator<Item = &'a Manifest>) -> Vec<RecoveryPoint> {
        let (mut ids, mut machines) = (BTreeSet::new(), BTreeSet::new());
        for manifest in manifests {
            ids.insert(manifest.point);
            machines.insert(manifest.machine);
        }
        let points = self.points.iter();
        let concerned = points.filter(|(id, it)| ids.contains(id) || machines.contains(&it.committed.machine));
        concerned.filter_map(|(id, _)| self.recovery_point(*id)).collect()
    }

    /// The point as it is listed.
    pub fn recovery_point(&self, id: PointId) -> Option<RecoveryPoint> {
        let point = self.points.get(&id)?;
        let (it, (owner, owner_name)) = (&point.committed, self.owner_of(point));
        Some(RecoveryPoint {
            id,
            manifest: it.manifest,
            owner,
            owner_name,
            stamped: it.owner,
            holder: it.made_by().map(|(holder, _)| holder),
            machine: it.machine,
            machine_name: it.machine_name.clone(),
            group: it.group,
            snapshot_time: it.snapshot_time,
            commit_time: point.time,
            origin: it.origin.unwrap_or((self.repository, point.time)),
            number: if it.origin.is_some() { it.first_record().unwrap_or(0) } else { point.since },
            protected_until: it.protected_until,
            bytes_logical: it.bytes_logical,
            bytes_new: it.bytes_new,
            bytes_stored: it.made_by().map_or(0, |(_, bytes)| bytes),
            pinned: point.pinned,
            forgotten: point.forgotten.is_some(),
            labels: point.labels.clone(),
        })
    }

    /// Applies the next record. Events that are not valid in this state are void, for every reader alike (R1); they are
    /// returned with the reason, in order.
    ///
    /// # Errors
    /// When the record is not the next one of this log.
    pub fn apply(&mut self, record: &LogRecord, hash: [u8; 32]) -> Result<Vec<(usize, Void)>, RecordError> {
        if record.repository != self.repository {
            return Err(RecordError::Hash { field: "log repository" });
        }
        if record.sequence != self.end.sequence + 1 {
            return Err(RecordError::Value { field: "log sequence", value: record.sequence });
        }
        if record.previous != self.end.hash {
            return Err(RecordError::Hash { field: "log previous" });
        }
        self.end = LogHead { sequence: record.sequence, hash };
        let mut voids = Vec::new();
        for (at, event) in record.events.iter().enumerate() {
            match self.check(record, event) {
                Ok(()) => self.apply_event(record, event),
                Err(void) => voids.push((at, void)),
            }
        }
        self.note_writer(record);
        Ok(voids)
    }

    /// Remembers the writer's last record (R3) as long as it has a term or a session.
    fn note_writer(&mut self, record: &LogRecord) {
        // A record of another term than the present one is void as a whole and proves nothing about its writer.
        if record.term != self.term(record.writer) {
            return;
        }
        if record.term == 0 && !self.sessions.values().any(|session| session.writer == record.writer) {
            self.writers.remove(&record.writer);
            return;
        }
        self.writers.insert(record.writer, Writer { term: record.term, last: self.end });
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each event")]
    fn apply_event(&mut self, record: &LogRecord, event: &Event) {
        let sequence = record.sequence;
        match event {
            Event::WriterTerm => {
                self.sessions.retain(|_, it| it.writer != record.writer || it.term >= record.term);
                self.writers.insert(record.writer, Writer { term: record.term, last: self.end });
            }
            Event::SessionOpened(opened) => {
                let (writer, term, time) = (record.writer, record.term, record.time);
                let mut opened = opened.clone();
                opened.pins.sort_unstable();
                opened.pins.dedup();
                self.sessions.insert(opened.session, Session { opened, writer, term, since: sequence, time });
            }
            Event::SessionClosed(session) | Event::SessionFenced(session) => {
                self.sessions.remove(session);
            }
            Event::PacksAdded(packs) => packs.iter().for_each(|pack| self.add_pack(pack, sequence)),
            Event::PointCommitted(point) => {
                let labels = BTreeMap::new();
                let time = record.time;
                let (committed, since, rooted) = (point.clone(), sequence, sequence);
                let point = Point { committed, since, rooted, time, pinned: false, forgotten: None, labels };
                self.points.insert(point.committed.point, point);
            }
            Event::Forgotten(points) => self.each_point(points, |point| point.forgotten = Some(sequence)),
            Event::Unforgotten(points) => self.each_point(points, |point| {
                // Once more a root: a mark that was made before does not cover it.
                if point.forgotten.take().is_some() {
                    point.rooted = sequence;
                }
            }),
            Event::Pinned(points) => self.each_point(points, |point| point.pinned = true),
            Event::Unpinned(points) => self.each_point(points, |point| point.pinned = false),
            Event::Annotated(point, key, value) => {
                self.each_point(&[*point], |point| set_text(&mut point.labels, key, value));
            }
            Event::ChunkSuspect(chunk, pack) => {
                self.suspects.insert((*chunk, *pack));
            }
            Event::ChunkHealed(chunk, pack) => {
                self.suspects.remove(&(*chunk, *pack));
            }
            Event::SweepBegun(token) => self.sweep = Some(*token),
            Event::SweepEnded(_) => self.sweep = None,
            Event::Doomed(doomed) => {
                for name in &doomed.packs {
                    let pack = self.numbers.get(name).and_then(|number| self.packs.get_mut(number));
                    if let Some(pack) = pack {
                        pack.doomed = Some(sequence);
                    }
                }
                for point in &doomed.finalised {
                    self.points.remove(point);
                }
            }
            Event::Dropped(dropped) => {
                dropped.packs.iter().for_each(|name| self.drop_pack(name));
                dropped.orphans.iter().for_each(|orphan| self.drop_pack(&orphan.name));
            }
            Event::Role(role) => self.role = *role,
            Event::Configuration(key, value) => set_text(&mut self.settings, key, value),
            Event::PeerSeen(repository, seen) => {
                self.peers.insert(*repository, *seen);
            }
            Event::NewIncarnation(end) => {
                self.lost.insert(Lost { end: *end, at: sequence });
            }
            Event::Unknown { code, critical } => {
                if *critical {
                    self.not_understood.insert(*code);
                }
            }
        }
    }

    fn add_pack(&mut self, pack: &AddedPack, sequence: u64) {
        let number = self.next_pack;
        self.next_pack += 1;
        self.numbers.insert(pack.name, number);
        self.packs.insert(number, Pack { added: pack.clone(), since: sequence, doomed: None });
    }

    fn drop_pack(&mut self, name: &PackName) {
        if let Some(number) = self.numbers.remove(name) {
            self.packs.remove(&number);
            self.suspects.retain(|(_, pack)| pack != name);
        }
        self.dropped.insert(*name);
    }

    fn each_point(&mut self, points: &[PointId], mut change: impl FnMut(&mut Point)) {
        for id in points {
            if let Some(point) = self.points.get_mut(id) {
                change(point);
            }
        }
    }
}

/// The setting that names the owner of the points of a machine that were made in `origin`, since an administrator
/// handed the machine over.
pub fn owner_setting(machine: MachineId, origin: RepositoryId) -> String {
    format!("owner.{machine}.{origin}")
}

/// The setting that says how far a machine's points were made final.
pub fn given_up_setting(machine: MachineId, origin: RepositoryId) -> String {
    format!("{GIVEN_UP}{machine}.{origin}")
}

const GIVEN_UP: &str = "final.";

/// An empty value removes the key.
fn set_text(texts: &mut BTreeMap<String, String>, key: &str, value: &str) {
    if value.is_empty() {
        texts.remove(key);
    } else {
        texts.insert(key.to_owned(), value.to_owned());
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
