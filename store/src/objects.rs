//! What a repository needs of its storage. Nothing above this file knows whether it is a directory or a bucket.
//!
//! | object | name | made |
//! |---|---|---|
//! | configuration | `config` | once |
//! | pack | `packs/<2 digits>/<64 digits>` | named when complete |
//! | log record | `log/<sequence / 10000>/<sequence>` | create-only |
//! | state digest | `state/<sequence>` | create-only |
//! | when packs were verified, a cache | `verified` | replaced |
//!
//! Decimal numbers have 20 digits, so that names sort as numbers.
//!
//! What every storage promises, also when its calls fail, when answers are lost, and when the process dies in the middle:
//!
//! - A name has all of an object or nothing. Nobody ever reads a part of one.
//! - What has a name keeps its bytes until it is removed or set aside. Caches alone are replaced.
//! - Of many that race for a name, in one process or in several, one wins, and the others are told.
//! - What was created or published is durable when the call returns without an error.
//! - After an error it is not known whether the call took effect. What is there then is whole all the same, and asking
//!   again with the same bytes makes it clear.
//! - What cannot be read is an error. It is never an empty list, an object that is not there, or other bytes.
//!
//! All calls block. `tests/src/objects` tries each of these promises on every storage.

mod name;

pub(crate) use name::{CONFIG, LOG, PACKS, STATE};
pub use name::{ObjectName, RECORDS_TOGETHER};

use crate::format::pack::{PackKind, PackName};
use mover::Result;
use std::ops::Range;
use std::sync::Arc;

/// Result of a create-only creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The object is durable under its name.
    New,
    /// There was another object of this name.
    Exists,
}

/// Room on a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that new objects can have.
    pub free: u64,
    /// Bytes of the whole storage; 0 where it has no end.
    pub total: u64,
    /// How many new objects it can have; `u64::MAX` where that is not limited.
    pub files: u64,
}

/// So much is taken into memory before it is known to be what it should be.
pub const UNPROVEN_BYTES_MAX: u64 = 64 << 20;

/// The storage of one repository.
pub trait Objects: Send + Sync {
    /// Where it is, for messages.
    fn place(&self) -> String;

    /// Creates an object of these bytes, whole and durable on return, unless other bytes have its name. Who finds its own bytes
    /// there is told [`Created::New`], so bytes that nobody else can have (a nonce) make it safe to ask again after an error
    /// (R2).
    ///
    /// # Errors
    /// Of the storage. The object may be there, and may not be durable: stop writing then, or ask again.
    fn create(&self, name: ObjectName, bytes: &[u8]) -> Result<Created>;

    /// Makes `bytes` all of `name`, whatever that was. For caches: who reads meanwhile gets the old bytes or the new ones, and a
    /// power cut may leave anything.
    ///
    /// # Errors
    /// Of the storage; what was there is there then.
    fn replace(&self, name: ObjectName, bytes: &[u8]) -> Result<()>;

    /// All of an object; none when it is not there.
    ///
    /// # Errors
    /// Of the storage; `Integrity` when it is longer than `bytes_max`. Nothing is taken into memory then.
    fn read(&self, name: ObjectName, bytes_max: u64) -> Result<Option<Vec<u8>>>;

    /// As [`Self::read`], for an object that ends with the hash of what comes before it. One of more than
    /// [`UNPROVEN_BYTES_MAX`] is taken into memory only after that was compared: one of a gigabyte that holds nothing is made in
    /// a moment. A shorter one is given as it is, and who decodes it compares.
    ///
    /// # Errors
    /// As [`Self::read`]; `Integrity` when the hash is another.
    fn read_hashed(&self, name: ObjectName, bytes_max: u64) -> Result<Option<Vec<u8>>>;

    /// Opens a pack. It can be read until it is let go of, also when it is removed meanwhile.
    ///
    /// # Errors
    /// Of the storage; `Integrity` when it is not there.
    fn open_pack(&self, name: &PackName) -> Result<Arc<dyn Object>>;

