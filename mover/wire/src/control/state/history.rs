//! Jobs that are over, and for how long the node still knows them.

use super::super::job::Event;
use super::{Entry, RESULTS_BYTES_MAX, RESULTS_MAX, Stage, State};
use mover::{JobId, Name};
use std::collections::BTreeMap;
use tokio::time::Instant;

impl State {
    /// Ends a job. Then others are forgotten that ended long ago, if there are too many.
    pub(super) fn end(&mut self, id: JobId, end: Event, now: Instant) {
        let Some(entry) = self.jobs.get_mut(&id) else { return };
        entry.stage = Stage::Over(end, now);
        entry.job = None;
        while let Some(oldest) = self.too_many() {
            self.jobs.remove(&oldest);
        }
    }

    /// The oldest job of the proxy that has the most, where there are too many: so no proxy makes the node forget the jobs
    /// of others.
    fn too_many(&self) -> Option<JobId> {
        let over = || self.jobs.iter().filter(|(_, entry)| entry.is_over());
        let mut of: BTreeMap<&Name, (usize, usize)> = BTreeMap::new();
        for (_, entry) in over() {
            let sum = of.entry(&entry.proxy).or_default();
            *sum = (sum.0 + 1, sum.1 + entry.bytes());
        }
        let (count, bytes) = of.values().fold((0, 0), |all, it| (all.0 + it.0, all.1 + it.1));
        let most = match (count > RESULTS_MAX, bytes > RESULTS_BYTES_MAX) {
            (false, false) => return None,
            (_, true) => of.iter().max_by_key(|(_, it)| it.1),
            (true, false) => of.iter().max_by_key(|(_, it)| it.0),
        };
        let (proxy, _) = most?;
        over().filter(|(_, entry)| entry.proxy == **proxy).min_by_key(|(_, entry)| entry.number).map(|(id, _)| *id)
    }
}

impl Entry {
    /// What is kept of it beside what is small.
    fn bytes(&self) -> usize {
        let made = match &self.stage {
            Stage::Over(Event::Ended(report), _) => report.body.len(),
            _ => 0,
        };
        made + self.warnings.iter().map(String::len).sum::<usize>()
    }
}
