//! What must hold of a repository after a power cut.

use crate::history::{Expected, History, REPOSITORY, eager};
use anyhow::{Context, Result, ensure};
use mover::{Depth, ErrorKind, PointId, Repository};
use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use store::{Access, Local};
use windlass_tests::fake::{Machine, noise};
use windlass_tests::kept::{Bench, points, stored};

/// A point that was acknowledged is not there.
#[derive(Debug)]
pub struct Lost(PointId);

impl std::error::Error for Lost {}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "point {} was acknowledged, and is lost", self.0)
    }
}

/// Looks at the repository on the mounted file system, and goes on working with it.
///
/// # Errors
/// What does not hold; [`Lost`] among it.
///
/// # Panics
/// When restored bytes are wrong.
pub async fn check(bench: &Bench, mounted: &Path, expected: &Expected, history: &History) -> Result<()> {
    let folder = mounted.join(REPOSITORY);
    if !expected.repository {
        // Whoever was cut off asks for it again.
        let made = Local::init(&folder, None, &bench.world);
        let there = |error: &mover::Error| error.kind() == ErrorKind::Usage && folder.join("config").exists();
        if let Err(error) = made
            && !there(&error)
        {
            return Err(error).context("init after a broken one");
        }
    }
    let opened = bench.open(&folder, Access::Write).await.context("it does not open");
    let local = opened.map_err(|error| match expected.must.first() {
        Some(point) => error.context(Lost(*point)),
        None => error,
    })?;
    let left = fs::read_dir(folder.join("incoming"))?.count();
    ensure!(left == 0, "{left} files lie under incoming/");
    let there: BTreeSet<PointId> = points(&local).await.iter().map(|point| point.id).collect();
    if let Some(lost) = expected.must.difference(&there).next() {
        return Err(Lost(*lost).into());
    }
    if let Some(point) = there.difference(&expected.may).next() {
        anyhow::bail!("point {point} is there, which was forgotten, or never made");
    }
    let verified = bench.verify(&local, Depth::Decode).await;
    ensure!(verified.errors.is_empty(), "verify after opening: {:?}", verified.errors);
    for point in &there {
        bench.restore(&local, *point, &history.images[point]).await.with_context(|| format!("point {point}"))?;
    }
    go_on(bench, &local, &folder, &there, history).await.context("afterwards")?;
    local.close().await.context("closing")?;
    Ok(())
}

/// A backup, which finds what is there, and a sweep.
async fn go_on(
    bench: &Bench,
    local: &Local,
    folder: &Path,
    there: &BTreeSet<PointId>,
    history: &History,
) -> Result<()> {
    let machine = Machine::new(&bench.world, &[8 << 20]);
    if let Some(point) = there.last() {
        let image = &history.images[point][0];
        for extent in image.zeroes().complement(image.size()).iter() {
            machine.write(0, extent.offset, &image.read(extent));
        }
    }
    machine.write(0, 7 << 20, &noise(1, 200 << 10));
    let new = bench.backup(local, &machine).await?.point.id;
    local.sweep(eager(), Arc::default()).await.context("sweep")?;
    let verified = bench.verify(local, Depth::Decode).await;
    ensure!(verified.errors.is_empty(), "verify: {:?}", verified.errors);
    bench.restore(local, new, &machine.images()).await?;
    let twice = stored(folder).into_iter().find(|(_, times)| *times > 1);
    ensure!(twice.is_none(), "a chunk is stored more than once: {twice:?}");
    let listed: BTreeSet<PointId> = points(local).await.iter().map(|point| point.id).filter(|id| *id != new).collect();
    ensure!(listed == *there, "other points than before");
    Ok(())
}
