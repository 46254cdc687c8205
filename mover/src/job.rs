//! Jobs over repositories, sources and targets, and what goes with every job: progress, stopping, a rate.

mod backup;
pub(crate) mod copy;
mod progress;
mod rate;
mod repair;
mod restore;
mod stop;

pub use backup::{Allow, Audit, AuditReport, BackupOptions, BackupReport, DiskReport, PastOf, backup, parent_of};
pub use copy::{CopyReport, copy, still_wanted};
pub use progress::{Counters, Phase, Progress};
pub use rate::{RateLimiter, parse_bytes};
pub use repair::{RepairReport, repair};
pub use restore::{RestoreReport, Sink, read_attachment, restore, restore_delta, restore_stream};
pub use stop::{Stop, StopReason, Stoppable, Stopper};
