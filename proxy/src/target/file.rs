//! A raw file or block device as target.

use super::Existing;
use super::new_file::{
    NewFile, Over, behind_links, exists, in_use, must_not_exist, nothing_to_update, read_error, target_error,
};
use crate::address::Named;
use crate::lock::{Locked, Purpose, lock_image};
use crate::source::{holes, read_extent};
use bytes::Bytes;
use chunker::{Extent, ExtentSet};
use mover::{DIRECT_BYTES, Error, Result, blocking, direct_prefix};
use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An open raw target.
#[derive(Debug)]
pub struct FileTarget {
    file: Arc<File>,
    /// The same file for writing past the page cache, where the file system can: what is restored is not read again
    /// soon, and copying it through the page cache costs more than decoding it.
    direct: Option<Arc<File>>,
    path: PathBuf,
    size: u64,
    content: Content,
    /// Where it appears when it is complete; none when it is written in place.
    new: Option<NewFile>,
}

/// What is in it before it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    /// Nothing: it reads as zeros.
    Zero,
    /// Anything: bytes of an older state.
    Old,
}

impl FileTarget {
    /// A file of exactly `size` bytes. With [`Existing::Keep`] the file keeps the size that it has.
    ///
    /// # Errors
    /// `Usage`, `Busy`, `Target`, `TargetFull`.
    pub async fn file(path: &Path, named: Named, size: u64, existing: Existing) -> Result<Self> {
        let path = path.to_owned();
        blocking(move || {
            let path = behind_links(&path)?;
            let failed = |error| target_error(error, &path);
            if existing == Existing::Refuse {
                must_not_exist(&path)?;
            }
            let old = match File::options().read(true).write(true).open(&path) {
                Ok(_) if existing == Existing::Refuse => return Err(exists(&path)),
                Ok(file) => Some(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound && existing == Existing::Keep => {
                    return Err(nothing_to_update(&path));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(failed(error)),
            };
            let (file, new, content) = match old {
                None => {
                    let (new, file) = NewFile::unnamed(&path).map_err(failed)?;
                    (file, Some(new), Content::Zero)
                }
                Some(file) => {
                    if !file.metadata().map_err(failed)?.is_file() {
                        return Err(Error::usage(format!("{} is not a file", path.display())));
                    }
                    if lock_image(&file, Purpose::Write).map_err(failed)? == Locked::Conflict {
                        return Err(in_use(&path));
                    }
                    if named == Named::Loosely {
                        expect_raw(&file, &path)?;
                    }
                    if existing == Existing::Keep {
                        let size = file.metadata().map_err(failed)?.len();
                        return Ok(Self {
                            direct: direct(&file),
                            file: Arc::new(file),
                            path,
                            size,
                            content: Content::Old,
                            new: None,
                        });
                    }
                    file.set_len(0).map_err(failed)?;
                    (file, None, Content::Zero)
                }
            };
            file.set_len(size).map_err(failed)?;
            Ok(Self { direct: direct(&file), file: Arc::new(file), path, size, content, new })
        })
        .await
    }

    /// A block device, which nobody else may have.
    ///
    /// # Errors
    /// `Busy` when it is mounted or otherwise used, `Target`.
    pub async fn device(path: &Path) -> Result<Self> {
        let path = path.to_owned();
        blocking(move || {
            let failed = |error| target_error(error, &path);
            let flags = (OFlags::EXCL | OFlags::CLOEXEC).bits().cast_signed();
            let file = match File::options().read(true).write(true).custom_flags(flags).open(&path) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Err(in_use(&path)),
                opened => opened.map_err(failed)?,
            };
            if lock_image(&file, Purpose::Write).map_err(failed)? == Locked::Conflict {
                return Err(in_use(&path));
            }
            let size = (&file).seek(io::SeekFrom::End(0)).map_err(failed)?;
            Ok(Self { direct: direct(&file), file: Arc::new(file), path, size, content: Content::Old, new: None })
        })
        .await
    }

    /// Bytes it can hold.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Writes `bytes` at `offset`.
    ///
    /// # Errors
    /// `Target`, `TargetFull`.
    pub async fn write(&self, offset: u64, bytes: Bytes) -> Result<()> {
        let (file, direct) = (self.file.clone(), self.direct.clone());
        let written = blocking(move || {
            let direct = direct.map_or(Ok(0), |direct| write_direct(&direct, offset, &bytes))?;
            file.write_all_at(&bytes[direct..], offset + direct as u64)
        });
        let written = written.await;
        written.map_err(|error| target_error(error, &self.path))
    }

    /// Makes `extent` read as zeros: a hole where that can be.
    ///
    /// # Errors
    /// `Target`, `TargetFull`.
    pub async fn zero(&self, extent: Extent) -> Result<()> {
        if self.content == Content::Zero {
            return Ok(());
        }
        // In steps, so that a job over a large device can be stopped.
        for extent in ExtentSet::from_iter([extent]).split(ZERO_BYTES_MAX) {
            let file = self.file.clone();
            blocking(move || zero(&file, extent)).await.map_err(|error| target_error(error, &self.path))?;
        }
        Ok(())
    }

    /// The bytes of `extent`.
    ///
    /// # Errors
    /// `Target`.
    pub async fn read(&self, extent: Extent) -> Result<Bytes> {
        let file = self.file.clone();
        let read = blocking(move || read_extent(&file, extent)).await;
        read.map_err(|error| read_error(error, &self.path, extent))
    }

    /// Holes, where the file system knows them.
    ///
    /// # Errors
    /// `Target`.
    pub async fn zeroes(&self) -> Result<ExtentSet> {
        let (file, size) = (self.file.clone(), self.size);
        let holes = blocking(move || holes(&file, size)).await;
        holes.map_err(|error| read_error(error, &self.path, Extent::new(0, size)))
    }

    /// Makes everything durable, and a new file visible.
    ///
    /// # Errors
    /// `Target`, `TargetFull`; `Usage` when somebody made a file of the name meanwhile.
    pub async fn finish(self) -> Result<()> {
        let Self { file, path, new, direct, .. } = self;
        drop(direct);
        blocking(move || {
            let failed = |error: io::Error| match error.kind() {
                io::ErrorKind::AlreadyExists => exists(&path),
                _ => target_error(error, &path),
            };
            file.sync_all().map_err(failed)?;
            new.map_or(Ok(()), |new| new.appear(&file, Over::Nothing).map_err(failed))
        })
        .await
    }
}

/// Another handle to `file` that goes past the page cache.
fn direct(file: &File) -> Option<Arc<File>> {
    let flags = (OFlags::DIRECT | OFlags::CLOEXEC).bits().cast_signed();
    let this = format!("/proc/self/fd/{}", file.as_raw_fd());
    File::options().write(true).custom_flags(flags).open(this).ok().map(Arc::new)
}

/// Writes the aligned part of `bytes`, and gives its length in bytes.
fn write_direct(file: &File, offset: u64, bytes: &[u8]) -> io::Result<usize> {
    if !offset.is_multiple_of(DIRECT_BYTES as u64) {
        return Ok(0);
    }
    let bytes = direct_prefix(bytes);
    match file.write_all_at(bytes, offset) {
        Ok(()) => Ok(bytes.len()),
        // The disk has larger sectors. Writing a part twice is harmless.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(0),
        Err(error) => Err(error),
    }
}

/// Refuses a file that begins like a qcow2 image and whose name leaves its format open, because a raw disk would
/// destroy such an image. The content never decides the format (T10), because a guest may have written it.
fn expect_raw(file: &File, path: &Path) -> Result<()> {
    let mut magic = [0; 4];
    match file.read_exact_at(&mut magic, 0) {
        Ok(()) if magic == QCOW2_MAGIC => {}
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(target_error(error, path)),
        _ => return Ok(()),
    }
    Err(Error::usage(format!(
        "{} begins like a qcow2 image, and its name does not say which format it has",
        path.display()
    ))
    .hint("write ?format=qcow2 behind it to update that image, or ?format=raw if the guest itself wrote these bytes"))
}

fn zero(file: &File, extent: Extent) -> io::Result<()> {
    let Extent { offset, length } = extent;
    for how in [FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE] {
        match fallocate(file, how | FallocateFlags::KEEP_SIZE, offset, length) {
            Ok(()) => return Ok(()),
            // Not known there, or not for such odd ranges.
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NODEV | Errno::NOSYS) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut at = offset;
    while at < extent.end() {
        let piece = (extent.end() - at).min(ZEROES.len() as u64);
        file.write_all_at(&ZEROES[..piece as usize], at)?;
        at += piece;
    }
    Ok(())
}

const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";
/// Bytes made zero by one call.
const ZERO_BYTES_MAX: u64 = 1 << 30;
static ZEROES: [u8; 1 << 20] = [0; 1 << 20];
