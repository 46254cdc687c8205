//! What the simulation remembers about what was promised: nothing that crashes can take it away.

use mover::{PointId, RecoveryPoint, RepositoryId};
use std::collections::{BTreeMap, BTreeSet};
use windlass_tests::fake::Image;

#[derive(Default)]
pub struct Journal {
    /// What the disk held whenever a point of this id was tried: that it may be.
    pub tried: BTreeMap<PointId, Vec<Image>>,
    /// The try that has not gone well yet.
    pub pending: Option<PointId>,
    /// Points as each repository acknowledged them.
    pub acknowledged: BTreeMap<(RepositoryId, PointId), RecoveryPoint>,
    /// Points copied to each repository: the acknowledgement of a copy tells no more.
    pub copied: BTreeSet<(RepositoryId, PointId)>,
    pub jobs: Jobs,
    /// The proxy has made its last backup.
    pub backed_up: bool,
    /// And the administrator has seen everything.
    pub verified: bool,
    /// What must not be.
    pub violations: Vec<String>,
}

/// How jobs ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Jobs {
    pub backups: u64,
    pub copies: u64,
    pub restores: u64,
    /// Those that reclaimed something.
    pub sweeps: u64,
    pub failed: u64,
}

impl Journal {
    pub fn blame(&mut self, what: impl Into<String>) {
        let what = what.into();
        tracing::error!(what, "violation");
        self.violations.push(what);
    }

    /// A repository acknowledged that it has a point: always the same.
    pub fn acknowledge(&mut self, of: RepositoryId, point: &RecoveryPoint) {
        if let Some(before) = self.acknowledged.insert((of, point.id), point.clone())
            && before != *point
        {
            self.blame(format!("{} was acknowledged as {before:?} and then as {point:?}", point.id));
        }
    }

    /// What must be listed by a repository that is asked from now on.
    pub fn promised(&self, of: RepositoryId) -> BTreeSet<PointId> {
        let acknowledged = self.acknowledged.keys();
        acknowledged.chain(&self.copied).filter(|(repository, _)| *repository == of).map(|(_, point)| *point).collect()
    }

    /// A repository is about to forget a point: what is listed of it from here on is another promise.
    pub fn forgets(&mut self, of: RepositoryId, point: PointId) {
        self.acknowledged.remove(&(of, point));
        self.copied.remove(&(of, point));
    }

    /// Looks at what a repository listed, when it had promised so much before it was asked.
    pub fn listed(&mut self, of: RepositoryId, promised: &BTreeSet<PointId>, points: &[RecoveryPoint]) {
        let ids: BTreeSet<PointId> = points.iter().map(|point| point.id).collect();
        if ids.len() != points.len() {
            self.blame(format!("a point is listed twice: {points:?}"));
        }
        for lost in promised.difference(&ids) {
            self.blame(format!("{lost} was acknowledged and is not listed"));
        }
        for point in points {
            if !self.tried.contains_key(&point.id) {
                self.blame(format!("{} is listed and was never tried", point.id));
            }
            // From now on it is promised as it is listed.
            self.acknowledge(of, point);
        }
    }

    /// Looks at a disk that was restored.
    pub fn restored(&mut self, point: PointId, image: &Image) {
        self.jobs.restores += 1;
        if !self.tried.get(&point).is_some_and(|tried| tried.contains(image)) {
            self.blame(format!("{point} was restored and is not what the disk held"));
        }
    }
}
