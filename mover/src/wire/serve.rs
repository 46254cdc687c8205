//! A storage node's half: takes connections, looks whom they are from, and does what may be asked.

use super::control::desk::Desk;
use super::frame::{Arrival, FrameError, receive, send};
use super::message::{
    Ask, Chunks, CommitIn, Committed, Failed, FailedChunk, LACKING_MAX, NO_SESSION, Of, Open, Opened, Reply, Request,
    SUSPECTS_MAX, Welcome, presence_code,
};
use super::{CLOSED_REFUSED, CLOSED_STOPPING};
use super::{access, bulk};
use crate::identity::Holder;
use crate::{
    Begin, ChunkBatch, Commit, Either, Error, ErrorKind, Incarnation, Manifest, PointDraft, PointFilter, ReadSession,
    RecoveryPoint, Repository, RepositoryId, Result, SessionId, Verification, World, WriteSession,
};
use bytes::Bytes;
use chunker::{Blob, ChunkId, ChunkKind, Fingerprinter};
use futures::StreamExt;
use quinn::{Connection, Endpoint, Incoming, RecvStream, SendStream, VarInt};
use rustls::pki_types::CertificateDer;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

/// What a node serves. Dropping it ends all sessions.
pub struct Node<R: Repository> {
    repositories: HashMap<String, Arc<Served<R>>>,
    world: World,
    denied: Box<Denied>,
    /// Connections, those that are not proven to be anybody's too.
    connections: AtomicUsize,
    /// Connections of each holder.
    present: Mutex<HashMap<Holder, usize>>,
    desk: Desk,
}

/// A connection, and whose it is.
struct Caller {
    holder: Holder,
    /// Bytes of chunks that wait for the repository.
    room: Arc<Semaphore>,
    /// Whether it has said hello.
    greeted: AtomicBool,
}

/// Counts one up for as long as it lives, however that ends.
struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One connection of a holder, for as long as it lives.
struct Present<'a> {
    all: &'a Mutex<HashMap<Holder, usize>>,
    holder: Holder,
}

impl Drop for Present<'_> {
    fn drop(&mut self) {
        let mut all = self.all.lock().expect("no holder panics");
        if let Some(count) = all.get_mut(&self.holder) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.holder);
            }
        }
    }
}

struct Served<R: Repository> {
    repository: R,
    prints: Fingerprinter,
    leases: Mutex<HashMap<SessionId, Arc<Lease<R>>>>,
}

/// A session of a client. It ends when it is closed, or was not used for long.
struct Lease<R: Repository> {
    holder: Holder,
    session: Either<R::Session, R::Reader>,
    used: Mutex<Instant>,
}

/// Why a request was not done.
pub(super) enum Refused {
    /// It is told.
    Told(Failed),
    /// Nobody is there to be told.
    Gone,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Told(Failed::from(&error))
    }
}

impl From<FrameError> for Refused {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Lost(_) => Self::Gone,
            FrameError::Nonsense(error) => error.into(),
        }
    }
}

pub(super) type Done = Result<(), Refused>;
/// Tells whether somebody was shut out.
type Denied = dyn Fn(&Holder) -> bool + Send + Sync;
/// A session, and the repository it is of.
type Leased<'a, R> = (&'a Arc<Served<R>>, Arc<Lease<R>>);

