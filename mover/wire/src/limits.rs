//! What a node gives to whom: budgets that nobody can use up alone, handshakes under way, and the windows of connections.
//!
//! Memory that peers can have a node hold is counted in the budgets below, whoever asks and over however many
//! connections; `PROTOCOL.md` adds them up.

use super::answer;
use super::frame::FrameError;
use super::message::Request;
use super::quic::{WINDOW_BYTES, WINDOW_BYTES_MIN};
use mover::{Holder, RateLimiter};
use quinn::{Connection, SendStream, StreamId, VarInt};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};

/// An amount that holders share. Nobody may have more of it than is left for others: one alone may have half, two a third
/// each, and who comes next finds as much as each of them has. Who has nothing may have less than a quarter of all even
/// when that leaves less to others.
#[derive(Debug)]
pub struct Budget {
    total: usize,
    /// Nobody has more, however much is left.
    each_max: usize,
    shares: Mutex<Shares>,
    /// Something was given back.
    freed: Notify,
}

#[derive(Debug)]
struct Shares {
    free: usize,
    /// Those who have no certificate are one holder together.
    of: HashMap<Option<Holder>, usize>,
}

/// What somebody has of a budget; given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    holder: Option<Holder>,
    amount: usize,
}

impl Budget {
    /// A budget of this amount.
    pub fn new(total: usize) -> Arc<Self> {
        Self::with_each(total, total)
    }

    /// The same, and this much for each holder.
    pub fn with_each(total: usize, each_max: usize) -> Arc<Self> {
        let shares = Mutex::new(Shares { free: total, of: HashMap::new() });
        Arc::new(Self { total, each_max, shares, freed: Notify::new() })
    }

    /// A share of `holder`, or of those who have no certificate, empty yet.
    pub fn share(self: &Arc<Self>, holder: Option<&Holder>) -> Share {
        Share { budget: self.clone(), holder: holder.cloned(), amount: 0 }
    }

    /// Everybody who has something of it.
    pub fn holders(&self) -> Vec<Holder> {
        self.shares.lock().expect("no holder panics").of.keys().flatten().cloned().collect()
    }
}

impl Share {
    /// Amount that the share has now.
    pub const fn amount(&self) -> usize {
        self.amount
    }

    /// Takes more, if that is fair and there.
    pub fn grow(&mut self, amount: usize) -> bool {
        let mut shares = self.budget.shares.lock().expect("no holder panics");
        let held = shares.of.get(&self.holder).copied().unwrap_or_default();
        let Some(left) = shares.free.checked_sub(amount) else { return false };
        let begins = held == 0 && amount * 4 < self.budget.total;
        if held + amount > self.budget.each_max || !begins && held + amount > left {
            return false;
        }
        shares.free = left;
        if amount > 0 {
            *shares.of.entry(self.holder.clone()).or_default() += amount;
        }
        self.amount += amount;
        true
    }

    /// Takes more as soon as that may be; false when it was not for so long.
    pub async fn wait(&mut self, amount: usize, patience: Duration) -> bool {
        let budget = self.budget.clone();
        let taken = async {
            loop {
                let freed = budget.freed.notified();
                futures::pin_mut!(freed);
                // What is given back between the look and the wait counts.
                freed.as_mut().enable();
                if self.grow(amount) {
                    return;
                }
                freed.await;
            }
        };
        tokio::time::timeout(patience, taken).await.is_ok()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.amount == 0 {
            return;
        }
        let mut shares = self.budget.shares.lock().expect("no holder panics");
        shares.free += self.amount;
        if let Some(held) = shares.of.get_mut(&self.holder) {
            *held -= self.amount;
            if *held == 0 {
                shares.of.remove(&self.holder);
            }
        }
        drop(shares);
        self.budget.freed.notify_waiters();
    }
}

/// Handshakes under way. Nobody is known yet, so nobody has a share: when there are too many the oldest is given up,
/// and somebody whose handshake takes two round trips comes through between thousands that never go on.
#[derive(Debug, Default)]
pub struct Handshakes(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    begun: u64,
    oldest_first: VecDeque<(u64, Arc<Notify>)>,
}

