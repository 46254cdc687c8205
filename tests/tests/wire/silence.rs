//! Every wait on a node ends, wherever it stops; certificates end on open connections too.

use crate::hostile::{Act, Hostile, more, say};
use chunker::{ChunkId, ChunkKind, Compression, DomainKeys};
use futures::StreamExt;
use mover::{
    Begin, Depth, ErrorKind, Holder, MapRoot, Mem, OwnerId, PointChange, PointDraft, PointFilter, PointId, Progress,
    ReadSession, RecoveryPoint, Repository, RepositoryId, Role, SweepOptions, Timestamp, Verification, VerifyOptions,
    World, WriteSession, with_compressor,
};
use std::time::{Duration, Instant};
use windlass_bench::attacker::Raw;
use windlass_tests::conformance::manifest;
use windlass_tests::node::{Running, Site};
use wire::identity::{Issued, NewKey};
use wire::message::*;
use wire::{Congestion, Node, Peer, Remote, client, client_config, encode};

/// For a node that answers others at once.
const SILENCE: Duration = Duration::from_millis(300);
/// What it may take until that is told, asked again for half a second, on a busy machine.
const SOON: Duration = Duration::from_secs(15);

async fn told_soon<T>(place: &str, asked: impl Future<Output = mover::Result<T>>) -> String {
    let asked = tokio::time::timeout(SOON, asked).await.unwrap_or_else(|_| panic!("{place}: it waits for ever"));
    let Err(error) = asked else { panic!("{place}: it went well") };
    assert_eq!(error.kind(), ErrorKind::Transport, "{place}: {error}");
    assert!(error.remedy().is_some(), "{place}: {error}");
    error.to_string()
}

fn begin() -> Begin {
    Begin { point: PointId([7; 16]), parents: Vec::new(), holder: None, verification: Verification::Decode }
}

/// What a node does in some place.
type Acting = fn() -> Act;

/// Before it opens a repository: no greeting, none of the answer, half a header, a header alone, or always another word
/// that it is at work.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_goes_silent_while_it_is_connected_to_is_given_up() {
    let opened = || {
        more(&Reply::Opened(Opened {
            repository: RepositoryId([1; 16]),
            domain: [2; 32],
            created: Timestamp(3),
            owner: OwnerId::default(),
        }))
    };
    let places: [(&str, Acting); 3] = [
        ("nothing is read", || Act::Nothing),
        ("nothing is said", || Act::Say(Vec::new())),
        ("half a header", || Act::Say(say(&Reply::Done(()))[..7].to_vec())),
    ];
    for (place, act) in places {
        let node = Hostile::start(move |_| act());
        told_soon(place, node.connect(SILENCE)).await;
        let node = Hostile::start(move |request| if let Request::Open(_) = request { act() } else { Act::Honest });
        told_soon(place, node.connect(SILENCE)).await;
    }
    let head = opened()[..16].to_vec();
    for (place, said) in [("a header alone", head), ("more is to follow", opened())] {
        let node = Hostile::start(move |request| match request {
            Request::Open(_) => Act::Say(said.clone()),
            _ => Act::Honest,
        });
        told_soon(place, node.connect(SILENCE)).await;
    }
    let node = Hostile::start(|request| match request {
        Request::Open(_) => Act::Again(more(&Reply::Waiting(())), Duration::from_millis(1)),
        _ => Act::Honest,
    });
    // It is asked again, and in all for 75 times the silence.
    let told = told_soon("at work for ever", node.connect(SILENCE / 3)).await;
    assert!(told.contains("does not answer Open, after many attempts"), "{told}");
}

/// In a session: no answer, and parts of one that were announced and do not come, or not whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_goes_silent_in_a_session_is_given_up() {
    let node = Hostile::start(|request| match request {
        Request::Hello(_) | Request::Open(_) | Request::Begin(_) | Request::Read(_) => Act::Honest,
        _ => Act::Say(Vec::new()),
    });
    let remote = node.connect(SILENCE).await.unwrap();
    told_soon("List", remote.list(&PointFilter::default())).await;
    told_soon("Stats", remote.stats()).await;
    let (session, _) = remote.begin(begin()).await.unwrap();
    told_soon("Missing", session.missing(ChunkKind::Data, &[ChunkId([1; 32])])).await;
    told_soon("Flush", session.flush()).await;

    let part = encode(&Reply::Chunks(Chunks { lengths: vec![100], failed: Vec::new() }), 132, false).unwrap();
    for (place, part) in [("a part that does not come", Vec::new()), ("half a part", part.to_vec())] {
        let node = Hostile::start(move |request| match request {
            Request::Get(_) if part.is_empty() => Act::Say(say(&Reply::Parts(1))),
            Request::Get(_) => Act::Part(say(&Reply::Parts(1)), part.clone()),
            _ => Act::Honest,
        });
        let remote = node.connect(SILENCE).await.unwrap();
        let reader = remote.read(&[]).await.unwrap();
        let began = Instant::now();
        let asked = reader.get(vec![ChunkId([1; 32])]).collect::<Vec<_>>();
        let came = tokio::time::timeout(SOON * 2, asked).await.unwrap_or_else(|_| panic!("{place}: for ever"));
        assert!(came.concat().iter().all(|(_, blob)| blob.is_err()), "{place}, after {:?}", began.elapsed());
    }
}

