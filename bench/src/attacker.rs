//! Peers that misbehave: connections on which any bytes can be sent, and packets from many ports.

use anyhow::{Context, Result, ensure};
use chunker::{ChunkId, ChunkKind, Compression, Compressor};
use mover::{Begin, PointId, RepositoryId, SessionId, Verification, World};
use quinn::{ClientConfig, Connection, Endpoint, RecvStream, SendStream};
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use wire::identity::Credentials;
use wire::message::{BeginIn, Hello, Open, Put, Reply, Request, SessionRef};
use wire::{Congestion, client, client_config, decode, encode};

/// A connection that need not follow the protocol.
#[derive(Debug)]
pub struct Raw {
    /// The QUIC connection.
    pub connection: Connection,
    /// Kept, because a connection ends with its endpoint.
    _endpoint: Endpoint,
}

impl Raw {
    /// Connects to the node on this port of the loopback address, and says nothing.
    ///
    /// # Errors
    /// When the node does not want it.
    pub async fn connect(port: u16, config: ClientConfig) -> Result<Self> {
        let endpoint = client()?;
        let ipv6 = endpoint.local_addr()?.is_ipv6();
        let address = if ipv6 { "::ffff:127.0.0.1" } else { "127.0.0.1" };
        let address = SocketAddr::new(address.parse()?, port);
        let connection = endpoint.connect_with(config, address, "localhost")?.await?;
        Ok(Self { connection, _endpoint: endpoint })
    }

    /// The same, and says hello.
    ///
    /// # Errors
    /// When the node does not want it.
    pub async fn greeted(port: u16, config: ClientConfig) -> Result<Self> {
        let raw = Self::connect(port, config).await?;
        let program = "attacker".to_owned();
        let (reply, _) = raw
            .ask(&Request::Hello(Hello { versions: (wire::VERSION, wire::VERSION), features: 0, program }), &[])
            .await?;
        ensure!(matches!(reply, Reply::Welcome(_)), "{reply:?}");
        Ok(raw)
    }

    /// Opens a stream and writes this.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn open(&self, bytes: &[u8]) -> Result<(SendStream, RecvStream)> {
        let (mut to, from) = self.connection.open_bi().await?;
        to.write_all(bytes).await?;
        Ok((to, from))
    }

    /// Makes a request, and gives the first reply.
    ///
    /// # Errors
    /// When none comes.
    pub async fn ask(&self, request: &Request, bulk: &[u8]) -> Result<(Reply, Vec<u8>)> {
        let head = encode(request, bulk.len() as u64, false)?;
        self.tell(&[&head, bulk].concat()).await
    }

    /// Says anything, and gives the first reply.
    ///
    /// # Errors
    /// When none comes.
    pub async fn tell(&self, bytes: &[u8]) -> Result<(Reply, Vec<u8>)> {
        let (mut to, mut from) = self.connection.open_bi().await?;
        // Who is refused need not have been heard.
        if to.write_all(bytes).await.is_ok() {
            let _ = to.finish();
        }
        first_reply(&mut from).await
    }

    /// The id of a repository.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn repository(&self, name: &str) -> Result<RepositoryId> {
        match self.ask(&Request::Open(Open { name: name.to_owned(), machine: None }), &[]).await? {
            (Reply::Opened(opened), _) => Ok(opened.repository),
            (reply, _) => anyhow::bail!("{reply:?}"),
        }
    }

    /// A write session.
    ///
    /// # Errors
    /// When the node does not open one.
    pub async fn begin(&self, repository: RepositoryId, world: &World) -> Result<SessionId> {
        let begin = Begin {
            point: PointId::random(world),
            parents: Vec::new(),
            holder: None,
            verification: Verification::Checksum,
        };
        match self.ask(&Request::Begin(BeginIn { repository, begin }), &[]).await? {
            (Reply::Session(SessionRef { session }), _) => Ok(session),
            (reply, _) => anyhow::bail!("{reply:?}"),
        }
    }
}

