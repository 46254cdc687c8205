//! How a client takes answers. Messages come on the stream of the request. Chunks come on streams of their own, which
//! the node opens, so that a lost packet delays one part and not all of them.

use super::frame::{Frame, FrameError, receive_reply};
use super::message::{Reply, Request};
use super::waits::{self, MESSAGES_MAX, WAITING_MAX};
use futures::future::{BoxFuture, Either};
use mover::Error;
use quinn::{Connection, RecvStream, StreamId};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// The requests on a connection that wait for parts of their answers. There are never more parts than streams that a
/// node may open.
#[derive(Debug, Clone, Default)]
pub struct Waiting(Arc<Mutex<HashMap<u64, UnboundedSender<RecvStream>>>>);

impl Waiting {
    /// Gives each part to its request, until the connection is gone.
    pub async fn sort(self, connection: Connection) {
        let mut coming = JoinSet::new();
        loop {
            tokio::select! {
                accepted = connection.accept_uni() => match accepted {
                    Ok(stream) => {
                        let waiting = self.clone();
                        coming.spawn(async move { waiting.take(stream).await });
                    }
                    Err(_) => break,
                },
                Some(_) = coming.join_next() => {}
            }
        }
        // Nothing more comes for anybody.
        self.0.lock().expect("no holder panics").clear();
    }

    /// Gives a part to the request that waits for it. If no request waits for it any more, the stream is dropped, which
    /// stops the part.
    async fn take(&self, mut stream: RecvStream) {
        let mut of = [0; 8];
        let read = tokio::time::timeout(waits::SILENCE, stream.read_exact(&mut of)).await;
        if let Ok(Ok(())) = read
            && let Some(to) = self.0.lock().expect("no holder panics").get(&u64::from_le_bytes(of))
        {
            let _ = to.send(stream);
        }
    }

    fn expect(&self, request: u64) -> UnboundedReceiver<RecvStream> {
        let (give, take) = unbounded_channel();
        self.0.lock().expect("no holder panics").insert(request, give);
        take
    }
}

/// A message, and the stream on which another may follow.
type Came = (Result<Frame<Reply>, FrameError>, RecvStream);

/// Replies to one request.
pub struct Replies {
    /// The next message on the stream of the request; polled along with the parts.
    next: Option<BoxFuture<'static, Came>>,
    /// Whether the next message has begun to come.
    begun: Arc<AtomicBool>,
    parts: UnboundedReceiver<RecvStream>,
    /// Parts that came, and how many there are.
    came: u32,
    all: Option<u32>,
    /// Messages that came, and how often in a row the node only said that it is at work.
    messages: u32,
    worked: u32,
    /// Whether the node may say for ever that it is at work.
    endless: bool,
    /// When the node had the whole request.
    has_it: Arc<OnceLock<Instant>>,
    silence: Duration,
    what: &'static str,
    request: u64,
    waiting: Waiting,
    /// Keeps the connection for as long as it is read from.
    connection: Connection,
}

impl Drop for Replies {
    fn drop(&mut self) {
        self.waiting.0.lock().expect("no holder panics").remove(&self.request);
    }
}

impl Replies {
    /// The replies to the request that is made on `stream`. Call this before the request is sent, because parts that no
    /// request waits for are lost.
    pub fn new(
        connection: Connection,
        waiting: &Waiting,
        stream: RecvStream,
        asked: &Request,
        silence: Duration,
    ) -> Self {
        let request = id(stream.id());
        let parts = waiting.expect(request);
        let mut made = Self {
            next: None,
            begun: Arc::default(),
            parts,
            came: 0,
            all: None,
            messages: 0,
            worked: 0,
            endless: matches!(asked, Request::Attend(_) | Request::Run(_) | Request::Follow(_)),
            has_it: Arc::default(),
            silence,
            what: asked.name(),
            request,
            waiting: waiting.clone(),
            connection,
        };
        made.expect(stream);
        made
    }

    /// The cell in which the caller notes the time at which the node had the whole request.
    pub fn has_it(&self) -> Arc<OnceLock<Instant>> {
        self.has_it.clone()
    }

    /// Whether the node said that it was at work, and nothing since.
    pub const fn worked(&self) -> bool {
        self.worked > 0
    }

