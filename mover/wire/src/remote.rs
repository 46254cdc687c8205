//! A repository on a storage node: the client's half.

use super::answer::Replies;
use super::bounded;
use super::bulk::{self, ID_BYTES};
use super::frame::{Frame, FrameError};
use super::link::{CallError, Link, Peer, unexpected};
use super::message::{
    AnnotateIn, BeginIn, ChangeIn, CommitIn, GET_IDS_MAX, HasBeen, IDS_MAX, List, LogAfter, ManifestOf, MissingIn,
    MoveIn, Open, PUT_BYTES_MAX, PUT_PLAIN_BYTES_MAX, PeerOf, Put, ReadIn, Reply, RepositoryRef, Request, SessionRef,
    WantedOf, WireDraft, presence,
};
use super::presence::PresenceBatcher;
use super::quic::WINDOW_BYTES;
use super::waits::ATTEMPTS;
use bytes::Bytes;
use chunker::{Blob, ChunkId, ChunkKind, DomainKey, DomainKeys};
use futures::future::try_join_all;
use futures::{Stream, stream};
use mover::{
    Begin, Begun, ChunkBatch, ChunkError, Commit, Error, GivenUp, IndexTotals, LogEntry, LogHead, MachineId, Manifest,
    Name, OwnerId, PointChange, PointDraft, PointFilter, PointId, Presence, Progress, ReadSession, RecoveryPoint,
    Repository, RepositoryConfig, RepositoryId, Result, SessionId, Stats, StoredTotals, SweepOptions, SweepReport,
    VerifyOptions, VerifyReport, WriteSession,
};
use quinn::Endpoint;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// A repository on a storage node.
#[derive(Debug, Clone)]
pub struct Remote {
    pub(super) link: Arc<Link>,
    config: RepositoryConfig,
    owner: OwnerId,
    /// The points that came with the opening, for the first call that lists them.
    listed: Arc<Mutex<Option<Listed>>>,
}

/// When a list of points came, the filter that it answers, and the points.
type Listed = (Instant, PointFilter, Vec<RecoveryPoint>);

impl Remote {
    /// Connects and finds the repository of this name. The points of `machine` come along, for a caller that will ask
    /// for them soon.
    ///
    /// # Errors
    /// `Transport`, `NotAuthorised`, `NotFound`.
    pub async fn connect(endpoint: Endpoint, peer: Peer, name: &str, machine: Option<&Name>) -> Result<Self> {
        let link = Arc::new(Link::new(endpoint, peer));
        let open = Request::Open(Open { name: name.to_owned(), machine: machine.cloned() });
        let answer = match link.gather(&open, &[], bounded::opened).await {
            Ok(answer) => answer,
            Err(error) => {
                // Else the node waits for more, and who asks again and again in vain has too many connections.
                link.close().await;
                return Err(error.into());
            }
        };
        let bounded::OpenedWith { opened: Some(opened), points } = answer else { return Err(unexpected()) };
        let config =
            RepositoryConfig { id: opened.repository, domain: DomainKey(opened.domain), created: opened.created };
        let filter = |machine: &Name| PointFilter { machine: Some(machine.clone()), forgotten: false };
        let listed = machine.map(|machine| (Instant::now(), filter(machine), points));
        Ok(Self { link, config, owner: opened.owner, listed: Arc::new(Mutex::new(listed)) })
    }

    /// Tells the node that nothing more comes.
    pub async fn close(self) {
        self.link.close().await;
    }

    async fn ask(&self, request: Request) -> Result<Reply> {
        Ok(self.link.call(&request, &[]).await?.0)
    }

    fn whole(&self) -> RepositoryRef {
        RepositoryRef { repository: self.config.id }
    }
}

/// A session without parents is begun while the caller goes on, because a node that is far away answers late, and the
/// caller learns nothing from the answer. If the node cannot begin the session, the first use fails.
impl Repository for Remote {
    type Session = RemoteSession;
    type Reader = RemoteReader;

    fn config(&self) -> &RepositoryConfig {
        &self.config
    }

