//! What a sweep must not delete (R6). Both the planning of a sweep and the validation of its records use these
//! functions.

use super::{Pack, State};
use mover::PointId;
use std::collections::BTreeSet;

impl State {
    /// The record that opened the oldest session that is still open; the highest number there is without any.
    pub fn oldest_session(&self) -> u64 {
        self.sessions.values().map(|session| session.since).min().unwrap_or(u64::MAX)
    }

    /// Whether an open session pins the point.
    pub fn is_pinned(&self, point: &PointId) -> bool {
        self.sessions.values().any(|session| session.opened.pins.contains(point))
    }

    /// Points that became roots after record `marked`, or that a session opened since then needs. A sweep that marked
    /// at that record must mark these too.
    pub fn roots_since(&self, marked: u64) -> BTreeSet<PointId> {
        let rooted = self.points.iter().filter(|(_, it)| it.rooted > marked).map(|(id, _)| *id);
        let pinned =
            self.sessions.values().filter(|it| it.since > marked).flat_map(|it| it.opened.pins.iter().copied());
        rooted.chain(pinned).collect()
    }

    /// Whether a pack is old enough to be doomed by a sweep that marked at record `marked`. For an older pack it is
    /// certain that no open session has filled it, or relies on it without a sign of that in the log.
    pub fn is_settled(&self, pack: &Pack, marked: u64) -> bool {
        pack.since < self.oldest_session() && pack.since <= marked
    }

    /// Whether all sessions that were open before record `doomed` have ended. Such a session may still read from the
    /// pack, or may have had the answer "have" because of it.
    pub fn has_outlived(&self, doomed: u64) -> bool {
        doomed <= self.oldest_session()
    }
}
