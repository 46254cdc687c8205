//! What becomes visible, and what does not.

use super::kit::{Fixture, Lab, begin, committed, missing, options};
use crate::fake::{Machine, noise};
use crate::meddle::Meddled;
use bytes::Bytes;
use chunker::{Blob, ChunkId, ChunkKind};
use mover::{
    Commit, Error, ErrorKind, MapRoot, NewAttachment, Origin, PointId, Presence, Repository, RepositoryId, Timestamp,
    Verification, WriteSession,
};

const BLOCKS: [(u64, u64); 3] = [(0, 1), (5, 2), (2000, 3)];

/// Puts the blocks above and their pages into `session`; gives the map's root.
async fn put_all<F: Fixture, S: WriteSession>(lab: &Lab<F>, session: &S) -> MapRoot {
    let chunks = BLOCKS.map(|(_, seed)| lab.block(seed));
    let (root, pages) = lab.map(&BLOCKS.map(|(block, seed)| (block, lab.block(seed).0))).await;
    session.put(chunks.to_vec()).await.unwrap();
    session.put(pages).await.unwrap();
    session.flush().await.unwrap();
    root
}

pub async fn committing_twice_gives_the_same_point<F: Fixture>(lab: Lab<F>) {
    let point = PointId::random(&lab.world);
    let session = lab.session_of(point, &[]).await;
    let draft = lab.draft(point, put_all(&lab, &session).await);
    let first = committed(session.commit(std::slice::from_ref(&draft)).await.unwrap());
    assert_eq!(committed(session.commit(std::slice::from_ref(&draft)).await.unwrap()), first, "on the same session");
    assert!(session.flush().await.unwrap().chunks == 3, "totals can be had after the commit");
    drop(session);
    let lab = lab.reopened().await;
    let session = lab.session_of(point, &[]).await;
    let mut other = draft;
    other.manifest.tags.push("tried again".into());
    assert_eq!(committed(session.commit(&[other]).await.unwrap()), first, "on a later session, whatever it says");
    assert_eq!(lab.points().await, first);
    lab.assert_restores(point, &[lab.image(&BLOCKS)]).await;
}

pub async fn unknown_chunks_are_listed_and_can_be_put<F: Fixture>(lab: Lab<F>) {
    let point = PointId::random(&lab.world);
    let session = lab.session_of(point, &[]).await;
    let chunks = BLOCKS.map(|(_, seed)| lab.block(seed));
    let (root, pages) = lab.map(&BLOCKS.map(|(block, seed)| (block, lab.block(seed).0))).await;
    session.put(pages).await.unwrap();
    session.put(vec![chunks[1].clone()]).await.unwrap();
    session.flush().await.unwrap();
    let draft = [lab.draft(point, root)];
    let mut want = vec![chunks[0].0, chunks[2].0];
    want.sort();
    for _ in 0..2 {
        assert_eq!(missing(session.commit(&draft).await.unwrap()), want, "a refused commit does not end the session");
    }
    assert!(lab.points().await.is_empty());
    session.put(vec![chunks[0].clone(), chunks[2].clone()]).await.unwrap();
    session.flush().await.unwrap();
    assert_eq!(lab.points().await.len(), 0);
    committed(session.commit(&draft).await.unwrap());
    lab.assert_restores(point, &[lab.image(&BLOCKS)]).await;
}

pub async fn absent_pages_are_not_descended_into<F: Fixture>(lab: Lab<F>) {
    let point = PointId::random(&lab.world);
    let session = lab.session_of(point, &[]).await;
    let (root, pages) = lab.map(&BLOCKS.map(|(block, seed)| (block, lab.block(seed).0))).await;
    let draft = [lab.draft(point, root)];
    assert_eq!(missing(session.commit(&draft).await.unwrap()), [root.id.unwrap()]);
    let (top, leaves) = pages.split_last().unwrap();
    assert_eq!(Some(top.0), root.id);
    session.put(vec![top.clone()]).await.unwrap();
    session.flush().await.unwrap();
    let mut want: Vec<ChunkId> = leaves.iter().map(|(id, _)| *id).collect();
    want.sort();
    assert_eq!(missing(session.commit(&draft).await.unwrap()), want);
    session.put(leaves.to_vec()).await.unwrap();
    session.flush().await.unwrap();
    assert_eq!(missing(session.commit(&draft).await.unwrap()).len(), 3);
}

