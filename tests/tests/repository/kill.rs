//! Real processes: killed in the middle of their work, side by side, and with their index gone wrong.
//!
//! The other process is this program once more, told by its environment what to do.

use mover::Depth;
use mover::{ErrorKind, PointChange, PointId, Repository, SweepOptions};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use store::{Access, Local};
use windlass_tests::fake::{Image, Machine, noise};
use windlass_tests::kept::{Bench, History, copy_folder, folder, points, stored};

/// Set for the other process: the repository's directory.
const FOLDER: &str = "WINDLASS_TEST_FOLDER";
/// How many points there are already.
const ROUND: &str = "WINDLASS_TEST_ROUND";
/// Set when it is to forget and sweep too.
const SWEEPS: &str = "WINDLASS_TEST_SWEEPS";

/// The machine after so many rounds.
fn machine(bench: &Bench, rounds: u64) -> Machine {
    let machine = Machine::new(&bench.world, &[64 << 20]);
    (0..=rounds).for_each(|round| work(&machine, round));
    machine
}

fn work(machine: &Machine, round: u64) {
    // A few MiB each time, mostly new, partly what was there before.
    machine.write(0, (round * 7 % 50) << 20, &noise(round, 3 << 20));
    machine.write(0, 60 << 20, &noise(round / 3, 1 << 20));
}

/// The other process: backs up again and again, one line for each acknowledged point. Before the first it says that it
/// has opened the repository, and waits to be told to go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_process() {
    let (Ok(folder), Ok(round)) = (std::env::var(FOLDER), std::env::var(ROUND)) else { return };
    let bench = Bench::new();
    let local = bench.open(Path::new(&folder), Access::Write).await.unwrap();
    let say = |line: &str| {
        let mut out = std::io::stdout();
        writeln!(out, "\n{SAID}{line}").and_then(|()| out.flush()).unwrap();
    };
    say("open");
    let mut told = String::new();
    std::io::stdin().read_line(&mut told).unwrap();
    let mut round: u64 = round.parse().unwrap();
    let machine = machine(&bench, round);
    loop {
        let point = bench.backup(&local, &machine).await.unwrap().point.id;
        say(&point.to_string());
        round += 1;
        work(&machine, round);
        if std::env::var_os(SWEEPS).is_some() {
            let there = points(&local).await;
            for oldest in there.iter().take(there.len().saturating_sub(3)) {
                say(&format!("{FORGET}{}", oldest.id));
                local.change_points(&[oldest.id], PointChange::Forget).await.unwrap();
            }
            local.sweep(SweepOptions { repack_percent: 10, ..SweepOptions::default() }, Arc::default()).await.unwrap();
        }
    }
}

const FORGET: &str = "forget ";

const SAID: &str = "other process: ";

struct Other {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Other {
    fn start(folder: &Path, round: usize) -> Self {
        Self::started(Command::new(std::env::current_exe().unwrap()).env(FOLDER, folder).env(ROUND, round.to_string()))
    }

    fn start_sweeping(folder: &Path, round: usize) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        Self::started(command.env(FOLDER, folder).env(ROUND, round.to_string()).env(SWEEPS, "1"))
    }

    fn started(command: &mut Command) -> Self {
        let mut child = command
            .args(["kill::other_process", "--exact", "--nocapture", "--test-threads=1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (say, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Some(said) = line.strip_prefix(SAID) {
                    let _ = say.send(said.to_owned());
                }
            }
        });
        let other = Self { child, input, lines };
        assert_eq!(other.lines.recv_timeout(Duration::from_secs(60)).unwrap(), "open");
        other
    }

    fn go_on(&mut self) {
        writeln!(self.input).and_then(|()| self.input.flush()).unwrap();
    }

    fn kill(mut self) -> Vec<String> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        // The reader ends with the pipe.
        self.lines.iter().collect()
    }
}

