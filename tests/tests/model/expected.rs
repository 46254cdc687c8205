//! The model: which points there are, and what each must restore to.
//!
//! Where a fault or a neighbour leaves open what became of a point, it may be in several places; the next look at the
//! repository tells in which of them, and from then on it must stay there.

use chunker::{Extent, grid_blocks};
use mover::{
    BackupReport, ChangeTracking, Error, ErrorKind, PointChange, PointId, RecoveryPoint, Result, SweepOptions,
    SweepReport, TrackingWish, VerifyReport,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use store::io::Fault;
use windlass_tests::fake::Image;

/// Where a point can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    Listed,
    Forgotten,
    /// It never came to be, or is final.
    Gone,
}

/// A point that was asked for.
#[derive(Clone)]
pub struct Point {
    pub machine: usize,
    pub images: Arc<Vec<Image>>,
    /// The tracking had lied: a block may be what it was in an earlier point.
    pub stale: bool,
    pub may_be: BTreeSet<Place>,
    /// A pack was damaged since it was last restored: its bytes, or an error of integrity.
    pub doubtful: bool,
    /// Whoever made it was dropped, and may still be at it.
    pub late: bool,
}

/// All that is expected of a repository.
#[derive(Clone, Default)]
pub struct Model {
    /// Those that are gone too.
    pub points: BTreeMap<PointId, Point>,
    /// Those that were asked for, oldest first: numbers of points mean the same whatever ids they got.
    asked: Vec<PointId>,
    /// Which was committed before which, as far as that was seen.
    before: BTreeSet<(PointId, PointId)>,
    /// As listed the last time.
    listed: Vec<PointId>,
    /// A byte was changed, at some time.
    pub damaged: bool,
    /// And no verification of everything came to its end since.
    pub unknown_damage: bool,
    /// The process was there before the damage, and may have read what it damaged: that it can restore shows nothing.
    pub remembers: bool,
    /// Points that read sessions of others pin; false where the session may have been ended.
    pub pins: BTreeMap<PointId, bool>,
    /// A dropped job may have left a session open.
    pub stray: bool,
}

/// What is asked of a repository.
pub enum Asked {
    Backup(AskedBackup),
    Change(Vec<PointId>, PointChange),
    Sweep(SweepOptions),
    /// Whether every chunk is looked at.
    Verify(bool),
    Restore(PointId),
    Rebuild,
}

pub struct AskedBackup {
    pub point: PointId,
    pub machine: usize,
    pub wish: TrackingWish,
    pub images: Arc<Vec<Image>>,
    /// The machine has tracked all changes since its newest point.
    pub provable: bool,
    /// The tracking has left something out.
    pub lied: bool,
}

/// What a repository answers.
pub enum Answer {
    Backup(Box<BackupReport>),
    Changed,
    Swept(SweepReport),
    Verified(VerifyReport),
    Restored(Vec<Image>),
    Rebuilt,
}

/// What explains an error.
#[derive(Debug, Clone, Copy, Default)]
pub struct Excuse {
    /// This went wrong with files.
    pub fault: Option<Fault>,
    /// Another job ran at the same time.
    pub beside: bool,
}

/// A promise that was broken.
pub type Broken = String;

impl Model {
    /// Points of which it is certain that they are there.
    pub fn at(&self, place: Place) -> Vec<PointId> {
        let there = |id: &&PointId| self.points[*id].may_be == BTreeSet::from([place]);
        self.asked.iter().filter(there).copied().collect()
    }

    /// Points that are there, forgotten or not.
    pub fn there(&self) -> Vec<PointId> {
        [self.at(Place::Listed), self.at(Place::Forgotten)].concat()
    }

