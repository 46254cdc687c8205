//! The real store and everything around it, and what each operation does to it and to the model.

use crate::coverage;
use crate::expected::{Answer, Asked, AskedBackup, Excuse, Model, Place};
use crate::operation::{Job, Operation, Range, Views};
use crate::outer::{DAY_NS, Mortal, TestClock, TestRandom, VIEWS, copy_views};
use chunker::{Extent, Fingerprinter, GRID_BYTES};
use mover::{
    BackupOptions, ChangeTracking, Depth, ErrorKind, PointChange, PointFilter, PointId, Pool, Progress, ReadSession,
    Repository, Result, SweepOptions, Timestamp, TrackingWish, VerifyOptions, World, backup, blocking, restore,
};
use std::cell::Cell;
use std::fs;
use std::future::{Future, poll_fn};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use store::io::{DiskIo, Fault};
use store::{Access, Local};
use windlass_tests::conformance::options;
use windlass_tests::fake::{Image, Machine, Snapshot, Target, noise};
use windlass_tests::kept::{files, flip, folder, replay};

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
    io: Arc<Mortal>,
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

/// A job, ready to run.
struct Ready {
    asked: Asked,
    source: Option<(Snapshot, BackupOptions)>,
    options: Option<VerifyOptions>,
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

    // Opening and closing.

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

    // Machines.

    fn extent(&self, at: Range) -> (usize, usize, Extent) {
        let machine = usize::from(at.machine) % self.subjects.len();
        let sizes = self.subjects[machine].sizes;
        let disk = usize::from(at.disk) % sizes.len();
        let (size, odd) = (sizes[disk], if at.odd { 12_345 } else { 0 });
        let block = u64::from(at.block) % size.div_ceil(BLOCK);
        let from = (block * BLOCK + odd).min(size - 1);
        let to = (from + u64::from(at.blocks) * BLOCK - odd / 2).min(size);
        (machine, disk, Extent::from(from..to))
    }

    fn write(&mut self, at: Range, seed: u8, tracked: bool) {
        let (machine, disk, extent) = self.extent(at);
        let subject = &mut self.subjects[machine];
        let contents =
            (0..extent.length.div_ceil(BLOCK)).map(|block| noise((u64::from(seed) + block) % CONTENTS, BLOCK));
        let mut bytes: Vec<u8> = contents.flatten().collect();
        bytes.truncate(usize::try_from(extent.length).expect("a small disk"));
        match tracked {
            true => subject.machine.write(disk, extent.offset, &bytes),
            false => subject.machine.write_untracked(disk, extent.offset, &bytes),
        }
        subject.lied |= !tracked;
        coverage::effect(if tracked { "write" } else { "untracked write" });
    }

    fn discard(&mut self, at: Range, tracked: bool) {
        let (machine, disk, extent) = self.extent(at);
        let subject = &mut self.subjects[machine];
        match tracked {
            true => subject.machine.discard(disk, extent),
            false => subject.machine.discard_untracked(disk, extent),
        }
        subject.lied |= !tracked;
        coverage::effect(if tracked { "discard" } else { "untracked discard" });
    }

    // Jobs.

