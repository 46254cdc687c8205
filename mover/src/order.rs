//! The order of a machine's points is the order of their commits (R25); times that contradict it.

use crate::{RecoveryPoint, Timestamp};

/// Points of one lineage in the order of their commits, the oldest first. Copies may have come in any order: each goes by the
/// number of its record at its origin. Where an earlier version did not keep that, times must do.
pub fn in_order(mut points: Vec<&RecoveryPoint>) -> Vec<&RecoveryPoint> {
    sort_in_order(&mut points, |point| point);
    points
}

/// The same of whatever `point` finds the point of.
pub(crate) fn sort_in_order<'a, T>(items: &mut [T], point: impl Fn(&T) -> &'a RecoveryPoint) {
    if items.iter().all(|item| point(item).number > 0) {
        items.sort_by_key(|item| point(item).number);
    } else {
        items.sort_by_key(|item| (point(item).origin.1, point(item).id));
    }
}

/// Points of one lineage, in the order of their commits, whose time cannot be right, with what it contradicts: it has not
/// come yet, or lies on the wrong side of that of others. Of the latter as few as possible are named, so that one clock that
/// was wrong once puts no doubt on the others: those that are left when a longest row of times that never go back is taken
/// away (Schensted, 1961).
pub fn suspect_times<'a>(points: &[&'a RecoveryPoint], now: Timestamp) -> Vec<(&'a RecoveryPoint, String)> {
    let future = |point: &RecoveryPoint| ahead(point.time(), now) || ahead(point.stamped_time(), now);
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut come: Vec<usize> = Vec::new();
    for (at, point) in points.iter().enumerate() {
        if future(point) { found.push((at, "its time is in the future".into())) } else { come.push(at) }
    }
    let kept = longest_row(&come, |at| points[at].time());
    for at in come.iter().copied().filter(|at| kept.binary_search(at).is_err()) {
        let before = kept.iter().rfind(|other| **other < at).map(|other| points[*other]);
        let after = kept.iter().find(|other| **other > at).map(|other| points[*other]);
        let why = match (before, after) {
            (Some(before), _) if ahead(before.time(), points[at].time()) => {
                format!("it was made after point {}, but its time is earlier", before.id)
            }
            (_, Some(after)) if ahead(points[at].time(), after.time()) => {
                format!("it was made before point {}, but its time is later", after.id)
            }
            // Clocks that differ by less than a minute are put right all the time.
            _ => continue,
        };
        found.push((at, why));
    }
    found.sort_by_key(|(at, _)| *at);
    found.into_iter().map(|(at, why)| (points[at], why)).collect()
}

/// Whether `time` lies after `other` by more than clocks may differ.
fn ahead(time: Timestamp, other: Timestamp) -> bool {
    time.0.saturating_sub(other.0) > TOLERANCE_NS
}

/// The longest part of `all` whose times never go back.
fn longest_row(all: &[usize], time: impl Fn(usize) -> Timestamp) -> Vec<usize> {
    // Of each length the row that ends earliest, by its last member; and whom each member follows.
    let mut ends: Vec<usize> = Vec::new();
    let mut follows: Vec<Option<usize>> = Vec::with_capacity(all.len());
    for (index, at) in all.iter().enumerate() {
        let length = ends.partition_point(|end| time(all[*end]) <= time(*at));
        follows.push(length.checked_sub(1).map(|before| ends[before]));
        match ends.get_mut(length) {
            Some(end) => *end = index,
            None => ends.push(index),
        }
    }
    let mut row = Vec::new();
    let mut next = ends.last().copied();
    while let Some(index) = next {
        row.push(all[index]);
        next = follows[index];
    }
    row.reverse();
    row
}

/// Clocks of proxies and nodes differ a little.
const TOLERANCE_NS: i64 = 60 * 1_000_000_000;

#[cfg(test)]
mod tests;
