//! Stages of a backup and a restore on one core, each compared with what limits it, all in one run on the same real
//! data.

use crate::blocks::{gigabytes, rate, read_rate, sample};
use anyhow::{Result, bail};
use chunker::{
    Blob, ChunkId, ChunkKind, Compression, Compressor, Decoder, DomainKey, DomainKeys, StreamCutter, is_zero,
};
use futures::{StreamExt, future::ready};
use mover::{Begin, PointId, Pool, ReadSession, Repository, Verification, World, WriteSession};
use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;
use store::{Access, Local};

/// Measures every stage on blocks of `data/day1.raw` and prints GB/s of plain bytes beside the limit.
///
/// # Errors
/// When the data cannot be read or a stage fails.
pub fn stages(data: &Path) -> Result<()> {
    let path = data.join("day1.raw");
    let sample = sample(&path)?;
    let large = sample.concat();
    println!("{} different blocks of 64 KiB, from all over the disk; GB/s of plain bytes\n", sample.len());
    println!("{:<34} {:>8} {:>8}  limit", "stage", "GB/s", "limit");

    let mut copy = vec![0; large.len()];
    let memcpy = rate(large.len(), || black_box(&mut copy).copy_from_slice(black_box(&large)));
    let read = read_rate(&path, 1)?;
    row("read, page cache", read, memcpy, "memcpy");

    // Written once: untouched zero pages are all one page, which the cache holds.
    let mut zeros = vec![1; large.len()];
    zeros.fill(0);
    row("zero scan of zeros", rate(zeros.len(), || assert!(is_zero(black_box(&zeros)))), memcpy, "memcpy");

    let b3 = rate(large.len(), || {
        black_box(blake3::hash(black_box(&large)));
    });
    let keys = DomainKeys::new(&DomainKey([7; 32]));
    let fingerprint = rate(large.len(), || {
        for block in &sample {
            black_box(keys.id(ChunkKind::Data, black_box(block)));
        }
    });
    row("fingerprint", fingerprint, b3, "BLAKE3 of everything at once");

    let cut = rate(large.len(), || {
        let mut cutter = StreamCutter::default();
        let mut chunks = 0;
        for piece in large.chunks(1 << 20) {
            chunks += cutter.push(black_box(piece)).len();
        }
        black_box(chunks + cutter.finish().len());
    });
    row("cut a stream", cut, memcpy, "memcpy");

    let mut blobs = Vec::new();
    for level in 1..=3 {
        let mut compressor = Compressor::new(Compression::Zstd(level));
        let small = rate(large.len(), || {
            blobs = sample.iter().map(|block| compressor.compress(ChunkKind::Data, black_box(block))).collect();
        });
        let big = rate(large.len(), || {
            large.chunks(4 << 20).for_each(|piece| drop(black_box(compressor.compress(ChunkKind::Data, piece))));
        });
        let stored: usize = blobs.iter().map(|blob| blob.bytes().len()).sum();
        let name = format!("compress, zstd-{level} ({:.3})", stored as f64 / large.len() as f64);
        row(&name, small, big, "the same in pieces of 4 MiB");
    }
    let ids: Vec<ChunkId> = sample.iter().map(|block| keys.id(ChunkKind::Data, block)).collect();
    decode(&keys, &ids, &blobs, &large);
    keep(ids.into_iter().zip(blobs).collect(), large.len())
}

fn decode(keys: &DomainKeys, ids: &[ChunkId], blobs: &[Blob], large: &[u8]) {
    let mut decoder = Decoder::default();
    let mut plain = Vec::with_capacity(large.len());
    let verified = rate(large.len(), || {
        plain.clear();
        for (id, blob) in ids.iter().zip(blobs) {
            decoder.decode_verified(keys, id, black_box(blob), &mut plain).expect("sound blobs");
        }
    });
    let alone = rate(large.len(), || {
        plain.clear();
        blobs.iter().for_each(|blob| decoder.decode(black_box(blob), &mut plain).expect("sound blobs"));
    });
    row("decode and fingerprint", verified, alone, "decode alone");
}

/// The work of the repository with blobs. It does not run on one core, so its limit is the speed of the file system.
fn keep(chunks: Vec<(ChunkId, Blob)>, plain: usize) -> Result<()> {
    let folder = tempfile::tempdir_in(".")?;
    let stored: usize = chunks.iter().map(|(_, blob)| blob.bytes().len()).sum();
    let file = File::create(folder.path().join("limit"))?;
    let began = Instant::now();
    let mut at = 0;
    for (_, blob) in &chunks {
        file.write_all_at(blob.bytes(), at)?;
        at += blob.bytes().len() as u64;
    }
    file.sync_all()?;
    let limit = gigabytes(plain, began.elapsed());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    println!("\nin the repository, {:.0} MB of blobs, all cores; GB/s of plain bytes\n", stored as f64 / 1e6);
    runtime.block_on(async {
        let world = World::system();
        let path = folder.path().join("repository");
        Local::init(&path, None, &world)?;
        let local = Local::open(&path, Access::Write, Pool::new(0)?, world.clone()).await?;
        let ids: Vec<ChunkId> = chunks.iter().map(|(id, _)| *id).collect();
        let begin = || Begin {
            point: PointId::random(&world),
            parents: Vec::new(),
            holder: None,
            verification: Verification::Checksum,
        };
        let (session, _) = local.begin(begin()).await?;
        let began = Instant::now();
        for batch in chunks.chunks(BATCH) {
            session.put(batch.to_vec()).await?;
        }
        session.flush().await?;
        row("append to packs, index", gigabytes(plain, began.elapsed()), limit, "write and sync one file");

        session.abandon().await?;

        // A session remembers what it was told: another one has to look.
        let (session, _) = local.begin(begin()).await?;
        let asked = Instant::now();
        for batch in ids.chunks(BATCH) {
            black_box(session.missing(ChunkKind::Data, batch).await?);
        }
        row("index, hit", gigabytes(plain, asked.elapsed()), f64::INFINITY, "");
        let strangers: Vec<ChunkId> = (0..ids.len()).map(|_| ChunkId(world.random_bytes())).collect();
        let asked = Instant::now();
        for batch in strangers.chunks(BATCH) {
            black_box(session.missing(ChunkKind::Data, batch).await?);
        }
        row("index, miss", gigabytes(plain, asked.elapsed()), f64::INFINITY, "");

        let began = Instant::now();
        let sound = |batch: mover::ChunkBatch| batch.iter().filter(|(_, blob)| blob.is_ok()).count();
        let got = session.get(ids).fold(0, |got, batch| ready(got + sound(batch))).await;
        if got != chunks.len() {
            bail!("{got} of {} chunks came back", chunks.len());
        }
        row("read from packs, checksums", gigabytes(plain, began.elapsed()), f64::INFINITY, "");
        let began = Instant::now();
        local.rebuild_index(Default::default()).await?;
        row("build the index again", gigabytes(plain, began.elapsed()), f64::INFINITY, "");
        session.abandon().await?;
        local.close().await?;
        Ok(())
    })
}

fn row(stage: &str, value: f64, limit: f64, name: &str) {
    if limit.is_finite() {
        println!("{stage:<34} {value:>8.2} {limit:>8.2}  {name}");
    } else {
        println!("{stage:<34} {value:>8.2}");
    }
}

const BATCH: usize = 256;
