//! A repository in memory, for tests and simulation: it keeps every promise of [`Repository`], and tests can make it
//! fail.

mod control;
mod fault;
mod state;
mod sweep;

pub use fault::{Fault, FaultEffect};

use crate::record::closure::{Presences, missing_for};
use crate::{
    Begin, Begun, ChunkBatch, Commit, Error, GivenUp, IndexTotals, LogEntry, LogHead, MachineId, Manifest, Name,
    OwnerId, PointChange, PointDraft, PointFilter, PointId, Presence, Progress, ReadSession, RecoveryPoint, Repository,
    RepositoryConfig, RepositoryId, Result, SessionId, Shape, Stats, StoredTotals, SweepOptions, SweepReport,
    Timestamp, Verification, VerifyOptions, VerifyReport, World, WriteSession, with_compressor, with_decoder,
};
use chunker::{Blob, BlobError, ChunkId, ChunkKind, Compression, DomainKey, DomainKeys};
use futures::{Stream, stream};
use state::State;
use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::Semaphore;
use tokio::task::yield_now;

/// A repository in memory. A clone is another handle on the same repository. Operations that only tests use are
/// inherent methods.
///
/// It is as unpleasant as the traits allow: an error of a put is returned by a later call, chunks come in another order
/// than asked for, chunks that are not flushed cannot be read, and operations queue and give way to each other.
#[derive(Clone)]
pub struct Mem(Arc<Shared>);

struct Shared {
    config: RepositoryConfig,
    keys: DomainKeys,
    world: World,
    state: Mutex<State>,
    /// Operations enter one at a time, in the order in which they queue. A caller that stops polling its operation
    /// holds up all operations behind it.
    door: Semaphore,
}

/// A write session on [`Mem`].
pub struct MemSession {
    lease: MemReader,
    begin: Begin,
}

/// A read session on [`Mem`].
pub struct MemReader {
    shared: Arc<Shared>,
    id: SessionId,
}

impl Mem {
    /// An empty repository in a dedup domain of its own.
    pub fn new(world: &World) -> Self {
        Self::in_domain(world, DomainKey(world.random_bytes()))
    }

