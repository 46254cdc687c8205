//! Hypervisor side: NBD, sources and targets of disks.
//!
//! Architecture Invariant: nothing here knows packs or RocksDB; it meets repositories in the traits of `mover`.

mod address;
mod agent;
mod allocator;
pub mod definition;
mod forecast;
mod hooks;
mod lines;
mod live;
mod lock;
mod machine;
pub mod nbd;
mod nvram;
pub mod qemu;
mod qmp;
mod scratch;
mod source;
mod target;
mod tracking;

pub use address::{BackupAddress, ImageFormat, Named, NamedSource, QmpAddress, SourceAddress, TargetAddress};
pub use allocator::tune_allocator;
pub use forecast::{Before, disk_size};
pub use hooks::Hooks;
pub use live::{Finding, LiveSession, QemuIdentity, QemuMachine, examine};
pub use machine::{AnyMachine, AnySession, OfflineMachine, helper_if_asked};
pub use nvram::NVRAM_KIND;
pub use source::{SnapshotSession, SourceOptions};
pub use target::{DiskTarget, Existing};
pub use tracking::{TrackedBitmap, TrackedKind, list_tracking, remove_tracking};
