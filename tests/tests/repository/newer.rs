//! What later versions may leave in a repository, seen from this one.

use chunker::{ChunkKind, Compression, DomainKeys};
use mover::Depth;
use mover::{
    Attachment, Begin, ErrorKind, Manifest, OwnerId, PointId, Progress, ReadSession, Repository, SessionId,
    Verification, WriteSession, copy, stream_map, with_compressor,
};
use std::fs;
use std::path::Path;
use store::format::event::{CommittedPoint, Event, SessionOpened};
use store::{Access, Local};
use windlass_tests::fake::{Machine, noise};
use windlass_tests::kept::{Bench, append, files, folder, points};

const BLOCK: u64 = 1 << 16;
const EXTENSION: &[u8] = b"\x09\0\0\0\x03\0\0\0abc";

fn machine(bench: &Bench) -> Machine {
    let machine = Machine::new(&bench.world, &[10 * BLOCK]);
    machine.write(0, BLOCK, &noise(1, 3 * BLOCK));
    machine
}

/// The chain and the digests are tied to the file's bytes, not to what this version makes of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_with_an_extension_is_kept_in_digests() {
    let (bench, kept) = (Bench::new(), folder());
    Local::init(kept.path(), None, &bench.world).unwrap();
    let path = kept.path().join("config");
    let bytes = fs::read(&path).unwrap();
    let mut extended = bytes[..bytes.len() - 36].to_vec();
    extended.extend(u32::try_from(EXTENSION.len()).unwrap().to_le_bytes());
    extended.extend(EXTENSION);
    extended.extend(mover::digest(&extended));
    fs::write(&path, &extended).unwrap();
    let machine = machine(&bench);
    let local = bench.open(kept.path(), Access::Write).await.unwrap();
    let point = bench.backup(&local, &machine).await.unwrap().point.id;
    while fs::read_dir(kept.path().join("state")).unwrap().count() == 0 {
        drop(local.read(&[point]).await.unwrap());
    }
    local.close().await.unwrap();
    let digest = files(&kept.path().join("state")).pop().unwrap();
    assert!(
        fs::read(kept.path().join("state").join(&digest)).unwrap().windows(extended.len()).any(|it| it == extended)
    );
    // Only the digest tells what was before it.
    let digested: u64 = digest.to_str().unwrap().parse().unwrap();
    for number in 1..digested {
        fs::remove_file(kept.path().join(format!("log/{:020}/{number:020}", 0))).unwrap();
    }
    for access in [Access::Read, Access::Write] {
        let local = bench.open(kept.path(), access).await.unwrap();
        bench.restore(&local, point, &machine.images()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_that_must_be_understood_is_not_copied() {
    let (bench, kept, other) = (Bench::new(), folder(), folder());
    let config = Local::init(kept.path(), None, &bench.world).unwrap();
    Local::init(other.path(), Some(&config), &bench.world).unwrap();
    let local = bench.open(kept.path(), Access::Write).await.unwrap();
    let first = bench.backup(&local, &machine(&bench)).await.unwrap().point;
    let mut manifest = local.read(&[first.id]).await.unwrap().manifest(first.id).await.unwrap();
    manifest.point = PointId([7; 16]);
    manifest.extensions = EXTENSION.to_vec();
    manifest.extensions[2] = 1;
    plant(&bench, kept.path(), local, &manifest, Vec::new()).await;
    let (from, to) =
        (bench.open(kept.path(), Access::Read).await.unwrap(), bench.open(other.path(), Access::Write).await.unwrap());
    let listed = points(&from).await;
    assert_eq!(listed.iter().map(|point| point.id).collect::<Vec<_>>(), [first.id, manifest.point]);
    let refused = from.read(&[manifest.point]).await.unwrap().manifest(manifest.point).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Version, "{refused}");
    let copied = async |point| copy(&from, &to, point, Verification::Decode, &Progress::default()).await;
    let refused = copied(&listed[1]).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Version, "{refused}");
    assert!(points(&to).await.is_empty());
    copied(&listed[0]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attachment_that_lies_about_its_length_is_found() {
    let (bench, kept) = (Bench::new(), folder());
    let config = Local::init(kept.path(), None, &bench.world).unwrap();
    let keys = DomainKeys::new(&config.domain);
    let local = bench.open(kept.path(), Access::Write).await.unwrap();
    let first = bench.backup(&local, &machine(&bench)).await.unwrap().point;
    let mut manifest = local.read(&[first.id]).await.unwrap().manifest(first.id).await.unwrap();
    manifest.point = PointId([7; 16]);
    let plain = noise(5, 9_000);
    let piece = keys.id(ChunkKind::Attachment, &plain);
    let (root, pages) = stream_map(&keys, &[(piece, 9_000)]).unwrap();
    let chunks = [(ChunkKind::Attachment, plain), (ChunkKind::Page, pages[0].plain.clone())];
    let (kind, name) = ("nvram".parse().unwrap(), "vars".to_owned());
    manifest.attachments = vec![Attachment { kind, name, bytes: 9_001, root }];
    plant(&bench, kept.path(), local, &manifest, chunks.to_vec()).await;
    let local = bench.open(kept.path(), Access::Read).await.unwrap();
    let report = bench.verify(&local, Depth::Decode).await;
    let told = report.errors.iter().map(|error| (error.point, error.chunk)).collect::<Vec<_>>();
    assert_eq!(told, [(Some(manifest.point), root.id)], "{:?}", report.errors);
}

/// Stores `chunks` and a manifest that this version would not commit, and has the log say that it is committed.
async fn plant(bench: &Bench, root: &Path, local: Local, manifest: &Manifest, mut chunks: Vec<(ChunkKind, Vec<u8>)>) {
    let keys = DomainKeys::new(&local.config().domain);
    chunks.push((ChunkKind::Manifest, manifest.encode()));
    let compress = |(kind, plain): &(ChunkKind, Vec<u8>)| {
        (keys.id(*kind, plain), with_compressor(Compression::default(), |compressor| compressor.compress(*kind, plain)))
    };
    let blobs: Vec<_> = chunks.iter().map(compress).collect();
    let id = blobs[blobs.len() - 1].0;
    let begin = Begin { point: manifest.point, parents: Vec::new(), holder: None, verification: Verification::Decode };
    let (writing, _) = local.begin(begin).await.unwrap();
    writing.put(blobs).await.unwrap();
    writing.flush().await.unwrap();
    writing.abandon().await.unwrap();
    local.close().await.unwrap();
    let (session, point, pins, extensions) = (SessionId([8; 16]), manifest.point, Vec::new(), Vec::new());
    let opened = SessionOpened { session, writes: true, owner: OwnerId::default(), point, pins, extensions };
    let committed = CommittedPoint {
        session,
        point,
        manifest: id,
        owner: OwnerId::default(),
        machine: manifest.machine,
        machine_name: manifest.machine_name.clone(),
        group: None,
        snapshot_time: manifest.snapshot_time,
        origin: None,
        protected_until: mover::Timestamp(0),
        bytes_logical: manifest.bytes_logical(),
        bytes_new: 0,
        extensions: EXTENSION.to_vec(),
    };
    let events = vec![Event::SessionOpened(opened), Event::PointCommitted(committed), Event::SessionClosed(session)];
    append(root, &bench.world, events);
}