/// The first reply on a stream, and the bulk bytes after it.
///
/// # Errors
/// When it does not come.
pub async fn first_reply(from: &mut RecvStream) -> Result<(Reply, Vec<u8>)> {
    let mut bytes = Vec::new();
    let whole = loop {
        if let Some((reply, bulk_bytes, _)) = decode::<Reply>(&bytes)? {
            let head = encode(&reply, bulk_bytes, false)?.len();
            let whole = head + usize::try_from(bulk_bytes)?;
            if bytes.len() >= whole && matches!(reply, Reply::Waiting(())) {
                bytes.drain(..whole);
                continue;
            }
            if bytes.len() >= whole {
                break (reply, bytes[head..whole].to_vec());
            }
        }
        let chunk = from.read_chunk(1 << 20, true).await?.context("no reply")?;
        bytes.extend_from_slice(&chunk.bytes);
    };
    Ok(whole)
}

/// A chunk that is not what its id says, with the request that puts it.
pub fn lie(session: SessionId) -> (Request, Vec<u8>) {
    let blob = Compressor::new(Compression::default()).compress(ChunkKind::Data, b"something else");
    let bulk = [&ChunkId([7; 32]).0[..], blob.bytes()].concat();
    (Request::Put(Put { session, lengths: vec![blob.bytes().len() as u32] }), bulk)
}

/// Headers that announce more bytes than allowed: for every type of message, in the body, in the bulk after it, and in
/// both.
pub fn huge_lengths() -> Vec<Vec<u8>> {
    let header = |code: u16, body: u32, bulk: u32| {
        let lengths = [body.to_le_bytes(), bulk.to_le_bytes()].concat();
        [&b"WLM1"[..], &code.to_le_bytes(), &[0, 0], &lengths].concat()
    };
    let each = |code: &u16| [(u32::MAX, 0), (0, u32::MAX), (u32::MAX, u32::MAX)].map(|(a, b)| header(*code, a, b));
    Request::CODES.iter().flat_map(each).collect()
}

/// Noise; half of it looks like first packets of connections.
pub fn garbage(number: u64) -> Vec<u8> {
    let length = 1 + number * 7 % 1400;
    let mut bytes = vec![0; usize::try_from(length).expect("short")];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
    if number.is_multiple_of(2) {
        bytes[0] |= 0xc0;
    }
    bytes
}

/// First packets of so many connections, as real clients send them.
///
/// # Errors
/// When a socket fails.
pub async fn first_packets(config: &ClientConfig, count: usize) -> Result<Vec<Vec<u8>>> {
    let sink = tokio::net::UdpSocket::bind("127.0.0.1:0").await?;
    let endpoint = Endpoint::client("127.0.0.1:0".parse()?)?;
    let mut made = Vec::new();
    let mut buffer = vec![0; 65_536];
    while made.len() < count {
        let connecting = endpoint.connect_with(config.clone(), sink.local_addr()?, "localhost")?;
        let received = tokio::time::timeout(Duration::from_secs(5), sink.recv(&mut buffer)).await??;
        // A client's first flight is two packets: only the first begins a connection, and the second may follow.
        made.push(buffer[..received.min(1200)].to_vec());
        drop(connecting);
        while sink.try_recv(&mut buffer).is_ok() {}
    }
    Ok(made)
}

/// What attackers do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Means {
    /// Garbage and first packets from many ports.
    Flood,
    /// Announcing much, and sending it byte by byte.
    Slow,
    /// Ten thousand streams.
    Streams,
    /// Announcing more bytes than allowed.
    Lengths,
    /// Chunks that are not what their ids say.
    Lies,
}

impl Means {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Flood, Self::Slow, Self::Streams, Self::Lengths, Self::Lies];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flood => "flood",
            Self::Slow => "slow",
            Self::Streams => "streams",
            Self::Lengths => "lengths",
            Self::Lies => "lies",
        }
    }
}

impl FromStr for Means {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = || format!("one of {}", Self::ALL.map(Self::name).join(", "));
        Self::ALL.into_iter().find(|means| means.name() == name).with_context(known)
    }
}