    fn owner(&self) -> OwnerId {
        self.owner
    }

    async fn begin(&self, begin: Begin) -> Result<(RemoteSession, Begun)> {
        self.link.expect_chunks();
        let (id, begun) = match begin.parents.is_empty() {
            true => (None, Begun::default()),
            false => open_write(&self.link, self.config.id, &begin).await.map(|(id, begun)| (Some(id), begun))?,
        };
        let lease = Lease::new(&self.link, id, Opening::Write(self.config.id, begin));
        let shared =
            Arc::new(Shared { lease, in_flight: Mutex::default(), failed: Mutex::default(), stored: Mutex::default() });
        if id.is_none() {
            let shared = shared.clone();
            tokio::spawn(async move { shared.lease.open(None).await });
        }
        let window = Arc::new(Semaphore::new(WINDOW_BYTES as usize));
        Ok((RemoteSession { shared, window, questions: PresenceBatcher::default() }, begun))
    }

    async fn read(&self, points: &[PointId]) -> Result<RemoteReader> {
        self.link.expect_chunks();
        let id = open_read(&self.link, self.config.id, points).await?;
        let open = Opening::Read(self.config.id, points.to_vec());
        Ok(RemoteReader { lease: Lease::new(&self.link, Some(id), open) })
    }

    async fn list(&self, filter: &PointFilter) -> Result<Vec<RecoveryPoint>> {
        let listed = self.listed.lock().expect("no holder panics").take_if(|(_, known, _)| known == filter);
        if let Some((_, _, points)) = listed.filter(|(came, ..)| came.elapsed() < LISTED_AGE_MAX) {
            return Ok(points);
        }
        let request = Request::List(List {
            repository: self.config.id,
            machine: filter.machine.clone(),
            forgotten: filter.forgotten,
        });
        Ok(self.link.gather(&request, &[], bounded::points).await?)
    }

    async fn stats(&self) -> Result<Stats> {
        match self.ask(Request::Stats(self.whole())).await? {
            Reply::Totals(stats) => Ok(stats),
            _ => Err(unexpected()),
        }
    }

    async fn log_head(&self) -> Result<LogHead> {
        match self.ask(Request::LogHead(self.whole())).await? {
            Reply::LogHead(log_head) => Ok(log_head),
            _ => Err(unexpected()),
        }
    }

    async fn has_been(&self, seen: LogHead) -> Result<bool> {
        match self.ask(Request::HasBeen(HasBeen { repository: self.config.id, seen })).await? {
            Reply::Answer(answer) => Ok(answer),
            _ => Err(unexpected()),
        }
    }

    async fn peer(&self, repository: RepositoryId) -> Result<Option<LogHead>> {
        match self.ask(Request::Peer(PeerOf { repository: self.config.id, peer: repository })).await? {
            Reply::Seen(seen) => Ok(seen),
            _ => Err(unexpected()),
        }
    }

    async fn change_points(&self, points: &[PointId], change: PointChange) -> Result<()> {
        let request = ChangeIn { repository: self.config.id, change, points: points.to_vec() };
        match self.ask(Request::ChangePoints(request)).await? {
            Reply::Done(()) => Ok(()),
            _ => Err(unexpected()),
        }
    }

    async fn wanted(&self, after: Option<ChunkId>) -> Result<Vec<ChunkId>> {
        let request = WantedOf { repository: self.config.id, after: after.map(|id| id.0) };
        match self.link.call(&Request::WantedChunks(request), &[]).await? {
            (Reply::WantedIds(()), bytes) => bounded::ascending(after, bulk::ids(&bytes)?),
            _ => Err(unexpected()),
        }
    }

    async fn log(&self, after: u64) -> Result<Vec<LogEntry>> {
        match self.ask(Request::Log(LogAfter { repository: self.config.id, after })).await? {
            Reply::Records(entries) => bounded::following(after, entries),
            _ => Err(unexpected()),
        }
    }

