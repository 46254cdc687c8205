//! The way from a client to one node: connections that are made again when they are lost.

use super::CLOSED_REFUSED;
use super::answer::{Replies, Waiting};
use super::frame::{Frame, FrameError, send};
use super::message::{Hello, Message, NO_ROOM, NO_SESSION, Reply, Request};
use super::quic::{Current, WINDOW_BYTES};
use super::validity;
use super::waits::{self, Again};
use bytes::Bytes;
use mover::{Error, RateLimiter, Result};
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, TransportErrorCode, VarInt};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, OnceCell, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Where a node is, and how to ask it.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Name or address of the node.
    pub host: String,
    /// UDP port of the node.
    pub port: u16,
    /// Certificates, windows.
    pub config: ClientConfig,
    /// How long a lost node is waited for.
    pub patience: Duration,
    /// How long one that is there, and that was asked, may say nothing.
    pub silence: Duration,
    /// Who we are to it, for messages about certificates.
    pub own: Option<Current>,
    /// Connections that carry chunks, beside the one for everything else.
    pub lanes: usize,
    /// How fast chunks may come.
    pub receive: Arc<RateLimiter>,
}

impl Peer {
    /// With the usual patience and lanes.
    pub fn new(host: impl Into<String>, port: u16, config: ClientConfig) -> Self {
        Self {
            host: host.into(),
            port,
            config,
            patience: PATIENCE,
            silence: waits::SILENCE,
            own: None,
            lanes: LANES,
            receive: Arc::default(),
        }
    }

    /// Says in messages what our certificate says.
    #[must_use]
    pub fn known_as(self, own: Current) -> Self {
        Self { own: Some(own), ..self }
    }
}

/// Connections to one node.
#[derive(Debug)]
pub struct Link {
    endpoint: Endpoint,
    peer: Peer,
    /// The first for questions, the others for chunks.
    lanes: Vec<Mutex<Lane>>,
    next: AtomicUsize,
    /// Whether the node has answered. If it has not, the address may be wrong, and the error comes soon. If it has,
    /// this client waits for the node to come back.
    reached: AtomicBool,
    /// Microseconds to the node and back, as last measured.
    round_trip: AtomicU64,
    /// Bytes of chunks that may still be put on their way, by all sessions together.
    pub(super) window: Arc<Semaphore>,
    /// Ends of sessions that nobody waits for.
    farewells: std::sync::Mutex<JoinSet<()>>,
}

/// Why a call did not do its work.
#[derive(Debug)]
pub enum CallError {
    /// The node does not know the session (any more).
    NoSession,
    /// The request failed.
    Failed(Error),
}

impl From<Error> for CallError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<CallError> for Error {
    fn from(error: CallError) -> Self {
        match error {
            CallError::NoSession => Self::fenced("the node ended this session").hint("run the job again"),
            CallError::Failed(error) => error,
        }
    }
}

/// Why one attempt failed.
enum Attempt {
    /// Another one may go well.
    Lost(String),
    /// The node is there and at work: another one may go well later.
    Later(String),
    Over(CallError),
}

impl From<FrameError> for Attempt {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Nonsense(error) => Self::Over(CallError::Failed(error)),
            error @ (FrameError::Lost(_) | FrameError::Slow | FrameError::NoRoom) => Self::Lost(error.to_string()),
        }
    }
}

/// A connection, and the requests that wait for parts of their answers on it.
#[derive(Debug, Clone)]
struct Line {
    connection: Connection,
    waiting: Waiting,
    /// Set when the node has said that it speaks our version.
    greeted: Arc<OnceCell<()>>,
}

/// A connection, or why there is none.
#[derive(Debug, Default)]
struct Lane {
    open: Option<Line>,
    /// When the last attempt to connect failed, and why. Requests that waited for that attempt do not repeat it, one
    /// after another.
    failed: Option<(Instant, String)>,
}

impl Link {
    /// A link that connects when it is used.
    pub fn new(endpoint: Endpoint, peer: Peer) -> Self {
        let lanes = (0..=peer.lanes.max(1)).map(|_| Mutex::default()).collect();
        Self {
            endpoint,
            peer,
            lanes,
            next: AtomicUsize::new(0),
            reached: AtomicBool::new(false),
            round_trip: AtomicU64::new(0),
            window: Arc::new(Semaphore::new(WINDOW_BYTES as usize)),
            farewells: std::sync::Mutex::default(),
        }
    }

