//! A repository of one of two kinds, for a job that runs on a directory or across the wire, as its address says.

use crate::{
    Begin, Begun, ChunkBatch, Commit, GivenUp, IndexTotals, LogEntry, LogHead, MachineId, Manifest, Name, OwnerId,
    PointChange, PointDraft, PointFilter, PointId, Presence, Progress, ReadSession, RecoveryPoint, Repository,
    RepositoryConfig, RepositoryId, Result, Stats, StoredTotals, SweepOptions, SweepReport, VerifyOptions,
    VerifyReport, WriteSession,
};
use chunker::{Blob, ChunkId, ChunkKind, DomainKeys};
use futures::{Stream, StreamExt};
use std::sync::Arc;

/// One of two kinds of repositories or sessions.
#[derive(Debug, Clone)]
pub enum Either<A, B> {
    /// The first kind.
    Left(A),
    /// The second kind.
    Right(B),
}

/// Makes the same call on the kind that is there.
macro_rules! on_both {
    ($either:expr, $it:ident => $call:expr) => {
        match $either {
            Either::Left($it) => $call,
            Either::Right($it) => $call,
        }
    };
}

impl<A: Repository, B: Repository> Repository for Either<A, B> {
    type Session = Either<A::Session, B::Session>;
    type Reader = Either<A::Reader, B::Reader>;

    fn config(&self) -> &RepositoryConfig {
        on_both!(self, it => it.config())
    }

    fn owner(&self) -> OwnerId {
        on_both!(self, it => it.owner())
    }

    async fn begin(&self, begin: Begin) -> Result<(Self::Session, Begun)> {
        Ok(match self {
            Self::Left(it) => it.begin(begin).await.map(|(session, begun)| (Either::Left(session), begun))?,
            Self::Right(it) => it.begin(begin).await.map(|(session, begun)| (Either::Right(session), begun))?,
        })
    }

    async fn read(&self, points: &[PointId]) -> Result<Self::Reader> {
        Ok(match self {
            Self::Left(it) => Either::Left(it.read(points).await?),
            Self::Right(it) => Either::Right(it.read(points).await?),
        })
    }

    async fn list(&self, filter: &PointFilter) -> Result<Vec<RecoveryPoint>> {
        on_both!(self, it => it.list(filter).await)
    }

    async fn stats(&self) -> Result<Stats> {
        on_both!(self, it => it.stats().await)
    }

    async fn log_head(&self) -> Result<LogHead> {
        on_both!(self, it => it.log_head().await)
    }

    async fn has_been(&self, seen: LogHead) -> Result<bool> {
        on_both!(self, it => it.has_been(seen).await)
    }

    async fn peer(&self, repository: RepositoryId) -> Result<Option<LogHead>> {
        on_both!(self, it => it.peer(repository).await)
    }

    async fn change_points(&self, points: &[PointId], change: PointChange) -> Result<()> {
        on_both!(self, it => it.change_points(points, change).await)
    }

    async fn annotate(&self, point: PointId, labels: &[(String, String)]) -> Result<()> {
        on_both!(self, it => it.annotate(point, labels).await)
    }

    async fn wanted(&self, after: Option<ChunkId>) -> Result<Vec<ChunkId>> {
        on_both!(self, it => it.wanted(after).await)
    }

    async fn move_machine(&self, machine: MachineId, origin: RepositoryId, owner: Option<Name>) -> Result<()> {
        on_both!(self, it => it.move_machine(machine, origin, owner).await)
    }

    async fn given_up(&self) -> Result<Vec<GivenUp>> {
        on_both!(self, it => it.given_up().await)
    }

    async fn log(&self, after: u64) -> Result<Vec<LogEntry>> {
        on_both!(self, it => it.log(after).await)
    }

    async fn sweep(&self, options: SweepOptions, progress: Arc<Progress>) -> Result<SweepReport> {
        on_both!(self, it => it.sweep(options, progress).await)
    }

    async fn rebuild_index(&self, progress: Arc<Progress>) -> Result<IndexTotals> {
        on_both!(self, it => it.rebuild_index(progress).await)
    }

    async fn verify(&self, options: VerifyOptions, progress: Arc<Progress>) -> Result<VerifyReport> {
        on_both!(self, it => it.verify(options, progress).await)
    }
}

impl<A: ReadSession, B: ReadSession> ReadSession for Either<A, B> {
    async fn manifest(&self, point: PointId) -> Result<Manifest> {
        on_both!(self, it => it.manifest(point).await)
    }

    fn get(&self, ids: Vec<ChunkId>) -> impl Stream<Item = ChunkBatch> + Send {
        match self {
            Self::Left(it) => it.get(ids).left_stream(),
            Self::Right(it) => it.get(ids).right_stream(),
        }
    }

    async fn get_verified(&self, keys: &DomainKeys, ids: Vec<ChunkId>) -> ChunkBatch {
        on_both!(self, it => it.get_verified(keys, ids).await)
    }
}

impl<A: WriteSession, B: WriteSession> WriteSession for Either<A, B> {
    async fn missing(&self, kind: ChunkKind, ids: &[ChunkId]) -> Result<Vec<Presence>> {
        on_both!(self, it => it.missing(kind, ids).await)
    }

    async fn put(&self, chunks: Vec<(ChunkId, Blob)>) -> Result<()> {
        on_both!(self, it => it.put(chunks).await)
    }

    async fn flush(&self) -> Result<StoredTotals> {
        on_both!(self, it => it.flush().await)
    }

    async fn stored(&self) -> Result<StoredTotals> {
        on_both!(self, it => it.stored().await)
    }

    async fn commit(&self, points: &[PointDraft]) -> Result<Commit> {
        on_both!(self, it => it.commit(points).await)
    }

    async fn abandon(self) -> Result<()> {
        on_both!(self, it => it.abandon().await)
    }
}
