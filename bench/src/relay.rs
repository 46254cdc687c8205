//! A link between clients and a node, in this process: UDP packets are delayed, reordered, doubled, lost and limited in
//! rate; the choice of packets follows from a seed. The link can be cut, and the node can be made to see other
//! addresses of the clients, while jobs are running.

use rustix::net::sockopt;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What a link is like, each way.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shape {
    /// From one end to the other.
    pub delay: Duration,
    /// Most additional delay of a packet. It is different for each packet, so packets come out of order.
    pub jitter: Duration,
    /// Bits a second; not limited when 0.
    pub rate: u64,
    /// Packets of a thousand that never come.
    pub lost_per_mille: u64,
    /// Packets of a thousand that come twice.
    pub doubled_per_mille: u64,
    /// Decides which packets are lost, doubled or late.
    pub seed: u64,
}

/// Packets and bytes that came in on one way.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Bytes, without headers of UDP and IP.
    pub bytes: AtomicU64,
    /// Packets.
    pub packets: AtomicU64,
    /// Packets that were lost by chance.
    pub lost: AtomicU64,
    /// Packets for which the queue had no room.
    pub dropped: AtomicU64,
}

/// A running relay; it ends when dropped.
#[derive(Debug)]
pub struct Relay {
    /// Where clients send to, on the loopback address.
    pub port: u16,
    /// From clients to the node.
    pub up: Arc<Traffic>,
    /// From the node to clients.
    pub down: Arc<Traffic>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    node: SocketAddr,
    outer: UdpSocket,
    /// For each client the socket by which the node knows it.
    clients: Mutex<HashMap<SocketAddr, Arc<UdpSocket>>>,
    cut: AtomicBool,
    stop: AtomicBool,
    waiting: Mutex<BinaryHeap<Reverse<Packet>>>,
    more: Condvar,
}

/// A packet on its way.
#[derive(Debug)]
struct Packet {
    due: Instant,
    bytes: Vec<u8>,
    by: Arc<UdpSocket>,
    /// None for the node, to which `by` is connected.
    to: Option<SocketAddr>,
}

impl PartialEq for Packet {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}

impl Eq for Packet {}

impl PartialOrd for Packet {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Packet {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.due.cmp(&other.due)
    }
}

impl Relay {
    /// Relays to the node at `node`.
    ///
    /// # Errors
    /// When no socket can be had.
    pub fn start(node: SocketAddr, shape: Shape) -> io::Result<Self> {
        let outer = socket()?;
        let port = outer.local_addr()?.port();
        let shared = Arc::new(Shared {
            node,
            outer,
            clients: Mutex::default(),
            cut: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            waiting: Mutex::default(),
            more: Condvar::new(),
        });
        let (up, down) = (Arc::<Traffic>::default(), Arc::<Traffic>::default());
        let lines = [(1, &up), (2, &down)].map(|(way, traffic)| {
            Arc::new(Mutex::new(Line {
                shape,
                free: Instant::now(),
                noise: shape.seed << 2 | way,
                traffic: traffic.clone(),
            }))
        });
        let [line_up, line_down] = lines;
        let (taker, giver) = (shared.clone(), shared.clone());
        let threads =
            vec![thread::spawn(move || taker.take(&line_up, &line_down)), thread::spawn(move || giver.give())];
        Ok(Self { port, up, down, shared, threads })
    }

    /// Cuts the link, or makes it whole again.
    pub fn cut(&self, cut: bool) {
        self.shared.cut.store(cut, Relaxed);
    }

