//! Packs being written. All sessions of a process share the open packs: one seal and one sync make the chunks of all of
//! them durable, and a chunk that one session has put is "pending" for the others (R18).
//!
//! One thread owns the open packs and appends; another syncs and names full ones beside the stream. What is not in the
//! log yet is listed in [`Pending`].

use crate::directory::Directory;
use crate::format::event::AddedPack;
use crate::format::pack::{
    PACK_HEADER_BYTES, PackEntry, PackHeader, PackKind, PackName, RECORD_HEADER_BYTES, encode_footer, record_header,
};
use crate::log::Author;
use chunker::{Blob, BlobHeader, ChunkId};
use mover::{Error, ErrorKind, OwnerId, RepositoryConfig, Result, SessionId};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::IoSlice;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle, ThreadId};
use tokio::sync::{mpsc, oneshot};

/// A verified chunk on its way into a pack.
pub struct Arrival {
    /// The chunk.
    pub id: ChunkId,
    /// Its blob.
    pub blob: Blob,
    /// First 16 bytes of the blob's BLAKE3.
    pub hash: [u8; 16],
}

/// Packs that the log does not know yet, and what is in them.
#[derive(Default)]
pub struct Pending {
    chunks: HashMap<ChunkId, PendingChunk>,
    packs: BTreeMap<u64, PendingPack>,
    next_pack: u64,
    failed: Option<(ErrorKind, String)>,
}

/// A chunk that the log does not know yet.
#[derive(Clone, Copy)]
pub struct PendingChunk {
    /// Who put it first.
    pub session: SessionId,
    /// The pack (a number of this process), offset of its record and length of its blob, once it is written.
    pub place: Option<(u64, u32, u32)>,
}

/// A pack that the log does not know yet.
pub struct PendingPack {
    /// Where its bytes are, under a temporary name.
    pub path: PathBuf,
    /// Its nonce.
    pub nonce: [u8; 16],
    /// What to log, once it is durable under its own name.
    pub sealed: Option<SealedPack>,
}

/// A durable pack.
#[derive(Clone)]
pub struct SealedPack {
    /// For the log.
    pub added: AddedPack,
    /// For the index.
    pub entries: Arc<Vec<PackEntry>>,
}

impl Pending {
    /// What is known of a chunk.
    pub fn chunk(&self, id: &ChunkId) -> Option<PendingChunk> {
        self.chunks.get(id).copied()
    }

    /// Takes `id` for `session` unless somebody has put it already. What is taken must be on its way to the packer when
    /// the lock is given back: who is told "pending" relies on its own flush coming after.
    fn reserve(&mut self, id: ChunkId, session: SessionId) -> bool {
        let new = !self.chunks.contains_key(&id);
        if new {
            self.chunks.insert(id, PendingChunk { session, place: None });
        }
        new
    }

    /// True for a chunk whose pack is durable, so that the next record will name it.
    pub fn is_sealed(&self, id: &ChunkId) -> bool {
        let place = self.chunks.get(id).and_then(|chunk| chunk.place);
        place.and_then(|place| self.packs.get(&place.0)).is_some_and(|pack| pack.sealed.is_some())
    }

    /// A pack by its number.
    pub fn pack(&self, number: u64) -> Option<&PendingPack> {
        self.packs.get(&number)
    }

    /// The packs that are durable, by number.
    pub fn sealed(&self) -> Vec<(u64, SealedPack)> {
        self.packs.iter().filter_map(|(number, pack)| Some((*number, pack.sealed.clone()?))).collect()
    }

    /// Forgets a pack that is in the log and the index now, and gives its temporary name.
    pub fn logged(&mut self, number: u64) -> Option<PathBuf> {
        let pack = self.packs.remove(&number)?;
        for entry in pack.sealed.iter().flat_map(|sealed| sealed.entries.iter()) {
            if self.chunks.get(&entry.id).is_some_and(|chunk| chunk.place.is_some_and(|place| place.0 == number)) {
                self.chunks.remove(&entry.id);
            }
        }
        Some(pack.path)
    }

