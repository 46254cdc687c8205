//! Forgetting points, pinning them, and taking that back.

use crate::format::event::Event;
use crate::local::Inner;
use mover::{PointChange, PointId, RecoveryPoint, Result};

impl Inner {
    /// See [`mover::Repository::change_points`]. Blocking.
    pub fn change_points(&self, points: &[PointId], change: PointChange) -> Result<()> {
        self.packer()?;
        self.append(|state| {
            let mut by_commit: Vec<(u64, PointId)> = state.points().iter().map(|(id, it)| (it.since, *id)).collect();
            by_commit.sort_unstable();
            let all = by_commit.into_iter().filter_map(|(_, id)| state.recovery_point(id));
            let all: Vec<RecoveryPoint> = all.collect();
            let commits = all.iter().filter(|point| !point.forgotten).map(|point| point.commit_time);
            let newest = commits.chain(state.sessions().values().map(|session| session.time)).max();
            let due = change.due(&all, points, newest, self.world.now())?;
            let event = match change {
                _ if due.is_empty() => return Ok(Vec::new()),
                PointChange::Forget | PointChange::ForgetByRules => Event::Forgotten(due),
                PointChange::Unforget => Event::Unforgotten(due),
                PointChange::Pin => Event::Pinned(due),
                PointChange::Unpin => Event::Unpinned(due),
            };
            Ok(vec![event])
        })
        .map(drop)
    }
}