/// Attacks a node by these means, or by all at once, until the process is ended. Prints a line when it has begun.
///
/// # Errors
/// When the identity cannot be read, or the first packets cannot be made.
pub async fn attack(port: u16, identity: &Path, repository: &str, only: &[Means]) -> Result<()> {
    let Credentials { identity, trust } = Credentials::load(identity)?;
    let config = client_config(&identity, &trust, Congestion::default())?;
    let packets = first_packets(&config, 256).await?;
    let id = Raw::greeted(port, config.clone()).await?.repository(repository).await?;
    let mut tasks = JoinSet::new();
    let mut packets = Some(packets);
    for means in if only.is_empty() { &Means::ALL } else { only } {
        let config = config.clone();
        match means {
            Means::Flood => {
                let packets = packets.take().context("one flood is enough")?;
                tasks.spawn_blocking(move || flood(port, &packets));
            }
            Means::Slow => (0..4).for_each(|_| {
                tasks.spawn(again(config.clone(), move |config| slow(port, config, id)));
            }),
            Means::Streams => {
                tasks.spawn(again(config, move |config| many_streams(port, config)));
            }
            Means::Lengths => {
                tasks.spawn(again(config, move |config| lengths(port, config)));
            }
            Means::Lies => {
                tasks.spawn(again(config, move |config| lies(port, config, id)));
            }
        }
    }
    println!("attacking");
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    Ok(())
}

/// Repeats `work` for ever: if the node ends the connection, the attacker connects again.
async fn again<F: Future<Output = Result<()>>>(config: ClientConfig, work: impl Fn(ClientConfig) -> F) {
    loop {
        if work(config.clone()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Garbage and first packets in turn, from many ports, as much as fits into a link of 1 Gbit/s. A node with such a link
/// cannot receive more.
fn flood(port: u16, packets: &[Vec<u8>]) {
    let sockets: Vec<UdpSocket> = (0..64).filter_map(|_| UdpSocket::bind("127.0.0.1:0").ok()).collect();
    let noise: Vec<Vec<u8>> = (0..1024).map(garbage).collect();
    let mut free_at = Instant::now();
    for number in 0.. {
        let socket = &sockets[number % sockets.len()];
        for packet in [&noise[number % noise.len()], &packets[number / sockets.len() % packets.len()]] {
            let _ = socket.send_to(packet, ("127.0.0.1", port));
            free_at += FLOOD_BYTE * u32::try_from(packet.len() + HEADERS_BYTES).expect("packets are short");
        }
        let now = Instant::now();
        if free_at > now + FLOOD_AHEAD {
            std::thread::sleep(free_at - now);
        }
        // What was not sent in time is not made up for.
        free_at = free_at.max(now);
    }
}

/// Announces as many bytes as it may, and then sends one byte each second.
async fn slow(port: u16, config: ClientConfig, repository: RepositoryId) -> Result<()> {
    let raw = Raw::greeted(port, config).await?;
    let session = raw.begin(repository, &World::system()).await?;
    let head = encode(&Request::Put(Put { session, lengths: vec![19 << 20] }), 20 << 20, false)?;
    let mut streams = Vec::new();
    for _ in 0..STREAMS_MAX {
        streams.push(raw.open(&head).await?);
    }
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        for (to, _) in &mut streams {
            to.write_all(&[0]).await?;
        }
    }
}

/// Opens ten thousand streams, each with half a header, as many at the same time as the node allows.
async fn many_streams(port: u16, config: ClientConfig) -> Result<()> {
    let raw = Raw::greeted(port, config).await?;
    for _ in 0..10_000 / STREAMS_MAX {
        let mut streams = Vec::new();
        for _ in 0..STREAMS_MAX {
            streams.push(raw.open(b"WLM1\x22\0").await?);
        }
        // Dropped, they end inside the header.
    }
    Ok(())
}

async fn lengths(port: u16, config: ClientConfig) -> Result<()> {
    let raw = Raw::greeted(port, config).await?;
    loop {
        for bytes in huge_lengths() {
            raw.tell(&bytes).await?;
        }
    }
}

async fn lies(port: u16, config: ClientConfig, repository: RepositoryId) -> Result<()> {
    let raw = Raw::greeted(port, config).await?;
    loop {
        let (request, bulk) = lie(raw.begin(repository, &World::system()).await?);
        raw.ask(&request, &bulk).await?;
    }
}

/// How long a byte takes on a link of 1 Gbit/s.
const FLOOD_BYTE: Duration = Duration::from_nanos(8);
/// Ethernet with its gaps, IPv4 and UDP.
const HEADERS_BYTES: usize = 66;
/// The sender sleeps only when it is this far ahead, because shorter sleeps take longer than they should.
const FLOOD_AHEAD: Duration = Duration::from_millis(1);
/// Streams that a node lets a connection have at once.
pub const STREAMS_MAX: usize = 64;
