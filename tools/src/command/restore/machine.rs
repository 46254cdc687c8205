//! `windlass restore --machine`: all disks of a point, what is attached to it, and a script that starts the machine.

use super::attachment::Made;
use super::{Copies, existing, no_copy, not_in_a_repository, open_copies, restore_disk, sessions};
use crate::cli::Restore;
use crate::context::{Context, Exit};
use crate::open::{self, Existing};
use crate::text::{counted, escaped, seconds, size};
use chunker::DomainKeys;
use mover::event::{AttachmentSummary, JobSummary, MachineSummary, RestoreSummary};
use mover::{Attachment, Error, ErrorKind, Manifest, ReadSession, Repository as _, Result, blocking};
use proxy::definition::{
    BYTES_MAX, DEFINITION_FILE, DEFINITION_KIND, Definition, Identity, RUN_FOLDER, RestoredFiles, start_script,
};
use proxy::{ImageFormat, NVRAM_KIND, Named, TargetAddress};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

pub async fn run(context: &Context, arguments: &Restore) -> Result<Exit> {
    if arguments.to == "-" {
        return Err(Error::usage("a machine cannot be restored to stdout").hint("give a folder with --to"));
    }
    let began = Instant::now();
    let folder = PathBuf::from(&arguments.to);
    not_in_a_repository(&folder)?;
    make_folder(&folder, existing(arguments)).await?;
    let copies = open_copies(context, arguments).await?;
    let made = from_copies(context, arguments, &folder, &copies).await;
    for (_, repository) in copies.repositories {
        if let Err(error) = open::close(repository).await {
            tracing::warn!(%error, "a repository could not be closed cleanly");
        }
    }
    let mut summary = made?;
    summary.duration_ms = began.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
    context.out.summary(JobSummary::Machine(summary.clone()), || {
        let (disks, files) = (summary.disks.len() as u64, summary.attachments.len() as u64);
        let (restored, to) = (size(summary.bytes_restored), escaped(&arguments.to));
        let (disks, files) = (counted(disks, "disk"), counted(files, "attached file"));
        let took = seconds(began.elapsed());
        context.out.line(&format!("restored {} to {to}: {disks}, {files}, {restored}, {took}", summary.machine));
        if let Some(script) = &summary.start {
            context.out.line(&format!("to start it, read and run {}", escaped(script)));
        }
    });
    // Without a script the machine is not whole.
    Ok(if summary.start.is_some() { Exit::Done } else { Exit::Warnings })
}

/// Makes the folder, for its owner alone. One that holds something is used only when what is there may change.
async fn make_folder(folder: &Path, existing: Existing) -> Result<()> {
    let at = folder.to_owned();
    let made = blocking(move || match DirBuilder::new().mode(0o700).create(&at) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Ok(existing == Existing::Refuse && std::fs::read_dir(&at)?.next().is_some())
        }
        made => made.map(|()| false),
    });
    match made.await {
        Ok(false) => Ok(()),
        Ok(true) => Err(Error::usage(format!("{} holds something already", folder.display())).hint(
            "choose a new folder; --delta goes on with a restore that was interrupted, --overwrite replaces what is there",
        )),
        Err(error) => Err(Error::target(format!("{} cannot be used", folder.display())).because(error)),
    }
}

async fn from_copies(context: &Context, arguments: &Restore, folder: &Path, copies: &Copies) -> Result<MachineSummary> {
    let session = sessions(context, copies).await?;
    let manifest = session.manifest(copies.point).await?;
    let keys = DomainKeys::new(&copies.repositories[0].1.config().domain);
    let mut summary = MachineSummary::of(&manifest, folder.display().to_string());
    let mut files = RestoredFiles::default();
    for disk in &manifest.disks {
        let began = Instant::now();
        let file = format!("{}.raw", disk.name);
        let path = folder.join(&file);
        // A restore that goes on makes the disks that it had not come to.
        let how = match existing(arguments) {
            Existing::Keep if !path.exists() => Existing::Refuse,
            how => how,
        };
        let to = TargetAddress::File { path: path.clone(), format: ImageFormat::Raw, named: Named::Surely };
        let report = restore_disk(context, arguments, (&session, &keys), disk, (&to, how)).await;
        let report = report.map_err(|error| told(error.on_disk(&disk.name), copies, &summary))?;
        let made = (&manifest, disk);
        let from = since(&summary.bytes_from, session.bytes_from());
        summary.add_disk(RestoreSummary::of(made, path.display().to_string(), &report, from, began.elapsed()));
        summary.bytes_from = session.bytes_from();
        files.disks.insert(disk.name.clone(), file);
    }
    let mut taken = BTreeSet::from([SCRIPT.to_owned(), RUN_FOLDER.to_owned()]);
    taken.extend(files.disks.values().cloned());
    for (at, attachment) in manifest.attachments.iter().enumerate() {
        let name = file_name(attachment, at, &mut taken);
        let path = folder.join(&name);
        let restored = write_attachment(context, (&session, &keys), attachment, &path, existing(arguments)).await;
        restored.map_err(|error| told(error, copies, &summary))?;
        if attachment.kind.as_str() == NVRAM_KIND {
            files.nvram.get_or_insert(name);
        }
        summary.attachments.push(AttachmentSummary::of(&manifest, attachment, path.display().to_string()));
    }
    summary.start = write_script(context, arguments, folder, &manifest, &files, &summary).await?;
    Ok(summary)
}

