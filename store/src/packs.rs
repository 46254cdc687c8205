//! The packs of an open repository: those that are being written, and those that are open for reading.

use crate::contents;
use crate::format::pack::PackName;
use crate::objects::{Object, Objects};
use crate::packer::{PackMaker, Packer, Pending, lock};
use mover::{Error, ErrorKind, Result};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// The packer, what it has not logged yet, and open packs.
pub struct Packs {
    objects: Arc<dyn Objects>,
    pending: Arc<Mutex<Pending>>,
    /// None when the repository is open for reading, or is closed.
    packer: Mutex<Option<Arc<Packer>>>,
    /// Packs that are open for reading, at most [`OPEN_MAX`].
    open: Mutex<HashMap<PackName, Arc<PackToRead>>>,
}

/// A pack that is open for reading.
pub struct PackToRead {
    /// Its bytes.
    pub pack: Arc<dyn Object>,
    /// The nonce in the pack's header, which each of its records repeats.
    pub nonce: [u8; 16],
}

impl Packs {
    /// The packs of a repository to which nothing is written yet.
    pub fn new(objects: Arc<dyn Objects>) -> Self {
        Self { objects, pending: Arc::default(), packer: Mutex::default(), open: Mutex::default() }
    }

    /// Begins to take chunks: see [`Packer::start`].
    pub fn start(&self, maker: PackMaker, sealed_many: impl Fn() + Clone + Send + 'static) {
        let packer = Packer::start(maker, self.pending.clone(), sealed_many);
        *self.packer.lock().expect("no holder panics") = Some(Arc::new(packer));
    }

    /// Takes no more. The threads end when the last session lets go of the packer.
    pub fn stop(&self) {
        // Not while it is held: the threads are waited for.
        let packer = self.packer.lock().expect("no holder panics").take();
        drop(packer);
    }

    /// The packer of a repository opened for writing.
    ///
    /// # Errors
    /// When it was opened for reading, or is closed.
    pub fn packer(&self) -> Result<Arc<Packer>> {
        let packer = self.packer.lock().expect("no holder panics").clone();
        packer.ok_or_else(|| Error::usage("the repository is open for reading only"))
    }

    /// What was taken and the log does not know yet. Nothing else is locked while it is held.
    pub fn pending(&self) -> MutexGuard<'_, Pending> {
        lock(&self.pending)
    }

    /// Fails when writing has stopped.
    ///
    /// # Errors
    /// The first error, again.
    pub fn check(&self) -> Result<()> {
        self.pending().check()
    }

    /// The kind of the error that stopped all writing; none while writing goes on.
    pub fn stopped(&self) -> Option<ErrorKind> {
        self.pending().stopped()
    }

    /// Stops all writing until the repository is opened again.
    pub fn fail(&self, error: &Error) {
        self.pending().fail(error);
    }

    /// Forgets these packs: they are in the log and the index now.
    pub fn logged(&self, numbers: impl Iterator<Item = u64>) {
        for number in numbers {
            let incoming = self.pending().logged(number);
            if let Some(incoming) = incoming {
                incoming.settle();
            }
        }
    }

    /// Opens a pack, or gives it when it is open. Blocking.
    ///
    /// # Errors
    /// `Integrity`, or of the storage.
    pub fn open(&self, name: &PackName) -> Result<Arc<PackToRead>> {
        let held = self.open.lock().expect("no holder panics").get(name).cloned();
        if let Some(held) = held {
            return Ok(held);
        }
        let pack = self.objects.open_pack(name)?;
        let nonce = contents::header(&*pack, name)?.nonce;
        let opened = Arc::new(PackToRead { pack, nonce });
        let mut open = self.open.lock().expect("no holder panics");
        if open.len() >= OPEN_MAX {
            open.clear();
        }
        open.insert(*name, opened.clone());
        Ok(opened)
    }

    /// Lets go of a pack that is about to be removed.
    pub fn let_go(&self, name: &PackName) {
        self.open.lock().expect("no holder panics").remove(name);
    }
}

/// Most packs that are kept open.
const OPEN_MAX: usize = 64;