    /// None when there is nothing that the job could be about.
    fn prepare(&mut self, job: &Job) -> Option<Ready> {
        let pick = |from: Vec<PointId>, at: u8| from.get(usize::from(at) % from.len().max(1)).copied();
        Some(match job {
            Job::Backup { machine, wish } => {
                let machine = usize::from(*machine) % self.subjects.len();
                let point = PointId::random(&self.world);
                let newest = self.model.newest(machine);
                let subject = &mut self.subjects[machine];
                let provable = newest.is_some_and(|id| subject.checkpoints.contains(&id));
                let snapshot = subject.machine.snapshot();
                subject.checkpoints.push(point);
                let (images, lied) = (Arc::new(subject.machine.images()), subject.lied);
                let options = BackupOptions { wish: *wish, point: Some(point), ..options(subject.name) };
                let asked = AskedBackup { point, machine, wish: *wish, images, provable, lied };
                Ready { asked: Asked::Backup(asked), source: Some((snapshot, options)), options: None }
            }
            Job::Forget { point, many } => {
                let listed = self.model.at(Place::Listed);
                let first = usize::from(*point) % listed.len().max(1);
                let points: Vec<PointId> = listed.into_iter().skip(first).take(usize::from(*many)).collect();
                if points.is_empty() {
                    return None;
                }
                ready(Asked::Change(points, PointChange::Forget))
            }
            Job::Unforget { point, gone } => {
                let from = self.model.at(if *gone { Place::Gone } else { Place::Forgotten });
                ready(Asked::Change(vec![pick(from, *point)?], PointChange::Unforget))
            }
            Job::Sweep { percent, dry_run, fence } => ready(Asked::Sweep(SweepOptions {
                dry_run: *dry_run,
                repack_percent: *percent,
                fence_older_s: fence.then_some(0),
                ..SweepOptions::default()
            })),
            Job::Verify(depth) => {
                let options = VerifyOptions { depth: *depth, points: Vec::new() };
                Ready { options: Some(options), ..ready(Asked::Verify(*depth == Depth::Decode)) }
            }
            Job::Restore { point } => {
                let there = self.model.there();
                ready(Asked::Restore(pick(there, *point)?))
            }
            Job::Rebuild => ready(Asked::Rebuild),
        })
    }

    async fn run(&mut self, job: &Job, excuse: Excuse) {
        if let Some(ready) = self.prepare(job) {
            self.perform_and_settle(ready, excuse).await;
        }
    }

    async fn perform_and_settle(&mut self, mut ready: Ready, excuse: Excuse) {
        let answer = perform(self.local(), &mut ready, &self.pool, &self.world).await;
        self.settle(&ready.asked, &answer, excuse);
    }

    fn settle(&mut self, asked: &Asked, answer: &Result<Answer>, excuse: Excuse) {
        self.model.settle(asked, answer, excuse).unwrap_or_else(|broken| panic!("{broken}"));
        self.settle_others(asked, answer, excuse);
        self.note(asked, answer, excuse);
    }

    /// What became of the machine's checkpoints; and of sessions of other processes.
    fn settle_others(&mut self, asked: &Asked, answer: &Result<Answer>, excuse: Excuse) {
        if let Asked::Sweep(SweepOptions { dry_run: false, fence_older_s: Some(_), .. }) = asked {
            self.readers.iter_mut().for_each(|held| held.since = LONG_AGO);
            self.count_pins();
        }
        let Asked::Backup(asked) = asked else { return };
        let subject = &mut self.subjects[asked.machine];
        match answer {
            Ok(Answer::Backup(report)) => {
                let at = subject.checkpoints.iter().position(|it| *it == asked.point).expect("it was begun");
                subject.checkpoints.drain(..at);
                self.made.push(asked.point);
                let modes: Vec<_> = report.disks.iter().map(|disk| disk.tracking.mode).collect();
                // Beside another backup of the machine, which may come later and be wrong, nothing is certain.
                if !modes.contains(&ChangeTracking::Bitmap) && !excuse.beside {
                    subject.lied = false;
                }
            }
            _ => subject.checkpoints.retain(|it| *it != asked.point),
        }
    }

