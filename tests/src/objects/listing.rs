//! Lists of objects.

use super::{Storage, expect, pack};
use crate::fake::noise;
use std::collections::BTreeSet;
use store::format::pack::{PackKind, PackName};
use store::objects::ObjectName;

pub fn packs_are_listed_by_their_first_byte(storage: &dyn Storage) {
    let objects = storage.open();
    let made: BTreeSet<PackName> = (0..40).map(|seed| pack(&*objects, &noise(seed, 100))).collect();
    // What is not complete is no pack.
    let begun = objects.begin_pack(PackKind::Data).unwrap();
    begun.append(b"unfinished").unwrap();
    let mut listed = BTreeSet::new();
    for first in 0..=255 {
        for name in storage.open().packs(first).unwrap() {
            assert_eq!(name.0[0], first);
            assert!(listed.insert(name), "{name} twice");
        }
    }
    assert_eq!(listed, made);
}

pub fn records_are_listed_in_order_and_within_limits(storage: &dyn Storage) {
    let objects = storage.open();
    assert!(objects.records(0..u64::MAX, usize::MAX).unwrap().is_empty());
    let made = [1, 2, 9, 9_998, 9_999, 10_000, 10_001, 29_999, 30_000];
    expect(&*objects, &made);
    // In no order.
    for at in [3, 1, 8, 0, 7, 2, 6, 4, 5] {
        objects.create(ObjectName::Record(made[at]), b"record").unwrap();
    }
    let objects = storage.open();
    for (from, before) in [
        (0, u64::MAX),
        (1, 30_001),
        (2, 30_000),
        (3, 9),
        (9_999, 10_001),
        (10_000, 10_000),
        (10_001, 29_999),
        (30_001, 70_000),
    ] {
        let within: Vec<u64> = made.into_iter().filter(|number| (from..before).contains(number)).collect();
        assert_eq!(objects.records(from..before, usize::MAX).unwrap(), within, "{from} to {before}");
        for most in [0, 1, 4] {
            let some = &within[..within.len().min(most)];
            assert_eq!(objects.records(from..before, most).unwrap(), some, "{most} from {from} to {before}");
        }
    }
}

pub fn digests_are_listed_in_order(storage: &dyn Storage) {
    let objects = storage.open();
    assert!(objects.digests().unwrap().is_empty());
    for number in [512, 9, 256, 10_240, 1_000_000] {
        objects.create(ObjectName::Digest(number), b"digest").unwrap();
    }
    assert_eq!(storage.open().digests().unwrap(), [9, 256, 512, 10_240, 1_000_000]);
    objects.remove(ObjectName::Digest(256)).unwrap();
    assert_eq!(storage.open().digests().unwrap(), [9, 512, 10_240, 1_000_000]);
}