    /// Asks, and gives the first reply. When the connection is lost, asks again on another one, for as long as this
    /// client waits for the node. Asking again does no harm, because every request has the same effect twice as once.
    ///
    /// # Errors
    /// The node's; `Transport` when it cannot be reached.
    pub async fn call(&self, request: &Request, bulk: &[Bytes]) -> Result<(Reply, Bytes), CallError> {
        let (frame, _) = self.calls(request, bulk).await?;
        Ok((frame.message, frame.bulk))
    }

    /// As [`Self::call`], with the replies that follow. When those break off the caller asks again for what is left.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn calls(&self, request: &Request, bulk: &[Bytes]) -> Result<(Frame<Reply>, Replies), CallError> {
        let reached = self.reached.load(Ordering::Relaxed);
        let mut backoff =
            Backoff::new(if reached { self.peer.patience } else { self.peer.patience.min(FIRST_PATIENCE) });
        let bytes = bulk.iter().map(Bytes::len).sum::<usize>().max(self.on_their_way());
        let ends = waits::call_ends(self.peer.silence, bytes);
        loop {
            let tried = timeout_at(ends, Box::pin(self.attempt(request, bulk))).await;
            let tried = tried.unwrap_or_else(|_| Err(Attempt::Over(self.given_up(request).into())));
            let waited = match tried {
                Ok(replied) => {
                    self.reached.store(true, Ordering::Relaxed);
                    return Ok(replied);
                }
                Err(Attempt::Over(error)) => return Err(error),
                Err(Attempt::Lost(what)) => backoff.wait(&self.peer, &what).await,
                Err(Attempt::Later(what)) => {
                    backoff = Backoff::new(self.peer.patience);
                    backoff.wait(&self.peer, &what).await
                }
            };
            if let Err(error) = waited {
                // What is asked next, to tidy up, does not wait so long again.
                self.reached.store(false, Ordering::Relaxed);
                return Err(error.into());
            }
        }
    }

    /// Bytes of chunks that are on their way.
    fn on_their_way(&self) -> usize {
        (WINDOW_BYTES as usize).saturating_sub(self.window.available_permits())
    }

    fn given_up(&self, request: &Request) -> Error {
        self.reached.store(false, Ordering::Relaxed);
        Error::transport(format!("{} does not answer {}, after many attempts", self.name(), request.name()))
            .hint("read the log of the node; run the job again when the node answers")
    }

    async fn attempt(&self, request: &Request, bulk: &[Bytes]) -> Result<(Frame<Reply>, Replies), Attempt> {
        let lane = self.lane(request);
        let line = self.line(lane).await?;
        let began = Instant::now();
        // What is asked first does not wait for the greeting, its answer does.
        let greeted = async { line.greeted.get_or_try_init(|| greet(&line, self.peer.silence)).await.map(|_| ()) };
        let asked = exchange(&line, request, bulk, self.peer.silence);
        let replied = async {
            tokio::pin!(greeted, asked);
            tokio::select! {
                biased;
                greeted = &mut greeted => {
                    greeted?;
                    asked.await
                }
                replied = &mut asked => {
                    greeted.await?;
                    replied
                }
            }
        };
        let made = self.told_why(&line.connection, replied.await);
        let round_trip = u64::try_from(line.connection.rtt().as_micros()).unwrap_or(u64::MAX);
        self.round_trip.store(round_trip, Ordering::Relaxed);
        let (code, ms) = (request.code(), began.elapsed().as_millis());
        tracing::trace!(lane, code = format_args!("{code:#06x}"), ms, "asked");
        made
    }

    /// The connection for a request. Chunks use all connections but the first in turn, because one connection is the
    /// work of one thread at each end. Questions about chunks use all connections in turn, because each connection
    /// begins slowly: if the node is far away, a backup without new data waits for little else.
    fn lane(&self, request: &Request) -> usize {
        let next = || self.next.fetch_add(1, Ordering::Relaxed);
        match request {
            Request::Put(_) | Request::Get(_) => 1 + next() % (self.lanes.len() - 1),
            Request::Missing(_) => next() % self.lanes.len(),
            _ => 0,
        }
    }

    async fn line(&self, lane: usize) -> Result<Line, Attempt> {
        let asked = Instant::now();
        let mut slot = self.lanes[lane].lock().await;
        if let Some(open) = slot.open.as_ref().filter(|it| it.connection.close_reason().is_none()) {
            return Ok(open.clone());
        }
        if let Some((_, what)) = slot.failed.as_ref().filter(|(at, _)| *at >= asked) {
            return Err(Attempt::Lost(what.clone()));
        }
        let made = self.connect().await;
        slot.failed = match &made {
            Err(Attempt::Lost(what)) => Some((Instant::now(), what.clone())),
            _ => None,
        };
        slot.open = made.as_ref().ok().cloned();
        made
    }

    async fn connect(&self) -> Result<Line, Attempt> {
        let patience = CONNECT_TIMEOUT.min(self.peer.patience);
        let addresses = tokio::net::lookup_host((self.peer.host.as_str(), self.peer.port));
        let slow = |_| Attempt::Lost("the name server does not answer".into());
        let addresses = timeout(patience * 2, addresses).await.map_err(slow)?;
        let mut tried = Attempt::Lost("its name has no address".into());
        let both = self.endpoint.local_addr().is_ok_and(|own| own.is_ipv6());
        for address in addresses.map_err(|error| Attempt::Lost(error.to_string()))?.take(ADDRESSES_MAX) {
            let address = if both { mapped(address) } else { address };
            let connecting = self.endpoint.connect_with(self.peer.config.clone(), address, &self.peer.host);
            let connecting = match connecting {
                Ok(connecting) => connecting,
                // Of the family that our socket does not take.
                Err(quinn::ConnectError::InvalidRemoteAddress(_)) => continue,
                Err(error) => {
                    let error = Error::usage(format!("{}: {error}", self.peer.host));
                    return Err(Attempt::Over(CallError::Failed(error)));
                }
            };
            let connected = timeout(patience, connecting).await;
            match connected.unwrap_or(Err(ConnectionError::TimedOut)) {
                Ok(connection) => {
                    let line = Line { connection, waiting: Waiting::default(), greeted: Arc::default() };
                    tokio::spawn(line.waiting.clone().sort(line.connection.clone()));
                    tokio::spawn(validity::ends_with_its_certificate(line.connection.clone()));
                    return Ok(line);
                }
                Err(error) => tried = refused(&self.peer, error),
            }
        }
        Err(tried)
    }

    /// Makes the connections for chunks before they are needed, because making them takes long when the node is far
    /// away.
    pub fn expect_chunks(self: &Arc<Self>) {
        for lane in 1..self.lanes.len() {
            let link = self.clone();
            // Who needs it is told why there is none.
            tokio::spawn(async move { drop(link.line(lane).await) });
        }
    }

    /// Replaces an error by the reason for which the node closed the connection, because a node checks our certificate
    /// only after we have begun to talk.
    fn told_why<T>(&self, connection: &Connection, made: Result<T, Attempt>) -> Result<T, Attempt> {
        match (made, connection.close_reason()) {
            // What we closed ourselves we know better why.
            (made, Some(ConnectionError::LocallyClosed)) => made,
            (Err(Attempt::Lost(_) | Attempt::Later(_)), Some(reason)) => Err(refused(&self.peer, reason)),
            (made, _) => made,
        }
    }

    /// Waits until so many bytes of chunks may come.
    pub async fn pace(&self, bytes: u64) {
        self.peer.receive.wait(bytes).await;
    }

    /// Time to the node and back; zero before the node was reached.
    pub fn round_trip(&self) -> Duration {
        Duration::from_micros(self.round_trip.load(Ordering::Relaxed))
    }

    /// Whom this is about, for messages.
    pub fn name(&self) -> String {
        format!("{}:{}", self.peer.host, self.peer.port)
    }

    /// As [`Self::calls`], with all replies that follow. Each reply is given to `take` with the result so far. When the
    /// replies break off, the request is made again, and the result begins anew.
    ///
    /// # Errors
    /// As [`Self::call`]; those of `take`.
    pub async fn gather<T: Default>(
        &self,
        request: &Request,
        bulk: &[Bytes],
        take: impl Fn(&mut T, Frame<Reply>) -> Result<()>,
    ) -> Result<T, CallError> {
        let mut again = self.again();
        loop {
            again.asked();
            let (first, mut rest) = Box::pin(self.calls(request, bulk)).await?;
            let (mut next, mut made) = (Some(first), T::default());
            while let Some(frame) = next {
                let last = !frame.more;
                take(&mut made, frame)?;
                if last {
                    return Ok(made);
                }
                next = rest.next_if_any().await?;
            }
            again.broke_off()?;
        }
    }

    /// For an answer that may break off.
    pub fn again(&self) -> Again {
        Again::new(self.name(), self.peer.patience)
    }

    /// Makes a request for whose answer nobody waits but [`Self::close`].
    pub fn farewell(self: &Arc<Self>, request: Request) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let link = self.clone();
        let farewell = async move {
            let _ = timeout(FAREWELL_TIMEOUT, link.call(&request, &[])).await;
        };
        let mut farewells = self.farewells.lock().expect("no holder panics");
        while farewells.try_join_next().is_some() {}
        farewells.spawn_on(farewell, &runtime);
    }

    /// Tells the node that nothing more comes.
    pub async fn close(&self) {
        let mut farewells = std::mem::take(&mut *self.farewells.lock().expect("no holder panics"));
        let _ = timeout(FAREWELL_TIMEOUT, async { while farewells.join_next().await.is_some() {} }).await;
        for lane in &self.lanes {
            // One that is being made is not waited for.
            let open = lane.try_lock().ok().and_then(|mut lane| lane.open.take());
            if let Some(Line { connection, .. }) = open {
                let quinn::PathStats { rtt, cwnd, congestion_events, lost_packets, sent_packets, current_mtu, .. } =
                    connection.stats().path;
                tracing::debug!(?rtt, cwnd, congestion_events, lost_packets, sent_packets, current_mtu, "closing");
                connection.close(VarInt::from_u32(0), b"done");
            }
        }
        // Time to send it: a process that ends at once would leave the node waiting for it.
        let _ = timeout(CLOSE_TIMEOUT, self.endpoint.wait_idle()).await;
    }
}

