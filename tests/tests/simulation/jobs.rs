//! What the proxy and the administrator do.

use crate::journal::Journal;
use crate::lab::{DISK_BYTES, Lab, Storage};
use chunker::{DomainKeys, Extent};
use mover::{
    BackupOptions, Depth, Error, PointChange, PointFilter, PointId, Progress, ReadSession, RecoveryPoint, Repository,
    RepositoryId, Result, SweepOptions, Verification, VerifyOptions, backup, copy, restore,
};
use quinn::Endpoint;
use std::rc::Rc;
use std::sync::Arc;
use windlass_tests::conformance::options;
use windlass_tests::fake::{Target, noise};
use wire::Remote;

/// A proxy, from its start to its end or crash: backs the machine up again and again. What it had begun it forgets with a
/// crash, as a program does; whoever runs it may give the next try the same point id.
pub async fn proxy(lab: Rc<Lab>) -> turmoil::Result {
    let endpoint = lab.client(&lab.proxy).await?;
    while !lab.journal().backed_up {
        let calm = lab.calm.get();
        let point = prepare(&lab);
        if lab.job("backup", back_up(&lab, &endpoint, point)).await.is_some() {
            lab.journal().pending = None;
            lab.journal().backed_up |= calm;
        }
        lab.proxy.think(3_000).await;
    }
    Ok(())
}

/// The machine runs on; the next try is for a new point, or for the one that did not go well.
fn prepare(lab: &Lab) -> PointId {
    let mut dice = lab.proxy.dice.borrow_mut();
    let mut journal = lab.journal();
    let again = journal.pending.filter(|_| dice.permille(600));
    if again.is_none() || dice.permille(500) {
        for _ in 0..dice.within(1..6) {
            let offset = dice.within(0..DISK_BYTES);
            let length = dice.within(1..400_000).min(DISK_BYTES - offset);
            match dice.permille(200) {
                true => lab.machine.discard(0, Extent::new(offset, length)),
                false => lab.machine.write(0, offset, &noise(dice.number(), length)),
            }
        }
    }
    let point = again.unwrap_or_else(|| PointId::random(&lab.proxy.world));
    journal.pending = Some(point);
    journal.tried.entry(point).or_default().extend(lab.machine.images());
    point
}

async fn back_up(lab: &Lab, endpoint: &Endpoint, point: PointId) -> Result<()> {
    let remote = lab.connect(&lab.proxy, endpoint, &lab.a).await?;
    let options = BackupOptions { point: Some(point), ..options("machine") };
    let made = once(lab, &remote, &options).await?;
    acknowledged(lab, &remote, &made);
    if lab.proxy.dice.borrow_mut().permille(250) {
        // The same again, as who did not hear the answer would.
        let made = once(lab, &remote, &options).await?;
        acknowledged(lab, &remote, &made);
    }
    remote.close().await;
    Ok(())
}

async fn once(lab: &Lab, remote: &Remote, options: &BackupOptions) -> Result<RecoveryPoint> {
    let (snapshot, progress) = (lab.machine.snapshot(), Progress::default());
    let report = backup(remote, snapshot, options, &lab.proxy.pool, &lab.proxy.world, &progress).await?;
    if Some(report.point.id) != options.point {
        lab.journal().blame(format!("{:?} was asked for and {} made", options.point, report.point.id));
    }
    Ok(report.point)
}

fn acknowledged(lab: &Lab, remote: &Remote, point: &RecoveryPoint) {
    let mut journal = lab.journal();
    journal.jobs.backups += 1;
    journal.acknowledge(remote.config().id, point);
}

/// An administrator: lists, copies from one node to the other, restores from both, and compares; at the end
/// all that is missing, and the newest points.
pub async fn admin(lab: Rc<Lab>) -> turmoil::Result {
    let endpoint = lab.client(&lab.admin).await?;
    while !lab.journal().backed_up {
        lab.admin.think(2_000).await;
        let turn = lab.admin.dice.borrow_mut().within(0..6);
        match turn {
            0 => drop(lab.job("restore from a", restore_any(&lab, &endpoint, &lab.a)).await),
            1 => drop(lab.job("restore from b", restore_any(&lab, &endpoint, &lab.b)).await),
            2 => drop(lab.job("sweep of a", forget_and_sweep(&lab, &endpoint, &lab.a)).await),
            3 => drop(lab.job("sweep of b", forget_and_sweep(&lab, &endpoint, &lab.b)).await),
            _ => drop(lab.job("copy", copy_next(&lab, &endpoint)).await),
        }
    }
    while lab.job("last copy", copy_next(&lab, &endpoint)).await == Some(true) {}
    for storage in [&lab.a, &lab.b] {
        for back in 0..LAST_RESTORES {
            lab.job("last restore", restore_one(&lab, &endpoint, storage, back)).await;
        }
        lab.job("last look", look_through(&lab, &endpoint, storage)).await;
    }
    lab.journal().verified = true;
    Ok(())
}

