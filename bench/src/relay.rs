//! A UDP relay that is a long, narrow or leaky link: delay, rate and loss in both directions, the loss from a seed.

use anyhow::Result;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What a link is like, each way.
#[derive(Debug, Clone, Copy)]
pub struct LinkShape {
    /// Round trip.
    pub rtt: Duration,
    /// Bits a second.
    pub rate: u64,
    /// Lost packets of a thousand.
    pub lost_per_mille: u64,
    /// Which are lost.
    pub seed: u64,
}

/// A running relay; ends when dropped.
pub struct Relay {
    /// Where clients send to.
    pub port: u16,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    passed: Arc<AtomicU64>,
}

impl Relay {
    /// Relays to the node at `node`.
    pub fn start(node: SocketAddr, shape: LinkShape) -> Result<Self> {
        let (outer, inner) = (UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
        inner.connect(node)?;
        let (stop, passed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let client: Arc<OnceLock<SocketAddr>> = Arc::default();
        let mut threads = Vec::new();
        let port = outer.local_addr()?.port();
        for socket in [&outer, &inner] {
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        }
        for way in [Way::Up, Way::Down] {
            let (from, to) = match way {
                Way::Up => (outer.try_clone()?, inner.try_clone()?),
                Way::Down => (inner.try_clone()?, outer.try_clone()?),
            };
            let (queue, due) = sync_channel(QUEUE_PACKETS_MAX);
            let (stop, client, passed) = (stop.clone(), client.clone(), passed.clone());
            let (here, to_client) = (client.clone(), client);
            let mut line = Line { shape, free: Instant::now(), noise: shape.seed ^ way as u64 };
            let done = stop.clone();
            threads.push(thread::spawn(move || line.take(&from, way, &here, &queue, &done)));
            threads.push(thread::spawn(move || give(&to, way, &to_client, &due, &passed)));
        }
        Ok(Self { port, stop, threads, passed })
    }

    /// Bytes that came through, both ways.
    pub fn passed(&self) -> u64 {
        self.passed.load(Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Up = 1,
    Down = 2,
}

/// One way of the link.
struct Line {
    shape: LinkShape,
    /// When what waits has been sent.
    free: Instant,
    noise: u64,
}

impl Line {
    fn take(
        &mut self,
        from: &UdpSocket,
        way: Way,
        client: &OnceLock<SocketAddr>,
        queue: &SyncSender<(Instant, Vec<u8>)>,
        stop: &AtomicBool,
    ) {
        let mut bytes = vec![0; 65_536];
        while !stop.load(Relaxed) {
            let Ok((length, sender)) = from.recv_from(&mut bytes) else { continue };
            if way == Way::Up {
                client.get_or_init(|| sender);
            }
            if let Some(due) = self.pass(length, Instant::now()) {
                let _ = queue.try_send((due, bytes[..length].to_vec()));
            }
        }
    }

    /// When a packet arrives; none when it is lost, or finds no room.
    fn pass(&mut self, length: usize, now: Instant) -> Option<Instant> {
        // splitmix64 (Steele, Lea, Flood 2014)
        self.noise = self.noise.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.noise;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        if (mixed ^ (mixed >> 31)) % 1000 < self.shape.lost_per_mille {
            return None;
        }
        let begins = self.free.max(now);
        // A router's queue: as much as is on its way, and at least 20 ms.
        if begins - now > self.shape.rtt.max(Duration::from_millis(20)) {
            return None;
        }
        self.free = begins + Duration::from_nanos(length as u64 * 8 * 1_000_000_000 / self.shape.rate);
        Some(self.free + self.shape.rtt / 2)
    }
}

fn give(
    to: &UdpSocket,
    way: Way,
    client: &OnceLock<SocketAddr>,
    due: &Receiver<(Instant, Vec<u8>)>,
    passed: &AtomicU64,
) {
    for (when, bytes) in due {
        thread::sleep(when.saturating_duration_since(Instant::now()));
        let sent = match (way, client.get()) {
            (Way::Up, _) => to.send(&bytes),
            (Way::Down, Some(client)) => to.send_to(&bytes, client),
            (Way::Down, None) => continue,
        };
        passed.fetch_add(sent.unwrap_or(0) as u64, Relaxed);
    }
}

const QUEUE_PACKETS_MAX: usize = 65_536;
