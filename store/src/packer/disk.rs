//! The thread that writes packs, makes complete ones durable and gives them their names, in order.

use super::pending::{Pending, SealedPack, lock};
use crate::format::event::AddedPack;
use crate::format::pack::{PackEntry, PackKind, PackName};
use crate::objects::Incoming;
use mover::{AlignedBuffer, Result};
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
    pub incoming: Arc<dyn Incoming>,
    pub bytes: AlignedBuffer,
    /// Entries of the records that are complete after this write.
    pub entries: Vec<PackEntry>,
}

/// A pack of which everything is written.
pub(super) struct Seal {
    pub pack: u64,
    pub kind: PackKind,
    pub incoming: Arc<dyn Incoming>,
    pub name: PackName,
    pub bytes: u64,
    pub entries: Vec<PackEntry>,
}

pub(super) fn run(
    pending: &Mutex<Pending>,
    steps: Receiver<Step>,
    used: SyncSender<AlignedBuffer>,
    sealed_many: impl Fn() + Clone + Send + 'static,
) {
    let mut logging: Option<JoinHandle<()>> = None;
    for step in steps {
        let done = match step {
            Step::Write(step) => write(pending, step, &used),
            Step::Seal(step) => seal(pending, step).map(|is_due| {
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

fn write(pending: &Mutex<Pending>, step: Write, used: &SyncSender<AlignedBuffer>) -> Result<()> {
    let Write { pack, incoming, mut bytes, entries } = step;
    lock(pending).check()?;
    incoming.append(&bytes)?;
    lock(pending).written(pack, &entries);
    bytes.clear();
    let _ = used.try_send(bytes);
    Ok(())
}

/// Publishes a complete pack. Gives whether the packs that wait for the log should be logged now.
fn seal(pending: &Mutex<Pending>, step: Seal) -> Result<bool> {
    let Seal { pack, kind, incoming, name, bytes, entries } = step;
    lock(pending).check()?;
    incoming.publish(&name)?;
    let chunks = u32::try_from(entries.len()).expect("a pack is bounded");
    let sealed = SealedPack { added: AddedPack { name, kind, bytes, chunks }, entries: Arc::new(entries) };
    let mut pending = lock(pending);
    pending.seal(pack, sealed);
    Ok(pending.is_due())
}
