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
    // One that was not saved cleanly is no candidate, and stays where it is.
    let there = bitmaps.iter().map(|bitmap| (bitmap.name.as_str(), false));
    let Sorted { own, gone } = sorted(there, repository, past).await?;
    for name in gone {
        tracing::info!(path = %path.display(), bitmap = %name, "removing a bitmap that an earlier run left");
        if let Err(error) = remove_bitmap(image, &name).await {
            let unusable = format!("bitmap {name} of an earlier run cannot be removed: {error}");
            return Ok(Settled { own, unusable: Some(unusable) });
        }
    }
    Ok(Settled { own, unusable: None })
}

/// The repository's bitmaps of an image.
#[derive(Debug)]
pub struct Sorted {
    /// Those that count.
    pub own: Vec<TrackingName>,
    /// Names of those to be removed: begun by runs that made no point, taken over by a later one, spoilt, or a twin alone.
    pub gone: Vec<String>,
}

/// Sorts them; `there` are names of all bitmaps, and whether each is spoilt and may not even stay.
///
/// # Errors
/// Those of `past`.
pub async fn sorted(
    there: impl Iterator<Item = (&str, bool)> + Clone,
    repository: RepositoryId,
    past: &impl Past,
) -> Result<Sorted> {
    let tracking = there.clone().filter_map(|(name, spoilt)| Some((name.parse::<TrackingName>().ok()?, spoilt)));
    let (spoilt, whole): (Vec<_>, Vec<_>) =
        tracking.filter(|(name, _)| name.is_of(repository)).partition(|(_, spoilt)| *spoilt);
    let own: Vec<TrackingName> = whole.into_iter().map(|(name, _)| name).collect();
    let (own, gone) = if own.len() < 2 { (own, Vec::new()) } else { told_apart(own, past).await? };
    let twins = there.filter_map(|(name, spoilt)| Some((name.parse::<TwinName>().ok()?, spoilt)));
    let lonely = twins
        .filter(|(twin, spoilt)| twin.is_of(repository) && (*spoilt || !own.iter().any(|name| name.twin() == *twin)));
    let gone = gone.iter().map(ToString::to_string).chain(spoilt.iter().map(|(name, _)| name.to_string()));
    let gone = gone.chain(lonely.map(|(twin, _)| twin.to_string())).collect();
    Ok(Sorted { own, gone })
}

/// Divides several bitmaps into those that count and those that are to be removed.
async fn told_apart(own: Vec<TrackingName>, past: &impl Past) -> Result<(Vec<TrackingName>, Vec<TrackingName>)> {
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
