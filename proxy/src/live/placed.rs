//! What a session has put into QEMU, and taking it out again.

use super::bitmaps::Bitmaps;
use super::found::Files;
use super::graph::{Traces, is_running, undo};
use super::inventory::LiveDisk;
use super::scratch::Scratch;
use super::watchdog::{Held, Watchdog, Word};
use crate::qemu::TrackingName;
use crate::qmp::{Monitor, QmpError};
use mover::{Error, Result, World};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Takes out what `traces` lists, with a watchdog that sets the machine going if this process is killed meanwhile.
///
/// # Errors
/// See [`QmpError`].
pub async fn undo_watched(monitor: &mut Monitor, watchdog: &mut Watchdog, traces: &Traces) -> Result<(), QmpError> {
    // A watchdog that is gone is no reason to leave the snapshot there.
    let running = is_running(monitor).await?;
    let stops = running && watchdog.tell(Word::Stopping).await.is_ok();
    let undone = undo(monitor, traces, running).await;
    // Otherwise the watchdog sets it going when we are gone.
    if stops && (undone.is_ok() || is_running(monitor).await.unwrap_or(false)) {
        let _ = watchdog.tell(Word::Going).await;
    }
    undone
}

/// Takes out what a backup left that was killed together with its watchdog.
///
/// # Errors
/// `Source`; `Internal` when no watchdog can be started.
pub async fn undo_leftovers(monitor: &mut Monitor, path: &Path, traces: &Traces, world: &World) -> Result<()> {
    let held = Held::begin(world)?;
    let mut watchdog = Watchdog::start(&held, monitor, None, Duration::ZERO).await?;
    undo_watched(monitor, &mut watchdog, traces).await.map_err(|error| error.about(path))?;
    watchdog.end().await;
    Ok(())
}

/// A session's parts in QEMU, and who watches over them.
#[derive(Debug)]
pub struct Placed {
    /// The monitor's socket, for messages.
    pub path: PathBuf,
    /// The connection to it.
    pub monitor: Monitor,
    /// The number of the session, which all parts bear.
    pub held: Held,
    /// The process that goes on when this one is killed.
    pub watchdog: Watchdog,
    /// The disks.
    pub disks: Vec<Planned>,
}

/// A disk, and what is done with it.
#[derive(Debug)]
pub struct Planned {
    /// The disk as QEMU has it.
    pub disk: LiveDisk,
    /// The files of its image.
    pub files: Files,
    /// Its bitmaps.
    pub bitmaps: Bitmaps,
    /// Where what the guest overwrites goes.
    pub scratch: Arc<Scratch>,
}

/// What was found out about bitmaps while the disks were read, by disk.
#[derive(Debug, Default)]
pub struct Judged {
    /// The repository's bitmap that proved the changes.
    pub proven: BTreeMap<usize, TrackingName>,
    /// Disks whose witness lost its mark.
    pub spoilt: BTreeSet<usize>,
}

impl Placed {
    /// QEMU's refusal or silence as an error about this machine.
    pub fn about(&self, error: QmpError) -> Error {
        error.about(&self.path)
    }

    /// Ends after a commit: takes the snapshot out, and the bitmaps that the point makes useless.
    ///
    /// # Errors
    /// `Source`; the next run settles what is left.
    pub async fn commit(mut self, judged: &Judged) -> Result<()> {
        let ended = async {
            self.take_out().await?;
            for (at, planned) in self.disks.iter().enumerate() {
                let (proven, spoilt) = (judged.proven.get(&at), judged.spoilt.contains(&at));
                planned.bitmaps.commit(&mut self.monitor, proven, spoilt).await?;
            }
            Ok(())
        };
        let ended = ended.await;
        self.end(ended).await
    }

    /// Ends without a point: takes out everything that the session put in.
    ///
    /// # Errors
    /// `Source`; the next run settles what is left.
    pub async fn abandon(mut self) -> Result<()> {
        let ended = async {
            self.take_out().await?;
            for planned in &self.disks {
                planned.bitmaps.abandon(&mut self.monitor).await?;
            }
            Ok(())
        };
        let ended = ended.await;
        self.end(ended).await
    }

    async fn take_out(&mut self) -> Result<(), QmpError> {
        let traces = Traces::look(&mut self.monitor, Some(self.held.number)).await?;
        undo_watched(&mut self.monitor, &mut self.watchdog, &traces).await
    }

    /// Without a word the watchdog sees that we are gone, and tries the same once more.
    async fn end(self, ended: Result<(), QmpError>) -> Result<()> {
        match ended {
            Ok(()) => {
                self.watchdog.end().await;
                Ok(())
            }
            Err(error) => Err(self.about(error)),
        }
    }
}
