//! Across the wire: who is refused, and what survives.

use chunker::{ChunkKind, Compression, DomainKeys};
use mover::{
    Begin, Clock, Error, ErrorKind, Holder, Mem, PointFilter, PointId, Presence, Repository, Role, SystemRandom,
    Timestamp, Verification, World, WriteSession, with_compressor,
};
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;
use windlass_tests::node::{Running, Site};
use wire::identity::{Authority, Credentials, Registry};
use wire::{Congestion, Node, Peer, Remote, client, client_config};

fn begin(point: PointId) -> Begin {
    Begin { point, parents: Vec::new(), holder: None, verification: Verification::Decode }
}

struct At(Timestamp);

impl Clock for At {
    fn now(&self) -> Timestamp {
        self.0
    }
}

/// A world whose clock stands so many days away from now.
fn days_away(days: i64) -> World {
    let now = World::system().now().0 + days * 86_400_000_000_000;
    World::new(Arc::new(At(Timestamp(now))), Arc::new(SystemRandom))
}

async fn kind(connecting: impl Future<Output = Result<Remote, Error>>) -> (ErrorKind, String) {
    let error = tokio::time::timeout(Duration::from_secs(8), connecting).await.expect("it is told soon").unwrap_err();
    (error.kind(), error.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_of_the_site_is_refused() {
    let world = World::system();
    let (site, other) = (Site::new(&world), Site::new(&world));
    let node = Node::new(world.clone()).with("repo", Mem::new(&world));
    let node = node.denying(|holder| holder.name.as_str() == "stolen");
    let running = Running::serve(&site, node, &world);
    let good = site.identity(Role::Proxy, "proxy", &world);
    running.connect_as(&good, &site.trust(), "repo").await.unwrap();

    let refused = ErrorKind::NotAuthorised;
    let stranger = other.identity(Role::Admin, "admin", &world);
    assert_eq!(kind(running.connect_as(&stranger, &site.trust(), "repo")).await.0, refused, "of another site");
    assert_eq!(kind(running.connect_as(&good, &other.trust(), "repo")).await.0, refused, "a node of another site");
    for (days, why) in [(-10, "expired"), (10, "not valid yet")] {
        let identity = site.identity(Role::Proxy, "proxy", &days_away(days));
        assert_eq!(kind(running.connect_as(&identity, &site.trust(), "repo")).await.0, refused, "{why}");
    }
    let revoked = site.identity(Role::Proxy, "stolen", &world);
    let (found, told) = kind(running.connect_as(&revoked, &site.trust(), "repo")).await;
    assert!(found == refused && told.contains("revoked"), "{told}");
    // A certificate that is a client's only does not make a node.
    let config = client_config(&good, &site.trust(), Congestion::default()).unwrap();
    let elsewhere = Remote::connect(client().unwrap(), Peer::new("127.0.0.1", running.port, config), "repo", None);
    assert_eq!(kind(elsewhere).await.0, refused, "the node's certificate does not name this address");
    let (found, told) = kind(running.connect_as(&good, &site.trust(), "nothing")).await;
    assert!(found == ErrorKind::NotFound && told.contains("nothing"), "{told}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_may_read_and_not_write() {
    let world = World::system();
    let site = Site::new(&world);
    let running = Running::start(&site, "repo", Mem::new(&world), &world);
    let pulling = site.identity(Role::Node, "other", &world);
    let remote = running.connect_as(&pulling, &site.trust(), "repo").await.unwrap();
    assert!(remote.list(&PointFilter::default()).await.unwrap().is_empty());
    let (session, _) = remote.begin(begin(PointId::random(&world))).await.unwrap();
    let error = session.flush().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotAuthorised);
    assert!(error.to_string().contains("node other"), "{error}");
    running.stop().await;
}

/// Nobody answers, or somebody who speaks something else.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_address_is_told_and_not_waited_for_long() {
    let world = World::system();
    let site = Site::new(&world);
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let identity = site.identity(Role::Admin, "admin", &world);
    let config = client_config(&identity, &site.trust(), Congestion::default()).unwrap();
    let peer = Peer {
        patience: Duration::from_millis(300),
        ..Peer::new("localhost", silent.local_addr().unwrap().port(), config)
    };
    let error = Remote::connect(client().unwrap(), peer, "repo", None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transport, "{error}");
    assert!(error.remedy().is_some());
}

/// What is pending is lost when the node dies, whoever put it. A backup finds that out through its map, so it must hold that
/// itself: pages that are pending from another session are to be put, chunks are not.
#[tokio::test(flavor = "multi_thread")]
async fn pending_pages_are_put_by_everybody() {
    let world = World::system();
    let site = Site::new(&world);
    let mem = Mem::new(&world);
    let keys = DomainKeys::new(&mem.config().domain);
    let running = Running::start(&site, "repo", mem.clone(), &world);
    let remote = running.connect(&site, "repo", &world).await.unwrap();
    let (first, _) = remote.begin(begin(PointId::random(&world))).await.unwrap();
    let (second, _) = remote.begin(begin(PointId::random(&world))).await.unwrap();
    for (kind, expected) in [(ChunkKind::Data, Presence::Pending), (ChunkKind::Page, Presence::Missing)] {
        let plain = vec![7; 4096];
        let id = keys.id(kind, &plain);
        let blob = with_compressor(Compression::Zstd(1), |compressor| compressor.compress(kind, &plain));
        first.put(vec![(id, blob)]).await.unwrap();
        first.stored().await.unwrap();
        assert_eq!(second.missing(kind, &[id]).await.unwrap(), [expected], "{kind:?}");
        first.flush().await.unwrap();
        assert_eq!(second.missing(kind, &[id]).await.unwrap(), [Presence::Have], "{kind:?}");
    }
    drop((first, second));
    running.stop().await;
}

/// Who answers that it speaks another version of QUIC has not signed that: a packet damaged on its way brings such an answer
/// too. It is asked again.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_nobody_signed_is_asked_for_again() {
    let world = World::system();
    let site = Site::new(&world);
    let running = Running::start(&site, "repo", Mem::new(&world), &world);
    let (outside, inside) = (
        tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap(),
        tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap(),
    );
    inside.connect(("127.0.0.1", running.port)).await.unwrap();
    let port = outside.local_addr().unwrap().port();
    let relay = tokio::spawn(async move {
        let (mut there, mut back) = ([0; 65_536], [0; 65_536]);
        let (length, mut client) = outside.recv_from(&mut there).await.unwrap();
        outside.send_to(&other_version(&there[..length]), client).await.unwrap();
        loop {
            tokio::select! {
                came = outside.recv_from(&mut there) => {
                    let (length, from) = came.unwrap();
                    client = from;
                    inside.send(&there[..length]).await.unwrap();
                }
                came = inside.recv(&mut back) => drop(outside.send_to(&back[..came.unwrap()], client).await.unwrap()),
            }
        }
    });
    let identity = site.identity(Role::Admin, "admin", &world);
    let config = client_config(&identity, &site.trust(), Congestion::default()).unwrap();
    let remote = Remote::connect(client().unwrap(), Peer::new("localhost", port, config), "repo", None).await.unwrap();
    assert!(remote.list(&PointFilter::default()).await.unwrap().is_empty());
    relay.abort();
    running.stop().await;
}

