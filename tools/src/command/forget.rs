//! `windlass forget`

use crate::cli::Forget;
use crate::command::points::named as named_machine;
use crate::context::{Context, Exit};
use crate::open::{self, Access};
use crate::output::table;
use crate::text::{count, counted, local_time, short, utc_time};
use mover::{ForgetWhich, Reason, Result, Verdict, forget, qualifiers, retention_time};
use serde::Serialize;

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
    let keep = arguments.keep();
    let which = match &keep {
        Some(keep) => {
            ForgetWhich::Rules { keep, machine: arguments.machine.as_ref(), clock_is_right: arguments.clock_is_right }
        }
        None => ForgetWhich::Named(&arguments.point),
    };
    let made = forget(&repository, which, arguments.dry_run, &context.world).await;
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
