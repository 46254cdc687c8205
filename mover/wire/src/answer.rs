//! Answers as a client takes them: on the stream of the request, and chunks on streams of their own, which the node opens,
//! so that one lost packet holds up a part and not all of them.

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

/// Who waits for parts on a connection; there are never more parts than streams a node may open.
#[derive(Debug, Clone, Default)]
pub struct Waiting(Arc<Mutex<HashMap<u64, UnboundedSender<RecvStream>>>>);

impl Waiting {
    /// Gives each part to the request whose it is, until the connection is gone.
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

    /// A part of a request that nobody waits for any more is stopped when it is dropped.
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
    /// Whether that has begun to come.
    begun: Arc<AtomicBool>,
    parts: UnboundedReceiver<RecvStream>,
    /// Parts that came, and how many there are.
    came: u32,
    all: Option<u32>,
    /// Messages that came, and how often in a row the node only said that it is at work.
    messages: u32,
    worked: u32,
    /// Whether it may say so for ever.
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
    /// Of a request that is made on `stream`. To be made before it is: parts that nobody waits for are lost.
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
            endless: matches!(asked, Request::Attend(_) | Request::Run(_)),
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

    /// To be told when the node had the whole request.
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
    /// [`FrameError::Lost`] for a connection that is gone, or over which nothing comes for too long; [`FrameError::Nonsense`]
    /// for a node that makes none.
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

    /// How much longer it may be silent. What has begun to come has a limit of its own, and what the node has not is not
    /// answered.
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

    /// Nobody keeps more of an answer than this, whatever it is.
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

    /// The node does not answer, or not on: over another connection it may.
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

    /// The same, and none too where they break off: whoever misses something asks again, over another connection.
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

/// Of the silence: for a part that was announced, while others are on their way.
const PART_OF_SILENCE: u32 = 10;
