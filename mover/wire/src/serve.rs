//! A storage node's half: takes connections, looks whom they are from, and does what may be asked.

mod arrival;
mod caller;
mod hosted;
mod joining;
mod places;
mod quota;
mod reply;
mod served;
mod sight;

use super::control::broker::JobBroker;
use super::frame::{Frame, FrameError, receive};
use super::limits::{Allowance, Limits, Paces};
use super::maintenance::{rebuild_index, sweep, verify};
use super::message::{
    CommitIn, Committed, DRAFTS_MAX, Failed, Hello, LACKING_MAX, MissingIn, MoveIn, NO_SESSION, Open, Opened, PullIn,
    Reply, Request, SUSPECTS_MAX, SessionRef, WantedOf, Welcome, presence_code,
};
use super::pull::Puller;
use super::quic::Congestion;
use super::validity::{close_unless_valid, shown};
use super::{CLOSED_REFUSED, CLOSED_STOPPING};
use super::{access, bulk};
use crate::identity::{Facts, Registry, holder_of};
use bytes::Bytes;
use caller::Caller;
pub(super) use caller::{Done, Refused};
use chunker::{ChunkId, ChunkKind};
use futures::StreamExt;
use hosted::{Hosted, Hosting};
use mover::{
    Begin, Commit, Either, Error, ErrorKind, Holder, LogHead, Manifest, PointDraft, PointFilter, RateLimiter, Reach,
    ReadSession, Repository, RepositoryId, Result, SessionId, Verification, World, WriteSession, labels,
};
use quinn::{ClientConfig, Connection, Endpoint, Incoming, RecvStream, VarInt};
pub use quota::{Quota, Quotas};
pub(super) use reply::{Answer, send};
use reply::{blobs, points, say, spread};
use served::{Lease, Served};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, watch};
use tokio::time::Instant;

/// What a node serves. Dropping it ends all sessions.
pub struct Node<R: Repository> {
    repositories: Hosted<R>,
    world: World,
    denied: Arc<Denied>,
    /// Of the node that holds the site's authority.
    registry: Option<Arc<Registry>>,
    /// Whether no other thread may have a part in what happens.
    one_thread: bool,
    lease_age_max: Duration,
    limits: Arc<Limits>,
    puller: Option<Puller>,
    /// Work on a whole repository is done one at a time: a verification takes whole packs into memory.
    maintenance: Semaphore,
    desk: JobBroker,
}

/// Tells whether somebody was shut out.
type Denied = dyn Fn(&Holder) -> bool + Send + Sync;
/// A session, and the repository it is of.
type Leased<R> = (Arc<Served<R>>, Arc<Lease<R>>);

