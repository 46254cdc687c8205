//! Attackers: who has no identity, or one that does not suffice, and who has one and misbehaves. They are refused, what
//! they may take is bounded, and others work meanwhile.

use chunker::{ChunkId, ChunkKind, Compression, Compressor, DomainKeys, GRID_BYTES};
use mover::{
    Begin, Holder, JobId, Origin, PointChange, PointFilter, PointId, Presence, Repository, RepositoryId, Role,
    SessionId, SweepOptions, Timestamp, Verification, World, WriteSession,
};
use quinn::{ClientConfig, Connection, ConnectionError, ReadError, TransportConfig, VarInt};
use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use store::Local;
use windlass_bench::attacker::{Raw, STREAMS_MAX, first_packets, first_reply, garbage, huge_lengths, lie};
use windlass_tests::conformance::{Fixture, InDirectory};

use wire::identity::{KeyClaim, Wanted};
use wire::message::*;
use wire::{ALPN, Congestion, Node, Remote, access, client_config, encode};

use windlass_tests::node::{Running, Site};

const NOT_AUTHORISED: u16 = 4;
const INTEGRITY: u16 = 5;
const TRANSPORT: u16 = 17;

/// A node with an empty repository in a directory, and somebody who works on it while others attack.
struct Field {
    world: World,
    site: Site,
    /// Lives as long.
    _folder: InDirectory,
    repository: Local,
    running: Running,
}

impl Field {
    async fn new() -> Self {
        Self::with(|node| node).await
    }

    async fn with(change: impl FnOnce(Node<Local>) -> Node<Local>) -> Self {
        let folder = InDirectory::fresh().await;
        let (world, repository) = (folder.world(), folder.open().await.unwrap());
        let site = Site::new(&world);
        let node = change(Node::new(world.clone()).with("repo", repository.clone()));
        let running = Running::serve(&site, node, &world);
        Self { world, site, _folder: folder, repository, running }
    }

    fn config(&self, role: Role, name: &str) -> ClientConfig {
        let identity = self.site.identity(role, name, &self.world);
        client_config(&identity, &self.site.trust(), Congestion::default()).unwrap()
    }

    async fn raw(&self, role: Role, name: &str) -> Raw {
        Raw::greeted(self.running.port, self.config(role, name)).await.unwrap()
    }

    fn repository(&self) -> RepositoryId {
        self.repository.config().id
    }

    /// Puts chunks that nobody has, and finds them there, soon.
    async fn somebody_works(&self) {
        let work = async {
            let good = self.site.identity(Role::Proxy, "good", &self.world);
            let remote = self.running.connect_as(&good, &self.site.trust(), "repo").await.unwrap();
            self.works(&remote).await;
            remote.close().await;
        };
        tokio::time::timeout(SOON, work).await.expect("somebody else gets on meanwhile");
    }

    async fn works(&self, remote: &Remote) {
        let (session, _) = remote.begin(begin(&self.world)).await.unwrap();
        let chunks = chunks(self, 64);
        let ids: Vec<ChunkId> = chunks.iter().map(|(id, _)| *id).collect();
        session.put(chunks).await.unwrap();
        session.flush().await.unwrap();
        let found = session.missing(ChunkKind::Data, &ids).await.unwrap();
        assert!(found.iter().all(|it| *it != Presence::Missing));
        session.abandon().await.unwrap();
    }
}

fn begin(world: &World) -> Begin {
    Begin { point: PointId::random(world), parents: Vec::new(), holder: None, verification: Verification::Decode }
}

/// So many chunks of noise.
fn chunks(field: &Field, count: usize) -> Vec<(ChunkId, chunker::Blob)> {
    let keys = DomainKeys::new(&field.repository.config().domain);
    let mut compressor = Compressor::new(Compression::default());
    let mut one = || {
        let mut plain = vec![0; GRID_BYTES as usize];
        blake3::Hasher::new().update(&field.world.random_bytes::<16>()).finalize_xof().fill(&mut plain);
        (keys.id(ChunkKind::Data, &plain), compressor.compress(ChunkKind::Data, &plain))
    };
    (0..count).map(|_| one()).collect()
}

