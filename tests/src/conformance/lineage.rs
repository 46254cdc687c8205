//! Which points belong together: those of one machine, of one owner, made in one repository. A backup builds only on
//! such points, and retention counts each such set of points alone.

use super::kit::{Fixture, Lab, options};
use crate::fake::{Machine, noise};
use mover::labels::{LABELS_BYTES_MAX, LABELS_MAX, TAGGED, TIME_KEY, UNTAGGED, tag_key, time_value};
use mover::{
    BackupOptions, ChangeTracking, ErrorKind, Keep, PointChange, PointFilter, PointId, RecoveryPoint, Repository,
    SweepOptions, Timestamp, WriteSession, retain, select, still_wanted,
};
use std::sync::Arc;

const MIB: u64 = 1 << 20;

fn machine<F: Fixture>(lab: &Lab<F>, seed: u64) -> Machine {
    let machine = Machine::new(&lab.world, &[4 * MIB]);
    machine.write(0, 0, &noise(seed, 2 * MIB));
    machine
}

async fn forgotten<F: Fixture>(lab: &Lab<F>) -> Vec<RecoveryPoint> {
    lab.repository.list(&PointFilter { machine: None, forgotten: true }).await.unwrap()
}

async fn sweep<F: Fixture>(lab: &Lab<F>) {
    while !forgotten(lab).await.is_empty() {
        lab.repository.sweep(SweepOptions::default(), Arc::default()).await.unwrap();
    }
}

/// Two sites have a machine called `web`, and one copies to the other.
pub async fn a_stranger_of_the_same_name_is_no_parent<F: Fixture>(lab: Lab<F>) {
    let other = lab.sibling().await;
    let (own, stranger) = (machine(&lab, 1), machine(&lab, 2));
    let first = lab.backup("web", &own).await.point;
    let theirs = other.backup("web", &stranger).await.point;
    other.copy_to(&lab.repository, &theirs).await.unwrap();
    own.write(0, MIB, b"changed");
    let second = lab.backup("web", &own).await;
    assert_eq!((second.parent, second.point.machine), (Some(first.id), first.machine));
    assert_eq!(second.disks[0].tracking.mode, ChangeTracking::Bitmap, "the copy cost no bitmap");
    lab.assert_restores(second.point.id, &own.images()).await;
    let points = lab.points().await;
    let verdicts = retain(&points, &Keep { last: 1, ..Keep::default() }, lab.world.now());
    let gone: Vec<PointId> =
        verdicts.iter().filter(|verdict| verdict.reasons.is_empty()).map(|verdict| verdict.point.id).collect();
    assert_eq!(gone, [first.id], "the stranger's only copy stays");
    // Where there are only copies of the name, a machine begins.
    let third = lab.sibling().await;
    other.copy_to(&third.repository, &theirs).await.unwrap();
    let made = third.backup("web", &own).await;
    assert!(made.parent.is_none() && made.point.machine != theirs.machine);
}

/// A point that was made here, swept, and copied back is listed as older than the points made meanwhile. The next
/// backup does not use it as its parent, and so not for its bitmap.
pub async fn what_was_brought_back_is_no_parent<F: Fixture>(lab: Lab<F>) {
    let (web, other) = (machine(&lab, 1), lab.sibling().await);
    let first = lab.backup("web", &web).await.point;
    web.write(0, 0, b"second");
    let second = lab.backup("web", &web).await.point;
    for point in [&first, &second] {
        lab.copy_to(&other.repository, point).await.unwrap();
    }
    lab.repository.change_points(&[first.id], PointChange::Forget).await.unwrap();
    sweep(&lab).await;
    other.copy_to(&lab.repository, &first).await.unwrap();
    let listed = lab.points().await;
    assert_eq!(listed.iter().map(|point| point.id).collect::<Vec<_>>(), [second.id, first.id]);
    web.write(0, MIB, b"third");
    let third = lab.backup("web", &web).await;
    assert_eq!((third.parent, third.disks[0].tracking.mode), (Some(second.id), ChangeTracking::Bitmap));
    lab.assert_restores(third.point.id, &web.images()).await;
}

pub async fn a_copy_does_not_bring_back_what_was_forgotten<F: Fixture>(lab: Lab<F>) {
    let (web, other) = (machine(&lab, 1), lab.sibling().await);
    let mut made = Vec::new();
    for round in 0..3 {
        web.write(0, round * 65_536, b"changed");
        made.push(lab.backup("web", &web).await.point);
    }
    for point in &made[..2] {
        lab.copy_to(&other.repository, point).await.unwrap();
    }
    other.repository.change_points(&[made[1].id], PointChange::Forget).await.unwrap();
    let wanted = async || {
        let wanted = still_wanted(&other.repository, made.clone()).await.unwrap();
        wanted.iter().map(|point| point.id).collect::<Vec<_>>()
    };
    assert_eq!(wanted().await, [made[0].id, made[2].id]);
    let refused = lab.copy_to(&other.repository, &made[1]).await.unwrap_err();
    assert!(refused.kind() == ErrorKind::Usage && refused.remedy().unwrap().contains("unforget"), "{refused}");
    assert_eq!(forgotten(&other).await.len(), 1);
    sweep(&other).await;
    assert_eq!(wanted().await, [made[0].id, made[2].id], "also when it is final");
    let other = other.reopened().await;
    let left = still_wanted(&other.repository, made.clone()).await.unwrap();
    assert_eq!(left.iter().map(|point| point.id).collect::<Vec<_>>(), [made[0].id, made[2].id]);
    let report = lab.copy_to(&other.repository, &made[1]).await.unwrap();
    assert_eq!(report.points, 1, "by name it comes");
}

