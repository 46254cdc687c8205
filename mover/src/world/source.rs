//! Where disks are read from.

use crate::{
    ChangeTracking, CheckpointId, Consistency, DiskId, DiskRecord, Error, LayerIdentity, MapRoot, Name, RepositoryId,
    Result, Timestamp, TrackingRecord,
};
use bytes::Bytes;
use chunker::{Extent, ExtentSet, GRID_BYTES};
use serde::{Deserialize, Serialize};
use std::future::Future;
use std::time::Duration;

/// A consistent state of a machine's disks, open for reading: a snapshot session.
///
/// Every method may be called for several disks and ranges at once. All bytes of one session belong to one moment. If
/// that turns out to be false, [`Self::check`] reports it at the latest. Errors are of kind
/// [`ErrorKind::Source`](crate::ErrorKind::Source), [`Busy`](crate::ErrorKind::Busy),
/// [`Tracking`](crate::ErrorKind::Tracking), [`Transport`](crate::ErrorKind::Transport) or
/// [`Usage`](crate::ErrorKind::Usage), never one of a store.
pub trait Source: Send + Sync {
    /// The disks, in a stable order. Other methods name a disk by its place here.
    fn disks(&self) -> &[DiskDescription];

    /// What is known of the moment that the disks show.
    fn snapshot(&self) -> &Snapshot;

    /// What may have changed on `disk` since `parent`, as `wish` allows. Asked once for each disk, before reads.
    ///
    /// If the tracking cannot be proven, the answer says that everything is to be read, and why: a fingerprint pass if
    /// there is a parent, otherwise a full pass. With [`TrackingWish::Bitmap`] it is an error of kind `Tracking` instead.
    fn changed(
        &self,
        disk: usize,
        parent: Option<ParentDisk<'_>>,
        wish: TrackingWish,
    ) -> impl Future<Output = Result<Changed>> + Send;

    /// The bytes of `extent`, which lies inside the disk: exactly `extent.length` of them. Only real
    /// bytes of the disk are returned. If a byte cannot be read, the call fails.
    fn read(&self, disk: usize, extent: Extent) -> impl Future<Output = Result<Bytes>> + Send;

    /// Fails when the bytes that were read so far may not be of one moment (a raw file changed meanwhile). Called
    /// before commit.
    fn check(&self) -> impl Future<Output = Result<()>> + Send;

    /// True when what the machine overwrites is kept for the reader, in space that [`Self::release`] makes free again.
    fn keeps_for_reader(&self) -> bool {
        false
    }

    /// Tells that `extent` will not be read again, or not at all. Afterwards reads there fail. A source that cannot use
    /// that does nothing.
    fn release(&self, _disk: usize, _extent: Extent) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// The most space that was taken, so far, by what the machine overwrote while it was read; in bytes.
    fn scratch_bytes_max(&self) -> u64 {
        0
    }

    /// Completes only when the job that reads this source must stop, and then with an error. The job waits for it together
    /// with everything else that it waits for, such as a rate limit or a repository far away.
    fn stopped(&self) -> impl Future<Output = Error> + Send {
        std::future::pending()
    }

    /// Ends the session. `Committed`: the new checkpoint is the base of the next backup, older ones are removed;
    /// `Abandoned`: the old checkpoint can still be used, and the new one is removed. If this call fails, the next run cleans
    /// up; the caller gives a warning, and the backup does not fail.
    fn finish(self, outcome: Outcome) -> impl Future<Output = Result<()>> + Send;
}

/// The moment that the disks of a session show, as far as the source knows it. A point records only these facts,
/// never what was wanted and not reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The instant that the disks show.
    pub time: Timestamp,
    /// State of the disks after a restore.
    pub consistency: Consistency,
    /// How long the machine, or an application in it, stood still for it; zero when it did not.
    pub frozen: Duration,
    /// How long the machine's processors were stopped for it; zero when they were not.
    pub paused: Duration,
    /// Guest clock minus the clock here, in nanoseconds; none when nobody asked the guest.
    pub guest_clock_offset_ns: Option<i64>,
    /// Files that belong to the machine in addition to its disks, as the source found them.
    pub attachments: Vec<NewAttachment>,
    /// What the administrator should know.
    pub warnings: Vec<String>,
}