    /// Both at once; with `hold` the other runs while the one stands still at that operation. Either may have come first, as
    /// long as one order explains both answers.
    async fn together(&mut self, one: &Job, other: &Job, hold: Option<u8>) {
        let (Some(mut one), Some(mut other)) = (self.prepare(one), self.prepare(other)) else { return };
        let (local, pool, world) = (self.local(), self.pool.clone(), self.world.clone());
        let (io, waiting) = (self.io.clone(), self.io.clone());
        let held = Cell::new(hold.map(|after| io.hold(after.into())));
        let first = async {
            let made = perform(local.clone(), &mut one, &pool, &world).await;
            drop(held.take());
            made
        };
        let second = async {
            if hold.is_some() && blocking(move || waiting.wait_held()).await {
                coverage::effect("a job stood still beside another");
            }
            let mut work = pin!(perform(local.clone(), &mut other, &pool, &world));
            let made = tokio::time::timeout(PATIENCE, &mut work).await;
            // It may need what the one that stands still holds.
            drop(held.take());
            match made {
                Ok(made) => made,
                Err(_) => work.await,
            }
        };
        let (first, second) = tokio::join!(first, second);
        drop((local, held));
        let excuse = Excuse { beside: true, ..Excuse::default() };
        let order = |jobs: [(&Asked, &Result<Answer>); 2]| {
            let mut model = self.model.clone();
            jobs.into_iter().try_for_each(|(asked, answer)| model.settle(asked, answer, excuse)).map(|()| model)
        };
        let (a, b) = ((&one.asked, &first), (&other.asked, &second));
        self.model = match (order([a, b]), order([b, a])) {
            (Ok(mut model), Ok(other)) => {
                model.or(other);
                model
            }
            (Ok(model), Err(_)) | (Err(_), Ok(model)) => model,
            (Err(broken), Err(other)) => panic!("{broken}; or {other}"),
        };
        coverage::effect(format!("{} beside {}", one.asked.name(), other.asked.name()));
        for (asked, answer) in [a, b] {
            self.settle_others(asked, answer, excuse);
            self.note(asked, answer, excuse);
        }
    }

    async fn abort(&mut self, machine: u8, wish: TrackingWish, polls: u8) {
        let mut ready = self.prepare(&Job::Backup { machine, wish }).expect("machines are there");
        let work = perform(self.local(), &mut ready, &self.pool, &self.world);
        match cut_short(work, polls).await {
            Some(answer) => self.settle(&ready.asked, &answer, Excuse::default()),
            None => {
                let Asked::Backup(asked) = &ready.asked else { unreachable!("a backup was asked for") };
                // The source is not told that it is over: its new checkpoint stays beside the old one.
                self.model.aborted(asked);
                coverage::effect("backup dropped in the middle");
            }
        }
    }

    async fn faulty(&mut self, fault: Fault, after: u64, opening: bool, jobs: &[Job]) {
        let views = self.path(DEATH);
        let _ = fs::remove_dir_all(&views);
        if opening {
            self.close().await;
            self.io = Arc::new(Mortal::new(&self.repository()));
        }
        let limit = self.io.operations() + after;
        self.io.plan(after, fault, &views);
        if opening && let Err(error) = self.open_again().await {
            let expected = if fault == Fault::Full { ErrorKind::StoreFull } else { ErrorKind::StoreIo };
            assert!(error.kind() == expected && self.io.operations() > limit, "opening failed: {error:?}");
            coverage::effect(format!("{fault:?} in opening"));
        } else {
            for job in jobs {
                let Some(mut ready) = self.prepare(job) else { continue };
                let answer = perform(self.local(), &mut ready, &self.pool, &self.world).await;
                let struck = self.io.operations() > limit;
                let excuse = Excuse { fault: struck.then_some(fault), ..Excuse::default() };
                self.settle(&ready.asked, &answer, excuse);
            }
        }
        let killed = fault == Fault::Cut;
        if killed && self.io.operations() <= limit {
            self.io.plan(0, fault, &views);
            // The first that notices: nothing has an effect from here on.
            let _ = store::io::Io::list(&*self.io, &self.repository());
        }
        self.released().await;
        if killed {
            self.put_views(DEATH, Views { index: true, references: true });
            coverage::effect("killed");
        }
        self.reopen().await;
    }

    // Damage.

    async fn corrupt(&mut self, pack: u8, at: u32, bit: u8, verify: bool) {
        let (packs, first) = (self.repository().join("packs"), !self.model.damaged);
        let found = files(&packs);
        let Some(file) = found.get(usize::from(pack) % found.len().max(1)) else { return };
        let path = packs.join(file);
        let length = fs::metadata(&path).expect("a pack").len();
        let offset = u64::from(at) % length;
        flip(&path, offset, 1 << bit);
        self.model.damage();
        coverage::effect("a byte changed");
        let name = file.file_name().expect("a name").to_string_lossy().into_owned();
        let state = replay(&self.repository());
        let live = state.packs().values().any(|it| it.doomed.is_none() && it.added.name.to_string() == name);
        if verify {
            let mut ready = self.prepare(&Job::Verify(Depth::Decode)).expect("always");
            let answer = perform(self.local(), &mut ready, &self.pool, &self.world).await;
            if let Ok(Answer::Verified(report)) = &answer {
                assert!(!report.errors.is_empty() || !first || !live, "byte {offset} of pack {name} was not found");
                coverage::effect("verify found damage");
            }
            self.settle(&ready.asked, &answer, Excuse::default());
        }
    }

