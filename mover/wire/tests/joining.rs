//! Tokens, joining and renewing across the real wire.

use mover::{
    Begin, Clock, ErrorKind, Holder, Mem, PointFilter, PointId, Repository, Result, Role, SystemRandom, Timestamp,
    Verification, World,
};
use quinn::{Connection, ConnectionError, VarInt};
use rustls::pki_types::CertificateDer;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use wire::identity::{
    Address, Authority, Credentials, Facts, Identity, Issued, NewKey, PENDING_MAX, Registry, Token, Trust, Wanted,
    holder_of,
};
use wire::message::{Certified, Failed, JoinIn, RenewIn, Reply, Request, error_code};
use wire::{
    Congestion, Current, IdentityRenewer, Node, Peer, Remote, Signer, client, client_config, client_config_of,
    create_token, decode, encode, join, renewed_when_used, server_of,
};

const DAY: Duration = Duration::from_secs(86_400);

/// The machine's clock, put forward or back.
#[derive(Clone, Default)]
struct Shifted(Arc<AtomicI64>);

impl Clock for Shifted {
    fn now(&self) -> Timestamp {
        Timestamp(World::system().now().0 + self.0.load(Ordering::Relaxed))
    }
}

impl Shifted {
    fn by(duration: Duration, sign: i64) -> World {
        let clock = Self::default();
        clock.0.store(sign * duration.as_nanos() as i64, Ordering::Relaxed);
        clock.world()
    }

    fn world(&self) -> World {
        World::new(Arc::new(self.clone()), Arc::new(SystemRandom))
    }
}

/// A site with the node that holds its authority.
struct Site {
    folder: tempfile::TempDir,
    authority: Authority,
    registry: Arc<Registry>,
    clock: Shifted,
    port: u16,
    keeping: Option<JoinHandle<()>>,
    _stop: watch::Sender<bool>,
}

impl Site {
    fn new() -> Self {
        Self::with(DAY * 7, false)
    }

    /// Its certificates live so long; the node renews its own when asked to.
    fn with(life: Duration, kept: bool) -> Self {
        let (folder, clock, world) = (tempfile::tempdir().unwrap(), Shifted::default(), World::system());
        let name = "test".parse().unwrap();
        let authority = Authority::create(&name, &world).unwrap();
        let again = Authority::from_pem(&name, authority.certificate_pem(), &authority.key_pem()).unwrap();
        let registry = Arc::new(Registry::open(again, folder.path(), life, clock.world()).unwrap());
        let node = Node::new(world.clone()).with("repo", Mem::new(&world));
        let node = node.with_registry(registry.clone()).denying(|holder| holder.name.as_str() == "stolen");
        let place = folder.path().join("node");
        let holder = Holder::new(Role::Node, "node".parse().unwrap());
        // In the second half of its life when it is to be renewed.
        let made = if kept { Shifted::by(DAY, -1) } else { world.clone() };
        let issued = authority.issue(&holder, &["localhost".into(), "::1".into()], 1 + u32::from(kept), &made).unwrap();
        Credentials::store(&place, &issued, authority.certificate_pem(), None).unwrap();
        let keeper = IdentityRenewer::open(&place, Signer::Here(registry.clone()), &world).unwrap();
        let endpoint = server_of(([127, 0, 0, 1], 0).into(), &keeper.current(), Congestion::default()).unwrap();
        let port = endpoint.local_addr().unwrap().port();
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(Arc::new(node).serve(endpoint, stopped));
        let keeping = kept.then(|| tokio::spawn(keeper.run()));
        Self { folder, authority, registry, clock, port, keeping, _stop: stop }
    }

    fn trust(&self) -> Trust {
        self.authority.trust().unwrap()
    }

    fn address(&self) -> Address {
        Address { host: "localhost".into(), port: self.port }
    }

    fn issued(&self, role: Role, name: &str) -> Issued {
        let hosts =
            if role == Role::Node { vec!["other.example".to_owned(), "192.0.2.1".to_owned()] } else { Vec::new() };
        // In the second half of its life.
        let holder = Holder::new(role, name.parse().unwrap());
        self.authority.issue(&holder, &hosts, 7, &Shifted::by(DAY * 4, -1)).unwrap()
    }

    fn credentials(&self, role: Role, name: &str) -> Credentials {
        Credentials { identity: self.issued(role, name).identity().unwrap(), trust: self.trust() }
    }

