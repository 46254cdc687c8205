//! The memory of a storage node as it ships, while several holders have it hold everything that they can.

use bytes::Bytes;
use mover::{RepositoryId, SessionId, World};
use quinn::{ClientConfig, Connection, TransportConfig, VarInt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use windlass_bench::attacker::{Raw, STREAMS_MAX};
use windlass_bench::node::Node;
use windlass_bench::tools::Places;
use windlass_tests::program::beside;
use wire::identity::Credentials;
use wire::message::{MissingIn, Put, ReadIn, Reply, Request, SessionRef};
use wire::{Congestion, client_config, encode};

/// What a node may take, with one repository.
const NODE_BYTES_MAX: u64 = 512 << 20;

/// Somebody with an identity who wants everything: half of the connections for puts that never end, half for answers
/// that are never taken.
async fn takes_all(port: u16, identity: &Path, world: World) -> Vec<Raw> {
    let Credentials { identity, trust } = Credentials::load(identity).unwrap();
    let config = client_config(&identity, &trust, Congestion::default()).unwrap();
    let mut held = Vec::new();
    let first = Raw::greeted(port, config.clone()).await.unwrap();
    let repository = first.repository("main").await.unwrap();
    let known = remembered(&first, repository, &world).await;
    held.push(first);
    // Until the node says that these are enough. All are there before any asks for much: from then on each request waits
    // for a turn that another one holds.
    let mut wishes = Vec::new();
    while let Ok(raw) = Raw::greeted(port, reading_little(&config)).await {
        wishes.push(if held.len().is_multiple_of(2) {
            put(raw.begin(repository, &world).await.unwrap())
        } else {
            get(reader(&raw, repository).await, &known)
        });
        held.push(raw);
        assert!(held.len() < 1000, "there is a limit");
    }
    for (raw, wish) in held[1..].iter().zip(wishes) {
        (0..STREAMS_MAX - 4).for_each(|_| drop(tokio::spawn(ask(raw.connection.clone(), wish.clone()))));
    }
    held
}

/// Has sessions remember questions, and stores chunks to be asked for. Gives ids.
async fn remembered(raw: &Raw, repository: RepositoryId, world: &World) -> Vec<u8> {
    let session = raw.begin(repository, world).await.unwrap();
    let mut ids = Vec::new();
    for number in 0..120_u64 {
        let mut some = vec![0; 4096 * 32];
        blake3::Hasher::new()
            .update(&world.random_bytes::<16>())
            .update(&number.to_le_bytes())
            .finalize_xof()
            .fill(&mut some);
        let told = raw.ask(&Request::Missing(MissingIn { session, kind: 1 }), &some).await.unwrap();
        assert!(matches!(told.0, Reply::Presences(())), "{told:?}");
        if ids.len() < 65_536 * 32 {
            ids.extend(some);
        }
    }
    ids
}

/// What is asked, and whether that is all of it.
type Wish = (Vec<Bytes>, bool);

/// A put without its last megabyte.
fn put(session: SessionId) -> Wish {
    let head = encode(&Request::Put(Put { session, lengths: vec![(10 << 20) - 32] }), 10 << 20, false).unwrap();
    let rest = Bytes::from_static(&[0; 1 << 20]);
    (std::iter::once(head).chain(std::iter::repeat_n(rest, 9)).collect(), false)
}

/// A question for as many chunks as one may have.
fn get(session: SessionId, ids: &[u8]) -> Wish {
    let head = encode(&Request::Get(SessionRef { session }), ids.len() as u64, false).unwrap();
    (vec![head, ids.to_vec().into()], true)
}

async fn reader(raw: &Raw, repository: RepositoryId) -> SessionId {
    match raw.ask(&Request::Read(ReadIn { repository, points: Vec::new() }), &[]).await.unwrap() {
        (Reply::Session(of), _) => of.session,
        (reply, _) => panic!("{reply:?}"),
    }
}

/// Says it, and takes no answer for as long as the connection lasts.
async fn ask(connection: Connection, (mut bytes, whole): Wish) {
    let Ok((mut to, from)) = connection.open_bi().await else { return };
    let _ = to.write_all_chunks(&mut bytes).await;
    if whole {
        let _ = to.finish();
    }
    connection.closed().await;
    drop((to, from));
}

fn reading_little(config: &ClientConfig) -> ClientConfig {
    let mut transport = TransportConfig::default();
    transport.receive_window(VarInt::from_u32(1 << 16)).keep_alive_interval(Some(Duration::from_secs(1)));
    let mut config = config.clone();
    config.transport_config(Arc::new(transport));
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn three_holders_that_take_everything() {
    let folder = tempfile::tempdir().unwrap();
    let places = Places { work: folder.path().to_owned(), windlass: beside("windlass") };
    let node = Node::start(&places).unwrap();
    let mut disk = vec![0; 32 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut disk);
    std::fs::write(places.path("disk.raw"), disk).unwrap();
    let quiet = node.peak_bytes().unwrap();

    let world = World::system();
    let mut attackers = tokio::task::JoinSet::new();
    for name in ["a", "b", "c"] {
        let identity = node.issue(&places, "proxy", name).unwrap();
        let (port, world) = (node.port(), world.clone());
        attackers.spawn(async move { takes_all(port, &identity, world).await });
    }
    let mut held = Vec::new();
    while let Some(some) = attackers.join_next().await {
        held.extend(some.unwrap());
    }
    assert!(held.len() > 100, "{} connections", held.len());
    // They have what they get; everything goes on for as long as memory grows.
    let (mut peak, mut grew) = (0, Instant::now());
    let began = Instant::now();
    while grew.elapsed() < Duration::from_secs(3) && began.elapsed() < Duration::from_secs(30) {
        let now = node.peak_bytes().unwrap();
        if now > peak + (1 << 20) {
            (peak, grew) = (now, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Somebody else gets a backup through between them.
    let backup = node.windlass(&places, &["backup", "--machine", "web", "disk.raw"]);
    let backup = tokio::process::Command::from(backup).output();
    let ended = tokio::time::timeout(Duration::from_secs(90), backup).await.expect("somebody else gets on").unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let peak = node.peak_bytes().unwrap();
    println!("{} connections held; the node: {} MiB quiet, {} MiB at its peak", held.len(), quiet >> 20, peak >> 20);
    assert!(peak <= NODE_BYTES_MAX, "{} MiB", peak >> 20);
    assert!(peak > quiet + (64 << 20), "they did take what they could: {} MiB", peak >> 20);
}
