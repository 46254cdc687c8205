//! Sweeps of a directory: exactly what is dead goes, whatever fails on the way; and what cannot be told stays.

use chunker::{ChunkKind, DomainKeys};
use mover::{Depth, ErrorKind, PointChange, PointId, Repository, Result, SweepOptions, SweepReport};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use store::io::{DiskIo, Fault, FaultIo, Space};
use store::{Access, Local};
use windlass_tests::fake::{Machine, noise};
use windlass_tests::kept::{
    Bench, History, copy_folder, damage, files, folder, footers, pack_path, points, replay, stored,
};

const BLOCK: u64 = 64 << 10;

/// Three points of one machine, of which the first is forgotten: a quarter of its blocks nobody else has.
struct Story {
    bench: Bench,
    base: tempfile::TempDir,
    forgotten: PointId,
    history: History,
}

impl Story {
    async fn new() -> Self {
        let (bench, base) = (Bench::new(), folder());
        Local::init(base.path(), None, &bench.world).unwrap();
        let machine = Machine::new(&bench.world, &[128 * BLOCK]);
        machine.write(0, 0, &noise(1, 40 * BLOCK));
        let mut history = History::new();
        for round in 0..3 {
            machine.write(0, (3 + 20 * round) * BLOCK, &noise(10 + round, 10 * BLOCK));
            let local = bench.open(base.path(), Access::Write).await.unwrap();
            history.push((bench.backup(&local, &machine).await.unwrap().point.id, machine.images()));
            local.close().await.unwrap();
        }
        let (forgotten, _) = history.remove(0);
        let local = bench.open(base.path(), Access::Write).await.unwrap();
        local.change_points(&[forgotten], PointChange::Forget).await.unwrap();
        local.close().await.unwrap();
        Self { bench, base, forgotten, history }
    }

    fn copy(&self) -> tempfile::TempDir {
        let work = folder();
        copy_folder(self.base.path(), work.path());
        work
    }

    async fn open(&self, folder: &Path) -> Local {
        self.bench.reopen(folder).await.unwrap()
    }

    async fn sweep(&self, folder: &Path, options: SweepOptions) -> Result<SweepReport> {
        let local = self.open(folder).await;
        let swept = sweep(&local, options).await;
        local.close().await.unwrap();
        swept
    }

    /// The points that are left are whole, nothing is stored twice, and another sweep finds nothing.
    async fn settled(&self, folder: &Path, what: &str) {
        let local = self.open(folder).await;
        self.bench.assert_holds(&local, &self.history).await;
        let report = self.bench.verify(&local, Depth::Decode).await;
        assert!(report.errors.is_empty(), "{what}: {:?}", report.errors);
        let again = sweep(&local, eager()).await.unwrap();
        assert_eq!((again.bytes_reclaimed, again.bytes_waiting, again.packs_deleted), (0, 0, 0), "{what}: {again:?}");
        assert_eq!(again.bytes_live, packs_bytes(folder) - again.bytes_dead, "{what}");
        local.close().await.unwrap();
        for (id, times) in stored(folder) {
            assert_eq!(times, 1, "{what}: chunk {id} is stored more than once");
        }
        let packs = replay(folder).packs().len();
        assert_eq!(files(&folder.join("packs")).len(), packs, "{what}: every pack file is in the log");
    }
}

async fn sweep(local: &Local, options: SweepOptions) -> Result<SweepReport> {
    local.sweep(options, Arc::default()).await
}

/// Whatever is dead goes.
fn eager() -> SweepOptions {
    SweepOptions { repack_percent: 1, ..SweepOptions::default() }
}

