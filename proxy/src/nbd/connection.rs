//! One connection to an NBD server: a task that owns the socket and the state machine.

use super::error::NbdError;
use super::handshake::{Export, Handshake, Hello};
use super::patience::Patience;
use super::session::{Completed, Reply, Request, Session};
use super::uri::NbdServer;
use super::wire::IN_FLIGHT_MAX;
use bytes::{Buf, Bytes, BytesMut};
use rustix::net::sockopt;
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// A handle of a connection in its transmission phase. Requests may be made from many tasks at once. The connection
/// says goodbye and ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub struct Connection {
    export: std::sync::Arc<Export>,
    requests: mpsc::Sender<Call>,
}

impl Connection {
    /// Connects and negotiates; a server that is silent for longer than `patience` says is given up.
    pub async fn open(server: &NbdServer, hello: Hello, patience: Patience) -> Result<Self, NbdError> {
        let limit = patience.setup;
        let opened = timeout(limit, Self::open_patiently(server, hello, patience)).await;
        opened.unwrap_or(Err(NbdError::Silent { doing: "connecting", limit }))
    }

    async fn open_patiently(server: &NbdServer, hello: Hello, patience: Patience) -> Result<Self, NbdError> {
        match server {
            NbdServer::Unix(path) => {
                let stream = loop {
                    match UnixStream::connect(path).await {
                        // It takes no connections at the moment, and those that wait are as many as may.
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(CONNECT_AGAIN).await,
                        connected => break connected?,
                    }
                };
                Self::over_unix(stream, hello, patience).await
            }
            NbdServer::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                // A server whose host vanished would otherwise be waited for without end.
                sockopt::set_socket_keepalive(&stream, true).map_err(io::Error::from)?;
                sockopt::set_tcp_keepidle(&stream, TCP_SILENCE / 2).map_err(io::Error::from)?;
                let silence_ms = TCP_SILENCE.as_millis() as u32;
                sockopt::set_tcp_user_timeout(&stream, silence_ms).map_err(io::Error::from)?;
                let (read, write) = stream.into_split();
                Self::over(read, write, hello, patience).await
            }
        }
    }

    /// Negotiates on a connected unix socket.
    pub async fn over_unix(stream: UnixStream, hello: Hello, patience: Patience) -> Result<Self, NbdError> {
        let (read, write) = stream.into_split();
        Self::over(read, write, hello, patience).await
    }

    async fn over<R, W>(mut read: R, mut write: W, hello: Hello, patience: Patience) -> Result<Self, NbdError>
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let limit = patience.setup;
        let export = match timeout(limit, negotiate(&mut read, &mut write, hello)).await {
            Ok(negotiated) => negotiated?,
            Err(_) => return Err(NbdError::Silent { doing: "negotiating", limit }),
        };
        let (requests, calls) = mpsc::channel(IN_FLIGHT_MAX);
        let link = Link {
            session: Session::new(export.clone()),
            waiting: BTreeMap::new(),
            output: VecDeque::new(),
            inbox: BytesMut::with_capacity(INBOX_BYTES),
            patience,
            heard: Instant::now(),
        };
        tokio::spawn(link.run(read, write, calls));
        Ok(Self { export: export.into(), requests })
    }

    /// The export as it was negotiated.
    pub fn export(&self) -> &Export {
        &self.export
    }

    /// Makes a request and waits for its answer. Waits too while [`IN_FLIGHT_MAX`] are under way.
    pub async fn call(&self, request: Request) -> Result<Reply, NbdError> {
        let (answer, wait) = oneshot::channel();
        let lost = || NbdError::Closed(" before the request was answered");
        self.requests.send(Call { request, answer }).await.map_err(|_| lost())?;
        wait.await.map_err(|_| lost())?
    }
}

struct Call {
    request: Request,
    answer: oneshot::Sender<Result<Reply, NbdError>>,
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Call")
    }
}

/// What the task owns besides the socket.
struct Link {
    session: Session,
    waiting: BTreeMap<u64, oneshot::Sender<Result<Reply, NbdError>>>,
    output: VecDeque<Bytes>,
    inbox: BytesMut,
    patience: Patience,
    /// When bytes last moved, or the first request was made after a time without.
    heard: Instant,
}

