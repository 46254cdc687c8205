//! What a proxy learns of others' chunks: that they are there where the repository is one dedup domain for all, nothing
//! where its owners are kept apart.

use crate::owners::{ADMIN, Field, HOST_1, HOST_2, THIEF};
use chunker::{Blob, ChunkId, ChunkKind, Compression, DomainKeys, GRID_BYTES};
use futures::StreamExt;
use mover::{
    Commit, ErrorKind, MapBuilder, MapReader, MapRoot, PageRef, PointDraft, PointId, Presence, Progress, ReadSession,
    Repository, Verification, WriteSession, restore, with_compressor,
};
use std::sync::Arc;
use windlass_tests::conformance::{DISK_BYTES, begin, manifest, options};
use windlass_tests::fake::{Target, noise};
use wire::Quotas;

/// One chunk of a block of the cluster's machine, and what a thief does who knows what is in it.
struct Guess {
    keys: DomainKeys,
    id: ChunkId,
    blob: Blob,
}

impl Guess {
    fn new(field: &Field) -> Self {
        let keys = DomainKeys::new(&field.repository.config().domain);
        let plain = &noise(1, 1 << 20)[..GRID_BYTES as usize];
        let (id, blob) = (keys.id(ChunkKind::Data, plain), compressed(ChunkKind::Data, plain));
        Self { keys, id, blob }
    }

    async fn told(&self, session: &impl WriteSession) -> Presence {
        session.missing(ChunkKind::Data, &[self.id]).await.unwrap()[0]
    }

    async fn got(&self, session: &impl ReadSession, id: ChunkId) -> bool {
        let batches: Vec<_> = session.get(vec![id]).collect().await;
        let verified = session.get_verified(&self.keys, vec![id]).await;
        let found: Vec<bool> = [batches.concat(), verified].concat().iter().map(|(_, blob)| blob.is_ok()).collect();
        assert_eq!(found.len(), 2, "each is answered once");
        assert_eq!(found[0], found[1]);
        found[0]
    }

    /// A disk that has it as its first block: the map's root, and its pages.
    async fn map<S: WriteSession>(&self, _: &S) -> (MapRoot, Vec<(ChunkId, Blob)>) {
        let mut builder = MapBuilder::new(DISK_BYTES, None::<(MapRoot, &MapReader<'_, S>)>, &self.keys);
        builder.set(0, PageRef::Chunk(self.id)).await.unwrap();
        let (root, pages) = builder.finish();
        let page = |plain: &Vec<u8>| (self.keys.id(ChunkKind::Page, plain), compressed(ChunkKind::Page, plain));
        (root, pages.iter().map(|it| page(&it.plain)).collect())
    }
}

fn compressed(kind: ChunkKind, plain: &[u8]) -> Blob {
    with_compressor(Compression::None, |compressor| compressor.compress(kind, plain))
}

fn draft(point: PointId, root: MapRoot) -> [PointDraft; 1] {
    [PointDraft { manifest: manifest(point, root), origin: None, labels: Default::default() }]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_owner_never_had_is_missing() {
    for apart in [false, true] {
        let field = Field::with(Quotas::default(), apart).await;
        field.backup(HOST_1, &options("web"), &field.machine(1)).await.unwrap();
        let (guess, thief) = (Guess::new(&field), field.remote(THIEF).await);
        let point = PointId([1; 16]);
        let (session, _) = thief.begin(begin(point, &[], Verification::Decode)).await.unwrap();
        assert_eq!(guess.told(&session).await == Presence::Missing, apart);
        assert_eq!(guess.got(&session, guess.id).await, !apart);
        // A page of its own that names it proves nothing either.
        let (root, pages) = guess.map(&session).await;
        session.put(pages.clone()).await.unwrap();
        session.flush().await.unwrap();
        for (page, _) in &pages {
            assert!(guess.got(&session, *page).await, "what it put it may read");
        }
        assert_eq!(guess.got(&session, guess.id).await, !apart);
        let made = session.commit(&draft(point, root)).await.unwrap();
        match made {
            Commit::Committed(_) => assert!(!apart),
            Commit::Missing(missing) => {
                assert!(apart && missing == [guess.id]);
                // Whoever has it may put it, and cannot tell whether it was there: all that was put counts.
                let before = session.stored().await.unwrap();
                session.put(vec![(guess.id, guess.blob.clone())]).await.unwrap();
                let after = session.flush().await.unwrap();
                assert!(after.bytes_stored - before.bytes_stored >= u64::from(GRID_BYTES));
                assert_eq!(guess.told(&session).await, Presence::Have);
                assert!(guess.got(&session, guess.id).await);
                let made = session.commit(&draft(point, root)).await.unwrap();
                assert!(matches!(made, Commit::Committed(_)), "{made:?}");
            }
        }
        let refused = thief.stats().await.err().map(|error| error.kind());
        assert_eq!(refused, apart.then_some(ErrorKind::NotAuthorised));
        field.remote(ADMIN).await.stats().await.unwrap();
    }
}

/// Each owner's own is found as ever, and what two have is stored once; also after the index was made again, which forgets
/// who had what.
#[tokio::test(flavor = "multi_thread")]
async fn owners_that_are_kept_apart_lose_nothing() {
    let field = Field::with(Quotas::default(), true).await;
    let web = field.machine(1);
    let first = field.backup(HOST_1, &options("web"), &web).await.unwrap();
    let before = field.repository.stats().await.unwrap().bytes_stored;
    let same = field.backup(THIEF, &options("same"), &web).await.unwrap();
    assert_eq!(same.chunks_new, first.chunks_new, "it sends all");
    let diff = same.point.bytes_stored.abs_diff(first.point.bytes_stored);
    assert!(diff < 1 << 10, "and is charged for all: {} {}", same.point.bytes_stored, first.point.bytes_stored);
    let after = field.repository.stats().await.unwrap().bytes_stored;
    assert!(after - before < 64 << 10, "which is there once: {before} {after}");
    // A machine of the same owner with the same content.
    let twin = field.backup(HOST_2, &options("twin"), &web).await.unwrap();
    assert_eq!(twin.chunks_new, 0);
    field.repository.rebuild_index(Arc::default()).await.unwrap();
    let (guess, host) = (Guess::new(&field), field.remote(HOST_2).await);
    let (session, _) = host.begin(begin(PointId([1; 16]), &[], Verification::Decode)).await.unwrap();
    assert_eq!(guess.told(&session).await, Presence::Missing);
    let reader = host.read(&[first.point.id]).await.unwrap();
    let disk = reader.manifest(first.point.id).await.unwrap().disks[0].clone();
    let (target, screen) = Target::new(disk.size);
    restore(&reader, &guess.keys, &disk, target, &field.pool, &Progress::default()).await.unwrap();
    assert!(screen.image().unwrap() == web.images()[0]);
    assert_eq!(guess.told(&session).await, Presence::Have, "a point that it may see needs it");
    drop((session, reader));
    web.write(0, 0, b"changed");
    let next = field.backup(HOST_1, &options("web"), &web).await.unwrap();
    assert_eq!((next.parent, next.chunks_new), (Some(first.point.id), 1));
    field.repository.rebuild_index(Arc::default()).await.unwrap();
    let full = mover::BackupOptions { wish: mover::TrackingWish::Full, ..options("web") };
    field.backup(HOST_1, &full, &web).await.unwrap();
}
