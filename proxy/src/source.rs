//! Where disks are read from: files, block devices, qcow2 images, NBD exports; several as one snapshot session.

mod chain;
mod evidence;
mod identity;
mod nbd;
mod proof;
mod qcow2;
mod raw;
mod settle;

use crate::address::{ImageFormat, NamedSource, SourceAddress};
use bytes::Bytes;
pub(crate) use chain::Chain;
use chunker::{Extent, ExtentSet};
pub(crate) use evidence::{Evidence, file_identity};
use futures::future::join_all;
pub(crate) use identity::{ImageFile, Looked, identity, untold_identity};
use mover::{
    ChangeTracking, Changed, DiskDescription, Error, LayerIdentity, Name, Outcome, ParentDisk, Past, Result, Snapshot,
    Source, TrackingWish, Wanted, World, blocking,
};
use nbd::NbdExport;
pub(crate) use nbd::nbd_error;
pub(crate) use proof::{Doubt, Seen, SeenBitmap, note_no_checkpoint, proven_change};
use qcow2::Qcow2Disk;
use raw::RawDisk;
pub(crate) use raw::{holes, read_extent};
pub(crate) use settle::{Sorted, sorted};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::PathBuf;

/// What a snapshot session is opened for.
#[derive(Debug, Clone)]
pub struct SourceOptions {
    /// What the backup wants.
    pub wanted: Wanted,
    /// Folders, in addition to the image's own, in which its backing and data files may lie (T10).
    pub image_roots: Vec<PathBuf>,
    /// Clock and randomness.
    pub world: World,
}

/// Disks that are open for reading, all in their state of one moment. From [`SnapshotSession::open`] on, each disk is
/// locked against writers as well as its kind allows.
#[derive(Debug)]
pub struct SnapshotSession {
    disks: Vec<OpenDisk>,
    descriptions: Vec<DiskDescription>,
    pub(crate) snapshot: Snapshot,
}

