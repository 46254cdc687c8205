//! Power cuts in the middle of a repository's life, on ext4, XFS and btrfs. The real store works on a file system whose
//! disk logs each write and each flush. From that log is made what a power cut may have left at any moment: everything up
//! to the last flush, and any part of what was written since. Each of these disks is mounted, which replays its journal,
//! and whatever was acknowledged before must be there, and the repository must go on working.
//!
//!     cargo nextest run --release -p windlass-tests --test power_cut --no-capture
//!     WINDLASS_POWER_CUT_STATES=1000 cargo nextest run --release -p windlass-tests --test power_cut --no-capture
//!     WINDLASS_POWER_CUT_SEED=17 cargo nextest run --release -p windlass-tests --test power_cut ext4 --no-capture
//!
//! The second makes so many states of each file system, over several histories. History and choice follow from a seed; when
//! the kernel writes what does not, so a seed that failed may have to be tried more than once. With
//! `WINDLASS_POWER_CUT_KEEP=FOLDER` disks that failed are kept there as they were before they were mounted.

mod block_log;
mod check;
mod cut;
mod history;
mod lab;
mod unsynced;

use anyhow::{Context, Result};
use check::{Lost, check};
use cut::{Disk, PowerCut};
use history::{History, live};
use lab::{FileSystem, LoggedDisk, Mounted, inside, write_image};
use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use store::io::{DiskIo, Io};
use tokio::runtime::{Builder, Runtime};
use unsynced::Unsynced;
use windlass_tests::around::Around;
use windlass_tests::draw::Draw;
use windlass_tests::fake::Image;
use windlass_tests::kept::Bench;

/// What power cuts are tried on.
struct Lab<'a> {
    kind: FileSystem,
    folder: &'a Path,
    bench: Bench,
    runtime: Runtime,
}

/// A history, and the disk it was written to.
struct Written {
    history: History,
    before: Image,
    log: Vec<block_log::Entry>,
}

/// What was tried, and what was found.
#[derive(Default)]
struct Tried {
    states: usize,
    /// By the name of the job that was cut.
    inside: BTreeMap<&'static str, usize>,
    wrong: Vec<anyhow::Error>,
}

impl<'a> Lab<'a> {
    fn new(kind: FileSystem, folder: &'a Path) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        Self { kind, folder, bench: Bench::new(), runtime }
    }

    /// Lives a history, whose files go through `io`.
    fn write(&self, io: Arc<dyn Io>, draw: &mut Draw) -> Result<Written> {
        let (disk, before) = LoggedDisk::new(self.kind, &self.folder.join("logged"))?;
        let elsewhere = tempfile::tempdir_in(self.folder)?;
        let history = self.runtime.block_on(live(&self.bench, &disk, elsewhere.path(), io, draw))?;
        // What it writes to be unmounted orderly is no subject of power cuts.
        let end = disk.flushed_entries();
        let mut log = block_log::decode(&disk.into_log()?.into())?;
        log.truncate(end);
        Ok(Written { history, before, log })
    }

    /// Tries `cuts`, which lie in the order of the log, until `enough` says so.
    fn try_all(&self, written: &Written, cuts: &[PowerCut], tried: &mut Tried, enough: impl Fn(&Tried) -> bool) {
        let mut disk = Disk::new(&written.log, written.before.clone());
        for cut in cuts {
            let image = disk.after(cut);
            tried.states += 1;
            for job in written.history.jobs.iter().filter(|job| job.cut_by(cut)) {
                *tried.inside.entry(job.name).or_default() += 1;
            }
            if let Err(wrong) = self.try_one(written, cut, &image) {
                let wrong = wrong.context(format!("{} after {cut:?}", self.kind.name()));
                println!("{wrong:#}");
                keep(&image, &format!("{}-{}-{}.img", self.kind.name(), cut.at, cut.seed));
                tried.wrong.push(wrong);
            }
            if enough(tried) {
                break;
            }
        }
    }

