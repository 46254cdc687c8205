//! Which points belong together, and whether points may be committed, forgotten or pinned. Every repository uses these
//! rules.

use crate::{
    Begin, Error, ErrorKind, Holder, MachineId, OwnerId, PointChange, PointDraft, PointId, RecoveryPoint, RepositoryId,
    Result, Timestamp, clock_doubt,
};
use std::collections::BTreeSet;

/// The line in which one point continues another: the points of one machine of one owner, backed up into one
/// repository. The machine's name is not part of it, because two sites may both have a `dc01`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lineage {
    /// The repository of the first commit.
    pub origin: RepositoryId,
    /// The owner of the points; zero for the site.
    pub owner: OwnerId,
    /// Id of the machine.
    pub machine: MachineId,
}

impl RecoveryPoint {
    /// The lineage that the point belongs to.
    pub const fn lineage(&self) -> Lineage {
        Lineage { origin: self.origin.0, owner: self.owner, machine: self.machine }
    }

    /// Whether the point was made in this repository. False for a point that was copied in, also if it was made here
    /// once, swept, and copied back: its place in the log is then that of the copy.
    pub fn was_made_in(&self, repository: RepositoryId) -> bool {
        self.origin == (repository, self.commit_time)
    }

    /// Whether a backup by `owner` may build on the point: on its map, its checkpoints and the position of its audit.
    /// Nothing in a point that another owner made is trusted.
    pub fn is_base_for(&self, owner: OwnerId, repository: RepositoryId) -> bool {
        self.was_made_in(repository) && self.owner == owner && self.stamped == owner
    }
}

impl Begin {
    /// The owner of the points that the session makes; zero for the site.
    pub fn owner(&self) -> OwnerId {
        self.holder.as_ref().map(Holder::owner_id).unwrap_or_default()
    }

    /// Whether the session may commit `drafts` in the repository `here`. `there` are all points with the drafts' ids or
    /// of their machines, forgotten ones too. It is called right before the commit, with the state that the commit will
    /// follow.
    ///
    /// # Errors
    /// `NotAuthorised` for a point or machine of another owner, a forgotten point, a copy, or a parent that the session
    /// did not begin with; `Usage` for disks whose time is in the future.
    pub fn may_commit(
        &self,
        drafts: &[PointDraft],
        there: &[RecoveryPoint],
        here: RepositoryId,
        now: Timestamp,
    ) -> Result<()> {
        for draft in drafts.iter().filter(|draft| draft.origin.is_none()) {
            let shown = draft.manifest.snapshot_time;
            if shown.0.saturating_sub(now.0) > AHEAD_MAX_NS && there.iter().all(|it| it.id != draft.manifest.point) {
                return Err(Error::usage(format!(
                    "the disks' time, {}, is more than an hour ahead of the repository's clock, {}",
                    utc(shown),
                    utc(now)
                ))
                .hint(
                    "find out which clock is wrong, the source's or the repository's, correct it, and run the backup again",
                ));
            }
        }
        let owner = self.owner();
        if owner == OwnerId::default() {
            return Ok(());
        }
        let refused = |what: String| Error::new(ErrorKind::NotAuthorised, what);
        for draft in drafts {
            let manifest = &draft.manifest;
            let (point, machine) = (manifest.point, manifest.machine);
            if draft.origin.is_some() {
                return Err(refused("only an administrator may commit copies of points".into()));
            }
            if let Some(same) = there.iter().find(|it| it.id == point) {
                if same.owner != owner {
                    return Err(refused(format!("point {point} belongs to another owner")));
                }
                if same.forgotten {
                    return Err(refused(format!("point {point} was forgotten"))
                        .hint(format!("an administrator can bring it back with `windlass unforget {point}`")));
                }
                continue;
            }
            let made = || there.iter().filter(|it| it.machine == machine && it.was_made_in(here));
            if made().next().is_some() && made().all(|it| it.owner != owner) {
                return Err(refused(format!("machine {machine} belongs to another owner"))
                    .hint("an administrator can move it with `windlass machine move MACHINE --to-owner NAME`"));
            }
            if let Some(parent) = manifest.parent.filter(|parent| !self.parents.contains(parent)) {
                return Err(refused(format!("point {parent} is not a parent that the session began with")));
            }
        }
        Ok(())
    }
}