    /// Points that have the same bytes as one made after the damage was known are healed with it; all but their manifest.
    async fn healed(&mut self, by: PointId) {
        let it = &self.model.points[&by];
        if it.doubtful {
            return;
        }
        let images = it.images.clone();
        let alike = |id: &PointId| self.model.points[id].doubtful && self.model.points[id].images == images;
        let there = self.model.there();
        for id in there.into_iter().filter(alike).collect::<Vec<_>>() {
            let reader = self.local().read(&[id]).await.expect("it is there");
            if reader.manifest(id).await.is_err() {
                continue;
            }
            let images = read_all(&reader, &self.local(), &self.pool, id).await.expect("another backup has healed it");
            self.model.restored(id, &images).unwrap_or_else(|broken| panic!("{broken}"));
            coverage::effect("healed by a backup");
        }
    }

    // Views.

    async fn lose(&mut self, views: Views) {
        self.close().await;
        self.put_views("nothing", views);
        self.reopen().await;
        coverage::effect("views lost");
    }

    async fn roll_back(&mut self, views: Views) {
        if self.path(SAVED).join(VIEWS[0]).is_dir() {
            self.close().await;
            self.put_views(SAVED, views);
            self.reopen().await;
            coverage::effect("views rolled back");
        }
    }

    /// Replaces views by copies; by nothing when there are none.
    fn put_views(&self, from: &str, views: Views) {
        for (view, wanted) in VIEWS.into_iter().zip([views.index, views.references]) {
            if !wanted {
                continue;
            }
            let (from, to) = (self.path(from).join(view), self.repository().join(view));
            let _ = fs::remove_dir_all(&to);
            if from.is_dir() {
                windlass_tests::kept::copy_folder(&from, &to);
            }
        }
    }

    // Readers.

    async fn hold(&mut self, point: u8) {
        let there = self.model.there();
        let Some(point) = there.get(usize::from(point) % there.len().max(1)).copied() else { return };
        if self.readers.len() >= READERS_MAX {
            return;
        }
        let since = mover::Clock::now(&*self.clock);
        let (folder, pool, world) = (self.repository(), self.pool.clone(), self.world.clone());
        let local = Local::open_with(&folder, Access::Read, pool, world, Arc::new(DiskIo)).await.expect("it opens");
        let reader = local.read(&[point]).await.expect("the point is there");
        self.readers.push(Held { reader, local, point, since });
        self.count_pins();
        coverage::effect("reader opened");
    }

    fn release(&mut self, at: usize) {
        drop(self.readers.remove(at));
        self.count_pins();
    }

    /// A point is pinned as long as one session that pins it is sure to be there.
    fn count_pins(&mut self) {
        let now = mover::Clock::now(&*self.clock);
        self.model.pins.clear();
        for held in &self.readers {
            let firm = now.0.saturating_sub(held.since.0) < LEASE_NS;
            *self.model.pins.entry(held.point).or_default() |= firm;
        }
    }

    /// Leases of other processes are ended after a week.
    fn end_old_pins(&mut self) {
        self.count_pins();
        let now = mover::Clock::now(&*self.clock);
        for held in self.readers.iter_mut().filter(|held| now.0.saturating_sub(held.since.0) >= LEASE_NS) {
            // And do not come back when the clock does.
            held.since = LONG_AGO;
        }
    }

