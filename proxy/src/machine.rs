//! A machine that is not running: its disks, and the administrator's commands around their opening.

use crate::hooks::Hooks;
use crate::{NamedSource, SnapshotSession, SourceOptions};
use mover::{MachineSource, Name, Past, Result, Stop, Wanted, World};
use std::path::PathBuf;

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
        let of = SourceOptions { wanted: *wanted, image_roots: self.image_roots.clone(), world: self.world.clone() };
        let open = SnapshotSession::open(self.disks.clone(), &of, past);
        let Some(hooks) = &self.hooks else { return open.await };
        let (mut session, frozen) = hooks.around(&self.name, &self.stop, open).await?;
        session.snapshot.frozen = frozen.duration;
        session.snapshot.warnings.extend(frozen.warning);
        Ok(session)
    }
}
