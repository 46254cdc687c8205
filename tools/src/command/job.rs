//! `windlass job`

use super::backup;
use super::machine::print_examination;
use crate::cli::JobAction;
use crate::context::{Context, Exit};
use crate::job::watched;
use crate::output::table;
use crate::site::{Node, job_called, tell};
use crate::text::{ago, escaped, local_time, size, utc_time};
use mover::{Error, ErrorKind, JobKind, Name, Progress, Result, Timestamp};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use wire::control::{JobStage, JobStatus, Jobs};

/// A job as JSON.
#[derive(Serialize)]
struct JobFields {
    job: String,
    proxy: String,
    machine: Option<String>,
    repository: Option<String>,
    kind: String,
    /// The administrator who asked for it.
    by: Option<String>,
    /// waiting, running, cancelling, done, failed or cancelled.
    state: &'static str,
    phase: &'static str,
    bytes_done: u64,
    bytes_total: u64,
    warnings: u32,
    asked: String,
    given: Option<String>,
    ended: Option<String>,
    error: Option<Failure>,
}

#[derive(Serialize)]
struct Failure {
    code: &'static str,
    message: String,
    hint: Option<String>,
}

pub async fn run(context: &Context, action: &JobAction) -> Result<Exit> {
    match action {
        JobAction::List { machine, at } => {
            let mut jobs = Node::at(context, at).await?.asked(async |jobs| jobs.jobs().await).await?;
            jobs.retain(|job| machine.as_ref().is_none_or(|machine| job.machine.as_ref() == Some(machine)));
            list(context, &jobs);
            Ok(Exit::Done)
        }
        JobAction::Show { of } => {
            let jobs = Node::at(context, &of.at).await?.asked(async |jobs| jobs.jobs().await).await?;
            show(context, &job_called(jobs, &of.id)?);
            Ok(Exit::Done)
        }
        JobAction::Follow { of } => follow(context, Node::at(context, &of.at).await?, &of.id).await,
        JobAction::Cancel { of } => cancel(context, Node::at(context, &of.at).await?, &of.id).await,
    }
}

fn list(context: &Context, jobs: &[JobStatus]) {
    let now = context.world.now();
    let fields: Vec<JobFields> = jobs.iter().map(|job| JobFields::of(job, now)).collect();
    context.out.document(&BTreeMap::from([("jobs", fields)]));
    if jobs.is_empty() {
        return context.out.line("no jobs");
    }
    let mut rows = table(&["JOB", "KIND", "MACHINE", "REPOSITORY", "PROXY", "BY", "ASKED", "STATE", "DONE"], &["DONE"]);
    for job in jobs {
        let name = |name: &Option<Name>| name.as_ref().map_or("?".into(), ToString::to_string);
        rows.add_row([
            job.id.to_string()[..8].to_owned(),
            kind(job.kind),
            name(&job.machine),
            name(&job.repository),
            job.proxy.to_string(),
            name(&job.by),
            ago(job.asked_ms) + " ago",
            state(&job.stage).into(),
            size(job.counters.bytes_done),
        ]);
    }
    context.out.table(&rows);
}

fn show(context: &Context, job: &JobStatus) {
    let now = context.world.now();
    context.out.document(&JobFields::of(job, now));
    let row = |name: &str, value: String| context.out.line(&format!("{name:<12}{value}"));
    let optional = |name: &Option<Name>| name.as_ref().map_or("not known".into(), ToString::to_string);
    row("job", job.id.to_string());
    row("kind", kind(job.kind));
    row("machine", optional(&job.machine));
    row("repository", optional(&job.repository));
    row("proxy", job.proxy.to_string());
    row("asked by", optional(&job.by));
    row("asked", local_time(before(now, job.asked_ms)));
    if let Some(given) = job.given_ms {
        row("begun", local_time(before(now, given)));
    }
    if let Some(ended) = job.ended_ms {
        row("ended", local_time(before(now, ended)));
    }
    row("state", state(&job.stage).into());
    let counters = &job.counters;
    let (done, total) = (size(counters.bytes_done), size(counters.bytes_total));
    row("progress", format!("{}: {done} of {total}", counters.phase.as_str()));
    row("warnings", job.warnings.to_string());
    if let Some(Failure { message, hint, .. }) = failure(&job.stage) {
        row("error", escaped(&message));
        hint.into_iter().for_each(|hint| row("hint", escaped(&hint)));
    }
}