    /// The next reply, whatever it says; none after the last.
    ///
    /// # Errors
    /// [`FrameError::Lost`] for a connection that is gone, or over which nothing comes for too long;
    /// [`FrameError::Nonsense`] when the node sends something that makes no sense.
    pub async fn any(&mut self) -> Result<Option<Frame<Reply>>, FrameError> {
        let mut quiet = Box::pin(sleep(self.silence));
        loop {
            if self.next.is_none() && self.all.is_none_or(|all| self.came >= all) {
                return Ok(None);
            }
            let Self { next, parts, .. } = self;
            let alone = next.is_none();
            let next = async {
                match next {
                    Some(next) => next.await,
                    None => std::future::pending().await,
                }
            };
            let came = tokio::select! {
                biased;
                part = parts.recv(), if alone || !parts.is_closed() => match part {
                    None if alone => return Err(lost()),
                    // What is on the stream of the request tells why.
                    None => continue,
                    Some(part) => Some(Either::Left(part)),
                },
                next = next => Some(Either::Right(next)),
                () = &mut quiet => None,
            };
            let (frame, stream) = match came {
                Some(Either::Left(part)) => return self.part(part).await.map(Some),
                Some(Either::Right(next)) => next,
                None => {
                    quiet = Box::pin(sleep(self.left()?));
                    continue;
                }
            };
            self.next = None;
            let frame = frame.map_err(|error| self.slow(error))?;
            if !matches!(frame.message, Reply::Waiting(())) {
                // Who answers has the request, whether we have heard that or not.
                let _ = self.has_it.set(Instant::now());
            }
            match frame.message {
                Reply::Parts(all) => self.all = Some(all),
                Reply::Waiting(()) => {
                    self.worked += 1;
                    if !frame.more || self.worked > WAITING_MAX && !self.endless {
                        return Err(self.given_up());
                    }
                    self.expect(stream);
                    quiet = Box::pin(sleep(self.silence));
                }
                _ => {
                    self.counted()?;
                    if frame.more {
                        self.expect(stream);
                    }
                    return Ok(Some(frame));
                }
            }
        }
    }

    /// How much longer the node may be silent. This is the full time while the node does not have the whole request,
    /// because it cannot answer before, and while a message is coming, because a message has a limit of its own.
    fn left(&self) -> Result<Duration, FrameError> {
        let has_it = self.has_it.get().filter(|_| !self.begun.load(Ordering::Relaxed));
        match has_it.map(|at| self.silence.saturating_sub(at.elapsed())) {
            Some(Duration::ZERO) => Err(self.given_up()),
            Some(left) => Ok(left),
            None => Ok(self.silence),
        }
    }

    /// Expects another message on the stream of the request.
    fn expect(&mut self, stream: RecvStream) {
        self.begun = Arc::default();
        self.next = Some(message(stream, self.silence, self.begun.clone()));
    }

    /// Counts a message of the answer, and refuses an answer that has too many messages.
    fn counted(&mut self) -> Result<(), FrameError> {
        self.worked = 0;
        self.messages += 1;
        if self.messages <= MESSAGES_MAX {
            return Ok(());
        }
        Err(Error::transport(format!("the answer to {} has more than {MESSAGES_MAX} messages", self.what)).into())
    }

    fn slow(&self, error: FrameError) -> FrameError {
        if matches!(error, FrameError::Slow) { self.given_up() } else { error }
    }

    /// Gives up the connection, because the node does not begin or go on to answer. Over another connection it may
    /// answer.
    fn given_up(&self) -> FrameError {
        waits::give_up(&self.connection);
        let seconds = self.silence.as_secs_f32();
        FrameError::Lost(match self.worked() {
            true => format!("the node only says that it is still working on {}", self.what),
            false => format!("no answer to {} within {seconds} s", self.what),
        })
    }

    /// The next reply; none after the last.
    ///
    /// # Errors
    /// The node's; as [`Self::any`].
    pub async fn next(&mut self) -> Result<Option<Frame<Reply>>, FrameError> {
        match self.any().await? {
            Some(Frame { message: Reply::Failed(failed), .. }) => Err(FrameError::Nonsense(failed.into())),
            frame => Ok(frame),
        }
    }

    /// As [`Self::next`], but also none when the replies break off. A caller that misses something then asks again,
    /// over another connection.
    ///
    /// # Errors
    /// The node's.
    pub async fn next_if_any(&mut self) -> mover::Result<Option<Frame<Reply>>> {
        match self.next().await {
            Ok(next) => Ok(next),
            Err(FrameError::Nonsense(error)) => Err(error),
            Err(FrameError::Lost(_) | FrameError::Slow | FrameError::NoRoom) => Ok(None),
        }
    }

    async fn part(&mut self, mut stream: RecvStream) -> Result<Frame<Reply>, FrameError> {
        self.came += 1;
        self.counted()?;
        let received = tokio::select! {
            biased;
            received = receive_reply(&mut stream, self.silence, || {}) => received,
            // One that was announced and does not come, or not before others that are on their way.
            () = waits::stands_still(&self.connection, self.silence) => Err(FrameError::Slow),
            () = sleep(self.silence * PART_OF_SILENCE) => Err(FrameError::Slow),
        };
        received.map_err(|error| self.slow(error))
    }
}

fn message(mut stream: RecvStream, patience: Duration, begun: Arc<AtomicBool>) -> BoxFuture<'static, Came> {
    Box::pin(async move {
        let came = receive_reply(&mut stream, patience, || begun.store(true, Ordering::Relaxed)).await;
        (came, stream)
    })
}

/// What a part begins with: the id of the stream of its request.
pub fn id(stream: StreamId) -> u64 {
    quinn::VarInt::from(stream).into_inner()
}

fn lost() -> FrameError {
    FrameError::Lost("it was closed".into())
}

/// How many times the silence a client waits for a part that was announced, while others are on their way.
const PART_OF_SILENCE: u32 = 10;
