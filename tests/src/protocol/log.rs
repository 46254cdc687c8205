//! The commit log: records, when they are valid, and what a replayer knows after them.

use super::rules::Clause;
use super::{Config, PACKS, SLOTS};

/// A set of chunks, one bit each.
pub type Chunks = u8;
/// A set of packs, one bit each.
pub type Packs = u16;
/// A set of recovery points, one bit each.
pub type Points = u8;

/// A log record. Its author, term and number are used instead of a nonce: no author proposes two different records for
/// one number in one term, except when R2 is taken out to show what happens then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Record {
    /// Slot of the actor that wrote it.
    pub by: u8,
    /// Term of that actor, a fencing token; only writers have more than one.
    pub term: u8,
    /// What it states.
    pub event: Event,
}

/// The one event of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Event {
    /// A restarted writer takes over; what the old term left open is fenced.
    TermTaken,
    Opened {
        session: u8,
        pins: Points,
    },
    Closed,
    /// Someone's lease ran out.
    Fenced {
        slot: u8,
        session: u8,
    },
    Added {
        session: u8,
        pack: u8,
    },
    /// `relies` are the packs the walk before the commit found the chunks in. Ends the session.
    Committed {
        session: u8,
        point: u8,
        relies: Packs,
    },
    Forgotten {
        point: u8,
    },
    Unforgotten {
        point: u8,
    },
    /// What a pack holds of this chunk was found damaged.
    Suspect {
        pack: u8,
        chunk: u8,
    },
    SweepBegun,
    /// `marked` are the points that were roots at the mark, `finals` the forgotten points that were not roots.
    Doomed {
        pack: u8,
        marked: Points,
        finals: Points,
    },
    Dropped {
        pack: u8,
    },
}

/// The header of a pack, and with it its name: equal headers with an equal nonce are one name. Here the nonce is the
/// index into the table of headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Header {
    /// What the pack holds; nothing means that no such pack was made.
    pub chunks: Chunks,
    /// Slot of its writer.
    pub by: u8,
    /// Term of its writer.
    pub term: u8,
}

/// An open session, as the log tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Session {
    /// Number of the session among those of its slot in this term.
    pub id: u8,
    /// Points named when it opened.
    pub pins: Points,
    /// Packs added since it opened, by anyone.
    pub young: Packs,
}

/// What a replayer knows after some prefix of the log: a function of that prefix and nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Replayed {
    /// Latest term of each slot.
    pub terms: [u8; SLOTS],
    /// The open session of each slot.
    pub sessions: [Option<Session>; SLOTS],
    /// Packs added and not dropped, in the order of adding.
    pub order: Vec<u8>,
    /// Of these, the doomed ones.
    pub doomed: Packs,
    /// Names that are gone for good.
    pub dropped: Packs,
    /// For each pack its chunks that are known to be damaged there.
    pub suspects: [Chunks; PACKS],
    /// Chunks that are lost by damage alone, because their last copy was found damaged.
    pub rotten: Chunks,
    /// For each doomed pack the sessions (by slot) it still waits for.
    pub waits: [u8; PACKS],
    /// Points committed, whatever happened to them later.
    pub committed: Points,
    /// Points forgotten and not brought back.
    pub forgotten: Points,
    /// Points a doom declared final.
    pub finals: Points,
    /// Points brought back at least once.
    pub unforgotten: Points,
    /// The slot whose sweep is the current one.
    pub sweep: Option<u8>,
    /// The index as a cache that is patched; used only where R9 is taken out.
    pub index: [Option<u8>; 3],
    /// Points committed more than once; for the properties.
    pub twice: Points,
    /// Names added again after a drop; for the properties.
    pub revived: Packs,
    /// A superseded sweep doomed something; for the properties.
    pub superseded_doomed: bool,
}

impl Replayed {
    /// Applies the next record, or skips it as void.
    pub fn apply(&mut self, config: &Config, headers: &[Header; PACKS], record: &Record) {
        if config.rules.has(Clause::ReplayVoids) && !self.valid(config, headers, record) {
            return;
        }
        let by = record.by as usize;
        match record.event {
            Event::TermTaken => {
                self.terms[by] = record.term;
                self.end(record.by);
            }
            Event::Opened { session, pins } => {
                self.sessions[by] = Some(Session { id: session, pins, young: 0 });
            }
            Event::Closed => self.end(record.by),
            Event::Fenced { slot, .. } => self.end(slot),
            Event::Added { pack, .. } => self.add(headers, pack),
            Event::Committed { point, .. } => {
                self.twice |= self.committed & bit8(point);
                self.committed |= bit8(point);
                self.end(record.by);
            }
            Event::Forgotten { point } => self.forgotten |= bit8(point),
            Event::Unforgotten { point } => {
                self.forgotten &= !bit8(point);
                self.unforgotten |= bit8(point);
            }
            Event::Suspect { pack, chunk } => {
                self.suspects[pack as usize] |= bit8(chunk);
                if !self.order.iter().any(|pack| self.sound(headers, *pack) & bit8(chunk) != 0) {
                    self.rotten |= bit8(chunk);
                }
            }
            Event::SweepBegun => self.sweep = Some(record.by),
            Event::Doomed { pack, finals, .. } => {
                self.superseded_doomed |= self.sweep != Some(record.by);
                self.doomed |= bit16(pack);
                self.finals |= finals;
                self.waits[pack as usize] = self.open();
            }
            Event::Dropped { pack } => self.drop_pack(pack),
        }
    }

