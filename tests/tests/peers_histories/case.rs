//! A repository in which jobs are taken step by step, and what its log says of them afterwards.

use chunker::{Blob, ChunkId, ChunkKind};
use mover::{
    Commit, PointChange, PointDraft, PointId, Presence, Repository, Result, SweepOptions, SweepReport, WriteSession,
};
use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use store::Local;
use store::format::config::ConfigFile;
use store::format::pack::PackName;
use store::format::record::LogRecord;
use store::state::State;
use windlass_tests::conformance::Lab;
use windlass_tests::fake::Image;
use windlass_tests::holding::{Holding, held_at};
use windlass_tests::kept::{files, footers, replay, stored};

/// Points that cases have: one that is forgotten, one that stays and shares a chunk with it, and the one of the backup
/// that the history is about.
pub const OLD: PointId = PointId([1; 16]);
pub const STAYS: PointId = PointId([2; 16]);
pub const NEW: PointId = PointId([3; 16]);

/// A repository, what its points are made of, and what the packs hold that were there.
pub struct Case {
    pub lab: Lab<Holding>,
    points: BTreeMap<PointId, Vec<u64>>,
    /// Points that are there in the end.
    stay: RefCell<BTreeSet<PointId>>,
    packs: BTreeMap<PackName, BTreeSet<ChunkId>>,
}

impl Case {
    /// With the old point of blocks 1 and 2, the one that stays of blocks 2 and 9, and a new one to come of these blocks.
    /// Without any there is to be none.
    pub async fn new(blocks: &[u64]) -> Self {
        let lab = Lab::<Holding>::new().await;
        let points = BTreeMap::from([(OLD, vec![1, 2]), (STAYS, vec![2, 9]), (NEW, blocks.to_vec())]);
        let stay = [STAYS].into_iter().chain((!blocks.is_empty()).then_some(NEW));
        let mut case = Self { lab, points, stay: RefCell::new(stay.collect()), packs: BTreeMap::new() };
        for point in [OLD, STAYS] {
            case.job(point, &[]).await.run().await.unwrap();
        }
        case.see();
        case
    }

    /// Closed and opened again.
    pub async fn reopened(self) -> Self {
        Self { lab: self.lab.reopened().await, ..self }
    }

    /// A backup of this point, begun.
    pub async fn job(&self, point: PointId, parents: &[PointId]) -> Job {
        Job::begun(&self.lab, point, &self.points[&point], parents).await
    }

    pub fn folder(&self) -> &Path {
        self.lab.fixture.folder.path()
    }

    /// This one is there in the end, too.
    pub fn stays(&self, point: PointId) {
        self.stay.borrow_mut().insert(point);
    }

    pub fn image(&self, point: PointId) -> Image {
        let blocks: Vec<(u64, u64)> = (0..).zip(self.points[&point].iter().copied()).collect();
        self.lab.image(&blocks)
    }

    pub async fn forget(&self, point: PointId) {
        self.lab.repository.change_points(&[point], PointChange::Forget).await.unwrap();
    }

    pub async fn sweep(&self) -> SweepReport {
        sweep(&self.lab.repository).await
    }

    /// Notes what packs hold.
    fn see(&mut self) {
        let seen = footers(self.folder()).into_iter();
        self.packs.extend(seen.map(|(pack, entries)| (pack, entries.into_iter().map(|entry| entry.id).collect())));
    }

    /// After each record of the log every chunk of every point that is there, or can come back, lies in a pack that is not
    /// doomed (R1, R6, R7, R9). The second look at doomed packs (R19) would make up for most of what breaks this.
    pub async fn judge(&mut self, what: &str) {
        self.see();
        let mut needs = BTreeMap::new();
        for (point, blocks) in &self.points {
            let (_, pages) = map(&self.lab, blocks).await;
            let blocks = blocks.iter().map(|seed| self.lab.block(*seed).0);
            needs.insert(*point, blocks.chain(pages.iter().map(|page| page.0)).collect::<Vec<_>>());
        }
        let config = ConfigFile::decode(&fs::read(self.folder().join("config")).unwrap()).unwrap();
        let mut state = State::new(config.config.id, &config.bytes);
        for file in files(&self.folder().join("log")) {
            let (record, end) = LogRecord::decode(&fs::read(self.folder().join("log").join(file)).unwrap()).unwrap();
            let void = state.apply(&record, end.hash).unwrap();
            let number = record.sequence;
            assert_eq!(void, [], "{what}, record {number}: nobody here writes what is void");
            let live: Vec<_> = state.packs().values().filter(|pack| pack.doomed.is_none()).collect();
            let holds = |id: &ChunkId| live.iter().any(|pack| self.packs[&pack.added.name].contains(id));
            for (point, it) in state.points() {
                let lost = needs[point].iter().chain([&it.committed.manifest]).find(|id| !holds(id));
                assert_eq!(lost, None, "{what}, record {number}: of point {point}");
            }
        }
    }

    /// When all jobs have ended: points that stay are whole, what is dead goes, and nothing is there twice.
    pub async fn settle(mut self, what: &str) {
        self.judge(what).await;
        self.sweep().await;
        self.see();
        self.sweep().await;
        self.judge(what).await;
        self.reopened().await.assert_settled(what).await;
    }

