//! The bitmaps that Windlass keeps in an image, for `windlass tracking` (T9): one of them blocks `qemu-img snapshot -a`
//! and conversion to old formats, so an administrator must be able to see and remove them.

use crate::address::{ImageFormat, SourceAddress};
use crate::qemu::{TrackingName, image_chain, remove_bitmap};
use crate::source::ImageFile;
use mover::{CheckpointId, Error, ErrorKind, Result};
use std::path::PathBuf;

/// A bitmap of Windlass in an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackedBitmap {
    /// Its name.
    pub name: String,
    /// First four bytes of the id of the repository that it was made for.
    pub repository: [u8; 4],
    /// The checkpoint that it records changes since.
    pub checkpoint: CheckpointId,
    /// The checkpoint before that one.
    pub base: Option<CheckpointId>,
    /// Bytes for one bit.
    pub granularity: u64,
    /// True when writes are recorded in it.
    pub recording: bool,
    /// False when it was not saved cleanly and says nothing.
    pub consistent: bool,
}

/// Windlass's bitmaps in the image at `source`.
///
/// # Errors
/// `Usage` when it is no qcow2 image, `Busy` when a machine uses it, `Source`.
pub async fn list_tracking(source: &SourceAddress) -> Result<Vec<TrackedBitmap>> {
    let path = image_path(source).await?;
    list(&path).await
}

/// Removes Windlass's bitmaps from the image at `source` (only `bitmap` when given) and gives what was removed. The
/// next backup reads everything. Bitmaps of others are never touched.
///
/// # Errors
/// `Usage` when it is no qcow2 image or has no such bitmap of ours, `Busy` when a machine uses it, `Source`.
pub async fn remove_tracking(source: &SourceAddress, bitmap: Option<&str>) -> Result<Vec<TrackedBitmap>> {
    let path = image_path(source).await?;
    let mut gone = list(&path).await?;
    if let Some(only) = bitmap {
        gone.retain(|it| it.name == only);
        if gone.is_empty() {
            return Err(Error::usage(format!("{} has no bitmap of Windlass named {only}", path.display())));
        }
    }
    for it in &gone {
        remove_bitmap(&path, &it.name).await.map_err(|error| error.about(&path, ErrorKind::Source))?;
    }
    Ok(gone)
}

async fn list(path: &std::path::Path) -> Result<Vec<TrackedBitmap>> {
    let chain = image_chain(path, "qcow2").await.map_err(|error| error.about(path, ErrorKind::Source))?;
    let ours = chain[0].bitmaps().iter().filter_map(|bitmap| {
        let name: TrackingName = bitmap.name.parse().ok()?;
        Some(TrackedBitmap {
            name: bitmap.name.clone(),
            repository: name.repository,
            checkpoint: name.checkpoint,
            base: (name.base != CheckpointId::default()).then_some(name.base),
            granularity: bitmap.granularity,
            recording: bitmap.is_recording(),
            consistent: bitmap.is_consistent(),
        })
    });
    Ok(ours.collect())
}

async fn image_path(source: &SourceAddress) -> Result<PathBuf> {
    let (path, format) = match source {
        SourceAddress::File { path, format, .. } => (path.clone(), *format),
        SourceAddress::Nbd(uri) => {
            return Err(Error::usage(format!("{uri} is no qcow2 image")).hint("name the image file"));
        }
    };
    let image = mover::blocking(move || ImageFile::look(&path, format)).await?;
    match image.format {
        ImageFormat::Qcow2 => Ok(image.path),
        ImageFormat::Raw => {
            Err(Error::usage(format!("{} is no qcow2 image: nothing is tracked in it", image.path.display())))
        }
    }
}
