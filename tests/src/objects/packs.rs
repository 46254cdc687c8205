//! Packs that are being written.

use super::{Storage, all_of, named, pack};
use crate::fake::noise;
use mover::AlignedBuffer;
use store::format::pack::PackKind;
use store::objects::ObjectName;

pub fn a_pack_appears_when_it_is_published(storage: &dyn Storage) {
    let objects = storage.open();
    for (kind, seed) in [(PackKind::Data, 1), (PackKind::Page, 2)] {
        // As the packer writes it: long aligned pieces, and a rest that is not.
        let bytes = noise(seed, (3 << 20) + 12_345);
        let (incoming, name) = (objects.begin_pack(kind).unwrap(), named(&bytes));
        let mut buffer = AlignedBuffer::with_capacity(1 << 20);
        for piece in bytes.chunks(1 << 20) {
            buffer.append(piece);
            incoming.append(&buffer).unwrap();
            buffer.clear();
            assert!(storage.open().packs(name.0[0]).unwrap().is_empty(), "it has no name yet");
            storage.open().open_pack(&name).err().expect("it has no name yet");
        }
        incoming.publish(&name).unwrap();
        for objects in [objects.clone(), storage.open()] {
            assert!(all_of(&*objects.open_pack(&name).unwrap()) == bytes);
            assert_eq!(objects.packs(name.0[0]).unwrap(), [name]);
            assert!(objects.read(ObjectName::Pack(name), 4 << 20).unwrap().is_some_and(|read| read == bytes));
        }
        assert!(all_of(&*incoming.open().unwrap()) == bytes, "who has it as incoming reads it still");
        incoming.settle();
        assert!(all_of(&*storage.open().open_pack(&name).unwrap()) == bytes);
        objects.remove(ObjectName::Pack(name)).unwrap();
    }
}

pub fn what_is_appended_is_read_at_once(storage: &dyn Storage) {
    let (objects, bytes) = (storage.open(), noise(3, 500_000));
    for kind in [PackKind::Data, PackKind::Page] {
        let incoming = objects.begin_pack(kind).unwrap();
        let mut done = 0;
        for length in [1, 4_095, 100_000, 4_096, 7, 250_000] {
            incoming.append(&bytes[done..done + length]).unwrap();
            done += length;
            let open = incoming.open().unwrap();
            assert_eq!(open.length().unwrap(), done as u64);
            assert!(all_of(&*open) == bytes[..done]);
            assert_eq!(open.read(done as u64 - 1, 1).unwrap(), [bytes[done - 1]]);
            open.read(done as u64, 1).unwrap_err();
        }
        incoming.settle();
    }
}

pub fn what_is_not_published_is_left(storage: &dyn Storage) {
    let objects = storage.open();
    let (one, two) = (noise(4, 70_000), noise(5, 30));
    for bytes in [&one, &two] {
        objects.begin_pack(PackKind::Data).unwrap().append(bytes).unwrap();
    }
    drop(objects);
    let objects = storage.open();
    let left = objects.left_packs().unwrap();
    let mut found: Vec<Vec<u8>> = left.iter().map(|left| all_of(&*left.open().unwrap())).collect();
    found.sort_unstable_by_key(Vec::len);
    assert!(found == [two, one.clone()]);
    for left in left {
        left.append(b"more").unwrap_err();
        if all_of(&*left.open().unwrap()) == one {
            left.publish(&named(&one)).unwrap();
        }
        left.settle();
    }
    assert!(storage.open().left_packs().unwrap().is_empty());
    assert!(all_of(&*storage.open().open_pack(&named(&one)).unwrap()) == one);
}

pub fn what_is_settled_is_nobodys(storage: &dyn Storage) {
    let objects = storage.open();
    let bytes = noise(6, 1_000);
    let [published, given_up, kept] = [(); 3].map(|()| objects.begin_pack(PackKind::Page).unwrap());
    for incoming in [&published, &given_up, &kept] {
        incoming.append(&bytes).unwrap();
    }
    published.publish(&named(&bytes)).unwrap();
    published.settle();
    given_up.settle();
    // Twice is once.
    given_up.settle();
    let left = storage.open().left_packs().unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(all_of(&*left[0].open().unwrap()), bytes);
    assert_eq!(all_of(&*storage.open().open_pack(&named(&bytes)).unwrap()), bytes);
    kept.settle();
    assert!(storage.open().left_packs().unwrap().is_empty());
}

/// A process died when it had named a pack and the log did not know it.
pub fn a_pack_that_has_its_name_is_published_again(storage: &dyn Storage) {
    let bytes = noise(7, 1_000);
    let name = pack(&*storage.open(), &bytes);
    storage.open().begin_pack(PackKind::Data).unwrap().append(&bytes).unwrap();
    let left = storage.open().left_packs().unwrap();
    assert_eq!(left.len(), 1);
    left[0].publish(&name).unwrap();
    assert_eq!(all_of(&*storage.open().open_pack(&name).unwrap()), bytes);
    left[0].settle();
    assert_eq!(all_of(&*storage.open().open_pack(&name).unwrap()), bytes);
    assert!(storage.open().left_packs().unwrap().is_empty());
}

pub fn packs_come_beside_each_other(storage: &dyn Storage) {
    let shared = storage.open();
    let write = |seed: u64| {
        let bytes = noise(seed, 200_000);
        let incoming = shared.begin_pack(if seed.is_multiple_of(2) { PackKind::Data } else { PackKind::Page }).unwrap();
        for piece in bytes.chunks(30_000) {
            incoming.append(piece).unwrap();
            assert_eq!(incoming.open().unwrap().read(0, 10).unwrap(), bytes[..10]);
        }
        incoming.publish(&named(&bytes)).unwrap();
        incoming.settle();
        bytes
    };
    let made: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let writing: Vec<_> = (0..6).map(|seed| scope.spawn(move || write(seed))).collect();
        writing.into_iter().map(|it| it.join().unwrap()).collect()
    });
    for bytes in made {
        assert!(all_of(&*storage.open().open_pack(&named(&bytes)).unwrap()) == bytes);
    }
}
