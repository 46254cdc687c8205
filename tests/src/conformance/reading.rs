//! Lists, reads and totals.

use super::kit::{BLOCK, Fixture, Lab, begin};
use crate::fake::{Machine, noise};
use chunker::{ChunkId, ChunkKind};
use futures::StreamExt;
use mover::{ChunkError, Depth, ErrorKind, PointFilter, PointId, ReadSession, Repository, Verification, VerifyOptions};
use std::collections::BTreeSet;
use std::sync::Arc;

fn machine<F: Fixture>(lab: &Lab<F>, seed: u64) -> Machine {
    let machine = Machine::new(&lab.world, &[20 * BLOCK]);
    machine.write(0, 0, &noise(seed, 10 * BLOCK));
    machine
}

pub async fn unknown_points<F: Fixture>(lab: Lab<F>) {
    let known = lab.backup("a", &machine(&lab, 1)).await.point.id;
    let unknown = PointId::random(&lab.world);
    let read = lab.repository.read(&[known, unknown]).await;
    assert_eq!(read.err().expect("refused").kind(), ErrorKind::NotFound);
    let begun = lab.repository.begin(begin(unknown, &[unknown], Verification::Decode)).await;
    assert_eq!(begun.err().expect("refused").kind(), ErrorKind::NotFound);
    let session = lab.session_of(unknown, &[known]).await;
    assert_eq!(session.manifest(known).await.unwrap().point, known, "a session reads its parents");
    assert_eq!(session.manifest(unknown).await.unwrap_err().kind(), ErrorKind::NotFound);
}

pub async fn lists_in_order_of_commit_and_by_name<F: Fixture>(lab: Lab<F>) {
    assert!(lab.points().await.is_empty());
    let machines = [("a", machine(&lab, 1)), ("b", machine(&lab, 2))];
    let mut made = Vec::new();
    for round in 0..3 {
        for (name, machine) in &machines {
            machine.write(0, 0, &noise(round, 5));
            made.push(lab.backup(name, machine).await.point);
        }
    }
    let lab = lab.reopened().await;
    assert_eq!(lab.points().await, made);
    assert!(made.windows(2).all(|pair| pair[0].commit_time <= pair[1].commit_time));
    for name in ["a", "b", "c"] {
        let filter = PointFilter { machine: Some(name.parse().unwrap()), forgotten: false };
        let want: Vec<_> = made.iter().filter(|point| point.machine_name.as_str() == name).cloned().collect();
        assert_eq!(lab.repository.list(&filter).await.unwrap(), want);
    }
    let forgotten = PointFilter { machine: None, forgotten: true };
    assert_eq!(lab.repository.list(&forgotten).await.unwrap(), []);
}

