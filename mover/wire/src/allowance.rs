//! How much of a node anybody gets: the node's budgets, and what one connection has of them.
//!
//! Memory that peers can have a node hold is counted in them, whoever asks and over however many connections; `PROTOCOL.md`
//! adds them up.

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
    /// Of those, who shows no certificate.
    pub strangers: Semaphore,
    /// Handshakes that are not done.
    pub handshakes: Handshakes,
    /// Number of requests under way.
    pub requests: Arc<Budget>,
    /// Bytes beside requests, from the moment they are asked for until the repository has them.
    pub room: Arc<Budget>,
    /// Bytes that requests take while they are done, which is soon.
    pub work: Arc<Budget>,
    /// Plain bytes that are being decoded, or wait for a processor.
    pub decoding: Arc<Budget>,
    /// Bytes that long answers take, for as long as they are taken.
    pub answers: Arc<Budget>,
    /// Bytes that clients may have on their way to us, unread.
    pub receiving: Arc<Budget>,
    /// Bytes that were sent and not acknowledged.
    pub sending: Arc<Budget>,
    /// Bytes beside requests that come in a second, and of chunks that are sent.
    pub paces: Paces,
    /// In which a tenth of a message has to come, or a part of an answer to be taken.
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
    /// Whose it is; nobody's who shows no certificate.
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

    /// Room for what stands beside a request; none when there is none for long. Then it is told, and what has come is let
    /// go: a request that waits has its bytes in the window, where they keep those out for which there is room.
    pub async fn room(&self, bytes: usize) -> Option<Share> {
        // Nothing that may be asked without a certificate has anything beside it.
        self.holder.as_ref()?;
        self.widen(bytes);
        let mut share = self.budgets.room.share(self.holder.as_ref());
        let there = share.wait(bytes, ROOM_PATIENCE.min(self.budgets.patience)).await;
        self.budgets.paces.receive.wait(bytes as u64).await;
        there.then_some(share)
    }

    /// What doing a request takes beside which so many bytes stand.
    pub async fn work(&self, request: &Request, beside_bytes: usize) -> Option<Share> {
        let budget =
            if request.rules().lasts.is_long(beside_bytes) { &self.budgets.answers } else { &self.budgets.work };
        let mut share = budget.share(self.holder.as_ref());
        share.wait(request.rules().work.bytes(request, beside_bytes), self.budgets.patience).await.then_some(share)
    }

    /// A turn to have so many plain bytes decoded: whoever has much decoded waits for himself, not others for him.
    pub async fn decoding(&self, plain_bytes: usize) -> Option<Share> {
        let mut share = self.budgets.decoding.share(self.holder.as_ref());
        share.wait(plain_bytes, self.budgets.patience).await.then_some(share)
    }

    /// The connection that this allowance is of.
    pub const fn connection(&self) -> &Connection {
        &self.connection
    }

    /// A stream for a part of so many bytes of the answer to the request on stream `of`. Parts that were begun first are
    /// sent first.
    pub async fn part(&self, of: StreamId, number: u32, bytes: usize) -> Result<SendStream, FrameError> {
        let lost = |error: &dyn std::fmt::Display| FrameError::Lost(error.to_string());
        self.budgets.paces.send.wait(bytes as u64).await;
        let opened = tokio::time::timeout(self.budgets.patience, self.connection.open_uni()).await;
        let mut stream = opened.map_err(|error| lost(&error))?.map_err(|error| lost(&error))?;
        let _ = stream.set_priority(-i32::try_from(number).unwrap_or(i32::MAX));
        stream.write_all(&answer::id(of).to_le_bytes()).await?;
        Ok(stream)
    }

    /// Clients have many messages like this one on their way: the window follows, as far as there is room. Who is near needs
    /// little of it; what is more would only find the socket's buffer full, and be lost there.
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

    /// Chunks are about to be sent: the window follows.
    pub fn widen_sending(&self) {
        let mut share = self.sending.lock().expect("no holder panics");
        if share.amount() < WINDOW_BYTES as usize && share.grow(WINDOW_STEP_BYTES) {
            self.connection.set_send_window((share.amount() as u64).max(WINDOW_BYTES_MIN.into()));
        }
    }
}

/// Established connections of the node.
const CONNECTIONS_MAX: usize = 256;
/// Of one holder: each program takes three.
const HOLDER_CONNECTIONS_MAX: usize = 48;
/// Of those who show no certificate.
const STRANGERS_MAX: usize = 8;
/// Each with a body of 64 KiB at most.
const REQUESTS_MAX: usize = 512;
/// Two clients have nearly as much on their way as they may (32 MiB), or one that does not keep to it 40 MiB.
const ROOM_BYTES: usize = 80 << 20;
const WORK_BYTES: usize = 24 << 20;
/// Half of it is enough for the largest commit.
const ANSWERS_BYTES: usize = 52 << 20;
/// Half of it is enough for the largest put. They are decoded one after another on each processor, into the same memory.
const DECODING_BYTES: usize = 32 << 20;
/// One holder alone gets 32 MiB: 1 Gbit/s at 150 ms takes 19 MB.
const RECEIVING_BYTES: usize = 64 << 20;
const SENDING_BYTES: usize = 64 << 20;
/// On their way from somebody near.
const NEAR_BYTES: usize = 2 << 20;
/// In a microsecond, of the fastest link that a window is to fill: 2 Gbit/s.
const LINK_BYTES_A_US: usize = 250;
/// By which a window grows at most.
const WINDOW_STEP_BYTES: usize = 4 << 20;
/// Messages of one size that are on their way together.
const MESSAGES_ON_THEIR_WAY: usize = 32;
/// For room: longer than others need for what they have.
const ROOM_PATIENCE: Duration = Duration::from_secs(5);
/// For each tenth of a message.
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
