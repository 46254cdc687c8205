//! The speed of this machine, measured in the same run and on the same file system as the jobs that are compared with
//! it.

use crate::blocks::{rate_on, read_rate, sample};
use crate::disk::{Day, Disk, IMAGE};
use crate::measure::{cpu_s, median, ran};
use crate::tools::Places;
use anyhow::{Context, Result};
use bytes::Bytes;
use chunker::{Blob, ChunkId, ChunkKind, Compression, Compressor, Decoder, DomainKey, DomainKeys};
use mover::{AlignedBuffer, direct_prefix};
use rustix::fs::{OFlags, fdatasync};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::hint::black_box;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Rates are in bytes a second, of plain bytes where blobs are made or read; those of the processors are on all cores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Machine {
    /// Writing to a file until the bytes are durable.
    pub write: f64,
    /// Reading from the page cache.
    pub read: f64,
    /// BLAKE3 of blocks of 64 KiB.
    pub fingerprint: f64,
    /// BLAKE3 and zstd of the same blocks, as in a backup.
    pub compress: f64,
    /// Decompression of these and BLAKE3.
    pub decode: f64,
    /// Seconds of one `qemu-img info`.
    pub tool_s: f64,
    /// Seconds in which `qemu-img bitmap` adds a bitmap or removes it.
    pub bitmap_s: f64,
    /// Seconds until a small new file and its name in the folder are durable.
    pub sync_s: f64,
    /// Seconds of `windlass --version`.
    pub start_s: f64,
    /// Share of the processors that other programs left while they were measured.
    pub left: f64,
}

impl Machine {
    /// Measures in the folder of the run, with blocks of `disk`; takes about a quarter of a minute.
    pub fn measure(disk: &Disk) -> Result<Self> {
        let path = disk.path(Day::First);
        let blocks = sample(&path)?;
        let bytes = blocks.iter().map(Bytes::len).sum();
        let cores = std::thread::available_parallelism()?.get();
        let keys = DomainKeys::new(&DomainKey([7; 32]));
        let fingerprint = |block: &Bytes| keys.id(ChunkKind::Data, block);
        let compressor = || Compressor::new(Compression::default());
        let checked_and_compressed = |compressor: &mut Compressor, block: &Bytes| {
            (fingerprint(block), compressor.compress(ChunkKind::Data, block))
        };
        let mut one = compressor();
        let blobs: Vec<(ChunkId, Blob)> = blocks.iter().map(|block| checked_and_compressed(&mut one, block)).collect();
        let open = |(decoder, plain): &mut (Decoder, Vec<u8>), (id, blob): &(ChunkId, Blob)| {
            plain.clear();
            decoder.decode_verified(&keys, id, blob, plain).expect("sound blobs");
        };
        let starts = Starts::measure(&disk.places)?;
        let (began, before) = (Instant::now(), cpu_s(std::process::id())?);
        let read = read_rate(&path, cores)?;
        let fingerprint = rate_on(cores, bytes, &blocks, || (), |(), block| _ = black_box(fingerprint(block)))?;
        let compress = rate_on(cores, bytes, &blocks, compressor, |compressor, block| {
            drop(checked_and_compressed(compressor, block))
        })?;
        let decode = rate_on(cores, bytes, &blobs, Default::default, open)?;
        let worked_s = cpu_s(std::process::id())? - before;
        let left = worked_s / (began.elapsed().as_secs_f64() * cores as f64);
        Ok(Self {
            write: write_rate(&disk.places.work, &blocks)?,
            read: read * 1e9,
            fingerprint: fingerprint * 1e9,
            compress: compress * 1e9,
            decode: decode * 1e9,
            tool_s: starts.tool_s,
            bitmap_s: starts.bitmap_s,
            sync_s: small_sync(&disk.places.work, &blocks)?,
            start_s: starts.start_s,
            left,
        })
    }

    /// The median of each figure.
    pub fn median(of: &[Self]) -> Self {
        let middle = |figure: fn(&Self) -> f64| median(of.iter().map(figure));
        Self {
            write: middle(|it| it.write),
            read: middle(|it| it.read),
            fingerprint: middle(|it| it.fingerprint),
            compress: middle(|it| it.compress),
            decode: middle(|it| it.decode),
            tool_s: middle(|it| it.tool_s),
            bitmap_s: middle(|it| it.bitmap_s),
            sync_s: middle(|it| it.sync_s),
            start_s: middle(|it| it.start_s),
            left: middle(|it| it.left),
        }
    }

    /// Prints one figure a line.
    pub fn print(&self) {
        println!("this machine, measured in this run");
        for (what, rate) in [
            ("durable write", self.write),
            ("read, page cache, all cores", self.read),
            ("fingerprint, all cores", self.fingerprint),
            ("compress and fingerprint, all cores", self.compress),
            ("decode and fingerprint, all cores", self.decode),
        ] {
            println!("  {what:<36} {:>9.0} MB/s", rate / 1e6);
        }
        for (what, seconds) in [
            ("start of qemu-img info", self.tool_s),
            ("change of a bitmap by qemu-img", self.bitmap_s),
            ("sync of a small file and its name", self.sync_s),
            ("start of windlass", self.start_s),
        ] {
            println!("  {what:<36} {:>9.1} ms", seconds * 1e3);
        }
        if self.left < LEFT_MIN {
            let taken = (1.0 - self.left) * 100.0;
            println!(
                "  Other programs took {taken:.0} % of the processors meanwhile: jobs are slower than they should be."
            );
        }
        println!();
    }