pub async fn every_distinct_id_once_or_more<F: Fixture>(lab: Lab<F>) {
    let point = lab.backup("a", &machine(&lab, 1)).await.point.id;
    let blobs = lab.blobs(point).await;
    assert_eq!(blobs.len(), 11);
    let reader = lab.repository.read(&[point]).await.unwrap();
    let unknown = ChunkId([3; 32]);
    let ids: Vec<ChunkId> = blobs.keys().copied().chain([unknown]).collect();
    let asked: Vec<ChunkId> = ids.iter().chain(&ids).copied().collect();
    let mut seen = BTreeSet::new();
    for (id, blob) in reader.get(asked).concat().await {
        seen.insert(id);
        match blob {
            Ok(blob) => assert_eq!(blob, blobs[&id]),
            Err(ChunkError::Missing { chunk }) => assert_eq!((chunk, id), (unknown, unknown)),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(seen, ids.into_iter().collect());
    assert!(reader.get(Vec::new()).concat().await.is_empty());
}

pub async fn log_head_moves_with_commits_only<F: Fixture>(lab: Lab<F>) {
    let machine = machine(&lab, 1);
    lab.backup("a", &machine).await;
    let first = lab.repository.log_head().await.unwrap();
    machine.write(0, 0, b"new");
    lab.backup("a", &machine).await;
    let second = lab.repository.log_head().await.unwrap();
    assert!(second.sequence > first.sequence && second.hash != first.hash);
    lab.points().await;
    lab.repository.stats().await.unwrap();
    assert_eq!(lab.repository.log_head().await.unwrap(), second);
}

pub async fn reopened_it_is_the_same<F: Fixture>(lab: Lab<F>) {
    let machine = machine(&lab, 1);
    let report = lab.backup("a", &machine).await;
    let (config, stats) = (lab.repository.config().clone(), lab.stats().await);
    let (points, seen) = (lab.points().await, lab.repository.log_head().await.unwrap());
    let lab = lab.reopened().await;
    assert_eq!(*lab.repository.config(), config);
    assert_eq!(lab.stats().await, stats);
    assert_eq!(lab.points().await, points);
    assert!(lab.repository.log_head().await.unwrap().sequence >= seen.sequence);
    lab.assert_restores(report.point.id, &machine.images()).await;
    let again = lab.backup("a", &machine).await;
    assert_eq!((again.chunks_new, again.parent), (0, Some(report.point.id)), "dedup survives");
}

pub async fn totals<F: Fixture>(lab: Lab<F>) {
    assert_eq!(lab.repository.stats().await.unwrap().points, 0);
    let report = lab.backup("a", &machine(&lab, 1)).await;
    let stats = lab.repository.stats().await.unwrap();
    assert_eq!((stats.points, stats.chunks, stats.bytes_logical, stats.suspects), (1, 12, 20 * BLOCK, 0));
    assert!(stats.packs >= 1 && stats.bytes_stored >= report.bytes_stored, "packs hold the blobs and more");
    assert_eq!((report.point.bytes_new, report.point.bytes_logical), (10 * BLOCK, 20 * BLOCK));
}

pub async fn an_index_made_again_beside_a_backup_knows_everything<F: Fixture>(lab: Lab<F>) {
    let first = lab.backup("a", &machine(&lab, 1)).await.point.id;
    let second = machine(&lab, 2);
    let (_, rebuilt) = tokio::join!(lab.backup("b", &second), lab.repository.rebuild_index(Arc::default()));
    assert!(rebuilt.unwrap().chunks >= 12);
    let lab = lab.reopened().await;
    for (name, seed) in [("c", 1), ("d", 2)] {
        assert_eq!(lab.backup(name, &machine(&lab, seed)).await.chunks_new, 0, "the seed {seed} is known");
    }
    lab.assert_restores(first, &machine(&lab, 1).images()).await;
}

pub async fn verification_tells_what_is_damaged<F: Fixture>(lab: Lab<F>) {
    let point = lab.backup("a", &machine(&lab, 1)).await.point.id;
    let verify = async |depth, points: &[PointId]| {
        let options = VerifyOptions { points: points.to_vec(), ..VerifyOptions::new(depth) };
        lab.repository.verify(options, Arc::default()).await.unwrap()
    };
    for (depth, points) in
        [(Depth::Structure, &[][..]), (Depth::ReadData { percent: 50 }, &[]), (Depth::Decode, &[point])]
    {
        let sound = verify(depth, points).await;
        assert!(sound.points == 1 && sound.errors.is_empty(), "{sound:?}");
    }
    let blobs = lab.blobs(point).await;
    let (id, _) = blobs.iter().find(|(_, blob)| blob.header().kind == ChunkKind::Data).unwrap();
    if lab.fixture.hurt(&lab.repository, *id).await {
        let found = verify(Depth::Decode, &[]).await;
        assert!(found.errors.iter().any(|error| error.chunk == Some(*id)), "{found:?}");
        assert!(!lab.has(ChunkKind::Data, *id).await, "the next backup that has it sends it");
    }
}
