//! `windlass forget`

use crate::cli::Forget;
use crate::command::points::named as named_machine;
use crate::context::{Context, Exit};
use crate::open::{self, Access, Opened};
use crate::output::table;
use crate::text::{count, counted, local_time, short, utc_time};
use mover::{
    Keep, PointChange, PointFilter, PointId, Reason, RecoveryPoint, Repository as _, Result, Verdict, qualifiers,
    retain, retention_time, select,
};
use serde::Serialize;
use std::collections::BTreeSet;

/// Field names are a contract.
#[derive(Serialize)]
struct Summary {
    dry_run: bool,
    points: Vec<Decision>,
    points_forgotten: u64,
    points_kept: u64,
}

#[derive(Serialize)]
struct Decision {
    point: String,
    machine: String,
    machine_id: String,
    owner: Option<String>,
    origin_repository: String,
    snapshot_time: String,
    retention_time: String,
    forgotten: bool,
    /// Why it is kept.
    reasons: Vec<&'static str>,
}

pub async fn run(context: &Context, arguments: &Forget) -> Result<Exit> {
    let place = &arguments.place;
    let access = if arguments.dry_run { Access::Read } else { Access::Write };
    let repository = open::patiently(context, &place.repository, access, &place.patience).await?;
    let made = forget(context, arguments, &repository).await;
    let closed = open::close(repository).await;
    let verdicts = made?;
    closed?;
    let forgotten = verdicts.iter().filter(|verdict| verdict.reasons.is_empty()).count() as u64;
    let kept = verdicts.len() as u64 - forgotten;
    context.out.document(&Summary {
        dry_run: arguments.dry_run,
        points: verdicts.iter().map(Decision::from).collect(),
        points_forgotten: forgotten,
        points_kept: kept,
    });
    let mut rows = table(&["POINT", "MACHINE", "TIME", "KEPT BY"], &[]);
    let apart = qualifiers(&verdicts.iter().map(|verdict| &verdict.point).collect::<Vec<_>>());
    for Verdict { point, reasons } in &verdicts {
        let why: Vec<&str> = reasons.iter().map(|reason| reason.as_str()).collect();
        let why = if why.is_empty() { "- (forgotten)".into() } else { why.join(", ") };
        rows.add_row([short(point.id), named_machine(point, &apart), local_time(point.time()), why]);
    }
    if arguments.dry_run || context.out.shows_progress() {
        context.out.table(&rows);
    }
    let (would, tail) = match arguments.dry_run {
        true => ("would be ", ""),
        false => ("", "; until `windlass sweep`, `windlass unforget` can bring forgotten points back"),
    };
    context.out.done(&format!("{} {would}forgotten, {} kept{tail}", counted(forgotten, "point"), count(kept)));
    Ok(Exit::Done)
}

/// What becomes of each point that was looked at, and of whole groups.
async fn forget(context: &Context, arguments: &Forget, repository: &Opened) -> Result<Vec<Verdict>> {
    let points = repository.list(&PointFilter::default()).await?;
    if let Some(machine) = &arguments.machine {
        machine.is_there(&points)?;
    }
    let (verdicts, change) = match arguments.keep() {
        Some(keep) => (by_rules(context, arguments, &points, &keep), by_rules_change(arguments)),
        None => (named(arguments, &points)?, PointChange::Forget),
    };
    let going: Vec<&RecoveryPoint> =
        verdicts.iter().filter(|verdict| verdict.reasons.is_empty()).map(|verdict| &verdict.point).collect();
    let newest = points.iter().map(|point| point.commit_time).max();
    for batch in batches(&going) {
        if arguments.dry_run {
            change.due(&points, &batch, newest, context.world.now())?;
        } else {
            repository.change_points(&batch, change).await?;
        }
    }
    Ok(verdicts)
}

fn by_rules(context: &Context, arguments: &Forget, points: &[RecoveryPoint], keep: &Keep) -> Vec<Verdict> {
    let of = |verdict: &Verdict| arguments.machine.as_ref().is_none_or(|machine| machine.fits(&verdict.point));
    // Of all points: a group that goes takes points of other machines along.
    let all = retain(points, keep, context.world.now());
    let going = all.iter().filter(|verdict| of(verdict) && verdict.reasons.is_empty());
    let groups: BTreeSet<_> = going.filter_map(|verdict| verdict.point.group).collect();
    let with_it = |verdict: &Verdict| verdict.point.group.is_some_and(|group| groups.contains(&group));
    all.into_iter().filter(|verdict| of(verdict) || with_it(verdict)).collect()
}

const fn by_rules_change(arguments: &Forget) -> PointChange {
    if arguments.clock_is_right { PointChange::Forget } else { PointChange::ForgetByRules }
}

/// The points that are named, with their groups.
fn named(arguments: &Forget, points: &[RecoveryPoint]) -> Result<Vec<Verdict>> {
    let mut named: BTreeSet<PointId> = BTreeSet::new();
    for selector in &arguments.point {
        named.insert(select(points, selector)?.id);
    }
    let groups: BTreeSet<_> =
        points.iter().filter(|point| named.contains(&point.id)).filter_map(|point| point.group).collect();
    let goes =
        |point: &&RecoveryPoint| named.contains(&point.id) || point.group.is_some_and(|group| groups.contains(&group));
    let verdict = |point: &RecoveryPoint| Verdict { point: point.clone(), reasons: BTreeSet::new() };
    Ok(points.iter().filter(goes).map(verdict).collect())
}

/// Points that fit into one change, groups whole.
fn batches(points: &[&RecoveryPoint]) -> Vec<Vec<PointId>> {
    let mut sorted = points.to_vec();
    sorted.sort_by_key(|point| point.group);
    let mut made: Vec<Vec<PointId>> = Vec::new();
    for group in sorted.chunk_by(|a, b| a.group.is_some() && a.group == b.group) {
        let ids = group.iter().map(|point| point.id);
        match made.last_mut().filter(|batch| batch.len() + group.len() <= PointChange::POINTS_MAX) {
            Some(batch) => batch.extend(ids),
            None => made.push(ids.collect()),
        }
    }
    made
}

impl From<&Verdict> for Decision {
    fn from(verdict: &Verdict) -> Self {
        let Verdict { point, reasons } = verdict;
        Self {
            point: point.id.to_string(),
            machine: point.machine_name.to_string(),
            machine_id: point.machine.to_string(),
            owner: point.owner_name.as_ref().map(ToString::to_string),
            origin_repository: point.origin.0.to_string(),
            snapshot_time: utc_time(point.snapshot_time),
            retention_time: utc_time(retention_time(point)),
            forgotten: reasons.is_empty(),
            reasons: reasons.iter().copied().map(Reason::as_str).collect(),
        }
    }
}
