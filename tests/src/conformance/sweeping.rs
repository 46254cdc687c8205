//! Forgetting, and reclaiming what was forgotten.

use super::kit::{BLOCK, Fixture, Lab, committed, missing};
use crate::fake::{Machine, noise};
use chunker::ChunkKind;
use mover::{
    BackupOptions, ErrorKind, PointChange, PointFilter, PointId, Presence, Repository, SweepOptions, SweepReport,
    WriteSession,
};
use std::sync::Arc;
use std::time::Duration;

impl<F: Fixture> Lab<F> {
    async fn change(&self, points: &[PointId], change: PointChange) {
        self.repository.change_points(points, change).await.expect("a change of points");
    }

    async fn sweep(&self) -> SweepReport {
        self.repository.sweep(SweepOptions::default(), Arc::default()).await.expect("a sweep")
    }

    /// Sweeps until nothing is left to be swept. One sweep may not be enough: across the wire the client does not wait
    /// until the node has ended a session.
    async fn sweep_all(&self) {
        let all = async {
            while self.sweep().await.bytes_waiting > 0 || !self.forgotten().await.is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), all).await.expect("sessions end");
    }

    async fn forgotten(&self) -> Vec<PointId> {
        let filter = PointFilter { machine: None, forgotten: true };
        self.repository.list(&filter).await.expect("list").iter().map(|point| point.id).collect()
    }
}

/// A machine whose first half changes with each state; the other half stays.
fn machine<F: Fixture>(lab: &Lab<F>, state: u64) -> Machine {
    let machine = Machine::new(&lab.world, &[20 * BLOCK]);
    machine.write(0, 10 * BLOCK, &noise(0, 10 * BLOCK));
    machine.write(0, 0, &noise(100 + state, 10 * BLOCK));
    machine
}

pub async fn forgotten_points_come_back_until_a_sweep<F: Fixture>(lab: Lab<F>) {
    let [first, second] = [lab.backup("a", &machine(&lab, 1)).await, lab.backup("b", &machine(&lab, 2)).await];
    let [first, second] = [first.point.id, second.point.id];
    lab.change(&[first], PointChange::Forget).await;
    lab.change(&[first], PointChange::Forget).await;
    assert_eq!((lab.points().await.len(), lab.forgotten().await), (1, vec![first]));
    lab.assert_restores(first, &machine(&lab, 1).images()).await;
    lab.change(&[first], PointChange::Unforget).await;
    assert_eq!((lab.points().await.len(), lab.forgotten().await.len()), (2, 0));
    assert_eq!(lab.sweep().await.points_final, 0, "nothing is forgotten");
    lab.change(&[first], PointChange::Forget).await;
    lab.sweep_all().await;
    let error = lab.repository.change_points(&[first], PointChange::Unforget).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "final");
    assert!(lab.repository.read(&[first]).await.is_err() && lab.forgotten().await.is_empty());
    let lab = lab.reopened().await;
    assert_eq!(lab.points().await.iter().map(|point| point.id).collect::<Vec<_>>(), [second]);
    lab.assert_restores(second, &machine(&lab, 2).images()).await;
}

pub async fn what_is_forgotten_and_committed_again_is_back<F: Fixture>(lab: Lab<F>) {
    let point = PointId::random(&lab.world);
    let options = BackupOptions { point: Some(point), ..super::kit::options("a") };
    for _ in 0..2 {
        let made = lab.backup_with(&lab.repository, &options, machine(&lab, 1).snapshot()).await.unwrap();
        assert!(made.point.id == point && !made.point.forgotten);
        assert_eq!((lab.points().await.len(), lab.forgotten().await.len()), (1, 0));
        lab.change(&[point], PointChange::Forget).await;
    }
    lab.sweep_all().await;
    lab.backup_with(&lab.repository, &options, machine(&lab, 1).snapshot()).await.unwrap();
    lab.assert_restores(point, &machine(&lab, 1).images()).await;
}

