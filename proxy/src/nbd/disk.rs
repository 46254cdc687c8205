//! A disk behind an NBD server, over as many connections as the server allows.

use super::connection::Connection;
use super::error::NbdError;
use super::handshake::{Export, Framing, Hello};
use super::patience::Patience;
use super::session::{Reply, Request, Run};
use super::uri::NbdServer;
use super::wire::{ALLOCATION_ZERO, BITMAP_DIRTY};
use bytes::{Bytes, BytesMut};
use chunker::{Extent, ExtentSet, GRID_BYTES};
use futures::future::try_join_all;
use futures::{StreamExt, stream};
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::UnixStream;

/// An open export.
#[derive(Debug)]
pub struct NbdDisk {
    connections: Vec<Connection>,
    next: AtomicUsize,
}

/// What the contexts of an export say of the whole disk.
#[derive(Debug, Clone, Default)]
pub struct Extents {
    /// Blocks that read as zeros by allocation; empty where the server cannot tell.
    pub zeroes: ExtentSet,
    /// For each dirty bitmap that was negotiated, its name and what it marks.
    pub dirty: Vec<(String, ExtentSet)>,
    /// Why the server could not tell about some of the disk. Nothing there counts as zero or clean.
    pub failed: Option<NbdError>,
}

impl Extents {
    /// What the bitmap of this name marks.
    pub fn bitmap(&self, name: &str) -> Option<&ExtentSet> {
        self.dirty.iter().find(|(known, _)| known == name).map(|(_, dirty)| dirty)
    }
}

impl NbdDisk {
    /// Connects, with `base:allocation` and the dirty bitmaps named: the first connection asks what the server can
    /// do, others (up to [`CONNECTIONS_MAX`]) follow where it allows several.
    pub async fn open(
        server: &NbdServer,
        export: &str,
        bitmaps: &[String],
        patience: Patience,
    ) -> Result<Self, NbdError> {
        let hello = hello(export, bitmaps);
        let first = Connection::open(server, hello.clone(), patience).await?;
        let more = if first.export().flags.can_multi_conn() { CONNECTIONS_MAX - 1 } else { 0 };
        let others = try_join_all((0..more).map(|_| Connection::open(server, hello.clone(), patience))).await?;
        Self::of(first, others)
    }

    /// The same on unix sockets that are connected already; those the server does not want are closed.
    pub async fn over(
        sockets: Vec<UnixStream>,
        export: &str,
        bitmaps: &[String],
        patience: Patience,
    ) -> Result<Self, NbdError> {
        let hello = hello(export, bitmaps);
        let mut sockets = sockets.into_iter();
        let first = sockets.next().ok_or(NbdError::Closed(": no socket"))?;
        let first = Connection::over_unix(first, hello.clone(), patience).await?;
        let rest = if first.export().flags.can_multi_conn() { sockets.len() } else { 0 };
        let rest: Vec<_> = sockets.take(rest).collect();
        let others = rest.into_iter().map(|socket| Connection::over_unix(socket, hello.clone(), patience));
        Self::of(first, try_join_all(others).await?)
    }

    fn of(first: Connection, others: Vec<Connection>) -> Result<Self, NbdError> {
        if others.iter().any(|other| other.export() != first.export()) {
            return Err(NbdError::Protocol("connections to one export differ in size or abilities"));
        }
        let connections = [first].into_iter().chain(others).collect();
        Ok(Self { connections, next: AtomicUsize::new(0) })
    }

    /// What was negotiated, the same on every connection.
    pub fn export(&self) -> &Export {
        self.connections[0].export()
    }

    /// Number of connections.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// True when the server has this dirty bitmap.
    pub fn has_bitmap(&self, name: &str) -> bool {
        self.export().contexts.iter().any(|context| context.name.strip_prefix(BITMAP_PREFIX) == Some(name))
    }

    /// The bytes of `extent`. A read that the server fails is tried [`READ_ATTEMPTS`] times.
    pub async fn read(&self, extent: Extent) -> Result<Bytes, NbdError> {
        let piece_bytes_max = u64::from(self.export().payload_bytes_max);
        let whole = self.whole_blocks(extent);
        if whole < extent.length {
            return self.read_with_tail(extent, whole).await;
        }
        if extent.length <= piece_bytes_max {
            return self.read_piece(extent.offset, extent.length as u32).await;
        }
        let mut whole = BytesMut::new();
        for piece in ExtentSet::from_iter([extent]).split(piece_bytes_max) {
            whole.extend_from_slice(&self.read_piece(piece.offset, piece.length as u32).await?);
        }
        Ok(whole.freeze())
    }

    /// Reads an extent that ends inside a block. The whole last block is read.
    async fn read_with_tail(&self, extent: Extent, whole: u64) -> Result<Bytes, NbdError> {
        let export = self.export();
        let block = u64::from(export.block_bytes_min).min(export.size - extent.offset - whole);
        let mut bytes = Box::pin(self.read(Extent::new(extent.offset, whole + block))).await?;
        bytes.truncate(extent.length as usize);
        Ok(bytes)
    }