    /// The newest point of a machine: the parent of its next. None when that is not certain.
    pub fn newest(&self, machine: usize) -> Option<PointId> {
        let mut of_machine = self.points.iter().filter(|(_, point)| point.machine == machine);
        let unseen = |(id, point): (&PointId, &Point)| {
            point.may_be.len() > 1 || point.may_be.contains(&Place::Listed) && !self.listed.contains(id)
        };
        if of_machine.any(unseen) {
            return None;
        }
        let is_parent = |id: &&PointId| {
            let point = &self.points[*id];
            point.machine == machine && point.may_be.contains(&Place::Listed)
        };
        self.listed.iter().rfind(is_parent).copied()
    }

    /// Whether any point that is there may be damaged.
    pub fn any_doubtful(&self) -> bool {
        self.points.values().any(|point| point.doubtful && point.may_be.iter().any(|place| *place != Place::Gone))
    }

    /// A byte of a pack was changed.
    pub fn damage(&mut self) {
        (self.damaged, self.unknown_damage, self.remembers) = (true, true, true);
        self.points.values_mut().for_each(|point| point.doubtful = true);
    }

    /// Nobody from before is left.
    pub fn reopened(&mut self) {
        (self.stray, self.remembers) = (false, false);
        self.points.values_mut().for_each(|point| point.late = false);
    }

    /// Takes in what was answered.
    pub fn settle(&mut self, asked: &Asked, answer: &Result<Answer>, excuse: Excuse) -> Result<(), Broken> {
        if let Err(error) = answer
            && !self.is_excused(asked, error, excuse)
        {
            return Err(format!("{} failed: {:?}: {error}", asked.name(), error.kind()));
        }
        match (asked, answer) {
            (Asked::Backup(asked), answer) => self.backed_up(asked, answer, excuse),
            (Asked::Change(points, change), answer) => self.changed(points, *change, answer.as_ref().err()),
            (Asked::Sweep(options), answer) => {
                self.swept(*options, answer.is_ok());
                Ok(())
            }
            (Asked::Verify(all), Ok(Answer::Verified(report))) => self.verified(*all, report, excuse),
            (Asked::Restore(point), Ok(Answer::Restored(images))) => self.restored(*point, images),
            _ => Ok(()),
        }
    }