    /// For comparisons of runs.
    pub fn json(&self) -> Value {
        json!({
            "write_bytes_per_s": self.write,
            "read_bytes_per_s": self.read,
            "fingerprint_bytes_per_s": self.fingerprint,
            "compress_bytes_per_s": self.compress,
            "decode_bytes_per_s": self.decode,
            "tool_s": self.tool_s,
            "bitmap_s": self.bitmap_s,
            "sync_s": self.sync_s,
            "start_s": self.start_s,
            "processors_left": self.left,
        })
    }
}

/// Seconds of programs that have next to nothing to do.
struct Starts {
    tool_s: f64,
    bitmap_s: f64,
    start_s: f64,
}

impl Starts {
    fn measure(places: &Places) -> Result<Self> {
        let qemu_img = |arguments: &[&str]| ran(places.qemu_img(arguments)).map(drop);
        qemu_img(&["create", "-q", "-f", "qcow2", IMAGE, "1M"])?;
        let tool_s = shortest(|| qemu_img(&["info", "--output=json", IMAGE]))?;
        let added_and_removed_s = shortest(|| {
            qemu_img(&["bitmap", "--add", IMAGE, "b"])?;
            qemu_img(&["bitmap", "--remove", IMAGE, "b"])
        })?;
        let start_s = shortest(|| {
            let mut program = Command::new(&places.windlass);
            program.arg("--version");
            ran(program).map(drop)
        })?;
        fs::remove_file(places.path(IMAGE))?;
        Ok(Self { tool_s, bitmap_s: added_and_removed_s / 2.0, start_s })
    }
}

/// Bytes a second that become durable in a large file, through the page cache or past it, whichever is faster here.
fn write_rate(folder: &Path, blocks: &[Bytes]) -> Result<f64> {
    let pieces: Vec<Bytes> = blocks.chunks(PIECE_BLOCKS).map(aligned).collect();
    let through = write_rate_with(folder, &pieces, OFlags::empty())?;
    // Not every file system can.
    let past = write_rate_with(folder, &pieces, OFlags::DIRECT).unwrap_or(0.0);
    Ok(through.max(past))
}

/// The same in one of these ways. Several threads write, so that the disk always has something to do.
fn write_rate_with(folder: &Path, pieces: &[Bytes], flags: OFlags) -> Result<f64> {
    ran(Command::new("sync"))?;
    let path = folder.join("written");
    let flags = (flags | OFlags::CLOEXEC).bits().cast_signed();
    let file = File::options().write(true).create(true).truncate(true).custom_flags(flags).open(&path)?;
    file.set_len(WRITE_BYTES_MAX)?;
    let began = Instant::now();
    let end = AtomicU64::new(0);
    let write = || -> std::io::Result<u64> {
        let mut written = 0;
        for piece in pieces.iter().cycle().map(|piece| direct_prefix(piece)) {
            let at = end.fetch_add(piece.len() as u64, Relaxed);
            if at + piece.len() as u64 > WRITE_BYTES_MAX || began.elapsed() > WRITE_TIME_MAX {
                break;
            }
            file.write_all_at(piece, at)?;
            written += piece.len() as u64;
        }
        Ok(written)
    };
    let written = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS).map(|_| scope.spawn(write)).collect();
        writers.into_iter().map(|it| it.join().expect("it does not panic")).sum::<std::io::Result<u64>>()
    });
    let written = written.and_then(|written| fdatasync(&file).map(|()| written).map_err(Into::into));
    let took = began.elapsed();
    fs::remove_file(path)?;
    Ok(written? as f64 / took.as_secs_f64())
}

/// Blocks in one piece that can be written past the page cache.
fn aligned(blocks: &[Bytes]) -> Bytes {
    let mut buffer = AlignedBuffer::with_capacity(blocks.iter().map(Bytes::len).sum());
    blocks.iter().for_each(|block| buffer.append(block));
    buffer.freeze()
}

fn small_sync(folder: &Path, blocks: &[Bytes]) -> Result<f64> {
    let small = folder.join("small");
    fs::create_dir(&small)?;
    let mut names = 0..;
    let bytes = &blocks[0][..SMALL_BYTES];
    let took = seconds(|| {
        let name = names.next().context("a name")?.to_string();
        let mut file = File::create_new(small.join(name))?;
        file.write_all(bytes)?;
        fdatasync(&file)?;
        Ok(File::open(&small)?.sync_all()?)
    })?;
    fs::remove_dir_all(small)?;
    // The shortest would be luck: how long a disk takes varies by itself.
    Ok(median(took.into_iter()))
}

/// The shortest of several times. For work that only computes this is the true time, because only other programs can
/// make it slower.
fn shortest(work: impl FnMut() -> Result<()>) -> Result<f64> {
    Ok(seconds(work)?.into_iter().fold(f64::INFINITY, f64::min))
}

/// Several times; the first, which warms what it needs, does not count.
fn seconds(mut work: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    work()?;
    let timed = |_| {
        let began = Instant::now();
        work().map(|()| began.elapsed().as_secs_f64())
    };
    (0..TIMES).map(timed).collect()
}

const TIMES: u32 = 15;
/// Least share of the processors that a quiet machine has left. It is less than 1, because at the end of a pass some
/// cores wait for the others.
const LEFT_MIN: f64 = 0.85;
/// Blocks in one piece: 4 MiB.
const PIECE_BLOCKS: usize = 64;
const WRITERS: u32 = 4;
/// Longest time of writing. On a slow disk the measurement ends after this time, on a fast one after
/// [`WRITE_BYTES_MAX`].
const WRITE_TIME_MAX: Duration = Duration::from_secs(4);
const WRITE_BYTES_MAX: u64 = 1 << 30;
const SMALL_BYTES: usize = 4096;