fn code((reply, _): (Reply, Vec<u8>)) -> Option<u16> {
    match reply {
        Reply::Failed(failed) => Some(failed.code),
        _ => None,
    }
}

/// Who shows no certificate gets nothing; how others are refused is in `remote.rs`.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate() {
    let field = Field::new().await;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(field.site.trust().roots().unwrap());
    let mut tls = tls.with_no_client_auth();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let config = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let error = Raw::greeted(field.running.port, ClientConfig::new(Arc::new(config))).await.unwrap_err();
    let reason = format!("{error:#}");
    assert!(reason.contains("certificate"), "{reason}");
    field.somebody_works().await;
}

/// A request of each type, and what stands beside it.
#[expect(clippy::too_many_lines, reason = "one of each request")]
fn sample(code: u16, repository: RepositoryId, session: SessionId, world: &World) -> (Request, Vec<u8>) {
    let of = SessionRef { session };
    let ids = vec![7; 64];
    let origin = Origin { repository, commit_time: Timestamp(6), number: 4, seen: None };
    let bare = |request| (request, Vec::new());
    let id = PointId([3; 16]);
    let claim = KeyClaim { point: vec![4; 65], signature: vec![5; 70] };
    match code {
        0x0001 => bare(Request::Hello(Hello {
            versions: (wire::VERSION, wire::VERSION),
            features: 0,
            program: "test".into(),
        })),
        0x0002 => bare(Request::Open(Open { name: "repo".into(), machine: None })),
        0x0003 => {
            let holder = Holder::new(Role::Admin, "host7".parse().unwrap());
            let wanted = Wanted { holder, hosts: Vec::new() };
            bare(Request::Token(TokenIn { hash: [6; 32], wanted, valid_s: 60 }))
        }
        0x0004 => bare(Request::Join(JoinIn { secret: [6; 32], claim })),
        0x0005 => bare(Request::Renew(RenewIn { claim })),
        0x0010 => bare(Request::List(List { repository, machine: None, forgotten: false })),
        0x0011 => bare(Request::Stats(RepositoryRef { repository })),
        0x0012 => bare(Request::LogHead(RepositoryRef { repository })),
        0x0013 => {
            let seen = mover::LogHead { sequence: 1, hash: [2; 32] };
            bare(Request::HasBeen(HasBeen { repository, seen }))
        }
        0x0014 => bare(Request::Peer(PeerOf { repository, peer: RepositoryId([9; 16]) })),
        0x0015 => bare(Request::ChangePoints(ChangeIn { repository, change: PointChange::Pin, points: vec![id] })),
        0x0016 => bare(Request::WantedChunks(WantedOf { repository, after: None })),
        0x0017 => bare(Request::Log(LogAfter { repository, after: 0 })),
        0x0018 => {
            let (machine, origin) = (mover::MachineId([3; 16]), repository);
            bare(Request::MoveMachine(MoveIn { repository, machine, origin, owner: None }))
        }
        0x0019 => bare(Request::GivenUp(RepositoryRef { repository })),
        0x001a => bare(Request::Annotate(AnnotateIn { repository, point: id, labels: Vec::new() })),
        0x0020 => bare(Request::Begin(BeginIn { repository, begin: begin(world) })),
        0x0021 => (Request::Missing(MissingIn { session, kind: ChunkKind::Data.code() }), ids),
        0x0022 => lie(session),
        0x0023 => bare(Request::Flush(of)),
        0x0024 => {
            let drafts = vec![WireDraft { manifest_bytes: 0, origin: Some(origin), labels: Default::default() }];
            bare(Request::Commit(CommitIn { session, drafts }))
        }
        0x0025 => bare(Request::Abandon(of)),
        0x0030 => bare(Request::Read(ReadIn { repository, points: Vec::new() })),
        0x0031 => bare(Request::Manifest(ManifestOf { session, point: PointId([3; 16]) })),
        0x0032 => (Request::Get(of), ids),
        0x0033 => (Request::GetVerified(of), ids),
        0x0034 => bare(Request::Close(of)),
        0x0040 => bare(Request::Attend(attend())),
        0x0041 => bare(Request::Run(Run {
            proxy: Some("host7".parse().unwrap()),
            label: None,
            again: false,
            job: job(JobId([3; 16])),
        })),
        0x0042 => bare(Request::Cancel(JobOf { job: JobId([3; 16]) })),
        0x0043 => bare(Request::Report(Report { job: JobId([3; 16]), event: Event::Warning("it lies".into()) })),
        0x0044 => bare(Request::Proxies(())),
        0x0045 => bare(Request::Jobs(())),
        0x0046 => bare(Request::Follow(JobOf { job: JobId([3; 16]) })),
        0x0050 => {
            let from = Place { host: "localhost".into(), port: 1, name: "repo".into(), congestion: 0 };
            bare(Request::Pull(PullIn { repository, from, points: vec![id], verification: Verification::Decode }))
        }
        0x0051 => bare(Request::Verify(VerifyIn {
            repository,
            depth: 0,
            percent: 0,
            points: vec![id],
            outdated_after_ms: None,
            rate: None,
        })),
        0x0052 => bare(Request::RebuildIndex(RepositoryRef { repository })),
        0x0053 => bare(Request::Sweep(SweepIn { repository, options: SweepOptions::default() })),
        _ => panic!("request {code:#06x} has no sample here"),
    }
}

