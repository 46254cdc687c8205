//! The real store and everything around it, and what each operation does to it and to the model.

mod harm;
mod jobs;

use crate::coverage;
use crate::expected::{Asked, Excuse, Model, Place};
use crate::operation::{Job, Operation, Views};
use crate::outer::{DAY_NS, Mortal, TestClock, TestRandom, copy_views};
use chunker::GRID_BYTES;
use jobs::ready;
use mover::{Depth, PointChange, PointFilter, PointId, Pool, Repository, Result, Timestamp, TrackingWish, World};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use store::{Access, Local};
use windlass_tests::around::Around;
use windlass_tests::fake::Machine;
use windlass_tests::kept::{files, folder};

/// A machine, and what its tracking knows.
struct Subject {
    machine: Machine,
    name: &'static str,
    sizes: &'static [u64],
    /// Points that its checkpoints began with.
    checkpoints: Vec<PointId>,
    /// Something was changed behind the tracking's back, and no backup has read all since.
    lied: bool,
}

/// A read session of another process.
struct Held {
    // Dropped in this order.
    reader: store::Reader,
    local: Local,
    point: PointId,
    since: Timestamp,
}

/// A repository, the machines that are backed up into it, and what is expected of it.
pub struct System {
    local: Option<Local>,
    readers: Vec<Held>,
    subjects: Vec<Subject>,
    model: Model,
    io: Arc<Around<Mortal>>,
    clock: Arc<TestClock>,
    world: World,
    pool: Pool,
    /// Counts looks, and so decides what is looked at.
    looks: u64,
    /// Points that were made since the last look.
    made: Vec<PointId>,
    /// With the repository, and the views that were saved.
    folder: tempfile::TempDir,
}

impl System {
    pub async fn new() -> Self {
        let (clock, folder) = (Arc::new(TestClock::new()), folder());
        let world = World::new(clock.clone(), Arc::new(TestRandom::default()));
        let subject = |(name, sizes): (&'static str, &'static [u64])| Subject {
            machine: Machine::new(&world, sizes),
            name,
            sizes,
            checkpoints: Vec::new(),
            lied: false,
        };
        let subjects = MACHINES.into_iter().map(subject).collect();
        let repository = folder.path().join(REPOSITORY);
        Local::init(&repository, None, &world).expect("an empty repository");
        let mut system = Self {
            local: None,
            readers: Vec::new(),
            subjects,
            model: Model::default(),
            io: Arc::new(Mortal::new(&repository)),
            clock,
            world,
            pool: Pool::inline(),
            looks: 0,
            made: Vec::new(),
            folder,
        };
        system.open().await.expect("it opens");
        system
    }

    /// Does what `operation` says, and looks whether everything is as it should be.
    pub async fn apply(&mut self, operation: &Operation) {
        coverage::operation(operation.name());
        coverage::trace(|| format!("{operation:?}"));
        self.end_old_pins();
        match operation {
            Operation::Write { at, seed, tracked } => self.write(*at, *seed, *tracked),
            Operation::Discard { at, tracked } => self.discard(*at, *tracked),
            Operation::Run(job) => self.run(job, Excuse::default()).await,
            Operation::Together(one, other, hold) => self.together(one, other, *hold).await,
            Operation::Aborted { machine, wish, polls, reopen } => {
                self.abort(*machine, *wish, *polls).await;
                if *reopen {
                    self.reopen().await;
                }
            }
            Operation::Faulty { fault, after, opening, jobs } => {
                self.faulty(*fault, u64::from(*after), *opening, jobs).await;
            }
            Operation::Corrupt { pack, at, bit, verify } => self.corrupt(*pack, *at, *bit, *verify).await,
            Operation::Lose(views) => self.lose(*views).await,
            Operation::Save => {
                self.close().await;
                copy_views(&self.repository(), &self.path(SAVED));
                self.reopen().await;
            }
            Operation::RollBack(views) => self.roll_back(*views).await,
            Operation::Jump { days } => {
                self.clock.jump(i64::from(*days));
                coverage::effect(if *days < 0 { "clock went back" } else { "clock went ahead" });
            }
            Operation::Hold { point } => self.hold(*point).await,
            Operation::Release { reader } => {
                if !self.readers.is_empty() {
                    let at = usize::from(*reader) % self.readers.len();
                    self.release(at);
                    coverage::effect("reader released");
                }
            }
            Operation::Reopen => {
                self.close().await;
                self.reopen().await;
                coverage::effect("reopened");
            }
        }
        self.look().await;
    }

