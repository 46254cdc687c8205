//! `windlass restore`

mod attachment;
mod machine;
mod stdout;

use crate::address::RepositoryAddress;
use crate::cli::Restore;
use crate::context::{Context, Exit};
use crate::job::watched;
use crate::open::{self, Access, Existing, Local, Opened};
use crate::stop::Stoppable;
use crate::text::{escaped, seconds, size};
use chunker::DomainKeys;
use mover::event::{JobSummary, RestoreSummary};
use mover::{
    DiskRecord, DiskView, Error, ErrorKind, Failover, Manifest, PointFilter, PointId, Progress, ReadSession as _,
    Repository, RestoreReport, Result, ViewOptions, restore, restore_delta, restore_stream, select,
};
use proxy::TargetAddress;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

pub async fn run(context: &Context, arguments: &Restore) -> Result<Exit> {
    if arguments.to == "-" && context.out.json() {
        return Err(
            Error::usage("--json and --to - would both write to stdout").hint("leave out --json, or restore to a file")
        );
    }
    if let Some(wanted) = &arguments.attachment {
        return attachment::run(context, arguments, wanted).await;
    }
    if arguments.machine {
        return machine::run(context, arguments).await;
    }
    let began = Instant::now();
    let to = Place::of(arguments)?;
    let copies = open_copies(context, arguments).await?;
    let made = from_copies(context, arguments, &to, &copies).await;
    let many = copies.repositories.len() > 1;
    for (_, repository) in copies.repositories {
        if let Err(error) = open::close(repository).await {
            tracing::warn!(%error, "a repository could not be closed cleanly");
        }
    }
    let (manifest, disk, report, bytes_from) = made.map_err(|error| no_copy(error, many))?;
    if matches!(to, Place::Stdout) {
        // What is on stdout is the disk.
        context.out.note(&format!("restored {} of {} to stdout", disk.name, manifest.machine_name));
        return Ok(Exit::Done);
    }
    let (target, from, took) = (arguments.to.clone(), bytes_from.clone(), began.elapsed());
    let summary = RestoreSummary::of((&manifest, &disk), target, &report, from, took);
    context.out.summary(JobSummary::Restore(summary), || {
        let (restored, written) = (size(report.bytes_restored), size(report.bytes_written));
        let took = seconds(took);
        let target = escaped(&arguments.to);
        context.out.line(&format!(
            "restored {} of {} to {target}: {restored}, {written} written, {took}",
            disk.name, manifest.machine_name
        ));
        for (address, bytes) in bytes_from.iter().filter(|_| many) {
            context.out.line(&format!("  {} from {}", size(*bytes), escaped(address)));
        }
    });
    Ok(Exit::Done)
}

/// Each of several copies was asked for what the one before could not serve.
fn no_copy(error: Error, many: bool) -> Error {
    match error.kind() {
        ErrorKind::Integrity | ErrorKind::StoreIo if many => {
            Error::new(ErrorKind::NoCopy, format!("no copy can serve the disk: {}", error.message()))
                .hint("`windlass verify` shows what is damaged in a copy")
        }
        _ => error,
    }
}

/// Where the disk goes.
enum Place {
    Target(TargetAddress),
    Stdout,
}

impl Place {
    fn of(arguments: &Restore) -> Result<Self> {
        if arguments.to != "-" {
            let target: TargetAddress = arguments.to.parse()?;
            if let TargetAddress::File { path, .. } = &target {
                not_in_a_repository(path)?;
            }
            return Ok(Self::Target(target));
        }
        if arguments.delta || arguments.overwrite {
            return Err(Error::usage("--delta and --overwrite cannot be used with stdout"));
        }
        stdout::check()?;
        Ok(Self::Stdout)
    }
}

/// A pack or record that is written over is lost, and a file that is left there is in the way.
fn not_in_a_repository(target: &Path) -> Result<()> {
    let Some(repository) = Local::around(target) else { return Ok(()) };
    Err(Error::usage(format!("{} is inside the repository {}", target.display(), repository.display()))
        .hint("choose a target outside of it"))
}

/// Repositories that can be read and have the point.
struct Copies {
    point: PointId,
    repositories: Vec<(String, Opened)>,
}

/// Opens the copies in order. The first that knows the selector decides which point is meant; what cannot be opened is
/// passed over with a warning as long as another one serves.
async fn open_copies(context: &Context, arguments: &Restore) -> Result<Copies> {
    let first = arguments.copy.as_ref().or(arguments.repository.as_ref());
    let first =
        first.ok_or_else(|| Error::usage("no repository is given").hint("give it with -r, or a copy with --copy"))?;
    let mut copies = Copies { point: PointId::default(), repositories: Vec::new() };
    let mut failed: Vec<Error> = Vec::new();
    for address in std::iter::once(first).chain(&arguments.also_from) {
        if let Err(error) = add_copy(context, arguments, address, &mut copies).await {
            if arguments.also_from.is_empty() {
                return Err(error);
            }
            context.out.warn(&format!("{address} cannot serve: {error}"));
            failed.push(error);
        }
    }
    if copies.repositories.is_empty() {
        let why: Vec<_> = failed.iter().map(Error::message).collect();
        return Err(Error::new(ErrorKind::NoCopy, format!("no copy can serve: {}", why.join("; "))));
    }
    Ok(copies)
}

