//! `windlass copy`

use crate::address::At;
use crate::cli::Copy;
use crate::context::{Context, Exit};
use crate::job::watched;
use crate::open::{self, Access, Opened};
use crate::text::{count, counted, milliseconds, seconds, short, size};
use mover::{
    CopyReport, Error, ErrorKind, Phase, PointFilter, PointId, Progress, RecoveryPoint, Repository as _, Result,
    Verification, copy, select, still_wanted,
};
use serde::Serialize;
use std::time::Instant;
use wire::Remote;
use wire::message::Place;

/// Field names are a contract.
#[derive(Serialize)]
struct Summary {
    points: u64,
    chunks_moved: u64,
    bytes_moved: u64,
    points_there_already: u64,
    points_failed: u64,
    duration_ms: u64,
}

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
    let Tally { sum, there, failed } = made?;
    closed?;
    let summary = Summary {
        points: sum.points,
        chunks_moved: sum.chunks_moved,
        bytes_moved: sum.bytes_moved,
        points_there_already: there,
        points_failed: failed,
        duration_ms: milliseconds(began.elapsed()),
    };
    context.out.summary(&summary, || {
        context.out.line(&format!(
            "copied {} ({} already there, {} failed): {} in {}, {}",
            counted(sum.points, "point"),
            count(there),
            count(failed),
            size(sum.bytes_moved),
            counted(sum.chunks_moved, "chunk"),
            seconds(began.elapsed()),
        ));
    });
    Ok(if failed > 0 { Exit::SomeFailed } else { Exit::Done })
}

/// What became of the points.
#[derive(Default)]
struct Tally {
    sum: CopyReport,
    there: u64,
    failed: u64,
}

impl Tally {
    /// Adds what became of `point`, one of `all`.
    fn add(
        &mut self,
        context: &Context,
        all: &[RecoveryPoint],
        point: PointId,
        made: Result<CopyReport>,
    ) -> Result<()> {
        match made {
            Ok(report) => {
                self.there += u64::from(report.points == 0);
                self.sum.points += report.points;
                self.sum.chunks_moved += report.chunks_moved;
                self.sum.bytes_moved += report.bytes_moved;
            }
            // These would befall every other point as well.
            Err(error) if all.len() == 1 || fatal(&error) => return Err(error),
            Err(error) => {
                self.failed += 1;
                let machine = all.iter().find(|known| known.id == point).map(|known| &known.machine_name);
                let machine = machine.map_or_else(String::new, |name| format!("{name}@"));
                context.out.item_failed(&format!("{machine}{}", short(point)), &error);
            }
        }
        Ok(())
    }
}

/// Copies the chosen points, oldest first, so that later ones find what they share.
async fn copy_all(context: &Context, arguments: &Copy, from: &Opened, to: &Opened) -> Result<Tally> {
    let points = chosen(context, arguments, from, to).await?;
    let verification = verification(arguments);
    let (mut tally, progress) = (Tally::default(), Progress::default());
    for point in &points {
        let job = context.stop.race(copy(from, to, point, verification, &progress));
        let made = watched(&context.out, &progress, job).await;
        tally.add(context, &points, point.id, made)?;
    }
    Ok(tally)
}

/// The same between two nodes: the receiving one pulls, and nothing goes through here but what is told.
async fn pull_all(
    context: &Context,
    arguments: &Copy,
    from: &Opened,
    target: (&Opened, &Remote),
    place: &Place,
) -> Result<Tally> {
    let (to, node) = target;
    let points = chosen(context, arguments, from, to).await?;
    let ids: Vec<PointId> = points.iter().map(|point| point.id).collect();
    let (mut tally, progress) = (Tally::default(), Progress::default());
    progress.enter(Phase::Move);
    let told = |id, made| tally.add(context, &points, id, made);
    let pulling = node.pull(place, &ids, verification(arguments), &progress, told);
    watched(&context.out, &progress, context.stop.race(pulling)).await?;
    Ok(tally)
}

const fn verification(arguments: &Copy) -> Verification {
    if arguments.trust_source { Verification::Checksum } else { Verification::Decode }
}

fn fatal(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Cancelled | ErrorKind::Domain | ErrorKind::StoreFull | ErrorKind::RolledBack)
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
    chosen.sort_by_key(|point| (point.origin.1, point.snapshot_time));
    Ok(chosen)
}
