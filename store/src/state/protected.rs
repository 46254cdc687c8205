//! What a sweep must leave alone (R6), said once: for who plans a sweep, and for everybody who validates its records.

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

    /// Points that became roots after record `marked`, or that a session opened since then needs: whoever marked what is
    /// needed at that record must mark these too.
    pub fn roots_since(&self, marked: u64) -> BTreeSet<PointId> {
        let rooted = self.points.iter().filter(|(_, it)| it.rooted > marked).map(|(id, _)| *id);
        let pinned =
            self.sessions.values().filter(|it| it.since > marked).flat_map(|it| it.opened.pins.iter().copied());
        rooted.chain(pinned).collect()
    }

    /// Whether a pack is old enough to be doomed by somebody who marked at record `marked`: no open session may have filled
    /// it, or rely on it without the log's knowledge.
    pub fn is_settled(&self, pack: &Pack, marked: u64) -> bool {
        pack.since < self.oldest_session() && pack.since <= marked
    }

    /// Whether no session is left from before record `doomed`: one may still read there, or have been told "have".
    pub fn has_outlived(&self, doomed: u64) -> bool {
        doomed <= self.oldest_session()
    }
}
