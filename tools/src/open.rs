//! Opening what the arguments name: the only module that knows how repositories, sources and targets are made.

use crate::address::{At, RepositoryAddress};
use crate::cli::Patience;
use crate::context::Context;
use mover::{
    BackupOptions, CheckpointId, DiskRecord, Either, Error, MachineSource, Name, Past, PastOf, Repository as _,
    RepositoryId, Result, Wanted, blocking,
};
use proxy::TargetAddress;
use std::path::PathBuf;
use store::format::config::ConfigFile;
use tokio::sync::watch;
use wire::identity::Credentials;
use wire::{Congestion, Current, Peer, Remote, client, client_config_of, renewed_when_used};

pub use proxy::{DiskTarget, Existing};
pub use store::{Access, Local};

/// A repository in a directory, or on a storage node.
pub type Opened = Either<Local, Remote>;

/// Opens a repository, perhaps to ask for the points of a machine next.
async fn repository(
    context: &Context,
    address: &RepositoryAddress,
    access: Access,
    machine: Option<&Name>,
) -> Result<Opened> {
    match address.at() {
        At::Directory(_) => Ok(Either::Left(directory(context, address, access).await?)),
        At::Node { host, port, name, congestion } => {
            let peer = peer(context, host, *port, *congestion).await?;
            let remote = context.stop.race(Remote::connect(client()?, peer, name.as_str(), machine)).await;
            Ok(Either::Right(remote.map_err(|error| error.context(address))?))
        }
    }
}

/// Opens a repository in a directory, for what only works there.
pub async fn directory(context: &Context, address: &RepositoryAddress, access: Access) -> Result<Local> {
    Local::open(address.directory()?, access, context.pool.clone(), context.world.clone()).await
}

/// Closes what [`repository`] opened.
pub async fn close(repository: Opened) -> Result<()> {
    match repository {
        Either::Left(local) => local.close().await,
        Either::Right(remote) => {
            remote.close().await;
            Ok(())
        }
    }
}

/// A node, asked by who we are.
pub async fn peer(context: &Context, host: &str, port: u16, congestion: Congestion) -> Result<Peer> {
    let Credentials { identity, trust } = credentials(context).await?;
    let own = Current::fixed(&identity, &trust);
    Ok(Peer::new(host, port, client_config_of(&own, congestion)?).known_as(own))
}

/// Who we are to storage nodes.
pub async fn credentials(context: &Context) -> Result<Credentials> {
    let found = named_identity().or_else(|| {
        let usual = [own_identity(), Some(PathBuf::from("/etc/windlass/identity"))];
        usual.into_iter().flatten().find(|folder| Credentials::is_in(folder))
    });
    let folder = found.ok_or_else(|| {
        Error::usage("no identity was found, and a storage node asks for one").hint(
            "`windlass token join` creates one; set WINDLASS_IDENTITY to its folder, or move the folder to \
             ~/.config/windlass/identity",
        )
    })?;
    renewed_when_used(&folder, &context.world).await
}

/// Where an identity is put that is made here.
pub fn identity_folder() -> Result<PathBuf> {
    let folder = named_identity().or_else(own_identity);
    folder.ok_or_else(|| Error::usage("no folder is given for the identity").hint("give one with --out"))
}

fn named_identity() -> Option<PathBuf> {
    std::env::var_os("WINDLASS_IDENTITY").map(PathBuf::from)
}

fn own_identity() -> Option<PathBuf> {
    std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config/windlass/identity"))
}

/// Opens a repository, as long as patience lasts.
pub async fn patiently(
    context: &Context,
    address: &RepositoryAddress,
    access: Access,
    patience: &Patience,
) -> Result<Opened> {
    let open = async || context.stop.race(repository(context, address, access, None)).await;
    patience.wait().retry(&context.stop, |busy| context.out.waits_for(busy), open).await
}

/// Opens a repository for writing and the disks of a machine as one snapshot session, both at once: each takes a noticeable
/// part of an increment.
pub async fn repository_and_machine<M: MachineSource>(
    context: &Context,
    address: &RepositoryAddress,
    machine: &M,
    options: &BackupOptions,
) -> (Result<Opened>, Result<M::Session>) {
    let node = match address.at() {
        At::Directory(_) => None,
        At::Node { .. } => match repository(context, address, Access::Write, Some(&options.machine_name)).await {
            Ok(opened) => Some(opened),
            Err(error) => return (Err(error), Err(Error::internal("no repository"))),
        },
    };
    let id = match &node {
        Some(opened) => Some(opened.config().id),
        None => identity(address).await,
    };
    let id = match id {
        Some(id) => id,
        // Opening it tells better what is wrong.
        None => {
            let error = match repository(context, address, Access::Read, None).await {
                Ok(_) => Error::internal("the repository's configuration could not be read twice"),
                Err(error) => error,
            };
            return (Err(error), Err(Error::internal("no repository")));
        }
    };
    let (give, take) = watch::channel(None::<Opened>);
    let repository = async move {
        let opened = match node {
            Some(opened) => Ok(opened),
            None => repository(context, address, Access::Write, None).await,
        };
        give.send_replace(opened.as_ref().ok().cloned());
        opened
    };
    let wanted = Wanted { repository: id, wish: options.wish, quiesce: options.quiesce };
    let past = Awaited { repository: take, options };
    tokio::join!(repository, machine.open(&wanted, &past))
}

/// The past of a machine in a repository that is being opened.
struct Awaited<'a> {
    repository: watch::Receiver<Option<Opened>>,
    options: &'a BackupOptions,
}

impl Awaited<'_> {
    async fn opened(&self) -> Result<Opened> {
        let mut repository = self.repository.clone();
        let opened = repository.wait_for(Option::is_some).await.ok().and_then(|opened| opened.clone());
        opened.ok_or_else(|| Error::internal("the repository could not be opened"))
    }
}

impl Past for Awaited<'_> {
    async fn is_committed(&self, checkpoint: CheckpointId) -> Result<bool> {
        let repository = &self.opened().await?;
        PastOf { repository, options: self.options }.is_committed(checkpoint).await
    }

    async fn disk(&self, name: &Name) -> Result<Option<DiskRecord>> {
        let repository = &self.opened().await?;
        PastOf { repository, options: self.options }.disk(name).await
    }
}

/// The repository's id, from its configuration alone.
async fn identity(address: &RepositoryAddress) -> Option<RepositoryId> {
    let path = address.directory().ok()?.join("config");
    let bytes = blocking(move || std::fs::read(path)).await.ok()?;
    Some(ConfigFile::decode(&bytes).ok()?.config.id)
}

/// Opens what a disk is restored to.
pub async fn target(address: &TargetAddress, disk: &DiskRecord, existing: Existing) -> Result<DiskTarget> {
    if matches!(address, TargetAddress::Device(_)) && existing == Existing::Refuse {
        return Err(Error::usage(format!("{address} is a block device, and what is on it would be lost"))
            .hint("use --overwrite if that is intended, or --delta if it holds an older state of the disk"));
    }
    DiskTarget::open(address, disk.size, existing).await
}
