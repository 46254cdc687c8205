//! The manifest: everything one recovery point consists of. Layout in FORMAT.md, section "Manifest".

mod check;

use crate::{
    CheckpointId, DiskId, GroupId, MachineId, MapRoot, Name, PAGE_ENTRIES, PAGE_LEVEL_MAX, PointId, RecordError,
    RecordReader, RecordWriter, Timestamp, level_of,
};
use chunker::{ChunkId, GRID_BYTES};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Longest manifest in bytes.
pub const MANIFEST_BYTES_MAX: usize = 4 << 20;

/// Largest disk, 2^56 bytes: what the four levels below a root of the highest level hold.
pub const DISK_BYTES_MAX: u64 = PAGE_ENTRIES.pow(4) * GRID_BYTES as u64;
const _: () = assert!(level_of(DISK_BYTES_MAX) == PAGE_LEVEL_MAX && level_of(DISK_BYTES_MAX + 1) > PAGE_LEVEL_MAX);

/// What a restore of the point amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum Consistency {
    /// As if the plug had been pulled at that moment.
    Crash = 0,
    /// File systems were frozen.
    Filesystem = 1,
    /// File systems were frozen, and applications had written what they held.
    Application = 2,
}

/// How the changes since the parent were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum ChangeTracking {
    /// Everything was read and nothing compared.
    Full = 0,
    /// Everything allocated was read and compared with the parent.
    Fingerprint = 1,
    /// A dirty bitmap told what to read.
    Bitmap = 2,
}

impl ChangeTracking {
    /// The name in output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Fingerprint => "fingerprint",
            Self::Bitmap => "bitmap",
        }
    }
}

impl Consistency {
    /// The name in output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::Filesystem => "filesystem",
            Self::Application => "application",
        }
    }
}

/// A recovery point of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The point's id.
    pub point: PointId,
    /// Id of the machine.
    pub machine: MachineId,
    /// The machine's name at the time.
    pub machine_name: Name,
    /// The point that this one was made against.
    pub parent: Option<PointId>,
    /// The group it belongs to.
    pub group: Option<GroupId>,
    /// The instant that the disks show.
    pub snapshot_time: Timestamp,
    /// When the job began, by the proxy's clock.
    pub begin_time: Timestamp,
    /// When it had read everything, by the proxy's clock.
    pub end_time: Timestamp,
    /// Guest clock minus proxy clock in ns at the snapshot, where known.
    pub guest_clock_offset_ns: Option<i64>,
    /// What a restore amounts to.
    pub consistency: Consistency,
    /// Words the administrator gave.
    pub tags: Vec<String>,
    /// Key-value labels.
    pub labels: BTreeMap<String, String>,
    /// Program and version that made it.
    pub producer: String,
    /// The machine's disks, each with its map.
    pub disks: Vec<DiskRecord>,
    /// What else is needed to bring the machine back.
    pub attachments: Vec<Attachment>,
    /// Plain bytes of chunks this point brought (pages and the manifest not counted).
    pub bytes_new: u64,
    /// Extensions of later versions, unchanged, because a copy of a point keeps its manifest byte for byte.
    pub extensions: Vec<u8>,
}

/// One disk of a point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskRecord {
    /// Id of the disk: stays the same in all points of the machine.
    pub id: DiskId,
    /// Name of the disk within its machine.
    pub name: Name,
    /// Exact size in bytes.
    pub size: u64,
    /// Width of the grid in bytes; [`GRID_BYTES`] in format 1.
    pub grid: u32,
    /// Root of the disk's map.
    pub root: MapRoot,
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
    /// Format it was read from: raw, qcow2, nbd.
    pub format: String,
    /// Options of that format, as the source reports them.
    pub format_options: String,
    /// The image and its backing files, top first.
    pub chain: Vec<LayerIdentity>,
    /// How changes were found, and the checkpoint begun with this point.
    pub tracking: TrackingRecord,
}

/// Change tracking of one disk in one point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackingRecord {
    /// How changes were found.
    pub mode: ChangeTracking,
    /// Why changes were found in this way, for people.
    pub reason: String,
    /// The checkpoint begun at this point's snapshot, where one was.
    pub checkpoint: Option<CheckpointId>,
    /// Its granularity in bytes; 0 without checkpoint.
    pub granularity: u32,
    /// Bytes read from the source.
    pub bytes_read: u64,
    /// Bytes that differ from the parent; without a parent, bytes that are not zero.
    pub bytes_changed: u64,
    /// Bytes read only to audit the tracking.
    pub bytes_audited: u64,
}

/// What tells an image file from another one at the same path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerIdentity {
    /// Absolute path or URI.
    pub path: String,
    /// Device number. For URIs this field and all fields below are 0.
    pub device: u64,
    /// Inode number; 0 where changes of the file cannot be told.
    pub inode: u64,
    /// Size in bytes.
    pub size: u64,
    /// Modification time.
    pub mtime: Timestamp,
    /// Status change time.
    pub ctime: Timestamp,
}

