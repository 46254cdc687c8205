//! The bitmaps that Windlass keeps in an image, for `windlass tracking` (T9): one of them blocks `qemu-img snapshot -a`
//! and conversion to old formats, so an administrator must be able to see and remove them.

use crate::address::{ImageFormat, SourceAddress};
use crate::qemu::{Graph, TrackingName, TwinName, WitnessName, image_info, remove_bitmap};
use crate::source::{Chain, ImageFile, Looked};
use mover::{CheckpointId, Error, ErrorKind, Result};
use std::path::{Path, PathBuf};

/// A bitmap of Windlass in an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackedBitmap {
    /// Name of the bitmap in the image.
    pub name: String,
    /// First four bytes of the id of the repository that it was made for.
    pub repository: [u8; 4],
    /// What it is for.
    pub kind: TrackedKind,
    /// Bytes of the disk for one bit of the bitmap.
    pub granularity: u64,
    /// True when writes are recorded in it.
    pub recording: bool,
    /// False when it was not saved cleanly and says nothing.
    pub consistent: bool,
}

/// What a bitmap of Windlass is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrackedKind {
    /// It records what changes.
    Changes {
        /// The checkpoint since which it records.
        checkpoint: CheckpointId,
        /// The checkpoint before that one.
        base: Option<CheckpointId>,
    },
    /// It records the same as the bitmap of this checkpoint.
    Twin(CheckpointId),
    /// It records nothing, and shows whether the image was resized.
    Witness,
}

/// Windlass's bitmaps in the image at `source`.
///
/// # Errors
/// `Usage` when it is no qcow2 image, `Busy` when a machine uses it, `Source`.
pub async fn list_tracking(source: &SourceAddress, image_roots: &[PathBuf]) -> Result<Vec<TrackedBitmap>> {
    let (path, image) = image(source, image_roots).await?;
    list(&path, &image).await
}

/// Removes Windlass's bitmaps from the image at `source` (only `bitmap` when given) and gives what was removed. The
/// next backup reads everything. Bitmaps of others are never touched.
///
/// # Errors
/// `Usage` when it is no qcow2 image or has no such bitmap of ours, `Busy` when a machine uses it, `Source`.
pub async fn remove_tracking(
    source: &SourceAddress,
    bitmap: Option<&str>,
    image_roots: &[PathBuf],
) -> Result<Vec<TrackedBitmap>> {
    let (path, image) = image(source, image_roots).await?;
    let mut gone = list(&path, &image).await?;
    if let Some(only) = bitmap {
        gone.retain(|it| it.name == only);
        if gone.is_empty() {
            return Err(Error::usage(format!("{} has no bitmap of Windlass named {only}", path.display())));
        }
    }
    for it in &gone {
        remove_bitmap(&image, &it.name).await.map_err(|error| error.about(&path, ErrorKind::Source))?;
    }
    Ok(gone)
}

async fn list(path: &Path, image: &Graph) -> Result<Vec<TrackedBitmap>> {
    let top = image_info(image).await.map_err(|error| error.about(path, ErrorKind::Source))?;
    let ours = top.bitmaps().iter().filter_map(|bitmap| {
        let changes = bitmap.name.parse::<TrackingName>().map(|name| {
            let base = (name.base != CheckpointId::default()).then_some(name.base);
            (name.repository, TrackedKind::Changes { checkpoint: name.checkpoint, base })
        });
        let twin = || bitmap.name.parse::<TwinName>().map(|name| (name.repository, TrackedKind::Twin(name.checkpoint)));
        let witness = || bitmap.name.parse::<WitnessName>().map(|name| (name.repository, TrackedKind::Witness));
        let (repository, kind) = changes.or_else(|_| twin()).or_else(|_| witness()).ok()?;
        Some(TrackedBitmap {
            name: bitmap.name.clone(),
            repository,
            kind,
            granularity: bitmap.granularity,
            recording: bitmap.is_recording(),
            consistent: bitmap.is_consistent(),
        })
    });
    Ok(ours.collect())
}

async fn image(source: &SourceAddress, image_roots: &[PathBuf]) -> Result<(PathBuf, Graph)> {
    let (path, format) = match source {
        SourceAddress::File { path, format, .. } => (path.clone(), *format),
        SourceAddress::Nbd(uri) => {
            return Err(Error::usage(format!("{uri} is not a qcow2 image")).hint("give the image file"));
        }
    };
    let roots = image_roots.to_owned();
    mover::blocking(move || {
        let image = match ImageFile::look(&path, format)? {
            Looked::Known(image) => image,
            Looked::Silent(silent) => silent.resolve(None)?,
        };
        match image.format {
            ImageFormat::Qcow2 => Ok((image.path.clone(), Chain::walk(&image, &roots)?.top_graph()?)),
            ImageFormat::Raw => {
                Err(Error::usage(format!("{} is not a qcow2 image: it has no bitmaps", image.path.display())))
            }
        }
    })
    .await
}
