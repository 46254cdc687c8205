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

/// Most bytes of an object that are read into memory before its hash was compared.
pub const UNPROVEN_BYTES_MAX: u64 = 64 << 20;

/// The storage of one repository.
pub trait Objects: Send + Sync {
    /// Where it is, for messages.
    fn place(&self) -> String;

    /// Creates an object of these bytes, whole and durable on return, unless other bytes have its name. A caller whose
    /// own bytes are there already gets [`Created::New`] too. So it is safe to ask again after an error, if the bytes
    /// contain a nonce, because then nobody else can have made the same ones (R2).
    ///
    /// # Errors
    /// Of the storage. The object may be there, and may not be durable: stop writing then, or ask again.
    fn create(&self, name: ObjectName, bytes: &[u8]) -> Result<Created>;

    /// Replaces the whole content of `name` by `bytes`. Only for caches: a reader gets the old bytes or the new ones
    /// meanwhile, and after a power cut the object may contain anything.
    ///
    /// # Errors
    /// Of the storage; then the old content is still there.
    fn replace(&self, name: ObjectName, bytes: &[u8]) -> Result<()>;

    /// All of an object; none when it is not there.
    ///
    /// # Errors
    /// Of the storage; `Integrity` when it is longer than `bytes_max`. Nothing is taken into memory then.
    fn read(&self, name: ObjectName, bytes_max: u64) -> Result<Option<Vec<u8>>>;

    /// As [`Self::read`], for an object that ends with the hash of what comes before it. An object of more than
    /// [`UNPROVEN_BYTES_MAX`] is read into memory only after its hash was compared, because an attacker can make a file
    /// of a gigabyte without content in a moment. A shorter object is returned unchecked, and its decoder compares the
    /// hash.
    ///
    /// # Errors
    /// As [`Self::read`]; `Integrity` when the hash is another.
    fn read_hashed(&self, name: ObjectName, bytes_max: u64) -> Result<Option<Vec<u8>>>;

    /// Opens a pack. It can be read until the returned value is dropped, also when the pack is removed meanwhile.
    ///
    /// # Errors
    /// Of the storage; `Integrity` when it is not there.
    fn open_pack(&self, name: &PackName) -> Result<Arc<dyn Object>>;

    /// Begins a pack. Those of data are not read again soon; those of pages are, by the next backup.
    ///
    /// # Errors
    /// Of the storage.
    fn begin_pack(&self, kind: PackKind) -> Result<Arc<dyn Incoming>>;

    /// The packs that any process began here and did not settle: for example those of a process that died. Published
    /// packs may be among them. Only the one writer calls this, when it opens the repository. Unfinished files of other
    /// objects are removed by this call.
    ///
    /// # Errors
    /// Of the storage.
    fn left_packs(&self) -> Result<Vec<Arc<dyn Incoming>>>;

    /// Names of the packs whose names begin with this byte.
    ///
    /// # Errors
    /// Of the storage.
    fn packs(&self, first: u8) -> Result<Vec<PackName>>;

    /// Numbers of the log records in this range, ascending. At most `most` of them, the lowest. The storage does not
    /// list many more than that.
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

    /// Sets an object aside, durably: its name is free then, nothing reads the object any more, and its bytes are kept.
    ///
    /// # Errors
    /// Of the storage, also when it is not there.
    fn set_aside(&self, name: ObjectName) -> Result<()>;

    /// Prepares the storage for log record `sequence`. To be called for the first record, for each multiple of
    /// [`RECORDS_TOGETHER`], and when records were lost.
    ///
    /// # Errors
    /// Of the storage.
    fn expect_record(&self, sequence: u64) -> Result<()>;

    /// Makes existing objects durable, because their creator may have died before it did so.
    ///
    /// # Errors
    /// Of the storage.
    fn make_durable(&self, names: &[ObjectName]) -> Result<()>;

    /// What is left.
    ///
    /// # Errors
    /// Of the storage.
    fn space(&self) -> Result<Space>;

    /// Keeps a reserve of about this many bytes, so that something can be written when others have filled the storage.
    /// Bytes that are kept already count. False when there was not enough room for all of it. True also on a storage
    /// that cannot keep a reserve, because another try would not help.
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

/// A pack that is being written. When it is dropped without [`Self::settle`], [`Objects::left_packs`] may give it to
/// the next writer, with the bytes that were appended (or fewer, after a power cut). So chunks that were sent once need
/// not be sent again.
pub trait Incoming: Send + Sync {
    /// Appends bytes. They can be read at once, but are not durable yet. Only one call at a time, and not for a pack of
    /// [`Objects::left_packs`].
    ///
    /// # Errors
    /// Of the storage: a part may be there.
    fn append(&self, bytes: &[u8]) -> Result<()>;

    /// Opens the bytes that were appended so far, for reading. This works also while the pack is being published, and
    /// afterwards.
    ///
    /// # Errors
    /// Of the storage, also when it is settled.
    fn open(&self) -> Result<Arc<dyn Object>>;

    /// Makes the bytes durable, and then gives the pack its name, which is durable on return. To be called once, when
    /// all bytes are appended. If a pack has the name already, it is this one, because names are unique (R4).
    ///
    /// # Errors
    /// Of the storage: no name is given before the bytes are durable. `Fenced` when a later writer took the pack over.
    fn publish(&self, name: &PackName) -> Result<()>;

    /// Notes that the log knows the pack, or that nobody needs these bytes. After this, [`Objects::left_packs`] does
    /// not give the pack to the next writer. If a step of this fails, the next opening does it. A published pack stays.
    fn settle(&self);
}
