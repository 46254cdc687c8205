//! What is around a repository: a clock that jumps, randomness that is always the same, and files that can die.

use mover::{Clock, Random, Timestamp};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use store::io::{DiskIo, Fault, FaultIo, Release};
use windlass_tests::around::{Around, Before, Operation, Then};

/// Goes on a little whenever it is looked at.
pub struct TestClock(AtomicI64);

impl TestClock {
    pub const fn new() -> Self {
        Self(AtomicI64::new(1_750_000_000 * SECOND_NS))
    }

    pub fn jump(&self, days: i64) {
        self.0.fetch_add(days * DAY_NS, Relaxed);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.fetch_add(TICK_NS, Relaxed))
    }
}

/// The same ids in each run of a history.
#[derive(Default)]
pub struct TestRandom(AtomicU64);

impl Random for TestRandom {
    fn fill(&self, bytes: &mut [u8]) {
        let drawn = self.0.fetch_add(1, Relaxed);
        blake3::Hasher::new().update(&drawn.to_le_bytes()).finalize_xof().fill(bytes);
    }
}

/// Files with one planned fault. When it kills the process, the views in RocksDB are what they are on disk at that moment:
/// dropping a database writes what it holds in memory, which nobody does who is killed.
pub struct Mortal {
    files: FaultIo<DiskIo>,
    repository: PathBuf,
    /// Where the views are copied to, and at which operation.
    death: Mutex<Option<(u64, PathBuf)>>,
}

impl Mortal {
    pub fn new(repository: &Path) -> Around<Self> {
        Around(Self { files: FaultIo::new(DiskIo), repository: repository.to_owned(), death: Mutex::default() })
    }

    /// Plans `fault` for the operation after `after` more, and where the views go should the process die in it.
    pub fn plan(&self, after: u64, fault: Fault, views: &Path) {
        if fault == Fault::Cut {
            *self.death.lock().expect("not poisoned") = Some((self.operations() + after, views.to_owned()));
        }
        self.files.plan(after, fault);
    }

    /// See [`FaultIo::hold`].
    pub fn hold(&self, after: u64) -> Release<'_, DiskIo> {
        self.files.hold(after)
    }

    /// See [`FaultIo::wait_held`].
    pub fn wait_held(&self) -> bool {
        self.files.wait_held()
    }

    pub fn operations(&self) -> u64 {
        self.files.operations()
    }
}

/// Copies what there is of the views. RocksDB may be at work: what has gone meanwhile is left out.
pub fn copy_views(from: &Path, to: &Path) {
    for view in VIEWS {
        let _ = fs::remove_dir_all(to.join(view));
        let Ok(entries) = fs::read_dir(from.join(view)) else { continue };
        fs::create_dir_all(to.join(view)).expect("a folder");
        for entry in entries {
            let path = entry.expect("an entry").path();
            match fs::copy(&path, to.join(view).join(path.file_name().expect("a name"))) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                copied => drop(copied.expect("a copy")),
            }
        }
    }
}

impl Before for Mortal {
    type Files = FaultIo<DiskIo>;

    fn files(&self) -> &FaultIo<DiskIo> {
        &self.files
    }

    fn before(&self, _: Operation<'_>) -> io::Result<Then> {
        let mut death = self.death.lock().expect("not poisoned");
        if death.as_ref().is_some_and(|(at, _)| self.operations() >= *at)
            && let Some((_, to)) = death.take()
        {
            copy_views(&self.repository, &to);
        }
        Ok(Then::Do)
    }
}

/// The folders of the views.
pub const VIEWS: [&str; 2] = ["index", "references"];
pub const DAY_NS: i64 = 24 * 3600 * SECOND_NS;
const SECOND_NS: i64 = 1_000_000_000;
/// Sessions are over a second old after a few jobs.
const TICK_NS: i64 = 100_000_000;