impl<R: Repository + 'static> Node<R> {
    /// A node without repositories.
    pub fn new(world: World) -> Self {
        let denied = Box::new(|_: &Holder| false);
        let (connections, present) = (AtomicUsize::new(0), Mutex::default());
        Self { repositories: HashMap::new(), world, denied, connections, present, desk: Desk::new() }
    }

    /// Serves `repository` under `name`.
    #[must_use]
    pub fn with(mut self, name: &str, repository: R) -> Self {
        let prints = Fingerprinter::new(&repository.config().domain);
        let served = Served { repository, prints, leases: Mutex::default() };
        self.repositories.insert(name.to_owned(), Arc::new(served));
        self
    }

    /// Asks `denied` about everybody whose certificate the authority signed, at every request.
    #[must_use]
    pub fn denying(mut self, denied: impl Fn(&Holder) -> bool + Send + Sync + 'static) -> Self {
        self.denied = Box::new(denied);
        self
    }

    /// Serves until `stop` becomes true; then takes nothing new, and finishes what is under way.
    pub async fn serve(self: Arc<Self>, endpoint: Endpoint, mut stop: watch::Receiver<bool>) {
        let mut expiry = tokio::time::interval(LEASE_CHECK);
        let mut tasks = tokio::task::JoinSet::new();
        let stopping = stop.clone();
        loop {
            tokio::select! {
                incoming = endpoint.accept() => match incoming {
                    Some(incoming) => {
                        self.admit(incoming, &mut tasks, &stopping);
                    }
                    None => break,
                },
                Some(_) = tasks.join_next() => {}
                _ = expiry.tick() => self.expire(),
                _ = stop.wait_for(|stop| *stop) => break,
            }
        }
        endpoint.set_server_config(None);
        self.desk.stop();
        let finished = async { while tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(STOP_TIMEOUT, finished).await;
        endpoint.close(VarInt::from_u32(CLOSED_STOPPING), b"stopping");
        // So that clients hear of it.
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, endpoint.wait_idle()).await;
    }

    fn admit(self: &Arc<Self>, incoming: Incoming, tasks: &mut tokio::task::JoinSet<()>, stop: &watch::Receiver<bool>) {
        // Who has not shown that its address is its own costs nothing but this packet.
        if !incoming.remote_address_validated() && self.connections.load(Ordering::Relaxed) >= CONNECTIONS_UNPROVEN_MAX
        {
            let _ = incoming.retry();
        } else if self.connections.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            incoming.refuse();
        } else {
            self.connections.fetch_add(1, Ordering::Relaxed);
            let (node, stop) = (self.clone(), stop.clone());
            tasks.spawn(async move {
                let _counted = Counted(&node.connections);
                node.connection(incoming, stop).await;
            });
        }
    }

    async fn connection(self: &Arc<Self>, incoming: Incoming, mut stop: watch::Receiver<bool>) {
        let from = incoming.remote_address();
        let handshake = tokio::select! {
            handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, incoming.into_future()) => handshake,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let connection = match handshake {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return tracing::info!(%from, %error, "no connection"),
            Err(_) => return tracing::info!(%from, "no connection: it took too long"),
        };
        let holder = match self.holder(&connection) {
            Ok(holder) => holder,
            Err(error) => {
                tracing::warn!(%from, %error, "refused");
                return connection.close(VarInt::from_u32(CLOSED_REFUSED), error.message().as_bytes());
            }
        };
        let Some(_present) = self.enter(&holder) else {
            tracing::warn!(%from, %holder, "refused: it has too many connections");
            return connection.close(VarInt::from_u32(CLOSED_REFUSED), b"too many connections of this holder");
        };
        tracing::debug!(%from, %holder, "connected");
        let room = Arc::new(Semaphore::new(ROOM_BYTES));
        let caller = Arc::new(Caller { holder: holder.clone(), room, greeted: AtomicBool::new(false) });
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                accepted = connection.accept_bi() => match accepted {
                    Ok((to, from)) => {
                        let (node, caller) = (self.clone(), caller.clone());
                        tasks.spawn(async move { node.stream(&caller, to, from).await });
                    }
                    Err(error) => {
                        tracing::debug!(%from, %holder, %error, "disconnected");
                        break;
                    }
                },
                Some(_) = tasks.join_next() => {}
                _ = stop.wait_for(|stop| *stop) => break,
            }
        }
        // What a lost connection had under way is given up between two steps; when stopping it is finished and told.
        if *stop.borrow() {
            // A client that does not take its answer must not hold the end up.
            let finished = async { while tasks.join_next().await.is_some() {} };
            let _ = tokio::time::timeout(STOP_TIMEOUT, finished).await;
            connection.close(VarInt::from_u32(CLOSED_STOPPING), b"stopping");
        }
    }

    fn enter(&self, holder: &Holder) -> Option<Present<'_>> {
        let mut all = self.present.lock().expect("no holder panics");
        let count = all.entry(holder.clone()).or_default();
        (*count < HOLDER_CONNECTIONS_MAX).then(|| {
            *count += 1;
            Present { all: &self.present, holder: holder.clone() }
        })
    }

    fn holder(&self, connection: &Connection) -> Result<Holder> {
        let unknown = || Error::new(ErrorKind::NotAuthorised, "no certificate was shown");
        let shown = connection.peer_identity().and_then(|shown| shown.downcast::<Vec<CertificateDer<'static>>>().ok());
        let shown = shown.ok_or_else(unknown)?;
        let certificate = shown.first().ok_or_else(unknown)?;
        let holder = Holder::of(certificate)?;
        self.not_denied(&holder)?;
        Ok(holder)
    }

    fn not_denied(&self, holder: &Holder) -> Result<()> {
        if (self.denied)(holder) {
            return Err(Error::new(ErrorKind::NotAuthorised, format!("{holder} was revoked")));
        }
        Ok(())
    }

    async fn stream(&self, caller: &Caller, mut to: SendStream, mut from: RecvStream) {
        let done = match receive::<Request>(&mut from, Some(Arrival { room: &caller.room, patience: PATIENCE })).await {
            Ok(frame) => {
                // Held until the chunks are with the repository; what only asks takes none.
                let _room = frame.room.filter(|_| !matches!(frame.message, Request::Get(_) | Request::GetVerified(_)));
                let greets = matches!(frame.message, Request::Hello(_));
                if frame.more || !(greets || caller.greeted.load(Ordering::Relaxed)) {
                    Err(Error::transport("hello is the first request, and each is one message").into())
                } else {
                    caller.greeted.store(true, Ordering::Relaxed);
                    self.request(&caller.holder, frame.message, frame.bulk, &mut to).await
                }
            }
            Err(error) => Err(error.into()),
        };
        let told = match done {
            Ok(()) => Ok(()),
            Err(Refused::Told(failed)) => send(&mut to, &Reply::Failed(failed), Vec::new(), false).await,
            Err(Refused::Gone) => return,
        };
        if told.is_ok() {
            let _ = to.finish();
        }
    }

    async fn request(&self, holder: &Holder, request: Request, beside: Bytes, to: &mut SendStream) -> Done {
        self.not_denied(holder)?;
        access::check(holder, &request)?;
        match request {
            Request::Hello(hello) => {
                let (lowest, highest) = hello.versions;
                if lowest > super::VERSION || highest < super::VERSION {
                    let what = format!("the node speaks version {}, not {lowest} to {highest}", super::VERSION);
                    return Err(Error::version(what).hint("use a windlass of the same version").into());
                }
                let program = concat!("windlass-store ", env!("CARGO_PKG_VERSION")).to_owned();
                let features = hello.features & super::FEATURES;
                say(to, Reply::Welcome(Welcome { version: super::VERSION, features, program })).await
            }
            Request::Open(Open { name }) => {
                let served = self.repositories.get(&name);
                let served = served.ok_or_else(|| Error::not_found(format!("the node has no repository {name:?}")))?;
                let config = served.repository.config();
                let (repository, domain, created) = (config.id, config.domain.0, config.created);
                say(to, Reply::Opened(Opened { repository, domain, created })).await
            }
            Request::List(list) => {
                let filter = PointFilter { machine: list.machine, forgotten: list.forgotten };
                points(to, self.of(list.repository)?.repository.list(&filter).await?).await
            }
            Request::Stats(it) => say(to, Reply::Totals(self.of(it.repository)?.repository.stats().await?)).await,
            Request::Incarnation(it) => {
                let ends: Incarnation = self.of(it.repository)?.repository.incarnation().await?;
                say(to, Reply::Ends(ends)).await
            }
            Request::HasBeen(it) => {
                say(to, Reply::Answer(self.of(it.repository)?.repository.has_been(it.seen).await?)).await
            }
            Request::Peer(it) => say(to, Reply::Seen(self.of(it.repository)?.repository.peer(it.peer).await?)).await,
            Request::Begin(it) => {
                let served = self.of(it.repository)?;
                served.has_room(holder)?;
                // Nobody far away is believed: what is wrong here would be wrong in every point that shares it.
                let begin = Begin { verification: Verification::Decode, ..it.begin };
                let (session, begun) = served.repository.begin(begin).await?;
                let id = session.id();
                served.lend(id, holder, Either::Left(session));
                let mut pages = begun.suspects.chunks(SUSPECTS_MAX).peekable();
                send(to, &Reply::Session(Of { session: id }), Vec::new(), pages.peek().is_some()).await?;
                while let Some(page) = pages.next() {
                    send(to, &Reply::Suspects(page.to_vec()), Vec::new(), pages.peek().is_some()).await?;
                }
                Ok(())
            }
            Request::Read(it) => {
                let served = self.of(it.repository)?;
                served.has_room(holder)?;
                let reader = served.repository.read(&it.points).await?;
                let id = SessionId::random(&self.world);
                served.lend(id, holder, Either::Right(reader));
                say(to, Reply::Session(Of { session: id })).await
            }
            Request::Missing(Ask { session, kind }) => {
                let lease = self.lease(session, holder)?;
                let kind = ChunkKind::from_code(kind).ok_or_else(|| Error::transport("an unknown kind of chunk"))?;
                let found = lease.write()?.missing(kind, &bulk::ids(&beside)?).await?;
                let codes: Vec<u8> = found.into_iter().map(presence_code).collect();
                Ok(send(to, &Reply::Presences(()), vec![codes.into()], false).await?)
            }
            Request::Put(put) => {
                let lease = self.lease(put.session, holder)?;
                let chunks = bulk::blobs(&put.lengths, beside)?.into_iter().map(|(id, bytes)| {
                    let wrong = |error| Error::integrity(format!("chunk {id} is no blob")).because(error);
                    Ok((id, Blob::parse(bytes).map_err(wrong)?))
                });
                let session = lease.write()?;
                session.put(chunks.collect::<Result<_>>()?).await?;
                say(to, Reply::Stored(session.stored().await?)).await
            }
            Request::Flush(Of { session }) => {
                let stored = self.lease(session, holder)?.write()?.flush().await?;
                say(to, Reply::Stored(stored)).await
            }
            Request::Commit(commit) => self.commit(holder, commit, beside, to).await,
            Request::Abandon(Of { session }) | Request::Close(Of { session }) => {
                self.served(session, holder)?.0.end(session);
                say(to, Reply::Done(())).await
            }
            Request::Manifest(it) => {
                let manifest = self.lease(it.session, holder)?.session.manifest(it.point).await?;
                Ok(send(to, &Reply::ManifestBytes(()), vec![manifest.encode().into()], false).await?)
            }
            Request::Get(Of { session }) => {
                let lease = self.lease(session, holder)?;
                blobs(to, lease.session.get(bulk::ids(&beside)?)).await
            }
            Request::GetVerified(Of { session }) => {
                let (served, lease) = self.served(session, holder)?;
                let ids = bulk::ids(&beside)?;
                // Few at a time: a chunk may be long, and nobody has taken the ones before yet.
                let batches = futures::stream::iter(ids.chunks(VERIFIED_TOGETHER))
                    .then(|ids| lease.session.get_verified(&served.prints, ids.to_vec()));
                blobs(to, batches).await
            }
            Request::Attend(_) | Request::Run(_) | Request::Cancel(_) | Request::Report(_) => {
                self.desk.request(holder, request, to, || self.not_denied(holder)).await
            }
        }
    }

    async fn commit(&self, holder: &Holder, commit: CommitIn, mut beside: Bytes, to: &mut SendStream) -> Done {
        let (served, lease) = self.served(commit.session, holder)?;
        let mut drafts = Vec::new();
        for draft in commit.drafts {
            let length = draft.manifest_bytes as usize;
            if length > beside.len() {
                return Err(Error::transport("a message whose lengths do not fit").into());
            }
            let manifest = Manifest::decode(&beside.split_to(length)).map_err(Error::from)?;
            drafts.push(PointDraft { manifest, origin: draft.origin });
        }
        if !beside.is_empty() {
            return Err(Error::transport("a message whose lengths do not fit").into());
        }
        let session = lease.write()?;
        match session.commit(&drafts).await? {
            Commit::Committed(points) => {
                let stored = session.stored().await?;
                served.end(commit.session);
                say(to, Reply::Committed(Committed { points, stored })).await
            }
            Commit::Missing(mut missing) => {
                missing.truncate(LACKING_MAX);
                Ok(send(to, &Reply::Lacking(()), vec![bulk::of_ids(missing.into_iter())], false).await?)
            }
        }
    }

    fn of(&self, repository: RepositoryId) -> Result<&Arc<Served<R>>> {
        let found = self.repositories.values().find(|served| served.repository.config().id == repository);
        found.ok_or_else(|| Error::not_found(format!("the node has no repository {repository}")))
    }

    fn lease(&self, session: SessionId, holder: &Holder) -> Result<Arc<Lease<R>>, Refused> {
        self.served(session, holder).map(|(_, lease)| lease)
    }

    /// A session of this holder; one of somebody else is as if it were not there.
    fn served(&self, session: SessionId, holder: &Holder) -> Result<Leased<'_, R>, Refused> {
        for served in self.repositories.values() {
            let leases = served.leases.lock().expect("no holder panics");
            if let Some(lease) = leases.get(&session).filter(|lease| lease.holder == *holder) {
                *lease.used.lock().expect("no holder panics") = Instant::now();
                return Ok((served, lease.clone()));
            }
        }
        let (message, hint) = (format!("session {session} is not known"), String::new());
        Err(Refused::Told(Failed { code: NO_SESSION, message, hint }))
    }

    /// Ends sessions whose holder is gone and has not used them for long.
    fn expire(&self) {
        self.desk.forget();
        let present = self.present.lock().expect("no holder panics").clone();
        for served in self.repositories.values() {
            let mut leases = served.leases.lock().expect("no holder panics");
            let ended = leases.extract_if(|_, lease| {
                let used = lease.used.lock().expect("no holder panics").elapsed();
                Arc::strong_count(lease) == 1 && used > LEASE_AGE_MAX && !present.contains_key(&lease.holder)
            });
            let ended: Vec<_> = ended.collect();
            drop(leases);
            for (session, lease) in ended {
                tracing::warn!(%session, holder = %lease.holder, "session ended: its holder is gone for long");
                let_go(lease);
            }
        }
    }
}