/// Something that belongs to a machine besides its disks: domain XML, NVRAM, TPM state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Kind of the attachment: domain, nvram, tpm or another word.
    pub kind: Name,
    /// File name that it had.
    pub name: String,
    /// Length in bytes.
    pub bytes: u64,
    /// Root of the map of its bytes.
    pub root: MapRoot,
}

impl Manifest {
    /// Sum of the sizes of the disks and attachments.
    pub fn bytes_logical(&self) -> u64 {
        let disks = self.disks.iter().map(|disk| disk.size);
        disks.chain(self.attachments.iter().map(|it| it.bytes)).fold(0, u64::saturating_add)
    }

    /// The disk of this name.
    pub fn disk(&self, name: &Name) -> Option<&DiskRecord> {
        self.disks.iter().find(|disk| disk.name == *name)
    }

    /// Every map root in it.
    pub fn roots(&self) -> impl Iterator<Item = MapRoot> + '_ {
        self.disks.iter().map(|disk| disk.root).chain(self.attachments.iter().map(|it| it.root))
    }

    /// The bytes that are fingerprinted and stored.
    ///
    /// # Panics
    /// With a text that is too long; [`Self::encode_checked`] refuses it.
    pub fn encode(&self) -> Vec<u8> {
        let mut to = RecordWriter::new();
        to.bytes(MANIFEST_MAGIC).u16(MANIFEST_VERSION).u16(0);
        to.bytes(&self.point.0).bytes(&self.machine.0).text(self.machine_name.as_str());
        to.option(self.parent, |to, id| {
            to.bytes(&id.0);
        });
        to.option(self.group, |to, id| {
            to.bytes(&id.0);
        });
        to.i64(self.snapshot_time.0).i64(self.begin_time.0).i64(self.end_time.0);
        to.option(self.guest_clock_offset_ns, |to, offset| {
            to.i64(offset);
        });
        to.u8(self.consistency as u8);
        to.list(&self.tags, |to, tag| {
            to.text(tag);
        });
        let labels: Vec<_> = self.labels.iter().collect();
        to.list(&labels, |to, (key, value)| {
            to.text(key).text(value);
        });
        to.text(&self.producer).u64(self.bytes_new);
        to.list(&self.disks, write_disk);
        to.list(&self.attachments, |to, it| {
            to.text(it.kind.as_str()).text(&it.name).u64(it.bytes);
            write_root(to, it.root);
        });
        to.extensions(&self.extensions);
        to.finish()
    }

    /// Reads a manifest and checks that it makes sense: distinct disks and attachments, trees that fit the sizes. What
    /// is read encodes to the same bytes.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(RecordError::Value { field: "manifest length", value: bytes.len() as u64 });
        }
        let mut from = RecordReader::new(bytes);
        if from.bytes("manifest magic", 4)? != MANIFEST_MAGIC {
            return Err(RecordError::Value { field: "manifest magic", value: 0 });
        }
        match from.u16("manifest version")? {
            MANIFEST_VERSION => {}
            value => return Err(RecordError::Newer { field: "manifest version", value: value.into() }),
        }
        match from.u16("manifest flags")? {
            0 => {}
            value => return Err(RecordError::Newer { field: "manifest flags", value: value.into() }),
        }
        let mut made = Self {
            point: PointId(from.array("point")?),
            machine: MachineId(from.array("machine")?),
            machine_name: read_name(&mut from, "machine name")?,
            parent: from.option("parent", |from| from.array("parent").map(PointId))?,
            group: from.option("group", |from| from.array("group").map(GroupId))?,
            snapshot_time: Timestamp(from.i64("snapshot time")?),
            begin_time: Timestamp(from.i64("begin time")?),
            end_time: Timestamp(from.i64("end time")?),
            guest_clock_offset_ns: from.option("guest clock", |from| from.i64("guest clock"))?,
            consistency: match from.u8("consistency")? {
                0 => Consistency::Crash,
                1 => Consistency::Filesystem,
                2 => Consistency::Application,
                value => return Err(RecordError::Value { field: "consistency", value: value.into() }),
            },
            tags: from.list("tags", 2, |from| from.text("tag"))?,
            labels: read_labels(&mut from)?,
            producer: from.text("producer")?,
            bytes_new: from.u64("new bytes")?,
            disks: from.list("disks", 100, read_disk)?,
            attachments: from.list("attachments", 15, read_attachment)?,
            extensions: Vec::new(),
        };
        made.extensions = from.extensions()?.to_vec();
        from.end()?;
        made.check_distinct()?;
        Ok(made)
    }
}

fn write_root(to: &mut RecordWriter, root: MapRoot) {
    to.u8(root.level).option(root.id, |to, id| {
        to.bytes(id.as_bytes());
    });
}

