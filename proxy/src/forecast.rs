//! What the next backup of a machine will do, told without making a snapshot: facts are collected as a backup would, and
//! the same place decides (`source/proof`). Nothing is changed. Marks of bitmaps are not looked at: a backup that reads them
//! may still come to another result.

use crate::address::{ImageFormat, NamedSource, SourceAddress};
use crate::machine::{AnyMachine, OfflineMachine};
use crate::qemu::{FileKind, Qcow2Header, TrackingName, image_info};
use crate::source::{
    Chain, Doubt, Evidence, ImageFile, Looked, Seen, SeenBitmap, file_identity, identity, untold_identity,
};
use mover::{
    DiskRecord, Error, ErrorKind, Examination, ExaminedDisk, Manifest, ParentDisk, Power, RepositoryId, Result,
    TrackingWish, blocking,
};
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::timeout;

/// What a repository has of a machine.
#[derive(Debug, Clone, Copy)]
pub struct Before<'a> {
    /// The repository.
    pub repository: RepositoryId,
    /// The point that the next backup continues.
    pub parent: Option<&'a Manifest>,
}

/// What will be done with a disk, and why.
pub(crate) struct Forecast {
    pub incremental: bool,
    pub reason: String,
}

impl AnyMachine {
    /// Looks at the machine.
    ///
    /// # Errors
    /// `Busy` when something else uses its monitor, `NotFound` or `Source` when it cannot be reached.
    pub async fn examine(&self, before: Before<'_>) -> Result<Examination> {
        match self {
            Self::Qemu(machine) => machine.examine(before).await,
            Self::Offline(machine) => Ok(machine.examine(before).await),
        }
    }
}

impl OfflineMachine {
    async fn examine(&self, before: Before<'_>) -> Examination {
        let mut disks = Vec::new();
        for disk in &self.disks {
            let (size, format, forecast) = match timeout(DISK_TIMEOUT, look(disk, &self.image_roots, before)).await {
                Ok(Ok(looked)) => looked,
                Ok(Err(error)) => (None, String::new(), Forecast::whole(format!("it cannot be examined: {error}"))),
                Err(_) => (None, String::new(), Forecast::whole("it cannot be examined: its storage does not answer")),
            };
            let Forecast { incremental, reason } = forecast;
            disks.push(ExaminedDisk { name: disk.name.clone(), size, format, incremental, reason });
        }
        Examination {
            name: self.name.clone(),
            id: None,
            power: Power::Off,
            agent_answers: false,
            agent: "only disks are known of this machine".into(),
            disks,
            remarks: Vec::new(),
            last: None,
        }
    }
}

impl<'a> Before<'a> {
    /// The disk in the point that is continued.
    pub(crate) fn disk(self, name: &mover::Name) -> Option<ParentDisk<'a>> {
        let record: &DiskRecord = self.parent?.disk(name)?;
        Some(ParentDisk { repository: self.repository, record })
    }
}

impl Forecast {
    /// Everything will be read.
    pub fn whole(reason: impl Into<String>) -> Self {
        Self { incremental: false, reason: reason.into() }
    }

    /// What the proof says, as far as it goes without marks.
    pub fn of(seen: &Seen<'_>, parent: Option<ParentDisk<'_>>) -> Self {
        let named = seen.bitmaps.keys().filter_map(|name| name.parse::<TrackingName>().ok());
        let candidates: Vec<TrackingName> = named.collect();
        match seen.foreseen(&candidates, parent, TrackingWish::Auto) {
            Ok(name) => {
                Self { incremental: true, reason: format!("bitmap {name} records since the last point was made") }
            }
            Err(Doubt::Absent(why) | Doubt::Lie(why)) => Self::whole(why),
        }
    }
}

type LookedAt = (Option<u64>, String, Forecast);

