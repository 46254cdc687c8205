//! A layer between a job and any repository. It counts operations, and can give false answers, withhold chunks and
//! fail.

use chunker::{Blob, ChunkId, ChunkKind};
use futures::{Stream, StreamExt};
use mover::{
    Begin, Begun, ChunkBatch, ChunkError, Commit, Error, GivenUp, IndexTotals, LogEntry, LogHead, MachineId, Manifest,
    Name, OwnerId, PointChange, PointDraft, PointFilter, PointId, Presence, Progress, ReadSession, RecoveryPoint,
    Repository, RepositoryConfig, RepositoryId, Result, Stats, StoredTotals, SweepOptions, SweepReport, VerifyOptions,
    VerifyReport, WriteSession,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// A repository, meddled with.
pub struct Meddled<'a, R> {
    inner: &'a R,
    /// What is done to it, and what was seen.
    pub meddling: Meddling,
}

/// A session of [`Meddled`].
pub struct MeddledSession<S> {
    inner: S,
    meddling: Meddling,
}

/// What to do and what was seen; clones share it.
#[derive(Clone, Default)]
pub struct Meddling(Arc<Mutex<Plan>>);

/// The state of a [`Meddling`].
#[derive(Default)]
pub struct Plan {
    /// Ids that count as present until a commit, whatever the repository answers.
    pub have: BTreeSet<ChunkId>,
    /// Chunks that come damaged.
    pub rotten: BTreeSet<ChunkId>,
    /// Blobs that come in place of others: their checksums match, their content does not.
    pub swapped: BTreeMap<ChunkId, Blob>,
    /// Chunks that never come.
    pub withheld: BTreeSet<ChunkId>,
    /// Every batch comes twice.
    pub repeat: bool,
    /// Operations that go well before one fails with `Transport`.
    pub fail_after: Option<u64>,
    /// How long `missing` holds back its answer.
    pub late: Duration,
    /// How often each operation was called.
    pub operations: BTreeMap<&'static str, u64>,
    /// Ids that were asked for in `missing`, by kind.
    pub asked: BTreeMap<ChunkKind, u64>,
    /// Chunks that were put, in order.
    pub put: Vec<ChunkId>,
    /// Chunks that were read, in order.
    pub read: Vec<ChunkId>,
}

