//! A qcow2 image as target, through a `qemu-nbd` of our own.

use super::Existing;
use super::new_file::{
    NewFile, Over, Owner, behind_links, exists, in_use, must_not_exist, nothing_to_update, target_error,
};
use crate::lock::{Locked, Purpose, lock_image};
use crate::nbd::{NbdDisk, NbdError};
use crate::qemu::{Access, Graph, NbdServerProcess, ServeError, ServeOptions, ToolError, create_qcow2};
use crate::source::nbd_error;
use bytes::Bytes;
use chunker::{Extent, ExtentSet};
use mover::{Error, ErrorKind, Result, blocking};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// An open qcow2 target.
#[derive(Debug)]
pub struct Qcow2Target {
    path: PathBuf,
    /// Declared before the process, so that the connections are closed when the process is ended.
    disk: NbdDisk,
    server: NbdServerProcess,
    /// The new image and the lock on the one that it replaces; none when an image is written in place.
    new: Option<(NewFile, Option<Old>)>,
    over: Over,
}

/// The image that is replaced: locked, and whose it is.
#[derive(Debug)]
struct Old {
    _locked: File,
    owner: Owner,
}

impl Qcow2Target {
    /// Makes an image for a disk of `size` bytes, or opens one with [`Existing::Keep`], whatever its size.
    ///
    /// # Errors
    /// `Usage`, `Busy`, `Target`, `TargetFull`.
    pub async fn open(path: &Path, size: u64, existing: Existing) -> Result<Self> {
        let link = std::path::absolute(path).map_err(|error| target_error(error, path))?;
        let path = blocking(move || behind_links(&link)).await?;
        let over = if existing == Existing::Refuse { Over::Nothing } else { Over::Anything };
        let look = path.clone();
        let old = blocking(move || look_at_old(&look, existing)).await?;
        if existing == Existing::Keep {
            let old = old.ok_or_else(|| nothing_to_update(&path))?;
            let look = path.clone();
            // qemu-nbd takes the lock itself.
            let old = blocking(move || only_itself(&old._locked, &look).map(|()| old)).await?;
            drop(old);
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

    /// Makes `extent` read as zeros. A new image does so: nothing is written, and no table grows.
    ///
    /// # Errors
    /// `Target`, `TargetFull`.
    pub async fn zero(&self, extent: Extent) -> Result<()> {
        if self.new.is_some() {
            return Ok(());
        }
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
            let Some((new, old)) = new else { return Ok(()) };
            if let Some(old) = &old {
                old.owner.give(&file, &path).and_then(|()| file.sync_all()).map_err(failed)?;
            }
            new.appear(&file, over).map_err(failed)
        })
        .await
    }
}

/// The file at `path`, locked, when there is one.
fn look_at_old(path: &Path, existing: Existing) -> Result<Option<Old>> {
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
        Locked::Held | Locked::Unsupported => {
            let owner = Owner::of(&file).map_err(|error| target_error(error, path))?;
            Ok(Some(Old { _locked: file, owner }))
        }
    }
}

/// Refuses an image that must not be updated in place, because the update would write to another file that its header
/// names (T10). Only files in the image's own folder count as parts of the image.
fn only_itself(file: &File, path: &Path) -> Result<()> {
    let names = Names::read(file).map_err(|error| target_error(error, path))?;
    let names = names.ok_or_else(|| {
        Error::usage(format!("{} is not a qcow2 image", path.display()))
            .hint("write ?format=raw behind it if it is a raw disk, or use --overwrite instead of --delta")
    })?;
    for (what, name) in [("data", names.data), ("backing", names.backing)] {
        let Some(name) = name else { continue };
        if !lies_beside(path, &name) {
            return Err(Error::usage(format!(
                "{}: its header names the {what} file {name:?}, which is not in the same folder",
                path.display()
            ))
            .hint("nothing was written; restore to a new image, or with --overwrite instead of --delta"));
        }
    }
    Ok(())
}

fn lies_beside(path: &Path, name: &str) -> bool {
    // What QEMU would take for a protocol is no path, whatever file there may be.
    let scheme = name.split('/').next().is_some_and(|first| first.contains(':'));
    let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
    let (Some(folder), false) = (folder, scheme) else { return false };
    folder.join(name).canonicalize().is_ok_and(|file| file.starts_with(&folder) && file.is_file())
}

/// Other files that a qcow2 header names (QEMU's `docs/interop/qcow2.rst`).
#[derive(Default)]
struct Names {
    backing: Option<String>,
    data: Option<String>,
}

impl Names {
    /// None when it is no header.
    fn read(file: &File) -> io::Result<Option<Self>> {
        // Header, extensions and the name of the backing file lie in the first cluster.
        let mut bytes = vec![0; HEADER_BYTES_MAX];
        let mut length = 0;
        loop {
            match file.read_at(&mut bytes[length..], length as u64)? {
                0 => break,
                got => length += got,
            }
        }
        bytes.truncate(length);
        Ok(Self::of(&bytes))
    }

    fn of(bytes: &[u8]) -> Option<Self> {
        let array = |at: usize| bytes.get(at..at + 4).map(|it| u32::from_be_bytes(it.try_into().expect("four bytes")));
        let text = |at: usize, length: usize| {
            bytes.get(at..at.checked_add(length)?).map(|it| String::from_utf8_lossy(it).into_owned())
        };
        let version = array(4).filter(|_| bytes.starts_with(b"QFI\xfb"))?;
        let backing_at = (u64::from(array(8)?) << 32 | u64::from(array(12)?), array(16)? as usize);
        let mut names = Self::default();
        if backing_at.0 != 0 {
            // One that lies elsewhere is odd enough to be refused, under no name.
            let name = usize::try_from(backing_at.0).ok().and_then(|at| text(at, backing_at.1));
            names.backing = Some(name.unwrap_or_default());
        }
        if version >= 3 && array(76)? & EXTERNAL_DATA_FILE != 0 {
            names.data = Some(String::new());
        }
        let mut at = if version >= 3 { array(100)? as usize } else { 72 };
        while let (Some(kind @ 1..), Some(length)) = (array(at), array(at + 4)) {
            if kind == DATA_FILE_NAME {
                names.data = Some(text(at + 8, length as usize).unwrap_or_default());
            }
            at = at.checked_add(8 + (length as usize).next_multiple_of(8))?;
        }
        Some(names)
    }
}

const HEADER_BYTES_MAX: usize = 64 << 10;
const EXTERNAL_DATA_FILE: u32 = 1 << 2;
const DATA_FILE_NAME: u32 = 0x4441_5441;

async fn serve(image: &Path, path: &Path) -> Result<(NbdServerProcess, NbdDisk)> {
    let image = Graph::alone(image)?;
    let options = ServeOptions { image: &image, bitmaps: &[], access: Access::Write };
    NbdServerProcess::start(&options).await.map_err(|error| match error {
        ServeError::Tool(error) => tool_error(error, path),
        ServeError::Nbd(error) => local_error(error, path),
    })
}

fn tool_error(error: ToolError, path: &Path) -> Error {
    if error.is_lock() { in_use(path) } else { error.about(path, ErrorKind::Target) }
}

/// The error for `path`. A broken connection is no network error here, because the server is our own process.
fn local_error(error: NbdError, path: &Path) -> Error {
    match error {
        NbdError::Request { .. } => nbd_error(error, ErrorKind::Target),
        _ => Error::target(error.to_string()),
    }
    .context(path.display())
}
