//! Moving: the traits of repositories, sources and targets, the records they exchange, and [`backup()`], [`copy()`]
//! and [`restore()`] over them.
//!
//! Architecture Invariant: nothing here knows a hypervisor, RocksDB, or how a repository stores. `bincode` is used in
//! `codec` alone. Record layouts are in `FORMAT.md`, messages in `PROTOCOL.md`.

mod error;
mod exit_code;
mod job;
mod record;
mod repository;
#[cfg(test)]
mod testing;
mod world;

pub use error::{Error, ErrorKind, Result, Subject};
pub use job::*;
pub use record::*;
pub use repository::*;
pub use world::*;
