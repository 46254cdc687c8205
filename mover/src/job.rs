//! Jobs over repositories, sources and targets, and what goes with every job: progress, stopping, a rate.

mod backup;
pub(crate) mod copy;
pub mod event;
mod examination;
mod forget;
mod kind;
mod many;
mod progress;
mod rate;
mod repair;
mod restore;
mod stop;
mod wait;

pub use backup::{
    Allow, Audit, AuditReport, BackupOptions, BackupReport, DiskReport, PastOf, backup, backup_machine, parent_of,
};
pub use copy::{CopyReport, copy, still_wanted};
pub use examination::{Examination, ExaminedDisk, LastPoint, Power};
pub use forget::{ForgetWhich, forget};
pub use kind::JobKind;
pub use many::{CopyTally, copy_points, ends_all, in_copy_order};
pub use progress::{Counters, Phase, Progress};
pub use rate::{RateLimiter, parse_bytes};
pub use repair::{RepairReport, repair, repair_all};
pub use restore::{RestoreReport, Sink, read_attachment, restore, restore_delta, restore_stream};
pub use stop::{Stop, StopReason, Stoppable, Stopper};
pub use wait::Wait;