    /// Stops all writing until the repository is opened again; the first error stays (never retry a failed sync).
    pub fn fail(&mut self, error: &Error) {
        self.failed.get_or_insert_with(|| (error.kind(), error.message()));
    }

    /// Fails when writing has stopped.
    ///
    /// # Errors
    /// The first error, again.
    pub fn check(&self) -> Result<()> {
        let Some((kind, message)) = &self.failed else { return Ok(()) };
        Err(Error::new(*kind, format!("the repository stopped writing: {message}"))
            .hint("when the storage is sound again, run the job again; nothing that was committed is affected"))
    }
}

/// Handle to the threads that write packs.
pub struct Packer {
    sender: Option<mpsc::Sender<Message>>,
    pending: Arc<Mutex<Pending>>,
    writer: Option<JoinHandle<()>>,
    sealer: ThreadId,
}

enum Message {
    Append(PackKind, Vec<Arrival>),
    Flush(oneshot::Sender<()>),
}

/// What every pack of this process has in its header.
#[derive(Clone)]
pub struct PackMaker {
    /// The directory.
    pub directory: Directory,
    /// The repository.
    pub config: RepositoryConfig,
    /// This process.
    pub author: Author,
}

impl Packer {
    /// Starts the threads; they end when the handle is dropped. `sealed_many` is called on one of them when packs have
    /// come together that should be logged.
    pub fn start(maker: PackMaker, pending: Arc<Mutex<Pending>>, sealed_many: impl Fn() + Send + 'static) -> Self {
        let (sender, receiver) = mpsc::channel(MESSAGES_MAX);
        let (full, to_seal) = sync_channel(SEALS_MAX);
        let (directory, sealing) = (maker.directory.clone(), pending.clone());
        let sealer = thread::Builder::new()
            .name("sealer".into())
            .spawn(move || run_sealer(&directory, &sealing, to_seal, sealed_many))
            .expect("a thread can be started");
        let id = sealer.thread().id();
        let writer = Writer { maker, pending: pending.clone(), open: [None, None] };
        let writer = thread::Builder::new()
            .name("packer".into())
            .spawn(move || {
                writer.run(receiver, full);
                let _ = sealer.join();
            })
            .expect("a thread can be started");
        Self { sender: Some(sender), pending, writer: Some(writer), sealer: id }
    }

    /// Hands those of `arrivals` that nobody has put before to the packer, for packs of one kind; waits while too many
    /// are on their way. Returns what was taken.
    ///
    /// # Errors
    /// When writing has stopped.
    pub async fn append(&self, session: SessionId, kind: PackKind, mut arrivals: Vec<Arrival>) -> Result<Vec<Taken>> {
        self.check()?;
        let ended = |_| self.check().err().unwrap_or_else(|| Error::internal("the packer has ended"));
        let permit = self.sender().reserve().await.map_err(ended)?;
        // From here on nothing waits, so a caller that is cancelled leaves no chunk taken and not sent; and whoever sees
        // one as pending flushes behind it in the queue (R18).
        let mut pending = lock(&self.pending);
        arrivals.retain(|arrival| pending.reserve(arrival.id, session));
        let taken = arrivals.iter().map(|arrival| Taken { id: arrival.id, header: *arrival.blob.header() }).collect();
        if !arrivals.is_empty() {
            permit.send(Message::Append(kind, arrivals));
        }
        Ok(taken)
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
    /// Gives up what is not flushed, and waits for the threads: whoever opens the directory next must not find them still
    /// writing there.
    fn drop(&mut self) {
        lock(&self.pending).fail(&Error::store_io("it was closed"));
        self.sender = None;
        if let Some(writer) = self.writer.take() {
            let this = thread::current().id();
            if this != self.sealer && this != writer.thread().id() {
                let _ = writer.join();
            }
        }
    }
}

/// A chunk that the packer has taken.
#[derive(Clone, Copy)]
pub struct Taken {
    /// Which.
    pub id: ChunkId,
    /// Its blob's header.
    pub header: BlobHeader,
}

/// Locks what is pending.
pub fn lock(pending: &Mutex<Pending>) -> MutexGuard<'_, Pending> {
    pending.lock().expect("no holder panics")
}

