//! Whether points may be forgotten or pinned: the same for every repository.

use crate::{Error, ErrorKind, PointChange, PointId, RecoveryPoint, Result, Timestamp, clock_doubt};
use std::collections::BTreeSet;

impl PointChange {
    /// Those of `asked` for which the change is something new, once it is seen that all of it may be. `points` are all
    /// that are not final, as they were committed, `newest` the last time that the repository knows.
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
            return Err(Error::usage(format!("more than {} points at once", Self::POINTS_MAX)));
        }
        if self == Self::ForgetByRules
            && let Some(doubt) = clock_doubt(points, newest, now)
        {
            return Err(Error::usage(doubt).hint(
                "put the clock right, or say --clock-is-right; points that are named can be forgotten all the same",
            ));
        }
        let named: Vec<&RecoveryPoint> = points.iter().filter(|point| asked.contains(&point.id)).collect();
        if let Some(id) = asked.iter().find(|id| named.iter().all(|point| point.id != **id)) {
            return Err(Error::not_found(format!("there is no point {id}"))
                .hint("`windlass points --forgotten` lists those that can come back: a sweep makes it final"));
        }
        if self == Self::Pin
            && let Some(point) = named.iter().find(|point| point.forgotten)
        {
            return Err(Error::usage(format!("point {} is forgotten", point.id))
                .hint(format!("`windlass unforget {}` brings it back, then it can be pinned", point.id)));
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
                let what = format!("point {} belongs to a group with one of them", left.id);
                return Err(Error::new(ErrorKind::GroupIncomplete, what)
                    .hint("a group is kept or forgotten whole: name it too"));
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
        return Err(Error::usage(format!("point {id} is pinned")).hint(format!("`windlass unpin {id}` lets it go")));
    }
    if point.protected_until > now {
        return Err(Error::usage(format!("point {id} is protected")).hint("`windlass points --json` tells until when"));
    }
    Ok(())
}
