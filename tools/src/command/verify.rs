//! `windlass verify`

use crate::cli::Verify;
use crate::context::{Context, Exit};
use crate::job::watched;
use crate::open::{self, Access, Opened};
use crate::output::table;
use crate::text::{counted, escaped, seconds, size};
use mover::event::{JobEvent, JobSummary, VerifySummary};
use mover::{
    Depth, Error, PointFilter, Progress, RepairReport, Repository as _, Result, VerifyOptions, VerifyReport,
    repair_all, select,
};
use std::sync::Arc;
use std::time::Instant;

pub async fn run(context: &Context, arguments: &Verify) -> Result<Exit> {
    let began = Instant::now();
    let place = &arguments.place;
    let access = if arguments.repair { Access::Write } else { Access::Read };
    let repository = open::patiently(context, &place.repository, access, &place.patience).await?;
    let progress = Arc::new(Progress::default());
    let job = context.stop.race(verify_and_repair(context, &repository, arguments, progress.clone()));
    let made = watched(&context.out, &progress, job).await;
    let closed = open::close(repository).await;
    let (report, repaired) = made?;
    closed?;
    let summary = VerifySummary::of(&report, &repaired, began.elapsed());
    print(context, &summary, &repaired, began);
    context.out.event(&JobEvent::Summary(JobSummary::Verify(summary)));
    if report.errors.is_empty() {
        return Ok(Exit::Done);
    }
    let errors = report.errors.len() as u64;
    if report.errors.iter().all(|error| error.unread) {
        let failed = format!("{}: {} could not be read", arguments.place.repository, counted(errors, "place"));
        let failed = Error::store_io(failed).hint("no damage was found; check the storage, then verify again");
        context.out.failure(&failed, false);
        return Ok(Exit::Failed);
    }
    let all_whole = arguments.point.is_empty() && report.errors.iter().all(|error| error.point.is_none());
    let hint = if all_whole {
        "all points are complete: what is damaged was replaced, or no point needs it; `windlass sweep` removes it"
    } else {
        "repair it from another copy with --repair --also-from, or back up the machine again; until then restore with --also-from"
    };
    let found = Error::integrity(format!("{} has {}", arguments.place.repository, counted(errors, "error"))).hint(hint);
    context.out.failure(&found, false);
    Ok(Exit::Corrupt)
}

/// Verifies; with `--repair` also brings what is damaged from the other copy, and says what is wrong after that.
async fn verify_and_repair(
    context: &Context,
    repository: &Opened,
    arguments: &Verify,
    progress: Arc<Progress>,
) -> Result<(VerifyReport, RepairReport)> {
    let mut report = verify(repository, arguments, progress.clone()).await?;
    let Some(from) = arguments.also_from.as_ref().filter(|_| arguments.repair && !report.errors.is_empty()) else {
        return Ok((report, RepairReport::default()));
    };
    let from = open::patiently(context, from, Access::Read, &arguments.place.patience).await?;
    let made = match options(repository, arguments, Depth::Structure).await {
        Ok(options) => repair_all(repository, &from, &options, &mut report, &context.world, progress).await,
        Err(error) => Err(error),
    };
    open::close(from).await?;
    made.map(|repaired| (report, repaired))
}

async fn verify(repository: &Opened, arguments: &Verify, progress: Arc<Progress>) -> Result<VerifyReport> {
    let depth = match (arguments.decode, arguments.read_data) {
        (true, _) => Depth::Decode,
        (false, Some(0)) => Depth::Structure,
        (false, Some(percent)) => Depth::ReadData { percent },
        // A repository is repaired when all of it is sound, and most rot is in bytes that structure does not touch.
        (false, None) if arguments.repair => Depth::ReadData { percent: 100 },
        (false, None) => Depth::Structure,
    };
    repository.verify(options(repository, arguments, depth).await?, progress).await
}

async fn options(repository: &Opened, arguments: &Verify, depth: Depth) -> Result<VerifyOptions> {
    let mut points = Vec::new();
    if !arguments.point.is_empty() {
        let all = repository.list(&PointFilter::default()).await?;
        for selector in &arguments.point {
            points.push(select(&all, selector)?.id);
        }
    }
    Ok(VerifyOptions { depth, points, outdated_after: arguments.outdated_after, rate: arguments.rate })
}

fn print(context: &Context, summary: &VerifySummary, repaired: &RepairReport, began: Instant) {
    if !summary.errors.is_empty() {
        let mut rows = table(&["POINT", "DISK", "OFFSET", "CHUNK", "PACK", "WHAT"], &["OFFSET"]);
        for error in &summary.errors {
            let head = |text: &Option<String>| text.as_ref().map_or("-".into(), |text| text.chars().take(12).collect());
            rows.add_row([
                head(&error.point),
                error.disk.clone().unwrap_or("-".into()),
                error.offset.map_or("-".into(), |offset| offset.to_string()),
                head(&error.chunk),
                head(&error.pack),
                escaped(&error.what),
            ]);
        }
        context.out.table(&rows);
    }
    if repaired.chunks > 0 {
        context.out.line(&format!("repaired {}, {}", counted(repaired.chunks, "chunk"), size(repaired.bytes)));
    }
    if repaired.left > 0 {
        context.out.line(&format!(
            "not repaired, because the other copy does not have them: {}",
            counted(repaired.left, "chunk")
        ));
    }
    if summary.packs_skipped > 0 {
        let skipped = counted(summary.packs_skipped, "pack");
        context.out.line(&format!("not read again, because found sound a short time ago: {skipped}"));
    }
    if context.out.shows_progress() {
        context.out.line(&format!(
            "verified {}, {}, {} read, {}, {}",
            counted(summary.points, "point"),
            counted(summary.chunks, "chunk"),
            size(summary.bytes_read),
            counted(summary.errors.len() as u64, "error"),
            seconds(began.elapsed()),
        ));
    }
}