    async fn assert_settled(&self, what: &str) {
        let stay = self.stay.take();
        let there: BTreeSet<PointId> = self.lab.points().await.iter().map(|point| point.id).collect();
        assert_eq!(there, stay, "{what}");
        for point in stay {
            self.lab.assert_restores(point, &[self.image(point)]).await;
        }
        let folder = self.folder();
        let state = replay(folder);
        assert!(state.packs().values().all(|pack| pack.doomed.is_none()) && state.sessions().is_empty(), "{what}");
        assert_eq!(files(&folder.join("packs")).len(), state.packs().len(), "{what}");
        for (id, times) in stored(folder) {
            assert_eq!(times, 1, "{what}: chunk {id}");
        }
    }
}

/// Whatever is dead goes.
pub async fn sweep(local: &Local) -> SweepReport {
    local.sweep(eager(), Arc::default()).await.unwrap()
}

pub fn eager() -> SweepOptions {
    SweepOptions { repack_percent: 1, ..SweepOptions::default() }
}

/// A backup, taken step by step.
pub struct Job {
    session: store::Session,
    draft: PointDraft,
    /// What it would read from its source.
    blobs: BTreeMap<ChunkId, Blob>,
    /// What it was told to be missing.
    missing: OnceCell<Vec<ChunkId>>,
}

impl Job {
    pub async fn begun(lab: &Lab<Holding>, point: PointId, blocks: &[u64], parents: &[PointId]) -> Self {
        let (root, pages) = map(lab, blocks).await;
        let blobs = blocks.iter().map(|seed| lab.block(*seed)).chain(pages).collect();
        let session = lab.session_of(point, parents).await;
        Self { session, draft: lab.draft(point, root), blobs, missing: OnceCell::new() }
    }

    /// Asks, once. Gives how many chunks it was told to be there.
    pub async fn ask(&self) -> usize {
        let mut missing = Vec::new();
        for kind in [ChunkKind::Data, ChunkKind::Page] {
            let of_kind = self.blobs.iter().filter(|(_, blob)| blob.header().kind == kind);
            let ids: Vec<ChunkId> = of_kind.map(|(id, _)| *id).collect();
            let told = self.session.missing(kind, &ids).await.unwrap();
            missing.extend(ids.into_iter().zip(told).filter(|(_, told)| *told == Presence::Missing).map(|(id, _)| id));
        }
        let there = self.blobs.len() - missing.len();
        self.missing.set(missing).expect("asked once");
        there
    }

    /// Puts what was missing when it asked.
    pub async fn put(&self) -> Result<()> {
        self.bring(self.missing.get().expect("it has asked")).await
    }

    pub async fn flush(&self) -> Result<()> {
        self.session.flush().await.map(drop)
    }

    async fn bring(&self, ids: &[ChunkId]) -> Result<()> {
        self.session.put(ids.iter().map(|id| (*id, self.blobs[id].clone())).collect()).await
    }

    /// Commits, and brings what a refused commit lists (R8).
    pub async fn commit(&self) -> Result<()> {
        loop {
            match self.session.commit(std::slice::from_ref(&self.draft)).await? {
                Commit::Committed(points) => {
                    assert_eq!(points[0].id, self.draft.manifest.point);
                    return Ok(());
                }
                Commit::Missing(ids) => self.bring(&ids).await?,
            }
        }
    }

    pub async fn run(&self) -> Result<()> {
        self.ask().await;
        self.put().await?;
        self.commit().await
    }
}

async fn map(lab: &Lab<Holding>, blocks: &[u64]) -> (mover::MapRoot, Vec<(ChunkId, Blob)>) {
    let blocks: Vec<(u64, ChunkId)> = (0..).zip(blocks).map(|(at, seed)| (at, lab.block(*seed).0)).collect();
    lab.map(&blocks).await
}

/// What `setup` makes is told again and again, until `held` has been at a stand at each of its operations on files while
/// `beside` happened; only at every `step`th where time counts. After `then` all must be settled. Gives how many
/// operations that are.
pub async fn at_every_operation<T>(
    (what, step): (&str, usize),
    setup: impl AsyncFn() -> (Case, T),
    held: impl AsyncFn(&Case, &T),
    beside: impl AsyncFn(&Case, &T),
    then: impl AsyncFn(&Case, &T),
) -> u64 {
    let step = if std::env::var_os("WINDLASS_EVERY_OPERATION").is_some() { 1 } else { step };
    for after in (0..).step_by(step) {
        assert!(after < 600, "it ends");
        let (case, given) = setup().await;
        let struck = held_at(&case.lab, after, PATIENCE, held(&case, &given), beside(&case, &given)).await;
        then(&case, &given).await;
        drop(given);
        case.settle(&format!("{what}, operation {after}")).await;
        if !struck {
            return after;
        }
    }
    unreachable!("there are more numbers")
}

/// For what may need the log, which the one that stands still may have.
const PATIENCE: Duration = Duration::from_millis(100);
/// A sweep has over three hundred operations, most of them to list folders.
pub const OF_A_SWEEP: usize = 5;
/// A commit has few.
pub const OF_A_COMMIT: usize = 1;
