//! The state of the model: what storage holds, what each actor knows, and what is still on its way.

use super::log::{Event, Header, Packs, Points, Record, Replayed, bit8, bit16, packs_of};
use super::rules::Clause;
use super::{Config, PACKS, READER, SLOTS, SWEEPER};

/// A state of the whole system.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// What the log says up to the record that the slowest actor has applied. Records before it make no difference
    /// any more, so states that differ only in how they came here are one.
    pub base: Replayed,
    /// The records after `base`, whether or not their objects still exist: the true history. Its record `i` has the
    /// number `i + 1`; numbers count from `base`. Where the log is pruned, `base` stays at the start.
    pub tail: Vec<Record>,
    /// Headers of all packs ever made.
    pub headers: [Header; PACKS],
    /// Pack objects that exist.
    pub stored: Packs,
    /// Pack objects for which a delete is on its way.
    pub deletes: Packs,
    /// Creates of records that are on their way, with the number they are for.
    pub flights: Vec<(u8, Record)>,
    /// Numbers up to which the log was deleted.
    pub pruned: u8,
    /// Numbers at which digests exist.
    pub digests: Vec<u8>,
    /// Records that came into being under a number whose record had been pruned.
    pub late: Vec<(u8, Record)>,
    /// What each slot has applied.
    pub views: [View; SLOTS],
    /// What each slot still has to get into the log.
    pub pending: [Option<Pending>; SLOTS],
    /// The writers.
    pub writers: Vec<Writer>,
    /// The reader.
    pub reader: ReaderPhase,
    /// The sweepers.
    pub sweepers: Vec<Sweeper>,
    /// Points whose commit was reported as done.
    pub acknowledged: Points,
    /// Points whose backup was reported as failed.
    pub failed: Points,
    /// What may still happen, and go wrong.
    pub left: Left,
}

/// How far an actor has read the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct View {
    /// Records of `tail` it has applied.
    pub applied: u8,
    /// It applied a late record as the next one, so its state differs from the repository's.
    pub astray: bool,
}

/// A record without an answer yet, or one that its author tries again under the next number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pending {
    /// The create under this number has not been answered.
    Unclear(u8, Record),
    /// Its number was lost to another record, and its author goes on without validating again.
    Pushed(Record),
}

/// A writer: a node that takes backups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Writer {
    /// Where it is.
    pub phase: Phase,
    /// Which of its jobs.
    pub job: u8,
    /// Sessions opened in this term.
    pub session: u8,
    /// Its term.
    pub term: u8,
    /// Chunks which a refused commit asked for.
    pub wanted: u8,
    /// Packs with the chunks for which this session had the answer "have".
    pub told: Packs,
}

/// Where a writer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Between jobs.
    Idle,
    /// In a session, about to ask what is missing.
    Open,
    /// A pack object with all that was missing exists; it is not in the log.
    Uploaded(u8),
    /// All chunks are there, as far as it knows.
    Ready,
    /// The backup ended because the sweep took something away.
    Refused,
    /// The backup ended otherwise.
    Failed,
    /// Fenced by a digest.
    Fenced,
    /// Gone, until it starts again with the next term.
    Crashed,
    /// All jobs done.
    Done,
}

/// Where the reader is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReaderPhase {
    /// Not begun.
    Idle,
    /// Reading.
    Reading,
    /// Finished.
    Closed,
    /// A chunk could not be read that should have been readable.
    Broken,
}

/// A sweeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sweeper {
    /// Where it is.
    pub phase: Sweeping,
    /// Sweeps it may still begin.
    pub left: u8,
}

/// Where a sweeper is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Sweeping {
    Idle,
    Begun,
    /// It knows the points that are roots, and the forgotten points that are not.
    Marked {
        marked: Points,
        finals: Points,
    },
    /// It has copied the live chunks of a pack into a new object.
    Repacked {
        marked: Points,
        finals: Points,
        pack: u8,
    },
}

/// How often things may still happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct Left {
    pub crashes: u8,
    pub delays: u8,
    pub unforgets: u8,
    pub fences: u8,
    pub digests: u8,
    pub suspects: u8,
    pub forgettable: Points,
}

/// What came of a create.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// The record is in the log.
    Yes,
    /// Another record has the number; it has been applied.
    No,
    /// The record exists, but a digest shows that its number was used up before.
    Fenced,
}