/// A Version Negotiation packet (RFC 9000, 17.2.1) that answers the first packet of a connection.
fn other_version(first: &[u8]) -> Vec<u8> {
    let (there, rest) = first[6..].split_at(first[5].into());
    let back = &rest[1..1 + usize::from(rest[0])];
    let id = |id: &[u8]| [&[u8::try_from(id.len()).unwrap()], id].concat();
    [&[0x80, 0, 0, 0, 0][..], &id(back), &id(there), &[0x0a; 4]].concat()
}

/// Noise on the port harms nobody.
#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_the_port() {
    let world = World::system();
    let site = Site::new(&world);
    let running = Running::start(&site, "repo", Mem::new(&world), &world);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut noise = blake3::Hasher::new().update(b"noise").finalize_xof();
    for length in (0..4000).map(|at| at * 7 % 1400) {
        let mut bytes = vec![0; length];
        noise.fill(&mut bytes);
        // Some look like the first packet of a connection.
        if let Some(first) = bytes.first_mut().filter(|_| length % 2 == 0) {
            *first |= 0xc0;
        }
        let _ = socket.send_to(&bytes, ("127.0.0.1", running.port));
    }
    let remote = running.connect(&site, "repo", &world).await.unwrap();
    assert!(remote.list(&PointFilter::default()).await.unwrap().is_empty());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_end_with_a_graceful_stop_and_are_begun_again() {
    let world = World::system();
    let (site, mem) = (Site::new(&world), Mem::new(&world));
    let running = Running::start(&site, "repo", mem.clone(), &world);
    let remote = running.connect(&site, "repo", &world).await.unwrap();
    let (session, _) = remote.begin(begin(PointId::random(&world))).await.unwrap();
    session.flush().await.unwrap();
    let before = session.id();
    let port = running.port;
    running.stop().await;
    let again = Running::start_on(&site, port, Node::new(world.clone()).with("repo", mem), &world);
    assert!(session.missing(chunker::ChunkKind::Data, &[]).await.unwrap().is_empty());
    session.flush().await.unwrap();
    assert!(session.id() != before, "the node had forgotten it");
    again.stop().await;
}

#[test]
fn identities_are_kept_in_folders_and_keys_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let (world, folder) = (World::system(), tempfile::tempdir().unwrap());
    let site: mover::Name = "home".parse().unwrap();
    let authority = Authority::create(&site, &world).unwrap();
    let authority = Authority::from_pem(&site, authority.certificate_pem(), &authority.key_pem()).unwrap();
    let holder = Holder::new(Role::Proxy, "host7".parse().unwrap());
    let issued = authority.issue(&holder, &[], 1, &world).unwrap();
    let place = folder.path().join("host7");
    Credentials::store(&place, &issued, authority.certificate_pem(), None).unwrap();
    assert_eq!(Credentials::load(&place).unwrap().identity.holder(), &holder);
    assert!(Credentials::store(&place, &issued, "", None).is_err(), "nothing is written over");
    let key = place.join("identity.pem");
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o640)).unwrap();
    let error = Credentials::load(&place).unwrap_err();
    assert!(error.to_string().contains("others can read") && error.remedy().is_some(), "{error}");
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
    // Whoever can write says whom to believe.
    for (name, mode, right) in [("", 0o770, 0o700), ("ca.pem", 0o664, 0o644), ("identity.pem", 0o602, 0o600)] {
        let path = place.join(name);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        let error = Credentials::load(&place).unwrap_err();
        assert!(error.to_string().contains("others can write") && error.remedy().is_some(), "{name}: {error}");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(right)).unwrap();
    }
    Credentials::load(&place).unwrap();
    let tokens = folder.path().join("tokens");
    std::fs::create_dir(&tokens).unwrap();
    std::fs::set_permissions(&tokens, PermissionsExt::from_mode(0o777)).unwrap();
    let opened = Registry::open(authority, folder.path(), std::time::Duration::from_secs(60), world);
    assert!(opened.unwrap_err().to_string().contains("others can write"));
}