    /// From now on the node sees every client under another address, as when a laptop changes its network, or a router
    /// loses its table of connections.
    pub fn readdress(&self) {
        self.shared.clients.lock().expect("no holder panics").clear();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        self.shared.more.notify_all();
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

impl Shared {
    /// Packets from clients.
    fn take(self: &Arc<Self>, up: &Mutex<Line>, down: &Arc<Mutex<Line>>) {
        let mut bytes = vec![0; DATAGRAM_BYTES_MAX];
        let mut answers = Vec::new();
        while !self.stop.load(Relaxed) {
            let Ok((length, client)) = self.outer.recv_from(&mut bytes) else { continue };
            let known = self.clients.lock().expect("no holder panics").get(&client).cloned();
            let by = match known.map_or_else(|| self.meet(client, down, &mut answers), Ok) {
                Ok(by) => by,
                // As if the packet were lost.
                Err(_) => continue,
            };
            self.pass(up, &bytes[..length], &by, None);
        }
        answers.into_iter().for_each(|thread: JoinHandle<()>| drop(thread.join()));
    }

    /// Makes a socket for a client that was not seen before, or that must get another address.
    fn meet(
        self: &Arc<Self>,
        client: SocketAddr,
        down: &Arc<Mutex<Line>>,
        answers: &mut Vec<JoinHandle<()>>,
    ) -> io::Result<Arc<UdpSocket>> {
        let inner = socket()?;
        inner.connect(self.node)?;
        let inner = Arc::new(inner);
        self.clients.lock().expect("no holder panics").insert(client, inner.clone());
        let (shared, down, from) = (self.clone(), down.clone(), inner.clone());
        let outer = Arc::new(self.outer.try_clone()?);
        answers.push(thread::spawn(move || {
            let mut bytes = vec![0; DATAGRAM_BYTES_MAX];
            while !shared.stop.load(Relaxed) {
                // What was sent to an address that is no longer the client's is lost.
                let Ok(length) = from.recv(&mut bytes) else { continue };
                let current = shared.clients.lock().expect("no holder panics").get(&client).cloned();
                if current.is_some_and(|current| Arc::ptr_eq(&current, &from)) {
                    shared.pass(&down, &bytes[..length], &outer, Some(client));
                }
            }
        }));
        Ok(inner)
    }

    fn pass(&self, line: &Mutex<Line>, bytes: &[u8], by: &Arc<UdpSocket>, to: Option<SocketAddr>) {
        if self.cut.load(Relaxed) {
            return;
        }
        let times = line.lock().expect("no holder panics").pass(bytes.len(), Instant::now());
        let packets = times.into_iter().flatten().map(|due| Packet { due, bytes: bytes.to_vec(), by: by.clone(), to });
        self.waiting.lock().expect("no holder panics").extend(packets.map(Reverse));
        self.more.notify_one();
    }

    /// Sends what is due.
    fn give(&self) {
        let mut waiting = self.waiting.lock().expect("no holder panics");
        while !self.stop.load(Relaxed) {
            let now = Instant::now();
            let wait = waiting.peek().map_or(LOOK, |first| first.0.due.saturating_duration_since(now));
            if !wait.is_zero() {
                waiting = self.more.wait_timeout(waiting, wait.min(LOOK)).expect("no holder panics").0;
                continue;
            }
            let Some(Reverse(packet)) = waiting.pop() else { continue };
            drop(waiting);
            // An end that is not there (any more) loses its packets.
            let _ = match packet.to {
                Some(client) => packet.by.send_to(&packet.bytes, client),
                None => packet.by.send(&packet.bytes),
            };
            waiting = self.waiting.lock().expect("no holder panics");
        }
    }
}

/// A socket with a buffer so large that no packet is lost while this process waits for a processor. Needs root, as do
/// the tests with block devices.
fn socket() -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BYTES)?;
    socket.set_read_timeout(Some(LOOK))?;
    Ok(socket)
}

/// One way of the link.
#[derive(Debug)]
struct Line {
    shape: Shape,
    /// When the packets that wait will have been sent.
    free: Instant,
    noise: u64,
    traffic: Arc<Traffic>,
}

impl Line {
    /// The times at which a packet arrives: none if it is lost, two if it is doubled.
    fn pass(&mut self, length: usize, now: Instant) -> [Option<Instant>; 2] {
        let Shape { delay, jitter, rate, lost_per_mille, doubled_per_mille, .. } = self.shape;
        self.traffic.packets.fetch_add(1, Relaxed);
        self.traffic.bytes.fetch_add(length as u64, Relaxed);
        // A way over which frames of Ethernet go: what is longer vanishes, and nobody is told.
        if length > PAYLOAD_BYTES_MAX {
            return [None, None];
        }
        if self.chance() % 1000 < lost_per_mille {
            self.traffic.lost.fetch_add(1, Relaxed);
            return [None, None];
        }
        if let Some(nanos) = ((length + HEADERS_BYTES) as u64 * 8 * 1_000_000_000).checked_div(rate) {
            let begins = self.free.max(now);
            // A router's queue: as much as is on its way there and back, and at least 20 ms.
            if begins - now > (2 * delay).max(QUEUE_MIN) {
                self.traffic.dropped.fetch_add(1, Relaxed);
                return [None, None];
            }
            self.free = begins + Duration::from_nanos(nanos);
        } else {
            self.free = now;
        }
        let late = jitter.mul_f64((self.chance() % 1000) as f64 / 1000.0);
        let due = self.free + delay + late;
        let again = self.chance() % 1000 < doubled_per_mille;
        [Some(due), again.then(|| due + delay / 2)]
    }

    /// splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
    fn chance(&mut self) -> u64 {
        self.noise = self.noise.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.noise;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// How often threads look whether they are to end.
const LOOK: Duration = Duration::from_millis(20);
const DATAGRAM_BYTES_MAX: usize = 65_536;
/// Of UDP over IPv4 in a frame of 1,500 bytes.
const PAYLOAD_BYTES_MAX: usize = 1472;
/// Of UDP and IPv4: rates are what IP gets.
const HEADERS_BYTES: usize = 8 + 20;
const SOCKET_BYTES: usize = 16 << 20;
const QUEUE_MIN: Duration = Duration::from_millis(20);