/// In what takes long on a sound node, and in what writes.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_goes_silent_in_a_job_is_given_up() {
    let node = Hostile::start(|request| match request {
        Request::Hello(_) | Request::Open(_) | Request::Begin(_) | Request::Read(_) => Act::Honest,
        _ => Act::Say(Vec::new()),
    });
    let remote = node.connect(SILENCE).await.unwrap();
    let (point, none) = (PointId([1; 16]), std::sync::Arc::<Progress>::default);
    told_soon("Sweep", remote.sweep(SweepOptions::default(), none())).await;
    told_soon("RebuildIndex", remote.rebuild_index(none())).await;
    told_soon("Verify", remote.verify(VerifyOptions::new(Depth::Decode), none())).await;
    told_soon("ChangePoints", remote.change_points(&[point], PointChange::Forget)).await;
    told_soon("Annotate", remote.annotate(point, &[("note".into(), "x".into())])).await;
    told_soon("Log", remote.log(0)).await;
    told_soon("WantedChunks", remote.wanted(None)).await;
    told_soon("GivenUp", remote.given_up()).await;
    let from = Place { host: "localhost".into(), port: 1, name: "repo".into(), congestion: 0 };
    told_soon("Pull", remote.pull(&from, &[point], Verification::Decode, &none(), |_, _| Ok(()))).await;
    let reader = remote.read(&[point]).await.unwrap();
    told_soon("Manifest", reader.manifest(point)).await;
    let (session, _) = remote.begin(begin()).await.unwrap();
    let plain = [7; 4096];
    let id = DomainKeys::new(&remote.config().domain).id(ChunkKind::Data, &plain);
    let blob = with_compressor(Compression::None, |compressor| compressor.compress(ChunkKind::Data, &plain));
    // What a put brings is told by the next call.
    let put = async {
        session.put(vec![(id, blob)]).await?;
        session.flush().await
    };
    told_soon("Put", put).await;
    let (session, _) = remote.begin(begin()).await.unwrap();
    let draft = PointDraft {
        manifest: manifest(point, MapRoot { id: None, level: 1 }),
        origin: None,
        labels: Default::default(),
    };
    told_soon("Commit", session.commit(&[draft])).await;
}

/// A list without end is taken to a million points, and no further.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_without_end_is_not_taken() {
    let point = RecoveryPoint {
        id: PointId([1; 16]),
        manifest: ChunkId([2; 32]),
        owner: OwnerId([3; 16]),
        owner_name: None,
        stamped: OwnerId([3; 16]),
        holder: None,
        machine: mover::MachineId([4; 16]),
        machine_name: "web".parse().unwrap(),
        group: None,
        snapshot_time: Timestamp(6),
        commit_time: Timestamp(7),
        origin: (RepositoryId([8; 16]), Timestamp(9)),
        number: 1,
        labels: std::collections::BTreeMap::new(),
        protected_until: Timestamp(10),
        bytes_logical: 11,
        bytes_new: 12,
        bytes_stored: 0,
        pinned: false,
        forgotten: false,
    };
    let page = more(&Reply::Points(vec![point; 4096]));
    let node = Hostile::start(move |request| match request {
        Request::List(_) => Act::Again(page.clone(), Duration::ZERO),
        _ => Act::Honest,
    });
    let remote = node.connect(Duration::from_secs(5)).await.unwrap();
    let all = PointFilter::default();
    let listed = remote.list(&all);
    let error = tokio::time::timeout(SOON * 4, listed).await.expect("it ends").unwrap_err();
    assert!(error.to_string().contains("more than 1000000 points"), "{error}");
}

/// Somebody whose certificate lives so long.
fn short_lived(site: &Site, life: Duration, world: &World) -> wire::identity::Identity {
    let (key, holder) = (NewKey::generate().unwrap(), Holder::new(Role::Proxy, "short".parse().unwrap()));
    let claim = key.claim(b"short").unwrap();
    let certificate_pem = site.authority.certify(&holder, &[], &claim.check(b"short").unwrap(), life, world).unwrap();
    Issued { certificate_pem, key_pem: key.pem() }.identity().unwrap()
}

/// An open connection does not outlive the certificate that was shown on it, and nothing new is done with one that ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_ends_ends_its_connection() {
    let world = World::system();
    let site = Site::new(&world);
    let running = Running::serve(&site, Node::new(world.clone()).with("repo", Mem::new(&world)), &world);
    let short = short_lived(&site, Duration::from_secs(4), &world);
    let config = client_config(&short, &site.trust(), Congestion::default()).unwrap();
    let raw = Raw::greeted(running.port, config.clone()).await.unwrap();
    let repository = raw.repository("repo").await.unwrap();
    assert!(raw.ask(&Request::Stats(RepositoryRef { repository }), &[]).await.is_ok());
    let reason = tokio::time::timeout(SOON, raw.connection.closed()).await.expect("it is closed");
    assert!(reason.to_string().contains("the certificate was valid from"), "{reason}");
    let peer = Peer { patience: Duration::from_millis(500), ..Peer::new("localhost", running.port, config) };
    let error = Remote::connect(client().unwrap(), peer, "repo", None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotAuthorised, "{error}");
    running.stop().await;
}
