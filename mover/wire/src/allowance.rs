//! How much of a node each peer gets: the node's budgets, and the share that one connection has of them.
//!
//! The budgets count all memory that peers can make a node hold, for all peers and all their connections together.
//! `PROTOCOL.md` adds the budgets up.

use crate::answer;
use crate::budgets::{Budget, Share};
use crate::frame::FrameError;
use crate::handshakes::Handshakes;
use crate::message::Request;
use crate::quic::{WINDOW_BYTES, WINDOW_BYTES_MIN};
use mover::{Holder, RateLimiter};
use quinn::{Connection, SendStream, StreamId, VarInt};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Semaphore;

/// How fast chunks may come and go.
#[derive(Debug, Clone, Default)]
pub struct Paces {
    /// Chunks that others send to the node.
    pub receive: Arc<RateLimiter>,
    /// Chunks that the node sends to others.
    pub send: Arc<RateLimiter>,
}

/// The budgets of a node.
#[derive(Debug)]
pub struct NodeBudgets {
    /// Number of established connections.
    pub connections: Arc<Budget>,
    /// Places for connections of clients without a certificate.
    pub strangers: Semaphore,
    /// Handshakes that are not done.
    pub handshakes: Handshakes,
    /// Number of requests under way.
    pub requests: Arc<Budget>,
    /// Bulk bytes of requests, from the moment at which room is taken for them until the repository has them.
    pub room: Arc<Budget>,
    /// Memory in bytes that short requests use while the node does them.
    pub work: Arc<Budget>,
    /// Plain bytes that are being decoded, or wait for a processor.
    pub decoding: Arc<Budget>,
    /// Memory in bytes that long requests use, until the client has taken their answers.
    pub answers: Arc<Budget>,
    /// Bytes that clients may have on their way to us, unread.
    pub receiving: Arc<Budget>,
    /// Bytes that were sent and not acknowledged.
    pub sending: Arc<Budget>,
    /// Limits on the bulk bytes of requests that come in a second, and on the bytes of chunks that are sent in a
    /// second.
    pub paces: Paces,
    /// Time within which a tenth of a message must come, or a part of an answer must be taken.
    pub patience: Duration,
}

impl Default for NodeBudgets {
    fn default() -> Self {
        Self {
            connections: Budget::with_each(CONNECTIONS_MAX, HOLDER_CONNECTIONS_MAX),
            strangers: Semaphore::new(STRANGERS_MAX),
            handshakes: Handshakes::default(),
            requests: Budget::new(REQUESTS_MAX),
            room: Budget::new(ROOM_BYTES),
            work: Budget::new(WORK_BYTES),
            decoding: Budget::new(DECODING_BYTES),
            answers: Budget::new(ANSWERS_BYTES),
            receiving: Budget::new(RECEIVING_BYTES),
            sending: Budget::new(SENDING_BYTES),
            paces: Paces::default(),
            patience: PATIENCE,
        }
    }
}

/// What one connection has of the budgets: its windows begin small, and grow with the chunks that pass.
#[derive(Debug)]
pub struct Allowance {
    /// Holder of the connection; none when the client shows no certificate.
    pub holder: Option<Holder>,
    connection: Connection,
    budgets: Arc<NodeBudgets>,
    receiving: Mutex<Share>,
    sending: Mutex<Share>,
}

impl Allowance {
    /// For a connection of `holder`.
    pub fn new(holder: Option<&Holder>, connection: Connection, budgets: &Arc<NodeBudgets>) -> Self {
        let (receiving, sending) = (budgets.receiving.share(holder), budgets.sending.share(holder));
        let (receiving, sending) = (Mutex::new(receiving), Mutex::new(sending));
        Self { holder: holder.cloned(), connection, budgets: budgets.clone(), receiving, sending }
    }

    /// How long somebody is waited for.
    pub fn patience(&self) -> Duration {
        self.budgets.patience
    }