async fn list(lab: &Lab, remote: &Remote) -> Result<Vec<RecoveryPoint>> {
    let of: RepositoryId = remote.config().id;
    let promised = lab.journal().promised(of);
    let points = remote.list(&PointFilter::default()).await?;
    Journal::listed(&mut lab.journal(), of, &promised, &points);
    Ok(points)
}

/// Copies the oldest point that is missing; false when there was none.
async fn copy_next(lab: &Lab, endpoint: &Endpoint) -> Result<bool> {
    let from = lab.connect(&lab.admin, endpoint, &lab.a).await?;
    let to = lab.connect(&lab.admin, endpoint, &lab.b).await?;
    let (here, there) = (list(lab, &from).await?, list(lab, &to).await?);
    let next = here.iter().find(|point| there.iter().all(|it| it.id != point.id));
    if let Some(point) = next {
        copy(&from, &to, point, Verification::Decode, &Progress::default()).await?;
        let mut journal = lab.journal();
        journal.jobs.copies += 1;
        journal.copied.insert((to.config().id, point.id));
    }
    from.close().await;
    to.close().await;
    Ok(next.is_some())
}

/// Forgets the oldest points, and reclaims what they alone had, beside the backups and whatever goes wrong.
async fn forget_and_sweep(lab: &Lab, endpoint: &Endpoint, storage: &Storage) -> Result<()> {
    let remote = lab.connect(&lab.admin, endpoint, storage).await?;
    let points = list(lab, &remote).await?;
    let many = lab.admin.dice.borrow_mut().within(1..4);
    let oldest = points[..points.len().saturating_sub(KEPT)].iter().take(usize::try_from(many).expect("few"));
    let oldest: Vec<PointId> = oldest.map(|point| point.id).collect();
    if !oldest.is_empty() {
        oldest.iter().for_each(|point| lab.journal().forgets(remote.config().id, *point));
        remote.change_points(&oldest, PointChange::Forget).await?;
        let there = list(lab, &remote).await?;
        if let Some(back) = there.iter().find(|point| oldest.contains(&point.id)) {
            lab.journal().blame(format!("{} was forgotten and is listed", back.id));
        }
    }
    let swept = remote.sweep(SweepOptions::default(), Arc::default()).await?;
    lab.journal().jobs.sweeps += u64::from(swept.bytes_reclaimed > 0);
    remote.close().await;
    Ok(())
}

/// Everything that a repository has is there and what it should be.
async fn look_through(lab: &Lab, endpoint: &Endpoint, storage: &Storage) -> Result<()> {
    let remote = lab.connect(&lab.admin, endpoint, storage).await?;
    let report = remote.verify(VerifyOptions::new(Depth::Decode), Arc::default()).await?;
    if !report.errors.is_empty() {
        lab.journal().blame(format!("{}: {:?}", storage.host.name, report.errors));
    }
    remote.close().await;
    Ok(())
}

async fn restore_any(lab: &Lab, endpoint: &Endpoint, from: &Storage) -> Result<()> {
    let back = lab.admin.dice.borrow_mut().number();
    restore_one(lab, endpoint, from, back).await
}

/// Restores the point so far before the newest, going round.
async fn restore_one(lab: &Lab, endpoint: &Endpoint, from: &Storage, back: u64) -> Result<()> {
    let remote = lab.connect(&lab.admin, endpoint, from).await?;
    let points = list(lab, &remote).await?;
    if !points.is_empty() {
        let back = usize::try_from(back % points.len() as u64).expect("an index");
        restored(lab, &remote, points[points.len() - 1 - back].id).await?;
    }
    remote.close().await;
    Ok(())
}

async fn restored(lab: &Lab, remote: &Remote, point: PointId) -> Result<()> {
    let reader = remote.read(&[point]).await?;
    let manifest = reader.manifest(point).await?;
    let keys = DomainKeys::new(&remote.config().domain);
    let [disk] = &manifest.disks[..] else { return Err(Error::internal("a machine with another number of disks")) };
    let (target, screen) = Target::new(disk.size);
    restore(&reader, &keys, disk, target, &lab.admin.pool, &Progress::default()).await?;
    lab.journal().restored(point, &screen.image().unwrap_or_default());
    Ok(())
}

/// The newest points that nobody forgets: backups rely on them.
const KEPT: usize = 3;
/// Points restored from each node when all is over.
const LAST_RESTORES: u64 = 5;