/// A handshake that is under way.
#[derive(Debug)]
pub struct Handshake<'a> {
    all: &'a Handshakes,
    number: u64,
    given_up: Arc<Notify>,
}

impl Handshakes {
    /// True when an address has to be proven before another begins.
    pub fn are_many(&self) -> bool {
        self.0.lock().expect("no holder panics").oldest_first.len() >= HANDSHAKES_UNPROVEN_MAX
    }

    /// Begins a handshake; of too many the oldest is given up.
    pub fn begin(&self) -> Handshake<'_> {
        let mut waiting = self.0.lock().expect("no holder panics");
        if waiting.oldest_first.len() >= HANDSHAKES_MAX
            && let Some((_, oldest)) = waiting.oldest_first.pop_front()
        {
            oldest.notify_one();
        }
        waiting.begun += 1;
        let (number, given_up) = (waiting.begun, Arc::new(Notify::new()));
        waiting.oldest_first.push_back((number, given_up.clone()));
        Handshake { all: self, number, given_up }
    }
}

impl Handshake<'_> {
    /// Waits until it is given up for others.
    pub async fn given_up(&self) {
        self.given_up.notified().await;
    }
}

impl Drop for Handshake<'_> {
    fn drop(&mut self) {
        self.all.0.lock().expect("no holder panics").oldest_first.retain(|(number, _)| *number != self.number);
    }
}

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
pub struct Limits {
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

impl Default for Limits {
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
    limits: Arc<Limits>,
    receiving: Mutex<Share>,
    sending: Mutex<Share>,
}

impl Allowance {
    /// For a connection of `holder`.
    pub fn new(holder: Option<&Holder>, connection: Connection, limits: &Arc<Limits>) -> Self {
        let (receiving, sending) = (limits.receiving.share(holder), limits.sending.share(holder));
        let (receiving, sending) = (Mutex::new(receiving), Mutex::new(sending));
        Self { holder: holder.cloned(), connection, limits: limits.clone(), receiving, sending }
    }

    /// How long somebody is waited for.
    pub fn patience(&self) -> Duration {
        self.limits.patience
    }

    /// A turn to make a request; waits for it however long.
    pub async fn turn(&self) -> Share {
        let mut share = self.limits.requests.share(self.holder.as_ref());
        while !share.wait(1, self.limits.patience).await {}
        share
    }

    /// Room for what stands beside a request; none when there is none for long. Then it is told, and what has come is let
    /// go: a request that waits has its bytes in the window, where they keep those out for which there is room.
    pub async fn room(&self, bytes: usize) -> Option<Share> {
        // Nothing that may be asked without a certificate has anything beside it.
        self.holder.as_ref()?;
        self.widen(bytes);
        let mut share = self.limits.room.share(self.holder.as_ref());
        let there = share.wait(bytes, ROOM_PATIENCE.min(self.limits.patience)).await;
        self.limits.paces.receive.wait(bytes as u64).await;
        there.then_some(share)
    }

    /// What doing a request takes beside which so many bytes stand.
    pub async fn work(&self, request: &Request, beside_bytes: usize) -> Option<Share> {
        let budget = if request.rules().lasts.is_long(beside_bytes) { &self.limits.answers } else { &self.limits.work };
        let mut share = budget.share(self.holder.as_ref());
        share.wait(request.rules().work.bytes(request, beside_bytes), self.limits.patience).await.then_some(share)
    }

    /// A turn to have so many plain bytes decoded: whoever has much decoded waits for himself, not others for him.
    pub async fn decoding(&self, plain_bytes: usize) -> Option<Share> {
        let mut share = self.limits.decoding.share(self.holder.as_ref());
        share.wait(plain_bytes, self.limits.patience).await.then_some(share)
    }

    /// The connection that this allowance is of.
    pub const fn connection(&self) -> &Connection {
        &self.connection
    }