fn packs_bytes(folder: &Path) -> u64 {
    let packs = folder.join("packs");
    files(&packs).iter().map(|file| fs::metadata(packs.join(file)).unwrap().len()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dry_run_tells_is_what_a_sweep_does_to_the_byte() {
    let story = Story::new().await;
    for options in [SweepOptions::default(), eager()] {
        let work = story.copy();
        let (before, log) = (packs_bytes(work.path()), files(&work.path().join("log")).len());
        let told = story.sweep(work.path(), SweepOptions { dry_run: true, ..options }).await.unwrap();
        assert_eq!((packs_bytes(work.path()), files(&work.path().join("log")).len()), (before, log), "only told");
        let done = story.sweep(work.path(), options).await.unwrap();
        assert_eq!(before - packs_bytes(work.path()), done.bytes_reclaimed);
        let both = |report: &SweepReport| {
            (report.bytes_reclaimed, report.bytes_repacked, report.packs_deleted, report.points_final)
        };
        assert_eq!(both(&told), both(&done));
        assert_eq!((done.bytes_live + done.bytes_dead, done.bytes_waiting), (packs_bytes(work.path()), 0));
        if options == eager() {
            assert!(done.bytes_reclaimed > 9 * BLOCK && done.bytes_repacked > 20 * BLOCK, "{done:?}");
            story.settled(work.path(), "eager").await;
        } else {
            assert!(done.bytes_dead > 9 * BLOCK && done.bytes_repacked == 0, "a quarter is not worth it: {done:?}");
        }
        // Nothing depends on the index, nor on the counts.
        for cache in ["index", "references"] {
            fs::remove_dir_all(work.path().join(cache)).unwrap();
        }
        let later = story.sweep(work.path(), eager()).await.unwrap();
        assert_eq!(later.bytes_reclaimed > 9 * BLOCK, options != eager(), "what was not worth it then: {later:?}");
        story.settled(work.path(), "without caches").await;
    }
}

async fn sweeps_with(fault: Fault, step: usize) {
    let story = Story::new().await;
    for after in (0..).step_by(step) {
        assert!(after < 3_000, "a sweep ends");
        let work = story.copy();
        let io = Arc::new(FaultIo::new(DiskIo));
        let local = story.bench.open_with(work.path(), Access::Write, io.clone()).await.unwrap();
        let begun = io.operations();
        io.plan(begun + after, fault);
        let swept = sweep(&local, eager()).await;
        let struck = io.operations() > begun + after;
        drop(local);
        let what = format!("{fault:?} at operation {after}: {swept:?}");
        if let Err(error) = &swept {
            let told = matches!(error.kind(), ErrorKind::StoreIo | ErrorKind::StoreFull | ErrorKind::Integrity);
            assert!(struck && told, "{what}");
        }
        // What was dead goes with the next sweep, if it has not gone.
        for _ in 0..2 {
            story.sweep(work.path(), eager()).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        assert!(!points(&story.open(work.path()).await).await.iter().any(|point| point.id == story.forgotten));
        story.settled(work.path(), &what).await;
        if !struck {
            assert!(after > 40, "{after} operations");
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing() {
    sweeps_with(Fault::Fail, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full() {
    sweeps_with(Fault::Full, 7).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unclear() {
    sweeps_with(Fault::Unclear, 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut() {
    sweeps_with(Fault::Cut, 3).await;
}

/// F34: a folder that cannot be listed, a page that cannot be read: neither is "nothing is there".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_told_stays() {
    let story = Story::new().await;
    let pages: BTreeSet<_> = footers(story.base.path())
        .into_iter()
        .flat_map(|(_, entries)| entries)
        .filter(|entry| entry.kind == ChunkKind::Page)
        .map(|entry| entry.id)
        .collect();
    let work = story.copy();
    // A copy leaves empty folders out; they are made again.
    fs::remove_dir(work.path().join("packs/77")).unwrap();
    story.sweep(work.path(), eager()).await.unwrap();
    story.settled(work.path(), "listed").await;
    let (mut refused, mut swept) = (0, 0);
    for page in pages {
        let work = story.copy();
        damage(work.path(), page);
        let before = packs_bytes(work.path());
        match story.sweep(work.path(), eager()).await {
            Err(error) => {
                refused += 1;
                assert!(error.kind() == ErrorKind::Integrity && error.to_string().contains("point"), "{error}");
                assert_eq!(packs_bytes(work.path()), before, "nothing was deleted");
            }
            // A page of the forgotten point alone: nobody needs it.
            Ok(_) => {
                swept += 1;
                story.settled(work.path(), "without the forgotten one's page").await;
            }
        }
    }
    assert!(refused >= 2 && swept >= 1, "{refused} refused, {swept} swept");
}

/// The counts are a cache: when they fail, no more than one sweep does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_that_fail_are_made_again() {
    let story = Story::new().await;
    let work = story.copy();
    story.sweep(work.path(), SweepOptions { dry_run: true, ..eager() }).await.unwrap();
    let references = work.path().join("references");
    let tables = files(&references).into_iter().filter(|it| it.extension().is_some_and(|it| it == "sst"));
    let mut damaged = 0;
    for table in tables {
        let path = references.join(table);
        let bytes: Vec<u8> =
            fs::read(&path).unwrap().iter().enumerate().map(|(at, it)| it ^ u8::from(at < 400)).collect();
        fs::write(&path, bytes).unwrap();
        damaged += 1;
    }
    assert!(damaged > 0);
    // As soon as they are opened, or in the middle.
    if let Err(failed) = story.sweep(work.path(), eager()).await {
        assert!(failed.kind() == ErrorKind::StoreIo && failed.to_string().contains("references"), "{failed}");
    }
    story.sweep(work.path(), eager()).await.unwrap();
    story.settled(work.path(), "counted again").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotten_chunk_is_not_laundered() {
    // F19: what is packed again must be what its id says.
    let story = Story::new().await;
    let work = story.copy();
    let local = story.open(work.path()).await;
    let (first, _) = story.history[0];
    // The first block, which all points need: packed again, were it sound.
    let block = &noise(1, 40 * BLOCK)[..usize::try_from(BLOCK).unwrap()];
    let id = DomainKeys::new(&local.config().domain).id(ChunkKind::Data, block);
    let found = footers(work.path()).into_iter().find(|(_, entries)| entries.iter().any(|entry| entry.id == id));
    let (pack, _) = found.unwrap();
    damage(work.path(), id);
    let swept = sweep(&local, eager()).await.unwrap();
    assert!(swept.packs_deleted >= 1, "page packs go all the same: {swept:?}");
    assert!(pack_path(work.path(), &pack).exists(), "what is left of it stays");
    let report = story.bench.verify(&local, Depth::Decode).await;
    assert!(report.errors.iter().any(|error| error.chunk == Some(id)), "still told: {:?}", report.errors);
    assert!(story.bench.restore(&local, first, &story.history[0].1).await.is_err(), "never wrong bytes");
    // The next one leaves it alone, and has nothing of it twice.
    sweep(&local, eager()).await.unwrap();
    assert!(pack_path(work.path(), &pack).exists() && stored(work.path()).values().all(|times| *times == 1));
    local.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_of_others_are_waited_for_or_ended() {
    let story = Story::new().await;
    let work = story.copy();
    let reader = story.bench.open(work.path(), Access::Read).await.unwrap();
    let session = reader.read(&[story.history[0].0]).await.unwrap();
    let before = packs_bytes(work.path());
    let waiting = story.sweep(work.path(), eager()).await.unwrap();
    assert!(
        waiting.bytes_waiting > 0 && waiting.sessions_waited_for == 1 && waiting.bytes_reclaimed == 0,
        "{waiting:?}"
    );
    assert!(packs_bytes(work.path()) >= before, "a reader from before the doom may still read there");
    // Not old enough yet.
    let old = SweepOptions { fence_older_s: Some(3600), ..eager() };
    assert!(story.sweep(work.path(), old).await.unwrap().bytes_waiting > 0);
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let ended = story.sweep(work.path(), SweepOptions { fence_older_s: Some(0), ..eager() }).await.unwrap();
    assert!(ended.bytes_waiting == 0 && ended.packs_deleted > 0, "{ended:?}");
    drop((session, reader));
    story.settled(work.path(), "fenced").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_small_packs_become_few() {
    let (bench, base) = (Bench::new(), folder());
    Local::init(base.path(), None, &bench.world).unwrap();
    let machine = Machine::new(&bench.world, &[64 * BLOCK]);
    let mut history = History::new();
    for round in 0..20 {
        machine.write(0, round * BLOCK, &noise(round, BLOCK));
        let local = bench.open(base.path(), Access::Write).await.unwrap();
        history.push((bench.backup(&local, &machine).await.unwrap().point.id, machine.images()));
        local.close().await.unwrap();
    }
    let packs = replay(base.path()).packs().len();
    assert!(packs >= 40);
    let local = bench.open(base.path(), Access::Write).await.unwrap();
    let slowly = SweepOptions { rate: Some(BLOCK), ..SweepOptions::default() };
    tokio::select! {
        _ = sweep(&local, slowly) => panic!("a block a second takes twenty seconds"),
        () = tokio::time::sleep(Duration::from_secs(2)) => {}
    }
    local.close().await.unwrap();
    // Its thread ends a little later.
    let local = bench.reopen(base.path()).await.unwrap();
    let swept = sweep(&local, SweepOptions::default()).await.unwrap();
    assert_eq!(swept.points_final, 0);
    assert!(swept.packs_deleted >= packs as u64, "those of the broken off sweep too: {swept:?}");
    bench.assert_holds(&local, &history).await;
    local.close().await.unwrap();
    assert_eq!(replay(base.path()).packs().len(), 2, "one of data, one of pages");
    assert!(stored(base.path()).values().all(|times| *times == 1));
}

/// What is packed again takes no more room than there is: first what needs none, then as much at a time as fits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_takes_no_more_room_than_there_is() {
    let (bench, base) = (Bench::new(), folder());
    Local::init(base.path(), None, &bench.world).unwrap();
    let machine = Machine::new(&bench.world, &[128 * BLOCK]);
    let mut made = Vec::new();
    let backup = async || {
        let local = bench.open(base.path(), Access::Write).await.unwrap();
        let point = bench.backup(&local, &machine).await.unwrap().point.id;
        local.close().await.unwrap();
        point
    };
    for round in 0..3 {
        machine.write(0, 20 * round * BLOCK, &noise(round, 20 * BLOCK));
        made.push(backup().await);
    }
    for round in 0..3 {
        machine.write(0, 20 * round * BLOCK, &noise(10 + round, 10 * BLOCK));
    }
    let last = backup().await;
    let io = Arc::new(FaultIo::new(DiskIo));
    let local = bench.open_with(base.path(), Access::Write, io.clone()).await.unwrap();
    local.change_points(&made, PointChange::Forget).await.unwrap();
    let options = SweepOptions { repack_percent: 30, ..SweepOptions::default() };
    let planned = sweep(&local, SweepOptions { dry_run: true, ..options }).await.unwrap();

    // A quarter of what is kept is for the log.
    let room = |bytes: u64| io.claim_space(Some(Space { free: (128 << 20) + bytes, total: 10 << 40, files: u64::MAX }));
    room(0);
    let refused = sweep(&local, options).await.unwrap_err();
    assert!(refused.kind() == ErrorKind::StoreFull && refused.to_string().contains("1 MiB of free space"), "{refused}");
    assert!(stored(base.path()).values().all(|times| *times == 1), "nothing was packed again");
    let before = local.stats().await.unwrap();
    assert!(before.points == 1, "what was forgotten is final, and its pages are gone");
    // For one of three.
    room(11 * BLOCK);
    let swept = sweep(&local, options).await.unwrap();
    assert_eq!(swept.packs_deleted, 3, "{swept:?}");
    assert!(swept.bytes_repacked > 30 * BLOCK && planned.packs_deleted > 3, "{swept:?} {planned:?}");
    io.claim_space(None);
    assert_eq!(sweep(&local, options).await.unwrap().bytes_reclaimed, 0);
    assert!(bench.verify(&local, Depth::Decode).await.errors.is_empty());
    bench.assert_holds(&local, &vec![(last, machine.images())]).await;
    local.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_beside_sessions_tells_what_waits_for_them() {
    let story = Story::new().await;
    let work = story.copy();
    let local = story.open(work.path()).await;
    let reader = local.read(&[story.history[0].0]).await.unwrap();
    let options = SweepOptions { repack_percent: 1, ..SweepOptions::default() };
    let told = sweep(&local, SweepOptions { dry_run: true, ..options }).await.unwrap();
    let swept = sweep(&local, options).await.unwrap();
    let of = |it: &SweepReport| (it.bytes_reclaimed, it.bytes_waiting, it.packs_deleted, it.bytes_repacked);
    assert_eq!(of(&told), of(&swept));
    assert!(told.bytes_waiting > 0 && told.packs_deleted == 0, "{told:?}");
    drop(reader);
    local.close().await.unwrap();
}

/// Much of a small pack died, and a few blocks of a large one: what lies together is found in its pack, what does not by the
/// index. Both are added up as a look at every record of every pack does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_died_is_found_wherever_it_lies() {
    let (bench, base) = (Bench::new(), folder());
    Local::init(base.path(), None, &bench.world).unwrap();
    let machine = Machine::new(&bench.world, &[1024 * BLOCK]);
    machine.write(0, 0, &noise(1, 1024 * BLOCK));
    let local = bench.open(base.path(), Access::Write).await.unwrap();
    let first = bench.backup(&local, &machine).await.unwrap().point.id;
    let packs: Vec<u32> = replay(base.path()).packs().values().map(|pack| pack.added.chunks).collect();
    assert!(
        packs.iter().any(|chunks| *chunks > 600) && packs.iter().any(|chunks| (80..300).contains(chunks)),
        "{packs:?}"
    );
    for block in (0..800).step_by(80) {
        machine.write(0, block * BLOCK, &noise(100 + block, BLOCK));
    }
    machine.write(0, 940 * BLOCK, &noise(2, 80 * BLOCK));
    let history = vec![(bench.backup(&local, &machine).await.unwrap().point.id, machine.images())];
    local.change_points(&[first], PointChange::Forget).await.unwrap();
    let whole = SweepOptions { repack_percent: 100, ..SweepOptions::default() };
    let added_up = sweep(&local, whole).await.unwrap();
    assert!((90 * BLOCK..92 * BLOCK).contains(&added_up.bytes_dead), "{added_up:?}");
    fs::remove_dir_all(base.path().join("references")).unwrap();
    let looked_at = sweep(&local, whole).await.unwrap();
    assert_eq!((looked_at.bytes_dead, looked_at.bytes_live), (added_up.bytes_dead, added_up.bytes_live));
    bench.assert_holds(&local, &history).await;
    local.close().await.unwrap();
}
