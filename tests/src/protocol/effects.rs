//! What a step does.

use super::actions::Action;
use super::log::{Event, Record, bit8, bit16, chunks_of};
use super::rules::Clause;
use super::state::{Created, Pending, Phase, ReaderPhase, State, Sweeper, Sweeping, Writer};
use super::{Config, READER, SWEEPER};

impl Config {
    /// The state after a step.
    pub(super) fn after(&self, state: &State, action: Action) -> State {
        let mut next = state.clone();
        self.take(&mut next, action);
        next.normalise(self);
        next
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each action")]
    fn take(&self, state: &mut State, action: Action) {
        match action {
            Action::Append(slot, event) => {
                let record = event.by(slot, self.term(state, slot, event));
                match state.create(self, record) {
                    Created::Yes => self.succeed(state, record),
                    Created::No if self.pushes(slot) => state.pending[slot as usize] = Some(Pending::Pushed(record)),
                    Created::No => {}
                    Created::Fenced => self.fence(state, slot),
                }
            }
            Action::Delay(slot, event) => {
                let record = event.by(slot, self.term(state, slot, event));
                let number = state.views[slot as usize].applied + 1;
                state.left.delays -= 1;
                state.flights.push((number, record));
                state.flights.sort_unstable();
                if self.rules.has(Clause::UntilDefinite) {
                    state.pending[slot as usize] = Some(Pending::Unclear(number, record));
                } else {
                    self.fail(state, slot, Phase::Failed);
                }
            }
            Action::Resend(slot) => self.resend(state, slot),
            Action::Push(slot) => {
                if let Some(Pending::Pushed(record)) = state.pending[slot as usize].take() {
                    state.views[slot as usize].applied = state.tail.len() as u8;
                    match state.create(self, record) {
                        Created::Yes => self.succeed(state, record),
                        Created::No | Created::Fenced => unreachable!("created at the log's end"),
                    }
                }
            }
            Action::ReadLog(slot) => state.read_next(self, slot),
            Action::Land(flight) => {
                let (number, record) = state.flights.remove(flight as usize);
                state.put(number, record);
            }
            Action::Upload(slot) => self.upload(state, slot),
            Action::Refuse(slot) => {
                let wanted = self.walk(state, slot, &state.known(self, slot)).err().unwrap_or(0);
                if self.rules.has(Clause::RefusedRepairs) {
                    state.writers[slot as usize].wanted = wanted;
                    state.writers[slot as usize].phase = Phase::Open;
                } else {
                    self.fail(state, slot, Phase::Refused);
                }
            }
            Action::GiveUp(slot) => {
                let open = state.known(self, slot).is_open(slot, state.writers[slot as usize].session);
                self.fail(state, slot, if open { Phase::Refused } else { Phase::Failed });
            }
            Action::FindCommitted(slot) => self.finish(state, slot),
            Action::Crash(slot) => {
                state.left.crashes -= 1;
                state.pending[slot as usize] = None;
                let writer = &mut state.writers[slot as usize];
                *writer = Writer { phase: Phase::Crashed, session: 0, wanted: 0, told: 0, ..*writer };
            }
            Action::StartReading => state.reader = ReaderPhase::Reading,
            Action::Miss => self.miss(state),
            Action::Mark(slot) => {
                let known = state.known(self, slot);
                let marked = known.roots(self);
                let finals = known.forgotten & !known.finals & !marked;
                state.sweepers[(slot - SWEEPER) as usize].phase = Sweeping::Marked { marked, finals };
            }
            Action::Repack(slot, pack) => {
                let sweeper = (slot - SWEEPER) as usize;
                if let Sweeping::Marked { marked, finals } = state.sweepers[sweeper].phase {
                    let live = self.to_copy(state, &state.known(self, slot), marked, pack);
                    if let Some(pack) = state.name(self, slot, 0, live) {
                        state.stored |= bit16(pack);
                        state.sweepers[sweeper].phase = Sweeping::Repacked { marked, finals, pack };
                    }
                }
            }
            Action::SendDelete(pack) => state.deletes |= bit16(pack),
            Action::LandDelete(pack) => {
                state.deletes &= !bit16(pack);
                state.stored &= !bit16(pack);
            }
            Action::WriteDigest => {
                state.left.digests -= 1;
                state.digests.push(state.tail.len() as u8);
            }
            Action::Prune => state.pruned = self.prunable(state),
        }
    }

    /// After an unclear answer: the same bytes, the same number.
    fn resend(&self, state: &mut State, slot: u8) {
        let Some(Pending::Unclear(number, record)) = state.pending[slot as usize].take() else {
            return;
        };
        let found = state.read(number);
        let own = found == Some(record);
        let taken_for_own = found.is_some() && !self.rules.has(Clause::CompareOnExists);
        let created = if own || taken_for_own {
            state.list_digests(self, Clause::ListAfterOwnFound, number, record)
        } else {
            state.create(self, record)
        };
        match created {
            Created::Yes => self.succeed(state, record),
            Created::No if self.pushes(slot) => state.pending[slot as usize] = Some(Pending::Pushed(record)),
            Created::No => {}
            Created::Fenced => self.fence(state, slot),
        }
    }

    /// What an actor does when its record is in the log.
    fn succeed(&self, state: &mut State, record: Record) {
        let slot = record.by as usize;
        match record.event {
            Event::TermTaken => {
                let writer = &mut state.writers[slot];
                *writer = Writer { phase: Phase::Idle, term: record.term, ..*writer };
            }
            Event::Opened { session, .. } => match state.writers.get_mut(slot) {
                Some(writer) => *writer = Writer { phase: Phase::Open, session, told: 0, ..*writer },
                None => state.reader = ReaderPhase::Reading,
            },
            Event::Closed if record.by == READER => state.reader = ReaderPhase::Closed,
            Event::Closed => self.next_job(state, record.by),
            Event::Suspect { .. } => state.left.suspects -= 1,
            Event::Added { .. } if self.is_sweeper(record.by) => {
                let sweeper = &mut state.sweepers[slot - SWEEPER as usize];
                if let Sweeping::Repacked { marked, finals, .. } = sweeper.phase {
                    sweeper.phase = Sweeping::Marked { marked, finals };
                }
            }
            // An adopted pack may not be all that is missing.
            Event::Added { .. } if state.writers[slot].phase == Phase::Open => {}
            Event::Added { .. } => state.writers[slot].phase = Phase::Ready,
            Event::Committed { .. } => self.finish(state, record.by),
            Event::Forgotten { point } => state.left.forgettable &= !bit8(point),
            Event::Unforgotten { .. } => state.left.unforgets -= 1,
            Event::Fenced { .. } => state.left.fences -= 1,
            Event::SweepBegun => {
                let sweeper = &mut state.sweepers[slot - SWEEPER as usize];
                sweeper.left -= 1;
                sweeper.phase = Sweeping::Begun;
            }
            Event::Doomed { .. } => {}
            // The delete goes out at once; when it arrives, if ever, is open.
            Event::Dropped { pack } => state.deletes |= state.stored & bit16(pack),
        }
    }

    fn finish(&self, state: &mut State, slot: u8) {
        let writer = &mut state.writers[slot as usize];
        // What a careless writer reports is its own affair; what others can read is not.
        if self.careless & bit8(slot) == 0 {
            state.acknowledged |= bit8(self.job(slot, writer).point);
        }
        writer.wanted = 0;
        self.next_job(state, slot);
    }

    fn next_job(&self, state: &mut State, slot: u8) {
        let writer = &mut state.writers[slot as usize];
        writer.told = 0;
        writer.job += 1;
        let more = (writer.job as usize) < self.jobs[slot as usize].len();
        writer.phase = if more { Phase::Idle } else { Phase::Done };
    }

    fn fail(&self, state: &mut State, slot: u8, phase: Phase) {
        if let Some(writer) = state.writers.get_mut(slot as usize) {
            state.failed |= bit8(self.job(slot, writer).point);
            writer.phase = phase;
        }
    }

    fn fence(&self, state: &mut State, slot: u8) {
        match state.writers.get_mut(slot as usize) {
            Some(writer) => writer.phase = Phase::Fenced,
            None if slot == READER => state.reader = ReaderPhase::Closed,
            None if self.is_sweeper(slot) => {
                state.sweepers[(slot - SWEEPER) as usize] = Sweeper { phase: Sweeping::Idle, left: 0 };
            }
            None => {}
        }
    }

    fn upload(&self, state: &mut State, slot: u8) {
        let known = state.known(self, slot);
        let (missing, told) = self.missing(state, slot, &known);
        state.writers[slot as usize].told |= told;
        let term = state.writers[slot as usize].term;
        if missing == 0 {
            state.writers[slot as usize].phase = Phase::Ready;
        } else if let Some(pack) = state.name(self, slot, term, missing) {
            state.stored |= bit16(pack);
            state.writers[slot as usize].phase = Phase::Uploaded(pack);
        }
    }

    fn miss(&self, state: &mut State) {
        let Some(reading) = self.reading else {
            return;
        };
        let head = state.head(self);
        let pins = bit8(reading.point);
        let again = self.rules.has(Clause::LookAgain);
        if again && chunks_of(self.chunks_of(pins)).all(|chunk| self.readable(state, &head, chunk)) {
            state.views[READER as usize].applied = state.tail.len() as u8;
            return;
        }
        // Without a session only points that nobody forgot are promised.
        let promised = reading.session && (head.is_open(READER, 1) || !self.rules.has(Clause::ReaderPins));
        let live = head.live_points() & pins != 0;
        state.reader = if promised || live { ReaderPhase::Broken } else { ReaderPhase::Closed };
    }
}
