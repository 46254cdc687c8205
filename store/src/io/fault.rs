//! Faults at the n-th file operation, and an n-th operation that waits.

use super::{Io, Names, Space};
use std::fs::File;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::{Condvar, Mutex};

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
    /// Wakes waiting threads after every change of [`Plan::hold`].
    hold_changed: Condvar,
}

#[derive(Default)]
struct Plan {
    operations: u64,
    fault: Option<(u64, Fault)>,
    dead: bool,
    hold: Hold,
    space: Option<Space>,
    names: Names,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Hold {
    #[default]
    None,
    /// The operation of this number is to wait.
    Planned(u64),
    /// The operation is waiting.
    Held,
}

/// Ends the waiting when dropped, so that a test that fails does not hang.
pub struct Release<'a, I>(&'a FaultIo<I>);

impl<I> Drop for Release<'_, I> {
    fn drop(&mut self) {
        self.0.set_hold(Hold::None);
    }
}

enum Verdict {
    Pass,
    Error(Fault),
    Dead,
}

impl<I> FaultIo<I> {
    /// Lets `operations` more operations pass and makes the next one wait, before it has any effect, until the returned
    /// value is dropped. Operations on other threads go on.
    #[must_use = "dropped at once it holds nothing"]
    pub fn hold(&self, operations: u64) -> Release<'_, I> {
        let at = self.plan.lock().expect("not poisoned").operations + operations;
        self.set_hold(Hold::Planned(at));
        Release(self)
    }

    /// Waits until the operation is reached, and gives true. Gives false when no operation is held or planned any more.
    /// Blocking.
    pub fn wait_held(&self) -> bool {
        let plan = self.plan.lock().expect("not poisoned");
        let planned = |plan: &mut Plan| matches!(plan.hold, Hold::Planned(_));
        self.hold_changed.wait_while(plan, planned).expect("not poisoned").hold == Hold::Held
    }

    fn set_hold(&self, hold: Hold) {
        self.plan.lock().expect("not poisoned").hold = hold;
        self.hold_changed.notify_all();
    }
}

impl<I: Io> FaultIo<I> {
    /// Passes everything on to `inner` and counts, until [`Self::plan`].
    pub fn new(inner: I) -> Self {
        Self { inner, plan: Mutex::default(), hold_changed: Condvar::new() }
    }

    /// Plans `fault` for the operation that comes after `operations` more.
    pub fn plan(&self, operations: u64, fault: Fault) {
        let mut plan = self.plan.lock().expect("not poisoned");
        plan.fault = Some((plan.operations + operations, fault));
    }

    /// Makes the file system seem to have this much space left; none for its real space.
    pub fn claim_space(&self, space: Option<Space>) {
        self.plan.lock().expect("not poisoned").space = space;
    }

    /// Refuses every way of giving a name that comes before `names` in the order of [`Names`], as some file systems do.
    pub fn name_by(&self, names: Names) {
        self.plan.lock().expect("not poisoned").names = names;
    }

    fn names(&self) -> Names {
        self.plan.lock().expect("not poisoned").names
    }

    /// Number of operations so far.
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
        if plan.hold == Hold::Planned(at) {
            plan.hold = Hold::Held;
            self.hold_changed.notify_all();
            plan = self.hold_changed.wait_while(plan, |plan| plan.hold == Hold::Held).expect("not poisoned");
        }
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
        match self.names() {
            Names::Links => self.run(|| self.inner.link(from, to)),
            _ => Err(rustix::io::Errno::PERM.into()),
        }
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        match self.names() {
            Names::Replaces => Err(rustix::io::Errno::INVAL.into()),
            _ => self.run(|| self.inner.rename_new(from, to)),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.run(|| self.inner.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.run(|| self.inner.remove(path))
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        self.run(|| self.inner.make_dir(path))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.run(|| self.inner.remove_dir(path))
    }

    fn set_aside(&self, file: &File, bytes: u64) -> io::Result<()> {
        self.run(|| self.inner.set_aside(file, bytes))
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

    /// No operation: it reads and changes nothing.
    fn space(&self, path: &Path) -> io::Result<Space> {
        let claimed = self.plan.lock().expect("not poisoned").space;
        claimed.map_or_else(|| self.inner.space(path), Ok)
    }
}
