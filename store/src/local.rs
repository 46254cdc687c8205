//! `Local`: the trait [`Repository`] on a repository that this process has opened.

use crate::format::event::SessionOpened;
use crate::reader::Reader;
use crate::repository::Inner;
use crate::room::reserved;
use crate::session::Session;
use crate::suspects::suspects;
use crate::sweep::DEAD_BYTES;
use chunker::ChunkId;
use mover::{
    Begin, Begun, Error, GivenUp, IndexTotals, LogEntry, LogHead, MachineId, Name, OwnerId, PointChange, PointFilter,
    PointId, Progress, Reach, RecoveryPoint, Repository, RepositoryConfig, RepositoryId, Result, SessionId, Stats,
    SweepOptions, SweepReport, VerifyOptions, VerifyReport,
};
use std::sync::Arc;

/// How a repository is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// As the one process that adds packs.
    Write,
    /// For reading, also while another process writes. It writes nothing but its sessions to the log.
    Read,
}

/// A repository in a directory. Cloning gives another handle to the same one.
#[derive(Clone)]
pub struct Local {
    pub(crate) inner: Arc<Inner>,
}

impl Local {
    /// From now on a proxy learns only about chunks that its owner has had. The value that this returns remembers which
    /// chunks an owner has had.
    pub fn keep_owners_apart(&self) -> Arc<dyn Reach> {
        self.inner.answers.keep_owners_apart();
        self.inner.clone()
    }

    /// Ends all writing. Packs that are durable and not in the log are logged, and the index is made durable. If this
    /// is not called, the next opening does the same.
    ///
    /// # Errors
    /// When the storage fails.
    pub async fn close(self) -> Result<()> {
        let packer = self.inner.packs.packer().ok();
        if let Some(packer) = &packer {
            packer.flush().await?;
        }
        let close = move |inner: &Inner| {
            if packer.is_some() {
                inner.append(|_| Ok(Vec::new()))?;
                inner.packs.stop();
            }
            inner.room.keep_reserve_again();
            if let Err(error) = inner.index.flush() {
                tracing::warn!(%error, "the next opening adds to the index what this one could not");
            }
            Ok(())
        };
        self.inner.with(close).await
    }

    /// The end of the log that this process has seen.
    pub fn end(&self) -> LogHead {
        self.inner.state().end()
    }
}

impl Repository for Local {
    type Session = Session;
    type Reader = Reader;

    fn config(&self) -> &RepositoryConfig {
        &self.inner.config.config
    }

    fn owner(&self) -> OwnerId {
        OwnerId::default()
    }

    async fn begin(&self, begin: Begin) -> Result<(Session, Begun)> {
        let packer = self.inner.packs.packer()?;
        self.inner.with(|inner| inner.room.check_room().inspect(|()| inner.reopen_index())).await?;
        let session = SessionId::random(&self.inner.world);
        let opened = SessionOpened {
            session,
            writes: true,
            owner: begin.owner(),
            point: begin.point,
            pins: begin.parents.clone(),
            extensions: Vec::new(),
        };
        self.inner.with(move |inner| inner.open_session(&opened)).await?;
        let session = Session::new(self.inner.clone(), session, packer, &begin);
        let suspects = suspects(&self.inner, &session, &begin.parents).await?;
        Ok((session, Begun { suspects }))
    }

    async fn read(&self, points: &[PointId]) -> Result<Reader> {
        if points.is_empty() {
            Ok(Reader::unpinned(self.inner.clone()))
        } else {
            Reader::hold(&self.inner, points).await
        }
    }

    async fn list(&self, filter: &PointFilter) -> Result<Vec<RecoveryPoint>> {
        let state = self.inner.with(Inner::known).await?;
        let fits = |point: &RecoveryPoint| {
            filter.machine.as_ref().is_none_or(|name| point.machine_name == *name)
                && point.forgotten == filter.forgotten
        };
        let mut ids: Vec<_> = state.points().iter().map(|(id, point)| (point.since, *id)).collect();
        ids.sort_unstable();
        Ok(ids.into_iter().filter_map(|(_, id)| state.recovery_point(id)).filter(fits).collect())
    }

