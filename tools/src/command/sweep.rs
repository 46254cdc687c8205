//! `windlass sweep`

use crate::cli::Sweep;
use crate::context::{Context, Exit};
use crate::job::watched;
use crate::open::{self, Access};
use crate::text::{counted, milliseconds, seconds, size};
use mover::{Progress, Repository as _, Result, SweepOptions, SweepReport};
use serde::Serialize;
use std::sync::Arc;
use std::time::Instant;

/// Field names are a contract.
#[derive(Serialize)]
struct Summary {
    dry_run: bool,
    points_final: u64,
    bytes_live: u64,
    bytes_dead: u64,
    bytes_reclaimed: u64,
    bytes_repacked: u64,
    bytes_waiting: u64,
    sessions_waited_for: u64,
    packs_deleted: u64,
    counting_ms: u64,
    first_check_ms: u64,
    second_check_ms: u64,
    duration_ms: u64,
}

pub async fn run(context: &Context, arguments: &Sweep) -> Result<Exit> {
    let began = Instant::now();
    let place = &arguments.place;
    let options = SweepOptions {
        dry_run: arguments.dry_run,
        repack_percent: arguments.repack_from,
        rate: arguments.rate,
        fence_older_s: arguments.fence_older.map(|age| age.as_secs()),
    };
    let wait = place.patience.wait();
    let access = if arguments.dry_run { Access::Read } else { Access::Write };
    let attempt = async || {
        let repository = open::patiently(context, &place.repository, access, &place.patience).await?;
        let progress = Arc::new(Progress::default());
        let job = context.stop.race(repository.sweep(options, progress.clone()));
        let made = watched(&context.out, &progress, job).await;
        let closed = open::close(repository).await;
        made.and_then(|report| closed.map(|()| report))
    };
    let report = wait.retry(&context.out, &context.stop, attempt).await?;
    let SweepReport { points_final, bytes_live, bytes_dead, bytes_reclaimed, bytes_repacked, .. } = report;
    let SweepReport { bytes_waiting, sessions_waited_for, packs_deleted, milliseconds: times, .. } = report;
    let summary = Summary {
        dry_run: arguments.dry_run,
        points_final,
        bytes_live,
        bytes_dead,
        bytes_reclaimed,
        bytes_repacked,
        bytes_waiting,
        sessions_waited_for,
        packs_deleted,
        counting_ms: times.counting,
        first_check_ms: times.first_check,
        second_check_ms: times.second_check,
        duration_ms: milliseconds(began.elapsed()),
    };
    context.out.summary(&summary, || {
        let out = &context.out;
        let would = if arguments.dry_run { "would be " } else { "" };
        out.line(&format!(
            "{} {would}reclaimed in {}, {} {would}repacked, {} {would}made final",
            size(bytes_reclaimed),
            counted(packs_deleted, "pack"),
            size(bytes_repacked),
            counted(points_final, "point")
        ));
        let left = format!("{} needed, {} dead in packs that stay", size(bytes_live), size(bytes_dead));
        out.line(&format!("{left}, {}", seconds(began.elapsed())));
        if bytes_waiting > 0 {
            out.line(&format!(
                "{} more can be reclaimed after the end of {}: sweep again then, or end sessions of dead processes with --fence-older",
                size(bytes_waiting),
                counted(sessions_waited_for, "session")
            ));
        }
    });
    Ok(Exit::Done)
}
