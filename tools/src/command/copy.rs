//! `windlass copy`

use crate::address::At;
use crate::cli::Copy;
use crate::context::{Context, Exit};
use crate::job::watched;
use crate::open::{self, Access, Opened};
use crate::text::{count, counted, seconds, short, size};
use mover::event::{CopySummary, JobSummary};
use mover::{
    CopyReport, CopyTally, Error, Phase, PointFilter, PointId, Progress, RecoveryPoint, Repository as _, Result,
    Verification, copy_points, in_copy_order, select, still_wanted,
};
use std::time::Instant;
use wire::Remote;
use wire::message::Place;

pub async fn run(context: &Context, arguments: &Copy) -> Result<Exit> {
    let began = Instant::now();
    let patience = &arguments.place.patience;
    let (from, to) = tokio::join!(
        open::patiently(context, &arguments.place.repository, Access::Read, patience),
        open::patiently(context, &arguments.to, Access::Write, patience)
    );
    let (made, closed) = match (from, to) {
        (Ok(from), Ok(to)) if from.config().id == to.config().id => {
            let closed = open::close(to).await;
            let same = Error::usage("both addresses are the same repository").hint(
                "choose another target; a directory that was copied file by file is the same repository too: create the \
                 target with `windlass init --like`",
            );
            (Err(same), open::close(from).await.and(closed))
        }
        (Ok(from), Ok(to)) => {
            let made = match (arguments.place.repository.at(), &to) {
                (At::Node { host, port, name, congestion }, Opened::Right(node)) if !arguments.through_here => {
                    let place = Place {
                        host: host.clone(),
                        port: *port,
                        name: name.to_string(),
                        congestion: congestion.code(),
                    };
                    pull_all(context, arguments, &from, (&to, node), &place).await
                }
                _ => copy_all(context, arguments, &from, &to).await,
            };
            let closed = open::close(to).await;
            (made, open::close(from).await.and(closed))
        }
        (Ok(opened), Err(error)) | (Err(error), Ok(opened)) => (Err(error), open::close(opened).await),
        (Err(error), Err(_)) => (Err(error), Ok(())),
    };
    let tally = made?;
    closed?;
    let (CopyTally { copied: sum, there, failed }, took) = (tally, began.elapsed());
    context.out.summary(JobSummary::Copy(CopySummary::of(&tally, took)), || {
        context.out.line(&format!(
            "copied {} ({} already there, {} failed): {} in {}, {}",
            counted(sum.points, "point"),
            count(there),
            count(failed),
            size(sum.bytes_moved),
            counted(sum.chunks_moved, "chunk"),
            seconds(took),
        ));
    });
    Ok(if failed > 0 { Exit::SomeFailed } else { Exit::Done })
}

/// Counts what became of `point`, one of `all`, and tells when it failed.
fn count_one(
    context: &Context,
    tally: &mut CopyTally,
    all: &[RecoveryPoint],
    point: PointId,
    made: Result<CopyReport>,
) -> Result<()> {
    let before = tally.copied.points;
    let failed = tally.count(all.len(), made).inspect_err(|_| {
        if before > 0 {
            context.out.note(&format!("{} copied before this failure", counted(before, "point")));
        }
    })?;
    if let Some(error) = failed {
        let machine = all.iter().find(|known| known.id == point).map(|known| &known.machine_name);
        let machine = machine.map_or_else(String::new, |name| format!("{name}@"));
        context.out.point_failed(&format!("{machine}{}", short(point)), &error);
    }
    Ok(())
}

/// Copies the chosen points through this machine.
async fn copy_all(context: &Context, arguments: &Copy, from: &Opened, to: &Opened) -> Result<CopyTally> {
    let points = chosen(context, arguments, from, to).await?;
    let (mut tally, progress) = (CopyTally::default(), Progress::default());
    let done = async |point: &RecoveryPoint, made| count_one(context, &mut tally, &points, point.id, made);
    let job = copy_points(from, to, &points, verification(arguments), &progress, done);
    watched(&context.out, &progress, context.stop.race(job)).await?;
    Ok(tally)
}

/// The same between two nodes: the receiving one pulls, and nothing goes through here but what is told.
async fn pull_all(
    context: &Context,
    arguments: &Copy,
    from: &Opened,
    target: (&Opened, &Remote),
    place: &Place,
) -> Result<CopyTally> {
    let (to, node) = target;
    let points = chosen(context, arguments, from, to).await?;
    let ids: Vec<PointId> = points.iter().map(|point| point.id).collect();
    let (mut tally, progress) = (CopyTally::default(), Progress::default());
    progress.enter(Phase::Move);
    let told = |id, made| count_one(context, &mut tally, &points, id, made);
    let pulling = node.pull(place, &ids, verification(arguments), &progress, told);
    watched(&context.out, &progress, context.stop.race(pulling)).await?;
    Ok(tally)
}

const fn verification(arguments: &Copy) -> Verification {
    if arguments.trust_source { Verification::Checksum } else { Verification::Decode }
}

async fn chosen(context: &Context, arguments: &Copy, from: &Opened, to: &Opened) -> Result<Vec<RecoveryPoint>> {
    let points = from.list(&PointFilter::default()).await?;
    let mut chosen: Vec<RecoveryPoint> = Vec::new();
    for selector in &arguments.point {
        let point = select(&points, selector)?;
        if !chosen.iter().any(|have| have.id == point.id) {
            chosen.push(point.clone());
        }
    }
    if arguments.point.is_empty() {
        chosen = points;
        if let Some(machine) = &arguments.machine {
            machine.is_there(&chosen)?;
            chosen.retain(|point| machine.fits(point));
        }
        let before = chosen.len();
        chosen = still_wanted(to, chosen).await?;
        let left = (before - chosen.len()) as u64;
        if left > 0 {
            context.out.note(&format!(
                "left out {}: forgotten in the target (`windlass unforget` brings such a point back there), or not newer than \
                 what a sweep made final there (such a point is copied if you name it)",
                counted(left, "point")
            ));
        }
    }
    in_copy_order(&mut chosen);
    Ok(chosen)
}