impl Snapshot {
    /// Disks at this instant, as a power cut would leave them: all that is known without the machine.
    pub const fn at(time: Timestamp) -> Self {
        Self {
            time,
            consistency: Consistency::Crash,
            frozen: Duration::ZERO,
            paused: Duration::ZERO,
            guest_clock_offset_ns: None,
            attachments: Vec::new(),
            warnings: Vec::new(),
        }
    }
}

/// A file that travels with the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewAttachment {
    /// Kind of the file: domain, nvram or tpm.
    pub kind: Name,
    /// Its file name.
    pub name: String,
    /// Its content.
    pub bytes: Bytes,
}

/// What a source tells of a disk before it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskDescription {
    /// Its name in the machine.
    pub name: Name,
    /// Exact size in bytes.
    pub size: u64,
    /// Logical sector size, 0 when unknown.
    pub logical_sector_bytes: u32,
    /// Physical sector size, 0 when unknown.
    pub physical_sector_bytes: u32,
    /// Discard granularity, 0 when unknown.
    pub discard_bytes: u32,
    /// Position in the boot order from 1, 0 when unknown.
    pub boot_order: u32,
    /// Bus, empty when unknown.
    pub bus: String,
    /// Serial number, empty when unknown.
    pub serial: String,
    /// raw, qcow2 or nbd.
    pub format: String,
    /// Options of that format, as text.
    pub format_options: String,
    /// The image and its backing files, top first, as they were when the session was opened.
    pub chain: Vec<LayerIdentity>,
    /// Something the administrator should know, such as that one moment cannot be promised.
    pub warning: Option<String>,
}

impl DiskDescription {
    /// The record of the disk in a point: this description, with the id, the map and the change tracking of the disk.
    pub fn record(&self, id: DiskId, root: MapRoot, tracking: TrackingRecord) -> DiskRecord {
        DiskRecord {
            id,
            name: self.name.clone(),
            size: self.size,
            grid: GRID_BYTES,
            root,
            logical_sector_bytes: self.logical_sector_bytes,
            physical_sector_bytes: self.physical_sector_bytes,
            discard_bytes: self.discard_bytes,
            boot_order: self.boot_order,
            bus: self.bus.clone(),
            serial: self.serial.clone(),
            format: self.format.clone(),
            format_options: self.format_options.clone(),
            chain: self.chain.clone(),
            tracking,
        }
    }
}

/// A disk as the parent point has it, and where that point lies.
#[derive(Debug, Clone, Copy)]
pub struct ParentDisk<'a> {
    /// The repository of the backup.
    pub repository: RepositoryId,
    /// The parent's record of the disk.
    pub record: &'a DiskRecord,
}

/// How the administrator wants changes to be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum TrackingWish {
    /// The cheapest that is proven right.
    #[default]
    Auto,
    /// A proven bitmap or an error.
    Bitmap,
    /// Read everything allocated, compare with the parent; write nothing into the image.
    Fingerprint,
    /// Read everything, compare with nothing.
    Full,
}

impl TrackingWish {
    /// Whether a bitmap is used where one is proven.
    pub const fn asks_for_bitmap(self) -> bool {
        matches!(self, Self::Auto | Self::Bitmap)
    }
}

/// What may have changed, and how that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// How changes were found.
    pub mode: ChangeTracking,
    /// Why that way, for people.
    pub reason: String,
    /// With [`ChangeTracking::Bitmap`]: bytes that may differ from the parent. Otherwise ignored: everything may.
    pub dirty: ExtentSet,
    /// Bytes that are zero by allocation, now; they need not be read. May be incomplete, never wrong.
    pub zeroes: ExtentSet,
    /// The checkpoint begun with this session and its granularity, when one was.
    pub checkpoint: Option<(CheckpointId, u32)>,
    /// What shows that the tracking is wrong, if that was found before the tracking was used.
    pub lie: Option<String>,
}

impl Changed {
    /// The record of it in a point, before a byte was read.
    pub fn record(&self) -> TrackingRecord {
        TrackingRecord {
            mode: self.mode,
            reason: self.reason.clone(),
            checkpoint: self.checkpoint.map(|(id, _)| id),
            granularity: self.checkpoint.map_or(0, |(_, granularity)| granularity),
            bytes_read: 0,
            bytes_changed: 0,
            bytes_audited: 0,
        }
    }
}

/// How a snapshot session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The point is durable.
    Committed,
    /// There is no point.
    Abandoned,
}
