//! Keeping: a repository as immutable packs and a create-only commit log on a storage ([`objects`]), with a disposable index.
//!
//! | step | what makes it safe |
//! |---|---|
//! | pack | written as incoming, made durable, then named; never changed after |
//! | log record | created with everything it names durable before; the only commit point |
//! | index | follows the log; deleting it loses nothing |
//! | acknowledgement | last |
//!
//! Who may do what beside whom, in one process or in several:
//!
//! | operation | beside | what makes it safe |
//! |---|---|---|
//! | open to write | open to write | an exclusive lock on `lock`, given back by the kernel with the process; the second is `Busy` |
//! | open to write | a process that lives on without the lock | the term in each record: after the next term's first record it states nothing |
//! | append | append | create-only names: one wins, the others read it, validate again and take the next number (R1) |
//! | append | an answer that is lost | the same bytes under the name are success; an error stops all writing until reopened (R2) |
//! | put | put of the same chunk | taken once, in one step with its place in the packer's queue; others are told "pending" and flush behind it (R18) |
//! | put | another session's pack logged since it was told missing | the packer gives it back, and it is looked up again |
//! | put | a job that is dropped | nothing waits between taking a chunk and sending it, so none is left that nobody stores |
//! | commit | put of its session | a gate: the commit waits for puts on their way, and puts for it |
//! | commit | put of another session | only what is in the log or in a durable pack counts; the rest is listed as missing |
//! | commit | doom | the packs relied on are compared in the very record's making (R1, R7) |
//! | read | append, seal | places change from `incoming/` to the log; who finds the old name gone looks again |
//! | read | drop of packs | its session pins (R10); without one a missing chunk is looked for in the newest log first |
//! | read | write in another process | a reader has its own view, RocksDB as a secondary, and packs it lacks from their footers |
//! | follow | prune | who finds no next record looks at the digests, and goes on from one (R3) |
//! | append | prune | a digest above that does not know writer, term and record fences the author (R3) |
//! | verify, scrub | anything | it only reads; what it marks is one more record; a pack that went while it was read is no damage |
//! | an index that fails | anything | another is made by a thread; meanwhile footers tell where chunks are, and nothing is added to the old one |
//! | make the index again | anything | the new one is made beside; only the exchange has everybody wait |
//! | adopt `incoming/` | a writer that is closing | the lock goes last: after the threads that write there have ended |
//!
//! Within a process each part of an open repository (`repository.rs`) keeps its locks to itself, and there is one order: the
//! log (`shared_log`) before what is pending (`packs`) or the index (`current_index`); nothing else is taken while one of those is
//! held. Who holds the log is the index's one writer, and holds the index alone only to note what was added.
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
