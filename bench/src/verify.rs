//! Verifications, compared with what limits them: b3sum over the same packs, and only decoding and fingerprinting the
//! same chunks.

use crate::judge::{Bound, judged};
use crate::measure::{bytes_below, median, ran};
use crate::tools::Places;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use chunker::{Blob, Decoder, DomainKeys};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;
use store::format::config::ConfigFile;
use store::format::pack::{PackEntry, PackHeader, RECORD_HEADER_BYTES, decode_footer};

/// Backs `data/day1.raw` up and prints, `rounds` times in turn, the times of verifying it, of b3sum, and of decoding
/// alone, on as many threads as there are processors. Stored bytes are read from the disk, because usually they are not
/// in the page cache when a repository is verified (data packs are written past it). Times of reading from the cache
/// are shown too. Decoding is measured from the cache.
///
/// # Errors
/// When a job fails, the page cache cannot be emptied (which takes root), or a promise does not hold.
pub fn verify(windlass: &Path, data: &Path, rounds: u32) -> Result<()> {
    let folder = tempfile::tempdir_in(data)?;
    let places = Places { work: folder.path().to_owned(), windlass: windlass.to_owned() };
    let disk = fs::canonicalize(data.join("day1.raw"))?;
    ran(places.windlass(&["init"], "main"))?;
    ran(places.windlass(&["backup", "--machine", "web", disk.to_str().context("a path")?], "main"))?;
    let (repository, packs) = (places.path("main"), places.path("main/packs"));
    let stored = bytes_below(&packs)? as f64;
    let threads = std::thread::available_parallelism()?.get();
    println!("{:.0} MB of packs, {threads} threads; seconds\n", stored / 1e6);
    let mut names = Vec::new();
    files_below(&packs, &mut names)?;
    let sums = || {
        let mut b3sum = Command::new("b3sum");
        b3sum.arg(format!("--num-threads={threads}")).args(&names);
        b3sum
    };
    let ours = |how: &str| places.windlass(&["verify", how], "main");
    let took = |command: Command| -> Result<f64> {
        let began = Instant::now();
        ran(command).context("b3sum is a package of that name")?;
        Ok(began.elapsed().as_secs_f64())
    };
    let from_disk = |command: Command| -> Result<f64> {
        ran(Command::new("sync"))?;
        fs::write("/proc/sys/vm/drop_caches", "1").context("the page cache cannot be emptied")?;
        took(command)
    };
    let titles = ["b3sum, disk", "--read-data", "b3sum, cache", "--read-data", "bare decode", "--decode"];
    println!("{}", titles.map(|title| format!("{title:>13}")).concat());
    let mut columns: [Vec<f64>; 6] = Default::default();
    for _ in 0..rounds {
        let (sum, read) = (from_disk(sums())?, from_disk(ours("--read-data"))?);
        took(sums())?;
        let (cached_sum, cached_read) = (took(sums())?, took(ours("--read-data"))?);
        let (bare, decode) = (bare(&repository, &names, threads)?, took(ours("--decode"))?);
        let row = [sum, read, cached_sum, cached_read, bare, decode];
        println!("{}", row.map(|it| format!("{it:>13.3}")).concat());
        columns.iter_mut().zip(row).for_each(|(column, it)| column.push(it));
    }
    let medians = columns.map(|column| median(column.into_iter()));
    let [sum, read, cached_sum, cached_read, bare, decode] = medians;
    println!("\n     from the page cache --read-data has {:.3} of the speed of b3sum", cached_sum / cached_read);
    let all = judged(&[
        ("verify --read-data, of the speed of b3sum", sum / read, Bound::AtLeast(0.7)),
        ("verify --decode, of bare decoding", bare / decode, Bound::AtLeast(0.8)),
    ]);
    ensure!(all, "not every promise holds");
    Ok(())
}

fn files_below(path: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        if path.is_dir() {
            files_below(&path, found)?;
        } else {
            found.push(path);
        }
    }
    Ok(())
}

/// Seconds for all chunks of packs that are in memory already.
fn bare(repository: &Path, names: &[PathBuf], threads: usize) -> Result<f64> {
    let config = ConfigFile::decode(&fs::read(repository.join("config"))?)?;
    let keys = DomainKeys::new(&config.config.domain);
    let load = |path: &PathBuf| -> Result<(Bytes, Vec<PackEntry>)> {
        let bytes = Bytes::from(fs::read(path)?);
        let kind = PackHeader::decode(&bytes)?.kind;
        let entries = decode_footer(&bytes, kind, bytes.len() as u64)?;
        Ok((bytes, entries))
    };
    let packs = names.iter().map(load).collect::<Result<Vec<_>>>()?;
    let next = AtomicUsize::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let work = || -> Result<()> {
            let (mut decoder, mut plain) = (Decoder::default(), Vec::new());
            while let Some((bytes, entries)) = packs.get(next.fetch_add(1, Relaxed)) {
                for entry in entries {
                    let at = entry.offset as usize + RECORD_HEADER_BYTES;
                    let blob = Blob::parse(bytes.slice(at..at + entry.blob_bytes as usize))?;
                    plain.clear();
                    decoder.decode_verified(&keys, &entry.id, &blob, &mut plain)?;
                }
            }
            Ok(())
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        running.into_iter().try_for_each(|thread| thread.join().expect("it does not panic"))
    })?;
    Ok(began.elapsed().as_secs_f64())
}
