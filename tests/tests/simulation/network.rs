//! quinn on turmoil's UDP. Turmoil delays packets by chance, which reorders them, and cuts links; what is lost, doubled or
//! damaged on the way is decided here.

use crate::chance::Dice;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, ConnectionId, ConnectionIdGenerator, UdpPoller};
use quinn_proto::InvalidCid;
use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use turmoil::net::UdpSocket;

/// What happens to packets, of a thousand.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rates {
    pub lost: u32,
    pub doubled: u32,
    pub damaged: u32,
}

/// What happened to packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Packets {
    pub sent: u64,
    pub bytes: u64,
    pub lost: u64,
    pub doubled: u64,
    pub damaged: u64,
}

/// What lies between all hosts.
pub struct Air(Mutex<State>);

struct State {
    dice: Dice,
    rates: Rates,
    packets: Packets,
    trace: blake3::Hasher,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Fate {
    Arrives,
    Lost,
    Doubled,
    Damaged,
}

impl Air {
    pub fn new(seed: u64) -> Self {
        let dice = Dice::new(seed, "air");
        let (rates, packets, trace) = (Rates::default(), Packets::default(), blake3::Hasher::new());
        Self(Mutex::new(State { dice, rates, packets, trace }))
    }

    pub fn set(&self, rates: Rates) {
        self.0.lock().expect("not poisoned").rates = rates;
    }

    pub fn packets(&self) -> Packets {
        self.0.lock().expect("not poisoned").packets
    }

    /// A hash of when each packet was sent, from where to where, how long it was, and what became of it.
    pub fn trace(&self) -> blake3::Hash {
        self.0.lock().expect("not poisoned").trace.finalize()
    }

    /// Decides what becomes of a packet; gives it as it will arrive, when it was damaged.
    fn fate(&self, from: &str, to: SocketAddr, bytes: &[u8]) -> (Fate, Option<Vec<u8>>) {
        let mut state = self.0.lock().expect("not poisoned");
        let State { dice, rates, packets, trace } = &mut *state;
        let mut damaged = None;
        let fate = if dice.permille(rates.lost) {
            packets.lost += 1;
            Fate::Lost
        } else if dice.permille(rates.doubled) {
            packets.doubled += 1;
            Fate::Doubled
        } else if dice.permille(rates.damaged) {
            packets.damaged += 1;
            damaged = Some(damage(dice, bytes));
            Fate::Damaged
        } else {
            Fate::Arrives
        };
        packets.sent += 1;
        packets.bytes += bytes.len() as u64;
        let time = turmoil::sim_elapsed().unwrap_or_default().as_micros();
        trace.update(&time.to_le_bytes()).update(from.as_bytes()).update(to.to_string().as_bytes());
        trace.update(&(bytes.len() as u64).to_le_bytes()).update(&[fate as u8]);
        tracing::debug!(time, from, %to, len = bytes.len(), ?fate, "packet");
        (fate, damaged)
    }
}

/// Turns over some bits, and sometimes loses the end. Not in the first byte: what kind of packet it is decides where in it
/// lengths are looked for, and those would be read from encrypted bytes, which no seed decides.
fn damage(dice: &mut Dice, bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if dice.permille(200) {
        bytes.truncate(usize::try_from(dice.within(1..bytes.len() as u64 + 1)).expect("a length"));
    }
    for _ in 0..dice.within(1..4) {
        if bytes.len() > 1 {
            let at = usize::try_from(dice.within(1..bytes.len() as u64)).expect("a place");
            bytes[at] ^= 1 << dice.within(0..8);
        }
    }
    bytes
}

/// A socket of one host.
pub struct Socket {
    host: &'static str,
    udp: Arc<UdpSocket>,
    air: Arc<Air>,
    /// Waits for the next packet. Turmoil has nothing to be polled, and nothing can be received while this is there.
    waiting: Mutex<Option<Waiting>>,
}

type Waiting = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

impl Socket {
    pub async fn bind(host: &'static str, port: u16, air: Arc<Air>) -> io::Result<Self> {
        let udp = Arc::new(UdpSocket::bind(("0.0.0.0", port)).await?);
        Ok(Self { host, udp, air, waiting: Mutex::default() })
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Socket({})", self.host)
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let (fate, damaged) = self.air.fate(self.host, transmit.destination, transmit.contents);
        let bytes = damaged.as_deref().unwrap_or(transmit.contents);
        let copies = match fate {
            Fate::Lost => 0,
            Fate::Arrives | Fate::Damaged => 1,
            Fate::Doubled => 2,
        };
        (0..copies).try_for_each(|_| self.udp.try_send_to(bytes, transmit.destination).map(drop))
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut waiting = self.waiting.lock().expect("not poisoned");
        loop {
            if let Some(packet) = waiting.as_mut() {
                ready!(packet.as_mut().poll(cx))?;
                *waiting = None;
            }
            match self.udp.try_recv_from(&mut bufs[0]) {
                Ok((len, addr)) => {
                    meta[0] = RecvMeta { addr, len, stride: len, ecn: None, dst_ip: None };
                    return Poll::Ready(Ok(1));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let udp = self.udp.clone();
                    *waiting = Some(Box::pin(async move { udp.readable().await }));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// Turmoil always takes packets.
#[derive(Debug)]
struct Writable;

impl UdpPoller for Writable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Connection ids that a host counts, also across its crashes, and knows again after them.
#[derive(Clone)]
pub struct Ids {
    host: &'static str,
    next: Arc<Mutex<u32>>,
}

impl Ids {
    pub fn new(host: &'static str) -> Self {
        Self { host, next: Arc::default() }
    }

    pub fn next(&self) -> ConnectionId {
        let mut next = self.next.lock().expect("not poisoned");
        *next += 1;
        ConnectionId::new(&self.id(next.to_le_bytes()))
    }

    fn id(&self, number: [u8; 4]) -> [u8; 8] {
        let signature = blake3::Hasher::new().update(&number).update(self.host.as_bytes()).finalize();
        let [a, b, c, d, ..] = *signature.as_bytes();
        let [i, j, k, l] = number;
        [i, j, k, l, a, b, c, d]
    }
}

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        self.next()
    }

    fn validate(&self, cid: &ConnectionId) -> Result<(), InvalidCid> {
        let number = cid.first_chunk().ok_or(InvalidCid)?;
        if self.id(*number)[..] == cid[..] { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}
