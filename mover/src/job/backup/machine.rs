//! Backs up a machine: its disks are opened as one snapshot session, with what the repository knows of its past.

use super::past::PastOf;
use super::{BackupOptions, BackupReport, Ready, backup, check, end};
use crate::{
    CheckpointId, DiskRecord, MachineSource, Manifest, Name, Past, Pool, Progress, Repository, Result, Source as _,
    Stop, Stoppable, Wanted, World,
};

/// Opens the disks of `machine` and backs them up into `repository`, as [`backup()`] does. The machine does the hooks
/// and the quiescing. Once `stop` is asked, the job ends in order, and nothing is dropped half way.
///
/// Where the machine stands still while it is opened, the repository is made ready before: its session is open and the
/// parent is read, so that nothing is waited for meanwhile, and no machine stands still for a repository that refuses.
///
/// # Errors
/// Those of the machine; those of [`backup()`]; `Cancelled`.
pub async fn backup_machine<R: Repository, M: MachineSource>(
    repository: &R,
    machine: &M,
    options: &BackupOptions,
    stop: &Stop,
    (pool, world): (&Pool, &World),
    progress: &Progress,
) -> Result<BackupReport> {
    let wanted = Wanted { repository: repository.config().id, wish: options.wish, quiesce: options.quiesce };
    let past = PastOf { repository, options };
    if !machine.stands_still() {
        let source = Stoppable { inner: machine.open(&wanted, &past).await?, stop: stop.clone() };
        return backup(repository, source, options, pool, world, progress).await;
    }
    check::check_request(options, &[], &[])?;
    let ready = stop.race(Ready::begin(repository, options, world)).await?;
    let opened = machine.open(&wanted, &Known { past, parent: ready.parent.as_ref() }).await;
    let source = match opened {
        Ok(inner) => Stoppable { inner, stop: stop.clone() },
        Err(error) => {
            ready.abandon().await;
            return Err(error);
        }
    };
    let made = match check::check_request(options, source.disks(), &source.snapshot().attachments) {
        Ok(()) => ready.make(&source, (pool, world), progress).await,
        Err(error) => {
            ready.abandon().await;
            Err(error)
        }
    };
    end(source, made, progress).await
}

/// The past of a machine whose parent is read already.
struct Known<'a, R> {
    past: PastOf<'a, R>,
    parent: Option<&'a Manifest>,
}

impl<R: Repository> Past for Known<'_, R> {
    async fn is_committed(&self, checkpoint: CheckpointId) -> Result<bool> {
        self.past.is_committed(checkpoint).await
    }

    async fn disk(&self, name: &Name) -> Result<Option<DiskRecord>> {
        Ok(self.parent.and_then(|parent| parent.disk(name)).cloned())
    }
}