    async fn annotate(&self, point: PointId, labels: &[(String, String)]) -> Result<()> {
        let request = AnnotateIn { repository: self.config.id, point, labels: labels.to_vec() };
        match self.ask(Request::Annotate(request)).await? {
            Reply::Done(()) => Ok(()),
            _ => Err(unexpected()),
        }
    }

    async fn move_machine(&self, machine: MachineId, origin: RepositoryId, owner: Option<Name>) -> Result<()> {
        let request = MoveIn { repository: self.config.id, machine, origin, owner };
        match self.ask(Request::MoveMachine(request)).await? {
            Reply::Done(()) => Ok(()),
            _ => Err(unexpected()),
        }
    }

    async fn given_up(&self) -> Result<Vec<GivenUp>> {
        match self.ask(Request::GivenUp(self.whole())).await? {
            Reply::GivenUpAre(given_up) => Ok(given_up),
            _ => Err(unexpected()),
        }
    }

    async fn sweep(&self, options: SweepOptions, progress: Arc<Progress>) -> Result<SweepReport> {
        self.sweep_there(options, &progress).await
    }

    async fn rebuild_index(&self, progress: Arc<Progress>) -> Result<IndexTotals> {
        self.rebuild_index_there(&progress).await
    }

    async fn verify(&self, options: VerifyOptions, progress: Arc<Progress>) -> Result<VerifyReport> {
        self.verify_there(options, &progress).await
    }
}

/// How a session is opened again when the node has forgotten it.
#[derive(Debug, Clone)]
enum Opening {
    Write(RepositoryId, Begin),
    Read(RepositoryId, Vec<PointId>),
}

/// A session on the node that outlives connections. It also outlives the node's own process, because it is then opened
/// again. Chunks that the node had before may be gone then; a commit finds that out (R7).
#[derive(Debug)]
struct Lease {
    link: Arc<Link>,
    /// None before it is opened.
    id: Mutex<Option<SessionId>>,
    /// Held by the one task that opens the session.
    one: tokio::sync::Mutex<()>,
    opening: Opening,
    kept: Mutex<Kept>,
    /// True when the session was committed or abandoned, and nothing is left to be ended on the node.
    closed: AtomicBool,
    /// True when nobody uses the session any more. Requests that were on their way must not open it again.
    dropped: AtomicBool,
}

/// The session ends when nothing uses it any more. A put that is on its way uses it too.
impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(session) = self.id()
            && !self.closed.load(Ordering::Relaxed)
        {
            self.link.farewell(match self.opening {
                Opening::Write(..) => Request::Abandon(SessionRef { session }),
                Opening::Read(..) => Request::Close(SessionRef { session }),
            });
        }
    }
}

/// Pages and manifests that are not known to be durable. They are put again when the node has forgotten the session,
/// because a backup then reads its own map to find the other chunks that the node lost. The backup reads those from the
/// source again.
#[derive(Debug, Default)]
struct Kept {
    blobs: BTreeMap<ChunkId, Blob>,
    bytes: usize,
}

impl Kept {
    fn add(&mut self, chunks: &[(ChunkId, Blob)]) {
        for (id, blob) in chunks.iter().filter(|(_, blob)| blob.header().kind.is_structure()) {
            if self.blobs.insert(*id, blob.clone()).is_none() {
                self.bytes += blob.bytes().len();
            }
        }
    }

    fn forget(&mut self, ids: &[ChunkId]) {
        for blob in ids.iter().filter_map(|id| self.blobs.remove(id)) {
            self.bytes -= blob.bytes().len();
        }
    }
}

impl Lease {
    fn new(link: &Arc<Link>, id: Option<SessionId>, opening: Opening) -> Self {
        Self {
            link: link.clone(),
            id: Mutex::new(id),
            one: tokio::sync::Mutex::default(),
            opening,
            kept: Mutex::default(),
            closed: AtomicBool::new(false),
            dropped: AtomicBool::new(false),
        }
    }

    fn id(&self) -> Option<SessionId> {
        *self.id.lock().expect("no holder panics")
    }

