//! Packs being written. All sessions of a process share the open packs: one seal and one sync make the chunks of all of
//! them durable, and a chunk that one session has put is "pending" for the others (R18).
//!
//! One thread assembles packs in memory and hashes them; another thread writes them, makes full ones durable and names
//! them, while more chunks come. What is not in the log yet is listed in [`Pending`].

mod assemble;
mod disk;
mod pending;

pub use assemble::PackMaker;
pub(crate) use assemble::{PACK_BYTES_TARGET, PACK_CHUNKS_TARGET};
pub use pending::{Pending, lock};

use crate::format::pack::PackKind;
use assemble::Assembler;
use chunker::{Blob, BlobHeader, ChunkId};
use mover::{Error, Result, SessionId, Shape};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use tokio::sync::{mpsc, oneshot};

/// A verified chunk on its way into a pack.
pub struct Arrival {
    /// Id of the chunk.
    pub id: ChunkId,
    /// The encoded chunk.
    pub blob: Blob,
    /// First 16 bytes of the blob's BLAKE3.
    pub hash: [u8; 16],
    /// [`Pending::logged_by_others`] when the index was found to lack the chunk; `None` when it was not asked.
    pub missing_at: Option<u64>,
}

/// A chunk that the packer has taken.
#[derive(Clone, Copy)]
pub struct Taken {
    /// Id of the chunk.
    pub id: ChunkId,
    /// Its blob's header.
    pub header: BlobHeader,
}

/// Handle to the threads that write packs.
pub struct Packer {
    sender: Option<mpsc::Sender<Message>>,
    pending: Arc<Mutex<Pending>>,
    assembler: Option<JoinHandle<()>>,
}

enum Message {
    Append(PackKind, Vec<Arrival>),
    Flush(oneshot::Sender<()>),
}

impl Packer {
    /// Starts the threads; they end when the handle is dropped. `sealed_many` is called on a thread of its own when packs
    /// have come together that should be logged.
    pub fn start(
        maker: PackMaker,
        pending: Arc<Mutex<Pending>>,
        sealed_many: impl Fn() + Clone + Send + 'static,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(MESSAGES_MAX);
        let (steps, to_do) = sync_channel(STEPS_MAX);
        let (used, reuse) = sync_channel(STEPS_MAX);
        let writing = pending.clone();
        let disk = thread::Builder::new()
            .name("disk".into())
            .spawn(move || disk::run(&writing, to_do, used, sealed_many))
            .expect("a thread can be started");
        let assembler = Assembler::new(maker, pending.clone(), steps, reuse);
        let assembler = thread::Builder::new()
            .name("packer".into())
            .spawn(move || {
                assembler.run(receiver);
                let _ = disk.join();
            })
            .expect("a thread can be started");
        Self { sender: Some(sender), pending, assembler: Some(assembler) }
    }

    /// Hands those of `arrivals` that nobody has put before to the packer, for packs of one kind; waits while too many
    /// are on their way. Returns what was taken, and those about which the index must be asked (again) because another
    /// session may have stored them since.
    ///
    /// # Errors
    /// When writing has stopped.
    pub async fn append(
        &self,
        session: SessionId,
        kind: PackKind,
        arrivals: Vec<Arrival>,
    ) -> Result<(Vec<Taken>, Vec<Arrival>)> {
        self.check()?;
        let ended = |_| self.check().err().unwrap_or_else(|| Error::internal("the packer has ended"));
        let permit = self.sender().reserve().await.map_err(ended)?;
        // From here on nothing waits, so a caller that is cancelled leaves no chunk taken and not sent; and whoever sees
        // one as pending flushes behind it in the queue (R18).
        let mut pending = lock(&self.pending);
        let logged = pending.logged_by_others(session);
        let (mut arrivals, late): (Vec<_>, Vec<_>) =
            arrivals.into_iter().partition(|arrival| arrival.missing_at.is_some_and(|at| at >= logged));
        arrivals.retain(|arrival| pending.reserve(arrival.id, Shape::of(arrival.blob.header()), session));
        let taken = arrivals.iter().map(|arrival| Taken { id: arrival.id, header: *arrival.blob.header() }).collect();
        if !arrivals.is_empty() {
            permit.send(Message::Append(kind, arrivals));
        }
        Ok((taken, late))
    }

    fn sender(&self) -> &mpsc::Sender<Message> {
        self.sender.as_ref().expect("only dropping takes it")
    }

    /// Returns when everything handed over before is durable under its name.
    ///
    /// # Errors
    /// When writing has stopped.
    pub async fn flush(&self) -> Result<()> {
        let (done, wait) = oneshot::channel();
        if self.sender().send(Message::Flush(done)).await.is_ok() {
            let _ = wait.await;
        }
        self.check()
    }

    fn check(&self) -> Result<()> {
        lock(&self.pending).check()
    }
}

impl Drop for Packer {
    /// Gives up chunks that are not flushed, and waits for the threads to end. The next process that opens the
    /// directory must not find them still writing there.
    fn drop(&mut self) {
        lock(&self.pending).fail(&Error::store_io("it was closed"));
        self.sender = None;
        if let Some(assembler) = self.assembler.take() {
            let _ = assembler.join();
        }
    }
}

/// Batches of chunks on their way to the packer.
const MESSAGES_MAX: usize = 8;
/// Writes on their way to the disk, of [`assemble::WRITE_BYTES`] at most.
const STEPS_MAX: usize = 2;
