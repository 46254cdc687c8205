//! Faults at the n-th file operation.

use super::Io;
use std::fs::File;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Mutex;

/// What happens at the chosen operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails once with an I/O error, without effect.
    Fail,
    /// It fails once because the disk is full; a write leaves half of its bytes.
    Full,
    /// It takes effect, and its answer is lost: the caller sees an error.
    Unclear,
    /// The process dies in it: a write leaves half of its bytes, and nothing has an effect from then on.
    Cut,
}

/// Real files with one planned fault.
pub struct FaultIo<I> {
    inner: I,
    plan: Mutex<Plan>,
}

#[derive(Default)]
struct Plan {
    operations: u64,
    fault: Option<(u64, Fault)>,
    dead: bool,
}

enum Verdict {
    Pass,
    Error(Fault),
    Dead,
}

impl<I: Io> FaultIo<I> {
    /// Passes everything on to `inner` and counts, until [`Self::plan`].
    pub fn new(inner: I) -> Self {
        Self { inner, plan: Mutex::default() }
    }

    /// Plans `fault` for the operation that comes after `operations` more.
    pub fn plan(&self, operations: u64, fault: Fault) {
        let mut plan = self.plan.lock().expect("not poisoned");
        plan.fault = Some((plan.operations + operations, fault));
    }

    /// Operations so far.
    pub fn operations(&self) -> u64 {
        self.plan.lock().expect("not poisoned").operations
    }

    fn verdict(&self) -> Verdict {
        let mut plan = self.plan.lock().expect("not poisoned");
        if plan.dead {
            return Verdict::Dead;
        }
        let at = plan.operations;
        plan.operations += 1;
        match plan.fault {
            Some((when, fault)) if when == at => {
                plan.dead = fault == Fault::Cut;
                Verdict::Error(fault)
            }
            _ => Verdict::Pass,
        }
    }

    fn run<T>(&self, work: impl Fn() -> io::Result<T>) -> io::Result<T> {
        match self.verdict() {
            Verdict::Pass => work(),
            Verdict::Error(Fault::Unclear) => work().and_then(|_| Err(io::Error::other("planned: answer lost"))),
            Verdict::Error(Fault::Full) => Err(io::ErrorKind::StorageFull.into()),
            Verdict::Error(fault) => Err(io::Error::other(format!("planned: {fault:?}"))),
            Verdict::Dead => Err(io::Error::other("planned: the process is dead")),
        }
    }
}

impl<I: Io> Io for FaultIo<I> {
    fn create(&self, path: &Path) -> io::Result<File> {
        self.run(|| self.inner.create(path))
    }

    fn create_large(&self, path: &Path) -> io::Result<File> {
        self.run(|| self.inner.create_large(path))
    }

    fn append(&self, file: &File, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        match self.verdict() {
            Verdict::Pass => self.inner.append(file, parts),
            Verdict::Dead => Err(io::Error::other("planned: the process is dead")),
            Verdict::Error(fault) => {
                let whole: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
                let kept = match fault {
                    Fault::Fail => 0,
                    Fault::Full | Fault::Cut => whole.len() / 2,
                    Fault::Unclear => whole.len(),
                };
                self.inner.append(file, &mut [IoSlice::new(&whole[..kept])])?;
                Err(if fault == Fault::Full { io::ErrorKind::StorageFull.into() } else { io::Error::other("planned") })
            }
        }
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.run(|| self.inner.sync(file))
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.run(|| self.inner.link(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.run(|| self.inner.remove(path))
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        self.run(|| self.inner.make_dir(path))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.run(|| self.inner.sync_dir(path))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.run(|| self.inner.list(path))
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        self.run(|| self.inner.open(path))
    }

    fn length(&self, file: &File) -> io::Result<u64> {
        self.run(|| self.inner.length(file))
    }

    fn read_at(&self, file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.run(|| self.inner.read_at(file, offset, length))
    }
}
