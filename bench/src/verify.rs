//! Verifications beside what limits them: b3sum over the same packs, and decoding and fingerprinting the same chunks with
//! nothing around it.

use crate::measure::{bytes_below, measured, ran};
use crate::report::{Bound, judged, median};
use crate::tools::Places;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use chunker::{Blob, Fingerprinter, Opener};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;
use store::format::config::ConfigFile;
use store::format::pack::{PackEntry, PackHeader, RECORD_HEADER_BYTES, decode_footer};

/// Backs `data/day1.raw` up and prints, `rounds` times in turn, what verifying it takes beside b3sum and bare decoding on
/// as many threads as there are processors; everything from the page cache.
///
/// # Errors
/// When a job fails, or a promise does not hold.
pub fn verify(windlass: &Path, data: &Path, rounds: u32) -> Result<()> {
    let folder = tempfile::tempdir_in(data)?;
    let places = Places { work: folder.path().to_owned(), windlass: windlass.to_owned() };
    let disk = fs::canonicalize(data.join("day1.raw"))?;
    ran(places.windlass(&["init"], "main"))?;
    ran(places.windlass(&["backup", "--machine", "web", disk.to_str().context("a path")?], "main"))?;
    let (repository, packs) = (places.path("main"), places.path("main/packs"));
    let stored = bytes_below(&packs)? as f64;
    let threads = std::thread::available_parallelism()?.get();
    println!("{:.0} MB of packs, {threads} threads\n", stored / 1e6);
    let mut names = Vec::new();
    files_below(&packs, &mut names)?;
    let mut b3sum = Command::new("b3sum");
    b3sum.arg(format!("--num-threads={threads}")).args(&names).current_dir(&places.work);
    let (mut sums, mut reads, mut bares, mut decodes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    println!("{:>8} {:>14} {:>14} {:>12}", "b3sum s", "--read-data s", "bare decode s", "--decode s");
    for _ in 0..rounds {
        let sum = measured(&b3sum, &places.work).context("apt install b3sum")?.sample.wall_s;
        let of = |how: &str| -> Result<f64> {
            Ok(measured(&places.windlass(&["verify", how], "main"), &places.work)?.sample.wall_s)
        };
        let (read, bare, decode) = (of("--read-data")?, bare(&repository, &names, threads)?, of("--decode")?);
        println!("{sum:>8.3} {read:>14.3} {bare:>14.3} {decode:>12.3}");
        sums.push(sum);
        reads.push(read);
        bares.push(bare);
        decodes.push(decode);
    }
    let share = |limit: Vec<f64>, ours: Vec<f64>| median(limit.into_iter()) / median(ours.into_iter());
    println!();
    let all = judged(&[
        ("verify --read-data, of the speed of b3sum", share(sums, reads), Bound::AtLeast(0.7)),
        ("verify --decode, of bare decoding", share(bares, decodes), Bound::AtLeast(0.8)),
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
    let prints = Fingerprinter::new(&config.config.domain);
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
            let (mut opener, mut plain) = (Opener::default(), Vec::new());
            while let Some((bytes, entries)) = packs.get(next.fetch_add(1, Relaxed)) {
                for entry in entries {
                    let at = entry.offset as usize + RECORD_HEADER_BYTES;
                    let blob = Blob::parse(bytes.slice(at..at + entry.blob_bytes as usize))?;
                    plain.clear();
                    opener.open_verified(&prints, &entry.id, &blob, &mut plain)?;
                }
            }
            Ok(())
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        running.into_iter().try_for_each(|thread| thread.join().expect("it does not panic"))
    })?;
    Ok(began.elapsed().as_secs_f64())
}
