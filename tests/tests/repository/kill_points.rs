//! A real process is killed at every operation on files that a whole life of a repository takes: backups, a forgotten
//! point, sweeps, a repaired chunk. `kill -9` comes before the operation, and once more in the middle of each write.
//!
//!     cargo nextest run --release -p windlass-tests --test repository kill_points                            some of them
//!     WINDLASS_KILLS=all cargo nextest run --release -p windlass-tests --test repository kill_points --no-capture
//!
//! The other process is this program once more, told by its environment what to do.

use mover::{Depth, PointChange, PointId, Repository, SweepOptions, World};
use std::io::{self, BufRead, BufReader, IoSlice, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use store::io::{DiskIo, Io};
use store::{Access, Local};
use windlass_tests::around::{Around, Before, Operation, Then};
use windlass_tests::fake::{Image, Machine, noise};
use windlass_tests::kept::{Bench, copy_folder, damage, files, folder, points, stored};

/// Set for the other process: the repository's directory.
const FOLDER: &str = "WINDLASS_TEST_FOLDER";
/// Before which operation it is killed, and in the middle of which write.
const AT: &str = "WINDLASS_TEST_AT";
const BLOCK: u64 = 64 << 10;

/// The real file system, for so many operations, or for so many writes and half of one.
struct Deadly {
    operations: AtomicU64,
    writes: AtomicU64,
}

impl Deadly {
    fn die() {
        let own = rustix::process::getpid();
        rustix::process::kill_process(own, rustix::process::Signal::KILL).expect("nobody survives that");
        loop {
            std::thread::park();
        }
    }
}

impl Before for Deadly {
    type Files = DiskIo;

    fn files(&self) -> &DiskIo {
        &DiskIo
    }

    fn before(&self, operation: Operation<'_>) -> io::Result<Then> {
        if let Operation::Append(file, parts) = operation
            && self.writes.fetch_sub(1, SeqCst) == 0
        {
            let whole: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
            DiskIo.append(file, &mut [IoSlice::new(&whole[..whole.len() / 2])])?;
            Self::die();
        }
        if self.operations.fetch_sub(1, SeqCst) == 0 {
            Self::die();
        }
        Ok(Then::Do)
    }
}

/// The machine after so many backups.
fn machine(world: &World, backups: u64) -> Machine {
    let machine = Machine::new(world, &[40 * BLOCK]);
    machine.write(0, 0, &noise(1, 24 * BLOCK));
    (1..backups).for_each(|round| machine.write(0, 4 * round * BLOCK, &noise(10 + round, 6 * BLOCK)));
    machine
}

/// Points that are there before the other process begins.
const BEFORE: u64 = 2;
/// Backups of the other process.
const BACKUPS: u64 = 2;

/// What the other process says before it does something, or when it is done.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    /// All that was to be done, in so many operations and writes.
    Done(u64, u64),
    /// This point is about to be forgotten.
    Forgets(PointId),
    /// This point was acknowledged.
    Committed(PointId),
}

impl Said {
    fn say(&self) {
        let line = match self {
            Self::Done(operations, writes) => format!("done {operations} {writes}"),
            Self::Forgets(point) => format!("forgets {point}"),
            Self::Committed(point) => format!("committed {point}"),
        };
        let mut out = io::stdout();
        writeln!(out, "\n{SAID}{line}").and_then(|()| out.flush()).unwrap();
    }

    fn read(line: &str) -> Self {
        let (what, of) = line.split_once(' ').expect("two words");
        let point = || PointId::from_str(of).expect("a point");
        match what {
            "done" => {
                let (operations, writes) = of.split_once(' ').expect("two numbers");
                Self::Done(operations.parse().expect("a number"), writes.parse().expect("a number"))
            }
            "forgets" => Self::Forgets(point()),
            "committed" => Self::Committed(point()),
            other => panic!("it says {other}"),
        }
    }
}

const SAID: &str = "other process: ";

/// The other process. Before it, a chunk that only the forgotten point does not have was damaged: its backup heals it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_process() {
    let (Ok(folder), Ok(at)) = (std::env::var(FOLDER), std::env::var(AT)) else { return };
    let (operations, writes) = at.split_once(' ').expect("two numbers");
    let (operations, writes): (u64, u64) = (operations.parse().unwrap(), writes.parse().unwrap());
    let io = Arc::new(Around(Deadly { operations: operations.into(), writes: writes.into() }));
    let bench = Bench::new();
    let local = bench.open_with(Path::new(&folder), Access::Write, io.clone()).await.unwrap();
    let oldest = points(&local).await[0].id;
    Said::Forgets(oldest).say();
    local.change_points(&[oldest], PointChange::Forget).await.unwrap();
    for backup in 1..=BACKUPS {
        bench.verify(&local, Depth::Decode).await;
        let made = bench.backup(&local, &machine(&bench.world, BEFORE + backup)).await.unwrap();
        Said::Committed(made.point.id).say();
        local.sweep(eager(), Arc::default()).await.unwrap();
    }
    local.close().await.unwrap();
    Said::Done(operations - io.operations.load(SeqCst), writes - io.writes.load(SeqCst)).say();
}

fn eager() -> SweepOptions {
    SweepOptions { repack_percent: 1, ..SweepOptions::default() }
}