impl Link {
    async fn run<R, W>(mut self, mut read: R, mut write: W, mut calls: mpsc::Receiver<Call>)
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let end = self.serve(&mut read, &mut write, &mut calls).await;
        let Err(error) = end else {
            let _ = self.goodbye(&mut write).await;
            return;
        };
        tracing::debug!(%error, "NBD connection ended");
        calls.close();
        for (_, answer) in std::mem::take(&mut self.waiting) {
            let _ = answer.send(Err(error.clone()));
        }
        while let Some(call) = calls.recv().await {
            let _ = call.answer.send(Err(error.clone()));
        }
    }

    /// Moves bytes both ways at once, so that neither side waits for the other to take its bytes. Ends without error
    /// when nobody can ask anything any more.
    async fn serve<R, W>(
        &mut self,
        read: &mut R,
        write: &mut W,
        calls: &mut mpsc::Receiver<Call>,
    ) -> Result<(), NbdError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            let room = self.session.in_flight() < IN_FLIGHT_MAX;
            let sending = !self.output.is_empty();
            let (owed, limit) = self.owed();
            let overdue = self.heard + limit;
            let slices: Vec<IoSlice<'_>> =
                self.output.iter().take(WRITE_PIECES_MAX).map(|piece| IoSlice::new(piece)).collect();
            tokio::select! {
                got = receive(read, &mut self.session, &mut self.inbox) => {
                    drop(slices);
                    self.heard = Instant::now();
                    let mut completed = got?;
                    loop {
                        if let Some(Completed { cookie, result }) = completed {
                            // Whoever asked may have gone; the answer is dropped then.
                            let _ = self.waiting.remove(&cookie).map(|answer| answer.send(result));
                        }
                        completed = self.session.advance(&mut self.inbox)?;
                        if completed.is_none() {
                            break;
                        }
                    }
                }
                sent = write.write_vectored(&slices), if sending => {
                    drop(slices);
                    let sent = sent?;
                    if sent == 0 {
                        return Err(NbdError::Closed(" while sending"));
                    }
                    self.heard = Instant::now();
                    self.sent(sent);
                }
                () = sleep_until(overdue), if owed.is_some() => {
                    return Err(NbdError::Silent { doing: owed.unwrap_or_default(), limit });
                }
                call = calls.recv(), if room => {
                    drop(slices);
                    match call {
                        Some(call) => self.submit(call),
                        None => return Ok(()),
                    }
                }
            }
        }
    }

    /// What the server owes us, if anything, and how long we wait for it without a byte.
    fn owed(&self) -> (Option<&'static str>, Duration) {
        let Patience { silence, long_silence, .. } = self.patience;
        match self.session.longest() {
            Some(command) if command.may_take_long() => (Some(command.doing()), long_silence),
            Some(command) => (Some(command.doing()), silence),
            None if self.output.is_empty() => (None, silence),
            None => (Some("taking what it is sent"), silence),
        }
    }

    fn submit(&mut self, call: Call) {
        if self.session.in_flight() == 0 {
            self.heard = Instant::now();
        }
        match self.session.submit(call.request) {
            Ok(cookie) => {
                self.waiting.insert(cookie, call.answer);
                self.output.append(self.session.output());
            }
            Err(error) => {
                let _ = call.answer.send(Err(error));
            }
        }
    }

    fn sent(&mut self, mut bytes: usize) {
        while let Some(piece) = self.output.front_mut().filter(|_| bytes > 0) {
            let step = piece.len().min(bytes);
            piece.advance(step);
            bytes -= step;
            if piece.is_empty() {
                self.output.pop_front();
            }
        }
    }

    /// Says goodbye to the server. Does not wait for requests whose callers left, because nobody needs their answers.
    async fn goodbye<W: AsyncWrite + Unpin>(&mut self, write: &mut W) -> io::Result<()> {
        if self.session.submit(Request::Disconnect).is_ok() {
            self.output.append(self.session.output());
        }
        for piece in std::mem::take(&mut self.output) {
            timeout(GOODBYE_TIMEOUT, write.write_all(&piece)).await??;
        }
        timeout(GOODBYE_TIMEOUT, write.shutdown()).await?
    }
}

/// One read from the socket: data of a read goes right into its buffer, everything else into the inbox. Losing this
/// future between polls loses no byte.
async fn receive<R: AsyncRead + Unpin>(
    read: &mut R,
    session: &mut Session,
    inbox: &mut BytesMut,
) -> Result<Option<Completed>, NbdError> {
    debug_assert!(inbox.len() < INBOX_BYTES, "whatever the session could take it took");
    let got = match session.landing() {
        Some(mut landing) => {
            let got = read.read_buf(&mut landing).await?;
            if got > 0 {
                return session.landed(got);
            }
            got
        }
        None => {
            inbox.reserve(INBOX_BYTES - inbox.len());
            let room = INBOX_BYTES - inbox.len();
            read.read_buf(&mut bytes::BufMut::limit(&mut *inbox, room)).await?
        }
    };
    if got == 0 { Err(NbdError::Closed(" by the server")) } else { session.advance(inbox) }
}

async fn negotiate<R, W>(read: &mut R, write: &mut W, hello: Hello) -> Result<Export, NbdError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut handshake = Handshake::new(hello)?;
    let mut message = BytesMut::new();
    loop {
        write.write_all(&handshake.output().split()).await?;
        message.resize(handshake.want(), 0);
        read.read_exact(&mut message).await?;
        if let Some(export) = handshake.feed(&message)? {
            return Ok(export);
        }
    }
}

/// Room for control messages; more than the longest that must be whole (an error chunk).
const INBOX_BYTES: usize = 8 << 10;
/// Pieces handed to one vectored write.
const WRITE_PIECES_MAX: usize = 16;
/// For the next try when a server takes no connections.
const CONNECT_AGAIN: Duration = Duration::from_millis(50);
const TCP_SILENCE: Duration = Duration::from_secs(60);
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);
