//! The way from a client to one node: connections that are made again when they are lost.

use super::CLOSED_REFUSED;
use super::answer::{Replies, Waiting};
use super::frame::{Frame, FrameError, send};
use super::message::{Hello, Message, NO_ROOM, NO_SESSION, Reply, Request};
use super::quic::WINDOW_BYTES;
use crate::{Error, ErrorKind, Pacer, Result};
use bytes::Bytes;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, TransportErrorCode, VarInt};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, OnceCell, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// Where a node is, and how to ask it.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Name or address.
    pub host: String,
    /// UDP port.
    pub port: u16,
    /// Certificates, windows.
    pub config: ClientConfig,
    /// How long a lost node is waited for.
    pub patience: Duration,
    /// Connections that carry chunks, beside the one for everything else.
    pub lanes: usize,
    /// How fast chunks may come.
    pub receive: Arc<Pacer>,
}

impl Peer {
    /// With the usual patience and lanes.
    pub fn new(host: impl Into<String>, port: u16, config: ClientConfig) -> Self {
        Self { host: host.into(), port, config, patience: PATIENCE, lanes: LANES, receive: Arc::default() }
    }
}

/// Connections to one node.
#[derive(Debug)]
pub struct Link {
    endpoint: Endpoint,
    peer: Peer,
    /// The first for questions, the others for chunks.
    lanes: Vec<Mutex<Option<Line>>>,
    next: AtomicUsize,
    /// Whether the node ever answered: a wrong address is told soon, a node that went away is waited for.
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
    /// It failed.
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
    Over(CallError),
}

impl From<FrameError> for Attempt {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Nonsense(error) => Self::Over(CallError::Failed(error)),
            error @ (FrameError::Lost(_) | FrameError::NoRoom) => Self::Lost(error.to_string()),
        }
    }
}

/// A connection, and who waits for parts of answers on it.
#[derive(Debug, Clone)]
struct Line {
    connection: Connection,
    waiting: Waiting,
    /// Once the node has said that it speaks our version.
    greeted: Arc<OnceCell<()>>,
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

