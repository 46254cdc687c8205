//! Reading objects, and asking for room.

use super::{Storage, all_of, named, pack};
use crate::fake::noise;
use mover::ErrorKind;
use store::objects::ObjectName;

pub fn what_is_not_there_is_none_or_damage(storage: &dyn Storage) {
    let objects = storage.open();
    let pack = named(b"no such pack");
    for name in
        [ObjectName::Config, ObjectName::Record(1), ObjectName::Digest(1), ObjectName::Verified, ObjectName::Pack(pack)]
    {
        assert_eq!(objects.read(name, 9).unwrap(), None, "{name}");
        assert_eq!(objects.read_hashed(name, 9).unwrap(), None, "{name}");
    }
    // Nobody opens a pack that the log does not know.
    let error = objects.open_pack(&pack).err().expect("it is not there");
    assert_eq!(error.kind(), ErrorKind::Integrity, "{error}");
}

pub fn what_is_too_long_is_refused(storage: &dyn Storage) {
    let (objects, name, bytes) = (storage.open(), ObjectName::Config, noise(5, 1_000));
    objects.create(name, &bytes).unwrap();
    for bytes_max in [1_000, 1_001, u64::MAX] {
        assert_eq!(objects.read(name, bytes_max).unwrap().as_ref(), Some(&bytes));
        assert_eq!(objects.read_hashed(name, bytes_max).unwrap().as_ref(), Some(&bytes));
    }
    for bytes_max in [0, 999] {
        for read in [objects.read(name, bytes_max), objects.read_hashed(name, bytes_max)] {
            assert_eq!(read.unwrap_err().kind(), ErrorKind::Integrity);
        }
    }
}

pub fn ranges_are_exact(storage: &dyn Storage) {
    let (objects, bytes) = (storage.open(), noise(6, 10_000));
    let name = pack(&*objects, &bytes);
    let open = objects.open_pack(&name).unwrap();
    assert_eq!(open.length().unwrap(), 10_000);
    for (offset, length) in [(0, 10_000), (0, 1), (0, 0), (9_999, 1), (4_095, 4_097), (10_000, 0), (123, 4_567)] {
        assert_eq!(open.read(offset as u64, length).unwrap(), bytes[offset..offset + length], "{length} from {offset}");
    }
    // What is not there is damage, and never fewer bytes.
    for (offset, length) in [(0, 10_001), (9_999, 2), (10_000, 1), (20_000, 1)] {
        let error = open.read(offset, length).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Integrity, "{length} from {offset}: {error}");
    }
}

pub fn a_pack_that_is_open_outlives_its_removal(storage: &dyn Storage) {
    let (objects, bytes) = (storage.open(), noise(7, 100_000));
    let name = pack(&*objects, &bytes);
    let open = objects.open_pack(&name).unwrap();
    storage.open().remove(ObjectName::Pack(name)).unwrap();
    assert_eq!(all_of(&*open), bytes);
    objects.open_pack(&name).err().expect("it is gone for others");
}

pub fn room_is_told_and_kept(storage: &dyn Storage) {
    let objects = storage.open();
    let space = objects.space().unwrap();
    assert!(space.total == 0 || space.free <= space.total, "{space:?}");
    assert!(!objects.give_up_reserve(), "there was none");
    assert!(objects.keep_reserve(1 << 20) && objects.keep_reserve(1 << 20));
    let kept = storage.open().give_up_reserve();
    assert!(!objects.give_up_reserve(), "it was given up");
    assert!(objects.keep_reserve(1 << 20));
    assert_eq!(objects.give_up_reserve(), kept, "as often as is wanted");
    assert!(!objects.place().is_empty());
}
