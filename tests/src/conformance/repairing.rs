use super::kit::{Fixture, Lab};
use crate::fake::{Machine, noise};
use chunker::{ChunkId, ChunkKind};
use mover::{Depth, Progress, RepairReport, Repository, VerifyOptions, repair};
use std::collections::BTreeSet;
use std::sync::Arc;

const BLOCK: u64 = 1 << 16;

/// Two chunks and the page above them, damaged. None where the fixture cannot damage anything.
async fn hurt<F: Fixture>(lab: &Lab<F>, point: mover::PointId) -> Option<BTreeSet<ChunkId>> {
    let blobs = lab.blobs(point).await;
    let of = |kind| blobs.iter().filter(move |(_, blob)| blob.header().kind == kind).map(|(id, _)| *id);
    let ids: Vec<ChunkId> = of(ChunkKind::Data).take(2).chain(of(ChunkKind::Page).take(1)).collect();
    for id in &ids {
        if !lab.fixture.hurt(&lab.repository, *id).await {
            return None;
        }
    }
    Some(ids.into_iter().collect())
}

pub async fn what_is_damaged_is_brought_from_another_copy<F: Fixture>(lab: Lab<F>) {
    let machine = Machine::new(&lab.world, &[20 * BLOCK]);
    machine.write(0, 0, &noise(1, 10 * BLOCK));
    let point = lab.backup("a", &machine).await.point;
    let other = lab.sibling().await;
    lab.copy_to(&other.repository, &point).await.unwrap();
    assert_eq!(lab.repository.wanted(None).await.unwrap(), []);
    let Some(hurt) = hurt(&lab, point.id).await else { return };
    let wanted = lab.repository.wanted(None).await.unwrap();
    assert_eq!(wanted.iter().copied().collect::<BTreeSet<_>>(), hurt);
    assert_eq!(lab.repository.wanted(Some(wanted[0])).await.unwrap(), wanted[1..]);
    // One that is named too is brought once.
    let named = BTreeSet::from([wanted[0]]);
    let repaired = repair(&lab.repository, &other.repository, named, &lab.world, &Progress::default()).await.unwrap();
    assert!(repaired.chunks == 3 && repaired.bytes > 2 * BLOCK && repaired.left == 0, "{repaired:?}");
    assert_eq!(lab.repository.wanted(None).await.unwrap(), []);
    let options = VerifyOptions::new(Depth::Decode);
    let report = lab.repository.verify(options, Arc::default()).await.unwrap();
    assert!(report.errors.is_empty() && report.points == 1, "{report:?}");
    lab.assert_restores(point.id, &machine.images()).await;
}

pub async fn what_the_other_copy_lacks_stays_wanted<F: Fixture>(lab: Lab<F>) {
    let machine = Machine::new(&lab.world, &[20 * BLOCK]);
    machine.write(0, 0, &noise(1, 10 * BLOCK));
    let point = lab.backup("a", &machine).await.point;
    let other = lab.sibling().await;
    let Some(hurt) = hurt(&lab, point.id).await else { return };
    let named = BTreeSet::from([ChunkId([9; 32])]);
    let repaired = repair(&lab.repository, &other.repository, named, &lab.world, &Progress::default()).await.unwrap();
    assert_eq!(repaired, RepairReport { chunks: 0, bytes: 0, left: 4 }, "what is named and there nowhere, too");
    assert_eq!(lab.repository.wanted(None).await.unwrap().into_iter().collect::<BTreeSet<_>>(), hurt);
    // The backup has them all.
    lab.backup("a", &machine).await;
    let still = lab.repository.wanted(None).await.unwrap();
    assert!(still.is_empty(), "{still:?}");
}