    /// The id of the session. Opens the session first, if it is not open.
    async fn opened(&self) -> Result<SessionId> {
        loop {
            match self.id() {
                Some(id) => return Ok(id),
                None => self.open(None).await?,
            }
        }
    }

    async fn call(&self, request: impl Fn(SessionId) -> Request, bulk: &[Bytes]) -> Result<(Reply, Bytes)> {
        let (frame, _) = self.calls(request, bulk).await?;
        Ok((frame.message, frame.bulk))
    }

    async fn calls(&self, request: impl Fn(SessionId) -> Request, bulk: &[Bytes]) -> Result<(Frame<Reply>, Replies)> {
        for _ in 0..ATTEMPTS {
            let id = self.opened().await?;
            match self.link.calls(&request(id), bulk).await {
                Ok(replied) => return Ok(replied),
                Err(error) => self.unless_forgotten(id, error).await?,
            }
        }
        Err(CallError::NoSession.into())
    }

    /// As [`Self::calls`], with all replies.
    async fn gather<T: Default>(
        &self,
        request: impl Fn(SessionId) -> Request,
        bulk: &[Bytes],
        take: impl Fn(&mut T, Frame<Reply>) -> Result<()>,
    ) -> Result<T> {
        for _ in 0..ATTEMPTS {
            let id = self.opened().await?;
            match self.link.gather(&request(id), bulk, &take).await {
                Ok(replied) => return Ok(replied),
                Err(error) => self.unless_forgotten(id, error).await?,
            }
        }
        Err(CallError::NoSession.into())
    }

    /// Opens the session again when `error` says that the node has forgotten it, and somebody still uses it.
    async fn unless_forgotten(&self, id: SessionId, error: CallError) -> Result<()> {
        match error {
            CallError::NoSession if !self.dropped.load(Ordering::Relaxed) => self.open(Some(id)).await,
            error => Err(error.into()),
        }
    }

    /// Opens the session in the place of `lost`, unless another task has just done so.
    async fn open(&self, lost: Option<SessionId>) -> Result<()> {
        let _one = self.one.lock().await;
        if self.id() != lost {
            return Ok(());
        }
        let made = match &self.opening {
            Opening::Write(repository, begin) => open_write(&self.link, *repository, begin).await?.0,
            Opening::Read(repository, points) => open_read(&self.link, *repository, points).await?,
        };
        if let Some(lost) = lost {
            tracing::info!(node = self.link.name(), ?lost, now = ?made, "the node had forgotten the session");
        }
        let kept = self.kept.lock().expect("no holder panics").blobs.clone();
        for batch in batches(kept.into_iter().collect()) {
            let (lengths, bulk) = bulk::of_blobs(&batch);
            match self.link.call(&Request::Put(Put { session: made, lengths }), &bulk).await {
                // Forgotten once more: the next request finds that out.
                Err(CallError::NoSession) => break,
                put => put.map(|_| ())?,
            }
        }
        *self.id.lock().expect("no holder panics") = Some(made);
        self.closed.store(false, Ordering::Relaxed);
        Ok(())
    }

    async fn manifest(&self, point: PointId) -> Result<Manifest> {
        match self.call(|session| Request::Manifest(ManifestOf { session, point }), &[]).await? {
            (Reply::ManifestBytes(()), bytes) => {
                let manifest = Manifest::decode(&bytes)?;
                let asked = manifest.point == point;
                asked
                    .then_some(manifest)
                    .ok_or_else(|| Error::integrity(format!("the manifest does not belong to point {point}")))
            }
            _ => Err(unexpected()),
        }
    }

    /// Blobs as they come; what does not come before a connection is lost is asked for again.
    fn get(&self, ids: Vec<ChunkId>) -> impl Stream<Item = ChunkBatch> + Send {
        let wanted: BTreeSet<ChunkId> = ids.into_iter().collect();
        let fetch = Fetch { lease: self, wanted, replies: None, attempts: 0, fruitless: 0 };
        stream::unfold(fetch, |mut fetch| async move { fetch.next().await.map(|batch| (batch, fetch)) })
    }

