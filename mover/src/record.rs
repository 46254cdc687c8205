//! Records that are kept in chunks, in manifests and in the log, and the trees that are made of them.

mod bytes;
pub(crate) mod closure;
pub mod codec;
mod diff;
mod ids;
pub mod labels;
pub(crate) mod manifest;
pub(crate) mod map;
mod name;
mod page;
mod root;
mod spot;
mod visited;

pub use bytes::{RecordError, RecordReader, RecordWriter, TEXT_BYTES_MAX, check_text};
pub use closure::{Presences, missing_for};
pub use diff::{ChangedBlock, ChangedRun, RunKind, Step, TreeDiff, changed_runs};
pub use ids::{
    CheckpointId, DiskId, GroupId, JobId, MachineId, OwnerId, PointId, RepositoryId, SessionId, WriterId, digest,
};
pub use manifest::{
    Attachment, ChangeTracking, Consistency, DISK_BYTES_MAX, DiskRecord, LayerIdentity, MANIFEST_BYTES_MAX, Manifest,
    TrackingRecord,
};
pub use map::{MapBuilder, MapReader, NewPage, stream_map};
pub use name::Name;
pub use page::{PAGE_BYTES_MAX, PAGE_ENTRIES, PAGE_LEVEL_MAX, Page, PageFlavour, PageRef};
pub use root::{MapRoot, level_of};
pub use spot::{Demand, Shape, Spot};
pub use visited::Visited;