/// Every round's image, by the round's number.
fn images(bench: &Bench, rounds: usize) -> Vec<Vec<Image>> {
    let machine = machine(bench, 0);
    let mut images = vec![machine.images()];
    for round in 1..rounds as u64 {
        work(&machine, round);
        images.push(machine.images());
    }
    images
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_the_middle_of_sweeps_what_is_kept_is_whole() {
    const KILLS: u64 = 25;
    let (bench, kept) = (Bench::new(), folder());
    Local::init(kept.path(), None, &bench.world).unwrap();
    let (mut rounds, mut forgotten): (BTreeMap<PointId, usize>, BTreeSet<String>) = Default::default();
    let mut swept = 0;
    for kill in 0..KILLS {
        let mut other = Other::start_sweeping(kept.path(), rounds.len());
        other.go_on();
        let moment = u64::from_le_bytes(noise(1000 + kill, 8).try_into().unwrap());
        std::thread::sleep(Duration::from_micros(moment % 400_000));
        let said = other.kill();
        let local = bench.open(kept.path(), Access::Write).await.unwrap();
        let there = points(&local).await;
        for line in said {
            match line.strip_prefix(FORGET) {
                Some(id) => drop(forgotten.insert(id.to_owned())),
                None => drop(rounds.insert(line.parse().unwrap(), rounds.len())),
            }
        }
        // The last one may be there without having been acknowledged.
        for point in &there {
            let round = rounds.len();
            rounds.entry(point.id).or_insert(round);
        }
        let listed: BTreeSet<PointId> = there.iter().map(|point| point.id).collect();
        let lost = rounds.keys().find(|id| !listed.contains(id) && !forgotten.contains(&id.to_string()));
        assert_eq!(lost, None, "kill {kill}: a point that nobody forgot is gone");
        let images = images(&bench, rounds.len());
        for point in &there {
            let restored = bench.restore(&local, point.id, &images[rounds[&point.id]]).await;
            restored.unwrap_or_else(|error| panic!("kill {kill}, point {}: {error}", point.id));
        }
        let report = bench.verify(&local, Depth::Structure).await;
        assert!(report.errors.is_empty(), "kill {kill}: {:?}", report.errors);
        if kill % 5 == 4 {
            let eager = SweepOptions { repack_percent: 1, ..SweepOptions::default() };
            swept += local.sweep(eager, Arc::default()).await.unwrap().packs_deleted;
            let report = bench.verify(&local, Depth::Decode).await;
            assert!(report.errors.is_empty(), "kill {kill}: {:?}", report.errors);
            assert!(stored(kept.path()).values().all(|times| *times == 1), "kill {kill}");
        }
        local.close().await.unwrap();
    }
    assert!(!forgotten.is_empty() && swept > 0 && rounds.len() > 10, "{} points", rounds.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_what_was_acknowledged_is_there() {
    const KILLS: u64 = 30;
    let (bench, kept) = (Bench::new(), folder());
    Local::init(kept.path(), None, &bench.world).unwrap();
    let mut all: Vec<PointId> = Vec::new();
    for kill in 0..KILLS {
        let mut other = Other::start(kept.path(), all.len());
        other.go_on();
        // Some moment: the first steps of a backup, deep inside one, or some backups later.
        let moment = u64::from_le_bytes(noise(kill, 8).try_into().unwrap());
        std::thread::sleep(Duration::from_micros(moment % if kill % 3 == 0 { 5_000 } else { 120_000 }));
        let acknowledged = other.kill();
        let started = Instant::now();
        let local = bench.open(kept.path(), Access::Write).await.unwrap();
        let took = started.elapsed();
        assert!(took < Duration::from_secs(5), "opening took {took:?} after kill {kill}");
        assert_eq!(fs::read_dir(kept.path().join("incoming")).unwrap().count(), 0);
        let listed: Vec<PointId> = points(&local).await.iter().map(|point| point.id).collect();
        assert_eq!(listed[..all.len()], all, "kill {kill}");
        let new = &listed[all.len()..];
        let said: Vec<String> = new.iter().take(acknowledged.len()).map(PointId::to_string).collect();
        assert_eq!(said, acknowledged, "kill {kill}: an acknowledged point is gone");
        assert!(new.len() <= acknowledged.len() + 1, "kill {kill}");
        let images = images(&bench, listed.len());
        for (point, images) in listed.iter().zip(&images).skip(all.len()) {
            bench.restore(&local, *point, images).await.unwrap();
        }
        all = listed;
        if kill % 2 == 0 {
            local.close().await.unwrap();
        }
    }
    let local = bench.open(kept.path(), Access::Write).await.unwrap();
    let history: History = all.iter().copied().zip(images(&bench, all.len())).collect();
    assert!(history.len() > 3, "{} points", history.len());
    bench.assert_holds(&local, &history).await;
    let report = bench.verify(&local, Depth::Decode).await;
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    local.close().await.unwrap();
    for (id, times) in stored(kept.path()) {
        assert_eq!(times, 1, "chunk {id} is stored more than once");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_writes_and_others_read() {
    let (bench, kept) = (Bench::new(), folder());
    Local::init(kept.path(), None, &bench.world).unwrap();
    let mut other = Other::start(kept.path(), 0);
    let busy = bench.open(kept.path(), Access::Write).await.err().expect("it is taken");
    assert_eq!(busy.kind(), ErrorKind::Busy);
    assert!(busy.to_string().contains(&format!("process {}", other.child.id())), "{busy}");
    let reader = bench.open(kept.path(), Access::Read).await.unwrap();
    assert!(points(&reader).await.is_empty());
    other.go_on();
    // What the writer has acknowledged this reader sees, without opening again (R20).
    let images = images(&bench, 4);
    let mut history = History::new();
    for images in images {
        let said = other.lines.recv_timeout(Duration::from_secs(60)).unwrap();
        let new = points(&reader).await.into_iter().find(|point| point.id.to_string() == said).expect("it is listed");
        bench.restore(&reader, new.id, &images).await.unwrap();
        history.push((new.id, images));
    }
    let report = bench.verify(&reader, Depth::Decode).await;
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    other.kill();
    // The lock went with its holder.
    let writer = bench.open(kept.path(), Access::Write).await.unwrap();
    for (point, images) in &history {
        bench.restore(&writer, *point, images).await.unwrap();
    }
}

type Harm<'a> = Box<dyn Fn() + 'a>;

/// A repository of two points, and its index as it was after the first.
async fn with_old_index(bench: &Bench) -> (tempfile::TempDir, tempfile::TempDir, Machine, History) {
    let (kept, old) = (folder(), folder());
    Local::init(kept.path(), None, &bench.world).unwrap();
    let machine = machine(bench, 0);
    let mut history = History::new();
    for round in 1..3 {
        let local = bench.open(kept.path(), Access::Write).await.unwrap();
        history.push((bench.backup(&local, &machine).await.unwrap().point.id, machine.images()));
        local.close().await.unwrap();
        if round == 1 {
            copy_folder(&kept.path().join("index"), &old.path().join("index"));
            work(&machine, round);
        }
    }
    (kept, old, machine, history)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_becomes_of_the_index_nothing_is_lost() {
    let bench = Bench::new();
    let (stranger, _, _, _) = with_old_index(&bench).await;
    let (kept, old, machine, history) = with_old_index(&bench).await;
    let index = kept.path().join("index");
    let replaced_by = |folder: &Path| {
        fs::remove_dir_all(&index).unwrap();
        copy_folder(&folder.join("index"), &index);
    };
    let each_file = |change: &dyn Fn(&Path)| {
        for file in windlass_tests::kept::files(&index) {
            change(&index.join(file));
        }
    };
    let harms: [(&str, Harm<'_>); 8] = [
        ("deleted", Box::new(|| fs::remove_dir_all(&index).unwrap())),
        ("rolled back", Box::new(|| replaced_by(old.path()))),
        ("of another repository", Box::new(|| replaced_by(stranger.path()))),
        (
            "truncated",
            Box::new(|| {
                each_file(&|path| {
                    let half = fs::metadata(path).unwrap().len() / 2;
                    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(half).unwrap();
                })
            }),
        ),
        ("emptied", Box::new(|| each_file(&|path| fs::write(path, b"").unwrap()))),
        ("garbage", Box::new(|| each_file(&|path| fs::write(path, noise(5, 5_000)).unwrap()))),
        (
            "without its newest files",
            Box::new(|| {
                for file in windlass_tests::kept::files(&index).iter().filter(|file| file.extension().is_some()) {
                    fs::remove_file(index.join(file)).unwrap();
                }
            }),
        ),
        (
            "a file",
            Box::new(|| {
                fs::remove_dir_all(&index).unwrap();
                fs::write(&index, b"not a folder").unwrap();
            }),
        ),
    ];
    for (what, harm) in harms {
        harm();
        for access in [Access::Read, Access::Write] {
            let local = bench.open(kept.path(), access).await.unwrap_or_else(|error| panic!("{what}: {error}"));
            for (point, images) in &history {
                bench.restore(&local, *point, images).await.unwrap_or_else(|error| panic!("{what}: {error}"));
            }
            if access == Access::Read {
                continue;
            }
            // Everything is still known: another machine with the same disk brings nothing.
            let options = windlass_tests::conformance::options(&what.replace(' ', "-"));
            let progress = mover::Progress::default();
            let twin = machine.cloned().snapshot();
            let again = mover::backup(&local, twin, &options, &bench.pool, &bench.world, &progress).await.unwrap();
            assert_eq!(again.chunks_new, 0, "{what}");
            let totals = local.rebuild_index(Default::default()).await.unwrap();
            assert_eq!(totals.packs, local.stats().await.unwrap().packs);
            bench.restore(&local, history[1].0, &history[1].1).await.unwrap();
            local.close().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_ends_before_what_was_seen_is_refused_until_accepted() {
    let bench = Bench::new();
    let (kept, before) = (folder(), folder());
    Local::init(kept.path(), None, &bench.world).unwrap();
    let machine = machine(&bench, 0);
    let mut history = History::new();
    for round in 1..4 {
        let local = bench.open(kept.path(), Access::Write).await.unwrap();
        history.push((bench.backup(&local, &machine).await.unwrap().point.id, machine.images()));
        local.close().await.unwrap();
        work(&machine, round);
        if round == 1 {
            copy_folder(&kept.path().join("log"), &before.path().join("log"));
        }
    }
    // R15: the log of yesterday under the index of today.
    fs::remove_dir_all(kept.path().join("log")).unwrap();
    copy_folder(&before.path().join("log"), &kept.path().join("log"));
    for access in [Access::Write, Access::Read] {
        let refused = bench.open(kept.path(), access).await.err().expect("it was rolled back");
        assert_eq!(refused.kind(), ErrorKind::RolledBack, "{refused}");
    }
    let accept = || Local::accept_rollback(kept.path(), bench.pool.clone(), bench.world.clone());
    let given_up = accept().await.unwrap();
    let local = bench.open(kept.path(), Access::Write).await.unwrap();
    bench.assert_holds(&local, &history[..1].to_vec()).await;
    assert!(local.has_been(given_up).await.unwrap(), "it was, and is known to be gone");
    let again = bench.backup(&local, &machine).await.unwrap().point.id;
    bench.assert_holds(&local, &vec![history[0].clone(), (again, machine.images())]).await;
    local.close().await.unwrap();
    assert_eq!(accept().await.unwrap_err().kind(), ErrorKind::Usage);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_refuses_a_source_that_was_rolled_back() {
    let bench = Bench::new();
    let (from, to, old) = (folder(), folder(), folder());
    let config = Local::init(from.path(), None, &bench.world).unwrap();
    Local::init(to.path(), Some(&config), &bench.world).unwrap();
    let machine = machine(&bench, 0);
    let copied = async || {
        let (source, target) =
            (bench.open(from.path(), Access::Write).await?, bench.open(to.path(), Access::Write).await?);
        let point = points(&source).await.pop().unwrap();
        let progress = mover::Progress::default();
        let made = mover::copy(&source, &target, &point, mover::Verification::Decode, &progress).await;
        source.close().await?;
        target.close().await?;
        made
    };
    let backed_up = async || {
        let local = bench.open(from.path(), Access::Write).await.unwrap();
        bench.backup(&local, &machine).await.unwrap();
        local.close().await.unwrap();
    };
    backed_up().await;
    copy_folder(from.path(), old.path());
    work(&machine, 1);
    backed_up().await;
    assert_eq!(copied().await.unwrap().points, 1);
    assert_eq!(copied().await.unwrap().points, 0, "it goes on");
    // The source as a whole is set back, its index too: it cannot know, but the copy does.
    let newer = folder();
    copy_folder(from.path(), newer.path());
    fs::remove_dir_all(from.path()).unwrap();
    copy_folder(old.path(), from.path());
    assert_eq!(copied().await.unwrap_err().kind(), ErrorKind::RolledBack);
    // Longer than it was, it is still another one.
    for round in 5..9 {
        work(&machine, round);
        backed_up().await;
    }
    assert_eq!(copied().await.unwrap_err().kind(), ErrorKind::RolledBack);
    // With the newer files back all is well.
    fs::remove_dir_all(from.path()).unwrap();
    copy_folder(newer.path(), from.path());
    work(&machine, 9);
    backed_up().await;
    assert_eq!(copied().await.unwrap().points, 1);
}

/// R15, and what a sweep did after the last record that is left: what it packed again is nowhere else any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packs_that_only_lost_records_named_are_taken_back() {
    let (bench, kept) = (Bench::new(), folder());
    Local::init(kept.path(), None, &bench.world).unwrap();
    let machine = machine(&bench, 0);
    let local = bench.open(kept.path(), Access::Write).await.unwrap();
    let first = bench.backup(&local, &machine).await.unwrap().point.id;
    // The first MiB is the last one too.
    machine.write(0, 1 << 20, &noise(99, 1 << 20));
    let second = (bench.backup(&local, &machine).await.unwrap().point.id, machine.images());
    let before = local.end().sequence;
    local.change_points(&[first], PointChange::Forget).await.unwrap();
    let eager = SweepOptions { repack_percent: 1, ..SweepOptions::default() };
    let swept = local.sweep(eager, Arc::default()).await.unwrap();
    assert!(swept.packs_deleted > 0 && swept.bytes_repacked > 0, "{swept:?}");
    local.close().await.unwrap();
    let record = |sequence: u64| kept.path().join(format!("log/{:020}/{sequence:020}", 0));
    fs::remove_file(record(before + 1)).unwrap();
    let refused = bench.open(kept.path(), Access::Write).await.err().expect("a record is lost");
    assert_eq!(refused.kind(), ErrorKind::Integrity, "{refused}");
    Local::accept_rollback(kept.path(), bench.pool.clone(), bench.world.clone()).await.unwrap();
    let local = bench.open(kept.path(), Access::Write).await.unwrap();
    bench.restore(&local, second.0, &second.1).await.unwrap();
    assert!(points(&local).await.iter().any(|point| point.id == first), "nobody has forgotten it");
    // What it held alone is gone, so it has to go too.
    local.change_points(&[first], PointChange::Forget).await.unwrap();
    local.sweep(eager, Arc::default()).await.unwrap();
    bench.assert_holds(&local, &vec![second]).await;
    local.close().await.unwrap();
}
