//! A raw image file or block device as source.

use super::identity::{ImageFile, Stamp, identity};
use super::{Described, SourceOptions};
use crate::lock::{Locked, Purpose, lock_image};
use crate::qemu::{FileKind, busy};
use bytes::Bytes;
use chunker::{Extent, ExtentSet};
use mover::{Changed, Error, ParentDisk, Result, TrackingWish, blocking};
use rustix::fs::{OFlags, SeekFrom};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Seek};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;

/// An open raw disk. The open file holds QEMU's image lock: no machine can begin to write to it.
#[derive(Debug)]
pub struct RawDisk {
    file: Arc<File>,
    path: PathBuf,
    size: u64,
    stamp: Stamp,
}

impl RawDisk {
    /// Opens and locks it.
    ///
    /// # Errors
    /// `Busy` when a process that uses QEMU's locks has it open for writing; `Source` when it cannot be opened.
    pub async fn open(image: ImageFile, _options: &SourceOptions) -> Result<(Self, Described)> {
        blocking(move || {
            let place = image.path.clone();
            let failed = |error: io::Error| Error::source("cannot be opened").because(error).context(place.display());
            let (file, in_use) = open(&image).map_err(failed)?;
            let mut warnings: Vec<String> = image.warning.into_iter().chain(in_use).collect();
            match lock_image(&file, Purpose::Read).map_err(failed)? {
                Locked::Held => {}
                Locked::Conflict => return Err(busy(&image.path)),
                Locked::Unsupported => {
                    let what =
                        "the file system has no locks: a machine that writes is only noticed by the file's times";
                    warnings.push(what.to_owned());
                }
            }
            let stamp = Stamp::of(&image.path, &file.metadata().map_err(failed)?);
            let size = (&file).seek(io::SeekFrom::End(0)).map_err(failed)?;
            let layer = identity(&image.path).map_err(failed)?;
            let mut described =
                Described { size, format: "raw", chain: vec![layer], ..Described::default() }.warned(warnings);
            if image.kind == FileKind::Device {
                described.logical_sector_bytes = rustix::fs::ioctl_blksszget(&file).unwrap_or(0);
                described.physical_sector_bytes = rustix::fs::ioctl_blkpbszget(&file).unwrap_or(0);
            }
            Ok((Self { file: Arc::new(file), path: image.path, size, stamp }, described))
        })
        .await
    }

    /// Nothing is tracked; holes are known.
    ///
    /// # Errors
    /// `Tracking` when a bitmap was demanded.
    pub async fn changed(&self, parent: Option<ParentDisk<'_>>, wish: TrackingWish) -> Result<Changed> {
        let reason = "raw images have no change tracking";
        let mut changed = super::untracked(parent, wish, reason)?;
        let (file, size) = (self.file.clone(), self.size);
        let holes = blocking(move || holes(&file, size)).await;
        changed.zeroes = holes.map_err(|error| self.failed("its holes cannot be read", error))?;
        Ok(changed)
    }

    /// Reads `extent`.
    ///
    /// # Errors
    /// `Source`.
    pub async fn read(&self, extent: Extent) -> Result<Bytes> {
        let file = self.file.clone();
        blocking(move || read_extent(&file, extent))
            .await
            .map_err(|error| self.failed(&format!("cannot read {} bytes at {}", extent.length, extent.offset), error))
    }

    /// Compares size and times with those at the beginning.
    ///
    /// # Errors
    /// `Source` when they differ.
    pub async fn check(&self) -> Result<()> {
        let stamp = self.stamp.clone();
        blocking(move || Stamp::check(&[stamp])).await
    }

    fn failed(&self, what: &str, error: io::Error) -> Error {
        Error::source(what).because(error).context(self.path.display())
    }
}

/// The file, and what is to be said about it.
fn open(image: &ImageFile) -> io::Result<(File, Option<String>)> {
    let flags = |more: OFlags| (OFlags::NONBLOCK | more).bits().cast_signed();
    let open = |more| File::options().read(true).custom_flags(flags(more)).open(&image.path);
    if image.kind == FileKind::Regular {
        return open(OFlags::empty()).map(|file| (file, None));
    }
    // For a block device this means: nobody else of the kernel or of those who ask likewise has it.
    match open(OFlags::EXCL) {
        Ok(file) => Ok((file, None)),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            let warning = "the device is in use (mounted, or part of another device): the backup may contain states of \
                           different moments";
            open(OFlags::empty()).map(|file| (file, Some(warning.into())))
        }
        Err(error) => Err(error),
    }
}

/// Ranges that the file system stores nothing for; none where it cannot tell.
pub fn holes(file: &File, size: u64) -> io::Result<ExtentSet> {
    let mut holes = ExtentSet::new();
    let mut at = 0;
    while at < size {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data.min(size),
            // No data up to the end.
            Err(Errno::NXIO) => size,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(ExtentSet::new()),
            Err(error) => return Err(error.into()),
        };
        holes.insert(Extent::from(at..data));
        if data >= size {
            break;
        }
        at = rustix::fs::seek(file, SeekFrom::Hole(data))?;
        if at <= data {
            return Err(io::Error::other("the file system reports a hole where it reported data"));
        }
    }
    Ok(holes)
}

/// Exactly the bytes of `extent`, without zeroing the buffer first.
pub fn read_extent(file: &File, extent: Extent) -> io::Result<Bytes> {
    let length = usize::try_from(extent.length).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let at = extent.offset + bytes.len() as u64;
        match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut bytes), at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // The allocation may be longer than was asked for.
    bytes.truncate(length);
    Ok(bytes.into())
}

/// Exactly the bytes of `extents`, one after the other.
pub fn read_extents(file: &File, extents: &[Extent]) -> io::Result<Bytes> {
    if let [only] = extents {
        return read_extent(file, *only);
    }
    let length = usize::try_from(extents.iter().map(|extent| extent.length).sum::<u64>()).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    let mut rest = &mut bytes[..];
    for extent in extents {
        let (now, later) = rest.split_at_mut(extent.length as usize);
        file.read_exact_at(now, extent.offset)?;
        rest = later;
    }
    Ok(bytes.into())
}