async fn look(disk: &NamedSource, roots: &[PathBuf], before: Before<'_>) -> Result<LookedAt> {
    let parent = before.disk(&disk.name);
    let (path, bitmap, format) = match &disk.address {
        SourceAddress::Nbd(uri) => {
            let reason = match &uri.bitmap {
                Some(bitmap) => format!("the server of {uri} is asked for bitmap {bitmap} when the backup begins"),
                None => "the address names no bitmap of the NBD server".to_owned(),
            };
            return Ok((None, "nbd".into(), Forecast::whole(reason)));
        }
        SourceAddress::File { path, bitmap, format } => (path.clone(), bitmap.clone(), *format),
    };
    let then = parent.and_then(|parent| ImageFormat::called(&parent.record.format));
    let image = blocking(move || match ImageFile::look(&path, format)? {
        Looked::Known(image) => Ok(image),
        Looked::Silent(silent) => silent.resolve(then),
    });
    let image = image.await?;
    match image.format {
        ImageFormat::Raw => {
            let size = blocking(move || size_of(&image.path)).await?;
            Ok((Some(size), "raw".into(), Forecast::whole("raw images have no change tracking")))
        }
        ImageFormat::Qcow2 => look_at_qcow2(image, bitmap, roots.to_owned(), parent).await,
    }
}

/// Size of the disk in a file or device, without running any tool; none when it cannot be told so.
pub fn disk_size(address: &SourceAddress) -> Option<u64> {
    let SourceAddress::File { path, format, .. } = address else { return None };
    match ImageFile::look(path, *format).ok()? {
        Looked::Known(image) if image.format == ImageFormat::Raw => size_of(path).ok(),
        _ => Some(Qcow2Header::read(&std::fs::File::open(path).ok()?).ok()?.ok()?.size),
    }
}

fn size_of(path: &std::path::Path) -> Result<u64> {
    use std::io::Seek as _;
    let failed = |error| Error::source("cannot be examined").because(error).context(path.display());
    std::fs::File::open(path).and_then(|mut file| file.seek(std::io::SeekFrom::End(0))).map_err(failed)
}

async fn look_at_qcow2(
    image: ImageFile,
    only: Option<String>,
    roots: Vec<PathBuf>,
    parent: Option<ParentDisk<'_>>,
) -> Result<LookedAt> {
    let path = image.path.clone();
    let (chain, identities, which) = blocking(move || {
        let failed = |error| Error::source("cannot be examined").because(error).context(image.path.display());
        let chain = Chain::walk(&image, &roots)?;
        let identities = chain.places().enumerate().map(|(at, place)| match place.kind {
            FileKind::Device if at > 0 => Ok(untold_identity(place.path.to_string_lossy().into_owned())),
            FileKind::Device | FileKind::Regular => identity(&place.path),
        });
        let identities = identities.collect::<std::io::Result<Vec<_>>>().map_err(failed)?;
        let which = file_identity(&std::fs::metadata(&image.path).map_err(failed)?);
        Ok::<_, Error>((chain, identities, which))
    })
    .await?;
    let top = image_info(&chain.top_graph()?).await.map_err(|error| error.about(&path, ErrorKind::Source))?;
    let data = chain.data_file();
    let unusable = data.map(|file| format!("its data is in {}, which changes without the bitmap", file.display()));
    let bitmaps = top.bitmaps().iter().filter(|it| only.as_ref().is_none_or(|only| belongs(&it.name, only)));
    let bitmaps = bitmaps.map(|it| {
        let (recording, consistent) = (it.is_recording(), it.is_consistent());
        (it.name.as_str(), SeenBitmap { granularity: it.granularity, recording, consistent, marks: None })
    });
    let seen = Seen {
        size: top.virtual_size,
        chain: &identities,
        evidence: &Evidence::of(chain.formats(), &top, which, None),
        unusable: unusable.as_deref(),
        bitmaps: bitmaps.collect(),
    };
    Ok((Some(top.virtual_size), "qcow2".into(), Forecast::of(&seen, parent)))
}

/// Whether a bitmap may count where the address names one: only that one may record, and what stands beside it.
fn belongs(name: &str, only: &str) -> bool {
    name == only || name.parse::<TrackingName>().is_err()
}

/// For looking at one disk.
const DISK_TIMEOUT: Duration = Duration::from_secs(30);
