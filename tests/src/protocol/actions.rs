//! What the actors can do next.

use super::log::{Event, Replayed, bit8, bit16, chunks_of, packs_of};
use super::rules::Clause;
use super::state::{Pending, Phase, ReaderPhase, State, Sweeping};
use super::{ADMIN, Config, READER, SLOTS, SWEEPER};

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Action {
    /// Validates an event against what the slot knows and creates it under the next number.
    Append(u8, Event),
    /// The same, but there is no answer, and the create is still on its way.
    Delay(u8, Event),
    /// Sends the unanswered bytes again, under the same number.
    Resend(u8),
    /// Creates a record that lost its number under the next one, without validating it again.
    Push(u8),
    ReadLog(u8),
    /// A delayed create arrives.
    Land(u8),
    /// A writer asks what is missing, and uploads it.
    Upload(u8),
    /// A commit is refused before anything is written.
    Refuse(u8),
    /// A writer learns that its session is over.
    GiveUp(u8),
    /// A writer finds its point committed already.
    FindCommitted(u8),
    Crash(u8),
    StartReading,
    /// The reader looks for a chunk where it knows it to be, and it is not there.
    Miss,
    Mark(u8),
    Repack(u8, u8),
    SendDelete(u8),
    LandDelete(u8),
    WriteDigest,
    Prune,
}

impl Config {
    /// All steps possible in a state.
    pub(super) fn steps(&self, state: &State, steps: &mut Vec<Action>) {
        let head = state.head(self);
        for slot in 0..SLOTS as u8 {
            match state.pending[slot as usize] {
                Some(Pending::Unclear(..)) => steps.push(Action::Resend(slot)),
                Some(Pending::Pushed(_)) => steps.push(Action::Push(slot)),
                None => self.steps_of(state, slot, &head, steps),
            }
            if let Some(writer) = state.writers.get(slot as usize)
                && state.left.crashes > 0
                && (matches!(writer.phase, Phase::Open | Phase::Uploaded(_) | Phase::Ready)
                    || state.pending[slot as usize].is_some())
            {
                steps.push(Action::Crash(slot));
            }
        }
        self.steps_of_storage(state, &head, steps);
    }

    fn steps_of(&self, state: &State, slot: u8, head: &Replayed, steps: &mut Vec<Action>) {
        if !state.is_current(slot) {
            steps.push(Action::ReadLog(slot));
        }
        let lagging;
        let known = if state.is_current(slot) {
            head
        } else {
            lagging = state.known(self, slot);
            &lagging
        };
        let mut events = Vec::new();
        match slot {
            ADMIN => self.events_of_admin(state, known, &mut events),
            READER => self.steps_of_reader(state, known, steps, &mut events),
            _ if self.is_sweeper(slot) => self.steps_of_sweeper(state, slot, known, steps, &mut events),
            _ => self.steps_of_writer(state, slot, known, steps, &mut events),
        }
        for event in events {
            let record = event.by(slot, self.term(state, slot, event));
            if !known.valid(self, &state.headers, &record) {
                continue;
            }
            // From an old view the number is lost, which teaches the author one record: the step `ReadLog` above.
            // Where numbers get free again, or where the loser pushes on, it is a step of its own.
            if state.is_current(slot) || self.digests > 0 || self.pushes(slot) {
                steps.push(Action::Append(slot, event));
            }
            if state.left.delays > 0 && self.delaying & bit8(slot) != 0 && (state.is_current(slot) || self.digests > 0)
            {
                steps.push(Action::Delay(slot, event));
            }
        }
    }

    fn steps_of_writer(
        &self,
        state: &State,
        slot: u8,
        known: &Replayed,
        steps: &mut Vec<Action>,
        events: &mut Vec<Event>,
    ) {
        let Some(writer) = state.writers.get(slot as usize) else {
            return;
        };
        let session = writer.session;
        let working = matches!(writer.phase, Phase::Open | Phase::Uploaded(_) | Phase::Ready);
        if working && !known.is_open(slot, session) {
            // Its own commit may be what ended it.
            let looks = self.rules.has(Clause::LookBeforeFailing);
            let found = looks && known.committed & bit8(self.job(slot, writer).point) != 0;
            steps.push(if found { Action::FindCommitted(slot) } else { Action::GiveUp(slot) });
            return;
        }
        match writer.phase {
            Phase::Idle => {
                let job = self.job(slot, writer);
                if known.committed & bit8(job.point) != 0 && self.rules.has(Clause::PointIdIsKey) {
                    steps.push(Action::FindCommitted(slot));
                    return;
                }
                let gone = if self.rules.has(Clause::FinalNotNamed) { known.finals } else { 0 };
                let pins = job.parent.map_or(0, bit8) & known.committed & !gone;
                events.push(Event::Opened { session: session + 1, pins });
            }
            Phase::Open => {
                steps.push(Action::Upload(slot));
                let mine = |pack: &u8| {
                    let header = state.headers[*pack as usize];
                    header.by == slot && header.term < writer.term && !known.order.contains(pack)
                };
                let adoptable = packs_of(state.stored).filter(mine);
                events.extend(adoptable.map(|pack| Event::Added { session, pack }));
            }
            Phase::Uploaded(pack) => {
                let added = Event::Added { session, pack };
                if known.valid(self, &state.headers, &added.by(slot, writer.term)) {
                    events.push(added);
                } else {
                    steps.push(Action::GiveUp(slot));
                }
            }
            Phase::Ready if self.job(slot, writer).repairs => events.push(Event::Closed),
            Phase::Ready => match self.walk(state, slot, known) {
                Ok(relies) => events.push(Event::Committed { session, point: self.job(slot, writer).point, relies }),
                Err(_) => steps.push(Action::Refuse(slot)),
            },
            Phase::Crashed => events.push(Event::TermTaken),
            Phase::Refused | Phase::Failed | Phase::Fenced | Phase::Done => {}
        }
    }