    async fn stats(&self) -> Result<Stats> {
        let state = self.inner.with(Inner::known).await?;
        let points = state.points().values().filter(|point| point.forgotten.is_none());
        let (mut stats, packs) = (Stats::default(), state.packs().values());
        for point in points {
            stats.points += 1;
            stats.bytes_logical = stats.bytes_logical.saturating_add(point.committed.bytes_logical);
        }
        for pack in packs {
            stats.packs += 1;
            stats.chunks += u64::from(pack.added.chunks);
            stats.bytes_stored += pack.added.bytes;
            stats.bytes_waiting += if pack.doomed.is_some() { pack.added.bytes } else { 0 };
        }
        self.inner.health.tell_verified(&state, self.inner.world.now(), &mut stats);
        stats.bytes_dead = state.setting(DEAD_BYTES).and_then(|text| text.parse().ok());
        if let Ok(space) = self.inner.room.space() {
            (stats.bytes_free, stats.bytes_reserved) = (Some(space.free), reserved(space));
        }
        stats.suspects = self.inner.with(move |inner| inner.unhealed(&state)).await?.len() as u64;
        Ok(stats)
    }

    async fn log_head(&self) -> Result<LogHead> {
        Ok(self.inner.with(Inner::known).await?.end())
    }

    async fn has_been(&self, seen: LogHead) -> Result<bool> {
        self.inner
            .with(move |inner| {
                inner.known()?;
                inner.log.hold().passed(seen)
            })
            .await
    }

    async fn peer(&self, repository: RepositoryId) -> Result<Option<LogHead>> {
        Ok(self.inner.with(Inner::known).await?.peer(repository))
    }

    async fn change_points(&self, points: &[PointId], change: PointChange) -> Result<()> {
        let points = points.to_vec();
        self.inner
            .with(move |inner| {
                let changed = inner.change_points(&points, change);
                inner.room.keep_reserve_again();
                changed
            })
            .await
    }

    async fn annotate(&self, point: PointId, labels: &[(String, String)]) -> Result<()> {
        let labels = labels.to_vec();
        self.inner.with(move |inner| inner.annotate(point, &labels)).await
    }

    async fn wanted(&self, after: Option<ChunkId>) -> Result<Vec<ChunkId>> {
        self.inner.with(move |inner| inner.wanted(after, Self::WANTED_MAX)).await
    }

    async fn log(&self, after: u64) -> Result<Vec<LogEntry>> {
        self.inner.with(move |inner| inner.log_after(after)).await
    }

    async fn move_machine(&self, machine: MachineId, origin: RepositoryId, owner: Option<Name>) -> Result<()> {
        self.inner.with(move |inner| inner.move_machine((machine, origin), owner.as_ref())).await
    }

    async fn given_up(&self) -> Result<Vec<GivenUp>> {
        Ok(self.inner.with(Inner::known).await?.given_up().take(GivenUp::MAX).collect())
    }

    async fn sweep(&self, options: SweepOptions, progress: Arc<Progress>) -> Result<SweepReport> {
        // Whoever asked may go away: what was begun comes to its end.
        let inner = self.inner.clone();
        let swept = tokio::spawn(async move { inner.sweep_through(options, progress).await }).await;
        swept.map_err(|error| Error::internal("the sweep ended").because(error))?
    }

    async fn rebuild_index(&self, progress: Arc<Progress>) -> Result<IndexTotals> {
        self.inner.with(move |inner| inner.rebuild_index(&progress)).await
    }

    async fn verify(&self, options: VerifyOptions, progress: Arc<Progress>) -> Result<VerifyReport> {
        self.inner.look_through(options, progress).await
    }
}
