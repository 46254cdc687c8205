//! What a verification remembers, how a scrub goes on by it, and what becomes of packs that do not read.

use chunker::{ChunkId, ChunkKind, DomainKeys};
use mover::{
    BackupOptions, Depth, PointChange, PointId, Progress, Repository, RepositoryConfig, SweepOptions, TrackingWish,
    VerifyOptions, VerifyReport, backup,
};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use store::format::config::ConfigFile;
use store::format::pack::{PackEntry, PackName};
use store::{Access, Local, ScrubOptions};
use windlass_tests::conformance::options;
use windlass_tests::fake::{Machine, noise};
use windlass_tests::kept::{Bench, damage, flip, folder, footers, pack_path, replay};

const BLOCK: u64 = 64 << 10;
const HOUR: Duration = Duration::from_secs(3600);

/// A machine with two points in a repository: the first alone needs the first blocks of the first pack.
struct Story {
    bench: Bench,
    folder: tempfile::TempDir,
    machine: Machine,
    points: [PointId; 2],
}

impl Story {
    async fn new() -> Self {
        let (bench, folder) = (Bench::new(), folder());
        Local::init(folder.path(), None, &bench.world).unwrap();
        let machine = Machine::new(&bench.world, &[64 * BLOCK]);
        machine.write(0, 0, &noise(1, 40 * BLOCK));
        let mut points = Vec::new();
        for round in 0..2 {
            machine.write(0, 0, &noise(2 + round, 2 * BLOCK));
            let local = bench.open(folder.path(), Access::Write).await.unwrap();
            points.push(bench.backup(&local, &machine).await.unwrap().point.id);
            local.close().await.unwrap();
        }
        Self { bench, folder, machine, points: points.try_into().unwrap() }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A job that was broken off holds the lock until its thread has ended.
    async fn open(&self) -> Local {
        for _ in 0..500 {
            match self.bench.open(self.path(), Access::Write).await {
                Err(error) if error.kind() == mover::ErrorKind::Busy => {
                    tokio::time::sleep(Duration::from_millis(20)).await
                }
                opened => return opened.unwrap(),
            }
        }
        panic!("the lock is held for ten seconds");
    }

    /// Numbers of the packs that the log has.
    fn packs(&self) -> usize {
        replay(self.path()).packs().len()
    }

    /// The pack of the first point's blocks, which are nearly all, and its records.
    fn first(&self) -> (PathBuf, Vec<PackEntry>) {
        let data = |(_, records): &(PackName, Vec<PackEntry>)| records[0].kind == ChunkKind::Data;
        let (pack, records) = footers(self.path()).into_iter().find(data).unwrap();
        (pack_path(self.path(), &pack), records)
    }
}

fn config(folder: &Path) -> RepositoryConfig {
    ConfigFile::decode(&fs::read(folder.join("config")).unwrap()).unwrap().config
}

/// The id of a block of `bytes`.
fn id(local: &Local, bytes: &[u8]) -> ChunkId {
    DomainKeys::new(&local.config().domain).id(ChunkKind::Data, bytes)
}

async fn verify(local: &Local, options: VerifyOptions) -> VerifyReport {
    local.verify(options, Arc::default()).await.unwrap()
}

fn again() -> VerifyOptions {
    VerifyOptions { outdated_after: Some(HOUR), ..VerifyOptions::new(Depth::Decode) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_broken_off_goes_on() {
    let story = Story::new().await;
    let local = story.open().await;
    assert_eq!(local.stats().await.unwrap().packs_unverified, story.packs() as u64);
    // All of it takes five seconds, and the smaller packs are done before the first.
    let slow = VerifyOptions { rate: Some(512 << 10), ..VerifyOptions::new(Depth::Decode) };
    let mut verifying = Box::pin(local.verify(slow, Arc::default()));
    let left = loop {
        tokio::select! {
            _ = &mut verifying => panic!("it keeps to its rate"),
            () = tokio::time::sleep(Duration::from_millis(5)) => {}
        }
        let left = local.stats().await.unwrap().packs_unverified;
        if left < story.packs() as u64 {
            break left;
        }
    };
    drop(verifying);
    local.close().await.unwrap();
    // Another process.
    let local = story.open().await;
    assert_eq!(local.stats().await.unwrap().packs_unverified, left);
    let rest = verify(&local, again()).await;
    assert_eq!((rest.packs_skipped, rest.errors), (story.packs() as u64 - left, vec![]));
    assert!(rest.bytes_read > 0);
    let nothing = verify(&local, again()).await;
    assert_eq!((nothing.packs_skipped, nothing.bytes_read), (story.packs() as u64, 0));
    // What was decoded was read; who does not ask for less has everything read.
    let less = VerifyOptions { depth: Depth::ReadData { percent: 100 }, ..again() };
    assert_eq!(verify(&local, less).await.bytes_read, 0);
    assert!(verify(&local, VerifyOptions::new(Depth::Decode)).await.bytes_read > rest.bytes_read);
    let stats = local.stats().await.unwrap();
    assert!(stats.packs_unverified == 0 && stats.oldest_verified.is_some(), "{stats:?}");
    local.close().await.unwrap();
    // It is a cache.
    fs::write(story.path().join("verified"), b"something else").unwrap();
    let local = story.open().await;
    assert_eq!(local.stats().await.unwrap().packs_unverified, story.packs() as u64);
    assert_eq!(verify(&local, again()).await.packs_skipped, 0);
    local.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_found_damaged_is_not_skipped() {
    let story = Story::new().await;
    let local = story.open().await;
    verify(&local, again()).await;
    let block =
        id(&local, &noise(1, 40 * BLOCK)[usize::try_from(5 * BLOCK).unwrap()..][..usize::try_from(BLOCK).unwrap()]);
    damage(story.path(), block);
    // By somebody who may only read.
    let reader = story.bench.open(story.path(), Access::Read).await.unwrap();
    let found = verify(&reader, VerifyOptions::new(Depth::ReadData { percent: 100 })).await;
    assert_eq!(found.errors.iter().filter(|error| error.chunk == Some(block)).count(), 2, "{:?}", found.errors);
    reader.close().await.unwrap();
    local.close().await.unwrap();
    let local = story.open().await;
    let again = verify(&local, again()).await;
    assert_eq!(again.packs_skipped, story.packs() as u64 - 1);
    assert!(again.errors.iter().any(|error| error.chunk == Some(block)), "{:?}", again.errors);
    local.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scrub_finds_damage_and_the_next_backup_heals_it() {
    let story = Story::new().await;
    let local = story.open().await;
    let block =
        id(&local, &noise(1, 40 * BLOCK)[usize::try_from(5 * BLOCK).unwrap()..][..usize::try_from(BLOCK).unwrap()]);
    damage(story.path(), block);
    let packs = story.packs() as u64;
    let scrub = |local: &Local| {
        let local = local.clone();
        tokio::spawn(async move { local.scrub(ScrubOptions { rate: 1 << 30, every: HOUR }).await })
    };
    let done = async |local: &Local| loop {
        match local.stats().await.unwrap().scrub {
            Some(totals) if totals.packs > 0 && totals.packs_left == 0 => return totals,
            _ => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    assert_eq!(local.stats().await.unwrap().scrub, None);
    let scrubbing = scrub(&local);
    let totals = done(&local).await;
    assert_eq!((totals.packs, totals.chunks_damaged), (packs, 1));
    let stats = local.stats().await.unwrap();
    assert_eq!((stats.packs_unverified, stats.suspects), (1, 1));
    story.bench.backup(&local, &story.machine).await.unwrap();
    assert_eq!(local.stats().await.unwrap().suspects, 0);
    scrubbing.abort();
    let _ = scrubbing.await;
    local.close().await.unwrap();
    // The next process does not begin anew: only the damaged pack and new ones are due.
    let local = story.open().await;
    let scrubbing = scrub(&local);
    assert_eq!(done(&local).await.packs, story.packs() as u64 - packs + 1);
    assert!(verify(&local, VerifyOptions::new(Depth::Decode)).await.errors.is_empty());
    scrubbing.abort();
    let _ = scrubbing.await;
    local.close().await.unwrap();
}

fn eager() -> SweepOptions {
    SweepOptions { repack_percent: 1, ..SweepOptions::default() }
}

/// A footer that does not read is replaced by the records that do: reads and verifying know all that is sound. What a sweep
/// leaves out is gone, so it wants to know all that was there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_knows_all_records_of_a_pack_or_leaves_it() {
    for with_index in [true, false] {
        let story = Story::new().await;
        let image = story.machine.images();
        let (pack, records) = story.first();
        flip(&pack, fs::metadata(&pack).unwrap().len() - 30, 1);
        // A block that the first point alone has.
        let keys = DomainKeys::new(&config(story.path()).domain);
        let alone = keys.id(ChunkKind::Data, &noise(2, 2 * BLOCK)[..usize::try_from(BLOCK).unwrap()]);
        let (at, record) = records.iter().enumerate().find(|(_, record)| record.id == alone).unwrap();
        assert!(at + 3 < records.len(), "there is more behind it");
        flip(&pack, u64::from(record.offset) + 300, 1);
        if !with_index {
            fs::remove_dir_all(story.path().join("index")).unwrap();
        }
        let local = story.open().await;
        story.bench.restore(&local, story.points[1], &image).await.unwrap();
        local.change_points(&story.points[..1], PointChange::Forget).await.unwrap();
        for _ in 0..2 {
            local.sweep(eager(), Arc::default()).await.unwrap();
        }
        story.bench.restore(&local, story.points[1], &image).await.unwrap();
        if with_index {
            assert!(!pack.exists(), "what is needed of it was packed again");
            assert!(verify(&local, VerifyOptions::new(Depth::Decode)).await.errors.is_empty());
        } else {
            assert!(pack.exists(), "nobody knows what is in it");
        }
        local.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pack_that_is_gone_heals_and_is_not_told_for_ever() {
    for emptied in [true, false] {
        let story = Story::new().await;
        let (image, (pack, _)) = (story.machine.images(), story.first());
        let local = story.open().await;
        match emptied {
            true => fs::write(&pack, vec![0; usize::try_from(fs::metadata(&pack).unwrap().len()).unwrap()]).unwrap(),
            false => fs::remove_file(&pack).unwrap(),
        }
        let found = verify(&local, VerifyOptions::new(Depth::Decode)).await;
        assert!(found.errors.iter().any(|error| error.point == Some(story.points[1])), "{:?}", found.errors);
        // While something of it is wanted it is told, and stays.
        local.sweep(eager(), Arc::default()).await.unwrap();
        assert!(!verify(&local, VerifyOptions::new(Depth::Structure)).await.errors.is_empty());
        let healed = story.bench.backup(&local, &story.machine).await.unwrap().point.id;
        story.bench.restore(&local, healed, &image).await.unwrap();
        story.bench.restore(&local, story.points[1], &image).await.unwrap();
        // The first point alone had two blocks that the machine does not have any more.
        local.change_points(&story.points[..1], PointChange::Forget).await.unwrap();
        local.sweep(eager(), Arc::default()).await.unwrap();
        let report = verify(&local, VerifyOptions::new(Depth::Decode)).await;
        assert!(report.errors.is_empty(), "emptied {emptied}: {:?}", report.errors);
        assert!(!pack.exists());
        local.close().await.unwrap();
        let local = story.open().await;
        story.bench.restore(&local, story.points[1], &image).await.unwrap();
        local.close().await.unwrap();
    }
}

/// A disk that is what it was two points ago: who reads everything is told that the pages of then are there. That they are
/// not, the commit finds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_rotted_unnoticed_is_made_again() {
    let story = Story::new().await;
    let entries = footers(story.path()).into_iter().flat_map(|(_, entries)| entries);
    let pages: BTreeSet<ChunkId> = entries.filter(|it| it.kind == ChunkKind::Page).map(|it| it.id).collect();
    assert!(pages.len() >= 2, "{pages:?}");
    pages.into_iter().for_each(|page| damage(story.path(), page));
    story.machine.write(0, 0, &noise(2, 2 * BLOCK));
    let local = story.open().await;
    let full = BackupOptions { wish: TrackingWish::Full, ..options("web") };
    let (bench, progress) = (&story.bench, Progress::default());
    let made = backup(&local, story.machine.snapshot(), &full, &bench.pool, &bench.world, &progress).await;
    let made = made.unwrap().point.id;
    for point in [made, story.points[0]] {
        bench.restore(&local, point, &story.machine.images()).await.unwrap();
    }
    local.close().await.unwrap();
}
