//! Jobs: prepared from what the model knows, performed by the store, and settled with the model.

use super::{BLOCK, CONTENTS, DEATH, LONG_AGO, PATIENCE, System};
use crate::coverage;
use crate::expected::{Answer, Asked, AskedBackup, Excuse, Place};
use crate::operation::{Job, Range, Views};
use crate::outer::Mortal;
use chunker::{DomainKeys, Extent};
use mover::{
    BackupOptions, ChangeTracking, Depth, ErrorKind, PointChange, PointFilter, PointId, Pool, Progress, ReadSession,
    Repository, Result, SweepOptions, TrackingWish, VerifyOptions, World, backup, blocking, restore,
};
use std::cell::Cell;
use std::fs;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use store::Local;
use store::io::{Fault, Io};
use windlass_tests::conformance::options;
use windlass_tests::fake::{Image, Snapshot, Target, noise};

/// A job, ready to run.
pub(super) struct Ready {
    pub asked: Asked,
    pub source: Option<(Snapshot, BackupOptions)>,
    pub options: Option<VerifyOptions>,
}

impl System {
    pub(super) fn extent(&self, at: Range) -> (usize, usize, Extent) {
        let machine = usize::from(at.machine) % self.subjects.len();
        let sizes = self.subjects[machine].sizes;
        let disk = usize::from(at.disk) % sizes.len();
        let (size, odd) = (sizes[disk], if at.odd { 12_345 } else { 0 });
        let block = u64::from(at.block) % size.div_ceil(BLOCK);
        let from = (block * BLOCK + odd).min(size - 1);
        let to = (from + u64::from(at.blocks) * BLOCK - odd / 2).min(size);
        (machine, disk, Extent::from(from..to))
    }

    pub(super) fn write(&mut self, at: Range, seed: u8, tracked: bool) {
        let (machine, disk, extent) = self.extent(at);
        let subject = &mut self.subjects[machine];
        let contents =
            (0..extent.length.div_ceil(BLOCK)).map(|block| noise((u64::from(seed) + block) % CONTENTS, BLOCK));
        let mut bytes: Vec<u8> = contents.flatten().collect();
        bytes.truncate(usize::try_from(extent.length).expect("a small disk"));
        match tracked {
            true => subject.machine.write(disk, extent.offset, &bytes),
            false => subject.machine.write_untracked(disk, extent.offset, &bytes),
        }
        subject.lied |= !tracked;
        coverage::effect(if tracked { "write" } else { "untracked write" });
    }

    pub(super) fn discard(&mut self, at: Range, tracked: bool) {
        let (machine, disk, extent) = self.extent(at);
        let subject = &mut self.subjects[machine];
        match tracked {
            true => subject.machine.discard(disk, extent),
            false => subject.machine.discard_untracked(disk, extent),
        }
        subject.lied |= !tracked;
        coverage::effect(if tracked { "discard" } else { "untracked discard" });
    }

