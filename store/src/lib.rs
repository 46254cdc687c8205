//! Keeping: a repository as immutable packs, a create-only commit log and a disposable index, in a directory.
//!
//! | step | what makes it safe |
//! |---|---|
//! | pack | written under `incoming/`, synced, linked to its name, directory synced; never changed after |
//! | log record | created with everything it names durable before; the only commit point |
//! | index | follows the log; deleting it loses nothing |
//! | acknowledgement | last |
//!
//! Architecture Invariant: nothing here knows hypervisors, NBD or networks. Formats are in `FORMAT.md`.

mod directory;
mod error;
pub mod format;
mod index;
pub mod io;
mod local;
mod log;
mod open;
mod packer;
mod reader;
mod session;
pub mod state;
mod verify;

pub use directory::Directory;
pub use local::{Access, Local};
pub use open::IndexTotals;
pub use reader::Reader;
pub use session::Session;
pub use verify::{Depth, VerifyError, VerifyOptions, VerifyReport};
