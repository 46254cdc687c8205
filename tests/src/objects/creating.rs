//! Objects that are created, removed, set aside and replaced.

use super::{LONG, Storage, expect, pack, there};
use crate::fake::noise;
use mover::Result;
use std::sync::Barrier;
use store::objects::{Created, ObjectName};

pub fn what_was_created_is_there_for_everybody(storage: &dyn Storage) {
    let objects = storage.open();
    expect(&*objects, &[1]);
    for (number, length) in [0, 1, 4_096, 300_001].into_iter().enumerate() {
        let (name, bytes) = (ObjectName::Record(number as u64 + 1), noise(1, length));
        assert_eq!(there(storage, name), None);
        assert_eq!(objects.create(name, &bytes).unwrap(), Created::New);
        assert_eq!(objects.read(name, LONG).unwrap().as_ref(), Some(&bytes), "{length} bytes");
        assert_eq!(there(storage, name), Some(bytes), "{length} bytes");
    }
    assert_eq!(objects.create(ObjectName::Config, b"of it").unwrap(), Created::New);
    assert_eq!(objects.create(ObjectName::Digest(7), b"state").unwrap(), Created::New);
    objects.make_durable(&[ObjectName::Record(1), ObjectName::Digest(7)]).unwrap();
    assert_eq!(there(storage, ObjectName::Config), Some(b"of it".to_vec()));
    assert_eq!(there(storage, ObjectName::Digest(7)), Some(b"state".to_vec()));
}

pub fn a_name_is_taken_once(storage: &dyn Storage) {
    let name = ObjectName::Config;
    assert_eq!(storage.open().create(name, b"the first").unwrap(), Created::New);
    // Shorter, of one length, longer, and the same with more behind it.
    for other in [&b""[..], b"the other", b"the first and more", b"the first "] {
        for objects in [storage.open(), storage.failing().objects] {
            assert_eq!(objects.create(name, other).unwrap(), Created::Exists);
            assert_eq!(there(storage, name).unwrap(), b"the first");
        }
    }
}

pub fn ones_own_bytes_are_success(storage: &dyn Storage) {
    let (name, bytes) = (ObjectName::Config, noise(3, 5_000));
    for _ in 0..3 {
        assert_eq!(storage.open().create(name, &bytes).unwrap(), Created::New);
    }
    assert_eq!(there(storage, name), Some(bytes));
}

/// Some of them in one process, some in others.
pub fn one_of_many_wins(storage: &dyn Storage) {
    let shared = storage.open();
    let names: Vec<ObjectName> = (1..=10).map(ObjectName::Record).collect();
    expect(&*shared, &[1]);
    let (racers, begin) = (8u8, Barrier::new(8));
    let race = |racer: u8| {
        let own = if racer.is_multiple_of(2) { shared.clone() } else { storage.open() };
        let bytes = noise(racer.into(), 1_000 + u64::from(racer));
        let each = names.iter().map(|name| {
            begin.wait();
            // Who gives up here would have the others wait for ever.
            own.create(*name, &bytes)
        });
        each.collect::<Vec<Result<Created>>>()
    };
    let told: Vec<Vec<Result<Created>>> = std::thread::scope(|scope| {
        let racing: Vec<_> = (0..racers).map(|racer| scope.spawn(move || race(racer))).collect();
        racing.into_iter().map(|racer| racer.join().unwrap()).collect()
    });
    for (at, name) in names.iter().enumerate() {
        let won = |racer: &u8| *told[usize::from(*racer)][at].as_ref().unwrap() == Created::New;
        let winners: Vec<u8> = (0..racers).filter(won).collect();
        let [winner] = winners[..] else { panic!("{name}: {winners:?} won") };
        assert_eq!(there(storage, *name).unwrap(), noise(winner.into(), 1_000 + u64::from(winner)), "{name}");
    }
}

pub fn what_was_removed_is_gone_and_its_name_is_free(storage: &dyn Storage) {
    let objects = storage.open();
    expect(&*objects, &[1]);
    let [first, second] = [1, 2].map(ObjectName::Record);
    objects.create(first, b"one").unwrap();
    objects.create(second, b"two").unwrap();
    objects.remove(first).unwrap();
    assert_eq!(there(storage, first), None);
    assert_eq!(there(storage, second).unwrap(), b"two");
    assert_eq!(objects.records(0..100, 9).unwrap(), [2]);
    objects.remove(first).unwrap();
    assert_eq!(objects.create(first, b"again").unwrap(), Created::New);
    assert_eq!(there(storage, first).unwrap(), b"again");
    let name = pack(&*objects, b"a pack");
    objects.remove(ObjectName::Pack(name)).unwrap();
    assert_eq!(there(storage, ObjectName::Pack(name)), None);
    assert!(objects.packs(name.0[0]).unwrap().is_empty());
}

pub fn what_was_set_aside_frees_its_name(storage: &dyn Storage) {
    let objects = storage.open();
    expect(&*objects, &[1]);
    let [first, second] = [1, 2].map(ObjectName::Record);
    objects.create(first, b"one").unwrap();
    objects.create(second, b"two").unwrap();
    for bytes in [&b"another"[..], b"a third"] {
        objects.set_aside(second).unwrap();
        assert_eq!(there(storage, second), None);
        assert_eq!(there(storage, first).unwrap(), b"one");
        assert_eq!(objects.records(0..100, 9).unwrap(), [1]);
        // What would be set aside is not there: whoever asks must hear of it.
        objects.set_aside(second).unwrap_err();
        assert_eq!(objects.create(second, bytes).unwrap(), Created::New);
    }
}

pub fn a_replacement_is_all_of_the_new(storage: &dyn Storage) {
    let (objects, name) = (storage.open(), ObjectName::Verified);
    for bytes in [noise(1, 10), noise(2, 100_000), noise(3, 7), Vec::new(), noise(4, 1)] {
        objects.replace(name, &bytes).unwrap();
        assert_eq!(there(storage, name), Some(bytes));
    }
}
