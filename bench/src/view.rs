//! Reading a disk through [`DiskView`], compared with restoring it to a target that keeps nothing; and random reads.

use crate::judge::{Bound, judged};
use crate::measure::{median, ran};
use crate::tools::Places;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use chunker::{DomainKeys, Extent, ExtentSet};
use futures::{StreamExt, TryStreamExt, stream};
use mover::{
    DiskRecord, DiskView, PointFilter, Pool, Progress, ReadSession as _, Repository as _, Target, ViewOptions, World,
    restore,
};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use store::{Access, Local, Reader};

/// Backs `data/day1.raw` up and prints, `rounds` times in turn, what reading all of it in order takes through a view and
/// by a restore to nowhere, and random reads of 4 KiB one at a time and 16 at once.
///
/// # Errors
/// When a job fails, or a promise does not hold.
pub fn view(windlass: &Path, data: &Path, rounds: u32) -> Result<()> {
    let folder = tempfile::tempdir_in(data)?;
    let places = Places { work: folder.path().to_owned(), windlass: windlass.to_owned() };
    let disk = fs::canonicalize(data.join("day1.raw"))?;
    ran(places.windlass(&["init"], "main"))?;
    ran(places.windlass(&["backup", "--machine", "web", disk.to_str().context("a path")?], "main"))?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(measure(&places.path("main"), rounds))
}

async fn measure(repository: &Path, rounds: u32) -> Result<()> {
    let pool = Pool::new(0)?;
    let local = Local::open(repository, Access::Read, pool.clone(), World::system()).await?;
    let point = local.list(&PointFilter::default()).await?.first().context("a point")?.id;
    let session = Arc::new(local.read(&[point]).await?);
    let keys = DomainKeys::new(&local.config().domain);
    let disk = session.manifest(point).await?.disks.remove(0);
    let open = || DiskView::new(session.clone(), &keys, &disk, &pool, ViewOptions::default());
    println!("{:>12}{:>12}{:>16}{:>16}", "restore, s", "view, s", "4 KiB, ms", "16 at once, /s");
    let mut shares = Vec::new();
    for round in 0..rounds {
        // What was read before is in the page cache for both.
        let restored = restored(&session, &keys, &disk, &pool).await?;
        let began = Instant::now();
        in_order(&open()).await?;
        let viewed = began.elapsed().as_secs_f64();
        let (one, many) = (random(&open(), round, 2_000, 1).await?, random(&open(), round, 8_000, 16).await?);
        println!("{restored:>12.3}{viewed:>12.3}{:>16.3}{many:>16.0}", 1e3 / one);
        shares.push(restored / viewed);
    }
    let all =
        judged(&[("reading in order, of the speed of a restore", median(shares.into_iter()), Bound::AtLeast(0.9))]);
    ensure!(all, "not every promise holds");
    Ok(())
}

async fn restored(session: &Reader, keys: &DomainKeys, disk: &DiskRecord, pool: &Pool) -> Result<f64> {
    let began = Instant::now();
    restore(session, keys, disk, Nowhere(disk.size), pool, &Progress::default()).await?;
    Ok(began.elapsed().as_secs_f64())
}

async fn in_order(view: &DiskView<Reader>) -> Result<()> {
    let mut at = 0;
    while at < view.size() {
        let piece = Extent::from(at..(at + READ_BYTES).min(view.size()));
        let parts = view.read_parts(piece).await?;
        ensure!(parts.iter().map(Bytes::len).sum::<usize>() as u64 == piece.length, "a part is missing");
        at = piece.end();
    }
    Ok(())
}

/// Reads of 4 KiB a second, all over the disk.
async fn random(view: &DiskView<Reader>, round: u32, reads: u64, at_once: usize) -> Result<f64> {
    let places = view.size() / 4096;
    let began = Instant::now();
    let offsets = (0..reads).map(|number| {
        let hash = blake3::hash(&[u64::from(round).to_le_bytes(), number.to_le_bytes()].concat());
        let number = u64::from_le_bytes(*hash.as_bytes().first_chunk().expect("32 bytes"));
        number % places * 4096
    });
    let read = |offset| async move { view.read(Extent::new(offset, 4096)).await };
    stream::iter(offsets).map(read).buffer_unordered(at_once).try_for_each(|_| async { Ok(()) }).await?;
    Ok(reads as f64 / began.elapsed().as_secs_f64())
}

/// A target that takes everything and keeps nothing.
struct Nowhere(u64);

impl Target for Nowhere {
    fn size(&self) -> u64 {
        self.0
    }

    async fn write(&self, _: u64, _: Bytes) -> mover::Result<()> {
        Ok(())
    }

    async fn zero(&self, _: Extent) -> mover::Result<()> {
        Ok(())
    }

    async fn read(&self, _: Extent) -> mover::Result<Bytes> {
        Err(mover::Error::internal("nothing is kept"))
    }

    async fn zeroes(&self) -> mover::Result<ExtentSet> {
        Ok(ExtentSet::new())
    }

    async fn finish(self) -> mover::Result<()> {
        Ok(())
    }
}

/// Bytes of one read when the disk is read in order.
const READ_BYTES: u64 = 1 << 20;