    /// A stream for a part of so many bytes of the answer to the request on stream `of`. Parts that were begun first are
    /// sent first.
    pub async fn part(&self, of: StreamId, number: u32, bytes: usize) -> Result<SendStream, FrameError> {
        let lost = |error: &dyn std::fmt::Display| FrameError::Lost(error.to_string());
        self.limits.paces.send.wait(bytes as u64).await;
        let opened = tokio::time::timeout(self.limits.patience, self.connection.open_uni()).await;
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
/// From here on a client must show first that its address is its own.
const HANDSHAKES_UNPROVEN_MAX: usize = 64;
const HANDSHAKES_MAX: usize = 256;
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

    /// Takes as much as it gets, one by one.
    fn greedy(budget: &Arc<Budget>, name: &str) -> Share {
        let mut share = budget.share(Some(&holder(name)));
        while share.grow(1) {}
        share
    }

    #[test]
    fn nobody_has_more_than_is_left_for_others() {
        let budget = Budget::new(96);
        let shares: Vec<Share> = ["a", "b", "c"].map(|name| greedy(&budget, name)).into();
        assert_eq!(shares.iter().map(Share::amount).collect::<Vec<_>>(), [48, 24, 12]);
        assert!(!budget.share(Some(&holder("a"))).grow(1), "another connection of the same holder does not help");
        let mut late = budget.share(Some(&holder("d")));
        assert!(late.grow(12) && !late.grow(1), "who has nothing gets what is left");
        drop(shares);
        assert!(late.grow(36) && !late.grow(1));
        drop(late);
        assert!(budget.holders().is_empty() && budget.shares.lock().unwrap().free == 96, "all was given back");
    }

    #[test]
    fn a_holder_has_a_limit_of_its_own() {
        let budget = Budget::with_each(256, 48);
        assert_eq!((greedy(&budget, "a").amount(), greedy(&budget, "b").amount()), (48, 48));
        assert!(!budget.share(Some(&holder("c"))).grow(257), "more than there is");
        let room = Budget::new(80);
        assert!(!room.share(Some(&holder("a"))).grow(41), "more than a half");
    }

    /// On an idle node nothing that the protocol allows is refused for ever.
    #[test]
    fn the_largest_message_of_each_kind_has_room() {
        let limits = Limits::default();
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
            let mut work = of(if request.rules().lasts.is_long(beside) { &limits.answers } else { &limits.work });
            assert!(work.grow(request.rules().work.bytes(&request, beside)), "{request:?} with {beside} bytes");
            assert!(of(&limits.room).grow(beside), "{request:?} with {beside} bytes");
        }
        assert!(limits.decoding.share(Some(&holder("a"))).grow(PUT_PLAIN_BYTES_MAX));
    }

    #[tokio::test]
    async fn who_waits_gets_what_is_given_back() {
        let budget = Budget::new(8);
        let (first, mut second) = (greedy(&budget, "a"), budget.share(Some(&holder("b"))));
        assert!(!second.grow(4) && second.grow(1));
        let mut third = budget.share(Some(&holder("c")));
        assert!(!third.wait(2, Duration::from_millis(1)).await && third.amount() == 0);
        let waiting = tokio::spawn(async move { third.wait(2, Duration::from_secs(60)).await });
        tokio::task::yield_now().await;
        drop(first);
        assert!(waiting.await.unwrap());
    }

    #[tokio::test]
    async fn the_oldest_handshake_is_given_up_for_a_new_one() {
        let all = Handshakes::default();
        let begun: Vec<Handshake<'_>> = (0..HANDSHAKES_MAX).map(|_| all.begin()).collect();
        assert!(all.are_many());
        let new = all.begin();
        begun[0].given_up().await;
        let waiting = tokio::time::timeout(Duration::from_millis(1), begun[1].given_up()).await;
        assert!(waiting.is_err(), "only the oldest");
        drop((begun, new));
        assert!(!all.are_many() && all.0.lock().unwrap().oldest_first.is_empty());
    }
}