pub async fn a_page_does_not_vouch_for_its_subtree<F: Fixture>(lab: Lab<F>) {
    // R7: the pages were left behind by a session that never brought the data.
    let (root, pages) = lab.map(&BLOCKS.map(|(block, seed)| (block, lab.block(seed).0))).await;
    let session = lab.session().await;
    session.put(pages.clone()).await.unwrap();
    session.flush().await.unwrap();
    session.abandon().await.unwrap();
    let point = PointId::random(&lab.world);
    let session = lab.session_of(point, &[]).await;
    assert_eq!(session.missing(ChunkKind::Page, &[pages[0].0]).await.unwrap(), [Presence::Have]);
    assert_eq!(missing(session.commit(&[lab.draft(point, root)]).await.unwrap()).len(), 3);
    assert!(lab.points().await.is_empty());
}

pub async fn refused_commit_is_repaired_by_backup<F: Fixture>(lab: Lab<F>) {
    // R8: what was said to be there is not, when it comes to the commit.
    let machine = Machine::new(&lab.world, &[1 << 20, 1 << 20]);
    machine.write(0, 0, &noise(1, 1 << 20));
    machine.write(1, 0, &noise(2, 1 << 20));
    let repository = Meddled::new(&lab.repository);
    let lost = |seed, at: usize| lab.keys.id(ChunkKind::Data, &noise(seed, 1 << 20)[at << 16..(at + 1) << 16]);
    repository.meddling.plan().have.extend([lost(1, 0), lost(1, 7), lost(2, 15)]);
    let report = lab.backup_with(&repository, &options("repair"), machine.snapshot()).await.unwrap();
    assert_eq!(repository.meddling.plan().operations["commit"], 2);
    lab.assert_restores(report.point.id, &machine.images()).await;
    // An attachment's piece as well.
    let bytes = noise(5, 20_000);
    repository.meddling.plan().have.insert(lab.keys.id(ChunkKind::Attachment, &bytes));
    let mut options = options("repair");
    options.attachments =
        vec![NewAttachment { kind: "nvram".parse().unwrap(), name: "vars".into(), bytes: bytes.into() }];
    let report = lab.backup_with(&repository, &options, machine.snapshot()).await.unwrap();
    assert_eq!(
        lab.blobs(report.point.id).await.len(),
        32 + 2 + 1 + 1,
        "blocks, leaves, the attachment's page and piece"
    );
}

/// When the repository has lost a page, it is not known any more to what the page refers. So the source is read again.
pub async fn a_lost_page_is_made_again<F: Fixture>(lab: Lab<F>) {
    let machine = Machine::new(&lab.world, &[1 << 20]);
    machine.write(0, 0, &noise(1, 1 << 20));
    let other = lab.sibling().await;
    let elsewhere = other.backup("elsewhere", &machine).await.point.id;
    let blobs = other.blobs(elsewhere).await;
    let pages = blobs.iter().filter(|(_, blob)| blob.header().kind == ChunkKind::Page).map(|(id, _)| *id);
    let repository = Meddled::new(&lab.repository);
    repository.meddling.plan().have.extend(pages);
    let report = lab.backup_with(&repository, &options("lost"), machine.snapshot()).await.unwrap();
    assert_eq!(repository.meddling.plan().operations["commit"], 2);
    lab.assert_restores(report.point.id, &machine.images()).await;
}

pub async fn an_abandoned_session_leaves_no_point<F: Fixture>(lab: Lab<F>) {
    let session = lab.session().await;
    put_all(&lab, &session).await;
    session.abandon().await.unwrap();
    assert!(lab.points().await.is_empty());
    let lab = lab.reopened().await;
    assert!(lab.points().await.is_empty());
    assert!(lab.has(ChunkKind::Data, lab.block(1).0).await, "its chunks stay for the next try");
}

pub async fn a_dropped_session_leaves_no_point<F: Fixture>(lab: Lab<F>) {
    let session = lab.session().await;
    put_all(&lab, &session).await;
    drop(session);
    let session = lab.session().await;
    session.put(vec![lab.block(77)]).await.unwrap();
    drop(session);
    let lab = lab.reopened().await;
    assert!(lab.points().await.is_empty());
    assert!(lab.has(ChunkKind::Data, lab.block(3).0).await);
}