/// What came from each copy after `before`.
fn since(before: &BTreeMap<String, u64>, mut now: BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    now.iter_mut().for_each(|(copy, bytes)| *bytes -= before.get(copy).copied().unwrap_or(0));
    now
}

async fn write_attachment<R: ReadSession>(
    context: &Context,
    (session, keys): (&R, &DomainKeys),
    attachment: &Attachment,
    path: &Path,
    existing: Existing,
) -> Result<()> {
    if existing != Existing::Refuse {
        let at = path.to_owned();
        let removed = blocking(move || std::fs::remove_file(at)).await;
        if let Err(error) = removed
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(Error::target(format!("{} cannot be replaced", path.display())).because(error));
        }
    }
    let mut made = Made::new(path.to_owned()).await?;
    context.stop.race(mover::read_attachment(session, keys, attachment, &mut made)).await?;
    made.finish().await
}

/// Writes the script, when the point tells how the machine was started.
async fn write_script(
    context: &Context,
    arguments: &Restore,
    folder: &Path,
    manifest: &Manifest,
    files: &RestoredFiles,
    summary: &MachineSummary,
) -> Result<Option<String>> {
    let is_it = |it: &&Attachment| it.kind.as_str() == DEFINITION_KIND && it.name == DEFINITION_FILE;
    let Some(at) = manifest.attachments.iter().position(|it| is_it(&it)) else {
        context.out.warn("the point does not tell how the machine was started: there is no script that starts it");
        return Ok(None);
    };
    if manifest.attachments[at].bytes > BYTES_MAX as u64 {
        context.out.warn("the description of the machine is too long: there is no script that starts it");
        return Ok(None);
    }
    let (described, script) = (PathBuf::from(&summary.attachments[at].target), folder.join(SCRIPT));
    let identity = if arguments.same_identity { Identity::Same } else { Identity::New };
    let about = format!(
        "{}, point {} of {}",
        manifest.machine_name,
        manifest.point,
        crate::text::utc_time(manifest.snapshot_time)
    );
    let (files, world, at) = (files.clone(), context.world.clone(), script.clone());
    let written = blocking(move || {
        let read = std::fs::read(&described).map_err(|error| Error::target("cannot be read again").because(error))?;
        let text = start_script(&Definition::read(&read)?, &about, &files, identity, &world)?;
        let written =
            std::fs::write(&at, text).and_then(|()| std::fs::set_permissions(&at, Permissions::from_mode(0o700)));
        written.map_err(|error| Error::target(format!("cannot write {}", at.display())).because(error))
    });
    match written.await {
        Ok(()) => Ok(Some(script.display().to_string())),
        // The disks are there: that is what matters.
        Err(error) if error.kind() == ErrorKind::Usage => {
            context.out.warn(&format!("there is no script that starts the machine: {error}"));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// A name for the file: its own where that is harmless and free.
fn file_name(attachment: &Attachment, at: usize, taken: &mut BTreeSet<String>) -> String {
    let plain = |it: char| it.is_ascii_alphanumeric() || matches!(it, '.' | '_' | '-');
    let own = &attachment.name;
    let harmless = own.chars().all(plain) && own.starts_with(|it: char| it.is_ascii_alphanumeric()) && own.len() <= 128;
    let name =
        if harmless && !taken.contains(own) { own.clone() } else { format!("{}-{at}.attached", attachment.kind) };
    taken.insert(name.clone());
    name
}

/// An error in the middle, with what is there already.
fn told(error: Error, copies: &Copies, summary: &MachineSummary) -> Error {
    let done: Vec<_> = summary.disks.iter().map(|it| it.disk.as_str()).collect();
    let error = no_copy(error, copies.repositories.len() > 1);
    if done.is_empty() {
        return error;
    }
    error.hint(format!("restored before that: {}; run the same command with --delta to go on", done.join(", ")))
}

const SCRIPT: &str = "start";
