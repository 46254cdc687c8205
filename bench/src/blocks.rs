//! Blocks of a real disk to measure with, and how fast something goes over them.

use crate::measure::cpu_s;
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use chunker::{GRID_BYTES, is_zero};
use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Different blocks that hold data, spread evenly over the disk.
pub fn sample(path: &Path) -> Result<Vec<Bytes>> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let grid = u64::from(GRID_BYTES);
    let blocks = file.metadata()?.len() / grid;
    let mut sample = Vec::new();
    let step = (blocks / (4 * SAMPLE_BLOCKS)).max(1);
    for block in (0..blocks).step_by(usize::try_from(step)?) {
        let mut bytes = vec![0; GRID_BYTES as usize];
        file.read_exact_at(&mut bytes, block * grid)?;
        if !is_zero(&bytes) && (sample.len() as u64) < SAMPLE_BLOCKS {
            sample.push(bytes.into());
        }
    }
    // The index and the packs hold equal blocks once.
    sample.sort_unstable();
    sample.dedup();
    if sample.is_empty() {
        bail!("{}: nothing but zeros", path.display());
    }
    Ok(sample)
}

/// Reads all of a disk, which brings it into the page cache, and gives the bytes of its blocks that hold data.
pub fn warmed(path: &Path) -> Result<u64> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let length = file.metadata()?.len();
    let mut buffer = vec![0; PIECE_BYTES];
    let (mut at, mut found) = (0, 0);
    while at < length {
        let piece = &mut buffer[..usize::try_from((length - at).min(PIECE_BYTES as u64))?];
        file.read_exact_at(piece, at)?;
        let data = piece.chunks(GRID_BYTES as usize).filter(|block| !is_zero(block));
        found += data.map(|block| block.len() as u64).sum::<u64>();
        at += piece.len() as u64;
    }
    Ok(found)
}

/// GB/s of reading a file out of the page cache on so many cores.
pub fn read_rate(path: &Path, cores: usize) -> Result<f64> {
    let file = File::open(path)?;
    let pieces: Vec<u64> = (0..file.metadata()?.len().min(READ_BYTES) / PIECE_BYTES as u64).collect();
    let buffer = || vec![0; PIECE_BYTES];
    let read = |buffer: &mut Vec<u8>, piece: &u64| file.read_exact_at(buffer, piece * PIECE_BYTES as u64);
    // Warms the page cache.
    pieces.iter().try_for_each(|piece| read(&mut buffer(), piece))?;
    let bytes = pieces.len() * PIECE_BYTES;
    rate_on(cores, bytes, &pieces, buffer, |buffer, piece| read(buffer, piece).expect("it was read before"))
}

/// GB/s of `work` over `items`, which have `bytes` together, as if this process had `cores` cores alone. Each core has
/// a state of its own and takes the next item that is left. Only the CPU time of this process counts, and not the time
/// in which other programs had the cores.
pub fn rate_on<T: Sync, S>(
    cores: usize,
    bytes: usize,
    items: &[T],
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, &T) + Sync,
) -> Result<f64> {
    let (began, before) = (Instant::now(), cpu_s(std::process::id())?);
    let mut passes = 0;
    while passes < 2 || began.elapsed() < TIME_MIN {
        let next = AtomicUsize::new(0);
        let one = || {
            let mut state = state();
            while let Some(item) = items.get(next.fetch_add(1, Relaxed)) {
                work(&mut state, black_box(item));
            }
        };
        std::thread::scope(|scope| (0..cores).for_each(|_| drop(scope.spawn(one))));
        passes += 1;
    }
    let worked_s = cpu_s(std::process::id())? - before;
    Ok(passes as f64 * bytes as f64 * cores as f64 / worked_s / 1e9)
}

/// GB/s of `work` over so many bytes, the best of several passes, because other activity of the machine can only make a
/// pass slower.
pub fn rate(bytes: usize, mut work: impl FnMut()) -> f64 {
    let began = Instant::now();
    let mut best = Duration::MAX;
    let mut passes = 0;
    while passes < 2 || began.elapsed() < TIME_MIN {
        let pass = Instant::now();
        work();
        best = best.min(pass.elapsed());
        passes += 1;
    }
    gigabytes(bytes, best)
}

/// GB/s of so many bytes in this time.
pub fn gigabytes(bytes: usize, took: Duration) -> f64 {
    bytes as f64 / took.as_secs_f64() / 1e9
}

const SAMPLE_BLOCKS: u64 = 4096;
const READ_BYTES: u64 = 1 << 30;
const PIECE_BYTES: usize = 1 << 20;
const TIME_MIN: Duration = Duration::from_secs(1);