pub async fn groups_are_all_or_nothing<F: Fixture>(lab: Lab<F>) {
    let (one, two) = (PointId::random(&lab.world), PointId::random(&lab.world));
    let session = lab.session_of(one, &[]).await;
    let root = put_all(&lab, &session).await;
    let (other, pages) = lab.map(&[(9, lab.block(9).0)]).await;
    session.put(pages).await.unwrap();
    session.flush().await.unwrap();
    let drafts = [lab.draft(one, root), lab.draft(two, other)];
    assert_eq!(missing(session.commit(&drafts).await.unwrap()), [lab.block(9).0]);
    assert!(lab.points().await.is_empty(), "half a group is nothing");
    session.put(vec![lab.block(9)]).await.unwrap();
    session.flush().await.unwrap();
    let points = committed(session.commit(&drafts).await.unwrap());
    assert_eq!(points.iter().map(|point| point.id).collect::<Vec<_>>(), [one, two]);
    drop(session);
    let lab = lab.reopened().await;
    // Points of one record have no order among themselves.
    let sorted = |mut points: Vec<mover::RecoveryPoint>| {
        points.sort_by_key(|point| point.id);
        points
    };
    assert_eq!(sorted(lab.points().await), sorted(points));
    lab.assert_restores(one, &[lab.image(&BLOCKS)]).await;
    lab.assert_restores(two, &[lab.image(&[(9, 9)])]).await;
}

/// Puts a blob that does not match its id, and then tries everything that could bring it into a point. Gives the error.
async fn lie<F: Fixture>(lab: &Lab<F>, verification: Verification, id: ChunkId, blob: Blob) -> Option<Error> {
    let point = PointId::random(&lab.world);
    let (session, _) = lab.repository.begin(begin(point, &[], verification)).await.unwrap();
    let (root, pages) = lab.map(&[(3, id)]).await;
    let put = async {
        session.put(pages).await?;
        session.put(vec![(id, blob)]).await?;
        session.flush().await?;
        session.commit(&[lab.draft(point, root)]).await
    };
    match put.await {
        Ok(Commit::Committed(_)) => None,
        Ok(Commit::Missing(_)) => panic!("a refused chunk must end in an error of its session"),
        Err(error) => {
            let again = session.commit(&[lab.draft(point, root)]).await;
            assert!(!matches!(again, Ok(Commit::Committed(_))), "the error stays");
            Some(error)
        }
    }
}

pub async fn lying_puts_are_refused<F: Fixture>(lab: Lab<F>) {
    let ((id, blob), (other, _)) = (lab.block(1), lab.block(2));
    let plain = noise(1, 1 << 16);
    let flipped = |at: usize| {
        let mut bytes = blob.bytes().to_vec();
        bytes[at] ^= 4;
        Blob::parse(Bytes::from(bytes)).unwrap()
    };
    let lies = [
        ("the content of another chunk", other, blob.clone()),
        ("another kind", id, lab.chunk(ChunkKind::Page, &plain).1),
        ("a page that is data", lab.chunk(ChunkKind::Page, &plain).0, blob.clone()),
        ("a shorter chunk", id, lab.chunk(ChunkKind::Data, &plain[..1000]).1),
        ("a damaged payload", id, flipped(5000)),
        ("a damaged checksum", id, flipped(24)),
    ];
    for (what, id, blob) in lies {
        let error = lie(&lab, Verification::Decode, id, blob).await.unwrap_or_else(|| panic!("{what} was taken"));
        assert_eq!(error.kind(), ErrorKind::Integrity, "{what}: {error}");
        assert!(lab.points().await.is_empty(), "{what}");
        for kind in ChunkKind::ALL {
            assert!(!lab.has(kind, id).await, "{what} is visible as {kind:?}");
        }
    }
    let (id, blob) = lab.block(1);
    assert!(lie(&lab, Verification::Decode, id, blob).await.is_none(), "the truth is taken afterwards");
}

pub async fn checksums_are_compared_even_when_the_sender_is_trusted<F: Fixture>(lab: Lab<F>) {
    let (id, blob) = lab.block(1);
    let mut bytes = blob.bytes().to_vec();
    bytes[6000] ^= 1;
    let damaged = Blob::parse(Bytes::from(bytes)).unwrap();
    let error = lie(&lab, Verification::Checksum, id, damaged).await.expect("refused");
    assert_eq!(error.kind(), ErrorKind::Integrity);
    assert!(!lab.has(ChunkKind::Data, id).await);
    assert!(lie(&lab, Verification::Checksum, id, blob).await.is_none());
}

