//! A storage node's half: takes connections, looks whom they are from, and does what may be asked.

mod arrival;
mod caller;
mod hosted;
mod joining;
mod owners;
mod places;
mod quota;
mod reply;
mod requests;
mod served;

use super::access;
use super::allowance::{Allowance, NodeBudgets, Paces};
use super::control::ProxyChoice;
use super::control::broker::JobBroker;
use super::frame::{Frame, FrameError, receive};
use super::message::{Reply, Request};
use super::pull::Puller;
use super::quic::Congestion;
use super::validity::{close_unless_valid, shown};
use super::{CLOSED_REFUSED, CLOSED_STOPPING};
use crate::identity::{Facts, Registry, holder_of};
use caller::Caller;
pub(super) use caller::{Done, Refused};
use hosted::{Hosted, Hosting};
use mover::{Error, ErrorKind, Holder, RateLimiter, Reach, Repository, Result, World};
use quinn::{ClientConfig, Connection, Endpoint, Incoming, RecvStream, VarInt};
pub use quota::{Quota, Quotas};
pub(super) use reply::{Answer, send};
use served::{Lease, Served};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};

/// What a node serves. Dropping it ends all sessions.
pub struct Node<R: Repository> {
    repositories: Hosted<R>,
    world: World,
    denied: Arc<Denied>,
    /// The site's authority, in the one node that holds it.
    registry: Option<Arc<Registry>>,
    /// Whether everything must be done on the thread that serves.
    one_thread: bool,
    lease_age_max: Duration,
    budgets: Arc<NodeBudgets>,
    puller: Option<Puller>,
    /// Work on a whole repository is done one at a time: a verification takes whole packs into memory.
    maintenance: Semaphore,
    broker: JobBroker,
}

/// Tells whether somebody was shut out.
type Denied = dyn Fn(&Holder) -> bool + Send + Sync;

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
            budgets: Arc::default(),
            puller: None,
            maintenance: Semaphore::new(1),
            broker: JobBroker::new(ProxyChoice::default()),
        }
    }

    /// Waits this long instead of a minute for each tenth of a request, and for each part of an answer to be taken.
    #[must_use]
    pub fn patient_for(mut self, patience: Duration) -> Self {
        self.own_budgets().patience = patience;
        self
    }

    /// Ends sessions that were not used for `unused` instead of ten minutes, when their holder has no connection.
    #[must_use]
    pub const fn forgetting_after(mut self, unused: Duration) -> Self {
        self.lease_age_max = unused;
        self
    }

    /// Chooses among the proxies that offer the same machine in this way.
    #[must_use]
    pub fn choosing(mut self, choice: ProxyChoice) -> Self {
        self.broker = JobBroker::new(choice);
        self
    }

    /// Receives and sends at most so many bytes of chunks a second, from and to all others together.
    #[must_use]
    pub fn paced(mut self, receive: Option<u64>, send: Option<u64>) -> Self {
        self.own_budgets().paces =
            Paces { receive: Arc::new(RateLimiter::new(receive)), send: Arc::new(RateLimiter::new(send)) };
        self
    }

    fn own_budgets(&mut self) -> &mut NodeBudgets {
        Arc::get_mut(&mut self.budgets).expect("nobody is served yet")
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

    /// Does everything on the thread that serves. This is for repositories whose sessions end without waiting. A
    /// simulation needs it, because the order of events then depends on no other thread.
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

    /// As [`Self::with_quotas`], but also while the node serves, for a repository that was away. With `reach` the
    /// owners in it are kept apart: the node does not tell a proxy about chunks that its owner never had.
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
        self.broker.stop();
        let finished = async { while tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(STOP_TIMEOUT, finished).await;
        endpoint.close(VarInt::from_u32(CLOSED_STOPPING), b"stopping");
        // So that clients hear of it.
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, endpoint.wait_idle()).await;
    }

    fn admit(self: &Arc<Self>, incoming: Incoming, tasks: &mut tokio::task::JoinSet<()>, stop: &watch::Receiver<bool>) {
        // Who has not shown that its address is its own costs nothing but this packet.
        if !incoming.remote_address_validated() && self.budgets.handshakes.are_many() {
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
        let under_way = self.budgets.handshakes.begin();
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
        let mut present = self.budgets.connections.share(Some(&holder));
        if !present.grow(1) {
            tracing::warn!(%from, %holder, "refused: too many connections");
            return connection.close(VarInt::from_u32(CLOSED_REFUSED), b"too many connections of this holder");
        }
        tracing::debug!(%from, %holder, "connected");
        let allowance = Allowance::new(Some(&holder), connection.clone(), &self.budgets);
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

    /// Ends sessions whose holder is gone and has not used them for long.
    fn expire(&self) {
        self.broker.forget();
        let present = self.budgets.connections.holders();
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

    /// Ends a session on a thread that may wait for its last record, unless everything is done on one thread.
    fn let_go(&self, lease: Option<Arc<Lease<R>>>) {
        if self.one_thread {
            drop(lease);
        } else if let Some(lease) = lease {
            tokio::task::spawn_blocking(move || drop(lease));
        }
    }
}

/// How often the node looks whether a connected holder was put on the deny list.
const DENIED_CHECK: Duration = Duration::from_secs(1);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// For what is under way when the node stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
const LEASE_AGE_MAX: Duration = Duration::from_secs(600);
const LEASE_CHECK: Duration = Duration::from_secs(10);