async fn add_copy(
    context: &Context,
    arguments: &Restore,
    address: &RepositoryAddress,
    copies: &mut Copies,
) -> Result<()> {
    let repository = open::patiently(context, address, Access::Read, &arguments.patience).await?;
    let found = async {
        let points = repository.list(&PointFilter::default()).await?;
        let Some((first_address, first)) = copies.repositories.first() else {
            return select(&points, &arguments.point).map(|point| point.id);
        };
        if first.config().domain != repository.config().domain {
            return Err(Error::domain(format!("it does not belong to the dedup domain of {first_address}")));
        }
        let have = points.iter().any(|point| point.id == copies.point);
        have.then_some(copies.point).ok_or_else(|| Error::not_found(format!("it has no point {}", copies.point)))
    };
    match found.await {
        Ok(point) => {
            copies.point = point;
            copies.repositories.push((address.to_string(), repository));
            Ok(())
        }
        Err(error) => {
            let _ = open::close(repository).await;
            Err(error)
        }
    }
}

type Made = (Manifest, DiskRecord, RestoreReport, BTreeMap<String, u64>);

type Session = Failover<<Opened as Repository>::Reader>;

/// What reads from the copies, one for what another cannot serve.
async fn sessions(context: &Context, copies: &Copies) -> Result<Session> {
    let mut sessions = Vec::new();
    for (address, repository) in &copies.repositories {
        match repository.read(&[copies.point]).await {
            Ok(session) => sessions.push((address.clone(), session)),
            Err(error) if copies.repositories.len() > 1 => {
                context.out.warn(&format!("{address} cannot serve: {error}"))
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Failover::new(sessions))
}

async fn from_copies(context: &Context, arguments: &Restore, to: &Place, copies: &Copies) -> Result<Made> {
    let session = sessions(context, copies).await?;
    let manifest = session.manifest(copies.point).await?;
    let disk = choose_disk(&manifest, arguments)?.clone();
    let keys = DomainKeys::new(&copies.repositories[0].1.config().domain);
    let Place::Target(to) = to else {
        let (progress, pool) = (Progress::default(), &context.pool);
        let session = Arc::new(session);
        let view = DiskView::new(session.clone(), &keys, &disk, pool, ViewOptions::default());
        let job = restore_stream(&view, stdout::Stdout, &progress);
        let report = watched(&context.out, &progress, context.stop.race(job)).await;
        view.close().await;
        return Ok((manifest, disk, report?, session.bytes_from()));
    };
    let report = restore_disk(context, arguments, (&session, &keys), &disk, (to, existing(arguments))).await?;
    Ok((manifest, disk, report, session.bytes_from()))
}

async fn restore_disk(
    context: &Context,
    arguments: &Restore,
    (session, keys): (&Session, &DomainKeys),
    disk: &DiskRecord,
    (to, existing): (&TargetAddress, Existing),
) -> Result<RestoreReport> {
    let (progress, pool) = (Progress::default(), &context.pool);
    let target = arguments.patience.wait().retry(
        &context.stop,
        |busy| context.out.waits_for(busy),
        async || open::target(to, disk, existing).await,
    );
    let target = target.await?;
    let job = async {
        if existing == Existing::Keep {
            // What is there is not left half written without a word: the job itself ends, and tells how far it came.
            let target = Stoppable { inner: target, stop: context.stop.clone() };
            let made = restore_delta(session, keys, disk, target, pool, &progress).await;
            return made.map_err(|error| error.context(to));
        }
        // A new target that is dropped tidies up after itself.
        context.stop.race(restore(session, keys, disk, target, pool, &progress)).await
    };
    watched(&context.out, &progress, job).await
}

/// An update in place loses nothing but what differs: it is consent enough, with --overwrite or without.
fn existing(arguments: &Restore) -> Existing {
    match (arguments.delta, arguments.overwrite) {
        (true, _) => Existing::Keep,
        (false, true) => Existing::Replace,
        (false, false) => Existing::Refuse,
    }
}

fn choose_disk<'a>(manifest: &'a Manifest, arguments: &Restore) -> Result<&'a DiskRecord> {
    let names = || manifest.disks.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>().join(", ");
    match (&arguments.disk, manifest.disks.as_slice()) {
        (Some(name), _) => manifest.disk(name).ok_or_else(|| {
            Error::not_found(format!("the point has no disk {name}")).hint(format!("its disks: {}", names()))
        }),
        (None, [only]) => Ok(only),
        (None, []) => Err(Error::not_found("the point has no disks")),
        (None, _) => {
            Err(Error::usage(format!("the point has several disks: {}", names())).hint("choose one with --disk"))
        }
    }
}
