//! A machine is backed up: its disks are opened as one snapshot session against what the repository has of it.

use super::past::PastOf;
use super::{BackupOptions, BackupReport, backup};
use crate::{MachineSource, Pool, Progress, Repository, Result, Stop, Stoppable, Wanted, World};

/// Opens the disks of `machine` and backs them up into `repository`, as [`backup()`] does. Hooks and quiescing are the
/// machine's. Once `stop` says so the job ends in order: nothing is dropped half way.
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
    let wanted = Wanted { repository: repository.config().id, wish: options.wish };
    let session = machine.open(&wanted, &PastOf { repository, options }).await?;
    let source = Stoppable { inner: session, stop: stop.clone() };
    backup(repository, source, options, pool, world, progress).await
}
