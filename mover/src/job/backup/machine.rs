//! Backs up a machine: its disks are opened as one snapshot session, with what the repository knows of its past.

use super::giving_back::{Again, GivenBack};
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
    if !machine.stands_still() {
        let wanted = Wanted { repository: repository.config().id, wish: options.wish, quiesce: options.quiesce };
        let past = PastOf { repository, options };
        let source = Stoppable { inner: machine.open(&wanted, &past).await?, stop: stop.clone() };
        return backup(repository, source, options, pool, world, progress).await;
    }
    check::check_request(options, &[], &[])?;
    let of = Opened { repository, machine, options, stop, means: (pool, world), progress };
    let mut again = None;
    loop {
        let second = again.is_some();
        match of.one_snapshot(again.take()).await {
            (Err(error), Some(why)) if !second => {
                tracing::warn!(%error, why = why.why, "the snapshot is taken once more");
                again = Some(why);
            }
            (made, _) => return made,
        }
    }
}

/// A machine that is opened with everything else made ready before.
struct Opened<'a, R, M> {
    repository: &'a R,
    machine: &'a M,
    options: &'a BackupOptions,
    stop: &'a Stop,
    means: (&'a Pool, &'a World),
    progress: &'a Progress,
}

impl<R: Repository, M: MachineSource> Opened<'_, R, M> {
    /// Backs up one snapshot. The second result is why another is needed, where one is. `told` is the reason of the one
    /// before; from that one on nothing is given back, so a third is never needed.
    async fn one_snapshot(&self, told: Option<Again>) -> (Result<BackupReport>, Option<Again>) {
        let Self { repository, machine, options, stop, means, progress } = *self;
        let wanted = Wanted { repository: repository.config().id, wish: options.wish, quiesce: options.quiesce };
        let mut ready = match stop.race(Ready::begin(repository, options, means.1)).await {
            Ok(ready) => ready,
            Err(error) => return (Err(error), None),
        };
        if let Some(told) = &told {
            ready.warnings.push(format!("the snapshot was taken twice: {}", told.why));
        }
        let known = Known { past: PastOf { repository, options }, parent: ready.parent.as_ref() };
        let source = match machine.open(&wanted, &known).await {
            Ok(inner) => Stoppable { inner, stop: stop.clone() },
            Err(error) => {
                ready.abandon().await;
                return (Err(error), None);
            }
        };
        let given = GivenBack::from(&source, told);
        let made = match check::check_request(options, source.disks(), &source.snapshot().attachments) {
            Ok(()) => ready.make(&source, means, progress, &given).await,
            Err(error) => {
                ready.abandon().await;
                Err(error)
            }
        };
        let again = made.as_ref().err().and_then(|_| given.again());
        (end(source, made, progress).await, again)
    }
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
