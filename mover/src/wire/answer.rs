//! Answers as a client takes them: on the stream of the request, and chunks on streams of their own, which the node opens,
//! so that one lost packet holds up a part and not all of them.

use super::frame::{Frame, FrameError, receive};
use super::message::Reply;
use futures::future::BoxFuture;
use quinn::{Connection, RecvStream, StreamId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

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
        let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut of)).await;
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
    parts: UnboundedReceiver<RecvStream>,
    /// Parts that came, and how many there are.
    came: u32,
    all: Option<u32>,
    request: u64,
    waiting: Waiting,
    /// Keeps the connection for as long as it is read from.
    _connection: Connection,
}

impl Drop for Replies {
    fn drop(&mut self) {
        self.waiting.0.lock().expect("no holder panics").remove(&self.request);
    }
}

impl Replies {
    /// Of a request that is made on `stream`. To be made before it is: parts that nobody waits for are lost.
    pub fn new(connection: Connection, waiting: &Waiting, stream: RecvStream) -> Self {
        let request = id(stream.id());
        let parts = waiting.expect(request);
        let (next, waiting) = (Some(message(stream)), waiting.clone());
        Self { next, parts, came: 0, all: None, request, waiting, _connection: connection }
    }

    /// The next reply, whatever it says; none after the last.
    ///
    /// # Errors
    /// [`FrameError::Lost`] for a connection that is gone, [`FrameError::Nonsense`] for a node that makes none.
    pub async fn any(&mut self) -> Result<Option<Frame<Reply>>, FrameError> {
        loop {
            let Some(next) = &mut self.next else {
                if self.all.is_none_or(|all| self.came >= all) {
                    return Ok(None);
                }
                let part = self.parts.recv().await;
                return self.part(part.ok_or_else(lost)?).await.map(Some);
            };
            let (frame, stream) = tokio::select! {
                biased;
                Some(part) = self.parts.recv() => return self.part(part).await.map(Some),
                next = next => next,
            };
            self.next = None;
            let frame = frame?;
            match frame.message {
                Reply::Parts(all) => self.all = Some(all),
                _ => {
                    self.next = frame.more.then(|| message(stream));
                    return Ok(Some(frame));
                }
            }
        }
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
    pub async fn next_if_any(&mut self) -> crate::Result<Option<Frame<Reply>>> {
        match self.next().await {
            Ok(next) => Ok(next),
            Err(FrameError::Nonsense(error)) => Err(error),
            Err(FrameError::Lost(_) | FrameError::NoRoom) => Ok(None),
        }
    }

    async fn part(&mut self, mut stream: RecvStream) -> Result<Frame<Reply>, FrameError> {
        self.came += 1;
        receive(&mut stream, None).await
    }
}

fn message(mut stream: RecvStream) -> BoxFuture<'static, Came> {
    Box::pin(async move { (receive(&mut stream, None).await, stream) })
}

/// What a part begins with: the id of the stream of its request.
pub fn id(stream: StreamId) -> u64 {
    quinn::VarInt::from(stream).into_inner()
}

fn lost() -> FrameError {
    FrameError::Lost("it was closed".into())
}

/// For the first bytes of a part.
const PATIENCE: Duration = Duration::from_secs(60);
