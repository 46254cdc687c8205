//! Moving: the traits of repositories, sources and targets, the records they exchange, and [`backup()`], [`copy()`]
//! and [`restore()`] over them.
//!
//! Architecture Invariant: nothing here knows a hypervisor, RocksDB, or how a repository stores. `bincode` is used in
//! `codec` alone. Record layouts are in `FORMAT.md`, messages in `PROTOCOL.md`.

mod aligned;
mod backup;
mod closure;
pub mod codec;
mod copy;
mod diff;
mod either;
mod error;
mod failover;
mod history;
mod holder;
mod ids;
pub mod labels;
mod machine;
mod manifest;
mod map;
mod mem;
mod moment;
mod name;
mod order;
mod pace;
mod page;
mod points;
mod pool;
mod progress;
mod reach;
mod record;
mod repair;
mod repository;
mod restore;
mod retention;
mod scratch;
mod select;
mod source;
mod spot;
mod stop;
mod sweep;
mod target;
#[cfg(test)]
mod testing;
mod verify;
mod visited;
mod world;

pub use aligned::{AlignedBuffer, DIRECT_BYTES, direct_prefix};
pub use backup::{
    Allow, Audit, AuditReport, BackupOptions, BackupReport, DiskReport, NewAttachment, backup, parent_of,
};
pub use closure::{Presences, missing_for};
pub use copy::{CopyReport, copy, still_wanted};
pub use diff::{ChangedBlock, ChangedRun, RunKind, Step, TreeDiff, changed_runs};
pub use either::Either;
pub use error::{Error, ErrorKind, Result};
pub use failover::Failover;
pub use history::LogEntry;
pub use holder::{Holder, Role};
pub use ids::{CheckpointId, DiskId, GroupId, MachineId, OwnerId, PointId, RepositoryId, SessionId, WriterId, digest};
pub use machine::{Machine, qualifiers};
pub use manifest::{
    Attachment, ChangeTracking, Consistency, DISK_BYTES_MAX, DiskRecord, LayerIdentity, MANIFEST_BYTES_MAX, Manifest,
    TrackingRecord,
};
pub use map::{MapBuilder, MapReader, MapRoot, NewPage, level_of, stream_map};
pub use mem::{Fault, FaultEffect, Mem, MemReader, MemSession};
pub use moment::Moment;
pub use name::Name;
pub use order::{in_order, suspect_times};
pub use pace::{Pacer, parse_bytes};
pub use page::{PAGE_BYTES_MAX, PAGE_ENTRIES, PAGE_LEVEL_MAX, Page, PageFlavour, PageRef};
pub use points::Lineage;
pub use pool::{Pool, blocking, with_opener, with_sealer};
pub use progress::{Counters, Phase, Progress};
pub use reach::{Had, Reach};
pub use record::{RecordError, RecordReader, RecordWriter, TEXT_BYTES_MAX, check_text};
pub use repair::{RepairReport, repair};
pub use repository::{
    Begin, Begun, ChunkBatch, ChunkError, Commit, Flushed, GivenUp, Incarnation, IndexTotals, Origin, PointChange,
    PointDraft, PointFilter, Presence, ReadSession, RecoveryPoint, Repository, RepositoryConfig, ScrubTotals, Stats,
    Suspect, Verification, WriteSession, verified,
};
pub use restore::{RestoreReport, Sink, read_attachment, restore, restore_delta, restore_stream};
pub use retention::{Keep, Reason, Verdict, clock_doubt, retain, retention_time};
pub use scratch::{private_folder, scratch_places};
pub use select::{Selector, select};
pub use source::{Changed, DiskDescription, Outcome, ParentDisk, Source, TrackingWish};
pub use spot::{Demand, Shape, Spot};
pub use stop::{Stop, StopReason, Stoppable, Stopper};
pub use sweep::{SweepOptions, SweepReport, SweepTimes};
pub use target::Target;
pub use verify::{Depth, VerifyError, VerifyOptions, VerifyReport};
pub use visited::Visited;
pub use world::{Clock, Random, SystemClock, SystemRandom, Timestamp, World};