    fn try_one(&self, written: &Written, cut: &PowerCut, image: &Image) -> Result<()> {
        let file = self.folder.join("state");
        write_image(image, &file)?;
        let mounted = Mounted::new(self.kind, &file, &self.folder.join("mounted"));
        // It goes with the last who uses it.
        fs::remove_file(&file)?;
        let mounted = mounted?;
        let expected = written.history.expected(cut);
        let checked = check(&self.bench, mounted.path(), &expected, &written.history);
        catch_unwind(AssertUnwindSafe(|| self.runtime.block_on(checked)))
            .unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked, see above")))?;
        mounted.unmount()
    }
}

/// As many power cuts as were asked for, on a file system of this kind.
fn power_cuts(kind: FileSystem, folder: &Path) {
    let states = from_environment("WINDLASS_POWER_CUT_STATES").unwrap_or(STATES);
    let first = from_environment("WINDLASS_POWER_CUT_SEED");
    let first = first.unwrap_or_else(|| u64::from_le_bytes(mover::World::system().random_bytes()) >> 16);
    let (lab, started) = (Lab::new(kind, folder), Instant::now());
    let mut all = 0;
    for (seed, done) in (first..).zip((0..states).step_by(HISTORY_STATES)) {
        let (mut draw, mut tried) = (Draw::new(seed), Tried::default());
        let written = lab.write(Arc::new(DiskIo), &mut draw).expect("a history");
        let count = (states - done).min(HISTORY_STATES as u64);
        let begun = written.history.jobs[0].begun;
        let cuts = cut::choose(&written.log, begun, usize::try_from(count).expect("few"), &mut draw);
        lab.try_all(&written, &cuts, &mut tried, |tried| tried.wrong.len() == WRONG_MAX);
        let inside: Vec<String> = tried.inside.iter().map(|(name, count)| format!("{count} in a {name}")).collect();
        println!(
            "{}, seed {seed}: {} power cuts in a log of {} entries, of them {}; {} s since the beginning",
            kind.name(),
            tried.states,
            written.log.len(),
            inside.join(", "),
            started.elapsed().as_secs()
        );
        all += tried.states;
        assert!(
            tried.wrong.is_empty(),
            "again: WINDLASS_POWER_CUT_SEED={seed} cargo nextest run --release -p windlass-tests --test power_cut {} \
             --no-capture",
            kind.name()
        );
    }
    println!("total: {all} power cuts on {}", kind.name());
}

fn keep(image: &Image, name: &str) {
    if let Some(folder) = std::env::var_os("WINDLASS_POWER_CUT_KEEP") {
        let path = PathBuf::from(folder).join(name);
        let kept = write_image(image, &path).with_context(|| path.display().to_string());
        println!("the disk: {}", kept.map_or_else(|error| format!("{error:#}"), |()| path.display().to_string()));
    }
}

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text:?}")))
}

#[test]
fn ext4() {
    inside("ext4", |folder| power_cuts(FileSystem::Ext4, folder));
}

#[test]
fn xfs() {
    inside("xfs", |folder| power_cuts(FileSystem::Xfs, folder));
}

#[test]
fn btrfs() {
    inside("btrfs", |folder| power_cuts(FileSystem::Btrfs, folder));
}

/// The lab sees what is lost: without either guard there is a power cut that takes back what was acknowledged.
#[test]
fn a_store_that_does_not_sync_is_caught() {
    inside("a_store_that_does_not_sync_is_caught", |folder| {
        let lab = Lab::new(FileSystem::Ext4, folder);
        for (io, guard) in [(Unsynced::Content, "content"), (Unsynced::Names, "names")] {
            let (mut draw, mut tried) = (Draw::new(1), Tried::default());
            let written = lab.write(Arc::new(Around(io)), &mut draw).expect("a history");
            // There is something to lose after the first backup.
            let from = written.history.jobs[1].acknowledged.expect("a backup");
            let cuts = cut::choose(&written.log, from, HISTORY_STATES, &mut draw);
            let lost = |tried: &Tried| tried.wrong.iter().any(|wrong| wrong.is::<Lost>());
            lab.try_all(&written, &cuts, &mut tried, lost);
            println!("without syncs of {guard}: {} of {} power cuts show", tried.wrong.len(), tried.states);
            assert!(lost(&tried), "nobody missed the syncs of {guard}");
        }
    });
}

/// In the ordinary suite, of each file system.
const STATES: u64 = 25;
/// Of one history.
const HISTORY_STATES: usize = 200;
/// States that fail before it is enough.
const WRONG_MAX: usize = 5;
