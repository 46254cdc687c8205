//! Which events are valid in a state (R1). A writer checks this before it creates a record, and every reader after.

use super::{Session, State};
use crate::format::event::{Doomed, Dropped, Event};
use crate::format::pack::PackName;
use crate::format::record::LogRecord;
use mover::{PointId, SessionId};
use std::collections::BTreeSet;

/// Why an event is void.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Void {
    /// The writer has a newer term, or the term was never begun.
    #[error("the writer's term is over")]
    Term,
    /// The session was closed or fenced, or belongs to another writer.
    #[error("the session has ended")]
    Session,
    /// The session id was used before.
    #[error("the session is open already")]
    SessionTwice,
    /// The point is not there (any more).
    #[error("no such point")]
    NoPoint,
    /// The point is committed already.
    #[error("the point is committed already")]
    PointTwice,
    /// The pack was there before, or was dropped: no name comes back (R4).
    #[error("the pack's name was used before")]
    PackTwice,
    /// The pack is not there.
    #[error("no such pack")]
    NoPack,
    /// The sweep was superseded.
    #[error("another sweep has begun")]
    Sweep,
    /// The pack is younger than the oldest session (R6).
    #[error("a session older than the pack is open")]
    TooYoung,
    /// A point or pin came after the mark and was not marked too (R6).
    #[error("a point was committed or pinned since the mark")]
    NotMarked,
    /// The pack is not doomed, or a session that was open then still is.
    #[error("the pack may still be in use")]
    InUse,
    /// The point is protected or pinned.
    #[error("the point is protected")]
    Protected,
}

impl State {
    /// Whether `event` of `record` may be applied to this state.
    ///
    /// # Errors
    /// Why it is void.
    pub fn check(&self, record: &LogRecord, event: &Event) -> Result<(), Void> {
        let term = self.term(record.writer);
        match event {
            Event::WriterTerm if record.term == term + 1 => return Ok(()),
            Event::WriterTerm => return Err(Void::Term),
            _ if record.term != term => return Err(Void::Term),
            _ if term > 0 => {}
            // Readers have no term: they may look after their own leases, and tell what they found damaged.
            Event::SessionOpened(opened) if !opened.writes => {}
            Event::SessionClosed(_) | Event::ChunkSuspect(..) => {}
            _ => return Err(Void::Term),
        }
        match event {
            Event::SessionOpened(opened) => {
                if self.sessions.contains_key(&opened.session) {
                    return Err(Void::SessionTwice);
                }
                self.all_points(&opened.pins)
            }
            Event::SessionClosed(session) => self.own_session(record, *session).map(|_| ()),
            Event::SessionFenced(session) => self.sessions.contains_key(session).then_some(()).ok_or(Void::Session),
            Event::PacksAdded(packs) => {
                let used = |name: &PackName| self.numbers.contains_key(name) || self.dropped.contains(name);
                let distinct: BTreeSet<_> = packs.iter().map(|pack| pack.name).collect();
                let fresh = distinct.len() == packs.len() && !distinct.iter().any(used);
                if fresh { Ok(()) } else { Err(Void::PackTwice) }
            }
            Event::PointCommitted(point) => {
                if self.points.contains_key(&point.point) {
                    return Err(Void::PointTwice);
                }
                let session = self.own_session(record, point.session)?;
                if session.opened.writes { Ok(()) } else { Err(Void::Session) }
            }
            Event::Forgotten(points) => {
                self.all_points(points)?;
                let kept = |id: &PointId| {
                    self.points.get(id).is_some_and(|it| it.pinned || it.committed.protected_until > record.time)
                };
                if points.iter().any(kept) { Err(Void::Protected) } else { Ok(()) }
            }
            Event::Unforgotten(points) | Event::Pinned(points) | Event::Unpinned(points) => self.all_points(points),
            Event::Annotated(point, _, _) => self.all_points(&[*point]),
            Event::ChunkSuspect(_, pack) | Event::ChunkHealed(_, pack) => {
                self.numbers.contains_key(pack).then_some(()).ok_or(Void::NoPack)
            }
            Event::SweepEnded(token) => self.sweeping(token),
            Event::Doomed(doomed) => self.check_doomed(doomed),
            Event::Dropped(dropped) => self.check_dropped(dropped),
            Event::WriterTerm
            | Event::SweepBegun(_)
            | Event::Role(_)
            | Event::Configuration(..)
            | Event::PeerSeen(..)
            | Event::NewIncarnation(_)
            | Event::Unknown { .. } => Ok(()),
        }
    }