    /// Asks, and gives the first reply; again on another connection for as long as the node is waited for: every request
    /// has the same effect twice as once.
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
        loop {
            let began = Instant::now();
            match self.attempt(request, bulk).await {
                Ok(replied) => {
                    self.reached.store(true, Ordering::Relaxed);
                    return Ok(replied);
                }
                Err(Attempt::Over(error)) => return Err(error),
                Err(Attempt::Lost(what)) => backoff.wait(&self.peer, &what, began.elapsed()).await?,
            }
        }
    }

    async fn attempt(&self, request: &Request, bulk: &[Bytes]) -> Result<(Frame<Reply>, Replies), Attempt> {
        let lane = self.lane(request);
        let line = self.line(lane).await?;
        let began = Instant::now();
        // What is asked first does not wait for the greeting, its answer does.
        let greeted = line.greeted.get_or_try_init(|| greet(&line));
        let (greeted, replied) = tokio::join!(greeted, exchange(&line, request, bulk));
        let made = self.told_why(&line.connection, greeted.and(replied));
        let round_trip = u64::try_from(line.connection.rtt().as_micros()).unwrap_or(u64::MAX);
        self.round_trip.store(round_trip, Ordering::Relaxed);
        let (code, ms) = (request.code(), began.elapsed().as_millis());
        tracing::trace!(lane, code = format_args!("{code:#06x}"), ms, "asked");
        made
    }

    /// Chunks go round over all connections but the first: one connection is one thread's work at either end. Questions
    /// about them go round over all: each connection begins slowly, which from far away is what a backup without anything
    /// new waits for.
    fn lane(&self, request: &Request) -> usize {
        let next = || self.next.fetch_add(1, Ordering::Relaxed);
        match request {
            Request::Put(_) | Request::Get(_) => 1 + next() % (self.lanes.len() - 1),
            Request::Missing(_) => next() % self.lanes.len(),
            _ => 0,
        }
    }

    async fn line(&self, lane: usize) -> Result<Line, Attempt> {
        let mut slot = self.lanes[lane].lock().await;
        if let Some(open) = slot.as_ref().filter(|it| it.connection.close_reason().is_none()) {
            return Ok(open.clone());
        }
        let made = self.connect().await?;
        *slot = Some(made.clone());
        Ok(made)
    }

    async fn connect(&self) -> Result<Line, Attempt> {
        let addresses = tokio::net::lookup_host((self.peer.host.as_str(), self.peer.port)).await;
        let mut tried = Attempt::Lost("its name has no address".into());
        let both = self.endpoint.local_addr().is_ok_and(|own| own.is_ipv6());
        for address in addresses.map_err(|error| Attempt::Lost(error.to_string()))? {
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
            let connected = timeout(CONNECT_TIMEOUT.min(self.peer.patience), connecting).await;
            match connected.unwrap_or(Err(ConnectionError::TimedOut)) {
                Ok(connection) => {
                    let line = Line { connection, waiting: Waiting::default(), greeted: Arc::default() };
                    tokio::spawn(line.waiting.clone().sort(line.connection.clone()));
                    return Ok(line);
                }
                Err(error) => tried = refused(&self.peer, error),
            }
        }
        Err(tried)
    }

    /// Makes the connections for chunks before they are needed: from far away that takes long.
    pub fn expect_chunks(self: &Arc<Self>) {
        for lane in 1..self.lanes.len() {
            let link = self.clone();
            // Who needs it is told why there is none.
            tokio::spawn(async move { drop(link.line(lane).await) });
        }
    }

    /// A node looks at our certificate after we have begun to talk: what it closed the connection for counts.
    fn told_why<T>(&self, connection: &Connection, made: Result<T, Attempt>) -> Result<T, Attempt> {
        match (made, connection.close_reason()) {
            (Err(Attempt::Lost(_)), Some(reason)) => Err(refused(&self.peer, reason)),
            (made, _) => made,
        }
    }

    /// Waits until so many bytes of chunks may come.
    pub async fn pace(&self, bytes: u64) {
        self.peer.receive.wait(bytes).await;
    }

    /// Time to the node and back; nothing before it was reached.
    pub fn round_trip(&self) -> Duration {
        Duration::from_micros(self.round_trip.load(Ordering::Relaxed))
    }

    /// Whom this is about, for messages.
    pub fn name(&self) -> String {
        format!("{}:{}", self.peer.host, self.peer.port)
    }

    /// As [`Self::calls`], with all that follow; again from the beginning when they break off.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn gather(&self, request: &Request, bulk: &[Bytes]) -> Result<Vec<Frame<Reply>>, CallError> {
        for _ in 0..ATTEMPTS {
            let (first, mut rest) = self.calls(request, bulk).await?;
            let mut frames = vec![first];
            loop {
                match rest.next().await {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => return Ok(frames),
                    Err(FrameError::Lost(_) | FrameError::NoRoom) => break,
                    Err(FrameError::Nonsense(error)) => return Err(error.into()),
                }
            }
        }
        Err(self.broke_off().into())
    }

    /// Why an answer is not asked for once more.
    pub fn broke_off(&self) -> Error {
        Error::transport(format!("{}: the answer broke off {ATTEMPTS} times", self.name()))
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
            if let Some(Line { connection, .. }) = lane.lock().await.take() {
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

async fn greet(line: &Line) -> Result<(), Attempt> {
    let program = concat!("windlass ", env!("CARGO_PKG_VERSION")).to_owned();
    let hello = Request::Hello(Hello { versions: (super::VERSION, super::VERSION), features: 0, program });
    let (frame, _) = exchange(line, &hello, &[]).await?;
    match frame.message {
        Reply::Welcome(welcome) if welcome.version == super::VERSION => Ok(()),
        _ => Err(Attempt::Over(CallError::Failed(unexpected()))),
    }
}

async fn exchange(line: &Line, request: &Request, bulk: &[Bytes]) -> Result<(Frame<Reply>, Replies), Attempt> {
    let Line { connection, waiting, .. } = line;
    let (mut to, from) = connection.open_bi().await.map_err(|error| Attempt::Lost(error.to_string()))?;
    if let Request::Missing(_) = request {
        // Before chunks that are on their way: what comes next depends on the answer.
        let _ = to.set_priority(1);
    }
    let mut replies = Replies::new(connection.clone(), waiting, from);
    // A node that refuses may answer and stop reading before all is sent: its answer counts.
    let sent = send(&mut to, request, bulk.to_vec(), false).await;
    if let Err(error @ FrameError::Nonsense(_)) = sent {
        return Err(error.into());
    }
    let _ = to.finish();
    let frame = replies.any().await?.ok_or_else(|| Attempt::Lost("an answer without a message".into()))?;
    if let Reply::Failed(failed) = frame.message {
        return Err(match failed.code {
            NO_SESSION => Attempt::Over(CallError::NoSession),
            // Later there will be.
            NO_ROOM => Attempt::Lost(failed.message),
            _ => Attempt::Over(CallError::Failed(failed.into())),
        });
    }
    Ok((frame, replies))
}

/// A node that does not accept us, or that we do not accept, is not waited for.
fn refused(peer: &Peer, error: ConnectionError) -> Attempt {
    let what = match &error {
        ConnectionError::TransportError(error) if is_about_certificates(error.code) => error.to_string(),
        ConnectionError::ConnectionClosed(close) if is_about_certificates(close.error_code) => close.to_string(),
        ConnectionError::ApplicationClosed(close) if close.error_code == VarInt::from_u32(CLOSED_REFUSED) => {
            String::from_utf8_lossy(&close.reason).into_owned()
        }
        ConnectionError::ConnectionClosed(close) if u64::from(close.error_code) == NO_APPLICATION_PROTOCOL => {
            let error = Error::version(format!("{}: it speaks another version of the protocol", peer.host));
            return Attempt::Over(CallError::Failed(error.hint("use a windlass of the same version")));
        }
        // That the node speaks another version of QUIC nobody has signed: a packet that was damaged on its way brings that answer
        // too.
        _ => return Attempt::Lost(error.to_string()),
    };
    let error = Error::new(ErrorKind::NotAuthorised, format!("{}:{}: {what}", peer.host, peer.port));
    Attempt::Over(CallError::Failed(error.hint(
        "both sides must hold valid certificates of one site, the node one for the name in the address; \
         `windlass token create --help` tells how to get one",
    )))
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
    Error::transport("the node gave an answer of another kind")
}

/// Waits longer each time, up to a limit for all of it, which begins with the first loss.
struct Backoff {
    patience: Duration,
    until: Option<Instant>,
    pause: Duration,
}

impl Backoff {
    fn new(patience: Duration) -> Self {
        Self { patience, until: None, pause: PAUSE_MIN }
    }

    async fn wait(&mut self, peer: &Peer, what: &str, tried: Duration) -> Result<()> {
        let Peer { host, port, .. } = peer;
        // It was there, and at work.
        if tried > CONNECT_TIMEOUT + CONNECT_TIMEOUT {
            *self = Self::new(peer.patience);
        }
        let until = *self.until.get_or_insert_with(|| Instant::now() + self.patience);
        if Instant::now() + self.pause > until {
            return Err(Error::transport(format!("{host}:{port} cannot be reached: {what}"))
                .hint("see that windlass-store runs there and that its UDP port is open"));
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
/// Times that something broken off is asked for again.
pub(super) const ATTEMPTS: u32 = 10;
const CLOSE_TIMEOUT: Duration = Duration::from_millis(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const LANES: usize = 2;
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