    /// Whether a record may stand after what was replayed so far. Writers ask before they create it, and every
    /// replayer asks again.
    pub fn valid(&self, config: &Config, headers: &[Header; PACKS], record: &Record) -> bool {
        let has = |clause| config.rules.has(clause);
        let by = record.by as usize;
        if record.event == Event::TermTaken {
            return record.term == self.terms[by] + 1;
        }
        if record.term != self.terms[by] {
            return false;
        }
        match record.event {
            Event::TermTaken => unreachable!("handled above"),
            Event::Opened { pins, .. } => {
                let gone = if has(Clause::FinalNotNamed) { self.finals } else { 0 };
                self.sessions[by].is_none() && pins & !(self.committed & !gone) == 0
            }
            Event::Closed => self.sessions[by].is_some(),
            Event::Fenced { slot, session } => self.is_open(slot, session),
            Event::Added { session, pack } => {
                let permitted = if config.is_sweeper(record.by) {
                    self.sweep == Some(record.by)
                } else {
                    self.is_open(record.by, session)
                };
                let used = has(Clause::NeverAgain) && self.dropped & bit16(pack) != 0;
                permitted && !used && !self.order.contains(&pack)
            }
            Event::Committed { session, point, relies } => {
                let again = has(Clause::PointIdIsKey) && self.committed & bit8(point) != 0;
                self.is_open(record.by, session) && !again && relies & !self.usable() == 0
            }
            Event::Forgotten { point } => self.live_points() & bit8(point) != 0,
            Event::Unforgotten { point } => {
                let gone = if has(Clause::FinalStaysForgotten) { self.finals } else { 0 };
                self.forgotten & !gone & bit8(point) != 0
            }
            Event::Suspect { pack, chunk } => {
                self.order.contains(&pack) && self.sound(headers, pack) & bit8(chunk) != 0
            }
            Event::SweepBegun => true,
            Event::Doomed { pack, marked, finals } => {
                (!has(Clause::OneSweep) || self.sweep == Some(record.by))
                    && self.usable() & bit16(pack) != 0
                    && !(has(Clause::YoungPacksSpared) && self.young() & bit16(pack) != 0)
                    && self.mark_holds(config, marked, finals)
                    && self.dispensable(config, headers, pack, marked)
            }
            Event::Dropped { pack } => {
                if self.order.contains(&pack) {
                    let waits = has(Clause::DropWaits) && self.waits[pack as usize] != 0;
                    let needed = has(Clause::SecondLook) && self.needed_of(config, headers, pack) != 0;
                    self.doomed & bit16(pack) != 0 && !waits && !needed
                } else {
                    self.dropped & bit16(pack) == 0 && self.may_drop_orphan(config, headers, pack)
                }
            }
        }
    }

    /// The chunks of a pack that are not known to be damaged there.
    pub fn sound(&self, headers: &[Header; PACKS], pack: u8) -> Chunks {
        headers[pack as usize].chunks & !self.suspects[pack as usize]
    }

    /// Chunks of a pack that points need, and of which no other pack has a sound copy, not counting doomed packs.
    pub fn needed_of(&self, config: &Config, headers: &[Header; PACKS], pack: u8) -> Chunks {
        let others = packs_of(self.usable() & !bit16(pack));
        let placed = others.fold(0, |chunks, pack| chunks | self.sound(headers, pack));
        config.chunks_of((self.committed & !self.finals) | self.pins(config)) & self.sound(headers, pack) & !placed
    }

    /// Where a chunk is read from: the earliest added pack that holds it, is not doomed, and where it is sound.
    pub fn place(&self, config: &Config, headers: &[Header; PACKS], chunk: u8) -> Option<u8> {
        if !config.rules.has(Clause::PlaceFromLog) {
            return self.index[chunk as usize];
        }
        let holds = |pack: &u8| self.counting(config, headers, *pack) & bit8(chunk) != 0;
        self.order.iter().copied().find(|pack| self.doomed & bit16(*pack) == 0 && holds(pack))
    }

    /// Points that are neither forgotten nor missing.
    pub fn live_points(&self) -> Points {
        self.committed & !self.forgotten
    }