    /// Begins a pack. Those of data are not read again soon; those of pages are, by the next backup.
    ///
    /// # Errors
    /// Of the storage.
    fn begin_pack(&self, kind: PackKind) -> Result<Arc<dyn Incoming>>;

    /// The packs that were begun here, by whomever, and not settled: what a process that died has left. Those that were published
    /// may be among them. For the one writer when it opens the repository: what is left of other objects is removed with it.
    ///
    /// # Errors
    /// Of the storage.
    fn left_packs(&self) -> Result<Vec<Arc<dyn Incoming>>>;

    /// Names of the packs whose names begin with this byte.
    ///
    /// # Errors
    /// Of the storage.
    fn packs(&self, first: u8) -> Result<Vec<PackName>>;

    /// Numbers of the log records in this range, ascending: the lowest, at most so many. Not much more is looked at.
    ///
    /// # Errors
    /// Of the storage.
    fn records(&self, numbers: Range<u64>, most: usize) -> Result<Vec<u64>>;

    /// Numbers of the state digests, ascending.
    ///
    /// # Errors
    /// Of the storage.
    fn digests(&self) -> Result<Vec<u64>>;

    /// Removes an object that nobody needs; one that is gone is fine.
    ///
    /// # Errors
    /// Of the storage.
    fn remove(&self, name: ObjectName) -> Result<()>;

    /// Takes an object out of the way, durably: its name is free then, nothing reads it any more, and it is not lost.
    ///
    /// # Errors
    /// Of the storage, also when it is not there.
    fn set_aside(&self, name: ObjectName) -> Result<()>;

    /// Makes ready for log record `sequence`. For the first one, for each multiple of [`RECORDS_TOGETHER`], and when records were
    /// lost.
    ///
    /// # Errors
    /// Of the storage.
    fn expect_record(&self, sequence: u64) -> Result<()>;

    /// Makes objects durable that are there, and whose creator may have died before they were.
    ///
    /// # Errors
    /// Of the storage.
    fn make_durable(&self, names: &[ObjectName]) -> Result<()>;

    /// What is left.
    ///
    /// # Errors
    /// Of the storage.
    fn space(&self) -> Result<Space>;

    /// Keeps about so many bytes, so that something can be written when others have filled the storage. What is kept already
    /// counts. False when less is kept for want of room. True also where nothing can be kept, as there is no use in trying again.
    fn keep_reserve(&self, bytes: u64) -> bool;

    /// Gives the reserve up. True when there was something.
    fn give_up_reserve(&self) -> bool;
}

/// An object that is open for reading.
pub trait Object: Send + Sync {
    /// Its length.
    ///
    /// # Errors
    /// Of the storage.
    fn length(&self) -> Result<u64>;

    /// Exactly `length` bytes from `offset`.
    ///
    /// # Errors
    /// Of the storage. `Integrity` when a pack is not as long.
    fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>>;
}

/// A pack that is being written. When it is let go of without [`Self::settle`], [`Objects::left_packs`] may give it to the next
/// writer, with what was appended, or less after a power cut: what was sent once need not be sent again.
pub trait Incoming: Send + Sync {
    /// Appends to what there is. Not durable yet, and readable. One at a time, and not to one of [`Objects::left_packs`].
    ///
    /// # Errors
    /// Of the storage: a part may be there.
    fn append(&self, bytes: &[u8]) -> Result<()>;

    /// What there is of it, to be read. Also while it is published, and afterwards.
    ///
    /// # Errors
    /// Of the storage, also when it is settled.
    fn open(&self) -> Result<Arc<dyn Object>>;

    /// Makes it durable and then gives it its name, also durable on return. Once, when all is appended. A pack that has the
    /// name is this one, because names are unique (R4).
    ///
    /// # Errors
    /// Of the storage: no name is given before the bytes are durable. `Fenced` when a later writer took it away.
    fn publish(&self, name: &PackName) -> Result<()>;

    /// Notes that the log knows the pack, or that nobody needs what is here: it is not left to anybody. What fails of that is left
    /// to the next opening. The published pack stays.
    fn settle(&self);
}