fn attend() -> Attend {
    Attend { instance: [7; 16], jobs: Vec::new(), labels: Vec::new(), machines: Vec::new() }
}

fn job(id: JobId) -> Job {
    let (machine, repository) = ("web".parse().unwrap(), "repo".parse().unwrap());
    Job { id, machine, repository, kind: mover::JobKind::Backup.code(), body: Vec::new(), extensions: Vec::new() }
}

/// Each request of each role over the real wire. What a role may do is in the table of `access`, which the test of the
/// document holds against PROTOCOL.md; here it is what the node does.
#[tokio::test(flavor = "multi_thread")]
async fn every_request_of_a_wrong_role_is_refused() {
    let field = Field::new().await;
    let mut refused = BTreeSet::new();
    for role in Role::ALL {
        let raw = field.raw(role, "somebody").await;
        for type_code in Request::CODES {
            let (request, bulk) = sample(*type_code, field.repository(), SessionId([2; 16]), &field.world);
            let told = code(raw.ask(&request, &bulk).await.unwrap()) == Some(NOT_AUTHORISED);
            assert_eq!(told, !access::allows(role, &request), "{role:?} {type_code:#06x}");
            if told {
                refused.insert((format!("{role:?}"), *type_code));
            }
        }
    }
    assert!(refused.contains(&("Proxy".to_owned(), 0x0024)) && refused.contains(&("Node".to_owned(), 0x0022)));
    assert!(field.repository.list(&PointFilter::default()).await.unwrap().is_empty(), "nothing was done");
    field.somebody_works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_streams_of_one_connection() {
    let field = Field::new().await;
    let raw = field.raw(Role::Proxy, "attacker").await;
    let mut open = Vec::new();
    while let Ok(opened) = tokio::time::timeout(Duration::from_millis(300), raw.open(b"WLM1\x22\0")).await {
        open.push(opened.unwrap());
        assert!(open.len() <= STREAMS_MAX, "there is a limit");
    }
    assert!(open.len() >= STREAMS_MAX - 1, "hello may count as one for a moment: {}", open.len());
    field.somebody_works().await;
    // One after another there may be any number: each ends inside its header, and the next takes its place.
    drop(open);
    let storm = async {
        let mut last = std::collections::VecDeque::new();
        for _ in 0..10_000 {
            last.push_back(raw.open(b"WLM1\x22\0").await.unwrap());
            // Places are given back in eighths.
            if last.len() == STREAMS_MAX / 2 {
                last.pop_front();
            }
        }
    };
    let both = async { tokio::join!(storm, field.somebody_works()) };
    tokio::time::timeout(SOON * 2, both).await.expect("the storm passes");
    assert!(raw.connection.close_reason().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_lengths_everywhere() {
    let field = Field::new().await;
    let raw = field.raw(Role::Admin, "attacker").await;
    for bytes in huge_lengths() {
        assert_eq!(code(raw.tell(&bytes).await.unwrap()), Some(TRANSPORT), "{bytes:?}");
    }
    let session = raw.begin(field.repository(), &field.world).await.unwrap();
    let (ids, put) = (vec![0; 32 * 4096], |lengths: Vec<u32>| Request::Put(Put { session, lengths }));
    let drafts = vec![WireDraft { manifest_bytes: u32::MAX, origin: None, labels: Default::default() }; 2];
    for (request, bulk) in [
        // Lengths whose sum is over 32 bits, over what there is, and none for what there is.
        (put(vec![u32::MAX; 4096]), &ids[..]),
        (put(vec![u32::MAX]), &ids[..32]),
        (put(Vec::new()), &ids[..1]),
        (Request::Commit(CommitIn { session, drafts }), &ids[..100]),
        (Request::Missing(MissingIn { session, kind: ChunkKind::Data.code() }), &ids[..33]),
        (Request::Get(SessionRef { session }), &ids[..31]),
    ] {
        assert_eq!(code(raw.ask(&request, bulk).await.unwrap()), Some(TRANSPORT), "{request:?}");
    }
    // A list that says it has 2^64 - 1 items, in each request that has one.
    for (request, at) in [
        (put(Vec::new()), 16),
        (Request::Read(ReadIn { repository: field.repository(), points: Vec::new() }), 16),
        (Request::Commit(CommitIn { session, drafts: Vec::new() }), 16),
        (Request::Open(Open { name: String::new(), machine: None }), 0),
    ] {
        let mut bytes = encode(&request, 0, false).unwrap().to_vec();
        bytes[16 + at..16 + at + 8].fill(0xff);
        assert_eq!(code(raw.tell(&bytes).await.unwrap()), Some(TRANSPORT), "{request:?}");
    }
    // The session is as it was, and so is everybody else.
    let flushed = raw.ask(&Request::Flush(SessionRef { session }), &[]).await.unwrap();
    assert!(matches!(flushed.0, Reply::Stored(_)));
    field.somebody_works().await;
}

/// Garbage, and first packets of connections that never go on, from many ports.
#[tokio::test(flavor = "multi_thread")]
async fn floods_from_many_ports() {
    let field = Field::new().await;
    let packets = first_packets(&field.config(Role::Proxy, "attacker"), 300).await.unwrap();
    let (port, ended) = (field.running.port, Arc::new(AtomicBool::new(false)));
    let stop = ended.clone();
    let flood = std::thread::spawn(move || {
        let sockets: Vec<UdpSocket> = (0..300).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let mut sent = 0;
        while !stop.load(Ordering::Relaxed) || sent < 20_000 {
            let socket = &sockets[sent % sockets.len()];
            let _ = socket.send_to(&packets[sent % packets.len()], ("127.0.0.1", port));
            let _ = socket.send_to(&garbage(sent as u64), ("127.0.0.1", port));
            sent += 1;
        }
        sent
    });
    for _ in 0..3 {
        field.somebody_works().await;
    }
    ended.store(true, Ordering::Relaxed);
    assert!(flood.join().unwrap() >= 20_000);
    field.somebody_works().await;
}

/// Handshakes of clients that have proven their address and then hear nothing more: a relay lets pass the packet that asks
/// for the proof, and no other.
#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_stop_half_way_keep_nobody_out() {
    let field = Field::new().await;
    let config = field.config(Role::Proxy, "attacker");
    let mut tasks = tokio::task::JoinSet::new();
    let mut connecting = Vec::new();
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let node = SocketAddr::from(([127, 0, 0, 1], field.running.port));
    let proven = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    for _ in 0..400 {
        let (near, far) = (bound().await, bound().await);
        connecting.push(endpoint.connect_with(config.clone(), near.local_addr().unwrap(), "localhost").unwrap());
        let proven = proven.clone();
        tasks.spawn(async move {
            let (mut client, mut there, mut back) = (None, vec![0; 65_536], vec![0; 65_536]);
            loop {
                tokio::select! {
                    Ok((length, from)) = near.recv_from(&mut there) => {
                        client = Some(from);
                        for packet in there[..length].chunks(1200) {
                            let _ = far.send_to(packet, node).await;
                        }
                    }
                    Ok(length) = far.recv(&mut back) => {
                        let is_retry = back[0] & 0xf0 == 0xf0;
                        if let Some(client) = client.filter(|_| is_retry) {
                            proven.fetch_add(1, Ordering::Relaxed);
                            let _ = near.send_to(&back[..length], client).await;
                        }
                    }
                }
            }
        });
    }
    wait_until("addresses were proven", || proven.load(Ordering::Relaxed) > 256).await;
    field.somebody_works().await;
}

async fn bound() -> tokio::net::UdpSocket {
    tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap()
}

async fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < SOON, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Who sends a byte now and then, for requests that take all the room it may have, over many connections.
#[tokio::test(flavor = "multi_thread")]
async fn slow_senders_do_not_hold_room_for_ever() {
    let patience = Duration::from_millis(500);
    let field = Field::with(|node| node.patient_for(patience)).await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        let raw = field.raw(Role::Proxy, "attacker").await;
        let session = raw.begin(field.repository(), &field.world).await.unwrap();
        let head = encode(&Request::Put(Put { session, lengths: vec![19 << 20] }), 20 << 20, false).unwrap();
        for _ in 0..8 {
            streams.push(raw.open(&head).await.unwrap());
        }
        // Dropped, it would be closed.
        std::mem::forget(raw);
    }
    field.somebody_works().await;
    let began = Instant::now();
    let slow = streams.into_iter().map(|(mut to, mut from)| async move {
        let trickle = async {
            // Always in time if only silence counted.
            while to.write_all(&[0]).await.is_ok() {
                tokio::time::sleep(patience / 10).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            reply = first_reply(&mut from) => code(reply.unwrap()),
            () = trickle => unreachable!(),
        }
    });
    let told = tokio::time::timeout(SOON, futures::future::join_all(slow)).await.expect("they are told");
    assert!(began.elapsed() < patience * 8, "{:?}", began.elapsed());
    assert!(told.iter().all(|code| matches!(code, Some(TRANSPORT | NO_ROOM))), "{told:?}");
    assert!(
        told.contains(&Some(TRANSPORT)) && told.contains(&Some(NO_ROOM)),
        "some had room, others had none: {told:?}"
    );
    field.somebody_works().await;
}

/// A connection of somebody who takes nearly nothing of what he asks for, and a long answer that has begun.
async fn reading_slowly(field: &Field, name: &str, mebibytes: usize) -> (Connection, quinn::RecvStream) {
    let raw = field.raw(Role::Proxy, "writer").await;
    let session = raw.begin(field.repository(), &field.world).await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..mebibytes / 8 {
        let batch = chunks(field, 128);
        let lengths = batch.iter().map(|(_, blob)| blob.bytes().len() as u32).collect();
        let own: Vec<u8> = batch.iter().flat_map(|(id, _)| id.0).collect();
        ids.extend(&own);
        let bulk = [own, batch.iter().flat_map(|(_, blob)| blob.bytes().to_vec()).collect()].concat();
        let put = raw.ask(&Request::Put(Put { session, lengths }), &bulk).await.unwrap();
        assert!(matches!(put.0, Reply::Stored(_)), "{put:?}");
    }
    raw.ask(&Request::Flush(SessionRef { session }), &[]).await.unwrap();
    let mut config = field.config(Role::Node, name);
    let mut transport = TransportConfig::default();
    transport.receive_window(VarInt::from_u32(1 << 16)).keep_alive_interval(Some(Duration::from_secs(1)));
    config.transport_config(Arc::new(transport));
    let slow = Raw::greeted(field.running.port, config).await.unwrap();
    let read = Request::Read(ReadIn { repository: field.repository(), points: Vec::new() });
    let (Reply::Session(of), _) = slow.ask(&read, &[]).await.unwrap() else { panic!("a session") };
    // Of this one all comes on the stream of the request.
    let head = encode(&Request::GetVerified(of), ids.len() as u64, false).unwrap();
    let (mut to, mut from) = slow.open(&[&head[..], &ids].concat()).await.unwrap();
    to.finish().unwrap();
    from.read_exact(&mut [0; 16]).await.unwrap();
    let connection = slow.connection.clone();
    std::mem::forget(slow);
    (connection, from)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_takes_is_given_up() {
    let field = Field::with(|node| node.patient_for(Duration::from_millis(300))).await;
    // More than a window of it, and as much as fits into one: then all was written, and waits to be taken.
    for (mebibytes, pause_ms) in [(48, 1500), (16, 4500)] {
        let (connection, mut from) = reading_slowly(&field, "slow", mebibytes).await;
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        let ended = loop {
            match tokio::time::timeout(SOON, from.read_chunk(1 << 20, true)).await.expect("it ends soon") {
                Ok(Some(_)) => {}
                ended => break ended,
            }
        };
        assert!(matches!(ended, Err(ReadError::Reset(_))), "{mebibytes} MiB: {ended:?}");
        assert!(connection.close_reason().is_none(), "it may ask again");
    }
    field.somebody_works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_answer_ends_when_its_holder_is_shut_out() {
    let shut_out = Arc::new(AtomicBool::new(false));
    let told = shut_out.clone();
    let denied = move |holder: &Holder| holder.name.as_str() == "stolen" && told.load(Ordering::Relaxed);
    let field = Field::with(|node| node.denying(denied)).await;
    let (connection, mut from) = reading_slowly(&field, "stolen", 48).await;
    shut_out.store(true, Ordering::Relaxed);
    let reason = tokio::time::timeout(Duration::from_secs(3), connection.closed()).await.expect("it ends soon");
    let ConnectionError::ApplicationClosed(close) = &reason else { panic!("{reason:?}") };
    assert!(close.error_code == VarInt::from_u32(1) && close.reason.ends_with(b"revoked"), "{reason:?}");
    while let Ok(some) = from.read_chunk(1 << 20, true).await {
        assert!(some.is_some(), "it broke off");
    }
    field.somebody_works().await;
}

/// Among good chunks one that is not what its id says.
#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_is_not_what_its_id_says_ends_the_session() {
    let field = Field::new().await;
    let good = field.site.identity(Role::Proxy, "good", &field.world);
    let remote = field.running.connect_as(&good, &field.site.trust(), "repo").await.unwrap();
    let (other, _) = remote.begin(begin(&field.world)).await.unwrap();

    let raw = field.raw(Role::Proxy, "liar").await;
    let session = raw.begin(field.repository(), &field.world).await.unwrap();
    let (id, blob) = chunks(&field, 1).remove(0);
    let (_, lying) = chunks(&field, 1).remove(0);
    let claimed = ChunkId([7; 32]);
    let lengths = vec![blob.bytes().len() as u32, lying.bytes().len() as u32];
    let bulk = [&id.0, &claimed.0, &blob.bytes()[..], &lying.bytes()[..]].concat();
    let put = Request::Put(Put { session, lengths });
    assert_eq!(code(raw.ask(&put, &bulk).await.unwrap()), Some(INTEGRITY));
    for request in [Request::Flush(SessionRef { session }), Request::Abandon(SessionRef { session }), put] {
        let bulk = if matches!(request, Request::Put(_)) { &bulk[..] } else { &[] };
        assert_eq!(code(raw.ask(&request, bulk).await.unwrap()), Some(NO_SESSION), "{request:?}");
    }
    // A length that lies, and bytes that are no blob, end theirs too.
    let session = raw.begin(field.repository(), &field.world).await.unwrap();
    let noise = Request::Put(Put { session, lengths: vec![100] });
    assert_eq!(code(raw.ask(&noise, &[1; 132]).await.unwrap()), Some(INTEGRITY));
    assert_eq!(code(raw.ask(&Request::Flush(SessionRef { session }), &[]).await.unwrap()), Some(NO_SESSION));

    let found = other.missing(ChunkKind::Data, &[id, claimed]).await.unwrap();
    assert!(found.iter().all(|it| *it == Presence::Missing), "nothing of it was stored: {found:?}");
    let chunks = chunks(&field, 4);
    other.put(chunks).await.unwrap();
    assert_eq!(other.flush().await.unwrap().chunks, 4, "another session goes on");
}

/// A few bytes that would decode to very many: refused before they are, or decoded one after another while others work.
#[tokio::test(flavor = "multi_thread")]
async fn small_blobs_of_much_hold_nobody_up() {
    let field = Field::new().await;
    let keys = DomainKeys::new(&field.repository.config().domain);
    let zeros = |kind: ChunkKind, mebibytes: usize, seed: u8| {
        let mut plain = vec![0; mebibytes << 20];
        plain[0] = seed;
        let blob = Compressor::new(Compression::default()).compress(kind, &plain);
        assert!(blob.bytes().len() < 16 << 10, "it is a bomb");
        (keys.id(kind, &plain), blob)
    };
    let bulk = |blobs: &[(ChunkId, chunker::Blob)]| {
        let ids = blobs.iter().flat_map(|(id, _)| id.0.to_vec());
        let lengths: Vec<u32> = blobs.iter().map(|(_, blob)| blob.bytes().len() as u32).collect();
        (lengths, ids.chain(blobs.iter().flat_map(|(_, blob)| blob.bytes().to_vec())).collect::<Vec<u8>>())
    };
    let bomber = field.raw(Role::Proxy, "bomber").await;
    let many: Vec<_> = (0..40).map(|seed| zeros(ChunkKind::Manifest, 4, seed)).collect();
    // A block of a disk is 64 KiB, and a put is 32 MiB, whatever it is packed into.
    for blobs in [vec![zeros(ChunkKind::Data, 16, 0)], vec![zeros(ChunkKind::Attachment, 1, 0)], many.clone()] {
        let session = bomber.begin(field.repository(), &field.world).await.unwrap();
        let (lengths, bulk) = bulk(&blobs);
        let began = Instant::now();
        let put = Request::Put(Put { session, lengths });
        assert_eq!(code(bomber.ask(&put, &bulk).await.unwrap()), Some(INTEGRITY));
        assert!(began.elapsed() < SOON, "nothing was decoded");
    }
    // What is allowed takes its time, and no more than its turn.
    let session = bomber.begin(field.repository(), &field.world).await.unwrap();
    let puts = futures::future::join_all((0..32).map(|_| {
        let (lengths, bulk) = bulk(&many[..7]);
        let (bomber, session) = (&bomber, session);
        async move { bomber.ask(&Request::Put(Put { session, lengths }), &bulk).await }
    }));
    let (_, ()) = tokio::join!(puts, field.somebody_works());
}

/// As long as the documents allow: everything between is made for it.
#[tokio::test(flavor = "multi_thread")]
async fn the_longest_manifest_passes() {
    let field = Field::new().await;
    let good = field.site.identity(Role::Proxy, "good", &field.world);
    let remote = field.running.connect_as(&good, &field.site.trust(), "repo").await.unwrap();
    let machine = windlass_tests::fake::Machine::new(&field.world, &[4096]);
    let attachment = |number: usize| mover::NewAttachment {
        kind: "domain".parse().unwrap(),
        name: format!("{number:060000}"),
        bytes: "short".into(),
    };
    let options = mover::BackupOptions {
        attachments: (0..65).map(attachment).collect(),
        ..windlass_tests::conformance::options("wordy")
    };
    let pool = mover::Pool::new(1).unwrap();
    let progress = mover::Progress::default();
    let made = mover::backup(&remote, machine.snapshot(), &options, &pool, &field.world, &progress);
    let point = made.await.unwrap().point;
    let reader = remote.read(&[point.id]).await.unwrap();
    let manifest = mover::ReadSession::manifest(&reader, point.id).await.unwrap();
    assert!(manifest.attachments.len() == 65 && manifest.encode().len() > 3_900_000);
}

/// What proxies offer is bounded, each by itself and all together, and only administrators are told of it.
#[tokio::test(flavor = "multi_thread")]
async fn offers_without_end() {
    const USAGE: u16 = 1;
    let field = Field::new().await;
    let machine = |number: usize| OfferedMachine {
        name: format!("m{number}").parse().unwrap(),
        id: None,
        power: mover::Power::Running,
        disks: Vec::new(),
        tags: Vec::new(),
    };
    let liar = field.raw(Role::Proxy, "liar").await;
    let many = Attend { machines: (0..600).map(machine).collect(), ..attend() };
    assert_eq!(code(liar.ask(&Request::Attend(many), &[]).await.unwrap()), Some(USAGE));
    let disk = OfferedDisk { name: "d".parse().unwrap(), size: Some(u64::MAX) };
    let wide = OfferedMachine { disks: vec![disk.clone(); 65], ..machine(0) };
    let wide = Attend { machines: vec![wide], ..attend() };
    assert_eq!(code(liar.ask(&Request::Attend(wide), &[]).await.unwrap()), Some(USAGE));
    // A name that would be harmful on a terminal or in a path is none, and the message means nothing.
    let mut bytes =
        encode(&Request::Attend(Attend { machines: vec![machine(7)], ..attend() }), 0, false).unwrap().to_vec();
    let at = bytes.windows(2).position(|it| it == b"m7").unwrap();
    bytes[at] = 0x1b;
    assert_eq!(code(liar.tell(&bytes).await.unwrap()), Some(TRANSPORT));
    for at in [16 + 16, 16 + 24, 16 + 32] {
        let mut bytes = encode(&Request::Attend(attend()), 0, false).unwrap().to_vec();
        bytes[at..at + 8].fill(0xff);
        assert_eq!(code(liar.tell(&bytes).await.unwrap()), Some(TRANSPORT));
    }
    // As much as one may offer, by as many as it takes.
    let full: Vec<_> = (0..90).map(|at| OfferedMachine { disks: vec![disk.clone(); 32], ..machine(at) }).collect();
    let mut open = Vec::new();
    let refused = loop {
        let raw = field.raw(Role::Proxy, &format!("host{}", open.len())).await;
        let request = encode(&Request::Attend(Attend { machines: full.clone(), ..attend() }), 0, false).unwrap();
        let (mut to, mut from) = raw.open(&request).await.unwrap();
        to.finish().unwrap();
        match first_reply(&mut from).await.unwrap() {
            (Reply::Taken(()), _) => open.push((raw, to, from)),
            other => break code(other),
        }
        assert!(open.len() < 200, "there is a limit");
    };
    assert!(refused == Some(TRANSPORT) && open.len() > 10, "{refused:?} after {}", open.len());
    field.somebody_works().await;
}

/// Words that mean nothing inside a connection that does.
#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_streams() {
    let field = Field::new().await;
    let raw = field.raw(Role::Admin, "attacker").await;
    for number in 0..500 {
        let told = raw.tell(&garbage(number * 2 + 40)).await;
        assert!(told.map_or(true, |reply| code(reply) == Some(TRANSPORT)), "{number}");
    }
    // What comes before hello, and messages that are not alone.
    let rude = Raw::connect(field.running.port, field.config(Role::Admin, "rude")).await.unwrap();
    let stats = Request::Stats(RepositoryRef { repository: field.repository() });
    assert_eq!(code(rude.ask(&stats, &[]).await.unwrap()), Some(TRANSPORT));
    assert_eq!(code(raw.tell(&encode(&stats, 0, true).unwrap()).await.unwrap()), Some(TRANSPORT));
    field.somebody_works().await;
}

/// For what goes on while attackers are at work, on a busy machine.
const SOON: Duration = Duration::from_secs(20);