    /// Points that must stay readable: the live ones, and those that open sessions named.
    pub fn roots(&self, config: &Config) -> Points {
        self.live_points() | self.pins(config)
    }

    /// Packs of the log that are not doomed.
    pub fn usable(&self) -> Packs {
        self.order.iter().fold(0, |packs, pack| packs | bit16(*pack)) & !self.doomed
    }

    /// Whether this session of this slot is open.
    pub fn is_open(&self, slot: u8, session: u8) -> bool {
        self.sessions[slot as usize].is_some_and(|open| open.id == session)
    }

    /// Whether an orphan (a pack object that was never added) may go: its term is over, so nothing can add it
    /// but an adoption by the term's successor.
    pub fn may_drop_orphan(&self, config: &Config, headers: &[Header; PACKS], pack: u8) -> bool {
        let header = headers[pack as usize];
        !config.rules.has(Clause::OrphanTermEnded) || self.terms[header.by as usize] > header.term
    }

    /// Whether a mark made earlier still covers all that must stay readable. A point committed since counts even if it
    /// was forgotten since, too: no doom has declared it final, so it can come back.
    fn mark_holds(&self, config: &Config, marked: Points, finals: Points) -> bool {
        // As R6 is written, what a sweep looks for since its mark is commits and sessions. A point that it took for
        // forgotten and that was brought back is neither.
        let unfinished = self.committed & !self.finals & !finals;
        let covered = !config.rules.has(Clause::MarkCoversRoots) || (unfinished | self.pins(config)) & !marked == 0;
        let still = !config.rules.has(Clause::FinalsStillForgotten) || finals & !self.forgotten == 0;
        covered && still
    }

    fn pins(&self, config: &Config) -> Points {
        let pins = self.sessions.iter().enumerate().filter_map(|(slot, session)| {
            let writer = slot < config.jobs.len();
            let counts = !writer || config.rules.has(Clause::ParentsPinned);
            session.filter(|_| counts).map(|session| session.pins)
        });
        pins.fold(0, |all, pins| all | pins)
    }

    fn dispensable(&self, config: &Config, headers: &[Header; PACKS], pack: u8, marked: Points) -> bool {
        let kept =
            if config.rules.has(Clause::PlaceOutsideDoomed) { self.usable() } else { self.usable() | self.doomed };
        let kept = kept & !bit16(pack);
        let placed = packs_of(kept).fold(0, |chunks, pack| chunks | self.counting(config, headers, pack));
        config.chunks_of(marked) & headers[pack as usize].chunks & !placed == 0
    }

    /// The chunks of a pack that count as present.
    fn counting(&self, config: &Config, headers: &[Header; PACKS], pack: u8) -> Chunks {
        match config.rules.has(Clause::PlaceIsSound) {
            true => self.sound(headers, pack),
            false => headers[pack as usize].chunks,
        }
    }

    fn add(&mut self, headers: &[Header; PACKS], pack: u8) {
        self.revived |= self.dropped & bit16(pack);
        self.dropped &= !bit16(pack);
        self.order.retain(|other| *other != pack);
        self.order.push(pack);
        self.rotten &= !headers[pack as usize].chunks;
        for session in self.sessions.iter_mut().flatten() {
            session.young |= bit16(pack);
        }
        for chunk in chunks_of(headers[pack as usize].chunks) {
            self.index[chunk as usize].get_or_insert(pack);
        }
    }

    fn drop_pack(&mut self, pack: u8) {
        self.order.retain(|other| *other != pack);
        self.doomed &= !bit16(pack);
        self.dropped |= bit16(pack);
        self.suspects[pack as usize] = 0;
        self.waits[pack as usize] = 0;
        for entry in &mut self.index {
            entry.take_if(|place| *place == pack);
        }
    }

    fn end(&mut self, slot: u8) {
        self.sessions[slot as usize] = None;
        for waits in &mut self.waits {
            *waits &= !bit8(slot);
        }
    }

    fn open(&self) -> u8 {
        (0..SLOTS as u8).filter(|slot| self.sessions[*slot as usize].is_some()).fold(0, |open, slot| open | bit8(slot))
    }

    fn young(&self) -> Packs {
        self.sessions.iter().flatten().fold(0, |young, session| young | session.young)
    }
}

/// The set of one chunk, point or slot.
pub fn bit8(index: u8) -> u8 {
    1 << index
}

/// The set of one pack.
pub fn bit16(pack: u8) -> Packs {
    1 << pack
}

/// The members of a set of chunks, lowest first.
pub fn chunks_of(chunks: Chunks) -> impl Iterator<Item = u8> {
    (0..8).filter(move |chunk| chunks & bit8(*chunk) != 0)
}

/// The members of a set of packs, lowest first.
pub fn packs_of(packs: Packs) -> impl Iterator<Item = u8> {
    (0..PACKS as u8).filter(move |pack| packs & bit16(*pack) != 0)
}