    fn is_excused(&self, asked: &Asked, error: &Error, excuse: Excuse) -> bool {
        let of_fault = match (excuse.fault, error.kind()) {
            (Some(Fault::Full), kind) => kind == ErrorKind::StoreFull,
            (Some(_), kind) => kind == ErrorKind::StoreIo,
            (None, _) => false,
        };
        let of_neighbour = excuse.beside && matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Busy);
        let of_job = match (asked, error.kind()) {
            (Asked::Backup(asked), ErrorKind::Tracking) => {
                let proven = asked.provable && !asked.lied && !self.damaged && !excuse.beside && excuse.fault.is_none();
                asked.wish == TrackingWish::Bitmap && !proven
            }
            (Asked::Backup(asked), ErrorKind::Integrity) => self.any_doubtful() && asked.wish == TrackingWish::Bitmap,
            (Asked::Change(points, _), ErrorKind::NotFound) => points.iter().any(|id| self.may_be(id, Place::Gone)),
            (Asked::Sweep(_), ErrorKind::Integrity) => self.any_doubtful(),
            (Asked::Restore(point), ErrorKind::Integrity) => self.points[point].doubtful,
            (Asked::Restore(point), ErrorKind::NotFound) => self.may_be(point, Place::Gone),
            _ => false,
        };
        of_fault || of_neighbour || of_job
    }

    fn may_be(&self, id: &PointId, place: Place) -> bool {
        self.points.get(id).is_some_and(|point| point.may_be.contains(&place))
    }

    fn backed_up(&mut self, asked: &AskedBackup, answer: &Result<Answer>, excuse: Excuse) -> Result<(), Broken> {
        let mut may_be = BTreeSet::from([Place::Listed]);
        let mut stale = asked.lied;
        match answer {
            Ok(Answer::Backup(report)) => {
                if report.point.id != asked.point {
                    return Err(format!("asked for point {}, got {}", asked.point, report.point.id));
                }
                let modes: Vec<ChangeTracking> = report.disks.iter().map(|disk| disk.tracking.mode).collect();
                let only = |mode| modes.iter().all(|it| *it == mode);
                let wants_bitmap = matches!(asked.wish, TrackingWish::Auto | TrackingWish::Bitmap);
                let alone = !excuse.beside && excuse.fault.is_none();
                let proven = wants_bitmap && asked.provable && !asked.lied && !self.damaged && alone;
                if proven && !only(ChangeTracking::Bitmap) {
                    return Err(format!("the tracking was proven, but {:?}", report.disks));
                }
                if asked.wish == TrackingWish::Full && !only(ChangeTracking::Full) {
                    return Err(format!("everything was to be read, but {:?}", report.disks));
                }
                stale &= modes.contains(&ChangeTracking::Bitmap);
                if !excuse.beside {
                    self.before.extend(self.there().into_iter().map(|id| (id, asked.point)));
                }
            }
            // The answer may be lost after the record was written.
            _ => drop(may_be.insert(Place::Gone)),
        }
        self.insert(asked, may_be, stale);
        Ok(())
    }

    /// A point may be there from now on.
    fn insert(&mut self, asked: &AskedBackup, may_be: BTreeSet<Place>, stale: bool) {
        let (machine, images) = (asked.machine, asked.images.clone());
        // What is known to be damaged is sent again.
        let doubtful = self.unknown_damage;
        self.asked.push(asked.point);
        self.points.insert(asked.point, Point { machine, images, stale, may_be, doubtful, late: false });
    }

    /// A point may be there from now on, or come.
    pub fn aborted(&mut self, asked: &AskedBackup) {
        self.insert(asked, BTreeSet::from([Place::Listed, Place::Gone]), asked.lied);
        self.points.get_mut(&asked.point).expect("just inserted").late = true;
        self.stray = true;
    }

    fn changed(&mut self, points: &[PointId], change: PointChange, error: Option<&Error>) -> Result<(), Broken> {
        let to = match change {
            PointChange::Forget => Place::Forgotten,
            PointChange::Unforget => Place::Listed,
            other => return Err(format!("{other:?} is not expected")),
        };
        if error.is_some_and(|error| error.kind() == ErrorKind::NotFound) {
            return Ok(());
        }
        for id in points {
            let point = self.points.get_mut(id).ok_or_else(|| format!("no point {id}"))?;
            let may_have_been = point.may_be.iter().any(|place| *place != Place::Gone);
            match error {
                None if !may_have_been => return Err(format!("{change:?} of point {id}, which is gone, went well")),
                None => point.may_be = BTreeSet::from([to]),
                Some(_) if may_have_been => drop(point.may_be.insert(to)),
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn swept(&mut self, options: SweepOptions, went_well: bool) {
        if options.dry_run {
            return;
        }
        for (id, point) in &mut self.points {
            if !point.may_be.contains(&Place::Forgotten) {
                continue;
            }
            let pinned = self.pins.get(id);
            if pinned != Some(&true) || options.fence_older_s.is_some() {
                point.may_be.insert(Place::Gone);
                if went_well && pinned.is_none() && !self.stray {
                    point.may_be.remove(&Place::Forgotten);
                }
            }
        }
    }

    fn verified(&mut self, all: bool, report: &VerifyReport, excuse: Excuse) -> Result<(), Broken> {
        let unexpected = |error: &&mover::VerifyError| !(self.damaged || error.unread && excuse.fault.is_some());
        if let Some(error) = report.errors.iter().find(unexpected) {
            return Err(format!("nothing is damaged, but {error:?}"));
        }
        if excuse.fault.is_none() && all {
            self.unknown_damage = false;
        }
        Ok(())
    }

    /// Compares what was restored. What a tracking that lied has made of a point is learned.
    pub fn restored(&mut self, id: PointId, images: &[Image]) -> Result<(), Broken> {
        let point = &self.points[&id];
        if *point.images != images {
            if !point.stale {
                return Err(format!("point {id} is not what it was: {}", difference(&point.images, images)));
            }
            let of_machine = self.points.values().filter(|it| it.machine == point.machine);
            let earlier: Vec<&Vec<Image>> = of_machine.map(|it| &*it.images).collect();
            for (disk, image) in images.iter().enumerate() {
                let fits = |block| earlier.iter().any(|it| it[disk].read(block) == image.read(block));
                if let Some(block) = grid_blocks(Extent::new(0, image.size()), image.size()).find(|block| !fits(*block))
                {
                    return Err(format!("disk {disk} of point {id} was never like that at {}", block.offset));
                }
            }
        }
        let images = Arc::new(images.to_vec());
        let point = self.points.get_mut(&id).expect("it is there");
        (point.images, point.stale) = (images, false);
        point.doubtful &= self.remembers;
        Ok(())
    }

    /// Compares what is listed, in the order of commits.
    pub fn listed(&mut self, listed: &[RecoveryPoint], forgotten: &[RecoveryPoint]) -> Result<(), Broken> {
        let mut seen = BTreeMap::new();
        for (points, place) in [(listed, Place::Listed), (forgotten, Place::Forgotten)] {
            for point in points {
                if seen.insert(point.id, place).is_some() {
                    return Err(format!("point {} is there twice", point.id));
                }
            }
            self.is_in_order(points)?;
        }
        if let Some(id) = seen.keys().find(|id| !self.points.contains_key(id)) {
            return Err(format!("point {id} was never asked for"));
        }
        self.listed = listed.iter().map(|point| point.id).collect();
        for (id, point) in &mut self.points {
            let place = seen.get(id).copied().unwrap_or(Place::Gone);
            if !point.may_be.contains(&place) {
                return Err(format!("point {id} is {place:?} and should be {:?}", point.may_be));
            }
            if place != Place::Gone || !point.late {
                point.may_be = BTreeSet::from([place]);
                point.late = false;
            }
        }
        Ok(())
    }

    /// What was committed before something else always will have been.
    fn is_in_order(&mut self, points: &[RecoveryPoint]) -> Result<(), Broken> {
        for (at, later) in points.iter().enumerate() {
            for earlier in &points[..at] {
                if self.before.contains(&(later.id, earlier.id)) {
                    return Err(format!("point {} is listed before {}", earlier.id, later.id));
                }
                self.before.insert((earlier.id, later.id));
            }
        }
        Ok(())
    }

    /// Both of two orders of events may have been the real one.
    pub fn or(&mut self, other: Self) {
        self.before.retain(|pair| other.before.contains(pair));
        for (id, point) in other.points {
            let mine = self.points.entry(id).or_insert_with(|| point.clone());
            mine.may_be.extend(point.may_be);
            mine.stale |= point.stale;
            mine.doubtful |= point.doubtful;
        }
        self.unknown_damage |= other.unknown_damage;
    }
}

impl Asked {
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Backup(_) => "backup",
            Self::Change(_, PointChange::Forget) => "forget",
            Self::Change(..) => "unforget",
            Self::Sweep(SweepOptions { dry_run: true, .. }) => "dry run",
            Self::Sweep(_) => "sweep",
            Self::Verify(_) => "verify",
            Self::Restore(_) => "restore",
            Self::Rebuild => "rebuild",
        }
    }
}

fn difference(expected: &[Image], found: &[Image]) -> String {
    if expected.len() != found.len() {
        return format!("{} disks instead of {}", found.len(), expected.len());
    }
    for (disk, (expected, found)) in expected.iter().zip(found).enumerate() {
        if expected.size() != found.size() {
            return format!("disk {disk} has {} bytes", found.size());
        }
        let size = found.size();
        let differs = |block: &Extent| expected.read(*block) != found.read(*block);
        if let Some(block) = grid_blocks(Extent::new(0, size), size).find(differs) {
            return format!("disk {disk} differs at {}", block.offset);
        }
    }
    "it is the same".into()
}