    /// None when there is nothing that the job could be about.
    pub(super) fn prepare(&mut self, job: &Job) -> Option<Ready> {
        let pick = |from: Vec<PointId>, at: u8| from.get(usize::from(at) % from.len().max(1)).copied();
        Some(match job {
            Job::Backup { machine, wish } => {
                let machine = usize::from(*machine) % self.subjects.len();
                let point = PointId::random(&self.world);
                let newest = self.model.newest(machine);
                let subject = &mut self.subjects[machine];
                let provable = newest.is_some_and(|id| subject.checkpoints.contains(&id));
                let snapshot = subject.machine.snapshot();
                subject.checkpoints.push(point);
                let (images, lied) = (Arc::new(subject.machine.images()), subject.lied);
                let options = BackupOptions { wish: *wish, point: Some(point), ..options(subject.name) };
                let asked = AskedBackup { point, machine, wish: *wish, images, provable, lied };
                Ready { asked: Asked::Backup(asked), source: Some((snapshot, options)), options: None }
            }
            Job::Forget { point, many } => {
                let listed = self.model.at(Place::Listed);
                let first = usize::from(*point) % listed.len().max(1);
                let points: Vec<PointId> = listed.into_iter().skip(first).take(usize::from(*many)).collect();
                if points.is_empty() {
                    return None;
                }
                ready(Asked::Change(points, PointChange::Forget))
            }
            Job::Unforget { point, gone } => {
                let from = self.model.at(if *gone { Place::Gone } else { Place::Forgotten });
                ready(Asked::Change(vec![pick(from, *point)?], PointChange::Unforget))
            }
            Job::Sweep { percent, dry_run, fence } => ready(Asked::Sweep(SweepOptions {
                dry_run: *dry_run,
                repack_percent: *percent,
                fence_older_s: fence.then_some(0),
                ..SweepOptions::default()
            })),
            Job::Verify(depth) => {
                let options = VerifyOptions::new(*depth);
                Ready { options: Some(options), ..ready(Asked::Verify(*depth == Depth::Decode)) }
            }
            Job::Restore { point } => {
                let there = self.model.there();
                ready(Asked::Restore(pick(there, *point)?))
            }
            Job::Rebuild => ready(Asked::Rebuild),
        })
    }

    pub(super) async fn run(&mut self, job: &Job, excuse: Excuse) {
        if let Some(ready) = self.prepare(job) {
            self.perform_and_settle(ready, excuse).await;
        }
    }

    pub(super) async fn perform_and_settle(&mut self, mut ready: Ready, excuse: Excuse) {
        let answer = perform(self.local(), &mut ready, &self.pool, &self.world).await;
        self.settle(&ready.asked, &answer, excuse);
    }

    pub(super) fn settle(&mut self, asked: &Asked, answer: &Result<Answer>, excuse: Excuse) {
        coverage::trace(|| format!("    {}", told(asked, answer)));
        self.model.settle(asked, answer, excuse).unwrap_or_else(|broken| panic!("{broken}"));
        self.settle_others(asked, answer, excuse);
        self.note(asked, answer, excuse);
    }

    /// What became of the machine's checkpoints; and of sessions of other processes.
    pub(super) fn settle_others(&mut self, asked: &Asked, answer: &Result<Answer>, excuse: Excuse) {
        if let Asked::Sweep(SweepOptions { dry_run: false, fence_older_s: Some(_), .. }) = asked {
            self.readers.iter_mut().for_each(|held| held.since = LONG_AGO);
            self.count_pins();
        }
        let Asked::Backup(asked) = asked else { return };
        let subject = &mut self.subjects[asked.machine];
        match answer {
            Ok(Answer::Backup(report)) => {
                let at = subject.checkpoints.iter().position(|it| *it == asked.point).expect("it was begun");
                subject.checkpoints.drain(..at);
                self.made.push(asked.point);
                let modes: Vec<_> = report.disks.iter().map(|disk| disk.tracking.mode).collect();
                // Beside another backup of the machine, which may come later and be wrong, nothing is certain.
                if !modes.contains(&ChangeTracking::Bitmap) && !excuse.beside {
                    subject.lied = false;
                }
            }
            _ => subject.checkpoints.retain(|it| *it != asked.point),
        }
    }

