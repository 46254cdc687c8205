//! What comes from outside: bytes that change, views that go, and readers in other processes.

use super::jobs::{perform, read_all};
use super::{Held, LEASE_NS, LONG_AGO, READERS_MAX, SAVED, System};
use crate::coverage;
use crate::expected::{Answer, Excuse, Place};
use crate::operation::{Job, Views};
use crate::outer::VIEWS;
use mover::{Clock, Depth, ErrorKind, PointId, ReadSession, Repository};
use std::fs;
use std::sync::Arc;
use store::io::DiskIo;
use store::{Access, Local};
use windlass_tests::kept::{copy_folder, files, flip, replay};

impl System {
    pub(super) async fn corrupt(&mut self, pack: u8, at: u32, bit: u8, verify: bool) {
        let (packs, first) = (self.repository().join("packs"), !self.model.damaged);
        let found = files(&packs);
        let Some(file) = found.get(usize::from(pack) % found.len().max(1)) else { return };
        let path = packs.join(file);
        let length = fs::metadata(&path).expect("a pack").len();
        let offset = u64::from(at) % length;
        flip(&path, offset, 1 << bit);
        coverage::trace(|| format!("    byte {offset} of {length} of {}", path.display()));
        self.model.damage();
        coverage::effect("a byte changed");
        let name = file.file_name().expect("a name").to_string_lossy().into_owned();
        let state = replay(&self.repository());
        let live = state.packs().values().any(|it| it.doomed.is_none() && it.added.name.to_string() == name);
        if verify {
            let mut ready = self.prepare(&Job::Verify(Depth::Decode)).expect("always");
            let answer = perform(self.local(), &mut ready, &self.pool, &self.world).await;
            if let Ok(Answer::Verified(report)) = &answer {
                assert!(!report.errors.is_empty() || !first || !live, "byte {offset} of pack {name} was not found");
                coverage::effect("verify found damage");
            }
            self.settle(&ready.asked, &answer, Excuse::default());
        }
    }

    /// Points that have the same bytes as one made after the damage was known are healed with it; all but their manifest.
    pub(super) async fn healed(&mut self, by: PointId) {
        let it = &self.model.points[&by];
        if it.doubtful {
            return;
        }
        let images = it.images.clone();
        let alike = |id: &PointId| self.model.points[id].doubtful && self.model.points[id].images == images;
        let there = self.model.there();
        for id in there.into_iter().filter(alike).collect::<Vec<_>>() {
            let reader = self.local().read(&[id]).await.expect("it is there");
            if reader.manifest(id).await.is_err() {
                continue;
            }
            let images = read_all(&reader, &self.local(), &self.pool, id).await.expect("another backup has healed it");
            self.model.restored(id, &images).unwrap_or_else(|broken| panic!("{broken}"));
            coverage::effect("healed by a backup");
        }
    }

    pub(super) async fn lose(&mut self, views: Views) {
        self.close().await;
        self.put_views("nothing", views);
        self.reopen().await;
        coverage::effect("views lost");
    }

    pub(super) async fn roll_back(&mut self, views: Views) {
        if self.path(SAVED).join(VIEWS[0]).is_dir() {
            self.close().await;
            self.put_views(SAVED, views);
            self.reopen().await;
            coverage::effect("views rolled back");
        }
    }

    /// Replaces views by copies; by nothing when there are none.
    pub(super) fn put_views(&self, from: &str, views: Views) {
        for (view, wanted) in VIEWS.into_iter().zip([views.index, views.references]) {
            if !wanted {
                continue;
            }
            let (from, to) = (self.path(from).join(view), self.repository().join(view));
            let _ = fs::remove_dir_all(&to);
            if from.is_dir() {
                copy_folder(&from, &to);
            }
        }
    }

    pub(super) async fn hold(&mut self, point: u8) {
        let there = self.model.there();
        let Some(point) = there.get(usize::from(point) % there.len().max(1)).copied() else { return };
        if self.readers.len() >= READERS_MAX {
            return;
        }
        let since = self.clock.now();
        let (folder, pool, world) = (self.repository(), self.pool.clone(), self.world.clone());
        let local = Local::open_with(&folder, Access::Read, pool, world, Arc::new(DiskIo)).await.expect("it opens");
        let reader = local.read(&[point]).await.expect("the point is there");
        self.readers.push(Held { reader, local, point, since });
        self.count_pins();
        coverage::effect("reader opened");
    }

    pub(super) fn release(&mut self, at: usize) {
        drop(self.readers.remove(at));
        self.count_pins();
    }

    /// A point is pinned as long as one session that pins it is sure to be there.
    pub(super) fn count_pins(&mut self) {
        let now = self.clock.now();
        self.model.pins.clear();
        for held in &self.readers {
            let firm = now.0.saturating_sub(held.since.0) < LEASE_NS;
            *self.model.pins.entry(held.point).or_default() |= firm;
        }
    }

    /// Leases of other processes are ended after a week.
    pub(super) fn end_old_pins(&mut self) {
        self.count_pins();
        let now = self.clock.now();
        for held in self.readers.iter_mut().filter(|held| now.0.saturating_sub(held.since.0) >= LEASE_NS) {
            // And do not come back when the clock does.
            held.since = LONG_AGO;
        }
    }

    /// What a reader has pinned it can read, whatever became of the point.
    pub(super) async fn readers_read(&mut self) {
        for at in 0..self.readers.len() {
            let held = &self.readers[at];
            let firm = self.model.pins.get(&held.point) == Some(&true);
            let read = read_all(&held.reader, &held.local, &self.pool, held.point).await;
            let point = &self.model.points[&held.point];
            match read {
                Ok(images) if point.may_be.contains(&Place::Gone) => {
                    assert_eq!(*point.images, images, "what a reader still reads");
                    coverage::effect("reader read what is gone");
                }
                Ok(images) => {
                    if point.may_be.contains(&Place::Forgotten) {
                        coverage::effect("reader read what is forgotten");
                    }
                    let (id, doubtful) = (held.point, point.doubtful);
                    self.model.restored(id, &images).unwrap_or_else(|broken| panic!("{broken}"));
                    // It may remember what was damaged.
                    self.model.points.get_mut(&id).expect("it is there").doubtful = doubtful;
                }
                Err(error) => {
                    let excused = !firm || point.doubtful && error.kind() == ErrorKind::Integrity;
                    assert!(excused, "a reader that pins point {} cannot read it: {error:?}", held.point);
                    coverage::effect("reader refused");
                }
            }
        }
    }
}
