//! Forgetting and sweeping in memory.

use super::state::State;
use crate::{PointChange, PointId, Result, SessionId, SweepOptions, SweepReport, Timestamp};
use chunker::{ChunkId, DomainKeys};
use std::collections::{BTreeSet, HashSet};

impl State {
    pub fn change_points(&mut self, ids: &[PointId], change: PointChange, now: Timestamp) -> Result<()> {
        let newest = self.points.iter().map(|point| point.commit_time).max();
        let due = change.due(&self.points, ids, newest, now)?;
        if due.is_empty() {
            return Ok(());
        }
        self.append();
        for point in self.points.iter_mut().filter(|point| due.contains(&point.id)) {
            match change {
                PointChange::Forget | PointChange::ForgetByRules => point.forgotten = true,
                PointChange::Unforget => point.forgotten = false,
                PointChange::Pin => point.pinned = true,
                PointChange::Unpin => point.pinned = false,
            }
        }
        Ok(())
    }

    /// Dooms the chunks that cannot be reached and were added before the oldest open session began (R6). Drops the
    /// chunks that are doomed and still cannot be reached, once all sessions that were open when they were doomed have
    /// ended.
    pub fn sweep(&mut self, keys: &DomainKeys, options: SweepOptions) -> Result<SweepReport> {
        let open: BTreeSet<SessionId> = self.sessions.iter().filter(|(_, it)| !it.ended).map(|(id, _)| *id).collect();
        let pinned: HashSet<PointId> = open.iter().flat_map(|id| self.sessions[id].pins.clone()).collect();
        let (left, gone): (Vec<_>, Vec<_>) =
            self.points.iter().cloned().partition(|point| !point.forgotten || pinned.contains(&point.id));
        let mut reachable = HashSet::new();
        for point in &left {
            reachable.insert(point.manifest);
            for root in self.manifest(point.id, keys)?.roots() {
                reachable.extend(self.below(root, keys).into_iter().map(|(id, _)| id));
            }
        }
        let oldest = open.iter().map(|id| self.sessions[id].opened).min().unwrap_or(u64::MAX);
        let dead = self.chunks.iter().filter(|(id, held)| !reachable.contains(id) && held.added < oldest);
        let dead: Vec<ChunkId> = dead.map(|(id, _)| *id).collect();
        let mut doomed = self.doomed.clone();
        for id in dead {
            doomed.entry(id).or_insert_with(|| open.clone());
        }
        let free = |(id, waits): (&ChunkId, &BTreeSet<_>)| {
            (!reachable.contains(id) && waits.is_disjoint(&open)).then_some(*id)
        };
        let dropped: Vec<ChunkId> = doomed.iter().filter_map(free).collect();
        let bytes = |id: &ChunkId| self.chunks.get(id).map_or(0, |held| held.blob.bytes().len() as u64);
        let mut report = SweepReport {
            points_final: gone.len() as u64,
            bytes_reclaimed: dropped.iter().map(bytes).sum(),
            sessions_waited_for: doomed
                .values()
                .flatten()
                .filter(|id| open.contains(*id))
                .collect::<BTreeSet<_>>()
                .len() as u64,
            ..SweepReport::default()
        };
        if !options.dry_run {
            self.append();
            self.losses += 1;
            for point in &gone {
                let newest = self.given_up.entry((point.machine, point.origin.0)).or_default();
                *newest = (*newest).max(point.origin.1);
            }
            self.points = left;
            self.doomed = doomed;
            for id in &dropped {
                self.doomed.remove(id);
                self.chunks.remove(id);
            }
        }
        for (id, held) in &self.chunks {
            let bytes = held.blob.bytes().len() as u64;
            match self.doomed.contains_key(id) {
                true => report.bytes_waiting += bytes,
                false if reachable.contains(id) => report.bytes_live += bytes,
                false => report.bytes_dead += bytes,
            }
        }
        Ok(report)
    }
}
