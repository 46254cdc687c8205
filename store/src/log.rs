//! The commit log: following it, and adding to it.

use crate::format::event::Event;
use crate::format::record::{LogRecord, RECORD_BYTES_MAX};
use crate::objects::{Created, ObjectName, Objects, RECORDS_TOGETHER};
use crate::state::{DIGEST_BYTES_MAX, Digest, State};
use mover::{Error, ErrorKind, LogHead, RepositoryId, Result, World, WriterId};
use std::sync::Arc;

/// The writer and term under which records are appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Author {
    /// Id of the writer.
    pub writer: WriterId,
    /// Its term; 0 for readers.
    pub term: u64,
}

/// A follower of the log, with the state after the last record that it has read. It has one owner.
pub struct CommitLog {
    objects: Arc<dyn Objects>,
    world: World,
    config: Vec<u8>,
    state: Arc<State>,
    /// Where a digest was last found or due.
    digested: u64,
    /// The state lacks what an event or extension of a later version says. So no digests of it are written: after the
    /// log below a digest is pruned, a later version could not see that event or extension any more.
    lacking: bool,
}

impl CommitLog {
    /// Opens the log at its newest sound digest and reads it to its end.
    ///
    /// # Errors
    /// `Integrity` when a record does not fit the one before or is missing before others, `Version`, or of the storage.
    pub fn open(objects: Arc<dyn Objects>, world: World, repository: RepositoryId, config: Vec<u8>) -> Result<Self> {
        let mut log = Self::at_digest(objects, world, repository, config)?;
        log.catch_up()?;
        log.check_end()?;
        Ok(log)
    }

    /// Opens the log as far as it is sound, and tells what is wrong with the rest.
    ///
    /// # Errors
    /// `Version`, or of the storage.
    pub fn open_sound(
        objects: Arc<dyn Objects>,
        world: World,
        repository: RepositoryId,
        config: Vec<u8>,
    ) -> Result<(Self, Option<Error>)> {
        let mut log = Self::at_digest(objects, world, repository, config)?;
        match log.catch_up().and_then(|()| log.check_end()) {
            Err(error) if error.kind() == ErrorKind::Integrity => Ok((log, Some(error))),
            read => read.map(|()| (log, None)),
        }
    }

    fn at_digest(objects: Arc<dyn Objects>, world: World, repository: RepositoryId, config: Vec<u8>) -> Result<Self> {
        let state = Arc::new(State::new(repository, &config));
        let mut log = Self { objects, world, config, state, digested: 0, lacking: false };
        for sequence in log.objects.digests()?.into_iter().rev() {
            match log.read_digest(sequence) {
                Ok(digest) => {
                    log.begin_with(digest);
                    break;
                }
                // The log below it still says everything, unless it was pruned, and then replay says so.
                Err(error) => tracing::warn!(%sequence, %error, "a state digest cannot be used"),
            }
        }
        Ok(log)
    }

    /// Fails when there are records after a missing one. Then the log does not end here, and a record that is added
    /// here would not fit the records that follow.
    fn check_end(&mut self) -> Result<()> {
        loop {
            let end = self.state.end();
            let Some(later) = self.later()?.into_iter().next_back() else { return Ok(()) };
            // Perhaps it was added since it was asked for.
            self.catch_up()?;
            if self.state.end() == end {
                let missing = ObjectName::Record(end.sequence + 1);
                return Err(
                    Error::integrity(format!("{missing} is missing, but the later record {later} exists")).hint(LOST)
                );
            }
        }
    }

    /// Numbers of the records above the last one read, ascending.
    fn later(&self) -> Result<Vec<u64>> {
        self.objects.records(self.state.end().sequence + 1..u64::MAX, usize::MAX)
    }