    /// A turn to make a request; waits for it however long.
    pub async fn turn(&self) -> Share {
        let mut share = self.budgets.requests.share(self.holder.as_ref());
        while !share.wait(1, self.budgets.patience).await {}
        share
    }

    /// Room for the bulk of a request; none when there was none for a long time. The client is then told so, and the
    /// bytes that came are dropped, because the bytes of a request that waits fill the connection's window and keep out
    /// other requests for which there is room.
    pub async fn room(&self, bytes: usize) -> Option<Share> {
        // Nothing that may be asked without a certificate has anything beside it.
        self.holder.as_ref()?;
        self.widen(bytes);
        let mut share = self.budgets.room.share(self.holder.as_ref());
        let there = share.wait(bytes, ROOM_PATIENCE.min(self.budgets.patience)).await;
        self.budgets.paces.receive.wait(bytes as u64).await;
        there.then_some(share)
    }

    /// The memory that a request with so many bulk bytes uses; none when it was not free for a long time.
    pub async fn work(&self, request: &Request, beside_bytes: usize) -> Option<Share> {
        let budget =
            if request.rules().lasts.is_long(beside_bytes) { &self.budgets.answers } else { &self.budgets.work };
        let mut share = budget.share(self.holder.as_ref());
        share.wait(request.rules().work.bytes(request, beside_bytes), self.budgets.patience).await.then_some(share)
    }

    /// A turn to have so many plain bytes decoded; none when there was none for a long time. A holder that has many
    /// bytes decoded waits for its own earlier bytes, and does not make others wait.
    pub async fn decoding(&self, plain_bytes: usize) -> Option<Share> {
        let mut share = self.budgets.decoding.share(self.holder.as_ref());
        share.wait(plain_bytes, self.budgets.patience).await.then_some(share)
    }

    /// The connection that this allowance is of.
    pub const fn connection(&self) -> &Connection {
        &self.connection
    }

    /// A stream for one part, of so many bytes, of the answer to the request on stream `of`. Parts that were begun
    /// first are sent first.
    pub async fn part(&self, of: StreamId, number: u32, bytes: usize) -> Result<SendStream, FrameError> {
        let lost = |error: &dyn std::fmt::Display| FrameError::Lost(error.to_string());
        self.budgets.paces.send.wait(bytes as u64).await;
        let opened = tokio::time::timeout(self.budgets.patience, self.connection.open_uni()).await;
        let mut stream = opened.map_err(|error| lost(&error))?.map_err(|error| lost(&error))?;
        let _ = stream.set_priority(-i32::try_from(number).unwrap_or(i32::MAX));
        stream.write_all(&answer::id(of).to_le_bytes()).await?;
        Ok(stream)
    }

    /// Lets the receive window grow, as far as there is room, because a client has many messages of this size on their
    /// way. A client that is near needs only a small window: with a larger one, packets would find the socket's buffer
    /// full and be lost there.
    fn widen(&self, bytes: usize) {
        let mut share = self.receiving.lock().expect("no holder panics");
        let far =
            usize::try_from(self.connection.rtt().as_micros()).unwrap_or(usize::MAX).saturating_mul(LINK_BYTES_A_US);
        let wanted = bytes.saturating_mul(MESSAGES_ON_THEIR_WAY).min(far.clamp(NEAR_BYTES, WINDOW_BYTES as usize));
        let more = wanted.saturating_sub(share.amount()).min(WINDOW_STEP_BYTES);
        if more > 0 && share.grow(more) {
            let window = u32::try_from(share.amount()).expect("windows are bounded");
            self.connection.set_receive_window(VarInt::from_u32(window.max(WINDOW_BYTES_MIN)));
        }
    }

    /// Lets the send window grow before chunks are sent.
    pub fn widen_sending(&self) {
        let mut share = self.sending.lock().expect("no holder panics");
        if share.amount() < WINDOW_BYTES as usize && share.grow(WINDOW_STEP_BYTES) {
            self.connection.set_send_window((share.amount() as u64).max(WINDOW_BYTES_MIN.into()));
        }
    }
}