    async fn get_verified(&self, ids: &[ChunkId]) -> Result<ChunkBatch> {
        let mut made = ChunkBatch::new();
        for ids in ids.chunks(VERIFIED_TOGETHER) {
            let request = |session| Request::GetVerified(SessionRef { session });
            let take = |made: &mut ChunkBatch, frame| bounded::verified(made, chunks(frame)?, ids);
            made.extend(self.gather(request, &[bulk::of_ids(ids.iter().copied())], take).await?);
        }
        Ok(made)
    }
}

/// A `get` under way.
struct Fetch<'a> {
    lease: &'a Lease,
    /// Chunks that were not given to the caller yet.
    wanted: BTreeSet<ChunkId>,
    replies: Option<(Option<Frame<Reply>>, Replies)>,
    /// Requests since the last chunk that was new.
    attempts: u32,
    fruitless: u32,
}

impl Fetch<'_> {
    async fn next(&mut self) -> Option<ChunkBatch> {
        while !self.wanted.is_empty() {
            match self.step().await {
                Ok(Some(batch)) => {
                    let new: ChunkBatch = batch.into_iter().filter(|(id, _)| self.wanted.remove(id)).collect();
                    if !new.is_empty() {
                        (self.attempts, self.fruitless) = (0, 0);
                        return Some(new);
                    }
                    // One may come twice; a node that sends only such, or what nobody asked for, never ends.
                    self.fruitless += 1;
                    if self.fruitless > FRUITLESS_MAX {
                        let what = format!("{} sends chunks that were not requested", self.lease.link.name());
                        return Some(unreadable(std::mem::take(&mut self.wanted), &Error::transport(what)));
                    }
                }
                Ok(None) => {}
                Err(error) => return Some(unreadable(std::mem::take(&mut self.wanted), &error)),
            }
        }
        None
    }

    /// One message; none when the next step must ask (again).
    async fn step(&mut self) -> Result<Option<ChunkBatch>> {
        let Some((first, replies)) = &mut self.replies else {
            self.attempts += 1;
            if self.attempts > ATTEMPTS {
                return Err(Error::transport(format!(
                    "{} does not send the chunks that were requested",
                    self.lease.link.name()
                )));
            }
            let ids = bulk::of_ids(self.wanted.iter().copied().take(GET_IDS_MAX));
            let (first, rest) = self.lease.calls(|session| Request::Get(SessionRef { session }), &[ids]).await?;
            self.replies = Some((Some(first), rest));
            return Ok(None);
        };
        let frame = match first.take() {
            Some(first) => Ok(Some(first)),
            None => replies.next().await,
        };
        match frame {
            Ok(Some(frame)) => {
                self.lease.link.pace(frame.bulk.len() as u64).await;
                Ok(Some(chunks(frame)?))
            }
            Ok(None) | Err(FrameError::Lost(_) | FrameError::Slow | FrameError::NoRoom) => {
                self.replies = None;
                Ok(None)
            }
            Err(FrameError::Nonsense(error)) => Err(error),
        }
    }
}

/// A read session on a node.
#[derive(Debug)]
pub struct RemoteReader {
    lease: Lease,
}

impl ReadSession for RemoteReader {
    async fn manifest(&self, point: PointId) -> Result<Manifest> {
        self.lease.manifest(point).await
    }

    fn get(&self, ids: Vec<ChunkId>) -> impl Stream<Item = ChunkBatch> + Send {
        self.lease.get(ids)
    }

    async fn get_verified(&self, _prints: &DomainKeys, ids: Vec<ChunkId>) -> ChunkBatch {
        verified_or_failed(&self.lease, ids).await
    }
}

/// A write session on a node. Puts go on while others are on their way, within [`WINDOW_BYTES`] for all sessions of a
/// connection together.
#[derive(Debug)]
pub struct RemoteSession {
    shared: Arc<Shared>,
    /// The part of the window that this session's bytes on their way do not use. A task that gets all of it knows that
    /// everything has arrived.
    window: Arc<Semaphore>,
    questions: PresenceBatcher,
}

