//! What a repository lived through: jobs of the real store, and between which entries of the log each was done.

use crate::cut::PowerCut;
use crate::lab::LoggedDisk;
use anyhow::Result;
use mover::{
    BackupOptions, ErrorKind, PointChange, PointId, Progress, Repository, SweepOptions, Verification, backup, copy,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use store::io::Io;
use store::{Access, Local};
use windlass_tests::conformance::options;
use windlass_tests::draw::Draw;
use windlass_tests::fake::{Image, Machine, noise};
use windlass_tests::kept::{Bench, points};

/// Jobs, and what they made.
#[derive(Default)]
pub struct History {
    /// In the order of their beginnings.
    pub jobs: Vec<Job>,
    /// What each point restores to, also those that were given up.
    pub images: BTreeMap<PointId, Vec<Image>>,
}

/// One job.
pub struct Job {
    pub name: &'static str,
    /// Entries of the log, as of the last flush, when it began.
    pub begun: usize,
    /// Entries of the log, as of the last flush, when its caller was told of its success. None: it was given up.
    pub acknowledged: Option<usize>,
    effect: Effect,
}

enum Effect {
    None,
    Makes(PointId),
    Forgets(Vec<PointId>),
}

/// Whether a job was done when the power went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    Yes,
    Perhaps,
    No,
}

/// What must be there after a power cut, and what may.
#[derive(Default)]
pub struct Expected {
    /// Its making was acknowledged.
    pub repository: bool,
    /// Acknowledged, and nobody began to forget them.
    pub must: BTreeSet<PointId>,
    /// Those, and points whose making or forgetting was not acknowledged.
    pub may: BTreeSet<PointId>,
}

impl Job {
    fn done(&self, cut: &PowerCut) -> Done {
        match self.acknowledged {
            Some(at) if at <= cut.flushed => Done::Yes,
            _ if self.begun <= cut.at => Done::Perhaps,
            _ => Done::No,
        }
    }

    /// Whether the power goes in the middle of it.
    pub fn cut_by(&self, cut: &PowerCut) -> bool {
        self.begun < cut.at && self.acknowledged.is_some_and(|at| cut.flushed < at)
    }
}

impl History {
    /// What `cut` may leave.
    pub fn expected(&self, cut: &PowerCut) -> Expected {
        let mut expected = Expected::default();
        for job in &self.jobs {
            match (&job.effect, job.done(cut)) {
                (_, Done::No) => {}
                (Effect::None, done) => expected.repository |= job.name == INIT && done == Done::Yes,
                (Effect::Makes(point), done) => {
                    expected.may.insert(*point);
                    if done == Done::Yes {
                        expected.must.insert(*point);
                    }
                }
                (Effect::Forgets(points), done) => {
                    for point in points {
                        expected.must.remove(point);
                        if done == Done::Yes {
                            expected.may.remove(point);
                        }
                    }
                }
            }
        }
        expected
    }
}

/// A history that follows from `draw`, of a repository on `disk`; with another one in the folder `elsewhere`. Once it is
/// made, all files of the first go through `io`.
///
/// # Errors
/// Of any job: nothing fails here.
pub async fn live(
    bench: &Bench,
    disk: &LoggedDisk,
    elsewhere: &Path,
    io: Arc<dyn Io>,
    draw: &mut Draw,
) -> Result<History> {
    let begun = disk.flushed_entries();
    let config = Local::init(&disk.path().join(REPOSITORY), None, &bench.world)?;
    let init = Job { name: INIT, begun, acknowledged: Some(disk.flushed_entries()), effect: Effect::None };
    Local::init(elsewhere, Some(&config), &bench.world)?;
    let elsewhere = bench.open(elsewhere, Access::Write).await?;
    let machines = [Machine::new(&bench.world, DISKS), Machine::new(&bench.world, DISKS)];
    let mut steps = [Step::Backup, Step::Reopen, Step::Copy, Step::Together, Step::GiveUp].to_vec();
    steps.extend([Step::Backup, Step::Sweep, Step::Backup, Step::SweepBeside]);
    for last in (1..steps.len()).rev() {
        steps.swap(last, draw.below(last + 1));
    }
    let local = Some(open(bench, disk, &io).await?);
    let history = History { jobs: vec![init], images: BTreeMap::new() };
    let mut life = Life { bench, disk, io, draw, local, elsewhere, machines, history };
    // More than a piece of 4 MiB, in which data packs are written.
    life.machines[0].write(0, 0, &noise(life.draw.number(), 5 << 20));
    life.step(Step::Backup).await?;
    life.step(Step::Backup).await?;
    for step in steps {
        life.step(step).await?;
    }
    life.local.take().expect("open").close().await?;
    life.elsewhere.close().await?;
    Ok(life.history)
}

/// Where the repository is on its file system.
pub const REPOSITORY: &str = "repository";

#[derive(Clone, Copy)]
enum Step {
    /// Of one machine.
    Backup,
    /// Of two machines.
    Together,
    /// Broken off somewhere; then the repository is opened again, as after a kill.
    GiveUp,
    /// From the other repository.
    Copy,
    /// What was forgotten before.
    Sweep,
    /// Beside a backup.
    SweepBeside,
    Reopen,
}

struct Life<'a> {
    bench: &'a Bench,
    disk: &'a LoggedDisk,
    io: Arc<dyn Io>,
    draw: &'a mut Draw,
    /// None for a moment, while it is opened again.
    local: Option<Local>,
    elsewhere: Local,
    machines: [Machine; 2],
    history: History,
}

