//! Keeping: a repository as immutable packs and a create-only commit log on a storage ([`objects`]), with a disposable index.
//!
//! | step | what makes it safe |
//! |---|---|
//! | pack | written as incoming, made durable, then named; never changed after |
//! | log record | created with everything it names durable before; the only commit point |
//! | index | follows the log; deleting it loses nothing |
//! | acknowledgement | last |
//!
//! Which operations may run at the same time, in one process or in several, and why that is safe:
//!
//! - *open to write* and *open to write*: only one process gets the exclusive lock on `lock`, which the kernel releases
//!   when the process ends. The other gets `Busy`.
//! - *open to write* and *a process that lives on without the lock*: each record has a term. Records of the old term
//!   are void after the first record of the next term.
//! - *append* and *append*: a record is created only under a free name. One process wins; the others read its record,
//!   validate again and take the next number (R1).
//! - *append* and *an answer that is lost*: if the same bytes have the name, the append succeeded. An error stops all
//!   writing until the repository is opened again (R2).
//! - *put* and *put of the same chunk*: a chunk is taken once, and enters the packer's queue in the same step. Other
//!   sessions get the answer "pending", and their flush comes later in the queue (R18).
//! - *put* and *another session's pack is logged after the answer that the chunk is missing*: the packer returns the
//!   chunk, and it is looked up again.
//! - *put* and *a job that is dropped*: there is no wait between taking a chunk and sending it, so every chunk that was
//!   taken is stored.
//! - *commit* and *put of its session*: the commit waits for puts that have begun, and later puts wait for the commit.
//! - *commit* and *put of another session*: only chunks that are in the log or in a durable pack count. The others are
//!   listed as missing.
//! - *commit* and *doom*: the packs that the commit relies on are checked again when its record is made (R1, R7).
//! - *read* and *append, seal*: places change from `incoming/` to the log. A reader that does not find the old name
//!   looks again.
//! - *read* and *drop of packs*: the reader's session pins points (R10). A reader without a session reads the newest
//!   log before it reports a chunk as missing.
//! - *read* and *write in another process*: a reader has its own view. It opens RocksDB as a secondary, and reads the
//!   footers of packs that are not in there.
//! - *follow* and *prune*: a follower that finds no next record looks at the digests, and goes on from the newest one
//!   (R3).
//! - *append* and *prune*: a digest above that does not know writer, term and record fences the author (R3).
//! - *verify, scrub* and *anything*: they only read, and append records that mark damage. A pack that was deleted while
//!   it was read is not reported as damage.
//! - *an index that fails* and *anything*: a thread makes another index. Meanwhile places are read from footers, and
//!   nothing is added to the old index.
//! - *make the index again* and *anything*: the new index is made in another folder while the old one is in use. Only
//!   the exchange makes others wait.
//! - *adopt `incoming/`* and *a writer that is closing*: the writer releases the lock last, after its threads that
//!   write there have ended.
//!
//! Within a process each part of an open repository (`repository.rs`) uses its locks itself, and no other part does.
//! There is one order of locking: the log (`shared_log`) comes before the pending packs (`packs`) and the index
//! (`current_index`). No other lock is taken while one of these two is held. The holder of the log is the only writer
//! of the index. It locks the index against readers only for the moment in which it notes which packs were added.
//!
//! Architecture Invariant: nothing here knows hypervisors, NBD or networks. Formats are in `FORMAT.md`.

mod answers;
mod caches;
mod contents;
mod current_index;
mod damage;
mod directory;
mod error;
pub mod format;
mod health;
mod history;
mod index;
pub mod io;
mod leases;
mod local;
mod log;
mod lookup;
pub mod objects;
mod open;
mod packer;
mod packs;
mod points;
mod reader;
mod reading;
mod rebuild;
mod references;
mod repository;
mod room;
mod scrub;
mod session;
mod shared_log;
pub mod state;
mod suspects;
mod sweep;
mod sweep_turn;
mod verified;
mod verify;

pub use directory::Directory;
pub use local::{Access, Local};
pub use reader::Reader;
pub use scrub::ScrubOptions;
pub use session::Session;
