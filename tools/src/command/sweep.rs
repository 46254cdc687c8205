//! `windlass sweep`

use crate::cli::Sweep;
use crate::context::{Context, Exit};
use crate::job::watched;
use crate::open::{self, Access};
use crate::text::{counted, seconds, size};
use mover::event::{JobSummary, SweepSummary};
use mover::{Progress, Repository as _, Result, SweepOptions};
use std::sync::Arc;
use std::time::Instant;

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
    let report = wait.retry(&context.stop, |busy| context.out.waits_for(busy), attempt).await?;
    let summary = SweepSummary::of(arguments.dry_run, &report, began.elapsed());
    context.out.summary(JobSummary::Sweep(summary), || {
        let out = &context.out;
        let would = if arguments.dry_run { "would be " } else { "" };
        out.line(&format!(
            "{} {would}reclaimed in {}, {} {would}repacked, {} {would}made final",
            size(report.bytes_reclaimed),
            counted(report.packs_deleted, "pack"),
            size(report.bytes_repacked),
            counted(report.points_final, "point")
        ));
        let left = format!("{} needed, {} dead in packs that stay", size(report.bytes_live), size(report.bytes_dead));
        out.line(&format!("{left}, {}", seconds(began.elapsed())));
        if report.bytes_waiting > 0 {
            out.line(&format!(
                "{} more can be reclaimed after the end of {}: sweep again then, or end sessions of dead processes with --fence-older",
                size(report.bytes_waiting),
                counted(report.sessions_waited_for, "session")
            ));
        }
    });
    Ok(Exit::Done)
}
