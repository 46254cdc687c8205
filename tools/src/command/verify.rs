//! `windlass verify`

use crate::cli::Verify;
use crate::job::watched;
use crate::open::{self, Access, Opened};
use crate::output::table;
use crate::text::{count, escaped, milliseconds, seconds, size};
use crate::windlass::{Context, Exit};
use mover::{
    Depth, Error, PointFilter, Progress, Repository as _, Result, VerifyError, VerifyOptions, VerifyReport, select,
};
use serde::Serialize;
use std::sync::Arc;
use std::time::Instant;

/// Field names are a contract.
#[derive(Serialize)]
struct Summary {
    points: u64,
    chunks: u64,
    bytes_read: u64,
    errors: Vec<Finding>,
    repaired: u64,
    duration_ms: u64,
}

#[derive(Serialize)]
struct Finding {
    point: Option<String>,
    disk: Option<String>,
    offset: Option<u64>,
    chunk: Option<String>,
    pack: Option<String>,
    what: String,
}

impl From<&VerifyError> for Finding {
    fn from(error: &VerifyError) -> Self {
        Self {
            point: error.point.map(|point| point.to_string()),
            disk: error.disk.as_ref().map(|disk| disk.to_string()),
            offset: error.offset,
            chunk: error.chunk.map(|chunk| chunk.to_string()),
            pack: error.pack.clone(),
            what: error.what.clone(),
        }
    }
}

pub async fn run(context: &Context, arguments: &Verify) -> Result<Exit> {
    if arguments.repair {
        return Err(Error::usage("--repair: this version cannot repair")
            .hint("back the machine up again: what was found damaged is read and stored anew"));
    }
    let began = Instant::now();
    let place = &arguments.place;
    let repository = open::patiently(context, &place.repository, Access::Read, &place.patience).await?;
    let progress = Arc::new(Progress::default());
    let job = context.stop.race(verify(&repository, arguments, progress.clone()));
    let made = watched(&context.out, &progress, job).await;
    let closed = open::close(repository).await;
    let report = made?;
    closed?;
    let summary = Summary {
        points: report.points,
        chunks: report.chunks,
        bytes_read: report.bytes_read,
        errors: report.errors.iter().map(Finding::from).collect(),
        repaired: 0,
        duration_ms: milliseconds(began.elapsed()),
    };
    context.out.event("summary", &summary);
    print(context, &summary, began);
    if summary.errors.is_empty() {
        return Ok(Exit::Done);
    }
    let errors = summary.errors.len();
    if report.errors.iter().all(|error| error.unread) {
        let failed = format!("{} has {errors} places that could not be read", arguments.place.repository);
        let failed = Error::store_io(failed).hint("nothing was found damaged; look at the storage, and verify again");
        context.out.failure(&failed, false);
        return Ok(Exit::Failed);
    }
    let found = Error::integrity(format!("{} has {errors} errors", arguments.place.repository))
        .hint("back the machine up again, and restore meanwhile from another copy with --also-from");
    context.out.failure(&found, false);
    Ok(Exit::Corrupt)
}

async fn verify(repository: &Opened, arguments: &Verify, progress: Arc<Progress>) -> Result<VerifyReport> {
    let mut points = Vec::new();
    if !arguments.point.is_empty() {
        let all = repository.list(&PointFilter::default()).await?;
        for selector in &arguments.point {
            points.push(select(&all, selector)?.id);
        }
    }
    let depth = match (arguments.decode, arguments.read_data) {
        (true, _) => Depth::Decode,
        (false, Some(percent)) => Depth::ReadData { percent },
        (false, None) => Depth::Structure,
    };
    repository.verify(VerifyOptions { depth, points }, progress).await
}

fn print(context: &Context, summary: &Summary, began: Instant) {
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
    if context.out.shows_progress() {
        context.out.line(&format!(
            "verified {} points, {} chunks, {} read, {} errors, {}",
            count(summary.points),
            count(summary.chunks),
            size(summary.bytes_read),
            summary.errors.len(),
            seconds(began.elapsed()),
        ));
    }
}
