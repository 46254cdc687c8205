//! `windlass restore --attachment`

use super::stdout::Stdout;
use super::{Copies, not_in_a_repository, open_copies};
use crate::address::Attachment as Wanted;
use crate::cli::Restore;
use crate::context::{Context, Exit};
use crate::open;
use crate::text::{escaped, size};
use bytes::Bytes;
use chunker::DomainKeys;
use mover::event::{AttachmentSummary, JobSummary};
use mover::{
    Attachment, Error, Failover, Manifest, ReadSession as _, Repository as _, Result, Sink, blocking, read_attachment,
};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

pub async fn run(context: &Context, arguments: &Restore, wanted: &Wanted) -> Result<Exit> {
    if arguments.to != "-" {
        not_in_a_repository(Path::new(&arguments.to))?;
    }
    let copies = open_copies(context, arguments).await?;
    let made = context.stop.race(from_copies(arguments, wanted, &copies)).await;
    for (_, repository) in copies.repositories {
        if let Err(error) = open::close(repository).await {
            tracing::warn!(%error, "a repository could not be closed cleanly");
        }
    }
    let (manifest, attachment) = made?;
    if arguments.to == "-" {
        return Ok(Exit::Done);
    }
    let summary = AttachmentSummary::of(&manifest, &attachment, arguments.to.clone());
    context.out.summary(JobSummary::Attachment(summary.clone()), || {
        let (name, to) = (escaped(&summary.attachment), escaped(&arguments.to));
        context.out.line(&format!("restored {name} of {} to {to}: {}", summary.machine, size(attachment.bytes)));
    });
    Ok(Exit::Done)
}

async fn from_copies(arguments: &Restore, wanted: &Wanted, copies: &Copies) -> Result<(Manifest, Attachment)> {
    let mut sessions = Vec::new();
    for (address, repository) in &copies.repositories {
        sessions.push((address.clone(), repository.read(&[copies.point]).await?));
    }
    let session = Failover::new(sessions);
    let manifest = session.manifest(copies.point).await?;
    let attachment = choose(&manifest, wanted)?.clone();
    let keys = DomainKeys::new(&copies.repositories[0].1.config().domain);
    if arguments.to == "-" {
        read_attachment(&session, &keys, &attachment, Stdout).await?;
    } else {
        let mut made = Made::new(PathBuf::from(&arguments.to)).await?;
        read_attachment(&session, &keys, &attachment, &mut made).await?;
        made.finish().await?;
    }
    Ok((manifest, attachment))
}

fn choose<'a>(manifest: &'a Manifest, wanted: &Wanted) -> Result<&'a Attachment> {
    let has = |it: &&Attachment| it.kind == wanted.kind && wanted.name.as_ref().is_none_or(|name| *name == it.name);
    let names = || {
        let all = manifest.attachments.iter().map(|it| escaped(&format!("{}/{}", it.kind, it.name)));
        all.collect::<Vec<_>>().join(", ")
    };
    let mut found = manifest.attachments.iter().filter(has);
    match (found.next(), found.next()) {
        (Some(only), None) => Ok(only),
        (None, _) if manifest.attachments.is_empty() => Err(Error::not_found("nothing is attached to the point")
            .hint("`windlass show POINT` lists its disks and attached files")),
        (None, _) => {
            Err(Error::not_found(format!("the point has no attachment {wanted}")).hint(format!("it has: {}", names())))
        }
        (Some(_), Some(_)) => {
            Err(Error::usage(format!("several attachments match {wanted}")).hint(format!("choose one of: {}", names())))
        }
    }
}

/// A file that was not there, for its owner alone: NVRAM and TPM state are secrets. It goes again unless it is finished.
pub struct Made {
    path: PathBuf,
    file: Option<File>,
}

impl Made {
    pub async fn new(path: PathBuf) -> Result<Self> {
        let at = path.clone();
        let file = blocking(move || File::options().write(true).create_new(true).mode(0o600).open(at)).await;
        let file = file.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                Error::usage(format!("{} already exists", path.display())).hint("choose a new file")
            }
            _ => Error::target(format!("cannot write {}", path.display())).because(error),
        })?;
        Ok(Self { path, file: Some(file) })
    }

    pub async fn finish(mut self) -> Result<()> {
        let Some(file) = self.file.take() else { return Ok(()) };
        let synced = blocking(move || file.sync_all()).await;
        synced.map_err(|error| Error::target(format!("cannot write {}", self.path.display())).because(error))
    }
}

impl Sink for &mut Made {
    async fn write(&mut self, parts: Vec<Bytes>) -> Result<()> {
        let Some(mut file) = self.file.as_ref().and_then(|file| file.try_clone().ok()) else {
            return Err(Error::internal("a file that is finished already"));
        };
        let written = blocking(move || parts.iter().try_for_each(|part| file.write_all(part))).await;
        written.map_err(|error| Error::target(format!("cannot write {}", self.path.display())).because(error))
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if self.file.is_some() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