/// Ends a session where waiting for its last record holds nobody up.
fn let_go<T: Send + 'static>(lease: T) {
    tokio::task::spawn_blocking(move || drop(lease));
}

impl<R: Repository + 'static> Served<R> {
    /// Whether `holder` may open another session. Asked before one is opened: that leaves a record.
    fn has_room(&self, holder: &Holder) -> Result<()> {
        let leases = self.leases.lock().expect("no holder panics");
        if leases.values().filter(|lease| lease.holder == *holder).count() < SESSIONS_MAX {
            return Ok(());
        }
        Err(Error::busy(format!("{holder} has {SESSIONS_MAX} sessions open")).hint("wait until some jobs end"))
    }

    fn lend(&self, id: SessionId, holder: &Holder, session: Either<R::Session, R::Reader>) {
        let lease = Lease { holder: holder.clone(), session, used: Mutex::new(Instant::now()) };
        self.leases.lock().expect("no holder panics").insert(id, Arc::new(lease));
    }

    fn end(&self, session: SessionId) {
        if let Some(ended) = self.leases.lock().expect("no holder panics").remove(&session) {
            let_go(ended);
        }
    }
}

impl<R: Repository> Lease<R> {
    fn write(&self) -> Result<&R::Session> {
        match &self.session {
            Either::Left(session) => Ok(session),
            Either::Right(_) => Err(Error::usage("this session only reads")),
        }
    }
}