pub async fn pins_hold_and_unknown_points_are_told<F: Fixture>(lab: Lab<F>) {
    let point = lab.backup("a", &machine(&lab, 1)).await.point.id;
    let other = lab.backup("b", &machine(&lab, 2)).await.point.id;
    lab.change(&[point], PointChange::Pin).await;
    assert!(lab.points().await.iter().any(|it| it.id == point && it.pinned));
    let refused = lab.repository.change_points(&[other, point], PointChange::Forget).await.unwrap_err();
    assert!(refused.kind() == ErrorKind::Usage && refused.to_string().contains("pinned"), "{refused}");
    assert!(lab.forgotten().await.is_empty(), "all of them or none");
    lab.change(&[point], PointChange::Unpin).await;
    lab.change(&[other, point], PointChange::ForgetByRules).await;
    assert_eq!(lab.forgotten().await.len(), 2);
    let late = lab.repository.change_points(&[point], PointChange::Pin).await.unwrap_err();
    assert!(late.kind() == ErrorKind::Usage && late.to_string().contains("forgotten"), "a pin that would hold nothing");
    let unknown = PointId::random(&lab.world);
    for change in [PointChange::Forget, PointChange::Unforget, PointChange::Pin, PointChange::Unpin] {
        let refused = lab.repository.change_points(&[unknown], change).await.unwrap_err();
        assert!(refused.kind() == ErrorKind::NotFound && refused.to_string().contains(&unknown.to_string()));
    }
}

pub async fn what_points_share_stays<F: Fixture>(lab: Lab<F>) {
    let mut points = Vec::new();
    for state in 0..4 {
        points.push(lab.backup(["a", "b", "c", "d"][state as usize], &machine(&lab, state)).await.point.id);
    }
    let before = lab.repository.stats().await.unwrap().chunks;
    lab.change(&points[1..3], PointChange::Forget).await;
    let dry = SweepOptions { dry_run: true, ..SweepOptions::default() };
    let told = lab.repository.sweep(dry, Arc::default()).await.unwrap();
    assert_eq!((told.points_final, lab.forgotten().await.len()), (2, 2), "only told");
    assert_eq!(lab.repository.stats().await.unwrap().chunks, before);
    let swept = lab.sweep().await;
    assert_eq!((swept.points_final, swept.bytes_waiting), (2, 0));
    for state in [0, 3] {
        lab.assert_restores(points[state], &machine(&lab, state as u64).images()).await;
    }
    // What the forgotten ones held alone is sent again, what was shared is not.
    let again = lab.backup("e", &machine(&lab, 1)).await;
    assert!(again.chunks_new <= 12, "ten blocks, a page, a manifest: {}", again.chunks_new);
    let lab = lab.reopened().await;
    lab.assert_restores(again.point.id, &machine(&lab, 1).images()).await;
    // Everything.
    let all: Vec<PointId> = lab.points().await.iter().map(|point| point.id).collect();
    lab.change(&all, PointChange::Forget).await;
    lab.sweep_all().await;
    let left = lab.repository.stats().await.unwrap();
    assert_eq!((left.points, left.chunks, left.bytes_stored), (0, 0, 0), "nothing is left of nothing");
}

pub async fn a_reader_keeps_what_it_reads<F: Fixture>(lab: Lab<F>) {
    let state = machine(&lab, 1);
    let point = lab.backup("a", &state).await.point.id;
    let reader = lab.repository.read(&[point]).await.unwrap();
    lab.change(&[point], PointChange::Forget).await;
    assert_eq!(lab.sweep().await.points_final, 0, "a reader pins it (R10)");
    lab.assert_reader_restores(&reader, point, &state.images()).await;
    drop(reader);
    lab.sweep_all().await;
    assert_eq!(lab.repository.stats().await.unwrap().chunks, 0);
}