/// The thread that owns the open packs.
struct Writer {
    maker: PackMaker,
    pending: Arc<Mutex<Pending>>,
    open: [Option<OpenPack>; 2],
}

/// A pack that grows.
struct OpenPack {
    number: u64,
    kind: PackKind,
    file: File,
    path: PathBuf,
    nonce: [u8; 16],
    hasher: blake3::Hasher,
    bytes: u64,
    entries: Vec<PackEntry>,
}

/// Work of the thread that makes packs durable, in order.
enum Seal {
    Pack(Box<OpenPack>),
    /// Answered when everything sent before is sealed.
    Barrier(oneshot::Sender<()>),
}

impl Writer {
    fn run(mut self, mut receiver: mpsc::Receiver<Message>, full: SyncSender<Seal>) {
        while let Some(message) = receiver.blocking_recv() {
            let done = match message {
                Message::Append(kind, arrivals) => self.append(kind, arrivals, &full),
                Message::Flush(flushed) => {
                    let done = [0, 1].into_iter().try_for_each(|at| self.complete(at, &full));
                    let _ = full.send(Seal::Barrier(flushed));
                    done
                }
            };
            if let Err(error) = done {
                lock(&self.pending).fail(&error);
            }
        }
    }

    fn append(&mut self, kind: PackKind, arrivals: Vec<Arrival>, full: &SyncSender<Seal>) -> Result<()> {
        lock(&self.pending).check()?;
        let at = kind as usize;
        let mut rest = arrivals.as_slice();
        while !rest.is_empty() {
            let pack = match &mut self.open[at] {
                Some(pack) => pack,
                closed => closed.insert(OpenPack::create(&self.maker, &self.pending, kind)?),
            };
            let taken = pack.append(&self.maker.directory, rest, &self.pending)?;
            rest = &rest[taken..];
            if pack.bytes >= PACK_BYTES_TARGET {
                self.complete(at, full)?;
            }
        }
        Ok(())
    }

    fn complete(&mut self, at: usize, full: &SyncSender<Seal>) -> Result<()> {
        let Some(mut pack) = self.open[at].take() else { return Ok(()) };
        lock(&self.pending).check()?;
        pack.finish(&self.maker.directory)?;
        full.send(Seal::Pack(Box::new(pack))).map_err(|_| Error::internal("the sealer has ended"))
    }
}

impl OpenPack {
    fn create(maker: &PackMaker, pending: &Mutex<Pending>, kind: PackKind) -> Result<Self> {
        let world = maker.directory.world();
        let header = PackHeader {
            kind,
            repository: maker.config.id,
            writer: maker.author.writer,
            term: maker.author.term,
            owner: OwnerId::default(),
            domain: maker.config.domain.fingerprint(),
            nonce: world.random_bytes(),
            created: world.now(),
        };
        let path = maker.directory.temporary_pack();
        let file = maker.directory.create_temporary(&path)?;
        let mut pending = lock(pending);
        let number = pending.next_pack;
        pending.next_pack += 1;
        pending.packs.insert(number, PendingPack { path: path.clone(), nonce: header.nonce, sealed: None });
        drop(pending);
        let (nonce, hasher) = (header.nonce, blake3::Hasher::new());
        let mut pack = Self { number, kind, file, path, nonce, hasher, bytes: 0, entries: Vec::new() };
        pack.write(&maker.directory, &mut [IoSlice::new(&header.encode())])?;
        assert_eq!(pack.bytes, PACK_HEADER_BYTES as u64, "the header has its documented length");
        Ok(pack)
    }

