//! Hypervisor side: NBD, sources and targets of disks.
//!
//! Architecture Invariant: nothing here knows packs or RocksDB; it meets repositories in the traits of `mover`.

mod address;
mod allocator;
mod hooks;
mod lock;
mod machine;
pub mod nbd;
pub mod qemu;
mod scratch;
mod source;
mod target;
mod tracking;

pub use address::{ImageFormat, Named, NamedSource, SourceAddress, TargetAddress};
pub use allocator::tune_allocator;
pub use hooks::{Hooks, keep_hooks};
pub use machine::OfflineMachine;
pub use source::{SnapshotSession, SourceOptions};
pub use target::{DiskTarget, Existing};
pub use tracking::{TrackedBitmap, TrackedKind, list_tracking, remove_tracking};