#[derive(Debug)]
struct Shared {
    lease: Lease,
    /// Chunks on their way: they need not be put again.
    in_flight: Mutex<HashSet<ChunkId>>,
    /// The first error of a put, until it is told.
    failed: Mutex<Option<Error>>,
    stored: Mutex<StoredTotals>,
}

impl Shared {
    async fn put(&self, batch: &[(ChunkId, Blob)]) {
        let (lengths, bulk) = bulk::of_blobs(batch);
        let request = |session| Request::Put(Put { session, lengths: lengths.clone() });
        match self.lease.call(request, &bulk).await {
            Ok((Reply::Stored(stored), _)) => self.note(stored),
            Ok(_) => self.fail(unexpected()),
            Err(error) => self.fail(error),
        }
        let mut in_flight = self.in_flight.lock().expect("no holder panics");
        batch.iter().for_each(|(id, _)| {
            in_flight.remove(id);
        });
    }

    async fn missing(&self, kind: ChunkKind, ids: Vec<ChunkId>) -> Result<Vec<Presence>> {
        let request = |session| Request::Missing(MissingIn { session, kind: kind.code() });
        match self.lease.call(request, &[bulk::of_ids(ids.iter().copied())]).await? {
            (Reply::Presences(()), bytes) if bytes.len() == ids.len() => {
                bytes.iter().map(|code| presence(*code).ok_or_else(unexpected)).collect()
            }
            _ => Err(unexpected()),
        }
    }

    fn fail(&self, error: Error) {
        self.failed.lock().expect("no holder panics").get_or_insert(error);
    }

    fn told(&self) -> Result<()> {
        self.failed.lock().expect("no holder panics").take().map_or(Ok(()), Err)
    }

    fn totals(&self) -> StoredTotals {
        *self.stored.lock().expect("no holder panics")
    }

    /// Keeps the largest totals, because answers may come in another order than the node gave them.
    fn note(&self, stored: StoredTotals) {
        let mut known = self.stored.lock().expect("no holder panics");
        if stored.bytes_stored > known.bytes_stored {
            *known = stored;
        }
    }
}

impl RemoteSession {
    /// Id of the session on the node. It is another one after the node forgot the session, and none before the session
    /// is opened.
    pub fn id(&self) -> Option<SessionId> {
        self.shared.lease.id()
    }

    /// Waits until nothing is on its way.
    async fn arrived(&self) -> Result<OwnedSemaphorePermit> {
        let all = self.window.clone().acquire_many_owned(WINDOW_BYTES).await.expect("never closed");
        self.shared.told()?;
        Ok(all)
    }
}

impl ReadSession for RemoteSession {
    async fn manifest(&self, point: PointId) -> Result<Manifest> {
        self.shared.lease.manifest(point).await
    }

    fn get(&self, ids: Vec<ChunkId>) -> impl Stream<Item = ChunkBatch> + Send {
        self.shared.lease.get(ids)
    }

    async fn get_verified(&self, _prints: &DomainKeys, ids: Vec<ChunkId>) -> ChunkBatch {
        verified_or_failed(&self.shared.lease, ids).await
    }
}

impl WriteSession for RemoteSession {
    async fn missing(&self, kind: ChunkKind, ids: &[ChunkId]) -> Result<Vec<Presence>> {
        let asked: Vec<ChunkId> = {
            let in_flight = self.shared.in_flight.lock().expect("no holder panics");
            ids.iter().filter(|id| !in_flight.contains(id)).copied().collect()
        };
        let message = |kind: ChunkKind, ids: Vec<ChunkId>| {
            let shared = self.shared.clone();
            async move { shared.missing(kind, ids).await }
        };
        let far = self.shared.lease.link.round_trip();
        let ask = |ids: &[ChunkId]| self.questions.ask(kind, ids.to_vec(), far, message);
        let answers: Vec<Vec<Presence>> = try_join_all(asked.chunks(IDS_MAX).map(ask)).await?;
        let mut answers = asked.into_iter().zip(answers.into_iter().flatten()).peekable();
        let one = |id: &ChunkId| match answers.next_if(|(asked, _)| asked == id) {
            // A page that another session has put may be lost with the node: it is put too, so that it is kept here.
            Some((_, Presence::Pending)) if kind.is_structure() => Presence::Missing,
            Some((_, answer)) => answer,
            None => Presence::Have,
        };
        Ok(ids.iter().map(one).collect())
    }