impl State {
    /// The state at the start.
    pub fn new(config: &Config) -> Self {
        let mut headers = [Header::default(); PACKS];
        let mut base = Replayed::default();
        for (pack, chunks) in config.packs.iter().enumerate() {
            // Of a writer that is long gone.
            headers[pack] = Header { chunks: *chunks, by: super::ADMIN, term: 0 };
            base.order.push(pack as u8);
            for chunk in super::chunks_of(*chunks) {
                base.index[chunk as usize].get_or_insert(pack as u8);
            }
        }
        base.committed = config.points;
        let writer = Writer { phase: Phase::Idle, job: 0, session: 0, term: 0, wanted: 0, told: 0 };
        State {
            stored: base.usable(),
            base,
            tail: Vec::new(),
            headers,
            deletes: 0,
            flights: Vec::new(),
            pruned: 0,
            digests: Vec::new(),
            late: Vec::new(),
            views: [View::default(); SLOTS],
            pending: [None; SLOTS],
            writers: vec![writer; config.jobs.len()],
            reader: if config.reading.is_some() { ReaderPhase::Idle } else { ReaderPhase::Closed },
            sweepers: config.sweeps.iter().map(|left| Sweeper { phase: Sweeping::Idle, left: *left }).collect(),
            acknowledged: 0,
            failed: 0,
            left: Left {
                crashes: config.crashes,
                delays: config.delays,
                unforgets: config.unforgets,
                fences: config.fences,
                digests: config.digests,
                suspects: config.suspects,
                forgettable: config.forgettable,
            },
        }
    }

    /// What a replayer of the true log knows.
    pub fn head(&self, config: &Config) -> Replayed {
        self.replayed(config, self.tail.len())
    }

    /// What an actor knows.
    pub fn known(&self, config: &Config, slot: u8) -> Replayed {
        self.replayed(config, self.views[slot as usize].applied as usize)
    }

    /// Whether an actor has read the log to its end.
    pub fn is_current(&self, slot: u8) -> bool {
        self.views[slot as usize].applied as usize == self.tail.len()
    }

    /// Tries to create the record under the number after what its author has applied.
    pub fn create(&mut self, config: &Config, record: Record) -> Created {
        let number = self.views[record.by as usize].applied + 1;
        if self.occupied(number) {
            self.read_next(config, record.by);
            return Created::No;
        }
        self.put(number, record);
        self.list_digests(config, Clause::ListAfterCreate, number, record)
    }

    /// The author of a record that exists under its number makes sure that the number was not used up before.
    pub fn list_digests(&mut self, config: &Config, clause: Clause, number: u8, record: Record) -> Created {
        self.views[record.by as usize].applied = number;
        let used_up = number <= self.pruned && !self.accounted(number, record);
        if used_up && config.rules.has(clause) { Created::Fenced } else { Created::Yes }
    }

    /// Whether a record exists under this number.
    pub fn occupied(&self, number: u8) -> bool {
        let kept = number > self.pruned && number as usize <= self.tail.len();
        kept || self.late.iter().any(|(late, _)| *late == number)
    }

    /// The record that exists under this number.
    pub fn read(&self, number: u8) -> Option<Record> {
        let late = self.late.iter().find(|(late, _)| *late == number).map(|(_, record)| *record);
        late.or_else(|| self.tail.get(number as usize - 1).copied().filter(|_| number > self.pruned))
    }

    /// Storage takes a record, whoever sent it and whenever.
    pub fn put(&mut self, number: u8, record: Record) {
        if self.occupied(number) {
            return;
        }
        if number as usize == self.tail.len() + 1 {
            self.tail.push(record);
        } else {
            assert!(number <= self.pruned, "numbers are never skipped");
            self.late.push((number, record));
            self.late.sort_unstable();
        }
    }

    /// An actor applies the next record it can find.
    pub fn read_next(&mut self, config: &Config, slot: u8) {
        let end = self.tail.len() as u8;
        let newest = self.digests.last().copied().unwrap_or(0);
        let view = &mut self.views[slot as usize];
        let number = view.applied + 1;
        if number > end {
            return;
        }
        if number > self.pruned {
            view.applied = number;
            return;
        }
        let late = self.late.iter().find(|(late, _)| *late == number);
        if late.is_none_or(|(_, record)| *record == self.tail[number as usize - 1])
            || config.rules.has(Clause::ListAfterRead)
        {
            view.applied = newest;
        } else {
            view.applied = number;
            view.astray = true;
        }
    }