    /// An empty repository in this dedup domain.
    pub fn in_domain(world: &World, domain: DomainKey) -> Self {
        let keys = DomainKeys::new(&domain);
        let config = RepositoryConfig { id: RepositoryId::random(world), domain, created: world.now() };
        Self(Arc::new(Shared { config, keys, world: world.clone(), state: Mutex::default(), door: Semaphore::new(1) }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state()
    }

    fn reader(&self, pins: &[PointId]) -> Result<MemReader> {
        let id = SessionId::random(&self.0.world);
        self.state().open_session(id, pins.to_vec())?;
        Ok(MemReader { shared: self.0.clone(), id })
    }
}

impl Repository for Mem {
    type Session = MemSession;
    type Reader = MemReader;

    fn config(&self) -> &RepositoryConfig {
        &self.0.config
    }

    fn owner(&self) -> OwnerId {
        OwnerId::default()
    }

    async fn begin(&self, begin: Begin) -> Result<(MemSession, Begun)> {
        let answer = self.0.operation("begin").await?;
        let id = SessionId::random(&self.0.world);
        let suspects = self.state().begin(id, &begin, &self.0.keys)?;
        let lease = MemReader { shared: self.0.clone(), id };
        answer.given((MemSession { lease, begin }, Begun { suspects }))
    }

    async fn read(&self, points: &[PointId]) -> Result<MemReader> {
        let answer = self.0.operation("read").await?;
        answer.given(self.reader(points)?)
    }

    async fn list(&self, filter: &PointFilter) -> Result<Vec<RecoveryPoint>> {
        let answer = self.0.operation("list").await?;
        answer.given(self.state().list(filter))
    }

    async fn stats(&self) -> Result<Stats> {
        let answer = self.0.operation("stats").await?;
        answer.given(self.state().stats())
    }

    async fn log(&self, _: u64) -> Result<Vec<LogEntry>> {
        self.0.operation("log").await?;
        Err(Error::usage("a repository in memory keeps no log"))
    }

    async fn wanted(&self, after: Option<ChunkId>) -> Result<Vec<ChunkId>> {
        let answer = self.0.operation("wanted").await?;
        answer.given(self.state().wanted(after, Self::WANTED_MAX))
    }

    async fn log_head(&self) -> Result<LogHead> {
        let answer = self.0.operation("log_head").await?;
        answer.given(self.state().log)
    }

    async fn has_been(&self, seen: LogHead) -> Result<bool> {
        let answer = self.0.operation("has_been").await?;
        answer.given(self.state().has_been(seen))
    }

    async fn peer(&self, repository: RepositoryId) -> Result<Option<LogHead>> {
        let answer = self.0.operation("peer").await?;
        answer.given(self.state().peers.get(&repository).copied())
    }

    async fn change_points(&self, points: &[PointId], change: PointChange) -> Result<()> {
        let answer = self.0.operation("change_points").await?;
        let now = self.0.world.now();
        answer.given(self.state().change_points(points, change, now)?)
    }

    async fn move_machine(&self, machine: MachineId, origin: RepositoryId, owner: Option<Name>) -> Result<()> {
        let answer = self.0.operation("move_machine").await?;
        answer.given(self.state().move_machine((machine, origin), owner)?)
    }

    async fn given_up(&self) -> Result<Vec<GivenUp>> {
        let answer = self.0.operation("given_up").await?;
        let state = self.state();
        let one = |((machine, origin), newest): (&(MachineId, RepositoryId), &Timestamp)| GivenUp {
            machine: *machine,
            origin: *origin,
            newest: *newest,
        };
        answer.given(state.given_up.iter().take(GivenUp::MAX).map(one).collect())
    }

    async fn annotate(&self, point: PointId, labels: &[(String, String)]) -> Result<()> {
        let answer = self.0.operation("annotate").await?;
        answer.given(self.state().annotate(point, labels)?)
    }

    async fn sweep(&self, options: SweepOptions, _: Arc<Progress>) -> Result<SweepReport> {
        let answer = self.0.operation("sweep").await?;
        answer.given(self.state().sweep(&self.0.keys, options)?)
    }

    /// There are no packs, and chunks are found by their ids.
    async fn rebuild_index(&self, _: Arc<Progress>) -> Result<IndexTotals> {
        let answer = self.0.operation("rebuild_index").await?;
        answer.given(IndexTotals { packs: 0, chunks: self.state().stats().chunks })
    }

    /// Every chunk is decoded, whatever was asked: it costs no reading here.
    async fn verify(&self, _: VerifyOptions, _: Arc<Progress>) -> Result<VerifyReport> {
        let answer = self.0.operation("verify").await?;
        answer.given(self.state().verify(&self.0.keys))
    }
}

impl ReadSession for MemReader {
    async fn manifest(&self, point: PointId) -> Result<Manifest> {
        let answer = self.shared.operation("manifest").await?;
        let mut state = self.shared.state();
        if !state.live(self.id)?.pins.contains(&point) {
            return Err(Error::not_found(format!("the session does not pin point {point}")));
        }
        answer.given(state.manifest(point, &self.shared.keys)?)
    }

    fn get(&self, ids: Vec<ChunkId>) -> impl Stream<Item = ChunkBatch> + Send {
        let ids: BTreeSet<ChunkId> = ids.into_iter().collect();
        let ids: Vec<ChunkId> = ids.into_iter().collect();
        stream::unfold(ids, move |mut rest| async move {
            let batch = rest.split_off(rest.len().saturating_sub(BATCH_CHUNKS));
            if batch.is_empty() {
                return None;
            }
            let answer = self.shared.operation("get").await.and_then(|answer| answer.given(()));
            let mut state = self.shared.state();
            let answer = answer.and_then(|()| state.lease(self.id).map(|_| ()));
            let one = |id| match &answer {
                Ok(()) => (id, state.read(id)),
                Err(error) => (id, Err(crate::ChunkError::unreadable(id, error))),
            };
            Some((batch.into_iter().map(one).collect(), rest))
        })
    }
}

impl Drop for MemReader {
    fn drop(&mut self) {
        self.shared.state().sessions.remove(&self.id);
    }
}

impl ReadSession for MemSession {
    async fn manifest(&self, point: PointId) -> Result<Manifest> {
        self.lease.manifest(point).await
    }

    fn get(&self, ids: Vec<ChunkId>) -> impl Stream<Item = ChunkBatch> + Send {
        self.lease.get(ids)
    }
}

impl WriteSession for MemSession {
    async fn missing(&self, _kind: ChunkKind, ids: &[ChunkId]) -> Result<Vec<Presence>> {
        let answer = self.shared().operation("missing").await?;
        let mut state = self.shared().state();
        state.live(self.lease.id)?;
        let made: Vec<Presence> = ids.iter().map(|id| state.presence(id)).collect();
        state.live(self.lease.id)?.shares_open |= made.contains(&Presence::Pending);
        answer.given(made)
    }

    async fn put(&self, chunks: Vec<(ChunkId, Blob)>) -> Result<()> {
        let answer = self.shared().operation("put").await;
        let mut state = self.shared().state();
        state.live(self.lease.id)?;
        let taken = answer.and_then(|answer| {
            for (id, blob) in chunks {
                self.verify(id, &blob)
                    .map_err(|error| Error::integrity(format!("refused chunk {id}")).because(error))?;
                state.put(self.lease.id, id, blob);
            }
            answer.given(())
        });
        // As over a network: the next call tells.
        if let Err(error) = taken {
            state.fail(self.lease.id, &error);
        }
        Ok(())
    }

    async fn flush(&self) -> Result<StoredTotals> {
        let answer = self.shared().operation("flush").await;
        let mut state = self.shared().state();
        state.lease(self.lease.id)?;
        state.seal(answer.as_ref().err());
        let flushed = state.lease(self.lease.id)?.flushed;
        answer?.given(flushed)
    }

    async fn stored(&self) -> Result<StoredTotals> {
        Ok(self.shared().state().lease(self.lease.id).map(|lease| lease.flushed).unwrap_or_default())
    }

    async fn commit(&self, points: &[PointDraft]) -> Result<Commit> {
        let answer = self.shared().operation("commit").await?;
        let manifests = self.encode(points)?;
        loop {
            let (parents, losses) = {
                let mut state = self.shared().state();
                self.may_commit(&state, points)?;
                let there = state.committed(points);
                if there.len() == points.len() {
                    state.bring_back(points);
                    state.end(self.lease.id);
                    return answer.given(Commit::Committed(state.committed(points)));
                }
                state.live(self.lease.id)?;
                state.seal(None);
                let pins = state.live(self.lease.id)?.pins.clone();
                let parents = pins.iter().filter_map(|pin| state.manifest(*pin, &self.shared().keys).ok());
                (parents.collect::<Vec<_>>(), state.losses)
            };
            let mut missing = BTreeSet::new();
            for draft in points {
                let keys = &self.shared().keys;
                missing.extend(missing_for(self, keys, &draft.manifest, &parents, self, MISSING_MAX).await?);
            }
            let mut state = self.shared().state();
            if !missing.is_empty() {
                return answer.given(Commit::Missing(missing.into_iter().take(MISSING_MAX).collect()));
            }
            // What was checked still holds, or it is checked again.
            if state.losses == losses {
                let (config, now) = (&self.shared().config, self.shared().world.now());
                self.may_commit(&state, points)?;
                let made = state.commit((self.lease.id, &self.begin), points, &manifests, config, now)?;
                return answer.given(Commit::Committed(made));
            }
        }
    }

    async fn abandon(self) -> Result<()> {
        let answer = self.shared().operation("abandon").await?;
        self.shared().state().end(self.lease.id);
        answer.given(())
    }
}

impl MemSession {
    fn shared(&self) -> &Shared {
        &self.lease.shared
    }

    fn may_commit(&self, state: &State, points: &[PointDraft]) -> Result<()> {
        self.begin.may_commit(points, &state.points, self.shared().config.id, self.shared().world.now())
    }

    fn verify(&self, id: ChunkId, blob: &Blob) -> Result<(), BlobError> {
        blob.check()?;
        match self.begin.verification {
            Verification::Checksum => Ok(()),
            Verification::Decode => {
                with_decoder(|decoder| decoder.decode_verified(&self.shared().keys, &id, blob, &mut Vec::new()))
            }
        }
    }

    /// The manifests' chunks. Refuses a manifest that does not read back unchanged, and two manifests of one point.
    fn encode(&self, points: &[PointDraft]) -> Result<Vec<(ChunkId, Blob)>> {
        let ids: HashSet<PointId> = points.iter().map(|draft| draft.manifest.point).collect();
        if points.is_empty() || ids.len() != points.len() {
            return Err(Error::usage("a commit of no points, or of one point twice"));
        }
        let encode = |draft: &PointDraft| {
            let plain = draft.manifest.encode_checked()?;
            let blob =
                with_compressor(Compression::default(), |compressor| compressor.compress(ChunkKind::Manifest, &plain));
            Ok((self.shared().keys.id(ChunkKind::Manifest, &plain), blob))
        };
        points.iter().map(encode).collect()
    }
}

impl Presences for MemSession {
    async fn shapes(&self, ids: Vec<ChunkId>) -> Result<Vec<Option<Shape>>> {
        let state = self.shared().state();
        Ok(ids.iter().map(|id| state.shape(id)).collect())
    }
}

/// An operation on its way.
struct Answer {
    lost: bool,
}

impl Answer {
    fn given<T>(self, value: T) -> Result<T> {
        if self.lost { Err(Error::transport("the answer was lost")) } else { Ok(value) }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        #[cfg(test)]
        tests::interleavings::others_may_come_first();
        self.state.lock().expect("not poisoned")
    }

    /// Counts an operation; lets a planned fault strike.
    async fn operation(&self, name: &'static str) -> Result<Answer> {
        let inside = self.door.acquire().await.expect("never closed");
        yield_now().await;
        drop(inside);
        let mut state = self.state();
        *state.operations.entry(name).or_default() += 1;
        let struck = state.faults.iter().find(|fault| fault.after == 0).map(|fault| fault.effect);
        state.faults.retain_mut(|fault| {
            let stays = fault.after > 0;
            fault.after = fault.after.saturating_sub(1);
            stays
        });
        match struck {
            Some(FaultEffect::Fails(kind)) => Err(Error::new(kind, format!("{name} failed as planned"))),
            Some(FaultEffect::AnswerLost) => Ok(Answer { lost: true }),
            None => Ok(Answer { lost: false }),
        }
    }
}

/// Chunks in one batch.
const BATCH_CHUNKS: usize = 64;

/// Most ids in one [`Commit::Missing`].
const MISSING_MAX: usize = 1024;

#[cfg(test)]
mod tests;
