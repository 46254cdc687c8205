//! A qcow2 image as target, through a `qemu-nbd` of our own.

use super::Existing;
use super::place::{NewFile, Over, exists, in_use, must_not_exist, nothing_to_update, target_error};
use crate::lock::{Locked, Purpose, lock_image};
use crate::nbd::{NbdDisk, NbdError};
use crate::qemu::{Access, NbdServerProcess, ServeError, ServeOptions, ToolError, create_qcow2};
use crate::source::nbd_error;
use bytes::Bytes;
use chunker::{Extent, ExtentSet};
use mover::{Error, ErrorKind, Result, blocking};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// An open qcow2 target.
#[derive(Debug)]
pub struct Qcow2Target {
    path: PathBuf,
    /// Before the process, so that its connections are closed when it is ended.
    disk: NbdDisk,
    server: NbdServerProcess,
    /// The new image and the lock on the one that it replaces; none when an image is written in place.
    new: Option<(NewFile, Option<File>)>,
    over: Over,
}

impl Qcow2Target {
    /// Makes an image for a disk of `size` bytes, or opens one with [`Existing::Keep`], whatever its size.
    ///
    /// # Errors
    /// `Usage`, `Busy`, `Target`, `TargetFull`.
    pub async fn open(path: &Path, size: u64, existing: Existing) -> Result<Self> {
        let path = std::path::absolute(path).map_err(|error| target_error(error, path))?;
        let over = if existing == Existing::Refuse { Over::Nothing } else { Over::Anything };
        let look = path.clone();
        let old = blocking(move || look_at_old(&look, existing)).await?;
        if existing == Existing::Keep {
            // qemu-nbd takes the lock itself.
            drop(old.ok_or_else(|| nothing_to_update(&path))?);
            let (mut server, disk) = serve(&path, &path).await?;
            server.end_in_order();
            return Ok(Self { path, server, disk, new: None, over });
        }
        let place = path.clone();
        let new = blocking(move || NewFile::partial(&place).map_err(|error| target_error(error, &place)));
        let (new, _) = new.await?;
        let partial = new.partial_path().expect("it has a name").to_owned();
        create_qcow2(&partial, size).await.map_err(|error| tool_error(error, &path))?;
        let (server, disk) = serve(&partial, &path).await?;
        Ok(Self { path, server, disk, new: Some((new, old)), over })
    }

    /// Bytes it can hold.
    pub fn size(&self) -> u64 {
        self.disk.export().size
    }

    /// Writes `bytes` at `offset`.
    ///
    /// # Errors
    /// `Target`, `TargetFull`.
    pub async fn write(&self, offset: u64, bytes: Bytes) -> Result<()> {
        self.disk.write(offset, bytes).await.map_err(|error| local_error(error, &self.path))
    }

    /// Makes `extent` read as zeros.
    ///
    /// # Errors
    /// `Target`, `TargetFull`.
    pub async fn zero(&self, extent: Extent) -> Result<()> {
        self.disk.zero(extent).await.map_err(|error| local_error(error, &self.path))
    }

    /// The bytes of `extent`.
    ///
    /// # Errors
    /// `Target`.
    pub async fn read(&self, extent: Extent) -> Result<Bytes> {
        self.disk.read(extent).await.map_err(|error| local_error(error, &self.path))
    }

    /// What is not allocated, or marked as zeros.
    ///
    /// # Errors
    /// `Target`.
    pub async fn zeroes(&self) -> Result<ExtentSet> {
        let extents = self.disk.extents().await.map_err(|error| local_error(error, &self.path))?;
        Ok(extents.zeroes)
    }

    /// Makes everything durable, ends the process, and makes a new image visible.
    ///
    /// # Errors
    /// `Target`, `TargetFull`; `Usage` when somebody made a file of the name meanwhile.
    pub async fn finish(self) -> Result<()> {
        let Self { path, server, disk, new, over } = self;
        disk.flush().await.map_err(|error| local_error(error, &path))?;
        drop(disk);
        server.stop().await.map_err(|error| tool_error(error, &path))?;
        blocking(move || {
            let failed = |error: io::Error| match error.kind() {
                io::ErrorKind::AlreadyExists => exists(&path),
                _ => target_error(error, &path),
            };
            let written = new.as_ref().and_then(|(new, _)| new.partial_path()).unwrap_or(&path);
            // The process wrote its tables when it closed the image, after the flush.
            let file = File::open(written).map_err(failed)?;
            file.sync_all().map_err(failed)?;
            new.map_or(Ok(()), |(new, _old)| new.appear(&file, over).map_err(failed))
        })
        .await
    }
}

/// The file at `path`, locked, when there is one.
fn look_at_old(path: &Path, existing: Existing) -> Result<Option<File>> {
    if existing == Existing::Refuse {
        return must_not_exist(path).map(|()| None);
    }
    let file = match File::options().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(target_error(error, path)),
    };
    if !file.metadata().map_err(|error| target_error(error, path))?.is_file() {
        return Err(Error::usage(format!("{} is not a file", path.display())));
    }
    match lock_image(&file, Purpose::Write).map_err(|error| target_error(error, path))? {
        Locked::Conflict => Err(in_use(path)),
        Locked::Held | Locked::Unsupported => Ok(Some(file)),
    }
}

async fn serve(image: &Path, path: &Path) -> Result<(NbdServerProcess, NbdDisk)> {
    let options = ServeOptions { path: image, format: "qcow2", bitmaps: &[], access: Access::Write };
    NbdServerProcess::start(&options).await.map_err(|error| match error {
        ServeError::Tool(error) => tool_error(error, path),
        ServeError::Nbd(error) => local_error(error, path),
    })
}

fn tool_error(error: ToolError, path: &Path) -> Error {
    if error.is_lock() { in_use(path) } else { error.about(path, ErrorKind::Target) }
}

/// The server is our own process: a broken connection is no matter of networks.
fn local_error(error: NbdError, path: &Path) -> Error {
    match error {
        NbdError::Request { .. } => nbd_error(error, ErrorKind::Target),
        _ => Error::target(error.to_string()),
    }
    .context(path.display())
}
