//! Bitmaps that earlier runs left in an image: which count, which go.

use crate::qemu::{Bitmap, Graph, TrackingName, TwinName, remove_bitmap};
use mover::{Past, RepositoryId, Result};
use std::path::Path;

/// What is left after settling.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// The repository's own bitmaps that count.
    pub own: Vec<TrackingName>,
    /// Why none of them counts, where that is so.
    pub unusable: Option<String>,
}

/// Settles the repository's bitmaps of an image (T2). One bitmap alone needs nothing. Of several, it removes those
/// whose point was never committed, because a broken run left them, and those whose work a committed bitmap took over.
/// On an offline image the old bitmap recorded all the time, so it is enough to remove the new bitmap of a broken run.
///
/// # Errors
/// Those of `past`.
pub async fn settle(
    path: &Path,
    image: &Graph,
    bitmaps: &[Bitmap],
    repository: RepositoryId,
    past: &impl Past,
) -> Result<Settled> {
    let own = bitmaps.iter().filter_map(|bitmap| bitmap.name.parse::<TrackingName>().ok());
    let own: Vec<TrackingName> = own.filter(|name| name.is_of(repository)).collect();
    let (keep, gone) = if own.len() < 2 { (own, Vec::new()) } else { told_apart(own, past).await? };
    let twins = bitmaps.iter().filter_map(|bitmap| bitmap.name.parse::<TwinName>().ok());
    let lonely = twins.filter(|twin| twin.is_of(repository) && !keep.iter().any(|name| name.twin() == *twin));
    for name in gone.iter().map(ToString::to_string).chain(lonely.map(|twin| twin.to_string())) {
        tracing::info!(path = %path.display(), bitmap = %name, "removing a bitmap that an earlier run left");
        if let Err(error) = remove_bitmap(image, &name).await {
            let unusable = format!("bitmap {name} of an earlier run cannot be removed: {error}");
            return Ok(Settled { own: keep, unusable: Some(unusable) });
        }
    }
    Ok(Settled { own: keep, unusable: None })
}

/// Divides several bitmaps into those that count and those that are to be removed.
///
/// # Errors
/// Those of `past`.
pub async fn told_apart(own: Vec<TrackingName>, past: &impl Past) -> Result<(Vec<TrackingName>, Vec<TrackingName>)> {
    let mut committed = Vec::new();
    for name in &own {
        if past.is_committed(name.checkpoint).await? {
            committed.push(*name);
        }
    }
    Ok(own.into_iter().partition(|name| {
        committed.contains(name) && !committed.iter().any(|other| other.base == name.checkpoint && other != name)
    }))
}
