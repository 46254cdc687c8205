//! Every file operation of a repository fails once, in each of four ways, during whatever it belongs to: afterwards
//! exactly the acknowledged points are there and whole, nothing is left over, and what was stored is not stored again.
//!
//! The longer jobs are sampled, always at the same operations; each test says how.

use chunker::{ChunkKind, Compression, DomainKeys};
use mover::Depth;
use mover::{
    Begin, ErrorKind, PointChange, PointId, Progress, Repository, Result, SweepOptions, Verification, WriteSession,
    WriterId, copy, with_compressor,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::format::pack::PackHeader;
use store::io::{DiskIo, Fault, FaultIo, Space};
use store::{Access, Local};
use windlass_tests::around::Around;
use windlass_tests::fake::{Image, Machine, noise};
use windlass_tests::kept::{Bench, Frozen, History, copy_folder, files, folder, points, stored};

const FAULTS: [Fault; 4] = [Fault::Fail, Fault::Full, Fault::Unclear, Fault::Cut];

/// A repository with a point, and a machine that has changed since.
struct Story {
    bench: Bench,
    base: tempfile::TempDir,
    machine: Machine,
    history: History,
}

impl Story {
    async fn new() -> Self {
        let (bench, base) = (Bench::new(), folder());
        Local::init(base.path(), None, &bench.world).unwrap();
        let machine = Machine::new(&bench.world, &[2 << 20, (64 << 20) + 1]);
        machine.write(0, 0, &noise(1, 400_000));
        machine.write(1, 64 << 20, b"x");
        let local = bench.open(base.path(), Access::Write).await.unwrap();
        let first = bench.backup(&local, &machine).await.unwrap().point.id;
        local.close().await.unwrap();
        let history = vec![(first, machine.images())];
        machine.write(0, 100_000, &noise(2, 300_000));
        machine.write(1, 5 << 20, &noise(3, 100_000));
        Self { bench, base, machine, history }
    }

    /// Puts everything right in a new process, and looks at what is there.
    async fn settle(&self, folder: &Path, acknowledged: Option<PointId>, what: &str) {
        let local = self.bench.reopen(folder).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        let left = std::fs::read_dir(folder.join("incoming")).unwrap().count();
        assert_eq!(left, 0, "{what}: files in incoming/");
        let mut history = self.history.clone();
        let there = points(&local).await;
        // What was not acknowledged may be there, but only whole.
        if let Some(new) = acknowledged.or_else(|| there.get(1).map(|point| point.id)) {
            history.push((new, self.machine.images()));
        }
        self.bench.assert_holds(&local, &history).await;
        let again = self.bench.backup(&local, &self.machine).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        history.push((again.point.id, self.machine.images()));
        self.bench.assert_holds(&local, &history).await;
        local.close().await.unwrap();
        for (id, times) in stored(folder) {
            assert_eq!(times, 1, "{what}: chunk {id} is stored more than once");
        }
        let local = self.bench.open(folder, Access::Read).await.unwrap();
        let report = self.bench.verify(&local, Depth::Decode).await;
        assert!(report.errors.is_empty(), "{what}: {:?}", report.errors);
    }

    /// A backup in which the `after`th operation goes wrong; the point when it was acknowledged, and whether the fault
    /// struck.
    async fn backup(&self, folder: &Path, after: u64, fault: Fault) -> (Result<PointId>, bool) {
        let io = Arc::new(FaultIo::new(DiskIo));
        io.plan(after, fault);
        let made = async {
            let local = self.bench.open_with(folder, Access::Write, io.clone()).await?;
            let made = self.bench.backup(&local, &self.machine).await?;
            // What was acknowledged stays, whatever closing says.
            let _ = local.close().await;
            Ok(made.point.id)
        };
        let made = made.await;
        (made, io.operations() > after)
    }
}

fn is_of_the_store(error: &mover::Error) -> bool {
    matches!(error.kind(), ErrorKind::StoreIo | ErrorKind::StoreFull)
}

async fn backup_with(fault: Fault, step: usize) {
    let story = Story::new().await;
    for after in (0..).step_by(step) {
        assert!(after < 2_000, "a backup ends");
        let work = folder();
        copy_folder(story.base.path(), work.path());
        let (made, struck) = story.backup(work.path(), after, fault).await;
        let what = format!("{fault:?} at operation {after}: {made:?}");
        if let Err(error) = &made {
            assert!(struck && is_of_the_store(error), "{what}");
        }
        story.settle(work.path(), made.ok(), &what).await;
        if !struck {
            assert!(after > 40, "{after} operations");
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_failing() {
    backup_with(Fault::Fail, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_full() {
    backup_with(Fault::Full, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_unclear() {
    backup_with(Fault::Unclear, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_cut() {
    backup_with(Fault::Cut, 1).await;
}

/// The process dies in a backup, and in the opening that puts it right something fails again. Every fifth operation of
/// the backup, every third of the opening.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recovery() {
    let story = Story::new().await;
    for after in (10..60).step_by(5) {
        let broken = folder();
        copy_folder(story.base.path(), broken.path());
        let (made, _) = story.backup(broken.path(), after, Fault::Cut).await;
        for (number, again) in (0..).step_by(3).enumerate() {
            let (fault, work) = (FAULTS[number % FAULTS.len()], folder());
            copy_folder(broken.path(), work.path());
            let io = Arc::new(FaultIo::new(DiskIo));
            io.plan(again, fault);
            let opened = story.bench.open_with(work.path(), Access::Write, io.clone()).await;
            let what = format!("cut at {after}, then {fault:?} at {again}");
            if let Err(error) = &opened {
                assert!(is_of_the_store(error), "{what}: {error:?}");
            }
            drop(opened);
            story.settle(work.path(), made.as_ref().ok().copied(), &what).await;
            if io.operations() <= again {
                break;
            }
        }
    }
}

/// A power cut may leave a file its length and not its bytes. Whatever lies under incoming/ in the place of a pack goes,
/// but for packs of others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packs_without_their_bytes() {
    let (story, work) = (Story::new().await, folder());
    copy_folder(story.base.path(), work.path());
    let pack = files(&work.path().join("packs")).first().map(|name| work.path().join("packs").join(name)).unwrap();
    let own = std::fs::read(pack).unwrap();
    let header = PackHeader::decode(&own).unwrap();
    let of_another = PackHeader { writer: WriterId([9; 16]), ..header }.encode();
    let mut newer = of_another.clone();
    newer[8] += 1;
    let body = newer.len() - 4;
    let checksum = crc32c::crc32c(&newer[..body]);
    newer[body..].copy_from_slice(&checksum.to_le_bytes());
    let without_header = [vec![0; of_another.len()], own[of_another.len()..].to_vec()].concat();
    let only_header = [own[..of_another.len()].to_vec(), vec![0; own.len() - of_another.len()]].concat();
    let useless = [vec![], vec![0; 20], vec![0; 5_000], noise(1, 5_000), without_header, only_header];
    for (number, bytes) in useless.iter().chain([&of_another, &newer]).enumerate() {
        std::fs::write(work.path().join(format!("incoming/pack-{number:016x}")), bytes).unwrap();
    }
    drop(story.bench.reopen(work.path()).await.unwrap());
    let left = files(&work.path().join("incoming"));
    assert_eq!(left, [6, 7].map(|number| PathBuf::from(format!("pack-{number:016x}"))), "of others");
    left.iter().for_each(|name| std::fs::remove_file(work.path().join("incoming").join(name)).unwrap());
    story.settle(work.path(), None, "without their bytes").await;
}

/// Every 17th operation, and all from the last folder on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn init() {
    let bench = Bench::new();
    let counting = Arc::new(FaultIo::new(DiskIo));
    Local::init_with(folder().path(), None, &bench.world, counting.clone()).unwrap();
    let operations = counting.operations();
    let chosen = (0..operations).filter(|after| after % 17 == 0 || after + 14 > operations);
    for (after, fault) in chosen.flat_map(|after| FAULTS.map(|fault| (after, fault))) {
        let work = folder();
        let io = Arc::new(FaultIo::new(DiskIo));
        io.plan(after, fault);
        let made = Local::init_with(work.path(), None, &bench.world, io);
        if made.is_err() {
            // Begun again it is completed, or was already.
            let again = Local::init(work.path(), None, &bench.world);
            assert!(again.as_ref().is_ok_and(|_| true) || again.unwrap_err().kind() == ErrorKind::Usage);
        }
        let local = bench.reopen(work.path()).await.unwrap();
        assert!(made.is_err() || made.unwrap() == *local.config());
        assert!(points(&local).await.is_empty());
        let machine = Machine::new(&bench.world, &[1 << 20]);
        machine.write(0, 0, &noise(1, 100_000));
        let point = bench.backup(&local, &machine).await.unwrap().point.id;
        bench.assert_holds(&local, &vec![(point, machine.images())]).await;
    }
}

/// Every third operation, the faults in turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies() {
    let story = Story::new().await;
    let from = story.bench.open(story.base.path(), Access::Write).await.unwrap();
    let second = story.bench.backup(&from, &story.machine).await.unwrap().point;
    let first = points(&from).await.remove(0);
    let base = folder();
    Local::init(base.path(), Some(from.config()), &story.bench.world).unwrap();
    let once = async |to: &Local, point| copy(&from, to, point, Verification::Decode, &Progress::default()).await;
    let to = story.bench.open(base.path(), Access::Write).await.unwrap();
    once(&to, &first).await.unwrap();
    to.close().await.unwrap();
    for (number, after) in (0..).step_by(3).enumerate() {
        let (fault, work, io) = (FAULTS[number % FAULTS.len()], folder(), Arc::new(FaultIo::new(DiskIo)));
        copy_folder(base.path(), work.path());
        io.plan(after, fault);
        let made = async {
            let to = story.bench.open_with(work.path(), Access::Write, io.clone()).await?;
            once(&to, &second).await
        };
        let made = made.await;
        let what = format!("{fault:?} at operation {after}: {made:?}");
        if let Err(error) = &made {
            assert!(is_of_the_store(error), "{what}");
        }
        let to = story.bench.reopen(work.path()).await.unwrap();
        let there = points(&to).await.len();
        assert!(there == 2 || made.is_err(), "{what}");
        once(&to, &second).await.unwrap();
        let history: Vec<(PointId, Vec<Image>)> = vec![story.history[0].clone(), (second.id, story.machine.images())];
        story.bench.assert_holds(&to, &history).await;
        to.close().await.unwrap();
        assert!(stored(work.path()).values().all(|times| *times == 1), "{what}: a chunk is stored more than once");
        if io.operations() <= after {
            assert!(after > 40, "{after} operations");
            break;
        }
    }
}

/// Reading goes on where nothing can be written, with a warning instead of a session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_where_nothing_can_be_created() {
    let story = Story::new().await;
    let before = files(&story.base.path().join("log"));
    let io = Arc::new(Around(Frozen));
    let local = story.bench.open_with(story.base.path(), Access::Read, io).await.unwrap();
    story.bench.assert_holds(&local, &story.history).await;
    let report = story.bench.verify(&local, Depth::Decode).await;
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    let unknown = local.read(&[PointId([9; 16])]).await;
    assert_eq!(unknown.err().expect("refused").kind(), ErrorKind::NotFound);
    assert_eq!(files(&story.base.path().join("log")), before);
}

/// Before the storage is full nothing new is taken, so that what is there can be kept in order; and it goes on by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nearly_full_storage_takes_nothing_new_until_there_is_room() {
    let Story { bench, base, machine, history } = Story::new().await;
    let io = Arc::new(FaultIo::new(DiskIo));
    let local = bench.open_with(base.path(), Access::Write, io.clone()).await.unwrap();
    let begin = Begin {
        point: PointId::random(&bench.world),
        parents: Vec::new(),
        holder: None,
        verification: Verification::Decode,
    };
    let (session, _) = local.begin(begin).await.unwrap();
    io.claim_space(Some(Space { free: 500 << 20, total: 10 << 40, files: u64::MAX }));
    let refused = bench.backup(&local, &machine).await.unwrap_err();
    assert!(refused.kind() == ErrorKind::StoreFull && refused.to_string().contains("500 MiB left"), "{refused}");
    let plain = noise(7, 1 << 16);
    let id = DomainKeys::new(&local.config().domain).id(ChunkKind::Data, &plain);
    let blob = with_compressor(Compression::None, |compressor| compressor.compress(ChunkKind::Data, &plain));
    let refused = session.put(vec![(id, blob.clone())]).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::StoreFull);
    let stats = local.stats().await.unwrap();
    assert_eq!((stats.bytes_free, stats.bytes_reserved), (Some(500 << 20), 512 << 20));
    // Reading, forgetting and sweeping go on.
    bench.assert_holds(&local, &history).await;
    local.change_points(&[history[0].0], PointChange::Forget).await.unwrap();
    local.sweep(SweepOptions::default(), Arc::default()).await.unwrap();
    local.change_points(&[history[0].0], PointChange::Unforget).await.unwrap_err();
    // A small one keeps a twentieth.
    io.claim_space(Some(Space { free: 51 << 20, total: 1000 << 20, files: u64::MAX }));
    session.put(vec![(id, blob)]).await.unwrap();
    io.claim_space(None);
    drop(session);
    let point = bench.backup(&local, &machine).await.unwrap().point.id;
    bench.assert_holds(&local, &vec![(point, machine.images())]).await;
    local.close().await.unwrap();
}

/// Without room for what is unfinished it is given up: what must be possible is to forget and to sweep.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_keeps_nobody_from_opening() {
    let Story { bench, base, machine, history } = Story::new().await;
    let local = bench.open(base.path(), Access::Write).await.unwrap();
    let plain = noise(7, 1 << 16);
    let id = DomainKeys::new(&local.config().domain).id(ChunkKind::Data, &plain);
    let blob = with_compressor(Compression::None, |compressor| compressor.compress(ChunkKind::Data, &plain));
    let begin = Begin {
        point: PointId::random(&bench.world),
        parents: Vec::new(),
        holder: None,
        verification: Verification::Decode,
    };
    let (session, _) = local.begin(begin).await.unwrap();
    session.put(vec![(id, blob)]).await.unwrap();
    let work = folder();
    let incoming = || files(&work.path().join("incoming"));
    // The pack is written by a thread of its own.
    while {
        copy_folder(base.path(), work.path());
        incoming().is_empty()
    } {
        std::fs::remove_dir_all(work.path()).unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    drop(session);
    local.close().await.unwrap();
    let io = Arc::new(FaultIo::new(DiskIo));
    io.claim_space(Some(Space { free: 0, total: 10 << 40, files: u64::MAX }));
    let local = bench.open_with(work.path(), Access::Write, io.clone()).await.unwrap();
    assert!(incoming().is_empty());
    bench.assert_holds(&local, &history).await;
    io.claim_space(None);
    bench.backup(&local, &machine).await.unwrap();
    local.close().await.unwrap();
}
