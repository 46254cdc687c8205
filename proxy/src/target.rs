//! Where disks are restored to: files, block devices, qcow2 images, NBD exports.

mod file;
mod new_file;
mod qcow2;

use crate::address::{ImageFormat, TargetAddress};
use crate::nbd::{NbdDisk, NbdUri};
use crate::source::nbd_error;
use bytes::Bytes;
use chunker::{Extent, ExtentSet};
use file::FileTarget;
use mover::{Error, ErrorKind, Result, Target};
use qcow2::Qcow2Target;

/// What to do about a file that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// Fail when there is one.
    #[default]
    Refuse,
    /// Its content is lost: a raw file is emptied at once, a qcow2 image is replaced when the new one is complete.
    Replace,
    /// Update it: it must be there and large enough, and what is neither written nor zeroed stays, behind the disk's end
    /// too. However the update ends, the file is never removed.
    Keep,
}

/// One disk that is being written.
#[derive(Debug)]
pub enum DiskTarget {
    /// A raw file or block device.
    File(FileTarget),
    /// A qcow2 image.
    Qcow2(Box<Qcow2Target>),
    /// An NBD export.
    Nbd(NbdTarget),
}

impl DiskTarget {
    /// Opens or makes the target for a disk of `size` bytes. Block devices and exports are overwritten whatever
    /// `existing` says: they always exist, and the caller asked for consent.
    ///
    /// # Errors
    /// `Usage` when a file exists or the target is too small or read-only, `Busy` when somebody uses it, `Target`,
    /// `TargetFull`, `Transport`.
    pub async fn open(address: &TargetAddress, size: u64, existing: Existing) -> Result<Self> {
        let opened = match address {
            TargetAddress::File { path, format: ImageFormat::Raw, named } => {
                FileTarget::file(path, *named, size, existing).await.map(Self::File)
            }
            TargetAddress::File { path, format: ImageFormat::Qcow2, .. } => {
                Qcow2Target::open(path, size, existing).await.map(|target| Self::Qcow2(Box::new(target)))
            }
            TargetAddress::Device(path) => FileTarget::device(path).await.map(Self::File),
            TargetAddress::Nbd(uri) => NbdTarget::open(uri).await.map(Self::Nbd),
        }?;
        if opened.size() < size {
            let have = opened.size();
            return Err(Error::usage(format!("{address} has {have} bytes, and the disk has {size}")).hint(
                match existing {
                    Existing::Keep => "make it larger (`qemu-img resize`), or restore to a new target without --delta",
                    Existing::Refuse | Existing::Replace => "restore to a target that is at least as large",
                },
            ));
        }
        Ok(opened)
    }
}

impl Target for DiskTarget {
    fn size(&self) -> u64 {
        match self {
            Self::File(file) => file.size(),
            Self::Qcow2(qcow2) => qcow2.size(),
            Self::Nbd(nbd) => nbd.disk.export().size,
        }
    }

    async fn write(&self, offset: u64, bytes: Bytes) -> Result<()> {
        match self {
            Self::File(file) => file.write(offset, bytes).await,
            Self::Qcow2(qcow2) => qcow2.write(offset, bytes).await,
            Self::Nbd(nbd) => nbd.told(nbd.disk.write(offset, bytes).await),
        }
    }

    async fn zero(&self, extent: Extent) -> Result<()> {
        match self {
            Self::File(file) => file.zero(extent).await,
            Self::Qcow2(qcow2) => qcow2.zero(extent).await,
            Self::Nbd(nbd) => nbd.told(nbd.disk.zero(extent).await),
        }
    }

    async fn read(&self, extent: Extent) -> Result<Bytes> {
        match self {
            Self::File(file) => file.read(extent).await,
            Self::Qcow2(qcow2) => qcow2.read(extent).await,
            Self::Nbd(nbd) => nbd.told(nbd.disk.read(extent).await),
        }
    }

    async fn zeroes(&self) -> Result<ExtentSet> {
        match self {
            Self::File(file) => file.zeroes().await,
            Self::Qcow2(qcow2) => qcow2.zeroes().await,
            Self::Nbd(nbd) => nbd.told(nbd.disk.extents().await).map(|extents| extents.zeroes),
        }
    }

    async fn finish(self) -> Result<()> {
        match self {
            Self::File(file) => file.finish().await,
            Self::Qcow2(qcow2) => qcow2.finish().await,
            Self::Nbd(nbd) => nbd.told(nbd.disk.flush().await),
        }
    }
}

/// An export that is written to.
#[derive(Debug)]
pub struct NbdTarget {
    disk: NbdDisk,
    uri: NbdUri,
}

impl NbdTarget {
    async fn open(uri: &NbdUri) -> Result<Self> {
        let disk = NbdDisk::open(&uri.server, &uri.export, &[], uri.patience()).await;
        let disk = disk.map_err(|error| nbd_error(error, ErrorKind::Target).context(uri))?;
        if disk.export().flags.is_read_only() {
            return Err(Error::usage(format!("{uri} is read-only")));
        }
        Ok(Self { disk, uri: uri.clone() })
    }

    fn told<V>(&self, done: Result<V, crate::nbd::NbdError>) -> Result<V> {
        done.map_err(|error| nbd_error(error, ErrorKind::Target).context(&self.uri))
    }
}