/// What a backup brought belongs to no point before its commit, and stays all the same (R6).
pub async fn what_an_open_session_brought_stays<F: Fixture>(lab: Lab<F>) {
    let (one, point) = (lab.block(1), PointId::random(&lab.world));
    let session = lab.session_of(point, &[]).await;
    session.put(vec![one.clone()]).await.unwrap();
    session.flush().await.unwrap();
    for _ in 0..2 {
        let swept = lab.sweep().await;
        assert_eq!((swept.bytes_reclaimed, swept.bytes_waiting), (0, 0), "{swept:?}");
    }
    assert!(lab.has(ChunkKind::Data, one.0).await);
    let (root, pages) = lab.map(&[(3, one.0)]).await;
    session.put(pages).await.unwrap();
    committed(session.commit(&[lab.draft(point, root)]).await.unwrap());
    drop(session);
    lab.sweep().await;
    lab.assert_restores(point, &[lab.image(&[(3, 1)])]).await;
    // A session that ended without a point leaves what goes.
    let session = lab.session().await;
    session.put(vec![lab.block(2)]).await.unwrap();
    session.flush().await.unwrap();
    session.abandon().await.unwrap();
    lab.sweep_all().await;
    assert!(!lab.has(ChunkKind::Data, lab.block(2).0).await);
}

/// The history of F26 and F27: a backup gets the answer "have" for a chunk, the only point with that chunk is forgotten
/// and swept, and then the backup commits.
pub async fn a_promise_that_was_swept_is_found_by_the_commit<F: Fixture>(lab: Lab<F>) {
    let old = PointId::random(&lab.world);
    let (one, two) = (lab.block(1), lab.block(2));
    let (old_root, old_pages) = lab.map(&[(0, one.0), (1, two.0)]).await;
    let first = lab.session_of(old, &[]).await;
    first.put([vec![one.clone(), two.clone()], old_pages].concat()).await.unwrap();
    first.flush().await.unwrap();
    committed(first.commit(&[lab.draft(old, old_root)]).await.unwrap());
    drop(first);

    let point = PointId::random(&lab.world);
    let session = lab.session_of(point, &[]).await;
    session.flush().await.unwrap();
    assert_eq!(session.missing(ChunkKind::Data, &[one.0]).await.unwrap(), [Presence::Have]);
    lab.change(&[old], PointChange::Forget).await;
    let swept = lab.sweep().await;
    assert_eq!(swept.points_final, 1);
    assert!(swept.bytes_waiting > 0 && swept.sessions_waited_for == 1, "{swept:?}");
    // Another backup is not told "have" any more.
    assert!(!lab.has(ChunkKind::Data, one.0).await);
    let (root, pages) = lab.map(&[(5, one.0)]).await;
    session.put(pages).await.unwrap();
    let lost = missing(session.commit(&[lab.draft(point, root)]).await.unwrap());
    assert_eq!(lost, [one.0], "it would be a point that cannot be restored");
    session.put(vec![one.clone()]).await.unwrap();
    committed(session.commit(&[lab.draft(point, root)]).await.unwrap());
    drop(session);
    lab.sweep().await;
    let lab = lab.reopened().await;
    lab.sweep().await;
    lab.assert_restores(point, &[lab.image(&[(5, 1)])]).await;
    assert!(!lab.has(ChunkKind::Data, two.0).await, "nobody needs it");
}

pub async fn sweeps_go_on_beside_backups<F: Fixture>(lab: Lab<F>) {
    let churn = async {
        let mut kept = Vec::new();
        for round in 0..12 {
            let state = machine(&lab, round % 5);
            let point = lab.backup("a", &state).await.point.id;
            kept.push((point, state.images()));
            if round % 2 == 1 {
                let (gone, _) = kept.remove(0);
                lab.change(&[gone], PointChange::Forget).await;
            }
        }
        kept
    };
    let sweeping = async {
        for _ in 0..12 {
            // A point may be forgotten, or a session open, at any step.
            let swept = lab.repository.sweep(SweepOptions::default(), Arc::default()).await;
            assert!(swept.as_ref().err().is_none_or(|error| error.kind() == ErrorKind::Busy), "{swept:?}");
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    };
    let (kept, ()) = tokio::join!(churn, sweeping);
    lab.sweep().await;
    let lab = lab.reopened().await;
    lab.sweep().await;
    for (point, images) in kept {
        lab.assert_restores(point, &images).await;
    }
}