    /// A token made by `role`.
    async fn token_by(&self, role: Role, wanted: Wanted, valid: Duration) -> Result<Token> {
        let us = self.credentials(role, "somebody");
        Ok(create_token(&us, self.address(), wanted, valid, &World::system()).await?.0)
    }

    async fn token(&self, name: &str) -> Token {
        self.token_by(Role::Admin, proxy(name), Duration::from_secs(60)).await.unwrap()
    }

    async fn connect(&self, identity: &Identity) -> Result<Remote> {
        let config = client_config(identity, &self.trust(), Congestion::default())?;
        Remote::connect(client()?, Peer::new("localhost", self.port, config), "repo", None).await
    }

    fn tokens(&self) -> Vec<PathBuf> {
        fs::read_dir(self.folder.path().join("tokens")).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// A folder as somebody has it.
    fn folder_of(&self, role: Role, name: &str) -> PathBuf {
        let folder = self.folder.path().join(name);
        let (issued, address) = (self.issued(role, name), self.address());
        Credentials::store(&folder, &issued, self.authority.certificate_pem(), Some(&address)).unwrap();
        folder
    }

    /// A connection that shows a certificate, or none.
    async fn raw(&self, identity: Option<&Identity>) -> Connection {
        let endpoint = client().unwrap();
        let mut config = match identity {
            Some(identity) => {
                client_config_of(&Current::fixed(identity, &self.trust()), Congestion::default()).unwrap()
            }
            None => {
                let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
                let mut tls = rustls::ClientConfig::builder_with_provider(provider)
                    .with_protocol_versions(&[&rustls::version::TLS13])
                    .unwrap()
                    .with_root_certificates(self.trust().roots().unwrap())
                    .with_no_client_auth();
                tls.alpn_protocols = vec![b"windlass/1".to_vec()];
                quinn::ClientConfig::new(Arc::new(quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap()))
            }
        };
        let mut transport = quinn::TransportConfig::default();
        transport.keep_alive_interval(Some(Duration::from_secs(1)));
        config.transport_config(Arc::new(transport));
        let address = match endpoint.local_addr().unwrap().is_ipv6() {
            true => format!("[::ffff:127.0.0.1]:{}", self.port),
            false => format!("127.0.0.1:{}", self.port),
        };
        endpoint.connect_with(config, address.parse().unwrap(), "localhost").unwrap().await.unwrap()
    }
}

fn proxy(name: &str) -> Wanted {
    Wanted { holder: Holder::new(Role::Proxy, name.parse().unwrap()), hosts: Vec::new() }
}

/// Asks on a stream of its own.
async fn asked(connection: &Connection, request: &[u8]) -> Result<Reply, ConnectionError> {
    let (mut to, mut from) = connection.open_bi().await?;
    to.write_all(request).await.unwrap();
    to.finish().unwrap();
    let bytes = from.read_to_end(1 << 20).await.unwrap();
    Ok(decode::<Reply>(&bytes).unwrap().unwrap().0)
}

fn golden_requests() -> Vec<(u16, Vec<u8>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/wire.txt");
    let text = fs::read_to_string(path).unwrap();
    let frames = text.lines().map(|line| {
        let hex = line.split_once(' ').unwrap().1;
        let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        hex.as_bytes().as_chunks().0.iter().map(byte).collect::<Vec<u8>>()
    });
    frames.map(|bytes| (u16::from_le_bytes([bytes[4], bytes[5]]), bytes)).filter(|it| it.0 < 0x8000).collect()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_made_used_and_used_up() {
    let site = Site::new();
    let token = site.token("host7").await;
    let [kept] = &site.tokens()[..] else { panic!("one token waits") };
    assert_eq!(mode(kept), 0o600);
    let secret: String = token.secret.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(!kept.to_str().unwrap().contains(&secret) && !fs::read_to_string(kept).unwrap().contains(&secret));

    let token: Token = token.to_string().parse().unwrap();
    let (holder, issued, authority) = join(&token, &World::system()).await.unwrap();
    assert_eq!(holder.to_string(), "proxy host7");
    assert_eq!(Trust::from_pem(&authority).unwrap().fingerprint(), site.trust().fingerprint());
    assert!(site.tokens().is_empty());
    // It does what a proxy does, and no more.
    let joined = issued.identity().unwrap();
    let remote = site.connect(&joined).await.unwrap();
    let begin = Begin {
        point: PointId::random(&World::system()),
        parents: Vec::new(),
        holder: None,
        verification: Verification::Decode,
    };
    remote.begin(begin).await.unwrap();
    let us = Credentials { identity: joined, trust: site.trust() };
    let made = create_token(&us, site.address(), proxy("other"), DAY, &World::system()).await;
    assert_eq!(made.unwrap_err().kind(), ErrorKind::NotAuthorised);

    let again = join(&token, &World::system()).await.map(|_| ()).unwrap_err();
    assert!(again.kind() == ErrorKind::NotAuthorised && again.remedy().unwrap().contains("works once"), "{again}");
    let unknown = Token { secret: [1; 32], ..token };
    assert_eq!(join(&unknown, &World::system()).await.map(|_| ()).unwrap_err().message(), again.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_twenty_who_use_a_token_at_once_one_joins() {
    let site = Site::new();
    let token = site.token("host7").await;
    let world = World::system();
    let joins = futures::future::join_all((0..20).map(|_| join(&token, &world))).await;
    assert_eq!(joins.iter().filter(|joined| joined.is_ok()).count(), 1);
    assert!(joins.into_iter().filter_map(Result::err).all(|error| error.kind() == ErrorKind::NotAuthorised));

    // All of them between finding the token and using it up.
    let all_found_it = std::sync::Barrier::new(20);
    let denied = |_: &Holder| {
        all_found_it.wait();
        false
    };
    let token = site.token("host8").await;
    let (token, registry, denied) = (&token, &site.registry, &denied);
    let joined = std::thread::scope(|scope| {
        let joins: Vec<_> = (0..20)
            .map(|_| {
                let claim = NewKey::generate().unwrap().claim(&token.hash()).unwrap();
                scope.spawn(move || registry.join(&token.secret, &claim, denied).is_ok())
            })
            .collect();
        joins.into_iter().map(|join| join.join().unwrap()).filter(|joined| *joined).count()
    });
    assert_eq!(joined, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_expire_are_swept_and_bounded() {
    let site = Site::new();
    let token = site.token("host7").await;
    let claim = NewKey::generate().unwrap().claim(&token.hash()).unwrap();
    site.clock.0.store(61_000_000_000, Ordering::Relaxed);
    let error = site.registry.join(&token.secret, &claim, |_| false).unwrap_err();
    assert!(error.kind() == ErrorKind::NotAuthorised && error.message().contains("expired"), "{error}");
    // One that nobody uses goes when another is made; so does one that was not written to its end.
    let abandoned = site.token("host8").await;
    fs::write(site.folder.path().join("tokens").join("ab".repeat(32)), "windlass token 1\nproxy a\n").unwrap();
    fs::write(site.folder.path().join("tokens/README"), "not a token").unwrap();
    site.clock.0.store(122_000_000_000, Ordering::Relaxed);
    let token = site.token("host9").await;
    let left = site.tokens();
    assert_eq!(left.len(), 2, "{left:?}");
    let claim = NewKey::generate().unwrap().claim(&abandoned.hash()).unwrap();
    assert!(site.registry.join(&abandoned.secret, &claim, |_| false).is_err());

    let of = |hash: &[u8; 32]| {
        let name: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        site.folder.path().join("tokens").join(name)
    };
    for n in 1..PENDING_MAX {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&(n as u64).to_le_bytes());
        fs::copy(of(&token.hash()), of(&hash)).unwrap();
    }
    let many = site.token_by(Role::Admin, proxy("one-more"), DAY).await.unwrap_err();
    assert!(many.kind() == ErrorKind::Busy && many.remedy().is_some(), "{many}");
    // The others can be used all the same.
    join(&token, &World::system()).await.unwrap();
    site.token("one-more").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_expected_is_an_administrators_choice_within_limits() {
    let site = Site::new();
    let wanted = |role, hosts: &[&str]| Wanted {
        holder: Holder::new(role, "a".parse().unwrap()),
        hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
    };
    let hour = Duration::from_secs(3600);
    for role in [Role::Proxy, Role::Node] {
        let refused = site.token_by(role, wanted(Role::Proxy, &[]), hour).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NotAuthorised, "{role:?}");
    }
    let long = "a".repeat(254);
    for (wanted, valid) in [
        (wanted(Role::Node, &[]), hour),
        (wanted(Role::Proxy, &["a"]), hour),
        (wanted(Role::Node, &[""]), hour),
        (wanted(Role::Node, &["a\nend"]), hour),
        (wanted(Role::Node, &[&long]), hour),
        (wanted(Role::Node, &["a"; 17]), hour),
        (wanted(Role::Proxy, &[]), Duration::ZERO),
        (wanted(Role::Proxy, &[]), DAY * 31),
    ] {
        let refused = site.token_by(Role::Admin, wanted.clone(), valid).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Usage, "{wanted:?} {valid:?}");
    }
    let revoked = site.token_by(Role::Admin, proxy("stolen"), hour).await.unwrap_err();
    assert!(revoked.message().contains("revoked"), "{revoked}");
    assert!(site.tokens().is_empty());
    let token = site.token_by(Role::Admin, wanted(Role::Node, &["store2.example", "::1"]), hour).await.unwrap();
    let (holder, issued, _) = join(&token, &World::system()).await.unwrap();
    assert_eq!(holder.to_string(), "node a");
    assert_eq!(issued.identity().unwrap().facts().hosts, ["store2.example", "::1"]);
    // The same hash twice has the effect of once, but not for somebody else.
    let (hash, registry) = ([9; 32], &site.registry);
    let expires = registry.expect(&hash, &proxy("b"), hour).unwrap();
    assert_eq!(registry.expect(&hash, &proxy("b"), hour).unwrap(), expires);
    assert!(registry.expect(&hash, &proxy("c"), hour).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_not_the_tokens_is_not_told_the_secret() {
    let (site, other) = (Site::new(), Site::new());
    let token = site.token("host7").await;
    let elsewhere = Token { address: other.address(), ..token.clone() };
    let refused = join(&elsewhere, &World::system()).await.map(|_| ()).unwrap_err();
    assert!(
        refused.kind() == ErrorKind::NotAuthorised && refused.message().contains("site that made the token"),
        "{refused}"
    );
    // Of the site, but not the node that the address names.
    let address = Address { host: "127.0.0.1".into(), port: site.port };
    let misnamed = join(&Token { address, ..token.clone() }, &World::system()).await.map(|_| ()).unwrap_err();
    assert_eq!(misnamed.kind(), ErrorKind::NotAuthorised);
    join(&token, &World::system()).await.unwrap();
}

/// Over all requests there are, as they stand in the golden bytes.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_joining_is_all_that_may_be_asked() {
    let site = Site::new();
    let requests = golden_requests();
    assert_eq!(requests.iter().map(|it| it.0).collect::<Vec<_>>(), Request::CODES);
    let nobody = site.raw(None).await;
    let hello = requests.iter().find(|it| it.0 == 0x0001).unwrap().1.clone();
    let early = asked(&nobody, &requests[1].1).await.unwrap();
    assert!(matches!(early, Reply::Failed(_)), "{early:?}");
    assert!(matches!(asked(&nobody, &hello).await.unwrap(), Reply::Welcome(_)));
    for (code, request) in &requests {
        let told = asked(&nobody, request).await.unwrap();
        match (code, &told) {
            (0x0001, Reply::Welcome(_)) => {}
            (_, Reply::Failed(Failed { code: 4, message, .. })) => {
                let by_the_table = message.contains("only holders of a certificate may do this");
                assert_eq!(by_the_table, *code != 0x0004, "{code:#06x}: {message}");
            }
            _ => panic!("{code:#06x}: {told:?}"),
        }
    }
    assert_eq!(error_code(ErrorKind::NotAuthorised), 4);
    // What is no request at all.
    assert!(matches!(asked(&nobody, &[0; 64]).await.unwrap(), Reply::Failed(Failed { code: 17, .. })));
    // A holder has nothing to join for.
    let proxy = site.raw(Some(&site.credentials(Role::Proxy, "p").identity)).await;
    asked(&proxy, &hello).await.unwrap();
    let join = &requests.iter().find(|it| it.0 == 0x0004).unwrap().1;
    assert!(matches!(asked(&proxy, join).await.unwrap(), Reply::Failed(Failed { code: 4, .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_few_and_have_little_time() {
    let site = Site::new();
    let began = Instant::now();
    let idle = futures::future::join_all((0..8).map(|_| site.raw(None))).await;
    // The node knows of all of them.
    let requests = golden_requests();
    for connection in &idle {
        assert!(matches!(asked(connection, &requests[0].1).await.unwrap(), Reply::Welcome(_)));
    }
    // Bulk of a stranger is neither read nor waited for longer.
    let mut put = requests.into_iter().find(|it| it.0 == 0x0022).unwrap().1;
    put[12..16].copy_from_slice(&(20u32 << 20).to_le_bytes());
    let (mut to, _from) = idle[0].open_bi().await.unwrap();
    to.write_all(&put).await.unwrap();
    let refused = |error: &ConnectionError| matches!(error, ConnectionError::ApplicationClosed(close) if close.error_code == VarInt::from_u32(1));
    let more = site.raw(None).await;
    assert!(refused(&more.closed().await) && began.elapsed() < Duration::from_secs(5));
    // Holders are not held up by them.
    site.connect(&site.credentials(Role::Proxy, "p").identity).await.unwrap();
    for connection in idle {
        assert!(refused(&connection.closed().await));
    }
    assert!((9..15).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    join(&site.token("host7").await, &World::system()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn renewing_changes_nothing_but_key_and_time() {
    let site = Site::new();
    let world = World::system();
    for (role, name) in [(Role::Node, "n"), (Role::Proxy, "p"), (Role::Admin, "a")] {
        let folder = site.folder_of(role, name);
        let old = Credentials::load(&folder).unwrap().identity;
        assert!(old.facts().is_due(world.now()));
        let new = renewed_when_used(&folder, &world).await.unwrap().identity;
        assert_eq!(new.holder(), old.holder());
        assert_eq!(new.facts().hosts, old.facts().hosts);
        assert_eq!(new.lasting(), old.lasting(), "what was signed before a restart is known after it");
        assert!(new.certificate() != old.certificate() && !new.facts().is_due(world.now()));
        let left = Duration::from_nanos((new.facts().not_after.0 - world.now().0) as u64);
        assert!(left > DAY * 7 - Duration::from_secs(60) && left <= DAY * 7, "{left:?}");
        // Both are good until they end.
        for identity in [&old, &new] {
            site.connect(identity).await.unwrap().list(&PointFilter::default()).await.unwrap();
        }
        assert_eq!(mode(&folder), 0o700);
        for file in ["identity.pem", "lasting.key"] {
            assert_eq!(mode(&folder.join(file)), 0o600, "{file}");
        }
        assert!(!folder.join("identity.pem.new").exists());
        assert_eq!(Credentials::load(&folder).unwrap().identity.certificate(), new.certificate());
        // Not again.
        assert_eq!(renewed_when_used(&folder, &world).await.unwrap().identity.certificate(), new.certificate());
    }
    // Whose certificate it is says the connection, whatever the claim is for.
    let us = site.credentials(Role::Proxy, "p");
    let connection = site.raw(Some(&us.identity)).await;
    asked(&connection, &golden_requests()[0].1).await.unwrap();
    for (purpose, good) in [("admin p", false), ("proxy q", false), ("proxy p", true)] {
        let claim = NewKey::generate().unwrap().claim(purpose.as_bytes()).unwrap();
        let request = encode(&Request::Renew(RenewIn { claim }), 0, false).unwrap();
        match asked(&connection, &request).await.unwrap() {
            Reply::Certified(Certified { certificate, .. }) if good => {
                use rustls::pki_types::pem::PemObject;
                let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
                assert_eq!(&holder_of(&certificate).unwrap(), us.identity.holder());
                assert!(Facts::of(&certificate).unwrap().hosts.is_empty());
            }
            Reply::Failed(failed) if !good => assert_eq!(failed.code, 4),
            other => panic!("{purpose}: {other:?}"),
        }
    }
    // A claim that does not hold uses no token up.
    let token = site.token("host7").await;
    let claim = NewKey::generate().unwrap().claim(b"another purpose").unwrap();
    let nobody = site.raw(None).await;
    asked(&nobody, &golden_requests()[0].1).await.unwrap();
    let request = encode(&Request::Join(JoinIn { secret: token.secret, claim }), 0, false).unwrap();
    assert!(matches!(asked(&nobody, &request).await.unwrap(), Reply::Failed(Failed { code: 4, .. })));
    join(&token, &world).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_renewed_stays_in_use_and_is_not_asked_for_all_the_time() {
    let site = Site::new();
    let world = World::system();
    let revoked = site.folder_of(Role::Proxy, "stolen");
    let before = fs::read(revoked.join("identity.pem")).unwrap();
    let found = renewed_when_used(&revoked, &world).await.unwrap();
    assert!(found.identity.facts().is_due(world.now()), "who is revoked is not renewed");
    assert_eq!(fs::read(revoked.join("identity.pem")).unwrap(), before);

    let folder = site.folder_of(Role::Proxy, "p");
    fs::write(folder.join("authority"), "localhost:1\n").unwrap();
    let began = Instant::now();
    renewed_when_used(&folder, &world).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "a command does not wait long: {:?}", began.elapsed());
    fs::write(folder.join("authority"), format!("{}\n", site.address())).unwrap();
    let again = renewed_when_used(&folder, &world).await.unwrap();
    assert!(again.identity.facts().is_due(world.now()), "tried a moment ago");
    let later = Shifted::by(Duration::from_secs(601), 1);
    let renewed = renewed_when_used(&folder, &later).await.unwrap();
    assert!(!renewed.identity.facts().is_due(later.now()));
    assert!(!folder.join("renewal.tried").exists());
}

/// What ended in the middle of a renewal is in nobody's way, and who reads meanwhile finds an identity.
#[tokio::test(flavor = "multi_thread")]
async fn an_identity_is_replaced_in_one_step() {
    let site = Site::with(Duration::from_secs(10), false);
    let folder = site.folder_of(Role::Proxy, "p");
    fs::write(folder.join("identity.pem.new"), "half a certif").unwrap();
    fs::write(folder.join("lasting.key.new"), "half a k").unwrap();
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let reading = std::thread::spawn({
        let (folder, done) = (folder.clone(), done.clone());
        move || {
            let mut seen = std::collections::HashSet::new();
            while !done.load(Ordering::Relaxed) {
                seen.insert(Credentials::load(&folder).unwrap().identity.certificate().to_vec());
            }
            seen.len()
        }
    });
    // Each a step further, so that each is due.
    let clock = Shifted::default();
    for step in 0..40 {
        clock.0.store(step * 8_000_000_000, Ordering::Relaxed);
        site.clock.0.store(step * 8_000_000_000, Ordering::Relaxed);
        let keeper = IdentityRenewer::open(&folder, Signer::Here(site.registry.clone()), &clock.world()).unwrap();
        let current = keeper.current();
        let before = current.get().identity.certificate().clone();
        keeper.renew().await.unwrap();
        assert!(current.get().identity.certificate() != &before);
    }
    done.store(true, Ordering::Relaxed);
    assert!(reading.join().unwrap() > 1, "it was read while it changed");
}

/// Renewed while the clock was days ahead, an identity is not valid when it has been put right: the one before is, and is
/// renewed.
#[tokio::test(flavor = "multi_thread")]
async fn an_identity_that_was_renewed_while_the_clock_was_ahead_shuts_nobody_out() {
    let site = Site::new();
    let folder = site.folder_of(Role::Proxy, "p");
    let (ahead, right) = (Shifted::by(DAY * 5, 1), World::system());
    site.clock.0.store((DAY * 5).as_nanos() as i64, Ordering::Relaxed);
    let before = Credentials::load(&folder).unwrap();
    let keeper = IdentityRenewer::open(&folder, Signer::Here(site.registry.clone()), &ahead).unwrap();
    keeper.renew().await.unwrap();
    let renewed = keeper.current().get();
    assert!(renewed.identity.facts().not_before > right.now(), "it is of no use now");
    assert!(site.connect(&renewed.identity).await.is_err());
    site.clock.0.store(0, Ordering::Relaxed);
    let found = Credentials::load(&folder).unwrap();
    assert_eq!(found.identity.certificate(), before.identity.certificate());
    site.connect(&found.identity).await.unwrap();
    // And it is renewed: what the wrong clock made is not kept.
    let renewed = renewed_when_used(&folder, &right).await.unwrap();
    let facts = renewed.identity.facts();
    assert!(facts.are_valid_at(right.now()) && !facts.is_due(right.now()), "{facts}");
    assert_eq!(Credentials::load(&folder).unwrap().identity.certificate(), renewed.identity.certificate());
    site.connect(&renewed.identity).await.unwrap();
}

/// A file that was cut is no riddle.
#[test]
fn a_cut_identity_says_what_is_wrong() {
    let world = World::system();
    let authority = Authority::create(&"test".parse().unwrap(), &world).unwrap();
    let holder = Holder::new(Role::Proxy, "p".parse().unwrap());
    let (parent, issued) = (tempfile::tempdir().unwrap(), authority.issue(&holder, &[], 1, &world).unwrap());
    let folder = parent.path().join("p");
    Credentials::store(&folder, &issued, authority.certificate_pem(), None).unwrap();
    let whole = fs::read(folder.join("identity.pem")).unwrap();
    for length in [0, 100, whole.len() / 2, whole.len() - 40] {
        fs::write(folder.join("identity.pem"), &whole[..length]).unwrap();
        let error = Credentials::load(&folder).unwrap_err();
        let (told, remedy) = (error.to_string(), error.remedy().unwrap_or_default());
        assert!(told.contains("identity.pem") && told.contains("not a certificate with its key"), "{length}: {told}");
        assert!(remedy.contains("join again"), "{length}: {remedy}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_renews_its_own_and_connections_go_on() {
    let site = Site::with(Duration::from_secs(10), true);
    let admin = site.credentials(Role::Admin, "a").identity;
    let remote = site.connect(&admin).await.unwrap();
    let shown = async || {
        let identity = site.raw(Some(&admin)).await.peer_identity().unwrap();
        identity.downcast::<Vec<CertificateDer<'static>>>().unwrap()[0].clone()
    };
    let mut seen = vec![shown().await];
    let began = Instant::now();
    // Each lives 11 s, from a second before it is made.
    while seen.len() < 4 {
        assert!(began.elapsed() < Duration::from_secs(40), "{} certificates", seen.len());
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = shown().await;
        if seen.last() != Some(&now) {
            let (hosts, kept) = (Facts::of(&now).unwrap().hosts, site.folder.path().join("node"));
            assert_eq!(hosts, ["localhost", "::1"]);
            assert_eq!(Credentials::load(&kept).unwrap().identity.certificate(), &now);
            seen.push(now);
        }
        remote.list(&PointFilter::default()).await.unwrap();
    }
    site.keeping.as_ref().unwrap().abort();
}

/// And a certificate of another authority replaces nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_the_authority_gives_nothing_out() {
    let site = Site::new();
    let world = World::system();
    let node = Node::new(world.clone()).with("repo", Mem::new(&world));
    let issued =
        site.authority.issue(&Holder::new(Role::Node, "second".parse().unwrap()), &["localhost".into()], 1, &world);
    let current = Current::fixed(&issued.unwrap().identity().unwrap(), &site.trust());
    let endpoint = server_of(([127, 0, 0, 1], 0).into(), &current, Congestion::default()).unwrap();
    let address = Address { host: "localhost".into(), port: endpoint.local_addr().unwrap().port() };
    let (_stop, stopped) = watch::channel(false);
    tokio::spawn(Arc::new(node).serve(endpoint, stopped));
    let us = site.credentials(Role::Admin, "a");
    let refused = create_token(&us, address.clone(), proxy("p"), DAY, &world).await.unwrap_err();
    assert!(refused.kind() == ErrorKind::NotFound && refused.remedy().is_some(), "{refused}");
    let refused = join(&Token { address, ..site.token("p").await }, &world).await.map(|_| ()).unwrap_err();
    assert!(
        refused.kind() == ErrorKind::NotAuthorised && refused.message().contains("does not give out certificates"),
        "{refused}"
    );
    // An authority of the same name is another one.
    let name = "test".parse().unwrap();
    let other = Authority::create(&name, &world).unwrap();
    let other_folder = tempfile::tempdir().unwrap();
    let other = Arc::new(Registry::open(other, other_folder.path(), DAY, world.clone()).unwrap());
    let folder = site.folder_of(Role::Proxy, "p");
    let before = fs::read(folder.join("identity.pem")).unwrap();
    let refused = IdentityRenewer::open(&folder, Signer::Here(other), &world).unwrap().renew().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotAuthorised, "{refused}");
    assert_eq!(fs::read(folder.join("identity.pem")).unwrap(), before);
}
