//! Random histories of a repository and its machines: the real store on real files beside a small model in memory, which
//! says after each operation what must be there. What is drawn follows from a seed.
//!
//!     cargo nextest run --release -p windlass-tests --test model                                       a minute
//!     WINDLASS_MODEL_OPERATIONS=1000000 cargo nextest run --release -p windlass-tests --test model fresh --no-capture
//!     WINDLASS_MODEL_SEED=17 cargo nextest run --release -p windlass-tests --test model fresh --no-capture
//!
//! The second runs until there were so many operations, and tells the seeds of what failed; the last replays one of them.

mod coverage;
mod expected;
mod operation;
mod outer;
mod system;

use mover::TrackingWish;
use operation::{Histories, Job, Operation, Outlook, Range};
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};
use system::System;
use tokio::runtime::{Builder, Runtime};

/// The test of one history.
struct Model;

/// A repository and what it runs on.
struct Case {
    system: System,
    runtime: Runtime,
}

impl StateMachineTest for Model {
    type SystemUnderTest = Case;
    type Reference = Histories;

    fn init_test(_: &Outlook) -> Case {
        coverage::begin();
        // One thread and those for files.
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let system = runtime.block_on(System::new());
        Case { system, runtime }
    }

    fn apply(mut case: Case, _: &Outlook, operation: Operation) -> Case {
        case.runtime.block_on(case.system.apply(&operation));
        case
    }

    fn teardown(case: Case, _: Outlook) {
        case.runtime.block_on(case.system.finish());
    }
}

/// One history of `steps` operations that follows from `seed`; what is wrong with it, made as short as can be.
fn history(seed: u64, steps: usize) -> Result<(), String> {
    // Each of hundreds of shorter histories that fail too would tell its stack.
    std::panic::set_hook(Box::new(|panic| println!("{panic}")));
    let config = Config { cases: 1, failure_persistence: None, max_shrink_iters: SHRINK_MAX, ..Config::default() };
    let bytes = *blake3::hash(&seed.to_le_bytes()).as_bytes();
    let mut runner = TestRunner::new_with_rng(config.clone(), TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let histories = Histories::sequential_strategy(steps);
    let ran = runner.run(&histories, |(outlook, operations, seen)| {
        Model::test_sequential(config.clone(), outlook, operations, seen);
        Ok(())
    });
    ran.map_err(|error| match error {
        TestError::Abort(why) => format!("given up: {why}"),
        TestError::Fail(why, (_, operations, _)) => {
            let lines: Vec<String> = operations.iter().map(|operation| format!("    {operation:?}")).collect();
            format!("{why}\n{}", lines.join("\n"))
        }
    })
}

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text:?}")))
}

/// Histories of these seeds until there were so many operations.
fn run(seeds: impl Iterator<Item = u64>, operations: u64) {
    let mut bad = Vec::new();
    for seed in seeds {
        if coverage::operations() >= operations {
            break;
        }
        if let Err(what) = history(seed, STEPS) {
            println!("seed {seed}: {what}");
            println!("again: WINDLASS_MODEL_SEED={seed} {REPLAY}");
            bad.push(seed);
            if bad.len() == BAD_MAX {
                break;
            }
        }
    }
    coverage::tell();
    assert_eq!(bad, Vec::<u64>::new(), "seeds that failed");
}

/// Always the same; and everything happens in it.
#[test]
fn fixed() {
    run(0.., FIXED_OPERATIONS);
    assert_eq!(coverage::never(EFFECTS), Vec::<String>::new(), "never happened");
}

/// New ones each time, or the one of `WINDLASS_MODEL_SEED`.
#[test]
fn fresh() {
    if let Some(seed) = from_environment("WINDLASS_MODEL_SEED") {
        return run(std::iter::once(seed), u64::MAX);
    }
    let first = u64::from_le_bytes(mover::World::system().random_bytes()) >> 16;
    run(first.., from_environment("WINDLASS_MODEL_OPERATIONS").unwrap_or(FRESH_OPERATIONS));
}

/// A history that was found once, and does not depend on chance.
fn replay(operations: &[Operation]) {
    let mut case = Model::init_test(&Outlook::default());
    for operation in operations {
        case.runtime.block_on(case.system.apply(operation));
    }
    Model::teardown(case, Outlook::default());
}

/// A machine whose newest manifest is damaged can be backed up.
#[test]
fn damaged_manifest() {
    let backup = || Operation::Run(Job::Backup { machine: 0, wish: TrackingWish::Auto });
    // There is one pack, with the manifest alone.
    replay(&[backup(), Operation::Corrupt { pack: 0, at: 0, bit: 0, verify: true }, backup()]);
}

/// A machine can be backed up whatever is damaged in the header of a pack, be it known or not.
#[test]
fn damaged_header() {
    let backup = || Operation::Run(Job::Backup { machine: 0, wish: TrackingWish::Auto });
    for (pack, at) in (0..2).flat_map(|pack| (8..16).map(move |at| (pack, at))) {
        for verify in [false, true] {
            let at_all = Range { machine: 0, disk: 0, block: 0, blocks: 3, odd: false };
            let write = |seed| Operation::Write { at: at_all, seed, tracked: true };
            let corrupt = Operation::Corrupt { pack, at, bit: 3, verify };
            replay(&[write(1), backup(), corrupt, write(2), Operation::Reopen, backup()]);
        }
    }
}

/// What `fixed` must have seen.
const EFFECTS: &[&str] = &[
    "write",
    "discard",
    "untracked write",
    "untracked discard",
    "a lie of the tracking showed",
    "backup",
    "Full of a disk",
    "Fingerprint of a disk",
    "Bitmap of a disk",
    "backup refused: Tracking",
    "backup dropped in the middle",
    "backup beside backup",
    "a job stood still beside another",
    "forget",
    "unforget",
    "unforget refused: NotFound",
    "sweep",
    "dry run",
    "sweep made points final",
    "sweep deleted packs",
    "sweep packed again",
    "sweep waits for sessions",
    "sweep beside backup",
    "sweep beside forget",
    "sweep beside unforget",
    "verify",
    "restore",
    "rebuild",
    "killed",
    "Cut in opening",
    "Cut in backup",
    "Cut in sweep",
    "Full in backup",
    "Full in sweep",
    "Fail in backup",
    "Fail in sweep",
    "Unclear in backup",
    "Unclear in sweep",
    "{Listed, Gone} was {Gone}",
    "{Forgotten, Gone} was {Forgotten}",
    "{Forgotten, Gone} was {Gone}",
    "a byte changed",
    "verify found damage",
    "restore refused: Integrity",
    "healed by a backup",
    "views lost",
    "views rolled back",
    "clock went back",
    "clock went ahead",
    "reader opened",
    "reader released",
    "reader read what is forgotten",
    "reopened",
];
const STEPS: usize = 60;
const FIXED_OPERATIONS: u64 = 4_000;
const FRESH_OPERATIONS: u64 = 3_000;
/// Histories that fail before it is enough.
const BAD_MAX: usize = 5;
/// Shorter histories that are tried for each of them.
const SHRINK_MAX: u32 = 400;
const REPLAY: &str = "cargo nextest run --release -p windlass-tests --test model fresh --no-capture";
