//! Storages whose operations fail: each in turn, and in each way.

use super::{Failing, LONG, Storage, all_of, at_every_operation, expect, named, pack, there};
use crate::fake::noise;
use mover::{ErrorKind, Result};
use store::format::pack::PackKind;
use store::io::Fault;
use store::objects::{Created, ObjectName, Objects, UNPROVEN_BYTES_MAX};

fn is_of_the_store(error: &mover::Error) -> bool {
    matches!(error.kind(), ErrorKind::StoreIo | ErrorKind::StoreFull)
}

/// After any fault the whole object is there or nothing, and asking again shows which.
pub fn a_creation_that_fails_becomes_clear(storage: &dyn Storage) {
    expect(&*storage.open(), &[1]);
    let mut number = 0;
    at_every_operation(|what, after, fault| {
        number += 1;
        let (name, bytes) = (ObjectName::Record(number), noise(number, 3_000));
        let Failing { objects, faults } = storage.failing();
        faults.plan(after, fault);
        let made = objects.create(name, &bytes);
        let found = there(storage, name);
        match &made {
            Ok(made) => assert_eq!((*made, found), (Created::New, Some(bytes.clone())), "{what}"),
            Err(error) => {
                assert!(faults.has_struck() && is_of_the_store(error), "{what}: {error}");
                assert!(found.is_none_or(|found| found == bytes), "{what}: a part of it is there");
            }
        }
        if faults.has_struck() && fault != Fault::Cut {
            assert_eq!(objects.create(name, &bytes).unwrap(), Created::New, "{what}: it is asked again");
        }
        assert_eq!(storage.open().create(name, &bytes).unwrap(), Created::New, "{what}: the next process asks");
        assert_eq!(there(storage, name), Some(bytes.clone()), "{what}");
        // And in the way of somebody else it is no success, whatever fails.
        let Failing { objects, faults: late } = storage.failing();
        late.plan(after, fault);
        let refused = objects.create(name, b"other bytes");
        assert!(!matches!(refused, Ok(Created::New)), "{what}");
        assert_eq!(there(storage, name), Some(bytes), "{what}");
        assert!(storage.open().left_packs().unwrap().is_empty(), "{what}");
        faults.has_struck() || late.has_struck()
    });
}

pub fn a_replacement_that_fails_leaves_one_or_the_other(storage: &dyn Storage) {
    let name = ObjectName::Verified;
    let (old, new) = (noise(1, 2_000), noise(2, 3_000));
    at_every_operation(|what, after, fault| {
        storage.open().replace(name, &old).unwrap();
        let Failing { objects, faults } = storage.failing();
        faults.plan(after, fault);
        let made = objects.replace(name, &new);
        let found = there(storage, name).unwrap_or_else(|| panic!("{what}: neither is there"));
        assert!(found == new || made.is_err() && found == old, "{what}: {made:?}");
        faults.has_struck()
    });
}

/// A pack is written while something fails. A pack that has its name is whole; a pack that was left has the first part
/// of the bytes.
pub fn a_pack_that_fails_is_whole_or_not_there(storage: &dyn Storage) {
    let mut seed = 0;
    at_every_operation(|what, after, fault| {
        seed += 1;
        let bytes = noise(seed, 300_000);
        let (name, kind) = (named(&bytes), if seed.is_multiple_of(2) { PackKind::Data } else { PackKind::Page });
        let Failing { objects, faults } = storage.failing();
        faults.plan(after, fault);
        let written = (|| {
            let incoming = objects.begin_pack(kind)?;
            bytes.chunks(131_072).try_for_each(|piece| incoming.append(piece))?;
            incoming.publish(&name)
        })();
        if let Err(error) = &written {
            assert!(faults.has_struck() && is_of_the_store(error), "{what}: {error}");
        }
        match there(storage, ObjectName::Pack(name)) {
            Some(found) => assert!(found == bytes, "{what}: a part of it has its name"),
            None => assert!(written.is_err(), "{what}: it was published"),
        }
        let next = storage.open();
        for left in next.left_packs().unwrap() {
            let found = all_of(&*left.open().unwrap());
            assert!(bytes.starts_with(&found), "{what}: {} other bytes are left", found.len());
            if found == bytes {
                left.publish(&name).unwrap();
                assert!(there(storage, ObjectName::Pack(name)).is_some_and(|found| found == bytes), "{what}");
            }
            left.settle();
        }
        assert!(storage.open().left_packs().unwrap().is_empty(), "{what}");
        faults.has_struck()
    });
}

