//! Machines: one that is not running, of which only the disks are known, with the administrator's commands around their
//! opening; and either that or one that runs.

use crate::hooks::{Hooks, keep_hooks};
use crate::live::{LiveSession, QemuMachine, try_folder, watch_machine};
use crate::{NamedSource, SnapshotSession, SourceOptions};
use bytes::Bytes;
use chunker::Extent;
use mover::{
    Changed, DiskDescription, Error, ErrorKind, MachineSource, Name, Outcome, ParentDisk, Past, Quiesce, Result,
    Snapshot, Source, Stop, TrackingWish, Wanted, World,
};
use std::path::PathBuf;
use std::process::ExitCode;

/// Runs the helper process of a backup, when this program was started as one. To be called first.
pub fn helper_if_asked() -> Option<ExitCode> {
    keep_hooks().or_else(watch_machine).or_else(try_folder)
}

/// A machine that runs, or one that does not.
#[derive(Debug, Clone)]
pub enum AnyMachine {
    /// Its disks are all that is known.
    Offline(OfflineMachine),
    /// It runs in a QEMU.
    Qemu(QemuMachine),
}

/// A snapshot session over a machine of either kind.
#[derive(Debug)]
pub enum AnySession {
    /// Disks that nobody writes to.
    Offline(SnapshotSession),
    /// Disks of a machine that goes on.
    Live(Box<LiveSession>),
}

impl MachineSource for AnyMachine {
    type Session = AnySession;

    async fn open(&self, wanted: &Wanted, past: &impl Past) -> Result<AnySession> {
        match self {
            Self::Offline(machine) => machine.open(wanted, past).await.map(AnySession::Offline),
            Self::Qemu(machine) => machine.open(wanted, past).await.map(|it| AnySession::Live(Box::new(it))),
        }
    }

    fn stands_still(&self) -> bool {
        match self {
            Self::Offline(machine) => machine.stands_still(),
            Self::Qemu(machine) => machine.stands_still(),
        }
    }
}

macro_rules! each {
    ($any:expr, $it:ident => $do:expr) => {
        match $any {
            AnySession::Offline($it) => $do,
            AnySession::Live($it) => $do,
        }
    };
}

impl Source for AnySession {
    fn disks(&self) -> &[DiskDescription] {
        each!(self, it => it.disks())
    }

    fn snapshot(&self) -> &Snapshot {
        each!(self, it => it.snapshot())
    }

    async fn changed(&self, disk: usize, parent: Option<ParentDisk<'_>>, wish: TrackingWish) -> Result<Changed> {
        each!(self, it => it.changed(disk, parent, wish).await)
    }

    async fn read(&self, disk: usize, extent: Extent) -> Result<Bytes> {
        each!(self, it => it.read(disk, extent).await)
    }

    async fn check(&self) -> Result<()> {
        each!(self, it => it.check().await)
    }

    fn keeps_for_reader(&self) -> bool {
        each!(self, it => it.keeps_for_reader())
    }

    async fn release(&self, disk: usize, extent: Extent) {
        each!(self, it => it.release(disk, extent).await);
    }

    fn scratch_bytes_max(&self) -> u64 {
        each!(self, it => it.scratch_bytes_max())
    }

    async fn finish(self, outcome: Outcome) -> Result<()> {
        each!(self, it => it.finish(outcome).await)
    }
}

/// What is known of a machine where its disks are.
#[derive(Debug, Clone)]
pub struct OfflineMachine {
    /// Name of the machine, which the commands get too.
    pub name: Name,
    /// Its disks.
    pub disks: Vec<NamedSource>,
    /// Commands around the opening of the disks.
    pub hooks: Option<Hooks>,
    /// Folders, in addition to the image's own, in which its backing and data files may lie (T10).
    pub image_roots: Vec<PathBuf>,
    /// Asked while the commands run.
    pub stop: Stop,
    /// Clock and randomness.
    pub world: World,
}

impl MachineSource for OfflineMachine {
    type Session = SnapshotSession;

    async fn open(&self, wanted: &Wanted, past: &impl Past) -> Result<SnapshotSession> {
        if wanted.quiesce == Quiesce::Require && self.hooks.is_none() {
            return Err(Error::new(ErrorKind::Quiesce, "disks alone cannot be quiesced").hint(
                "give the QMP socket of the running machine (qmp+unix:///PATH), or quiesce it with --pre-freeze and \
                 --post-thaw",
            ));
        }
        let of = SourceOptions { wanted: *wanted, image_roots: self.image_roots.clone(), world: self.world.clone() };
        let open = SnapshotSession::open(self.disks.clone(), &of, past);
        let Some(hooks) = &self.hooks else { return open.await };
        let (mut session, frozen) = hooks.around(&self.name, &self.stop, open).await?;
        session.snapshot.frozen = frozen.duration;
        session.snapshot.warnings.extend(frozen.warning);
        Ok(session)
    }

    fn stands_still(&self) -> bool {
        self.hooks.is_some()
    }
}
