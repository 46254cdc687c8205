//! `windlass backup`

mod through;

use crate::address::Attach;
use crate::cli::{Backup, Quiesce, Wish};
use crate::context::{Context, Exit};
use crate::job::watched;
use crate::open::{self, Access, Opened};
use crate::output::table;
use crate::stop::Stoppable;
use crate::text::{counted, escaped, seconds, short, size};
use mover::event::{BackupSummary, JobSummary};
use mover::{
    Allow, Audit, BackupOptions, BackupReport, Error, MachineSource as _, NewAttachment, Outcome, Progress, Result,
    Source as _, TrackingWish, Verification, backup, backup_machine, blocking,
};
use proxy::{AnyMachine, AnySession, BackupAddress, Hooks, NamedSource, OfflineMachine, QemuMachine};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::time::{Duration, Instant};

pub async fn run(context: &Context, arguments: &Backup) -> Result<Exit> {
    let through = arguments.is_through_proxy();
    if through {
        through::refuse_what_proxies_decide(arguments)?;
    } else if arguments.through.proxy.is_some() || arguments.through.proxy_label.is_some() {
        return Err(Error::usage(
            "a proxy reads the disks that its configuration names, and no source can be given to it",
        )
        .hint("leave out the source, or --proxy and --proxy-label"));
    }
    let options = options(arguments).await?;
    let began = Instant::now();
    let wait = arguments.place.patience.wait();
    let machine = machine(context, arguments);
    let attempt = async || match through {
        true => through::attempt(context, arguments, &options).await,
        false => attempt(context, arguments, &machine, &options).await,
    };
    let report = match !through && machine.stands_still() {
        true => at_rest(context, arguments, &machine, &options).await?,
        false => wait.retry(&context.stop, |busy| context.out.waits_for(busy), attempt).await?,
    };
    Ok(made(context, &report, began.elapsed()))
}

/// Prints what a backup made.
pub fn made(context: &Context, report: &BackupReport, took: Duration) -> Exit {
    for warning in &report.warnings {
        context.out.warn(warning);
    }
    context.out.summary(JobSummary::Backup(BackupSummary::of(report, took)), || print(context, report, took));
    if report.warnings.is_empty() { Exit::Done } else { Exit::Warnings }
}

async fn options(arguments: &Backup) -> Result<BackupOptions> {
    let attach = arguments.attach.clone();
    let attachments = blocking(move || attach.iter().map(read_attachment).collect::<Result<_>>()).await?;
    Ok(BackupOptions {
        machine_name: arguments.machine.clone(),
        machine: None,
        point: None,
        wish: match arguments.change_tracking {
            Wish::Auto => TrackingWish::Auto,
            Wish::Bitmap => TrackingWish::Bitmap,
            Wish::Fingerprint => TrackingWish::Fingerprint,
            Wish::Full => TrackingWish::Full,
        },
        compression: arguments.compression,
        verification: if arguments.no_extra_verify { Verification::Checksum } else { Verification::Decode },
        tags: arguments.tag.clone(),
        attachments,
        rate: arguments.rate,
        audit: arguments.audit.map_or(Audit::Usual, Audit::Percent),
        allow: Allow { shrink: arguments.allow_shrink, format_change: arguments.allow_format_change },
        quiesce: match arguments.quiesce {
            Quiesce::Auto => mover::Quiesce::Auto,
            Quiesce::Require => mover::Quiesce::Require,
            Quiesce::Off => mover::Quiesce::Off,
        },
    })
}

/// A file, or the beginning of a device; what has no end by itself (a pipe, a terminal) is refused before it is read.
fn read_attachment(attach: &Attach) -> Result<NewAttachment> {
    let path = attach.file.display();
    let failed = |error: std::io::Error| Error::source(format!("attachment {path} could not be read")).because(error);
    // A pipe without a writer would be waited for.
    let file = File::options().read(true).custom_flags(NONBLOCK).open(&attach.file).map_err(failed)?;
    let kind = file.metadata().map_err(failed)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(Error::usage(format!("attachment {path} is neither a file nor a block device"))
            .hint("save it to a file first, and attach the file"));
    }
    let mut bytes = Vec::new();
    file.take(ATTACHMENT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > ATTACHMENT_BYTES_MAX {
        return Err(Error::usage(format!("attachment {path} is larger than {}", size(ATTACHMENT_BYTES_MAX)))
            .hint("attachments are small files of a machine; back up a disk with --disk"));
    }
    let name = attach.file.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned());
    Ok(NewAttachment { kind: attach.kind.clone(), name, bytes: bytes.into() })
}

