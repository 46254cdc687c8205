//! What every storage must do for a repository: cases over the trait `store::objects::Objects`, run for each implementation by
//! `objects!`. [`broken`] has storages that break one promise each, and none of them passes.

pub mod broken;
#[expect(missing_docs, reason = "the name of a case says what it shows")]
pub mod creating;
mod directory;
#[expect(missing_docs, reason = "the name of a case says what it shows")]
pub mod faults;
#[expect(missing_docs, reason = "the name of a case says what it shows")]
pub mod listing;
#[expect(missing_docs, reason = "the name of a case says what it shows")]
pub mod packs;
#[expect(missing_docs, reason = "the name of a case says what it shows")]
pub mod reading;

pub use directory::InDirectory;

use std::sync::Arc;
use store::format::pack::PackName;
use store::io::Fault;
use store::objects::{Object, ObjectName, Objects, RECORDS_TOGETHER};

/// A storage that is made, and has no objects.
pub trait Storage: Sync {
    /// The storage as a process that has just begun uses it.
    fn open(&self) -> Arc<dyn Objects>;

    /// As [`Self::open`], with a fault to be planned.
    fn failing(&self) -> Failing;
}

/// A storage of which one operation is going to fail.
pub struct Failing {
    /// The storage.
    pub objects: Arc<dyn Objects>,
    /// What goes wrong.
    pub faults: Box<dyn Faults>,
}

/// What goes wrong below a storage: in its calls to whatever keeps the bytes.
pub trait Faults {
    /// Plans a fault for the operation that comes after `after` more.
    fn plan(&self, after: u64, fault: Fault);

    /// True when that operation was reached.
    fn has_struck(&self) -> bool;
}

/// A case. It panics when the storage does not keep what it promises.
pub type Case = fn(&dyn Storage);

/// All kinds of faults.
pub const FAULTS: [Fault; 4] = [Fault::Fail, Fault::Full, Fault::Unclear, Fault::Cut];

/// Longest object of which the cases read all.
pub const LONG: u64 = 1 << 20;

/// Tries `each` with a fault at the first operation, at the second, and so on until none is reached any more; with each kind.
pub fn at_every_operation(mut each: impl FnMut(&str, u64, Fault) -> bool) {
    for fault in FAULTS {
        for after in 0.. {
            assert!(after < 1_000, "it ends");
            if !each(&format!("{fault:?} at operation {after}"), after, fault) {
                assert!(after > 0, "{fault:?}: no operation was reached");
                break;
            }
        }
    }
}

/// Makes ready for log records of these numbers.
pub fn expect(objects: &dyn Objects, records: &[u64]) {
    let mut made = Vec::new();
    for record in records {
        let first = record / RECORDS_TOGETHER * RECORDS_TOGETHER;
        if !made.contains(&first) {
            objects.expect_record(first.max(1)).expect("room for records");
            made.push(first);
        }
    }
}

/// Writes a pack of `bytes`, and has it settled.
pub fn pack(objects: &dyn Objects, bytes: &[u8]) -> PackName {
    let name = named(bytes);
    let incoming = objects.begin_pack(store::format::pack::PackKind::Data).expect("a pack begins");
    incoming.append(bytes).expect("it is written");
    incoming.publish(&name).expect("it is published");
    incoming.settle();
    name
}

/// The name of a pack of these bytes.
pub fn named(bytes: &[u8]) -> PackName {
    PackName(*blake3::hash(bytes).as_bytes())
}

/// All of an open object.
pub fn all_of(object: &dyn Object) -> Vec<u8> {
    let length = object.length().expect("a length");
    object.read(0, usize::try_from(length).expect("short")).expect("all of it")
}

/// What stands under a name, by a process that has just begun.
pub fn there(storage: &dyn Storage, name: ObjectName) -> Option<Vec<u8>> {
    storage.open().read(name, LONG).expect("it can be read")
}

/// Makes one test of each case for a storage that the expression makes; or lists all cases.
#[macro_export]
macro_rules! objects {
    (tests $storage:expr) => { $crate::objects! { cases tests_of $storage } };
    (list) => { $crate::objects! { cases list_of } };
    (cases $then:ident $($storage:expr)?) => {
        $crate::objects! { $then $($storage)?;
            creating {
                what_was_created_is_there_for_everybody a_name_is_taken_once ones_own_bytes_are_success one_of_many_wins
                what_was_removed_is_gone_and_its_name_is_free what_was_set_aside_frees_its_name
                a_replacement_is_all_of_the_new
            }
            reading {
                what_is_not_there_is_none_or_damage what_is_too_long_is_refused ranges_are_exact
                a_pack_that_is_open_outlives_its_removal room_is_told_and_kept
            }
            listing {
                packs_are_listed_by_their_first_byte records_are_listed_in_order_and_within_limits
                digests_are_listed_in_order
            }
            packs {
                a_pack_appears_when_it_is_published what_is_appended_is_read_at_once what_is_not_published_is_left
                what_is_settled_is_nobodys a_pack_that_has_its_name_is_published_again packs_come_beside_each_other
            }
            faults {
                a_creation_that_fails_becomes_clear a_replacement_that_fails_leaves_one_or_the_other
                a_pack_that_fails_is_whole_or_not_there nothing_is_named_before_it_is_durable
                removals_that_fail_can_be_tried_again what_cannot_be_read_is_an_error
                a_long_object_is_hashed_before_it_is_believed
            }
        }
    };
    (tests_of $storage:expr; $($group:ident { $($case:ident)* })*) => { $(
        mod $group {
            #[allow(unused_imports, reason = "the storage may be named by a full path")]
            use super::*;

            $(
                #[test]
                fn $case() {
                    $crate::objects::$group::$case(&$storage);
                }
            )*
        }
    )* };
    (list_of; $($group:ident { $($case:ident)* })*) => {
        [$($((stringify!($case), $crate::objects::$group::$case as $crate::objects::Case),)*)*]
    };
}

#[cfg(test)]
mod tests {
    /// A case that nobody runs is worse than none.
    #[test]
    fn every_case_is_run() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/objects");
        let listed: Vec<&str> = crate::objects!(list).iter().map(|(name, _)| *name).collect();
        let mut cases = 0;
        for group in ["creating", "reading", "listing", "packs", "faults"] {
            let text = std::fs::read_to_string(folder.join(format!("{group}.rs"))).unwrap();
            for line in text.lines() {
                let Some(rest) = line.strip_prefix("pub fn ") else { continue };
                let name = rest.split('(').next().expect("a name");
                assert!(listed.contains(&name), "{name} is not in the list");
                cases += 1;
            }
        }
        assert_eq!(cases, listed.len());
    }
}