    /// Everything once more at the end; and when nothing is needed any more, nothing is left.
    pub async fn finish(mut self) {
        self.readers_read().await;
        while !self.readers.is_empty() {
            self.release(0);
        }
        self.close().await;
        self.reopen().await;
        self.run(&Job::Verify(Depth::Decode), Excuse::default()).await;
        self.restore_all().await;
        self.lose(Views { index: true, references: true }).await;
        self.look().await;
        self.restore_all().await;
        self.run(&Job::Backup { machine: 0, wish: TrackingWish::Auto }, Excuse::default()).await;
        self.look().await;
        let listed = self.model.at(Place::Listed);
        self.perform_and_settle(ready(Asked::Change(listed, PointChange::Forget)), Excuse::default()).await;
        for _ in 0..2 {
            self.run(&Job::Sweep { percent: 50, dry_run: false, fence: false }, Excuse::default()).await;
            self.look().await;
        }
        assert!(self.model.there().is_empty(), "nothing is needed");
        if !self.model.damaged {
            let stats = self.local().stats().await.expect("stats");
            assert_eq!((stats.packs, stats.bytes_stored, stats.points), (0, 0, 0), "nothing is needed: {stats:?}");
            assert_eq!(files(&self.repository().join("packs")), Vec::<PathBuf>::new(), "nothing is needed");
        }
        self.run(&Job::Backup { machine: 1, wish: TrackingWish::Auto }, Excuse::default()).await;
        self.look().await;
        self.restore_all().await;
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn repository(&self) -> PathBuf {
        self.path(REPOSITORY)
    }

    fn local(&self) -> Local {
        self.local.clone().expect("it is open")
    }

    async fn open(&mut self) -> Result<()> {
        self.io = Arc::new(Mortal::new(&self.repository()));
        self.open_again().await
    }

    async fn open_again(&mut self) -> Result<()> {
        let (folder, pool, world) = (self.repository(), self.pool.clone(), self.world.clone());
        self.local = Some(Local::open_with(&folder, Access::Write, pool, world, self.io.clone()).await?);
        Ok(())
    }

    /// Ends orderly.
    async fn close(&mut self) {
        if let Some(local) = self.local.take() {
            local.close().await.expect("it closes");
        }
        self.released().await;
    }

    /// File work that a dropped job had begun ends by itself, and holds the lock until then.
    async fn released(&mut self) {
        self.local = None;
        let lock = fs::File::open(self.repository().join("lock")).expect("the lock");
        while rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn reopen(&mut self) {
        self.released().await;
        self.open().await.expect("it opens again");
        self.model.reopened();
    }

    async fn look(&mut self) {
        self.looks += 1;
        self.look_at_points().await;
        let there = self.model.there();
        let stats = self.local().stats().await.expect("stats");
        assert_eq!(stats.points, self.model.at(Place::Listed).len() as u64);
        assert!(self.model.damaged || stats.suspects == 0, "nothing is damaged: {stats:?}");
        if !there.is_empty() {
            let drawn = blake3::hash(&self.looks.to_le_bytes());
            let at = usize::from(drawn.as_bytes()[0]) % there.len();
            self.restore(there[at]).await;
        }
        if self.looks.is_multiple_of(4) {
            self.readers_read().await;
        }
        for point in std::mem::take(&mut self.made) {
            if self.model.damaged && self.model.points[&point].may_be.contains(&Place::Listed) {
                self.restore(point).await;
                self.healed(point).await;
            }
        }
    }

    /// Lists, and learns what is not known yet.
    async fn look_at_points(&mut self) {
        let local = self.local();
        let listed = local.list(&PointFilter::default()).await.expect("points can be listed");
        let forgotten = PointFilter { forgotten: true, ..PointFilter::default() };
        let forgotten = local.list(&forgotten).await.expect("forgotten points can be listed");
        let before = self.model.clone();
        self.model.listed(&listed, &forgotten).unwrap_or_else(|broken| panic!("{broken}"));
        for (id, point) in &self.model.points {
            let was = &before.points[id];
            if was.may_be.len() > 1 && point.may_be.len() == 1 {
                coverage::effect(format!("{:?} was {:?}", was.may_be, point.may_be));
            }
        }
        for point in listed.iter().chain(&forgotten) {
            let it = &self.model.points[&point.id];
            assert_eq!(point.machine_name.as_str(), self.subjects[it.machine].name);
            assert_eq!(point.bytes_logical, self.subjects[it.machine].sizes.iter().sum::<u64>());
        }
        let stale: Vec<PointId> =
            self.model.at(Place::Listed).into_iter().filter(|id| self.model.points[id].stale).collect();
        for id in stale {
            let truth = self.model.points[&id].images.clone();
            self.restore(id).await;
            if self.model.points[&id].images != truth {
                coverage::effect("a lie of the tracking showed");
            }
        }
    }

    async fn restore(&mut self, point: PointId) {
        self.perform_and_settle(ready(Asked::Restore(point)), Excuse::default()).await;
    }

    async fn restore_all(&mut self) {
        for point in self.model.there() {
            self.restore(point).await;
        }
    }
}

const BLOCK: u64 = GRID_BYTES as u64;
/// Different contents of blocks.
const CONTENTS: u64 = 48;
const MACHINES: [(&str, &[u64]); 2] = [("web", &[12 * BLOCK]), ("db", &[5 * BLOCK + 1000, 3 * BLOCK])];
/// Not quite a week.
const LEASE_NS: i64 = 6 * DAY_NS;
const LONG_AGO: Timestamp = Timestamp(i64::MIN / 2);
/// Longer than a job takes that waits for nothing.
const PATIENCE: Duration = Duration::from_millis(60);
const READERS_MAX: usize = 3;
const REPOSITORY: &str = "repository";
const SAVED: &str = "saved";
const DEATH: &str = "death";