    async fn put(&self, chunks: Vec<(ChunkId, Blob)>) -> Result<()> {
        self.shared.told()?;
        for batch in batches(chunks) {
            let bytes: usize = batch.iter().map(|(_, blob)| blob.bytes().len()).sum();
            let bytes = u32::try_from(bytes).expect("a batch is bounded").min(WINDOW_BYTES);
            let own = self.window.clone().acquire_many_owned(bytes).await.expect("never closed");
            let room = self.shared.lease.link.window.clone().acquire_many_owned(bytes).await.expect("never closed");
            // From here on nothing waits: a flush that is under way has seen neither.
            self.shared.lease.kept.lock().expect("no holder panics").add(&batch);
            self.shared.in_flight.lock().expect("no holder panics").extend(batch.iter().map(|(id, _)| *id));
            let shared = self.shared.clone();
            tokio::spawn(async move {
                shared.put(&batch).await;
                drop((room, own));
            });
        }
        if self.shared.lease.kept.lock().expect("no holder panics").bytes > KEPT_BYTES_MAX {
            self.flush().await?;
        }
        Ok(())
    }

    async fn flush(&self) -> Result<StoredTotals> {
        let _all = self.arrived().await?;
        if !self.shared.lease.closed.load(Ordering::Relaxed) {
            let kept: Vec<ChunkId> =
                self.shared.lease.kept.lock().expect("no holder panics").blobs.keys().copied().collect();
            match self.shared.lease.call(|session| Request::Flush(SessionRef { session }), &[]).await? {
                (Reply::Stored(stored), _) => self.shared.note(stored),
                _ => return Err(unexpected()),
            }
            self.shared.lease.kept.lock().expect("no holder panics").forget(&kept);
        }
        Ok(self.shared.totals())
    }

    async fn stored(&self) -> Result<StoredTotals> {
        let _all = self.arrived().await?;
        Ok(self.shared.totals())
    }

    async fn commit(&self, points: &[PointDraft]) -> Result<Commit> {
        let _all = self.arrived().await?;
        let encoded = |draft: &PointDraft| draft.manifest.encode_checked().map(Bytes::from);
        let manifests: Vec<Bytes> = points.iter().map(encoded).collect::<Result<_>>()?;
        let draft = |(draft, bytes): (&PointDraft, &Bytes)| WireDraft {
            manifest_bytes: bytes.len() as u32,
            origin: draft.origin,
            labels: draft.labels.clone(),
        };
        let drafts: Vec<WireDraft> = points.iter().zip(&manifests).map(draft).collect();
        let request = |session| Request::Commit(CommitIn { session, drafts: drafts.clone() });
        match self.shared.lease.call(request, &manifests).await? {
            (Reply::Committed(committed), _) => {
                self.shared.note(committed.stored);
                self.shared.lease.closed.store(true, Ordering::Relaxed);
                Ok(Commit::Committed(committed.points))
            }
            (Reply::Lacking(()), bytes) => Ok(Commit::Missing(bulk::ids(&bytes)?)),
            _ => Err(unexpected()),
        }
    }