impl Life<'_> {
    fn local(&self) -> &Local {
        self.local.as_ref().expect("open")
    }

    async fn step(&mut self, step: Step) -> Result<()> {
        match step {
            Step::Backup => {
                let machine = self.draw.below(2);
                let options = self.work(machine);
                let job = self.backup(machine, &options).await?;
                self.history.jobs.push(job);
            }
            Step::Together => {
                let options = [self.work(0), self.work(1)];
                let jobs = tokio::try_join!(self.backup(0, &options[0]), self.backup(1, &options[1]))?;
                self.history.jobs.extend([jobs.0, jobs.1]);
            }
            Step::GiveUp => self.give_up().await?,
            Step::Copy => self.copy().await?,
            Step::Sweep => {
                self.forget().await?;
                let job = self.sweep().await?;
                self.history.jobs.push(job);
            }
            Step::SweepBeside => {
                self.forget().await?;
                let options = self.work(1);
                let jobs = tokio::try_join!(self.sweep(), self.backup(1, &options))?;
                self.history.jobs.extend([jobs.0, jobs.1]);
            }
            Step::Reopen => {
                self.local.take().expect("open").close().await?;
                self.local = Some(open(self.bench, self.disk, &self.io).await?);
            }
        }
        Ok(())
    }

    /// The machine goes on; and what its next backup is to make.
    fn work(&mut self, machine: usize) -> BackupOptions {
        for _ in 0..4 {
            let (block, bytes) = (self.draw.below(100) as u64, 1 + self.draw.below(300 << 10) as u64);
            self.machines[machine].write(0, block << 16, &noise(self.draw.number(), bytes));
        }
        let point = PointId::random(&self.bench.world);
        self.history.images.insert(point, self.machines[machine].images());
        BackupOptions { point: Some(point), ..options(NAMES[machine]) }
    }

    async fn backup(&self, machine: usize, options: &BackupOptions) -> Result<Job> {
        let (begun, point) = (self.disk.flushed_entries(), options.point.expect("of work"));
        let source = self.machines[machine].snapshot();
        let (pool, world) = (&self.bench.pool, &self.bench.world);
        backup(self.local(), source, options, pool, world, &Progress::default()).await?;
        Ok(self.acknowledged("backup", begun, Effect::Makes(point)))
    }

    async fn give_up(&mut self) -> Result<()> {
        let options = self.work(0);
        let begun = self.disk.flushed_entries();
        let moment = Duration::from_micros(self.draw.number() % 40_000);
        if let Ok(done) = tokio::time::timeout(moment, self.backup(0, &options)).await {
            self.history.jobs.push(done?);
        } else {
            // What it had begun ends by itself: it may be made, now or later.
            let effect = Effect::Makes(options.point.expect("of work"));
            self.history.jobs.push(Job { name: "backup given up", begun, acknowledged: None, effect });
        }
        // Not closed: nobody does that who is killed.
        self.local = None;
        self.local = Some(open(self.bench, self.disk, &self.io).await?);
        Ok(())
    }

    async fn copy(&mut self) -> Result<()> {
        let machine = self.machines[1].cloned();
        machine.write(0, 0, &noise(self.draw.number(), 400 << 10));
        let point = self.bench.backup(&self.elsewhere, &machine).await?.point;
        self.history.images.insert(point.id, machine.images());
        let begun = self.disk.flushed_entries();
        copy(&self.elsewhere, self.local(), &point, Verification::Decode, &Progress::default()).await?;
        self.history.jobs.push(self.acknowledged("copy", begun, Effect::Makes(point.id)));
        Ok(())
    }

    /// All but the two newest.
    async fn forget(&mut self) -> Result<()> {
        let there: Vec<PointId> = points(self.local()).await.iter().map(|point| point.id).collect();
        let oldest = there[..there.len().saturating_sub(2)].to_vec();
        let begun = self.disk.flushed_entries();
        self.local().change_points(&oldest, PointChange::Forget).await?;
        self.history.jobs.push(self.acknowledged("forgetting", begun, Effect::Forgets(oldest)));
        Ok(())
    }

    async fn sweep(&self) -> Result<Job> {
        let begun = self.disk.flushed_entries();
        self.local().sweep(eager(), Arc::default()).await?;
        Ok(self.acknowledged("sweep", begun, Effect::None))
    }

    fn acknowledged(&self, name: &'static str, begun: usize, effect: Effect) -> Job {
        Job { name, begun, acknowledged: Some(self.disk.flushed_entries()), effect }
    }
}

/// Opens the repository for writing, as soon as whoever was killed is gone.
async fn open(bench: &Bench, disk: &LoggedDisk, io: &Arc<dyn Io>) -> Result<Local> {
    loop {
        match bench.open_with(&disk.path().join(REPOSITORY), Access::Write, io.clone()).await {
            Err(error) if error.kind() == ErrorKind::Busy => tokio::time::sleep(Duration::from_millis(2)).await,
            opened => return Ok(opened?),
        }
    }
}

/// A sweep that packs again whatever it can.
pub fn eager() -> SweepOptions {
    SweepOptions { repack_percent: 1, ..SweepOptions::default() }
}

/// The job that makes the repository.
pub const INIT: &str = "init";
const DISKS: &[u64] = &[8 << 20];
const NAMES: [&str; 2] = ["web", "db"];