    /// What a reader has pinned it can read, whatever became of the point.
    async fn readers_read(&mut self) {
        for at in 0..self.readers.len() {
            let held = &self.readers[at];
            let firm = self.model.pins.get(&held.point) == Some(&true);
            let read = read_all(&held.reader, &held.local, &self.pool, held.point).await;
            let point = &self.model.points[&held.point];
            match read {
                Ok(images) if point.may_be.contains(&Place::Gone) => {
                    assert_eq!(*point.images, images, "what a reader still reads");
                    coverage::effect("reader read what is gone");
                }
                Ok(images) => {
                    if point.may_be.contains(&Place::Forgotten) {
                        coverage::effect("reader read what is forgotten");
                    }
                    let (id, doubtful) = (held.point, point.doubtful);
                    self.model.restored(id, &images).unwrap_or_else(|broken| panic!("{broken}"));
                    // It may remember what was damaged.
                    self.model.points.get_mut(&id).expect("it is there").doubtful = doubtful;
                }
                Err(error) => {
                    let excused = !firm || point.doubtful && error.kind() == ErrorKind::Integrity;
                    assert!(excused, "a reader that pins point {} cannot read it: {error:?}", held.point);
                    coverage::effect("reader refused");
                }
            }
        }
    }

    // Looking.

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

    /// Counts what happened.
    fn note(&self, asked: &Asked, answer: &Result<Answer>, excuse: Excuse) {
        let name = asked.name();
        match (answer, excuse.fault) {
            (Err(_), Some(fault)) => coverage::effect(format!("{fault:?} in {name}")),
            (Ok(_), Some(fault)) => coverage::effect(format!("{fault:?} survived by {name}")),
            (Err(error), None) => coverage::effect(format!("{name} refused: {:?}", error.kind())),
            (Ok(_), None) => coverage::effect(name),
        }
        match answer {
            Ok(Answer::Backup(report)) => {
                report.disks.iter().for_each(|disk| coverage::effect(format!("{:?} of a disk", disk.tracking.mode)));
            }
            Ok(Answer::Swept(report)) => {
                for (what, times) in [
                    ("sweep made points final", report.points_final),
                    ("sweep deleted packs", report.packs_deleted),
                    ("sweep packed again", report.bytes_repacked),
                    ("sweep waits for sessions", report.bytes_waiting),
                ] {
                    if times > 0 {
                        coverage::effect(what);
                    }
                }
            }
            _ => {}
        }
    }
}

const fn ready(asked: Asked) -> Ready {
    Ready { asked, source: None, options: None }
}

async fn perform(local: Local, ready: &mut Ready, pool: &Pool, world: &World) -> Result<Answer> {
    let progress = Progress::default();
    Ok(match &ready.asked {
        Asked::Backup(_) => {
            let (snapshot, options) = ready.source.take().expect("a backup has a source");
            Answer::Backup(Box::new(backup(&local, snapshot, &options, pool, world, &progress).await?))
        }
        Asked::Change(points, change) => local.change_points(points, *change).await.map(|()| Answer::Changed)?,
        Asked::Sweep(options) => Answer::Swept(local.sweep(*options, Arc::default()).await?),
        Asked::Verify(_) => {
            let options = ready.options.take().expect("a verification has options");
            Answer::Verified(local.verify(options, Arc::default()).await?)
        }
        Asked::Restore(point) => {
            let reader = local.read(&[*point]).await?;
            Answer::Restored(read_all(&reader, &local, pool, *point).await?)
        }
        Asked::Rebuild => local.rebuild_index(Arc::default()).await.map(|_| Answer::Rebuilt)?,
    })
}

/// All disks of a point.
async fn read_all(reader: &store::Reader, local: &Local, pool: &Pool, point: PointId) -> Result<Vec<Image>> {
    let prints = Fingerprinter::new(&local.config().domain);
    let mut images = Vec::new();
    for disk in &reader.manifest(point).await?.disks {
        let (target, screen) = Target::new(disk.size);
        restore(reader, &prints, disk, target, pool, &Progress::default()).await?;
        images.push(screen.image().expect("it was finished"));
    }
    Ok(images)
}

/// Polls so often and no more. None when that was not enough.
async fn cut_short<T>(work: impl Future<Output = T>, polls: u8) -> Option<T> {
    let (mut work, mut left) = (pin!(work), polls);
    poll_fn(|context| match work.as_mut().poll(context) {
        Poll::Ready(made) => Poll::Ready(Some(made)),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            Poll::Pending
        }
    })
    .await
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
