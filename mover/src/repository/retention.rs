//! Which points rules keep: a pure function over the times that storage nodes have stamped.

use crate::repository::order::{civil, sort_in_order};
use crate::{GroupId, Lineage, RecoveryPoint, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// How many points of a machine to keep. The newest point of an hour, day, ISO week, month or year (UTC) counts for
/// this period; periods without a point do not count. A point is kept when one rule keeps it, so the newest point of a
/// machine is always kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Keep {
    /// Number of newest points.
    pub last: u32,
    /// Number of hours, of each of which the newest point is kept.
    pub hourly: u32,
    /// Number of days, likewise.
    pub daily: u32,
    /// Number of ISO weeks, likewise.
    pub weekly: u32,
    /// Number of months, likewise.
    pub monthly: u32,
    /// Number of years, likewise.
    pub yearly: u32,
}

/// Why a point is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Reason {
    /// One of the newest points; [`Keep::last`] says how many.
    Last,
    /// The newest of an hour.
    Hourly,
    /// The newest of a day.
    Daily,
    /// The newest of a week.
    Weekly,
    /// The newest of a month.
    Monthly,
    /// The newest of a year.
    Yearly,
    /// Pinned by an administrator.
    Pinned,
    /// Protected until a time that has not come.
    Protected,
    /// Another point of its group is kept.
    Group,
}

impl Reason {
    /// Its name, as the option that asks for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Last => "last",
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
            Self::Pinned => "pinned",
            Self::Protected => "protected",
            Self::Group => "group",
        }
    }
}

/// What becomes of a point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The point that was looked at.
    pub point: RecoveryPoint,
    /// Why it is kept; forgotten when there is no reason.
    pub reasons: BTreeSet<Reason>,
}

impl Keep {
    /// True when there is no rule. This must not be taken as a wish to forget everything.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn rules(&self) -> [(Reason, u32); 6] {
        [
            (Reason::Last, self.last),
            (Reason::Hourly, self.hourly),
            (Reason::Daily, self.daily),
            (Reason::Weekly, self.weekly),
            (Reason::Monthly, self.monthly),
            (Reason::Yearly, self.yearly),
        ]
    }
}

/// The time that rules go by: the time that an administrator has set, or else the time of the first commit. If the
/// first commit of a copy seems to be later than the copy itself, the time of the copy is used.
pub fn retention_time(point: &RecoveryPoint) -> Timestamp {
    point.set_time().unwrap_or(point.origin.1.min(point.commit_time))
}

/// What `keep` makes of `points` that are not forgotten, in their order. Each lineage (a machine of one owner, made in
/// one repository) is examined by itself. So machines of the same name at two sites do not push out each other's
/// points, and an owner who makes useless points cannot push out the points of others (R21). A group, which may have
/// points of several machines, is kept as a whole.
///
/// The newest point is the one that was made last, even if clocks were wrong (R25). `now` only tells whether a point is
/// still protected.
pub fn retain(points: &[RecoveryPoint], keep: &Keep, now: Timestamp) -> Vec<Verdict> {
    let mut reasons: Vec<BTreeSet<Reason>> = points.iter().map(|point| own_reasons(point, now)).collect();
    let mut machines: BTreeMap<Lineage, Vec<usize>> = BTreeMap::new();
    for (at, point) in points.iter().enumerate() {
        machines.entry(point.lineage()).or_default().push(at);
    }
    for of_machine in machines.values_mut() {
        sort_in_order(of_machine, |at| &points[*at]);
        of_machine.reverse();
        for (reason, most) in keep.rules() {
            let mut periods = BTreeSet::new();
            for at in of_machine.iter().copied() {
                if periods.len() as u64 == u64::from(most) {
                    break;
                }
                if periods.insert(period(reason, retention_time(&points[at]), at)) {
                    reasons[at].insert(reason);
                }
            }
        }
    }
    let kept: BTreeSet<GroupId> =
        points.iter().zip(&reasons).filter(|(_, why)| !why.is_empty()).filter_map(|(point, _)| point.group).collect();
    let with_group = |(point, mut reasons): (&RecoveryPoint, BTreeSet<Reason>)| {
        if reasons.is_empty() && point.group.is_some_and(|group| kept.contains(&group)) {
            reasons.insert(Reason::Group);
        }
        Verdict { point: point.clone(), reasons }
    };
    points.iter().zip(reasons).map(with_group).collect()
}

fn own_reasons(point: &RecoveryPoint, now: Timestamp) -> BTreeSet<Reason> {
    let pinned = point.pinned.then_some(Reason::Pinned);
    let protected = (point.protected_until > now).then_some(Reason::Protected);
    pinned.into_iter().chain(protected).collect()
}

/// A number of the period in which `time` lies. For [`Reason::Last`] each point is a period of its own.
fn period(reason: Reason, time: Timestamp, at: usize) -> (i64, i64) {
    let civil = civil(time);
    let (year, day) = (i64::from(civil.year()), i64::from(civil.day_of_year()));
    match reason {
        Reason::Hourly => (year, day * 24 + i64::from(civil.hour())),
        Reason::Daily => (year, day),
        Reason::Weekly => {
            let week = civil.date().iso_week_date();
            (week.year().into(), week.week().into())
        }
        Reason::Monthly => (year, civil.month().into()),
        Reason::Yearly => (year, 0),
        Reason::Last | Reason::Pinned | Reason::Protected | Reason::Group => (0, at as i64),
    }
}

#[cfg(test)]
mod tests;