    /// Whether the newest digest knows this record as its author's last one.
    fn accounted(&self, number: u8, record: Record) -> bool {
        let newest = self.digests.last().copied().unwrap_or(0) as usize;
        let last = self.tail[..newest].iter().enumerate().rev().find(|(_, other)| other.by == record.by);
        last.is_some_and(|(index, other)| index + 1 == number as usize && *other == record)
    }

    /// Names a pack of these chunks, unless the author has no names left, where the model ends.
    pub fn name(&mut self, config: &Config, by: u8, term: u8, chunks: u8) -> Option<u8> {
        let range = if by >= SWEEPER { 9 + by - SWEEPER..10 + by - SWEEPER } else { 3 + 3 * by..6 + 3 * by };
        let header = Header { chunks, by, term };
        let equal = |pack: &u8| self.headers[*pack as usize] == header;
        let reused = if config.rules.has(Clause::FreshName) { None } else { range.clone().find(equal) };
        let pack = reused.or_else(|| range.clone().find(|pack| self.headers[*pack as usize].chunks == 0))?;
        self.headers[pack as usize] = header;
        Some(pack)
    }

    /// Pack objects that no record mentions, as this replayer sees it.
    pub fn orphans(&self, known: &Replayed) -> impl Iterator<Item = u8> {
        let mentioned = known.order.iter().fold(known.dropped, |packs, pack| packs | bit16(*pack));
        packs_of(self.stored & !mentioned)
    }

    /// Brings states that behave alike into one form.
    pub fn normalise(&mut self, config: &Config) {
        let end = self.tail.len() as u8;
        for slot in 0..SLOTS as u8 {
            if !self.may_lag(config, slot) {
                self.views[slot as usize].applied = end;
            }
        }
        if config.digests > 0 {
            return;
        }
        if config.rules.has(Clause::OneSweep) {
            self.forget_superseded(config);
        }
        // Without pruning a number that is taken stays taken.
        self.flights.retain(|(number, _)| *number > end);
        let applied = self.views.iter().map(|view| view.applied).min().unwrap_or(0);
        for record in self.tail.drain(..applied as usize) {
            self.base.apply(config, &self.headers, &record);
        }
        for view in &mut self.views {
            view.applied -= applied;
        }
        for (number, _) in &mut self.flights {
            *number -= applied;
        }
        for pending in self.pending.iter_mut().flatten() {
            if let Pending::Unclear(number, _) = pending {
                *number -= applied;
            }
        }
    }

    /// A sweep that another one supersedes gets nothing done any more, whatever it has found out.
    fn forget_superseded(&mut self, config: &Config) {
        let current = self.head(config).sweep;
        for (index, sweeper) in self.sweepers.iter_mut().enumerate() {
            let slot = SWEEPER + index as u8;
            if current != Some(slot) && self.pending[slot as usize].is_none() {
                sweeper.phase = Sweeping::Idle;
            }
        }
    }

    fn may_lag(&self, config: &Config, slot: u8) -> bool {
        if matches!(self.pending[slot as usize], Some(Pending::Unclear(..))) {
            return true;
        }
        // Reading is the one thing that is done from an old view as a matter of course.
        if slot == READER {
            return self.reader == ReaderPhase::Reading;
        }
        if config.lagging & bit8(slot) == 0 {
            return false;
        }
        match self.writers.get(slot as usize) {
            Some(writer) => matches!(writer.phase, Phase::Open | Phase::Uploaded(_) | Phase::Ready),
            None if config.is_sweeper(slot) => {
                self.sweepers.get((slot - SWEEPER) as usize).is_some_and(|sweeper| sweeper.phase != Sweeping::Idle)
            }
            None => false,
        }
    }

    fn replayed(&self, config: &Config, records: usize) -> Replayed {
        let mut replayed = self.base.clone();
        for record in &self.tail[..records] {
            replayed.apply(config, &self.headers, record);
        }
        replayed
    }
}

impl Event {
    /// Of a slot, in a term.
    pub fn by(self, slot: u8, term: u8) -> Record {
        Record { by: slot, term, event: self }
    }
}