    async fn read_piece(&self, offset: u64, length: u32) -> Result<Bytes, NbdError> {
        let mut attempt = 1;
        loop {
            match self.call(Request::Read { offset, length }).await {
                Ok(Reply::Read(bytes)) => return Ok(bytes),
                Ok(_) => return Err(NbdError::Protocol("a reply of another kind")),
                Err(error) if error.is_request() && attempt < READ_ATTEMPTS => {
                    tracing::warn!(%error, attempt, "read failed, trying again");
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes `data` at `offset`, which is a multiple of the server's block size. If the data ends inside a block, and
    /// not at the end of the export, the rest of the last block is read and written back.
    pub async fn write(&self, offset: u64, mut data: Bytes) -> Result<(), NbdError> {
        let whole = self.whole_blocks(Extent::new(offset, data.len() as u64));
        let tail = data.split_off(whole as usize);
        if !tail.is_empty() {
            self.write_tail(offset + data.len() as u64, &tail).await?;
        }
        let piece_bytes_max = self.export().payload_bytes_max as usize;
        let mut at = offset;
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(piece_bytes_max));
            let length = piece.len() as u64;
            self.done(Request::Write { offset: at, data: piece }).await?;
            at += length;
        }
        Ok(())
    }

    /// Bytes at the beginning of `extent` that end with a block of the server's, or with the export.
    fn whole_blocks(&self, extent: Extent) -> u64 {
        let (block, size) = (u64::from(self.export().block_bytes_min), self.export().size);
        if extent.end() == size {
            return extent.length;
        }
        (extent.end() / block * block).saturating_sub(extent.offset)
    }

    /// The beginning of a block; what follows in it stays.
    async fn write_tail(&self, offset: u64, tail: &[u8]) -> Result<(), NbdError> {
        let export = self.export();
        let length = u64::from(export.block_bytes_min).min(export.size - offset);
        let mut block = BytesMut::from(&self.read_piece(offset, length as u32).await?[..]);
        block[..tail.len()].copy_from_slice(tail);
        self.done(Request::Write { offset, data: block.freeze() }).await
    }

    /// Makes `extent` read as zeros, by a hole where the server can. The extent must begin and may end like the data of
    /// [`Self::write`].
    pub async fn zero(&self, extent: Extent) -> Result<(), NbdError> {
        let whole = self.whole_blocks(extent);
        if whole < extent.length {
            self.write_tail(extent.offset + whole, &ZEROES[..(extent.length - whole) as usize]).await?;
        }
        let extent = Extent::new(extent.offset, whole);
        let can_zero = self.export().flags.can_zero();
        let piece_bytes_max = if can_zero { ZERO_BYTES_MAX } else { ZEROES.len() as u64 };
        for Extent { offset, length } in ExtentSet::from_iter([extent]).split(piece_bytes_max) {
            if can_zero {
                self.done(Request::WriteZeroes { offset, length }).await?;
            } else {
                self.write(offset, Bytes::from_static(&ZEROES[..length as usize])).await?;
            }
        }
        Ok(())
    }

    /// Tells the server that `extent` is not needed any more; nothing where it does not take that.
    pub async fn trim(&self, extent: Extent) -> Result<(), NbdError> {
        if !self.export().flags.can_trim() {
            return Ok(());
        }
        for Extent { offset, length } in ExtentSet::from_iter([extent]).split(ZERO_BYTES_MAX) {
            self.done(Request::Trim { offset, length }).await?;
        }
        Ok(())
    }

    /// Makes what was written durable, where the server knows that.
    pub async fn flush(&self) -> Result<(), NbdError> {
        if self.export().flags.can_flush() { self.done(Request::Flush).await } else { Ok(()) }
    }

    /// What the contexts say of the whole disk, in whole blocks of the grid. A block is dirty when any of its bytes is
    /// dirty, and zero when all its bytes are zero. Asked in windows, several at once.
    pub async fn extents(&self) -> Result<Extents, NbdError> {
        let export = self.export();
        let contexts = || export.contexts.iter().map(|context| context.name.strip_prefix(BITMAP_PREFIX));
        let window = if export.framing == Framing::Extended { WINDOW_BYTES_EXTENDED } else { WINDOW_BYTES };
        let count = if export.contexts.is_empty() { 0 } else { export.size.div_ceil(window) };
        // Made one by one: an absurd size must not become a list.
        let windows = (0..count).map(|at| Extent::from(at * window..((at + 1) * window).min(export.size)));
        let mut answers = stream::iter(windows.map(|window| self.window(window))).buffered(WINDOWS_IN_FLIGHT);
        let mut marked = vec![ExtentSet::new(); export.contexts.len()];
        let (mut extents, mut told) = (Extents::default(), 0);
        while let Some(answer) = answers.next().await {
            let answer = match answer {
                Ok(answer) => answer,
                // Servers that cannot tell say so each time: from here on everything may hold anything.
                Err(error) if error.is_request() => {
                    tracing::debug!(%error, "block status is not available; everything is read");
                    marked.iter_mut().for_each(|all| all.insert(Extent::from(told..export.size)));
                    extents.failed = Some(error);
                    break;
                }
                Err(error) => return Err(error),
            };
            told = (told + window).min(export.size);
            for (all, window) in marked.iter_mut().zip(answer) {
                window.iter().for_each(|extent| all.insert(extent));
                if all.len() > EXTENTS_MAX {
                    let (have, max) = (all.len() as u64, EXTENTS_MAX as u64);
                    return Err(NbdError::Limit { what: "extents", have, max });
                }
            }
        }
        for (name, marked) in contexts().zip(marked) {
            match name {
                Some(bitmap) => extents.dirty.push((bitmap.to_owned(), marked)),
                None => extents.zeroes = marked.complement(export.size),
            }
        }
        Ok(extents)
    }

    /// For each context the blocks of one window that are dirty, or not zero. Each request goes on from where the
    /// server's last answer ended. What is kept is bounded by the number of blocks, however small its extents are.
    async fn window(&self, window: Extent) -> Result<Vec<ExtentSet>, NbdError> {
        let (export, block) = (self.export(), u64::from(self.export().block_bytes_min));
        let mut marked = vec![ExtentSet::new(); export.contexts.len()];
        let answers_max = window.length.div_ceil(ANSWER_BYTES_MIN);
        let (mut at, mut answers) = (window.offset, 0);
        while at < window.end() {
            answers += 1;
            if answers > answers_max {
                return Err(NbdError::Limit { what: "block status answers", have: answers, max: answers_max });
            }
            let request = Request::BlockStatus { offset: at, length: window.end() - at };
            let Reply::BlockStatus(contexts) = self.call(request).await? else {
                return Err(NbdError::Protocol("a reply of another kind"));
            };
            // Contexts may reach differently far: all are taken up to the nearest end, and asked again from there.
            let covered = contexts.iter().map(|runs| runs.iter().map(|run| run.length).sum::<u64>()).min();
            let mut end = at + covered.unwrap_or(0);
            if end < window.end() {
                end = end / block * block;
            }
            if end <= at {
                return Err(NbdError::Protocol("block status shorter than a block"));
            }
            for ((context, runs), marked) in export.contexts.iter().zip(contexts).zip(&mut marked) {
                let is_bitmap = context.name.starts_with(BITMAP_PREFIX);
                let mut from = at;
                for Run { length, flags } in runs {
                    let to = end.min(from + length);
                    let counts = if is_bitmap { flags & BITMAP_DIRTY != 0 } else { flags & ALLOCATION_ZERO == 0 };
                    if counts && from < to {
                        let blocks = from / GRID..to.div_ceil(GRID);
                        marked.insert(Extent::from(blocks.start * GRID..(blocks.end * GRID).min(export.size)));
                    }
                    from = to;
                }
            }
            at = end;
        }
        Ok(marked)
    }

    async fn done(&self, request: Request) -> Result<(), NbdError> {
        match self.call(request).await? {
            Reply::Done => Ok(()),
            _ => Err(NbdError::Protocol("a reply of another kind")),
        }
    }

    async fn call(&self, request: Request) -> Result<Reply, NbdError> {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        self.connections[next % self.connections.len()].call(request).await
    }
}

fn hello(export: &str, bitmaps: &[String]) -> Hello {
    let bitmaps = bitmaps.iter().map(|name| format!("{BITMAP_PREFIX}{name}"));
    let contexts = std::iter::once("base:allocation".to_owned()).chain(bitmaps).collect();
    Hello { export: export.to_owned(), contexts, framing: Framing::Extended }
}

/// Connections to one export; a local server is one thread, and four keep it busy.
pub const CONNECTIONS_MAX: usize = 4;
/// Times that a failing read is tried.
pub const READ_ATTEMPTS: u32 = 3;

const BITMAP_PREFIX: &str = "qemu:dirty-bitmap:";
/// As much as 32 bits can ask for, in whole blocks of any server.
const WINDOW_BYTES: u64 = (4 << 30) - (1 << 20);
const WINDOW_BYTES_EXTENDED: u64 = 64 << 30;
const WINDOWS_IN_FLIGHT: usize = 8;
/// Extents kept of one context: 1 GiB of memory, every other block of 8 TiB.
const EXTENTS_MAX: usize = 64 << 20;
/// What an answer to a block status request must cover on average, or the server would keep us busy for ever.
const ANSWER_BYTES_MIN: u64 = 4096;
const GRID: u64 = GRID_BYTES as u64;
const ZERO_BYTES_MAX: u64 = 1 << 30;
static ZEROES: [u8; 1 << 20] = [0; 1 << 20];
