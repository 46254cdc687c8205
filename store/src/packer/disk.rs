//! The thread that writes packs, makes complete ones durable and gives them their names, in order.

use super::pending::{Pending, SealedPack, lock};
use crate::directory::Directory;
use crate::error::storage;
use crate::format::event::AddedPack;
use crate::format::pack::{PackEntry, PackKind, PackName};
use mover::{AlignedBuffer, Error, Result};
use std::fs::File;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use tokio::sync::oneshot;

pub(super) enum Step {
    Write(Write),
    Seal(Seal),
    /// Answered when everything sent before is done.
    Barrier(oneshot::Sender<()>),
}

/// The next bytes of a pack.
pub(super) struct Write {
    pub pack: u64,
    pub file: Arc<File>,
    pub path: PathBuf,
    pub bytes: AlignedBuffer,
    /// Whose records are written entirely with it.
    pub entries: Vec<PackEntry>,
}

/// A pack of which everything is written.
pub(super) struct Seal {
    pub pack: u64,
    pub kind: PackKind,
    pub file: Arc<File>,
    pub path: PathBuf,
    pub name: PackName,
    pub bytes: u64,
    pub entries: Vec<PackEntry>,
}

pub(super) fn run(
    directory: &Directory,
    pending: &Mutex<Pending>,
    steps: Receiver<Step>,
    used: SyncSender<AlignedBuffer>,
    sealed_many: impl Fn() + Clone + Send + 'static,
) {
    let mut logging: Option<JoinHandle<()>> = None;
    for step in steps {
        let done = match step {
            Step::Write(step) => write(directory, pending, step, &used),
            Step::Seal(step) => seal(directory, pending, step).map(|is_due| {
                // Elsewhere, for it fills the index too, and the disk should not wait for that.
                if is_due && logging.as_ref().is_none_or(JoinHandle::is_finished) {
                    let named = thread::Builder::new().name("logger".into());
                    logging = named.spawn(sealed_many.clone()).ok();
                }
            }),
            Step::Barrier(flushed) => {
                let _ = flushed.send(());
                Ok(())
            }
        };
        if let Err(error) = done {
            lock(pending).fail(&error);
        }
    }
}

fn write(directory: &Directory, pending: &Mutex<Pending>, step: Write, used: &SyncSender<AlignedBuffer>) -> Result<()> {
    let Write { pack, file, path, mut bytes, entries } = step;
    lock(pending).check()?;
    let written = directory.io().append(&file, &mut [IoSlice::new(&bytes)]);
    written.map_err(|error| storage("cannot write", &path, error))?;
    lock(pending).written(pack, &entries);
    bytes.clear();
    let _ = used.try_send(bytes);
    Ok(())
}

/// Gives whether what waits for a log record should have one.
fn seal(directory: &Directory, pending: &Mutex<Pending>, step: Seal) -> Result<bool> {
    let Seal { pack, kind, file, path, name, bytes, entries } = step;
    lock(pending).check()?;
    let synced = directory.io().sync(&file);
    synced.map_err(|error| storage("cannot sync", &path, error))?;
    lock(pending).name(pack, directory.pack_path(&name));
    directory.publish_pack(&path, &name).map_err(|error| if_taken_over(directory, &path, error))?;
    let chunks = u32::try_from(entries.len()).expect("a pack is bounded");
    let sealed = SealedPack { added: AddedPack { name, kind, bytes, chunks }, entries: Arc::new(entries) };
    let mut pending = lock(pending);
    pending.seal(pack, sealed);
    Ok(pending.is_due())
}

/// Nobody takes a pack away that is being written but who begins the writer's next term (R5): then that is what is wrong.
fn if_taken_over(directory: &Directory, path: &Path, error: Error) -> Error {
    match directory.io().open(path) {
        Err(gone) if gone.kind() == std::io::ErrorKind::NotFound => {
            Error::fenced("another process took over the packs that this one was writing").because(error)
        }
        _ => error,
    }
}
