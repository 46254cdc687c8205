//! Promises about whole jobs: each is so many times as fast as the best peer, or close to what the machine can do.

use crate::judge::{Bound, Check, Share};
use crate::report::{BITMAP, BORG, COPY, QUIC, RAW, RESTIC, Report, Step, TRUSTING};

/// Every promise with what was measured.
pub fn promises(report: &Report) -> Vec<Check> {
    let stored = |step, tool| report.stored(step, tool).map_or(f64::NAN, |it| it as f64);
    let smaller = |step| stored(step, RESTIC).min(stored(step, BORG));
    let job = |what, step, tool, times, at_least| Check {
        what,
        value: faster(report, step, tool),
        bound: Bound::AtLeast(times),
        share: share(report, step, tool, at_least),
    };
    let full = report.wall(Step::Full, RAW).unwrap_or(f64::NAN);
    let copy = |what, tool, at_most, at_least| Check {
        what,
        value: report.wall(Step::Copy, tool).unwrap_or(f64::NAN) / full,
        bound: Bound::AtMost(at_most),
        share: share(report, Step::Copy, tool, at_least),
    };
    let other = |what, value, bound| Check { what, value, bound, share: None };
    let of_smaller = |step, tool| stored(step, tool) / smaller(step);
    vec![
        job("full backup, times the best peer", Step::Full, RAW, 2.2, LARGE),
        job("increment by bitmap, times", Step::Day2, BITMAP, 15.0, SMALL),
        job("unchanged, read again, times", Step::Rescan, RAW, 5.0, LARGE),
        job("restore, times", Step::Restore, RAW, 2.0, LARGE),
        job("verify --decode, times", Step::Verify, RAW, 2.5, LARGE),
        other("stored day 1, of the smaller peer", of_smaller(Step::Full, RAW), Bound::AtMost(1.09)),
        other("stored both days, of the smaller peer", of_smaller(Step::Day2, BITMAP), Bound::Below(1.0)),
        copy("copy, of a full backup", COPY, 0.45, LARGE),
        copy("copy --trust-source, of a full backup", TRUSTING, 0.15, LARGE),
        job("full backup across QUIC, times", Step::Full, QUIC, 1.8, LARGE),
        job("increment across QUIC, times", Step::Day2, QUIC, 12.0, SMALL),
        job("restore across QUIC, times", Step::Restore, QUIC, 1.6, LARGE),
        other("peak memory, MiB", report.peak_mib(), Bound::AtMost(512.0)),
        other("second machine, of the first's bytes", report.second_share, Bound::Below(0.01)),
    ]
}

/// How many times as fast as the best peer our job is.
fn faster(report: &Report, step: Step, tool: &str) -> f64 {
    match (report.best_peer(step), report.wall(step, tool)) {
        (Some(peer), Some(ours)) => peer / ours,
        _ => f64::NAN,
    }
}

fn share(report: &Report, step: Step, tool: &str, at_least: f64) -> Option<Share> {
    let (limit, wall) = (report.limit(step, tool)?, report.wall(step, tool)?);
    Some(Share { of_limit: limit.seconds / wall, at_least, bound_by: limit.bound_by })
}

/// The share of its limit that a job must reach if it is not faster than its peers. A limit does not include the work
/// between stages: queues, the index, and the last pieces, on which one core works alone. On a quiet machine a full
/// backup reaches about 0.8 of its limit. A job that takes a third longer than that still passes; a job that takes half
/// as long again does not.
const LARGE: f64 = 0.6;
/// The same share for an increment. It is lower, because an increment takes only as long as a few starts of programs,
/// so opening the repository and its index is a larger part of it.
const SMALL: f64 = 0.5;