async fn greet(line: &Line, silence: Duration) -> Result<(), Attempt> {
    let program = concat!("windlass ", env!("CARGO_PKG_VERSION")).to_owned();
    let hello = Request::Hello(Hello { versions: (super::VERSION, super::VERSION), features: 0, program });
    let (frame, _) = exchange(line, &hello, &[], waits::GREETING.min(silence)).await?;
    match frame.message {
        Reply::Welcome(welcome) if welcome.version == super::VERSION => Ok(()),
        _ => Err(Attempt::Over(CallError::Failed(unexpected()))),
    }
}

async fn exchange(
    line: &Line,
    request: &Request,
    bulk: &[Bytes],
    silence: Duration,
) -> Result<(Frame<Reply>, Replies), Attempt> {
    let Line { connection, waiting, .. } = line;
    let lost = || {
        waits::give_up(connection);
        Attempt::Lost(waits::unanswered(request, silence))
    };
    let opened = tokio::select! {
        biased;
        opened = connection.open_bi() => opened,
        () = waits::stands_still(connection, silence) => return Err(lost()),
    };
    let (mut to, from) = opened.map_err(|error| Attempt::Lost(error.to_string()))?;
    if let Request::Missing(_) = request {
        // Before chunks that are on their way: what comes next depends on the answer.
        let _ = to.set_priority(1);
    }
    let mut replies = Replies::new(connection.clone(), waiting, from, request, silence);
    // A node that refuses may answer and stop reading before all is sent: its answer counts.
    let sent = tokio::select! {
        biased;
        sent = send(&mut to, request, bulk.to_vec(), false) => sent,
        () = waits::stands_still(connection, silence) => return Err(lost()),
    };
    if let Err(error @ FrameError::Nonsense(_)) = sent {
        return Err(error.into());
    }
    let _ = to.finish();
    // From when on the node has all of it its silence counts; before, that nothing moves.
    let (has_it, taken) = (replies.has_it(), to.stopped());
    let taking = async {
        tokio::select! {
            biased;
            _ = taken => {
                let _ = has_it.set(Instant::now());
                std::future::pending().await
            }
            () = waits::stands_still(connection, silence) => {}
        }
    };
    let replied = tokio::select! {
        biased;
        replied = replies.any() => replied,
        () = taking => return Err(lost()),
    };
    let frame = match replied {
        Ok(frame) => frame.ok_or_else(|| Attempt::Lost("an empty answer".into()))?,
        Err(FrameError::Lost(what)) if replies.worked() => return Err(Attempt::Later(what)),
        Err(error) => return Err(error.into()),
    };
    if let Reply::Failed(failed) = frame.message {
        return Err(match failed.code {
            NO_SESSION => Attempt::Over(CallError::NoSession),
            // Later there will be.
            NO_ROOM => Attempt::Later(failed.message),
            _ => Attempt::Over(CallError::Failed(failed.into())),
        });
    }
    Ok((frame, replies))
}