impl Meddling {
    /// To look at or to change.
    pub fn plan(&self) -> MutexGuard<'_, Plan> {
        self.0.lock().expect("not poisoned")
    }

    /// Forgets what was seen and stops all meddling.
    pub fn reset(&self) {
        *self.plan() = Plan::default();
    }

    fn operation(&self, name: &'static str) -> Result<()> {
        let mut plan = self.plan();
        *plan.operations.entry(name).or_default() += 1;
        match &mut plan.fail_after {
            Some(0) => Err(Error::transport(format!("{name} failed as planned"))),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn batch(&self, batch: ChunkBatch) -> ChunkBatch {
        let failed = self.operation("get").err();
        let mut plan = self.plan();
        let mut made = ChunkBatch::new();
        for (id, blob) in batch.into_iter().filter(|(id, _)| !plan.withheld.contains(id)) {
            let blob = match &failed {
                Some(error) => Err(ChunkError::Unreadable { chunk: id, kind: error.kind(), what: error.message() }),
                None if plan.rotten.contains(&id) => {
                    Err(ChunkError::Damaged { chunk: id, pack: "none".into(), what: "as planned".into() })
                }
                None => plan.swapped.get(&id).cloned().map_or(blob, Ok),
            };
            made.push((id, blob));
        }
        plan.read.extend(made.iter().map(|(id, _)| *id));
        if plan.repeat {
            made.extend_from_within(..);
        }
        made
    }
}

impl<'a, R> Meddled<'a, R> {
    /// A layer around `inner`. Until a test changes [`Self::meddling`], it only counts.
    pub fn new(inner: &'a R) -> Self {
        Self { inner, meddling: Meddling::default() }
    }

    fn session<S>(&self, inner: S) -> MeddledSession<S> {
        MeddledSession { inner, meddling: self.meddling.clone() }
    }
}

impl<R: Repository> Repository for Meddled<'_, R> {
    type Session = MeddledSession<R::Session>;
    type Reader = MeddledSession<R::Reader>;

    fn config(&self) -> &RepositoryConfig {
        self.inner.config()
    }

    fn owner(&self) -> OwnerId {
        self.inner.owner()
    }

    async fn begin(&self, begin: Begin) -> Result<(Self::Session, Begun)> {
        self.meddling.operation("begin")?;
        let (session, begun) = self.inner.begin(begin).await?;
        Ok((self.session(session), begun))
    }

    async fn read(&self, points: &[PointId]) -> Result<Self::Reader> {
        self.meddling.operation("read")?;
        Ok(self.session(self.inner.read(points).await?))
    }

    async fn list(&self, filter: &PointFilter) -> Result<Vec<RecoveryPoint>> {
        self.meddling.operation("list")?;
        self.inner.list(filter).await
    }

    async fn stats(&self) -> Result<Stats> {
        self.inner.stats().await
    }

    async fn log_head(&self) -> Result<LogHead> {
        self.meddling.operation("log_head")?;
        self.inner.log_head().await
    }

    async fn has_been(&self, seen: LogHead) -> Result<bool> {
        self.meddling.operation("has_been")?;
        self.inner.has_been(seen).await
    }

    async fn peer(&self, repository: RepositoryId) -> Result<Option<LogHead>> {
        self.meddling.operation("peer")?;
        self.inner.peer(repository).await
    }

    async fn change_points(&self, points: &[PointId], change: PointChange) -> Result<()> {
        self.meddling.operation("change_points")?;
        self.inner.change_points(points, change).await
    }

    async fn annotate(&self, point: PointId, labels: &[(String, String)]) -> Result<()> {
        self.meddling.operation("annotate")?;
        self.inner.annotate(point, labels).await
    }

    async fn wanted(&self, after: Option<ChunkId>) -> Result<Vec<ChunkId>> {
        self.meddling.operation("wanted")?;
        self.inner.wanted(after).await
    }

    async fn move_machine(&self, machine: MachineId, origin: RepositoryId, owner: Option<Name>) -> Result<()> {
        self.meddling.operation("move_machine")?;
        self.inner.move_machine(machine, origin, owner).await
    }

    async fn given_up(&self) -> Result<Vec<GivenUp>> {
        self.meddling.operation("given_up")?;
        self.inner.given_up().await
    }

    async fn log(&self, after: u64) -> Result<Vec<LogEntry>> {
        self.meddling.operation("log")?;
        self.inner.log(after).await
    }

    async fn sweep(&self, options: SweepOptions, progress: Arc<Progress>) -> Result<SweepReport> {
        self.meddling.operation("sweep")?;
        self.inner.sweep(options, progress).await
    }

    async fn rebuild_index(&self, progress: Arc<Progress>) -> Result<IndexTotals> {
        self.meddling.operation("rebuild_index")?;
        self.inner.rebuild_index(progress).await
    }

    async fn verify(&self, options: VerifyOptions, progress: Arc<Progress>) -> Result<VerifyReport> {
        self.meddling.operation("verify")?;
        self.inner.verify(options, progress).await
    }
}

impl<S: ReadSession> ReadSession for MeddledSession<S> {
    async fn manifest(&self, point: PointId) -> Result<Manifest> {
        self.meddling.operation("manifest")?;
        self.inner.manifest(point).await
    }

    fn get(&self, ids: Vec<ChunkId>) -> impl Stream<Item = ChunkBatch> + Send {
        self.inner.get(ids).map(|batch| self.meddling.batch(batch))
    }
}

impl<S: WriteSession> WriteSession for MeddledSession<S> {
    async fn missing(&self, kind: ChunkKind, ids: &[ChunkId]) -> Result<Vec<Presence>> {
        self.meddling.operation("missing")?;
        let late = self.meddling.plan().late;
        if !late.is_zero() {
            tokio::time::sleep(late).await;
        }
        let mut present = self.inner.missing(kind, ids).await?;
        let mut plan = self.meddling.plan();
        *plan.asked.entry(kind).or_default() += ids.len() as u64;
        let lies = ids.iter().zip(&mut present).filter(|(id, _)| plan.have.contains(id));
        lies.for_each(|(_, presence)| *presence = Presence::Have);
        Ok(present)
    }

    async fn put(&self, chunks: Vec<(ChunkId, Blob)>) -> Result<()> {
        self.meddling.operation("put")?;
        self.meddling.plan().put.extend(chunks.iter().map(|(id, _)| *id));
        self.inner.put(chunks).await
    }

    async fn flush(&self) -> Result<StoredTotals> {
        self.meddling.operation("flush")?;
        self.inner.flush().await
    }

    async fn stored(&self) -> Result<StoredTotals> {
        self.inner.stored().await
    }

    async fn commit(&self, points: &[PointDraft]) -> Result<Commit> {
        self.meddling.operation("commit")?;
        self.meddling.plan().have.clear();
        self.inner.commit(points).await
    }

    async fn abandon(self) -> Result<()> {
        self.meddling.operation("abandon")?;
        self.inner.abandon().await
    }
}