    fn own_session(&self, record: &LogRecord, session: SessionId) -> Result<&Session, Void> {
        let found = self.sessions.get(&session).ok_or(Void::Session)?;
        let own = found.writer == record.writer && found.term == record.term;
        if own { Ok(found) } else { Err(Void::Session) }
    }

    fn all_points(&self, points: &[PointId]) -> Result<(), Void> {
        if points.iter().all(|id| self.points.contains_key(id)) { Ok(()) } else { Err(Void::NoPoint) }
    }

    fn sweeping(&self, token: &[u8; 16]) -> Result<(), Void> {
        if self.sweep.as_ref() == Some(token) { Ok(()) } else { Err(Void::Sweep) }
    }

    /// Everything that became a root after record `marked` was marked too (R6).
    fn all_marked(&self, marked: u64, marked_too: &[PointId]) -> Result<(), Void> {
        let all = self.roots_since(marked).iter().all(|id| marked_too.contains(id));
        if all { Ok(()) } else { Err(Void::NotMarked) }
    }

    fn check_doomed(&self, doomed: &Doomed) -> Result<(), Void> {
        self.sweeping(&doomed.token)?;
        for name in &doomed.packs {
            let pack = self.numbers.get(name).and_then(|number| self.packs.get(number)).ok_or(Void::NoPack)?;
            if !self.is_settled(pack, doomed.marked) {
                return Err(Void::TooYoung);
            }
        }
        for id in &doomed.finalised {
            // Unforgotten since the mark, or needed by a session: its chunks were not marked, so nothing may be doomed.
            let point = self.points.get(id).ok_or(Void::NoPoint)?;
            if point.forgotten.is_none() || self.is_pinned(id) {
                return Err(Void::Protected);
            }
        }
        // Dooms without packs only make points final, so that a long list of them fits into several records.
        if doomed.packs.is_empty() {
            return Ok(());
        }
        self.all_marked(doomed.marked, &doomed.marked_too)?;
        // What was forgotten at the mark and is not final would come back without its chunks (R11).
        let gone = |(id, point): &(&PointId, &super::Point)| {
            point.forgotten.is_some_and(|at| at <= doomed.marked) && !self.is_pinned(id)
        };
        let all_final = self.points.iter().filter(gone).all(|(id, _)| doomed.finalised.contains(id));
        if all_final { Ok(()) } else { Err(Void::NotMarked) }
    }

    fn check_dropped(&self, dropped: &Dropped) -> Result<(), Void> {
        self.sweeping(&dropped.token)?;
        self.all_marked(dropped.marked, &dropped.marked_too)?;
        for name in &dropped.packs {
            let pack = self.numbers.get(name).and_then(|number| self.packs.get(number)).ok_or(Void::NoPack)?;
            let doomed = pack.doomed.ok_or(Void::InUse)?;
            if !self.has_outlived(doomed) || dropped.marked < doomed {
                return Err(Void::InUse);
            }
        }
        for orphan in &dropped.orphans {
            // Its writer, or that writer's next term, may still log it; the log decides between the two (R5).
            let over = self.term(orphan.writer) > orphan.term;
            if !over || self.numbers.contains_key(&orphan.name) {
                return Err(Void::InUse);
            }
        }
        Ok(())
    }
}