/// Runs it until it dies; what it said.
fn run(folder: &Path, (operations, writes): (u64, u64)) -> Vec<Said> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["kill_points::other_process", "--exact", "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder)
        .env(AT, format!("{operations} {writes}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let said: Vec<Said> = lines.filter_map(|line| Some(Said::read(line.strip_prefix(SAID)?))).collect();
    let ended = child.wait().unwrap();
    let done = matches!(said.last(), Some(Said::Done(..)));
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), (!done).then_some(9), "{ended}: {said:?}");
    said
}

/// Two points of a machine, closed, and a chunk of both damaged.
async fn before(bench: &Bench, folder: &Path) -> Vec<PointId> {
    Local::init(folder, None, &bench.world).unwrap();
    let mut made = Vec::new();
    for backups in 1..=BEFORE {
        let local = bench.open(folder, Access::Write).await.unwrap();
        made.push(bench.backup(&local, &machine(&bench.world, backups)).await.unwrap().point.id);
        local.close().await.unwrap();
    }
    let config = store::format::config::ConfigFile::decode(&std::fs::read(folder.join("config")).unwrap()).unwrap();
    let block = noise(1, 24 * BLOCK).split_off(usize::try_from(20 * BLOCK).unwrap());
    let block = &block[..usize::try_from(BLOCK).unwrap()];
    let keys = chunker::DomainKeys::new(&config.config.domain);
    damage(folder, keys.id(chunker::ChunkKind::Data, block));
    made
}

/// What must hold after it: what was acknowledged is there and whole, nothing else is, and work goes on.
async fn check(bench: &Bench, folder: &Path, made: &[PointId], said: &[Said], what: &str) {
    let local = bench.open(folder, Access::Write).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(files(&folder.join("incoming")).len(), 0, "{what}");
    let there: Vec<PointId> = points(&local).await.iter().map(|point| point.id).collect();
    let forgets = said.iter().any(|it| *it == Said::Forgets(made[0]));
    let committed = said.iter().filter_map(|it| if let Said::Committed(point) = it { Some(*point) } else { None });
    let acknowledged: Vec<PointId> = made.iter().copied().chain(committed).collect();
    for (at, point) in acknowledged.iter().enumerate() {
        assert!(there.contains(point) || (at == 0 && forgets), "{what}: point {at} is gone");
    }
    // One may be there that nobody was told of.
    let new: Vec<PointId> = there.iter().filter(|point| !acknowledged.contains(point)).copied().collect();
    assert!(new.len() <= 1, "{what}: {new:?}");
    // It heals what was damaged, if that was not done yet.
    let all: Vec<PointId> = acknowledged.into_iter().chain(new).collect();
    let after = machine(&bench.world, all.len() as u64 + 1);
    bench.verify(&local, Depth::Decode).await;
    let last = bench.backup(&local, &after).await.unwrap_or_else(|error| panic!("{what}: {error}")).point.id;
    local.sweep(eager(), Arc::default()).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    for (at, point) in all.iter().chain([&last]).enumerate() {
        if at == 0 && forgets {
            continue;
        }
        let images: Vec<Image> = machine(&bench.world, at as u64 + 1).images();
        let restored = bench.restore(&local, *point, &images).await;
        restored.unwrap_or_else(|error| panic!("{what}: point {at}: {error}"));
    }
    let report = bench.verify(&local, Depth::Decode).await;
    assert!(report.errors.is_empty(), "{what}: {:?}", report.errors);
    local.close().await.unwrap();
    assert!(stored(folder).values().all(|times| *times == 1), "{what}: something is stored twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_operation() {
    let (bench, base, work) = (Bench::new(), folder(), folder());
    let made = before(&bench, base.path()).await;
    let whole = work.path().join("whole");
    copy_folder(base.path(), &whole);
    let said = run(&whole, (u64::MAX, u64::MAX));
    check(&bench, &whole, &made, &said, "not killed").await;
    let Some(&Said::Done(operations, writes)) = said.last() else { panic!("{said:?}") };
    let every = match std::env::var("WINDLASS_KILLS") {
        Ok(all) => {
            assert_eq!(all, "all", "WINDLASS_KILLS is all, or not set");
            1
        }
        Err(_) => ((operations + writes) / KILLS).max(1),
    };
    let moments = (0..operations).map(|at| (at, u64::MAX)).chain((0..writes).map(|at| (u64::MAX, at)));
    // Others each time: every one sooner or later.
    let first = u64::from(bench.world.random_bytes::<1>()[0]) % every;
    let mut kills = 0;
    for moment in moments.skip(usize::try_from(first).unwrap()).step_by(usize::try_from(every).unwrap()) {
        let what = match moment {
            (at, u64::MAX) => format!("before operation {at} of {operations}"),
            (_, at) => format!("in the middle of write {at} of {writes}"),
        };
        let folder = work.path().join("killed");
        copy_folder(base.path(), &folder);
        let said = run(&folder, moment);
        kills += u64::from(!matches!(said.last(), Some(Said::Done(..))));
        check(&bench, &folder, &made, &said, &what).await;
        std::fs::remove_dir_all(&folder).unwrap();
    }
    println!("total: {kills} kills, at {operations} operations and in {writes} writes");
    assert!(kills > 0);
}

/// Moments that are tried in the usual run.
const KILLS: u64 = 48;