fn read_root(from: &mut RecordReader<'_>) -> Result<MapRoot, RecordError> {
    let level = from.u8("map level")?;
    let id = from.option("map root", |from| from.array("map root").map(ChunkId))?;
    Ok(MapRoot { level, id })
}

/// Labels are in the order of their keys, so that decoding and encoding gives the same bytes.
fn read_labels(from: &mut RecordReader<'_>) -> Result<BTreeMap<String, String>, RecordError> {
    let label = |from: &mut RecordReader<'_>| Ok((from.text("label")?, from.text("label")?));
    Ok(from.set("labels", 4, label, |a, b| a.0 < b.0)?.into_iter().collect())
}

fn read_attachment(from: &mut RecordReader<'_>) -> Result<Attachment, RecordError> {
    let (kind, name) = (read_name(from, "attachment kind")?, from.text("attachment name")?);
    let (bytes, root) = (from.u64("attachment length")?, read_root(from)?);
    if root.level > PAGE_LEVEL_MAX {
        return Err(RecordError::Value { field: "map level", value: root.level.into() });
    }
    if !check::stream_fits(bytes, root) {
        return Err(RecordError::Value { field: "attachment length", value: bytes });
    }
    Ok(Attachment { kind, name, bytes, root })
}

fn read_name(from: &mut RecordReader<'_>, field: &'static str) -> Result<Name, RecordError> {
    from.text(field)?.parse().map_err(|_| RecordError::Text { field })
}

fn write_disk(to: &mut RecordWriter, disk: &DiskRecord) {
    to.bytes(&disk.id.0).text(disk.name.as_str()).u64(disk.size).u32(disk.grid);
    write_root(to, disk.root);
    to.u32(disk.logical_sector_bytes).u32(disk.physical_sector_bytes).u32(disk.discard_bytes).u32(disk.boot_order);
    to.text(&disk.bus).text(&disk.serial).text(&disk.format).text(&disk.format_options);
    to.list(&disk.chain, |to, layer| {
        to.text(&layer.path).u64(layer.device).u64(layer.inode).u64(layer.size).i64(layer.mtime.0).i64(layer.ctime.0);
    });
    let tracking = &disk.tracking;
    to.u8(tracking.mode as u8).text(&tracking.reason);
    to.option(tracking.checkpoint, |to, id| {
        to.bytes(&id.0);
    });
    to.u32(tracking.granularity);
    to.u64(tracking.bytes_read).u64(tracking.bytes_changed).u64(tracking.bytes_audited);
}

fn read_disk(from: &mut RecordReader<'_>) -> Result<DiskRecord, RecordError> {
    let id = DiskId(from.array("disk")?);
    let name = read_name(from, "disk name")?;
    let (size, grid) = (from.u64("disk size")?, from.u32("disk grid")?);
    let root = read_root(from)?;
    if grid != GRID_BYTES {
        return Err(RecordError::Newer { field: "disk grid", value: grid.into() });
    }
    if size > DISK_BYTES_MAX || root.level != level_of(size) {
        return Err(RecordError::Value { field: "disk size", value: size });
    }
    Ok(DiskRecord {
        id,
        name,
        size,
        grid,
        root,
        logical_sector_bytes: from.u32("sector")?,
        physical_sector_bytes: from.u32("sector")?,
        discard_bytes: from.u32("discard")?,
        boot_order: from.u32("boot order")?,
        bus: from.text("bus")?,
        serial: from.text("serial")?,
        format: from.text("format")?,
        format_options: from.text("format options")?,
        chain: from.list("chain", 42, |from| {
            Ok(LayerIdentity {
                path: from.text("layer path")?,
                device: from.u64("layer device")?,
                inode: from.u64("layer inode")?,
                size: from.u64("layer size")?,
                mtime: Timestamp(from.i64("layer mtime")?),
                ctime: Timestamp(from.i64("layer ctime")?),
            })
        })?,
        tracking: TrackingRecord {
            mode: match from.u8("tracking mode")? {
                0 => ChangeTracking::Full,
                1 => ChangeTracking::Fingerprint,
                2 => ChangeTracking::Bitmap,
                value => return Err(RecordError::Value { field: "tracking mode", value: value.into() }),
            },
            reason: from.text("tracking reason")?,
            checkpoint: from.option("checkpoint", |from| from.array("checkpoint").map(CheckpointId))?,
            granularity: from.u32("granularity")?,
            bytes_read: from.u64("bytes read")?,
            bytes_changed: from.u64("bytes changed")?,
            bytes_audited: from.u64("bytes audited")?,
        },
    })
}

const MANIFEST_MAGIC: &[u8; 4] = b"WLMF";
const MANIFEST_VERSION: u16 = 1;

#[cfg(test)]
pub(crate) mod tests;