/// A node that does not accept us, or that we do not accept, is not waited for.
fn refused(peer: &Peer, error: ConnectionError) -> Attempt {
    let node = format!("{}:{}", peer.host, peer.port);
    let error = match &error {
        // We found it ourselves: about the node's certificate.
        ConnectionError::TransportError(error) if is_about_certificates(error.code) => {
            validity::of_the_node(&node, &error.reason)
        }
        // The node did: about ours.
        ConnectionError::ConnectionClosed(close) if is_about_certificates(close.error_code) => {
            let own = peer.own.as_ref().map(|own| own.get());
            match (u64::from(close.error_code), own.as_deref()) {
                (CERTIFICATE_EXPIRED, Some(own)) => validity::ours_out_of_time(&node, own),
                (UNKNOWN_AUTHORITY | WRONG_SIGNATURE, Some(own)) => validity::ours_of_another_site(&node, own),
                _ => validity::refused(&node, &close.to_string()),
            }
        }
        ConnectionError::ApplicationClosed(close) if close.error_code == VarInt::from_u32(CLOSED_REFUSED) => {
            validity::refused(&node, &String::from_utf8_lossy(&close.reason))
        }
        ConnectionError::ConnectionClosed(close) if u64::from(close.error_code) == NO_APPLICATION_PROTOCOL => {
            let error = Error::version(format!("{} speaks another version of the protocol", peer.host));
            error.hint("use the same version of Windlass on both sides")
        }
        // That the node speaks another version of QUIC nobody has signed: a packet that was damaged on its way brings that answer
        // too. A certificate that has ended meanwhile (CLOSED_EXPIRED) may have been renewed: the next connection shows.
        _ => return Attempt::Lost(error.to_string()),
    };
    Attempt::Over(CallError::Failed(error))
}

