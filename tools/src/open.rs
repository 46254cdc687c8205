//! Opening what the arguments name: the only module that knows how repositories, sources and targets are made.

use crate::address::Kept;
use crate::cli::Patience;
use crate::windlass::Context;
use mover::{
    CheckpointId, DiskRecord, Error, PointFilter, ReadSession as _, Repository as _, RepositoryId, Result,
    TrackingWish, blocking,
};
use proxy::{NamedSource, SourceOptions, TargetAddress};
use std::future::Future;
use store::format::config::ConfigFile;
use tokio::sync::watch;

pub use proxy::{DiskTarget, Existing, SnapshotSession};
pub use store::{Access, Local};

/// Opens a repository.
pub async fn repository(context: &Context, address: &Kept, access: Access) -> Result<Local> {
    Local::open(address.path(), access, context.pool.clone(), context.world.clone()).await
}

/// Opens a repository, as long as patience lasts.
pub async fn patiently(context: &Context, address: &Kept, access: Access, patience: &Patience) -> Result<Local> {
    patience.wait().retry(&context.out, &context.stop, async || repository(context, address, access).await).await
}

/// Opens a repository for writing and a machine's disks as one snapshot session, both at once: each takes a noticeable
/// part of an increment. `around` runs the opening of the disks.
pub async fn repository_and_source<T>(
    context: &Context,
    address: &Kept,
    disks: &[NamedSource],
    wish: TrackingWish,
    around: impl AsyncFnOnce(DynOpening<'_>) -> Result<(SnapshotSession, T)>,
) -> (Result<Local>, Result<(SnapshotSession, T)>) {
    let id = match identity(address).await {
        Some(id) => id,
        // Opening it tells better what is wrong.
        None => {
            let error = match repository(context, address, Access::Read).await {
                Ok(_) => Error::internal("the repository's configuration could not be read twice"),
                Err(error) => error,
            };
            return (Err(error), Err(Error::internal("no repository")));
        }
    };
    let (give, take) = watch::channel(None::<Local>);
    let repository = async move {
        let opened = repository(context, address, Access::Write).await;
        give.send_replace(opened.as_ref().ok().cloned());
        opened
    };
    let options = SourceOptions { repository: id, wish, world: context.world.clone() };
    let is_committed = |checkpoint| {
        let mut take = take.clone();
        async move {
            let local = match take.wait_for(Option::is_some).await {
                Ok(local) => local.clone(),
                Err(_) => None,
            };
            match local {
                Some(local) => has_checkpoint(&local, checkpoint).await,
                None => Err(Error::internal("the repository could not be opened")),
            }
        }
    };
    let source = SnapshotSession::open(disks.to_vec(), &options, is_committed);
    tokio::join!(repository, around(Box::pin(source)))
}

/// The opening of disks, not begun yet.
pub type DynOpening<'a> = std::pin::Pin<Box<dyn Future<Output = Result<SnapshotSession>> + Send + 'a>>;

/// The repository's id, from its configuration alone.
async fn identity(address: &Kept) -> Option<RepositoryId> {
    let path = address.path().join("config");
    let bytes = blocking(move || std::fs::read(path)).await.ok()?;
    Some(ConfigFile::decode(&bytes).ok()?.config.id)
}

/// True when some point was begun at this checkpoint. Asked only after a broken run, so that reading every manifest,
/// the newest first, does not matter.
async fn has_checkpoint(repository: &Local, checkpoint: CheckpointId) -> Result<bool> {
    let points = repository.list(&PointFilter::default()).await?;
    for point in points.iter().rev() {
        let manifest = repository.read(&[point.id]).await?.manifest(point.id).await?;
        if manifest.disks.iter().any(|disk| disk.tracking.checkpoint == Some(checkpoint)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Opens what a disk is restored to.
pub async fn target(address: &TargetAddress, disk: &DiskRecord, existing: Existing) -> Result<DiskTarget> {
    if matches!(address, TargetAddress::Device(_)) && existing == Existing::Refuse {
        return Err(Error::usage(format!("{address} is a block device, and what is on it would be lost"))
            .hint("say --overwrite if that is wanted, or --delta if it holds an older state of the disk"));
    }
    DiskTarget::open(address, disk.size, existing).await
}