    /// Both at once; with `hold` the other runs while the one stands still at that operation. Either may have come first, as
    /// long as one order explains both answers.
    pub(super) async fn together(&mut self, one: &Job, other: &Job, hold: Option<u8>) {
        let (Some(mut one), Some(mut other)) = (self.prepare(one), self.prepare(other)) else { return };
        let (local, pool, world) = (self.local(), self.pool.clone(), self.world.clone());
        let (io, waiting) = (self.io.clone(), self.io.clone());
        let held = Cell::new(hold.map(|after| io.hold(after.into())));
        let first = async {
            let made = perform(local.clone(), &mut one, &pool, &world).await;
            drop(held.take());
            made
        };
        let second = async {
            if hold.is_some() && blocking(move || waiting.wait_held()).await {
                coverage::effect("a job stood still beside another");
            }
            let mut work = pin!(perform(local.clone(), &mut other, &pool, &world));
            let made = tokio::time::timeout(PATIENCE, &mut work).await;
            // It may need what the one that stands still holds.
            drop(held.take());
            match made {
                Ok(made) => made,
                Err(_) => work.await,
            }
        };
        let (first, second) = tokio::join!(first, second);
        drop((local, held));
        let excuse = Excuse { beside: true, ..Excuse::default() };
        let order = |jobs: [(&Asked, &Result<Answer>); 2]| {
            let mut model = self.model.clone();
            jobs.into_iter().try_for_each(|(asked, answer)| model.settle(asked, answer, excuse)).map(|()| model)
        };
        let (a, b) = ((&one.asked, &first), (&other.asked, &second));
        self.model = match (order([a, b]), order([b, a])) {
            (Ok(mut model), Ok(other)) => {
                model.or(other);
                model
            }
            (Ok(model), Err(_)) | (Err(_), Ok(model)) => model,
            (Err(broken), Err(other)) => panic!("{broken}; or {other}"),
        };
        coverage::effect(format!("{} beside {}", one.asked.name(), other.asked.name()));
        for (asked, answer) in [a, b] {
            self.settle_others(asked, answer, excuse);
            self.note(asked, answer, excuse);
        }
    }

    pub(super) async fn abort(&mut self, machine: u8, wish: TrackingWish, polls: u8) {
        let mut ready = self.prepare(&Job::Backup { machine, wish }).expect("machines are there");
        let work = perform(self.local(), &mut ready, &self.pool, &self.world);
        match cut_short(work, polls).await {
            Some(answer) => self.settle(&ready.asked, &answer, Excuse::default()),
            None => {
                let Asked::Backup(asked) = &ready.asked else { unreachable!("a backup was asked for") };
                // The source is not told that it is over: its new checkpoint stays beside the old one.
                self.model.aborted(asked);
                coverage::effect("backup dropped in the middle");
            }
        }
    }

    pub(super) async fn faulty(&mut self, fault: Fault, after: u64, opening: bool, jobs: &[Job]) {
        let views = self.path(DEATH);
        let _ = fs::remove_dir_all(&views);
        if opening {
            self.close().await;
            self.io = Arc::new(Mortal::new(&self.repository()));
        }
        let limit = self.io.operations() + after;
        self.io.plan(after, fault, &views);
        if opening && let Err(error) = self.open_again().await {
            let expected = if fault == Fault::Full { ErrorKind::StoreFull } else { ErrorKind::StoreIo };
            assert!(error.kind() == expected && self.io.operations() > limit, "opening failed: {error:?}");
            coverage::effect(format!("{fault:?} in opening"));
        } else {
            for job in jobs {
                let Some(mut ready) = self.prepare(job) else { continue };
                let answer = perform(self.local(), &mut ready, &self.pool, &self.world).await;
                let struck = self.io.operations() > limit;
                let excuse = Excuse { fault: struck.then_some(fault), ..Excuse::default() };
                self.settle(&ready.asked, &answer, excuse);
            }
            if fault != Fault::Cut && self.io.operations() > limit {
                self.reads_on().await;
            }
        }
        let killed = fault == Fault::Cut;
        if killed && self.io.operations() <= limit {
            self.io.plan(0, fault, &views);
            // The first that notices: nothing has an effect from here on.
            let _ = self.io.list(&self.repository());
        }
        self.released().await;
        if killed {
            self.put_views(DEATH, Views { index: true, references: true });
            coverage::effect("killed");
        }
        self.reopen().await;
    }

    /// What stops those who write does not concern those who read.
    async fn reads_on(&mut self) {
        let listed = self.local().list(&PointFilter::default()).await.expect("points can be listed");
        if let Some(point) = listed.last() {
            self.restore(point.id).await;
        }
    }

