//! The order of a machine's points is the order of their commits (R25); times that contradict it.

use crate::{RecoveryPoint, Timestamp};
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// Points of one lineage in the order of their commits, the oldest first. Copies may have come in any order, so points
/// are sorted by the number of their record at their origin. If an earlier version did not keep this number for one of
/// them, they are sorted by the time of their first commit.
pub fn in_order(mut points: Vec<&RecoveryPoint>) -> Vec<&RecoveryPoint> {
    sort_in_order(&mut points, |point| point);
    points
}

/// Sorts `items` in the same order; `point` gives the point of an item.
pub(crate) fn sort_in_order<'a, T>(items: &mut [T], point: impl Fn(&T) -> &'a RecoveryPoint) {
    if items.iter().all(|item| point(item).number > 0) {
        items.sort_by_key(|item| point(item).number);
    } else {
        items.sort_by_key(|item| (point(item).origin.1, point(item).id));
    }
}

/// Those of `points` whose time cannot be right, each with the reason. `points` are of one lineage, in the order of
/// their commits. A time cannot be right if it is in the future, or if it contradicts that order. In the second case as
/// few points as possible are named, so that one clock that was wrong once does not put all other points in doubt: a
/// longest row of points whose times never go back counts as right, and the points outside it are named (Schensted,
/// 1961).
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

pub(super) fn civil(time: Timestamp) -> DateTime {
    let time = jiff::Timestamp::from_nanosecond(time.0.into()).unwrap_or_default();
    TimeZone::UTC.to_datetime(time)
}

/// Why rules should not be applied: the clock contradicts the times of commits. `points` are in the order in which they
/// were committed; `newest` is the last time that the repository's log knows. None when nothing is wrong.
///
/// Forgotten points are not examined, because rules do not examine them either. So the doubt ends when the points with
/// a wrong time are forgotten, or when their time is corrected. A clock that is ahead, and was already ahead before the
/// last commit, is not noticed. The order of points is right then, and rules go by that order.
pub fn clock_doubt(points: &[RecoveryPoint], newest: Option<Timestamp>, now: Timestamp) -> Option<String> {
    let late = points
        .iter()
        .filter(|point| !point.forgotten && point.set_time().is_none())
        .filter(|point| point.commit_time.0.saturating_sub(now.0) > BACK_MAX_NS);
    if let Some(point) = late.max_by_key(|point| point.commit_time) {
        let (id, at) = (point.id, civil(point.commit_time));
        return Some(format!("point {id} was committed at {at} UTC, which is in the future: the clock went back"));
    }
    let mut before: Option<&RecoveryPoint> = None;
    for point in points.iter().filter(|point| !point.forgotten && point.set_time().is_none()) {
        match before {
            Some(first) if first.commit_time.0.saturating_sub(point.commit_time.0) > BACK_MAX_NS => {
                let (at, then) = (civil(point.commit_time), civil(first.commit_time));
                return Some(format!(
                    "point {} was committed at {at} UTC, after point {} at {then} UTC: the clock went back between them, and \
                     rules would take one of them for older than it is",
                    point.id, first.id
                ));
            }
            Some(first) if first.commit_time >= point.commit_time => {}
            _ => before = Some(point),
        }
    }
    let newest = newest?;
    let gap = now.0.saturating_sub(newest.0);
    let at = civil(newest);
    match gap {
        ..NEGATIVE_BACK_MAX_NS => {
            Some(format!("the last record of the log is from {at} UTC, which is in the future: the clock went back"))
        }
        AHEAD_MIN_NS.. => Some(format!(
            "the last record of the log is from {at} UTC, {} ago: perhaps the clock jumped ahead",
            days(gap / DAY_NS)
        )),
        _ => None,
    }
}

fn days(number: i64) -> String {
    format!("{number} day{}", if number == 1 { "" } else { "s" })
}

const DAY_NS: i64 = 24 * 3600 * 1_000_000_000;
/// Clocks that are put right by less than this are not doubted.
const BACK_MAX_NS: i64 = 3600 * 1_000_000_000;
const NEGATIVE_BACK_MAX_NS: i64 = -BACK_MAX_NS;
const AHEAD_MIN_NS: i64 = DAY_NS;

#[cfg(test)]
mod tests;
