//! The thread that owns the open packs: it lays their bytes out in memory, hashes them, and hands over long writes.

use super::disk::{Step, Write};
use super::{Arrival, Message, Pending, lock};
use crate::format::pack::{
    PACK_HEADER_BYTES, PackEntry, PackHeader, PackKind, PackName, RECORD_HEADER_BYTES, encode_footer, record_header,
};
use crate::log::Author;
use crate::objects::{Incoming, Objects};
use mover::{AlignedBuffer, Error, OwnerId, RepositoryConfig, Result, World};
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;

/// What every pack of this process has in its header.
#[derive(Clone)]
pub struct PackMaker {
    /// Where packs go.
    pub objects: Arc<dyn Objects>,
    /// Clock and randomness.
    pub world: World,
    /// Id and dedup domain of the repository.
    pub config: RepositoryConfig,
    /// Writer and term of this process.
    pub author: Author,
}

pub(super) struct Assembler {
    maker: PackMaker,
    pending: Arc<Mutex<Pending>>,
    disk: Disk,
    open: [Option<OpenPack>; 2],
}

/// The way to the thread that writes, and buffers that come back from there.
struct Disk {
    steps: SyncSender<Step>,
    reuse: Receiver<AlignedBuffer>,
}

impl Disk {
    fn send(&self, step: Step) -> Result<()> {
        self.steps.send(step).map_err(|_| Error::internal("the thread that writes packs has ended"))
    }

    fn buffer(&self) -> AlignedBuffer {
        self.reuse.try_recv().unwrap_or_else(|_| AlignedBuffer::with_capacity(WRITE_BYTES))
    }
}

/// A pack that grows.
struct OpenPack {
    number: u64,
    kind: PackKind,
    incoming: Arc<dyn Incoming>,
    nonce: [u8; 16],
    hasher: blake3::Hasher,
    /// Length so far, with what is in the buffer.
    bytes: u64,
    entries: Vec<PackEntry>,
    /// Bytes that are not handed over, less than [`WRITE_BYTES`].
    buffer: AlignedBuffer,
    /// Entries whose records are handed over entirely.
    handed_over: usize,
}

impl Assembler {
    pub fn new(
        maker: PackMaker,
        pending: Arc<Mutex<Pending>>,
        steps: SyncSender<Step>,
        reuse: Receiver<AlignedBuffer>,
    ) -> Self {
        Self { maker, pending, disk: Disk { steps, reuse }, open: [None, None] }
    }

    pub fn run(mut self, mut receiver: mpsc::Receiver<Message>) {
        while let Some(message) = receiver.blocking_recv() {
            let done = match message {
                Message::Append(kind, arrivals) => self.append(kind, &arrivals),
                Message::Flush(flushed) => {
                    let done = [0, 1].into_iter().try_for_each(|at| self.complete(at));
                    done.and(self.disk.send(Step::Barrier(flushed)))
                }
            };
            if let Err(error) = done {
                lock(&self.pending).fail(&error);
            }
        }
    }

    fn append(&mut self, kind: PackKind, arrivals: &[Arrival]) -> Result<()> {
        lock(&self.pending).check()?;
        let at = kind as usize;
        for arrival in arrivals {
            let pack = match &mut self.open[at] {
                Some(pack) => pack,
                closed => closed.insert(OpenPack::create(&self.maker, &self.pending, kind, &self.disk)?),
            };
            pack.append(arrival, &self.disk)?;
            if pack.bytes >= PACK_BYTES_TARGET || pack.entries.len() >= PACK_CHUNKS_TARGET {
                self.complete(at)?;
            }
        }
        Ok(())
    }

    fn complete(&mut self, at: usize) -> Result<()> {
        let Some(pack) = self.open[at].take() else { return Ok(()) };
        lock(&self.pending).check()?;
        pack.complete(&self.disk)
    }
}

impl OpenPack {
    fn create(maker: &PackMaker, pending: &Mutex<Pending>, kind: PackKind, disk: &Disk) -> Result<Self> {
        let world = &maker.world;
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
        let incoming = maker.objects.begin_pack(kind)?;
        let number = lock(pending).begin_pack(incoming.clone(), header.nonce);
        let mut pack = Self {
            number,
            kind,
            incoming,
            nonce: header.nonce,
            hasher: blake3::Hasher::new(),
            bytes: 0,
            entries: Vec::new(),
            buffer: disk.buffer(),
            handed_over: 0,
        };
        pack.push(&header.encode(), disk)?;
        assert_eq!(pack.bytes, PACK_HEADER_BYTES as u64, "the header has its documented length");
        Ok(pack)
    }

    fn append(&mut self, arrival: &Arrival, disk: &Disk) -> Result<()> {
        let header = arrival.blob.header();
        let ordinal = u32::try_from(self.entries.len()).expect("a pack is bounded");
        self.entries.push(PackEntry {
            id: arrival.id,
            kind: header.kind,
            offset: u32::try_from(self.bytes).expect("a pack is bounded"),
            blob_bytes: header.blob_bytes(),
            plain_bytes: header.plain_bytes,
            blob_hash: arrival.hash,
        });
        self.push(&record_header(&self.nonce, ordinal, &arrival.id), disk)?;
        self.push(arrival.blob.bytes(), disk)
    }

    fn push(&mut self, mut bytes: &[u8], disk: &Disk) -> Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(WRITE_BYTES - self.buffer.len()));
            self.buffer.append(now);
            self.bytes += now.len() as u64;
            bytes = later;
            if self.buffer.len() == WRITE_BYTES {
                self.hand_over(disk)?;
            }
        }
        Ok(())
    }

    fn hand_over(&mut self, disk: &Disk) -> Result<()> {
        // Much at a time: the hash works on 16 KiB at once.
        self.hasher.update(&self.buffer);
        let (first, end) = (self.handed_over, self.bytes);
        let whole = |entry: &PackEntry| u64::from(entry.offset) + RECORD_BYTES + u64::from(entry.blob_bytes) <= end;
        self.handed_over += self.entries[first..].iter().take_while(|entry| whole(entry)).count();
        disk.send(Step::Write(Write {
            pack: self.number,
            incoming: self.incoming.clone(),
            bytes: std::mem::replace(&mut self.buffer, disk.buffer()),
            entries: self.entries[first..self.handed_over].to_vec(),
        }))
    }

    fn complete(mut self, disk: &Disk) -> Result<()> {
        self.push(&encode_footer(&self.entries), disk)?;
        if !self.buffer.is_empty() {
            self.hand_over(disk)?;
        }
        disk.send(Step::Seal(super::disk::Seal {
            pack: self.number,
            kind: self.kind,
            incoming: self.incoming,
            name: PackName(*self.hasher.finalize().as_bytes()),
            bytes: self.bytes,
            entries: self.entries,
        }))
    }
}

/// Longest write, which is also the size of an open pack's buffer. Writes are long because they go past the page cache,
/// one at a time.
const WRITE_BYTES: usize = 4 << 20;
/// A pack that has as many bytes is complete: it stays below 64 MiB with chunks of up to 256 KiB.
pub(crate) const PACK_BYTES_TARGET: u64 = 56 << 20;
/// A pack that has as many chunks is complete, too. This limits memory, because all entries of a pack that is looked at
/// are in memory.
pub(crate) const PACK_CHUNKS_TARGET: usize = 1 << 16;
const RECORD_BYTES: u64 = RECORD_HEADER_BYTES as u64;
