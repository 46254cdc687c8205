//! A target that holds an older state is updated in place.

use super::kit::{BLOCK, Fixture, LEAF, Lab};
use crate::fake::{Image, Machine, Target, noise};
use crate::meddle::Meddled;
use chunker::Extent;
use mover::{DiskRecord, Error, ErrorKind, PointId, ReadSession, Repository, RestoreReport};

/// A point of a disk that ends within a block, and what the disk held one backup earlier.
struct Days<F: Fixture> {
    lab: Lab<F>,
    point: PointId,
    disk: DiskRecord,
    before: Image,
    after: Image,
}

const SIZE: u64 = 2 * LEAF + 5 * BLOCK + 700;

impl<F: Fixture> Days<F> {
    /// Six blocks change: one within, two by a write across their border, two become zeros, and the short last one.
    async fn new(lab: Lab<F>) -> Self {
        let machine = Machine::new(&lab.world, &[SIZE]);
        machine.write(0, 0, &noise(1, 50 * BLOCK));
        machine.write(0, LEAF - BLOCK, &noise(2, 3 * BLOCK));
        machine.write(0, SIZE - 700, &noise(3, 700));
        lab.backup("a", &machine).await;
        let before = machine.images().remove(0);
        machine.write(0, 7 * BLOCK + 5, b"within");
        machine.write(0, 10 * BLOCK - 3, b"across");
        machine.write(0, 20 * BLOCK, &vec![0; 2 * BLOCK as usize]);
        machine.write(0, SIZE - 1, b"!");
        let point = lab.backup("a", &machine).await.point.id;
        let after = machine.images().remove(0);
        let disk = lab.repository.read(&[point]).await.unwrap().manifest(point).await.unwrap().disks.remove(0);
        Self { lab, point, disk, before, after }
    }

    async fn update(&self, target: Target) -> mover::Result<RestoreReport> {
        let reader = self.lab.repository.read(&[self.point]).await.unwrap();
        self.lab.restore_delta(&reader, &self.disk, target).await
    }
}

pub async fn only_what_differs_is_fetched_and_written<F: Fixture>(lab: Lab<F>) {
    let days = Days::new(lab).await;
    let repository = Meddled::new(&days.lab.repository);
    let reader = repository.read(&[days.point]).await.unwrap();
    let (target, screen) = Target::holding(days.before.clone());
    let report = days.lab.restore_delta(&reader, &days.disk, target).await.unwrap();
    assert!(screen.image().unwrap() == days.after);
    assert_eq!((report.bytes_restored, report.bytes_written), (SIZE, 3 * BLOCK + 700));
    assert_eq!(screen.bytes_written(), report.bytes_written);
    assert_eq!(screen.covered().bytes(), 5 * BLOCK + 700, "two blocks are made zero");
    assert_eq!(screen.bytes_read(), 53 * BLOCK + 700, "holes are not read");
    let pages = 4;
    assert_eq!(repository.meddling.plan().read.len(), 4 + pages, "equal blocks are not fetched");
    // What is as it should be is not touched at all.
    let (target, screen) = Target::holding(days.after.clone());
    let report = days.update(target).await.unwrap();
    assert_eq!((report.bytes_written, screen.covered().bytes()), (0, 0));
    assert!(screen.image().unwrap() == days.after, "and it is finished");
}

pub async fn zeros_are_told_from_what_was_there<F: Fixture>(lab: Lab<F>) {
    let days = Days::new(lab).await;
    // Something else altogether, also where there should be nothing.
    let mut other = Image::new(SIZE);
    other.write(0, &noise(7, 3 * BLOCK));
    other.write(60 * BLOCK, &noise(8, 2 * BLOCK));
    other.write(LEAF + 9 * BLOCK + 17, b"x");
    let (target, screen) = Target::holding(other);
    let report = days.update(target).await.unwrap();
    assert!(screen.image().unwrap() == days.after);
    assert_eq!(report.bytes_written, 51 * BLOCK + 700);
    assert_eq!(screen.covered().bytes() - report.bytes_written, 3 * BLOCK, "zeros are left where there are some");
    // Zeros that the target does not know to be some are found by reading: nothing is written for them.
    let (target, screen) = Target::holding(days.after.clone());
    let report = days.update(target.without_holes()).await.unwrap();
    assert_eq!((report.bytes_written, screen.covered().bytes(), screen.bytes_read()), (0, 0, SIZE));
}

pub async fn a_target_of_another_size<F: Fixture>(lab: Lab<F>) {
    let days = Days::new(lab).await;
    let mut larger = days.before.clone();
    larger.resize(SIZE + 3 * BLOCK);
    let behind = Extent::from(SIZE..SIZE + 3 * BLOCK);
    larger.write(SIZE, &noise(4, behind.length));
    let (target, screen) = Target::holding(larger);
    days.update(target).await.unwrap();
    let image = screen.image().unwrap();
    assert_eq!(image.read(behind), noise(4, behind.length), "what lies behind the disk's end is left alone");
    assert!(image.read(Extent::new(0, SIZE)) == days.after.read(Extent::new(0, SIZE)));
    let mut smaller = days.before.clone();
    smaller.resize(SIZE - 1);
    let (target, screen) = Target::holding(smaller.clone());
    assert_eq!(days.update(target).await.unwrap_err().kind(), ErrorKind::Usage);
    assert!(screen.now() == smaller);
}

pub async fn broken_off_and_finished_by_the_same_call<F: Fixture>(lab: Lab<F>) {
    let days = Days::new(lab).await;
    for after in 0.. {
        let (target, screen) = Target::holding(days.before.clone());
        let made = days.update(target.fails_after(after, Error::target)).await;
        let broken = screen.now();
        assert_eq!(made.is_ok(), screen.image().is_some());
        let Err(error) = made else {
            assert!(after >= 4, "{after} calls");
            break;
        };
        assert_eq!(error.kind(), ErrorKind::Target);
        assert!(error.to_string().contains("partly updated"), "{error}");
        assert!(error.remedy().unwrap().contains("same command"), "{error}");
        let (target, screen) = Target::holding(broken);
        days.update(target).await.unwrap();
        assert!(screen.image().unwrap() == days.after, "after {after} calls");
    }
}

pub async fn a_target_that_cannot_be_read<F: Fixture>(lab: Lab<F>) {
    let days = Days::new(lab).await;
    let (target, screen) = Target::holding(days.before.clone());
    let failed = days.update(target.unreadable_at(Extent::new(LEAF, 512))).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Target);
    assert!(!failed.to_string().contains("partly"), "nothing was written: {failed}");
    assert!(screen.now() == days.before && screen.image().is_none());
    // Where nothing is known to be it is not read.
    let (target, screen) = Target::holding(days.before.clone());
    days.update(target.unreadable_at(Extent::new(70 * BLOCK, 512))).await.unwrap();
    assert!(screen.image().unwrap() == days.after);
}