/// The first thing that publishing does is to make the bytes durable. When that fails there is no name.
pub fn nothing_is_named_before_it_is_durable(storage: &dyn Storage) {
    for (seed, fault) in [(1, Fault::Fail), (2, Fault::Full), (3, Fault::Cut)] {
        let Failing { objects, faults } = storage.failing();
        let (bytes, incoming) = (noise(seed, 5_000), objects.begin_pack(PackKind::Data).unwrap());
        incoming.append(&bytes).unwrap();
        faults.plan(0, fault);
        let error = incoming.publish(&named(&bytes)).unwrap_err();
        assert!(faults.has_struck() && is_of_the_store(&error), "{fault:?}: {error}");
        assert_eq!(there(storage, ObjectName::Pack(named(&bytes))), None, "{fault:?}");
        storage.open().left_packs().unwrap().iter().for_each(|left| left.settle());
    }
}

pub fn removals_that_fail_can_be_tried_again(storage: &dyn Storage) {
    expect(&*storage.open(), &[1]);
    type Removal = fn(&dyn Objects, ObjectName) -> Result<()>;
    let removals: [Removal; 2] = [|objects, name| objects.remove(name), |objects, name| objects.set_aside(name)];
    let mut number = 0;
    for removal in removals {
        at_every_operation(|what, after, fault| {
            number += 1;
            let name = ObjectName::Record(number);
            storage.open().create(name, b"record").unwrap();
            let Failing { objects, faults } = storage.failing();
            faults.plan(after, fault);
            let gone = removal(&*objects, name);
            match there(storage, name) {
                None => {}
                Some(found) => {
                    assert!(gone.is_err() && found == b"record", "{what}: {gone:?}");
                    removal(&*storage.open(), name).unwrap();
                }
            }
            assert_eq!(there(storage, name), None, "{what}");
            assert!(gone.is_ok() || faults.has_struck(), "{what}");
            faults.has_struck()
        });
    }
}

/// An error is never an empty list, an object that is not there, damage, or other bytes.
pub fn what_cannot_be_read_is_an_error(storage: &dyn Storage) {
    let objects = storage.open();
    expect(&*objects, &[1, 10_000]);
    for name in [ObjectName::Config, ObjectName::Record(1), ObjectName::Record(10_000), ObjectName::Digest(1)] {
        objects.create(name, b"some bytes, and what may be their hash").unwrap();
    }
    let bytes = noise(1, 10_000);
    let name = pack(&*objects, &bytes);
    let left = objects.begin_pack(PackKind::Page).unwrap();
    left.append(&bytes).unwrap();
    type Reading<'a> = &'a dyn Fn(&dyn Objects) -> Result<String>;
    let reads: [Reading<'_>; 9] = [
        &|objects| objects.read(ObjectName::Config, LONG).map(|it| format!("{it:?}")),
        &|objects| objects.read(ObjectName::Pack(name), LONG).map(|it| format!("{it:?}")),
        &|objects| objects.read_hashed(ObjectName::Digest(1), LONG).map(|it| format!("{it:?}")),
        &|objects| objects.records(0..u64::MAX, 9).map(|it| format!("{it:?}")),
        &|objects| objects.records(0..u64::MAX, 1).map(|it| format!("{it:?}")),
        &|objects| objects.digests().map(|it| format!("{it:?}")),
        &|objects| objects.packs(name.0[0]).map(|it| format!("{it:?}")),
        &|objects| {
            let open = objects.open_pack(&name)?;
            Ok(format!("{} {:?}", open.length()?, open.read(100, 1_000)?))
        },
        &|objects| {
            let left = objects.left_packs()?;
            let all = left.iter().map(|left| left.open()?.read(5, 1_000));
            all.collect::<Result<Vec<_>>>().map(|all| format!("{all:?}"))
        },
    ];
    for (at, read) in reads.into_iter().enumerate() {
        let right = read(&*storage.open()).unwrap();
        at_every_operation(|what, after, fault| {
            let Failing { objects, faults } = storage.failing();
            faults.plan(after, fault);
            match read(&*objects) {
                Ok(found) => assert!(!faults.has_struck() && found == right, "read {at}, {what}: {found}"),
                Err(error) => assert!(faults.has_struck() && is_of_the_store(&error), "read {at}, {what}: {error}"),
            }
            faults.has_struck()
        });
    }
}

pub fn a_long_object_is_hashed_before_it_is_believed(storage: &dyn Storage) {
    let objects = storage.open();
    let mut bytes = vec![0; usize::try_from(UNPROVEN_BYTES_MAX).unwrap() + 1];
    let hash = blake3::hash(&bytes);
    bytes.extend(hash.as_bytes());
    objects.create(ObjectName::Digest(1), &bytes).unwrap();
    let read = objects.read_hashed(ObjectName::Digest(1), 2 * UNPROVEN_BYTES_MAX).unwrap();
    assert!(read.is_some_and(|read| read == bytes));
    bytes[77] ^= 1;
    objects.create(ObjectName::Digest(2), &bytes).unwrap();
    let error = objects.read_hashed(ObjectName::Digest(2), 2 * UNPROVEN_BYTES_MAX).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Integrity, "{error}");
}
