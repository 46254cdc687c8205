//! Backs up a machine: its disks are opened as one snapshot session, with what the repository knows of its past.

use super::past::PastOf;
use super::{BackupOptions, BackupReport, backup};
use crate::{MachineSource, Pool, Progress, Repository, Result, Stop, Stoppable, Wanted, World};

/// Opens the disks of `machine` and backs them up into `repository`, as [`backup()`] does. The machine does the hooks
/// and the quiescing. Once `stop` is asked, the job ends in order, and nothing is dropped half way.
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