impl<R: Repository + 'static> Node<R> {
    /// A node without repositories.
    pub fn new(world: World) -> Self {
        Self {
            repositories: Hosted::new(),
            world,
            denied: Arc::new(|_: &Holder| false),
            registry: None,
            one_thread: false,
            lease_age_max: LEASE_AGE_MAX,
            limits: Arc::default(),
            puller: None,
            maintenance: Semaphore::new(1),
            desk: JobBroker::new(),
        }
    }

    /// Waits this long instead of a minute for each tenth of a request, and for each part of an answer to be taken.
    #[must_use]
    pub fn patient_for(mut self, patience: Duration) -> Self {
        self.own_limits().patience = patience;
        self
    }

    /// Ends sessions that were not used for so long, and not for ten minutes, when their holder has no connection.
    #[must_use]
    pub const fn forgetting_after(mut self, unused: Duration) -> Self {
        self.lease_age_max = unused;
        self
    }

    /// Receives and sends at most so many bytes of chunks a second, from and to all others together.
    #[must_use]
    pub fn paced(mut self, receive: Option<u64>, send: Option<u64>) -> Self {
        self.own_limits().paces =
            Paces { receive: Arc::new(RateLimiter::new(receive)), send: Arc::new(RateLimiter::new(send)) };
        self
    }

    fn own_limits(&mut self) -> &mut Limits {
        Arc::get_mut(&mut self.limits).expect("nobody is served yet")
    }

    /// Pulls copies from other nodes, which it reaches by what `reach` makes.
    #[must_use]
    pub fn pulling(
        mut self,
        reach: impl Fn(Congestion) -> Result<(Endpoint, ClientConfig)> + Send + Sync + 'static,
    ) -> Self {
        self.puller = Some(Puller::new(reach));
        self
    }

    /// Does everything on the thread that serves, for repositories whose sessions end without waiting: the order of what
    /// happens then depends on no other thread, which a simulation needs.
    #[must_use]
    pub const fn on_one_thread(mut self) -> Self {
        self.one_thread = true;
        self
    }

    /// Serves `repository` under `name`.
    #[must_use]
    pub fn with(self, name: &str, repository: R) -> Self {
        self.with_quotas(name, repository, Quotas::default())
    }

    /// Serves `repository` under `name`, of which nobody may have more than `quotas` say.
    #[must_use]
    pub fn with_quotas(self, name: &str, repository: R, quotas: Quotas) -> Self {
        self.host(name, repository, quotas, None);
        self
    }

    /// The same while it serves: for a repository that was away. With `reach` its owners are kept apart: a proxy is not
    /// told of chunks that its owner never had.
    pub fn host(&self, name: &str, repository: R, quotas: Quotas, reach: Option<Arc<dyn Reach>>) {
        self.repositories.put(name, Hosting::Here(Arc::new(Served::new(repository, quotas, reach))));
    }

    /// Tells whoever asks for `name` that it cannot be opened now, and `why`.
    pub fn away(&self, name: &str, why: &Error) {
        self.repositories.put(name, Hosting::Away(why.to_string()));
    }

    /// Asks `denied` about everybody whose certificate the authority signed, at every request and every second.
    #[must_use]
    pub fn denying(mut self, denied: impl Fn(&Holder) -> bool + Send + Sync + 'static) -> Self {
        self.denied = Arc::new(denied);
        self
    }

    /// Serves until `stop` becomes true; then takes nothing new, and finishes what is under way.
    pub async fn serve(self: Arc<Self>, endpoint: Endpoint, mut stop: watch::Receiver<bool>) {
        let mut expiry = tokio::time::interval(LEASE_CHECK.min(self.lease_age_max));
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
        if !incoming.remote_address_validated() && self.limits.handshakes.are_many() {
            let _ = incoming.retry();
        } else {
            let (node, stop) = (self.clone(), stop.clone());
            tasks.spawn(async move {
                if let Some(connection) = node.handshake(incoming, stop.clone()).await {
                    node.connection(connection, stop).await;
                }
            });
        }
    }

    async fn handshake(&self, incoming: Incoming, mut stop: watch::Receiver<bool>) -> Option<Connection> {
        let from = incoming.remote_address();
        let under_way = self.limits.handshakes.begin();
        let made = tokio::select! {
            made = tokio::time::timeout(HANDSHAKE_TIMEOUT, incoming.into_future()) => made,
            () = under_way.given_up() => {
                tracing::debug!(%from, "no connection: given up for others");
                return None;
            }
            _ = stop.wait_for(|stop| *stop) => return None,
        };
        match made {
            Ok(Ok(connection)) => return Some(connection),
            Ok(Err(error)) => tracing::debug!(%from, %error, "no connection"),
            Err(_) => tracing::debug!(%from, "no connection: it took too long"),
        }
        None
    }

    async fn connection(self: &Arc<Self>, connection: Connection, mut stop: watch::Receiver<bool>) {
        let from = connection.remote_address();
        let (holder, facts) = match self.holder(&connection) {
            Ok(Some(shown)) => shown,
            Ok(None) => return self.stranger(connection, stop).await,
            Err(error) => {
                tracing::warn!(%from, %error, "refused");
                return connection.close(VarInt::from_u32(CLOSED_REFUSED), error.message().as_bytes());
            }
        };
        let mut present = self.limits.connections.share(Some(&holder));
        if !present.grow(1) {
            tracing::warn!(%from, %holder, "refused: too many connections");
            return connection.close(VarInt::from_u32(CLOSED_REFUSED), b"too many connections of this holder");
        }
        tracing::debug!(%from, %holder, "connected");
        let allowance = Allowance::new(Some(&holder), connection.clone(), &self.limits);
        let caller = Arc::new(Caller { allowance, shown: Some(facts.clone()), greeted: watch::Sender::new(false) });
        let mut tasks = tokio::task::JoinSet::new();
        let mut look = tokio::time::interval(DENIED_CHECK);
        loop {
            tokio::select! {
                accepted = connection.accept_bi() => match accepted {
                    Ok((to, from)) => {
                        let (node, caller) = (self.clone(), caller.clone());
                        tasks.spawn(async move {
                            let _turn = caller.allowance.turn().await;
                            // What waits for its turn is small.
                            Box::pin(node.stream(Answer::new(to, caller), from)).await;
                        });
                    }
                    Err(error) => {
                        tracing::debug!(%from, %holder, %error, "disconnected");
                        break;
                    }
                },
                Some(_) = tasks.join_next() => {}
                // Long answers end too, not only what is asked from now on.
                _ = look.tick() => if !close_unless_valid(&connection, &facts) {
                    tracing::info!(%from, %holder, "cut off: its certificate has ended");
                    return;
                } else if let Err(error) = self.not_denied(&holder) {
                    tracing::warn!(%from, %error, "cut off");
                    return connection.close(VarInt::from_u32(CLOSED_REFUSED), error.message().as_bytes());
                },
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

    /// Whose certificate was shown; nobody's when none was.
    fn holder(&self, connection: &Connection) -> Result<Option<(Holder, Facts)>> {
        let Some(certificate) = shown(connection) else { return Ok(None) };
        let holder = holder_of(&certificate)?;
        self.not_denied(&holder)?;
        Ok(Some((holder, Facts::of(&certificate)?)))
    }

    fn not_denied(&self, holder: &Holder) -> Result<()> {
        if (self.denied)(holder) {
            return Err(Error::new(ErrorKind::NotAuthorised, format!("{holder} was revoked")));
        }
        Ok(())
    }

    async fn stream(&self, mut to: Answer, from: RecvStream) {
        let alive = to.alive();
        let told = tokio::select! {
            biased;
            told = self.answer(&mut to, from) => told,
            never = alive => match never {},
        };
        to.end(told.is_ok()).await;
    }

    async fn answer(&self, to: &mut Answer, mut from: RecvStream) -> Result<(), FrameError> {
        let caller = to.caller.clone();
        let done = match receive::<Request>(&mut from, &caller.allowance).await {
            Ok(frame) => self.message(frame, to).await,
            Err(error) => Err(error.into()),
        };
        // What was not read of it is let go.
        drop(from);
        match done {
            Ok(()) => Ok(()),
            Err(Refused::Told(failed)) => send(to, &Reply::Failed(failed), Vec::new(), false).await,
            Err(Refused::Gone) => Err(FrameError::Lost(String::new())),
        }
    }

    async fn message(&self, frame: Frame<Request>, to: &mut Answer) -> Done {
        let Frame { message, bulk, more, room } = frame;
        let caller = to.caller.clone();
        let greets = matches!(message, Request::Hello(_));
        // What was sent behind the greeting may be here before it.
        if more || !greets && !caller.was_greeted().await {
            return Err(Error::transport("hello is the first request, and each is one message").into());
        }
        let holder = caller.allowance.holder.as_ref();
        holder.map_or(Ok(()), |holder| self.not_denied(holder))?;
        if caller.shown.as_ref().is_some_and(|facts| !close_unless_valid(caller.allowance.connection(), facts)) {
            return Err(Refused::Gone);
        }
        access::check(holder, &message)?;
        let _work = caller.allowance.work(&message, bulk.len()).await.ok_or_else(Refused::no_room)?;
        // Held until the chunks are with the repository. What only asks is counted with its answer, which may take long.
        let _room = room.filter(|_| !matches!(message, Request::Get(_) | Request::GetVerified(_)));
        match holder {
            Some(holder) => self.request(holder, message, bulk, to).await?,
            None => self.asked_by_stranger(message, to).await?,
        }
        if greets {
            caller.greeted.send_replace(true);
        }
        Ok(())
    }

    async fn request(&self, holder: &Holder, request: Request, beside: Bytes, to: &mut Answer) -> Done {
        match request {
            Request::Hello(hello) => say(to, welcome(&hello)?).await,
            Request::Token(it) => say(to, self.expect(holder, it).await?).await,
            Request::Join(it) => say(to, self.join(it).await?).await,
            Request::Renew(it) => say(to, self.renew(holder, &to.caller, it)?).await,
            Request::Open(Open { name, machine }) => {
                let served = self.repositories.named(&name)?;
                let config = served.repository.config();
                let (repository, domain, created) = (config.id, config.domain.0, config.created);
                let opened = Reply::Opened(Opened { repository, domain, created, owner: holder.owner_id() });
                send(to, &opened, Vec::new(), machine.is_some()).await?;
                match machine {
                    Some(_) => points(to, served.list(holder, &PointFilter { machine, forgotten: false }).await?).await,
                    None => Ok(()),
                }
            }
            Request::List(list) => {
                let filter = PointFilter { machine: list.machine, forgotten: list.forgotten };
                points(to, self.of(list.repository)?.list(holder, &filter).await?).await
            }
            Request::Stats(it) => {
                let served = self.of(it.repository)?;
                if served.sight(holder).is_some() {
                    // They grow with what nobody had before.
                    let what = "where owners are kept apart (dedup = \"owner\"), only administrators may see totals";
                    return Err(Error::new(ErrorKind::NotAuthorised, what).into());
                }
                say(to, Reply::Totals(served.repository.stats().await?)).await
            }
            Request::LogHead(it) => {
                let ends: LogHead = self.of(it.repository)?.repository.log_head().await?;
                say(to, Reply::LogHead(ends)).await
            }
            Request::HasBeen(it) => {
                say(to, Reply::Answer(self.of(it.repository)?.repository.has_been(it.seen).await?)).await
            }
            Request::Peer(it) => say(to, Reply::Seen(self.of(it.repository)?.repository.peer(it.peer).await?)).await,
            Request::WantedChunks(WantedOf { repository, after }) => {
                let ids = self.of(repository)?.repository.wanted(after.map(ChunkId)).await?;
                Ok(send(to, &Reply::WantedIds(()), vec![bulk::of_ids(ids.into_iter())], false).await?)
            }
            Request::Log(it) => say(to, Reply::Records(self.of(it.repository)?.repository.log(it.after).await?)).await,
            Request::Begin(it) => {
                let served = self.of(it.repository)?;
                let place = served.places.take(holder, served.quotas.of(holder).sessions)?;
                let share = served.quotas.begin(holder, &served.of_owner(holder).await?)?;
                // Nobody far away is believed: what is wrong here would be wrong in every point that shares it.
                let (verification, by) = (Verification::Decode, Some(holder.clone()));
                let begin = Begin { verification, holder: by, ..it.begin };
                let parents = begin.parents.clone();
                let (session, begun) = served.repository.begin(begin).await?;
                let session = served.lend(
                    SessionId::random(&self.world),
                    holder,
                    place,
                    Either::Left(session),
                    parents,
                    Some(share),
                );
                let mut pages = begun.suspects.chunks(SUSPECTS_MAX).peekable();
                send(to, &Reply::Session(SessionRef { session }), Vec::new(), pages.peek().is_some()).await?;
                while let Some(page) = pages.next() {
                    send(to, &Reply::Suspects(page.to_vec()), Vec::new(), pages.peek().is_some()).await?;
                }
                Ok(())
            }
            Request::Read(it) => {
                let served = self.of(it.repository)?;
                let place = served.places.take(holder, served.quotas.of(holder).sessions)?;
                served.shows(holder, &it.points).await?;
                let reader = served.repository.read(&it.points).await?;
                let session =
                    served.lend(SessionId::random(&self.world), holder, place, Either::Right(reader), it.points, None);
                say(to, Reply::Session(SessionRef { session })).await
            }
            Request::Missing(MissingIn { session, kind }) => {
                let lease = self.lease(session, holder)?;
                let kind = ChunkKind::from_code(kind).ok_or_else(|| Error::transport("unknown kind of chunk"))?;
                let found = lease.write()?.missing(kind, &bulk::ids(&beside)?).await?;
                let codes: Vec<u8> = found.into_iter().map(presence_code).collect();
                Ok(send(to, &Reply::Presences(()), vec![codes.into()], false).await?)
            }
            Request::Put(put) => {
                let (served, lease) = self.served(put.session, holder)?;
                let (session, share) = (lease.write()?, lease.share()?);
                served.quotas.check(share, holder)?;
                match arrival::take(&to.caller.allowance, session, &put.lengths, beside).await {
                    // Who gives something else than it says, by a lie or by bad memory, gets no further with it.
                    Err(error) if error.kind() == ErrorKind::Integrity => {
                        tracing::warn!(%holder, session = %put.session, %error, "session ended");
                        served.end(put.session);
                        Err(error.into())
                    }
                    Ok(false) => Err(Refused::no_room()),
                    taken => {
                        taken?;
                        let stored = session.stored().await?;
                        served.quotas.count(share, stored.bytes_stored);
                        say(to, Reply::Stored(stored)).await
                    }
                }
            }
            Request::Flush(SessionRef { session }) => {
                let stored = self.lease(session, holder)?.write()?.flush().await?;
                say(to, Reply::Stored(stored)).await
            }
            Request::Commit(commit) => self.commit(holder, commit, beside, to).await,
            Request::Abandon(SessionRef { session }) | Request::Close(SessionRef { session }) => {
                self.let_go(self.served(session, holder)?.0.end(session));
                say(to, Reply::Done(())).await
            }
            Request::Manifest(it) => {
                let (served, lease) = self.served(it.session, holder)?;
                if !lease.pins.contains(&it.point) {
                    return Err(Error::not_found(format!("the session does not pin point {}", it.point)).into());
                }
                let manifest = lease.session.manifest(it.point).await?;
                if let Some(sight) = served.sight(holder) {
                    sight.showing(&manifest).await?;
                }
                Ok(send(to, &Reply::ManifestBytes(()), vec![manifest.encode().into()], false).await?)
            }
            Request::Pull(it) => self.pull(it, to).await,
            Request::Verify(it) => {
                let _turn = self.maintenance()?;
                verify(&self.of(it.repository)?.repository, it.options()?, to).await
            }
            Request::ChangePoints(it) => {
                self.of(it.repository)?.repository.change_points(&it.points, it.change).await?;
                tracing::info!(%holder, change = ?it.change, points = it.points.len(), "points changed");
                say(to, Reply::Done(())).await
            }
            Request::Annotate(it) => {
                self.of(it.repository)?.repository.annotate(it.point, &it.labels).await?;
                tracing::info!(%holder, point = %it.point, "labels set");
                say(to, Reply::Done(())).await
            }
            Request::MoveMachine(MoveIn { repository, machine, origin, owner }) => {
                tracing::info!(%holder, %machine, ?owner, "machine handed over");
                self.of(repository)?.repository.move_machine(machine, origin, owner).await?;
                say(to, Reply::Done(())).await
            }
            Request::GivenUp(it) => {
                say(to, Reply::GivenUpAre(self.of(it.repository)?.repository.given_up().await?)).await
            }
            Request::Sweep(it) => {
                let _turn = self.maintenance()?;
                tracing::info!(%holder, dry_run = it.options.dry_run, "sweep");
                let served = self.of(it.repository)?;
                sweep(&served.repository, it.options, to).await?;
                served.swept(it.options.dry_run);
                Ok(())
            }
            Request::RebuildIndex(it) => {
                let _turn = self.maintenance()?;
                rebuild_index(&self.of(it.repository)?.repository, to).await
            }
            Request::Get(SessionRef { session }) => {
                let (served, lease) = self.served(session, holder)?;
                let ids = bulk::ids(&beside)?;
                let Some(sight) = served.sight(holder) else { return spread(to, lease.session.get(ids)).await };
                let (seen, missing) = sight.seen(ids).await?;
                let batches = lease.session.get(seen.keys().copied().collect());
                spread(to, sight.shown(&seen, missing, batches)).await
            }
            Request::GetVerified(SessionRef { session }) => {
                let (served, lease) = self.served(session, holder)?;
                let ids = bulk::ids(&beside)?;
                // Few at a time: a chunk may be long, and nobody has taken the ones before yet.
                let verified = |ids: Vec<ChunkId>| {
                    let few: Vec<Vec<ChunkId>> = ids.chunks(VERIFIED_TOGETHER).map(<[_]>::to_vec).collect();
                    futures::stream::iter(few).then(|ids| lease.session.get_verified(&served.prints, ids))
                };
                let Some(sight) = served.sight(holder) else { return blobs(to, verified(ids)).await };
                let (seen, missing) = sight.seen(ids).await?;
                blobs(to, sight.shown(&seen, missing, verified(seen.keys().copied().collect()))).await
            }
            Request::Attend(_) | Request::Run(_) | Request::Cancel(_) | Request::Report(_) => {
                self.desk.request(holder, request, to, || self.not_denied(holder)).await
            }
        }
    }

    fn maintenance(&self) -> Result<SemaphorePermit<'_>> {
        let busy = || {
            Error::busy("the node already verifies or sweeps a repository, or rebuilds an index").hint(MAINTAIN_LATER)
        };
        self.maintenance.try_acquire().map_err(|_| busy())
    }

    async fn pull(&self, it: PullIn, to: &mut Answer) -> Done {
        let served = self.of(it.repository)?;
        let none = || Error::usage("this node does not copy from other nodes");
        let puller = self.puller.clone().ok_or_else(none)?;
        let (tell, mut told) = mpsc::channel(1);
        let receive = self.limits.paces.receive.clone();
        // A thread of its own: a copy goes on for long, and the compiler cannot see that it may change threads.
        let runtime = tokio::runtime::Handle::current();
        let pulling = mover::blocking(move || runtime.block_on(puller.pull(&served.repository, it, receive, tell)));
        let pulling = tokio::spawn(pulling);
        while let Some(reply) = told.recv().await {
            send(to, &reply, Vec::new(), true).await?;
        }
        pulling.await.map_err(|error| Error::internal("a copy ended early").because(error))??;
        say(to, Reply::Done(())).await
    }

    async fn commit(&self, holder: &Holder, commit: CommitIn, mut beside: Bytes, to: &mut Answer) -> Done {
        let (served, lease) = self.served(commit.session, holder)?;
        if commit.drafts.len() > DRAFTS_MAX {
            return Err(
                Error::usage(format!("{} points in one commit, more than {DRAFTS_MAX}", commit.drafts.len())).into()
            );
        }
        let mut drafts = Vec::new();
        for draft in commit.drafts {
            let length = draft.manifest_bytes as usize;
            if length > beside.len() {
                return Err(Error::transport("a message with lengths that do not match").into());
            }
            let manifest = Manifest::decode(&beside.split_to(length)).map_err(Error::from)?;
            // Tags are what the manifest says; of what else is known of a copy whoever copies is believed.
            let labels = match draft.origin {
                Some(_) => draft.labels,
                None => labels::of_tags(&manifest.tags),
            };
            drafts.push(PointDraft { manifest, origin: draft.origin, labels });
        }
        if !beside.is_empty() {
            return Err(Error::transport("a message with lengths that do not match").into());
        }
        let (session, share) = (lease.write()?, lease.share()?);
        let there = served.of_owner(holder).await?;
        let is_new = |draft: &&PointDraft| there.iter().all(|point| point.id != draft.manifest.point);
        served.quotas.check_points(holder, &there, drafts.iter().filter(is_new).count() as u64)?;
        match session.commit(&drafts).await? {
            Commit::Committed(points) => {
                let stored = session.stored().await?;
                served.quotas.committed(share);
                self.let_go(served.end(commit.session));
                say(to, Reply::Committed(Committed { points, stored })).await
            }
            Commit::Missing(mut missing) => {
                missing.truncate(LACKING_MAX);
                Ok(send(to, &Reply::Lacking(()), vec![bulk::of_ids(missing.into_iter())], false).await?)
            }
        }
    }

    fn of(&self, repository: RepositoryId) -> Result<Arc<Served<R>>> {
        self.repositories.of(repository)
    }

    fn lease(&self, session: SessionId, holder: &Holder) -> Result<Arc<Lease<R>>, Refused> {
        self.served(session, holder).map(|(_, lease)| lease)
    }

    /// A session of this holder; one of somebody else is as if it were not there.
    fn served(&self, session: SessionId, holder: &Holder) -> Result<Leased<R>, Refused> {
        let found = self.repositories.find(|served| {
            let leases = served.leases.lock().expect("no holder panics");
            let lease = leases.get(&session).filter(|lease| lease.holder == *holder)?;
            *lease.used.lock().expect("no holder panics") = Instant::now();
            Some((served.clone(), lease.clone()))
        });
        let (message, hint) = (format!("session {session} is not known"), String::new());
        found.ok_or(Refused::Told(Failed { code: NO_SESSION, message, hint }))
    }

    /// Ends sessions whose holder is gone and has not used them for long.
    fn expire(&self) {
        self.desk.forget();
        let present = self.limits.connections.holders();
        for served in self.repositories.all() {
            let mut leases = served.leases.lock().expect("no holder panics");
            let ended = leases.extract_if(|_, lease| {
                let used = lease.used.lock().expect("no holder panics").elapsed();
                Arc::strong_count(lease) == 1 && used > self.lease_age_max && !present.contains(&lease.holder)
            });
            let ended: Vec<_> = ended.collect();
            drop(leases);
            for (session, lease) in ended {
                tracing::warn!(%session, holder = %lease.holder, "session ended: its holder was not connected for a long time");
                self.let_go(Some(lease));
            }
        }
    }

    /// Ends a session where waiting for its last record holds nobody up.
    fn let_go(&self, lease: Option<Arc<Lease<R>>>) {
        if self.one_thread {
            drop(lease);
        } else if let Some(lease) = lease {
            tokio::task::spawn_blocking(move || drop(lease));
        }
    }
}

fn welcome(hello: &Hello) -> Result<Reply> {
    let (lowest, highest) = hello.versions;
    if lowest > super::VERSION || highest < super::VERSION {
        let what =
            format!("the node speaks version {} of the protocol, and the client {lowest} to {highest}", super::VERSION);
        return Err(Error::version(what).hint("use the same version of Windlass on both sides"));
    }
    let program = concat!("windlass-store ", env!("CARGO_PKG_VERSION")).to_owned();
    let features = hello.features & super::FEATURES;
    Ok(Reply::Welcome(Welcome { version: super::VERSION, features, program }))
}

const MAINTAIN_LATER: &str = "run the command again when that has ended (sweep can wait for it: --wait)";
/// Chunks decoded and compared before the first is sent.
const VERIFIED_TOGETHER: usize = 4;
/// For somebody who was put on the deny list.
const DENIED_CHECK: Duration = Duration::from_secs(1);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// For what is under way when the node stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
const LEASE_AGE_MAX: Duration = Duration::from_secs(600);
const LEASE_CHECK: Duration = Duration::from_secs(10);