    async fn abandon(self) -> Result<()> {
        // What is on its way is worth having: the next run need not send it again.
        let _ = tokio::time::timeout(ABANDON_PATIENCE, self.arrived()).await;
        let lease = &self.shared.lease;
        lease.dropped.store(true, Ordering::Relaxed);
        if lease.closed.load(Ordering::Relaxed) {
            return Ok(());
        }
        // One that is just being opened ends as soon as it is.
        let Some(session) = lease.id() else { return Ok(()) };
        match lease.link.call(&Request::Abandon(SessionRef { session }), &[]).await {
            Ok(_) | Err(CallError::NoSession) => {
                lease.closed.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(CallError::Failed(error)) => Err(error),
        }
    }
}

impl Drop for RemoteSession {
    fn drop(&mut self) {
        // What is on its way must not open it again.
        self.shared.lease.dropped.store(true, Ordering::Relaxed);
    }
}

async fn open_write(link: &Link, repository: RepositoryId, begin: &Begin) -> Result<(SessionId, Begun)> {
    let request = Request::Begin(BeginIn { repository, begin: begin.clone() });
    let answer = link.gather(&request, &[], bounded::begun).await?;
    let bounded::BegunAs { session: Some(session), begun } = answer else { return Err(unexpected()) };
    Ok((session, begun))
}

async fn open_read(link: &Link, repository: RepositoryId, points: &[PointId]) -> Result<SessionId> {
    match link.call(&Request::Read(ReadIn { repository, points: points.to_vec() }), &[]).await? {
        (Reply::Session(SessionRef { session }), _) => Ok(session),
        _ => Err(unexpected()),
    }
}

async fn verified_or_failed(lease: &Lease, ids: Vec<ChunkId>) -> ChunkBatch {
    let batch = lease.get_verified(&ids).await;
    batch.unwrap_or_else(|error| unreadable(ids, &error))
}

/// A batch that says of each chunk that `error` made it unreadable.
fn unreadable(ids: impl IntoIterator<Item = ChunkId>, error: &Error) -> ChunkBatch {
    ids.into_iter().map(|chunk| (chunk, Err(ChunkError::unreadable(chunk, error)))).collect()
}

/// Batches that fit into one message.
fn batches(chunks: Vec<(ChunkId, Blob)>) -> Vec<Vec<(ChunkId, Blob)>> {
    let mut made: Vec<Vec<_>> = Vec::new();
    let (mut bytes, mut plain) = (0, 0);
    for (id, blob) in chunks {
        bytes += ID_BYTES + blob.bytes().len();
        plain += blob.header().plain_bytes as usize;
        let full = bytes > BATCH_BYTES || plain > PUT_PLAIN_BYTES_MAX;
        if full || made.last().is_none_or(|batch| batch.len() == IDS_MAX) {
            made.push(Vec::new());
            (bytes, plain) = (ID_BYTES + blob.bytes().len(), blob.header().plain_bytes as usize);
        }
        made.last_mut().expect("just pushed").push((id, blob));
    }
    made
}

fn chunks(frame: Frame<Reply>) -> Result<ChunkBatch> {
    let Reply::Chunks(it) = frame.message else { return Err(unexpected()) };
    let mut batch = ChunkBatch::new();
    for (id, bytes) in bulk::blobs(&it.lengths, frame.bulk)? {
        let blob = Blob::parse(bytes).map_err(|error| ChunkError::Wrong { chunk: id, what: error.to_string() });
        batch.push((id, blob));
    }
    batch.extend(it.failed.into_iter().map(|failed| (ChunkId(failed.chunk), Err(failed.into()))));
    Ok(batch)
}

/// Messages in a row in which nothing is new.
const FRUITLESS_MAX: u32 = 64;
/// Chunks that are asked for together with the node's word that they are sound: each may be long.
const VERIFIED_TOGETHER: usize = 128;
/// How long points that came with the opening are used. The work of a job before it asks for them may take longer.
const LISTED_AGE_MAX: Duration = Duration::from_secs(5);
/// Bytes of one put: small enough that several are on their way at once.
const BATCH_BYTES: usize = 2 << 20;
/// Pages that are held until they are durable: those of 10 GiB of disk. Beyond that they are flushed, into a small pack.
const KEPT_BYTES_MAX: usize = 8 << 20;
/// How long an abandoned session waits for its puts that are on their way.
const ABANDON_PATIENCE: Duration = Duration::from_secs(10);
const _: () = assert!(BATCH_BYTES <= PUT_BYTES_MAX && PUT_BYTES_MAX <= WINDOW_BYTES as usize);