fn machine(context: &Context, arguments: &Backup) -> AnyMachine {
    let hooks = Hooks {
        before: arguments.pre_freeze.clone(),
        after: arguments.post_thaw.clone(),
        limit: arguments.hook_timeout,
    };
    let hooks = (arguments.pre_freeze.is_some() || arguments.post_thaw.is_some()).then_some(hooks);
    let (name, stop, world) = (arguments.machine.clone(), context.stop.clone(), context.world.clone());
    let disks = match &arguments.source {
        Some(BackupAddress::Machine(address)) => {
            let (address, scratch) = (address.clone(), arguments.scratch.clone());
            return AnyMachine::Qemu(QemuMachine { name, address, hooks, scratch, stop, world });
        }
        Some(BackupAddress::Disk(source)) => vec![NamedSource::only(source.clone())],
        None => arguments.disk.clone(),
    };
    let image_roots = arguments.image_root.clone();
    AnyMachine::Offline(OfflineMachine { name, disks, hooks, image_roots, stop, world })
}

/// A machine is made to stand still once, and only when all else is there: the repository is waited for before. What is
/// busy while it stands still is not waited for.
async fn at_rest(
    context: &Context,
    arguments: &Backup,
    machine: &AnyMachine,
    options: &BackupOptions,
) -> Result<BackupReport> {
    let (address, patience) = (&arguments.place.repository, &arguments.place.patience);
    let repository = open::patiently(context, address, Access::Write, patience).await?;
    let progress = Progress::default();
    let means = (&context.pool, &context.world);
    let job = backup_machine(&repository, machine, options, &context.stop, means, &progress);
    let made = watched(&context.out, &progress, job).await;
    closed(repository, made).await
}

/// One try: everything that was opened is closed again, whatever happens.
async fn attempt(
    context: &Context,
    arguments: &Backup,
    machine: &AnyMachine,
    options: &BackupOptions,
) -> Result<BackupReport> {
    match open::repository_and_machine(context, &arguments.place.repository, machine, options).await {
        (Ok(repository), Ok(source)) => carry_out(context, options, repository, source).await,
        (Ok(repository), Err(error)) => closed(repository, Err(error)).await,
        (Err(error), Ok(source)) => {
            if let Err(second) = source.finish(Outcome::Abandoned).await {
                context.out.warn(&format!("the source could not be released cleanly: {second}"));
            }
            Err(error)
        }
        (Err(error), Err(_)) => Err(error),
    }
}

async fn carry_out(
    context: &Context,
    options: &BackupOptions,
    repository: Opened,
    source: AnySession,
) -> Result<BackupReport> {
    let progress = Progress::default();
    let source = Stoppable { inner: source, stop: context.stop.clone() };
    let job = backup(&repository, source, options, &context.pool, &context.world, &progress);
    let made = watched(&context.out, &progress, job).await;
    closed(repository, made).await
}

/// What was made, when the repository is closed again.
async fn closed(repository: Opened, made: Result<BackupReport>) -> Result<BackupReport> {
    match made {
        Ok(mut report) => {
            if let Err(error) = open::close(repository).await {
                // The point is durable: what closing failed at is settled when the repository is opened next.
                report.warnings.push(format!("the repository could not be closed cleanly: {error}"));
            }
            Ok(report)
        }
        Err(error) => {
            if let Err(second) = open::close(repository).await {
                tracing::warn!(error = %second, "the repository could not be closed cleanly");
            }
            Err(error)
        }
    }
}

fn print(context: &Context, report: &BackupReport, duration: Duration) {
    let out = &context.out;
    let right = ["SIZE", "READ", "CHANGED"];
    let mut rows = table(&["DISK", "SIZE", "READ", "CHANGED", "TRACKING", "REASON"], &right);
    for disk in &report.disks {
        rows.add_row([
            disk.name.to_string(),
            size(disk.size),
            size(disk.tracking.bytes_read),
            size(disk.tracking.bytes_changed),
            disk.tracking.mode.as_str().into(),
            escaped(&disk.tracking.reason),
        ]);
    }
    out.table(&rows);
    for disk in &report.disks {
        let Some(audit) = disk.audit else { continue };
        let ends = match (audit.turn_completed, audit.cut_short) {
            (true, _) => "the audit has now seen the whole disk".to_owned(),
            (false, true) => {
                format!("it reached its time limit, and the next increment continues at {}", size(audit.position))
            }
            (false, false) => format!("the next increment continues at {}", size(audit.position)),
        };
        let audited = size(disk.tracking.bytes_audited);
        out.line(&format!(
            "{}: the audit read {audited} that the bitmap calls unchanged, and found no change; {ends}",
            disk.name
        ));
    }
    out.line(&format!(
        "point {} of {}, {} consistent: {} new in {}, {} stored, {}",
        short(report.point.id),
        report.point.machine_name,
        report.consistency.as_str(),
        size(report.bytes_new),
        counted(report.chunks_new, "chunk"),
        size(report.bytes_stored),
        seconds(duration),
    ));
}

/// Domain definitions, NVRAM and TPM state are far smaller; a disk given by mistake must not fill memory.
const ATTACHMENT_BYTES_MAX: u64 = 64 << 20;
const NONBLOCK: i32 = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