    /// Counts what happened.
    pub(super) fn note(&self, asked: &Asked, answer: &Result<Answer>, excuse: Excuse) {
        let name = asked.name();
        match (answer, excuse.fault) {
            (Err(_), Some(fault)) => coverage::effect(format!("{fault:?} in {name}")),
            (Ok(_), Some(fault)) => coverage::effect(format!("{fault:?} survived by {name}")),
            (Err(error), None) => coverage::effect(format!("{name} refused: {:?}", error.kind())),
            (Ok(_), None) => coverage::effect(name),
        }
        match answer {
            Ok(Answer::Backup(report)) => {
                report.disks.iter().for_each(|disk| coverage::effect(format!("{:?} of a disk", disk.tracking.mode)));
            }
            Ok(Answer::Swept(report)) => {
                for (what, times) in [
                    ("sweep made points final", report.points_final),
                    ("sweep deleted packs", report.packs_deleted),
                    ("sweep packed again", report.bytes_repacked),
                    ("sweep waits for sessions", report.bytes_waiting),
                ] {
                    if times > 0 {
                        coverage::effect(what);
                    }
                }
            }
            _ => {}
        }
    }
}

fn told(asked: &Asked, answer: &Result<Answer>) -> String {
    let of = match asked {
        Asked::Backup(asked) => format!("of machine {}, point {}", asked.machine, asked.point),
        Asked::Change(points, _) => points.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        Asked::Restore(point) => point.to_string(),
        Asked::Sweep(_) | Asked::Verify(_) | Asked::Rebuild => String::new(),
    };
    let how = match answer {
        Ok(Answer::Swept(report)) => format!("{report:?}"),
        Ok(Answer::Verified(report)) => format!("{report:?}"),
        Ok(_) => "done".to_owned(),
        Err(error) => format!("{:?}: {error}", error.kind()),
    };
    format!("{} {of}: {how}", asked.name())
}

pub(super) const fn ready(asked: Asked) -> Ready {
    Ready { asked, source: None, options: None }
}

pub(super) async fn perform(local: Local, ready: &mut Ready, pool: &Pool, world: &World) -> Result<Answer> {
    let progress = Progress::default();
    Ok(match &ready.asked {
        Asked::Backup(_) => {
            let (snapshot, options) = ready.source.take().expect("a backup has a source");
            Answer::Backup(Box::new(backup(&local, snapshot, &options, pool, world, &progress).await?))
        }
        Asked::Change(points, change) => local.change_points(points, *change).await.map(|()| Answer::Changed)?,
        Asked::Sweep(options) => Answer::Swept(local.sweep(*options, Arc::default()).await?),
        Asked::Verify(_) => {
            let options = ready.options.take().expect("a verification has options");
            Answer::Verified(local.verify(options, Arc::default()).await?)
        }
        Asked::Restore(point) => {
            let reader = local.read(&[*point]).await?;
            Answer::Restored(read_all(&reader, &local, pool, *point).await?)
        }
        Asked::Rebuild => local.rebuild_index(Arc::default()).await.map(|_| Answer::Rebuilt)?,
    })
}

/// All disks of a point.
pub(super) async fn read_all(reader: &store::Reader, local: &Local, pool: &Pool, point: PointId) -> Result<Vec<Image>> {
    let keys = DomainKeys::new(&local.config().domain);
    let mut images = Vec::new();
    for disk in &reader.manifest(point).await?.disks {
        let (target, screen) = Target::new(disk.size);
        restore(reader, &keys, disk, target, pool, &Progress::default()).await?;
        images.push(screen.image().expect("it was finished"));
    }
    Ok(images)
}

/// Polls so often and no more. None when that was not enough.
pub(super) async fn cut_short<T>(work: impl Future<Output = T>, polls: u8) -> Option<T> {
    let (mut work, mut left) = (pin!(work), polls);
    poll_fn(|context| match work.as_mut().poll(context) {
        Poll::Ready(made) => Poll::Ready(Some(made)),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            Poll::Pending
        }
    })
    .await
}