/// Established connections of the node.
const CONNECTIONS_MAX: usize = 256;
/// Established connections of one holder. Each program takes three.
const HOLDER_CONNECTIONS_MAX: usize = 48;
/// Established connections of clients that show no certificate.
const STRANGERS_MAX: usize = 8;
/// Requests under way, each with a body of 64 KiB at most.
const REQUESTS_MAX: usize = 512;
/// Bulk bytes of requests. Two clients get a third each, which is nearly the 32 MiB that a client may have on its way.
/// One client that does not keep to this limit gets 40 MiB.
const ROOM_BYTES: usize = 80 << 20;
const WORK_BYTES: usize = 24 << 20;
/// Memory of long requests. Half of it is enough for the largest commit.
const ANSWERS_BYTES: usize = 52 << 20;
/// Half of it is enough for the largest put. They are decoded one after another on each processor, into the same memory.
const DECODING_BYTES: usize = 32 << 20;
/// One holder alone gets 32 MiB: 1 Gbit/s at 150 ms takes 19 MB.
const RECEIVING_BYTES: usize = 64 << 20;
const SENDING_BYTES: usize = 64 << 20;
/// Bytes that a client may have on its way, however near it is.
const NEAR_BYTES: usize = 2 << 20;
/// Bytes in a microsecond on the fastest link that a window must fill: 2 Gbit/s.
const LINK_BYTES_A_US: usize = 250;
/// Most bytes by which a window grows in one step.
const WINDOW_STEP_BYTES: usize = 4 << 20;
/// Messages of one size that are on their way together.
const MESSAGES_ON_THEIR_WAY: usize = 32;
/// How long a request waits for room: longer than other requests need to give theirs back.
const ROOM_PATIENCE: Duration = Duration::from_secs(5);
/// Time for each tenth of a message.
const PATIENCE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bulk::ID_BYTES;
    use crate::message::{
        COMMIT_BYTES_MAX, CommitIn, GET_IDS_MAX, IDS_MAX, ManifestOf, MissingIn, PUT_BYTES_MAX, PUT_PLAIN_BYTES_MAX,
        Put, SHORT_COMMIT_BYTES_MAX, SHORT_GET_BYTES_MAX, SessionRef,
    };
    use mover::Role;

    fn holder(name: &str) -> Holder {
        Holder::new(Role::Proxy, name.parse().unwrap())
    }

    /// On an idle node nothing that the protocol allows is refused for ever.
    #[test]
    fn the_largest_message_of_each_kind_has_room() {
        let budgets = NodeBudgets::default();
        let of = SessionRef { session: mover::SessionId([1; 16]) };
        for (request, beside) in [
            (Request::Commit(CommitIn { session: of.session, drafts: Vec::new() }), COMMIT_BYTES_MAX),
            (Request::Commit(CommitIn { session: of.session, drafts: Vec::new() }), SHORT_COMMIT_BYTES_MAX),
            (Request::Missing(MissingIn { session: of.session, kind: 0 }), IDS_MAX * ID_BYTES),
            (Request::Put(Put { session: of.session, lengths: vec![0; IDS_MAX] }), PUT_BYTES_MAX),
            (Request::Get(of), GET_IDS_MAX * ID_BYTES),
            (Request::Get(of), SHORT_GET_BYTES_MAX),
            (Request::GetVerified(of), IDS_MAX * ID_BYTES),
            (Request::Manifest(ManifestOf { session: of.session, point: mover::PointId([2; 16]) }), 0),
        ] {
            let of = |budget: &Arc<Budget>| budget.share(Some(&holder("a")));
            let mut work = of(if request.rules().lasts.is_long(beside) { &budgets.answers } else { &budgets.work });
            assert!(work.grow(request.rules().work.bytes(&request, beside)), "{request:?} with {beside} bytes");
            assert!(of(&budgets.room).grow(beside), "{request:?} with {beside} bytes");
        }
        assert!(budgets.decoding.share(Some(&holder("a"))).grow(PUT_PLAIN_BYTES_MAX));
    }
}