impl SnapshotSession {
    /// Opens all disks at once. `past` is asked only when an image holds several of the repository's bitmaps, which a
    /// broken run leaves behind, or when nothing else says what format an image has.
    ///
    /// Dropping the session without [`Source::finish`] leaves the images' new bitmaps for the next run to settle.
    ///
    /// # Errors
    /// `Usage` for a disk named twice or something that cannot be backed up, `Busy` for an image that a running
    /// machine writes to, `Source`, `Transport`. Nothing stays open or changed then.
    pub async fn open(sources: Vec<NamedSource>, options: &SourceOptions, past: &impl Past) -> Result<Self> {
        if sources.is_empty() {
            return Err(Error::usage("no disk to back up").hint("give one: SOURCE or --disk NAME=SOURCE"));
        }
        let mut names = BTreeSet::new();
        if let Some(twice) = sources.iter().find(|source| !names.insert(source.name.clone())) {
            return Err(Error::usage(format!("two disks have the name {}", twice.name)));
        }
        let sources = blocking(move || refuse_twice(&sources).map(|()| sources)).await?;
        let opened = join_all(sources.into_iter().map(|source| async {
            let name = source.name.clone();
            let opened = OpenDisk::open(source, options, past).await;
            opened.map(|(disk, described)| (disk, described.named(name.clone()))).map_err(|error| error.on_disk(name))
        }));
        let (mut disks, mut descriptions, mut failed) = (Vec::new(), Vec::new(), None);
        for opened in opened.await {
            match opened {
                Ok((disk, description)) => {
                    disks.push(disk);
                    descriptions.push(description);
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        let session = Self { disks, descriptions, snapshot: Snapshot::at(options.world.now()) };
        match failed {
            None => Ok(session),
            Some(error) => {
                if let Err(second) = session.finish(Outcome::Abandoned).await {
                    tracing::warn!(error = %second, "a disk could not be released cleanly");
                }
                Err(error)
            }
        }
    }
}

impl Source for SnapshotSession {
    fn disks(&self) -> &[DiskDescription] {
        &self.descriptions
    }

    fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    async fn changed(&self, disk: usize, parent: Option<ParentDisk<'_>>, wish: TrackingWish) -> Result<Changed> {
        match &self.disks[disk] {
            OpenDisk::Raw(raw) => raw.changed(parent, wish).await,
            OpenDisk::Qcow2(qcow2) => qcow2.changed(parent, wish).await,
            OpenDisk::Nbd(nbd) => nbd.changed(parent, wish).await,
        }
    }

    async fn read(&self, disk: usize, extent: Extent) -> Result<Bytes> {
        match &self.disks[disk] {
            OpenDisk::Raw(raw) => raw.read(extent).await,
            OpenDisk::Qcow2(qcow2) => qcow2.read(extent).await,
            OpenDisk::Nbd(nbd) => nbd.read(extent).await,
        }
    }

    async fn check(&self) -> Result<()> {
        for (disk, description) in self.disks.iter().zip(&self.descriptions) {
            let checked = match disk {
                OpenDisk::Raw(raw) => raw.check().await,
                OpenDisk::Qcow2(qcow2) => qcow2.check().await,
                OpenDisk::Nbd(_) => Ok(()),
            };
            checked.map_err(|error| error.on_disk(&description.name))?;
        }
        Ok(())
    }

    async fn finish(self, outcome: Outcome) -> Result<()> {
        let ended = self.disks.into_iter().map(|disk| async {
            match disk {
                OpenDisk::Qcow2(qcow2) => qcow2.finish(outcome).await,
                OpenDisk::Raw(_) | OpenDisk::Nbd(_) => Ok(()),
            }
        });
        // Every disk is ended, whatever becomes of the others.
        join_all(ended).await.into_iter().collect()
    }
}

/// Refuses a file or device that is given as two disks: one of the two was meant to be another, and a bitmap of one session
/// would be taken from the other's.
fn refuse_twice(sources: &[NamedSource]) -> Result<()> {
    let mut seen = BTreeMap::new();
    for NamedSource { name, address } in sources {
        let SourceAddress::File { path, .. } = address else { continue };
        // What cannot be looked at is told when it is opened.
        let Ok(metadata) = std::fs::metadata(path) else { continue };
        let device = metadata.file_type().is_block_device();
        let what = if device { (metadata.rdev(), None) } else { (metadata.dev(), Some(metadata.ino())) };
        if let Some(first) = seen.insert(what, name) {
            return Err(Error::usage(format!("disks {first} and {name} are the same file, {}", path.display()))
                .hint("give each disk its own file"));
        }
    }
    Ok(())
}

#[derive(Debug)]
enum OpenDisk {
    Raw(RawDisk),
    Qcow2(Box<Qcow2Disk>),
    Nbd(NbdExport),
}

impl OpenDisk {
    async fn open(source: NamedSource, options: &SourceOptions, past: &impl Past) -> Result<(Self, Described)> {
        let NamedSource { name, address } = source;
        let (path, bitmap, format) = match address {
            SourceAddress::Nbd(uri) => {
                let (disk, described) = NbdExport::open(uri, &name, past).await?;
                return Ok((Self::Nbd(disk), described));
            }
            SourceAddress::File { path, bitmap, format } => (path, bitmap, format),
        };
        let image = match blocking(move || ImageFile::look(&path, format)).await? {
            Looked::Known(image) => image,
            Looked::Silent(silent) => {
                let then = past.disk(&name).await?;
                silent.resolve(then.and_then(|disk| ImageFormat::called(&disk.format)))?
            }
        };
        let (disk, described) = match image.format {
            ImageFormat::Qcow2 => {
                let (disk, described) = Qcow2Disk::open(image, bitmap, options, past).await?;
                (Self::Qcow2(Box::new(disk)), described)
            }
            ImageFormat::Raw if bitmap.is_some() => {
                return Err(Error::usage(format!("{} is a raw image and has no bitmaps", image.path.display())));
            }
            ImageFormat::Raw => {
                let (disk, described) = RawDisk::open(image, options).await?;
                (Self::Raw(disk), described)
            }
        };
        if described.size == 0 {
            return Err(Error::usage("the disk has 0 bytes"));
        }
        Ok((disk, described))
    }
}

/// A [`DiskDescription`] but for the name.
#[derive(Debug, Clone, Default)]
struct Described {
    size: u64,
    logical_sector_bytes: u32,
    physical_sector_bytes: u32,
    format: &'static str,
    format_options: String,
    chain: Vec<LayerIdentity>,
    warning: Option<String>,
}

impl Described {
    fn warned(mut self, warnings: Vec<String>) -> Self {
        self.warning = (!warnings.is_empty()).then(|| warnings.join("; "));
        self
    }

    fn named(self, name: Name) -> DiskDescription {
        DiskDescription {
            name,
            size: self.size,
            logical_sector_bytes: self.logical_sector_bytes,
            physical_sector_bytes: self.physical_sector_bytes,
            discard_bytes: 0,
            boot_order: 0,
            bus: String::new(),
            serial: String::new(),
            format: self.format.to_owned(),
            format_options: self.format_options,
            chain: self.chain,
            warning: self.warning,
        }
    }
}

/// The answer where nothing is proven: what the wish leaves, and why.
fn untracked(parent: Option<ParentDisk<'_>>, wish: TrackingWish, why_not: &str) -> Result<Changed> {
    let (mode, reason) = match (wish, parent) {
        (TrackingWish::Bitmap, _) => {
            return Err(Error::tracking(format!("no proven bitmap: {why_not}")).hint(
                "leave out --change-tracking bitmap: everything is read once, and tracked from then on if possible",
            ));
        }
        (TrackingWish::Full, _) => (ChangeTracking::Full, "requested".to_owned()),
        (TrackingWish::Fingerprint, Some(_)) => (ChangeTracking::Fingerprint, "requested".to_owned()),
        (TrackingWish::Auto, Some(_)) => (ChangeTracking::Fingerprint, why_not.to_owned()),
        (_, None) => (ChangeTracking::Full, "the first backup of this disk".to_owned()),
    };
    Ok(Changed { mode, reason, dirty: ExtentSet::new(), zeroes: ExtentSet::new(), checkpoint: None, lie: None })
}