pub async fn nonsense_is_not_committed<F: Fixture>(lab: Lab<F>) {
    let point = PointId::random(&lab.world);
    let session = lab.session_of(point, &[]).await;
    let root = put_all(&lab, &session).await;
    let good = lab.draft(point, root);
    let mut level = good.clone();
    level.manifest.disks[0].root.level += 1;
    let mut data_as_page = good.clone();
    data_as_page.manifest.disks[0].root.id = Some(lab.block(1).0);
    let mut twins = good.clone();
    twins.manifest.disks.push(twins.manifest.disks[0].clone());
    for bad in [level, data_as_page, twins] {
        let refused = session.commit(&[bad]).await;
        assert!(!matches!(refused, Ok(Commit::Committed(_))), "{refused:?}");
    }
    assert!(lab.points().await.is_empty());
}

pub async fn texts_are_not_cut<F: Fixture>(lab: Lab<F>) {
    let long = "ü".repeat(mover::TEXT_BYTES_MAX / 2 + 1);
    let machine = Machine::new(&lab.world, &[1 << 20]);
    let tagged = mover::BackupOptions { tags: vec![long.clone()], ..options("words") };
    let refused = lab.backup_with(&lab.repository, &tagged, machine.snapshot()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Usage, "{refused}");
    assert_eq!(machine.outcomes(), [mover::Outcome::Abandoned]);
    let point = PointId::random(&lab.world);
    let session = lab.session_of(point, &[]).await;
    let good = lab.draft(point, put_all(&lab, &session).await);
    let mut tag = good.clone();
    tag.manifest.tags.push(long.clone());
    let mut path = good.clone();
    path.manifest.disks[0].format_options = long;
    for bad in [tag, path] {
        let refused = session.commit(&[bad]).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Usage, "{refused}");
    }
    assert!(lab.points().await.is_empty());
    committed(session.commit(&[good]).await.unwrap());
}

pub async fn attachments_are_as_long_as_they_say<F: Fixture>(lab: Lab<F>) {
    let point = PointId::random(&lab.world);
    let session = lab.session_of(point, &[]).await;
    let mut good = lab.draft(point, put_all(&lab, &session).await);
    let plain = noise(8, 30_000);
    let (id, blob) = lab.chunk(ChunkKind::Attachment, &plain);
    let (root, pages) = mover::stream_map(&lab.keys, &[(id, plain.len() as u64)]).unwrap();
    let pages = pages.iter().map(|page| lab.chunk(ChunkKind::Page, &page.plain));
    session.put(pages.chain([(id, blob)]).collect()).await.unwrap();
    session.flush().await.unwrap();
    let (kind, name) = ("nvram".parse().unwrap(), "vars".to_owned());
    good.manifest.attachments = vec![mover::Attachment { kind, name, bytes: plain.len() as u64, root }];
    for bytes in [1, 29_999, 30_001] {
        let mut bad = good.clone();
        bad.manifest.attachments[0].bytes = bytes;
        let refused = session.commit(&[bad]).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Integrity, "{bytes} bytes: {refused}");
    }
    assert!(lab.points().await.is_empty());
    committed(session.commit(&[good]).await.unwrap());
}

pub async fn the_point_is_as_drafted<F: Fixture>(lab: Lab<F>) {
    let point = PointId::random(&lab.world);
    let session = lab.session_of(point, &[]).await;
    let mut draft = lab.draft(point, put_all(&lab, &session).await);
    draft.manifest.tags = vec!["käse".into()];
    draft.manifest.labels = [("a".into(), "b".into())].into();
    draft.manifest.bytes_new = 12;
    let before = lab.world.now();
    let made = committed(session.commit(std::slice::from_ref(&draft)).await.unwrap()).remove(0);
    assert_eq!(
        (made.id, made.machine, &made.machine_name),
        (point, draft.manifest.machine, &draft.manifest.machine_name)
    );
    assert_eq!((made.snapshot_time, made.bytes_logical, made.bytes_new), (Timestamp(1), super::kit::DISK_BYTES, 12));
    assert!(made.commit_time >= before && made.commit_time <= lab.world.now());
    assert_eq!(made.origin, (lab.repository.config().id, made.commit_time));
    assert!(!made.pinned && !made.forgotten);
    let reader = lab.repository.read(&[point]).await.unwrap();
    assert_eq!(mover::ReadSession::manifest(&reader, point).await.unwrap(), draft.manifest);
    // A copy keeps where and when it was first.
    let copied = PointId::random(&lab.world);
    let session = lab.session_of(copied, &[point]).await;
    let mut draft = lab.draft(copied, draft.manifest.disks[0].root);
    draft.origin =
        Some(Origin { repository: RepositoryId([5; 16]), commit_time: Timestamp(99), number: 4, seen: None });
    let made = committed(session.commit(&[draft]).await.unwrap()).remove(0);
    assert_eq!(made.origin, (RepositoryId([5; 16]), Timestamp(99)));
}