/// Codes of QUIC (RFC 9001, 4.8) that carry an alert of TLS.
fn is_about_certificates(code: TransportErrorCode) -> bool {
    (0x100..0x200).contains(&u64::from(code)) && u64::from(code) != NO_APPLICATION_PROTOCOL
}

/// For a socket that takes both families.
fn mapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(it) => SocketAddr::from((it.ip().to_ipv6_mapped(), it.port())),
        SocketAddr::V6(_) => address,
    }
}

/// A reply that does not belong to the request.
pub fn unexpected() -> Error {
    Error::transport("the node gave an answer that does not belong to the request")
}

/// Waits longer each time. All waits together have a limit, which is counted from the first loss.
struct Backoff {
    patience: Duration,
    until: Option<Instant>,
    pause: Duration,
}

impl Backoff {
    fn new(patience: Duration) -> Self {
        Self { patience, until: None, pause: PAUSE_MIN }
    }

    async fn wait(&mut self, peer: &Peer, what: &str) -> Result<()> {
        let Peer { host, port, .. } = peer;
        let until = *self.until.get_or_insert_with(|| Instant::now() + self.patience);
        if Instant::now() + self.pause > until {
            return Err(Error::transport(format!("{host}:{port} cannot be reached: {what}"))
                .hint("check that windlass-store runs there and what its log says, and that its UDP port is open"));
        }
        tracing::info!(host, port, what, pause_ms = self.pause.as_millis(), "connection lost, trying again");
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Ok(())
    }
}

const PATIENCE: Duration = Duration::from_secs(120);
const FIRST_PATIENCE: Duration = Duration::from_secs(10);
/// The alert of TLS with which a node ends a handshake about another protocol (RFC 7301, 3.2).
const NO_APPLICATION_PROTOCOL: u64 = 0x178;
/// For the end of a session that nobody waits for; the node would end it by itself.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(5);
const CLOSE_TIMEOUT: Duration = Duration::from_millis(5);
/// For one address; for finding addresses twice as long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Of a name with many the others are not tried.
const ADDRESSES_MAX: usize = 4;
/// The alert of TLS for a certificate that is not valid now (RFC 8446, 6.2).
const CERTIFICATE_EXPIRED: u64 = 0x100 + 45;
/// For one of an authority that is not known, or that only has the same name.
const UNKNOWN_AUTHORITY: u64 = 0x100 + 48;
const WRONG_SIGNATURE: u64 = 0x100 + 51;
const LANES: usize = 2;
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