fn utc(time: Timestamp) -> String {
    let shown = jiff::Timestamp::from_nanosecond(time.0.into()).unwrap_or_default();
    format!("{shown:.0}")
}

impl PointChange {
    /// Checks that the whole change is allowed, and gives those of `asked` that it would really change. `points` are
    /// all points that are not final, in the order of their commits; `newest` is the last time that the repository
    /// knows.
    ///
    /// # Errors
    /// Those of [`crate::Repository::change_points`].
    pub fn due(
        self,
        points: &[RecoveryPoint],
        asked: &[PointId],
        newest: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<Vec<PointId>> {
        let asked: BTreeSet<PointId> = asked.iter().copied().collect();
        if asked.len() > Self::POINTS_MAX {
            return Err(Error::usage(format!("more than {} points in one change", Self::POINTS_MAX)));
        }
        if self == Self::ForgetByRules
            && let Some(doubt) = clock_doubt(points, newest, now)
        {
            return Err(Error::usage(doubt)
                .hint("correct the clock, or use --clock-is-right; points can still be forgotten by name"));
        }
        let named: Vec<&RecoveryPoint> = points.iter().filter(|point| asked.contains(&point.id)).collect();
        if let Some(id) = asked.iter().find(|id| named.iter().all(|point| point.id != **id)) {
            return Err(Error::not_found(format!("there is no point {id}"))
                .hint("`windlass points` lists all points, `windlass points --forgotten` those that can still be brought back"));
        }
        if self == Self::Pin
            && let Some(point) = named.iter().find(|point| point.forgotten)
        {
            return Err(Error::usage(format!("point {} is forgotten", point.id))
                .hint(format!("bring it back with `windlass unforget {}`, then pin it", point.id)));
        }
        let due: Vec<&RecoveryPoint> = named.iter().filter(|point| self.is_due(point)).copied().collect();
        if self.forgets() {
            due.iter().try_for_each(|point| may_go(point, now))?;
        }
        if self.forgets() || self == Self::Unforget {
            let groups: BTreeSet<_> = named.iter().filter_map(|point| point.group).collect();
            let in_them = |point: &&RecoveryPoint| point.group.is_some_and(|group| groups.contains(&group));
            let left = points.iter().filter(in_them).find(|it| !asked.contains(&it.id) && self.is_due(it));
            if let Some(left) = left {
                let what = format!("point {} belongs to the same group as one of these points", left.id);
                return Err(Error::new(ErrorKind::GroupIncomplete, what)
                    .hint("a group is kept or forgotten as a whole: name this point too"));
            }
        }
        Ok(due.into_iter().map(|point| point.id).collect())
    }

    const fn forgets(self) -> bool {
        matches!(self, Self::Forget | Self::ForgetByRules)
    }

    const fn is_due(self, point: &RecoveryPoint) -> bool {
        match self {
            Self::Forget | Self::ForgetByRules => !point.forgotten,
            Self::Unforget => point.forgotten,
            Self::Pin => !point.pinned,
            Self::Unpin => point.pinned,
        }
    }
}

fn may_go(point: &RecoveryPoint, now: Timestamp) -> Result<()> {
    let id = point.id;
    if point.pinned {
        return Err(Error::usage(format!("point {id} is pinned"))
            .hint(format!("`windlass unpin {id}` allows it to be forgotten")));
    }
    if point.protected_until > now {
        return Err(Error::usage(format!("point {id} is protected")).hint("`windlass points --json` shows until when"));
    }
    Ok(())
}

/// How far the clock of a source may be ahead of the repository's.
const AHEAD_MAX_NS: i64 = 3600 * 1_000_000_000;