    /// Appends as many of `arrivals` as fit, at least one; returns how many.
    fn append(&mut self, directory: &Directory, arrivals: &[Arrival], pending: &Mutex<Pending>) -> Result<usize> {
        let first = self.entries.len();
        let mut at = self.bytes;
        let mut headers = Vec::with_capacity(arrivals.len());
        for arrival in arrivals {
            let header = arrival.blob.header();
            let ordinal = u32::try_from(self.entries.len()).expect("a pack is bounded");
            headers.push(record_header(&self.nonce, ordinal, &arrival.id));
            self.entries.push(PackEntry {
                id: arrival.id,
                kind: header.kind,
                offset: u32::try_from(at).expect("a pack is bounded"),
                blob_bytes: header.blob_bytes(),
                plain_bytes: header.plain_bytes,
                blob_hash: arrival.hash,
            });
            at += RECORD_HEADER_BYTES as u64 + u64::from(header.blob_bytes());
            if at >= PACK_BYTES_TARGET {
                break;
            }
        }
        let mut parts: Vec<IoSlice<'_>> = headers
            .iter()
            .zip(arrivals)
            .flat_map(|(header, arrival)| [IoSlice::new(header), IoSlice::new(arrival.blob.bytes())])
            .collect();
        self.write(directory, &mut parts)?;
        let mut pending = lock(pending);
        for entry in &self.entries[first..] {
            if let Some(chunk) = pending.chunks.get_mut(&entry.id) {
                chunk.place.get_or_insert((self.number, entry.offset, entry.blob_bytes));
            }
        }
        Ok(headers.len())
    }

    fn finish(&mut self, directory: &Directory) -> Result<()> {
        let footer = encode_footer(&self.entries);
        self.write(directory, &mut [IoSlice::new(&footer)])
    }

    fn write(&mut self, directory: &Directory, parts: &mut [IoSlice<'_>]) -> Result<()> {
        for part in parts.iter() {
            self.hasher.update(part);
            self.bytes += part.len() as u64;
        }
        let written = directory.io().append(&self.file, parts);
        written.map_err(|error| crate::error::storage("cannot write", &self.path, error))
    }
}

fn run_sealer(directory: &Directory, pending: &Mutex<Pending>, jobs: Receiver<Seal>, sealed_many: impl Fn()) {
    for job in jobs {
        match job {
            Seal::Pack(pack) => {
                if let Err(error) = seal(directory, pending, *pack) {
                    lock(pending).fail(&error);
                } else if lock(pending).sealed().len() >= SEALED_MAX {
                    sealed_many();
                }
            }
            Seal::Barrier(flushed) => drop(flushed.send(())),
        }
    }
}

/// Makes a complete pack durable and gives it its name.
fn seal(directory: &Directory, pending: &Mutex<Pending>, pack: OpenPack) -> Result<()> {
    lock(pending).check()?;
    let synced = directory.io().sync(&pack.file);
    synced.map_err(|error| crate::error::storage("cannot sync", &pack.path, error))?;
    let name = PackName(*pack.hasher.finalize().as_bytes());
    directory.publish_pack(&pack.path, &name)?;
    let chunks = u32::try_from(pack.entries.len()).expect("a pack is bounded");
    let added = AddedPack { name, kind: pack.kind, bytes: pack.bytes, chunks };
    let sealed = SealedPack { added, entries: Arc::new(pack.entries) };
    if let Some(waiting) = lock(pending).packs.get_mut(&pack.number) {
        waiting.sealed = Some(sealed);
    }
    Ok(())
}

/// A pack is full from here on: it stays below 64 MiB with chunks of up to 256 KiB.
const PACK_BYTES_TARGET: u64 = 56 << 20;
/// Batches of chunks on their way to the packer.
const MESSAGES_MAX: usize = 8;
/// Complete packs that wait for their sync.
const SEALS_MAX: usize = 2;
/// Durable packs that wait for a log record.
const SEALED_MAX: usize = 8;