pub async fn times_that_have_not_come_are_refused<F: Fixture>(lab: Lab<F>) {
    const MINUTE_NS: i64 = 60 * 1_000_000_000;
    let point = PointId::random(&lab.world);
    let session = lab.session_of(point, &[]).await;
    let mut draft = lab.draft(point, lab.map(&[]).await.0);
    draft.manifest.snapshot_time = Timestamp(lab.world.now().0 + 70 * MINUTE_NS);
    let refused = session.commit(std::slice::from_ref(&draft)).await.unwrap_err();
    assert!(refused.kind() == ErrorKind::Usage && refused.remedy().unwrap().contains("clock"), "{refused}");
    assert!(lab.points().await.is_empty());
    draft.manifest.snapshot_time = Timestamp(lab.world.now().0 + 50 * MINUTE_NS);
    super::kit::committed(session.commit(&[draft]).await.unwrap());
}

pub async fn a_machine_that_was_handed_over_begins_anew<F: Fixture>(lab: Lab<F>) {
    let web = machine(&lab, 1);
    let first = lab.backup("web", &web).await.point;
    let origin = lab.repository.config().id;
    let absent = lab.repository.move_machine(mover::MachineId([9; 16]), origin, None).await.unwrap_err();
    assert_eq!(absent.kind(), ErrorKind::NotFound);
    let name: mover::Name = "cluster1".parse().unwrap();
    lab.repository.move_machine(first.machine, origin, Some(name.clone())).await.unwrap();
    let lab = lab.reopened().await;
    let moved = lab.points().await.remove(0);
    assert_eq!((moved.owner, moved.owner_name.as_ref()), (mover::OwnerId::of(&name), Some(&name)));
    assert_eq!(moved.stamped, first.owner, "who made it stays told");
    // What is made here is the site's own: another machine.
    let second = lab.backup_with(&lab.repository, &options("web"), web.snapshot()).await.unwrap();
    assert!(second.parent.is_none() && second.point.machine != first.machine);
    lab.repository.move_machine(first.machine, origin, None).await.unwrap();
    assert_eq!(lab.points().await[0].owner, mover::OwnerId::default());
}

/// Copies may come in any order; `latest` is the point that was made last in the repository where they come from (R25).
pub async fn copies_stand_in_the_order_of_their_origin<F: Fixture>(lab: Lab<F>) {
    let (web, other) = (machine(&lab, 1), lab.sibling().await);
    let mut made = Vec::new();
    for step in 0..3_u64 {
        web.write(0, step * MIB, b"changed");
        made.push(lab.backup("web", &web).await.point);
    }
    for at in [2, 0, 1] {
        lab.copy_to(&other.repository, &made[at]).await.unwrap();
    }
    let there = other.points().await;
    assert!(made.windows(2).all(|two| two[0].number < two[1].number) && made[0].number > 0);
    for (back, point) in made.iter().rev().enumerate() {
        let found = select(&there, &format!("web@latest~{back}").parse().unwrap()).unwrap();
        assert_eq!((found.id, found.number), (point.id, point.number));
    }
    let verdicts = retain(&there, &Keep { last: 1, ..Keep::default() }, lab.world.now());
    let kept: Vec<PointId> =
        verdicts.iter().filter(|verdict| !verdict.reasons.is_empty()).map(|verdict| verdict.point.id).collect();
    assert_eq!(kept, [made[2].id]);
}

/// Tags and a corrected time are kept as labels of a point, and are copied with it.
pub async fn labels_are_kept_and_go_with_copies<F: Fixture>(lab: Lab<F>) {
    let (web, other) = (machine(&lab, 1), lab.sibling().await);
    let tagged = BackupOptions { tags: vec!["a".into(), "b".into()], ..options("web") };
    let point = lab.backup_with(&lab.repository, &tagged, web.snapshot()).await.unwrap().point;
    let tags = |point: &RecoveryPoint| point.tags().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(tags(&point), ["a", "b"]);
    let (time, label) = (Timestamp(77), |key: String, value: &str| (key, value.to_owned()));
    let change = [
        label(tag_key("a"), UNTAGGED),
        label(tag_key("c"), TAGGED),
        label(TIME_KEY.into(), &time_value(time)),
        label("note".into(), "moved"),
    ];
    lab.repository.annotate(point.id, &change).await.unwrap();
    lab.repository.annotate(point.id, &[label("note".into(), "")]).await.unwrap();
    let lab = lab.reopened().await;
    let point = lab.points().await.remove(0);
    assert_eq!(
        (tags(&point), point.time(), point.labels.contains_key("note")),
        (vec!["b".into(), "c".into()], time, false)
    );
    lab.copy_to(&other.repository, &point).await.unwrap();
    assert_eq!(other.points().await[0].labels, point.labels);
    // Bounded, and of points that are there.
    let many: Vec<_> = (0..LABELS_MAX).map(|number| label(tag_key(&number.to_string()), TAGGED)).collect();
    let long = [label("x".into(), &"y".repeat(LABELS_BYTES_MAX))];
    for refused in [&many[..], &long, &[label(tag_key(""), TAGGED)]] {
        assert_eq!(lab.repository.annotate(point.id, refused).await.unwrap_err().kind(), ErrorKind::Usage);
    }
    let unknown = lab.repository.annotate(PointId([9; 16]), &change).await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
    assert_eq!(lab.points().await[0].labels, point.labels);
}