    fn steps_of_reader(&self, state: &State, known: &Replayed, steps: &mut Vec<Action>, events: &mut Vec<Event>) {
        let Some(reading) = self.reading else {
            return;
        };
        let pins = bit8(reading.point);
        match state.reader {
            ReaderPhase::Idle if reading.session && self.rules.has(Clause::ReaderPins) => {
                events.push(Event::Opened { session: 1, pins });
            }
            ReaderPhase::Idle if known.live_points() & pins != 0 => steps.push(Action::StartReading),
            ReaderPhase::Reading => {
                events.push(Event::Closed);
                let gone = |chunk: u8| !self.readable(state, known, chunk);
                if chunks_of(self.chunks_of(pins)).any(gone) {
                    steps.push(Action::Miss);
                }
            }
            ReaderPhase::Idle | ReaderPhase::Closed | ReaderPhase::Broken => {}
        }
    }

    fn steps_of_sweeper(
        &self,
        state: &State,
        slot: u8,
        known: &Replayed,
        steps: &mut Vec<Action>,
        events: &mut Vec<Event>,
    ) {
        let Some(sweeper) = state.sweepers.get((slot - SWEEPER) as usize) else {
            return;
        };
        if sweeper.left > 0 {
            events.push(Event::SweepBegun);
        }
        if sweeper.phase == Sweeping::Idle {
            return;
        }
        match sweeper.phase {
            Sweeping::Idle => {}
            Sweeping::Begun => steps.push(Action::Mark(slot)),
            Sweeping::Marked { marked, finals } => {
                for pack in packs_of(known.usable() | known.doomed) {
                    if known.doomed & bit16(pack) == 0 {
                        events.push(Event::Doomed { pack, marked, finals });
                    }
                    let live = self.to_copy(state, known, marked, pack);
                    let named = state.headers[(9 + slot - SWEEPER) as usize].chunks != 0;
                    if self.repack && live != 0 && !named {
                        steps.push(Action::Repack(slot, pack));
                    }
                }
            }
            Sweeping::Repacked { pack, .. } => events.push(Event::Added { session: 0, pack }),
        }
        if known.sweep == Some(slot) {
            events.extend(packs_of(known.doomed).map(|pack| Event::Dropped { pack }));
            if self.rules.has(Clause::OrphanDroppedInLog) {
                let orphans = state.orphans(known).filter(|pack| known.may_drop_orphan(self, &state.headers, *pack));
                events.extend(orphans.map(|pack| Event::Dropped { pack }));
            }
        }
    }

    fn events_of_admin(&self, state: &State, known: &Replayed, events: &mut Vec<Event>) {
        events.extend(chunks_of(state.left.forgettable & known.live_points()).map(|point| Event::Forgotten { point }));
        if state.left.unforgets > 0 {
            events.extend(chunks_of(known.forgotten).map(|point| Event::Unforgotten { point }));
        }
        if state.left.suspects > 0 {
            for pack in known.order.iter().copied().filter(|pack| (*pack as usize) < self.packs.len()) {
                let found = chunks_of(known.sound(&state.headers, pack));
                events.extend(found.map(|chunk| Event::Suspect { pack, chunk }));
            }
        }
        if state.left.fences > 0 {
            let open = known.sessions.iter().enumerate();
            let open = open.filter_map(|(slot, session)| Some((slot as u8, (*session)?.id)));
            events.extend(open.map(|(slot, session)| Event::Fenced { slot, session }));
        }
    }

    fn steps_of_storage(&self, state: &State, head: &Replayed, steps: &mut Vec<Action>) {
        steps.extend((0..state.flights.len() as u8).map(Action::Land));
        // Who deletes, and how old its view is, makes no difference: what looks like an orphan only from an old view is
        // what a delete that takes its time is, too.
        if !self.rules.has(Clause::OrphanDroppedInLog) && !self.sweeps.is_empty() {
            let orphans = state.orphans(head).filter(|pack| head.may_drop_orphan(self, &state.headers, *pack));
            steps.extend(orphans.filter(|pack| state.deletes & bit16(*pack) == 0).map(Action::SendDelete));
        }
        steps.extend(packs_of(state.deletes).map(Action::LandDelete));
        let end = state.tail.len() as u8;
        if state.left.digests > 0 && state.digests.last().is_none_or(|digest| *digest < end) && end > 0 {
            steps.push(Action::WriteDigest);
        }
        if self.prunable(state) > state.pruned {
            steps.push(Action::Prune);
        }
    }
}
