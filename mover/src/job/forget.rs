//! Forgets points by name or by rules, and groups only as a whole.

use crate::{
    Keep, Machine, PointChange, PointFilter, PointId, RecoveryPoint, Repository, Result, Selector, Verdict, World,
    retain, select,
};
use std::collections::BTreeSet;

/// Which points are forgotten.
#[derive(Debug, Clone, Copy)]
pub enum ForgetWhich<'a> {
    /// These, with their groups.
    Named(&'a [Selector]),
    /// Those that no rule keeps.
    Rules {
        /// The rules.
        keep: &'a Keep,
        /// Only points of this machine, and the other points of their groups.
        machine: Option<&'a Machine>,
        /// True if the rules are applied even when the times in the log put the clock in doubt.
        clock_is_right: bool,
    },
}

/// Decides which points are kept, and forgets the others unless `dry_run`. Gives a verdict for each point that was
/// examined. A change holds at most [`PointChange::POINTS_MAX`] points; when a later change fails, the earlier ones are
/// done.
///
/// # Errors
/// `NotFound` for a point or machine that is not there; `Usage` for a point that cannot be forgotten or a clock in
/// doubt; those of the repository.
pub async fn forget<R: Repository>(
    repository: &R,
    which: ForgetWhich<'_>,
    dry_run: bool,
    world: &World,
) -> Result<Vec<Verdict>> {
    let points = repository.list(&PointFilter::default()).await?;
    let (verdicts, change) = match which {
        ForgetWhich::Named(selectors) => (named(selectors, &points)?, PointChange::Forget),
        ForgetWhich::Rules { keep, machine, clock_is_right } => {
            if let Some(machine) = machine {
                machine.is_there(&points)?;
            }
            let change = if clock_is_right { PointChange::Forget } else { PointChange::ForgetByRules };
            (by_rules(&points, keep, machine, world), change)
        }
    };
    let going = verdicts.iter().filter(|verdict| verdict.reasons.is_empty()).map(|verdict| &verdict.point);
    let newest = points.iter().map(|point| point.commit_time).max();
    for batch in batches(going.collect()) {
        if dry_run {
            change.due(&points, &batch, newest, world.now())?;
        } else {
            repository.change_points(&batch, change).await?;
        }
    }
    Ok(verdicts)
}

fn by_rules(points: &[RecoveryPoint], keep: &Keep, machine: Option<&Machine>, world: &World) -> Vec<Verdict> {
    let of = |verdict: &Verdict| machine.is_none_or(|machine| machine.fits(&verdict.point));
    // Of all points: a group that goes takes points of other machines along.
    let all = retain(points, keep, world.now());
    let going = all.iter().filter(|verdict| of(verdict) && verdict.reasons.is_empty());
    let groups: BTreeSet<_> = going.filter_map(|verdict| verdict.point.group).collect();
    let with_it = |verdict: &Verdict| verdict.point.group.is_some_and(|group| groups.contains(&group));
    all.into_iter().filter(|verdict| of(verdict) || with_it(verdict)).collect()
}

/// The points that are named, with their groups.
fn named(selectors: &[Selector], points: &[RecoveryPoint]) -> Result<Vec<Verdict>> {
    let named = selectors.iter().map(|selector| select(points, selector).map(|point| point.id));
    let named: BTreeSet<PointId> = named.collect::<Result<_>>()?;
    let groups: BTreeSet<_> =
        points.iter().filter(|point| named.contains(&point.id)).filter_map(|point| point.group).collect();
    let goes =
        |point: &&RecoveryPoint| named.contains(&point.id) || point.group.is_some_and(|group| groups.contains(&group));
    let verdict = |point: &RecoveryPoint| Verdict { point: point.clone(), reasons: BTreeSet::new() };
    Ok(points.iter().filter(goes).map(verdict).collect())
}

/// Points that fit into one change, groups whole.
fn batches(mut points: Vec<&RecoveryPoint>) -> Vec<Vec<PointId>> {
    points.sort_by_key(|point| point.group);
    let mut made: Vec<Vec<PointId>> = Vec::new();
    for group in points.chunk_by(|a, b| a.group.is_some() && a.group == b.group) {
        let ids = group.iter().map(|point| point.id);
        match made.last_mut().filter(|batch| batch.len() + group.len() <= PointChange::POINTS_MAX) {
            Some(batch) => batch.extend(ids),
            None => made.push(ids.collect()),
        }
    }
    made
}