async fn say(to: &mut SendStream, reply: Reply) -> Done {
    Ok(send(to, &reply, Vec::new(), false).await?)
}

async fn points(to: &mut SendStream, points: Vec<RecoveryPoint>) -> Done {
    let mut pages = points.chunks(POINTS_TOGETHER).peekable();
    if pages.peek().is_none() {
        return say(to, Reply::Points(Vec::new())).await;
    }
    while let Some(page) = pages.next() {
        send(to, &Reply::Points(page.to_vec()), Vec::new(), pages.peek().is_some()).await?;
    }
    Ok(())
}

async fn blobs(to: &mut SendStream, batches: impl futures::Stream<Item = ChunkBatch> + Send) -> Done {
    futures::pin_mut!(batches);
    while let Some(batch) = batches.next().await {
        for (message, bulk) in parts(batch) {
            send(to, &Reply::Chunks(message), bulk, true).await?;
        }
    }
    let nothing = Chunks { lengths: Vec::new(), failed: Vec::new() };
    Ok(send(to, &Reply::Chunks(nothing), Vec::new(), false).await?)
}

/// Messages that carry a batch.
fn parts(batch: ChunkBatch) -> Vec<(Chunks, Vec<Bytes>)> {
    let mut made: Vec<(Chunks, Vec<Bytes>)> = Vec::new();
    let (mut found, mut bytes): (Vec<(ChunkId, Blob)>, usize) = (Vec::new(), 0);
    let mut close = |found: &mut Vec<(ChunkId, Blob)>| {
        let (lengths, bulk) = bulk::of_blobs(found);
        found.clear();
        made.push((Chunks { lengths, failed: Vec::new() }, bulk));
    };
    let mut failed: Vec<FailedChunk> = Vec::new();
    for (id, blob) in batch {
        match blob {
            Ok(blob) => {
                let length = blob.bytes().len();
                if bytes + length > PART_BYTES && !found.is_empty() {
                    close(&mut found);
                    bytes = 0;
                }
                bytes += length;
                found.push((id, blob));
            }
            Err(error) => failed.push(error.into()),
        }
    }
    if !found.is_empty() {
        close(&mut found);
    }
    for some in failed.chunks(FAILED_TOGETHER) {
        made.push((Chunks { lengths: Vec::new(), failed: some.to_vec() }, Vec::new()));
    }
    made
}

/// Bytes beside requests of one connection that wait for the repository: more than a client has on its way (its window, and
/// a commit), so that one which keeps to it never waits for room, and nothing that waits takes the window from what has it.
const ROOM_BYTES: usize = 64 << 20;
/// Chunks decoded and compared before the first is sent.
const VERIFIED_TOGETHER: usize = 16;
/// Bytes of blobs in one reply.
const PART_BYTES: usize = 1 << 20;
const POINTS_TOGETHER: usize = 1024;
const FAILED_TOGETHER: usize = 128;
/// Sessions of one holder.
const SESSIONS_MAX: usize = 1024;
const CONNECTIONS_MAX: usize = 1024;
/// From here on a client must show first that its address is its own.
const CONNECTIONS_UNPROVEN_MAX: usize = 64;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two parts of a request that come.
const PATIENCE: Duration = Duration::from_secs(60);
/// For what is under way when the node stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
const HOLDER_CONNECTIONS_MAX: usize = 64;
const LEASE_AGE_MAX: Duration = Duration::from_secs(600);
const LEASE_CHECK: Duration = Duration::from_secs(10);