async fn follow(context: &Context, node: Node, id: &str) -> Result<Exit> {
    let (progress, began) = (Progress::default(), Instant::now());
    let followed = async |jobs: &Jobs| {
        let job = job_called(jobs.jobs().await?, id)?;
        let following = jobs.follow(job.id, &progress, |told| tell(context, job.id, told));
        let report = watched(&context.out, &progress, following).await?;
        Ok((job, report))
    };
    let (job, report) = node.asked(followed).await?;
    if JobKind::of_code(report.kind) == Some(JobKind::Examine) {
        print_examination(context, &report.examination()?, &job.proxy);
        return Ok(Exit::Done);
    }
    let lasted = match job.ended_ms {
        Some(ended) => Duration::from_millis(job.asked_ms.saturating_sub(ended)),
        None => Duration::from_millis(job.asked_ms).saturating_add(began.elapsed()),
    };
    Ok(backup::made(context, &report.backup()?, lasted))
}

async fn cancel(context: &Context, node: Node, id: &str) -> Result<Exit> {
    let cancelled = async |jobs: &Jobs| {
        let job = job_called(jobs.jobs().await?, id)?;
        jobs.cancel(job.id).await.map(|()| job)
    };
    let job = node.asked(cancelled).await?;
    let over = matches!(job.stage, JobStage::Done | JobStage::Failed(_));
    context.out.document(&serde_json::json!({ "job": job.id.to_string(), "was_over": over }));
    context.out.done(&match over {
        true => format!("job {} was over already: {}", job.id, state(&job.stage)),
        false => format!("job {} is cancelled; `windlass job show` tells when it has ended", job.id),
    });
    Ok(Exit::Done)
}

fn kind(code: u16) -> String {
    match (code, JobKind::of_code(code)) {
        (0, _) => "?".into(),
        (_, Some(kind)) => kind.as_str().into(),
        (code, None) => code.to_string(),
    }
}

fn state(stage: &JobStage) -> &'static str {
    match stage {
        JobStage::Waiting => "waiting",
        JobStage::Given => "running",
        JobStage::Cancelling => "cancelling",
        JobStage::Done => "done",
        JobStage::Failed(failed) if Error::from(failed.clone()).kind() == ErrorKind::Cancelled => "cancelled",
        JobStage::Failed(_) => "failed",
    }
}

fn failure(stage: &JobStage) -> Option<Failure> {
    let JobStage::Failed(failed) = stage else { return None };
    let error = Error::from(failed.clone());
    let hint = error.remedy().map(str::to_owned);
    Some(Failure { code: error.kind().code(), message: error.message(), hint })
}

const fn before(now: Timestamp, milliseconds: u64) -> Timestamp {
    let nanoseconds = milliseconds.saturating_mul(1_000_000);
    Timestamp(now.0.saturating_sub_unsigned(nanoseconds))
}

impl JobFields {
    fn of(job: &JobStatus, now: Timestamp) -> Self {
        let text = |name: &Option<Name>| name.as_ref().map(ToString::to_string);
        let at = |milliseconds| utc_time(before(now, milliseconds));
        Self {
            job: job.id.to_string(),
            proxy: job.proxy.to_string(),
            machine: text(&job.machine),
            repository: text(&job.repository),
            kind: kind(job.kind),
            by: text(&job.by),
            state: state(&job.stage),
            phase: job.counters.phase.as_str(),
            bytes_done: job.counters.bytes_done,
            bytes_total: job.counters.bytes_total,
            warnings: job.warnings,
            asked: at(job.asked_ms),
            given: job.given_ms.map(at),
            ended: job.ended_ms.map(at),
            error: failure(&job.stage),
        }
    }
}