    /// Sets aside the records and digests above the last record that was read. The newest record is moved last: until
    /// then the log counts as damaged as before, and its old end is still known. Gives that end.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn set_aside_later(&self) -> Result<Option<LogHead>> {
        let end = self.state.end().sequence;
        let (later, digests) = (self.later()?, self.objects.digests()?);
        let given_up = later.last().map(|newest| {
            let hash = self.record(*newest).ok().flatten().map_or([0; 32], |(_, end)| end.hash);
            LogHead { sequence: *newest, hash }
        });
        let digests = digests.into_iter().filter(|sequence| *sequence > end).map(ObjectName::Digest);
        for name in digests.chain(later.into_iter().map(ObjectName::Record)) {
            tracing::warn!(%name, "moved to the folder quarantine");
            self.objects.set_aside(name)?;
        }
        // It may be what was lost.
        self.objects.expect_record(end + 1)?;
        Ok(given_up)
    }

    /// The state after the last record read.
    pub const fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// Reads the records that were added since the last call (R20). Then it looks whether the log was pruned past this
    /// follower: a stale writer can create a record again under a pruned number, and that record would fit the one
    /// before. Only the digests show this, so they are listed after the last record was read.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn catch_up(&mut self) -> Result<()> {
        loop {
            while let Some((record, end)) = self.record(self.state.end().sequence + 1)? {
                self.apply(&record, end)?;
            }
            let newest = self.objects.digests()?.into_iter().next_back();
            match newest.filter(|sequence| *sequence > self.state.end().sequence) {
                Some(sequence) => {
                    let digest = self.read_digest(sequence)?;
                    self.begin_with(digest);
                }
                None => return Ok(()),
            }
        }
    }

    fn begin_with(&mut self, digest: Digest) {
        self.digested = digest.state.end().sequence;
        self.lacking = !digest.extensions.is_empty();
        self.state = Arc::new(digest.state);
    }

    /// One record; none when it is not there.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn record(&self, sequence: u64) -> Result<Option<(LogRecord, LogHead)>> {
        let name = ObjectName::Record(sequence);
        let Some(bytes) = self.objects.read(name, RECORD_BYTES_MAX as u64)? else { return Ok(None) };
        let decoded = LogRecord::decode(&bytes);
        let (record, end) = decoded.map_err(|error| Error::from(error).context(name).hint(LOST))?;
        if record.sequence != sequence {
            return Err(Error::integrity(format!("{name} is record {}", record.sequence)).hint(LOST));
        }
        Ok(Some((record, end)))
    }

    fn apply(&mut self, record: &LogRecord, end: LogHead) -> Result<()> {
        let voids = Arc::make_mut(&mut self.state)
            .apply(record, end.hash)
            .map_err(|error| Error::from(error).context(ObjectName::Record(record.sequence)).hint(LOST))?;
        self.lacking |= record.events.iter().any(|event| matches!(event, Event::Unknown { .. }));
        for (at, void) in voids {
            tracing::warn!(sequence = record.sequence, event = record.events[at].code(), %void, "a void event");
        }
        Ok(())
    }

    /// Appends one record of the events that `make` gives for the state at the log's end, and returns that record.
    ///
    /// A process that loses the race for a number reads the winner's record, and makes its own record again from the
    /// beginning (R1). Events that would be void are refused before anything is created. After an unclear answer the
    /// same bytes go to the same number until the answer is clear (R2), a few times; then the error is reported and the
    /// log must be opened again before anything is appended.
    ///
    /// # Errors
    /// That of `make`; `Fenced` when the author's term or session is over; `Version` when the log has a critical event
    /// that this version does not know; `Usage` for a text that is too long; of the storage.
    pub fn append(
        &mut self,
        author: Author,
        mut make: impl FnMut(&State) -> Result<Vec<Event>>,
    ) -> Result<Option<LogRecord>> {
        loop {
            self.catch_up()?;
            if let Some(code) = self.state.not_understood().first() {
                return Err(Error::version(format!(
                    "the log has events of kind {code}, which this program does not know"
                ))
                .hint("use a newer version of Windlass to write; this version can restore"));
            }
            let events = make(&self.state)?;
            if events.is_empty() {
                return Ok(None);
            }
            events.iter().try_for_each(Event::check_texts)?;
            let record = LogRecord {
                sequence: self.state.end().sequence + 1,
                previous: self.state.end().hash,
                repository: self.state.repository(),
                writer: author.writer,
                term: author.term,
                nonce: self.world.random_bytes(),
                time: self.world.now(),
                events,
            };
            let bytes = record.encode();
            if bytes.len() > RECORD_BYTES_MAX {
                return Err(Error::internal(format!("a log record of {} bytes", bytes.len())));
            }
            let (_, end) = LogRecord::decode(&bytes)?;
            let mut after = State::clone(&self.state);
            if let Some((_, void)) = after.apply(&record, end.hash)?.into_iter().next() {
                return Err(
                    Error::fenced(format!("the repository refuses this change: {void}")).hint("run the job again")
                );
            }
            if record.sequence == 1 || record.sequence.is_multiple_of(RECORDS_TOGETHER) {
                self.objects.expect_record(record.sequence)?;
            }
            if self.objects.create(ObjectName::Record(record.sequence), &bytes)? == Created::New {
                self.state = Arc::new(after);
                self.check_digests(author)?;
                return Ok(Some(record));
            }
        }
    }

    /// Checks a record after it was created: each digest at or above it must account for it. If one does not, the
    /// author is fenced, because the log was pruned by a process that did not know the record (R3). A reader that has
    /// closed its last session is not in digests, and loses nothing.
    fn check_digests(&self, author: Author) -> Result<()> {
        let end = self.state.end();
        if !self.state.writers().contains_key(&author.writer) {
            return Ok(());
        }
        for sequence in self.objects.digests()?.into_iter().rev().take_while(|sequence| *sequence >= end.sequence) {
            let read = self.read_digest(sequence);
            if !read.is_ok_and(|digest| digest.state.accounts_for(author.writer, author.term, end)) {
                return Err(Error::fenced("the log was pruned while this process stood still")
                    .hint("open the repository again"));
            }
        }
        Ok(())
    }

    /// True when the log once ended with `seen`, as far as that can be checked. An end that was pruned, or that an
    /// administrator gave up, counts as true (R15).
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn passed(&self, seen: LogHead) -> Result<bool> {
        let end = self.state.end();
        if seen.sequence == 0 || seen == end || self.state.gave_up(seen) {
            return Ok(true);
        }
        Ok(seen.sequence < end.sequence && self.record(seen.sequence)?.is_none_or(|(_, then)| then == seen))
    }

    /// True when a view that has applied `seen` still belongs to this log. False when `seen` is a record that an
    /// administrator gave up.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn goes_on_from(&self, seen: LogHead) -> Result<bool> {
        let there = || Ok::<_, Error>(self.record(seen.sequence)?.is_some_and(|(_, end)| end == seen));
        Ok(!self.state.gave_up(seen) || there()?)
    }

    fn read_digest(&self, sequence: u64) -> Result<Digest> {
        let name = ObjectName::Digest(sequence);
        let bytes = self.objects.read_hashed(name, DIGEST_BYTES_MAX)?.ok_or_else(|| Error::store_io("gone"))?;
        let digest = Digest::decode(&bytes).map_err(|error| Error::from(error).context(name))?;
        let state = &digest.state;
        // The bytes of the file: a configuration may have extensions that this version does not know.
        let ours = digest.config == self.config && state.repository() == self.state.repository();
        if !ours || state.end().sequence != sequence {
            return Err(Error::integrity(format!("{name} belongs to another repository or record")));
        }
        // A digest of a log that went another way since must not be believed. One whose record is damaged says what that
        // did; the next record proves it.
        match self.record(sequence) {
            Ok(Some((_, end))) if end != state.end() => Err(Error::integrity(format!("{name} is of another log"))),
            Err(error) if error.kind() != ErrorKind::Integrity => Err(error),
            _ => Ok(digest),
        }
    }

    /// Writes a digest of the present state when the last one is long ago.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn digest_when_due(&mut self) -> Result<()> {
        let end = self.state.end().sequence;
        if end < self.digested + DIGEST_RECORDS || self.lacking {
            return Ok(());
        }
        self.digested = end;
        if !self.write_digest(DIGEST_BYTES_MAX)? {
            return Ok(());
        }
        match self.prune(PRUNE_RECORDS) {
            Err(error) if error.kind() == ErrorKind::Integrity => {
                tracing::warn!(%error, "the log is not pruned");
                Ok(())
            }
            pruned => pruned.map(|_| ()),
        }
    }

    /// Writes a digest of the present state. If it is longer than `bytes_max`, nobody would read it: then nothing is
    /// written, the log keeps all records, and false is returned.
    fn write_digest(&self, bytes_max: u64) -> Result<bool> {
        let end = self.state.end().sequence;
        let digest = Digest::new(self.config.clone(), State::clone(&self.state));
        let Some(bytes) = digest.encode_within(bytes_max) else {
            tracing::warn!(
                bytes_max,
                "the repository's state is too long for a digest, so the log is not pruned, and opening it takes longer and \
                 longer: back up some of the machines into another repository"
            );
            return Ok(false);
        };
        self.objects.create(ObjectName::Digest(end), &bytes)?;
        Ok(true)
    }

    /// Deletes the records below the older of the two newest digests, and older digests, when there are more than
    /// `records_max` (R3). Before that, the newer digest is computed from the older one and the records between them.
    /// This proves that nothing is lost with the deleted records. Returns how many records went.
    ///
    /// # Errors
    /// `Integrity` when the digests do not agree with the log: then nothing is deleted. Of the storage.
    pub fn prune(&self, records_max: usize) -> Result<usize> {
        let digests = self.objects.digests()?;
        let [before @ .., older, newer] = &digests[..] else { return Ok(0) };
        let below = self.objects.records(0..*older, usize::MAX)?;
        if below.len() <= records_max {
            return Ok(0);
        }
        let mut state = self.read_digest(*older)?.state;
        for sequence in older + 1..=*newer {
            let record = self.record(sequence)?;
            let (record, end) = record.ok_or_else(|| Error::integrity(format!("record {sequence} is missing")))?;
            state.apply(&record, end.hash)?;
        }
        if state != self.read_digest(*newer)?.state {
            return Err(Error::integrity(format!("{} is not what the log gives", ObjectName::Digest(*newer))));
        }
        // Both must outlast the records.
        self.objects.make_durable(&[*older, *newer].map(ObjectName::Digest))?;
        before.iter().try_for_each(|sequence| self.objects.remove(ObjectName::Digest(*sequence)))?;
        // In order, so that what is left is always an end of the log.
        below.iter().try_for_each(|sequence| self.objects.remove(ObjectName::Record(*sequence)))?;
        tracing::info!(records = below.len(), up_to = older, "pruned the log");
        Ok(below.len())
    }
}

/// The hint of errors about a record that is lost or damaged.
const LOST: &str = "bring the file back from a copy of the repository's directory; if there is none, give up what was committed \
                    from there on: `windlass doctor --accept-rollback -r ADDR`";
/// Records between two digests: opening replays at most about so many.
const DIGEST_RECORDS: u64 = 256;
/// Records below the older digest that are kept before they are worth deleting.
const PRUNE_RECORDS: usize = 10_000;

#[cfg(test)]
mod tests;
