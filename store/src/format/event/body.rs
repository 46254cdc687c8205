//! What events say, where it is more than an id or two. Digests repeat some of it, in the same bytes.

use crate::format::pack::{PackKind, PackName};
use chunker::ChunkId;
use mover::{
    GroupId, Holder, LogHead, MachineId, Name, OwnerId, PointId, RecordError, RecordReader, RecordWriter, RepositoryId,
    Role, SessionId, Timestamp, WriterId,
};

/// A session: while it is open, what it pins is not deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionOpened {
    /// Id of the session.
    pub session: SessionId,
    /// True for a write session.
    pub writes: bool,
    /// Whose data it is about.
    pub owner: OwnerId,
    /// The point it will commit; zero for readers.
    pub point: PointId,
    /// Points that are roots until it ends.
    pub pins: Vec<PointId>,
    /// Extensions of later versions, as they stand: digests repeat them.
    pub extensions: Vec<u8>,
}

/// A pack as the log knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedPack {
    /// Name of the pack: the hash of its bytes.
    pub name: PackName,
    /// Kind of the chunks in it.
    pub kind: PackKind,
    /// Length of the pack in bytes.
    pub bytes: u64,
    /// Number of records in it.
    pub chunks: u32,
}

/// A point as the log knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedPoint {
    /// The session that commits it.
    pub session: SessionId,
    /// Id of the point.
    pub point: PointId,
    /// Chunk id of its manifest.
    pub manifest: ChunkId,
    /// The owner of the point; zero for the site.
    pub owner: OwnerId,
    /// Id of the machine.
    pub machine: MachineId,
    /// The machine's name.
    pub machine_name: Name,
    /// Group of points that are kept or forgotten together.
    pub group: Option<GroupId>,
    /// The instant that its disks show.
    pub snapshot_time: Timestamp,
    /// Where it was committed first, when not here.
    pub origin: Option<(RepositoryId, Timestamp)>,
    /// Neither forgotten nor swept before this time.
    pub protected_until: Timestamp,
    /// Sum of the sizes of its disks and attachments.
    pub bytes_logical: u64,
    /// Plain bytes of chunks that the repository did not have.
    pub bytes_new: u64,
    /// Extensions of later versions, as they stand: digests repeat them.
    pub extensions: Vec<u8>,
}

/// The first step of deleting packs: nothing new may rely on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doomed {
    /// Token of the sweep.
    pub token: [u8; 16],
    /// The record up to which everything was marked.
    pub marked: u64,
    /// Points committed or pinned after that which were marked too (R6).
    pub marked_too: Vec<PointId>,
    /// Names of the packs.
    pub packs: Vec<PackName>,
    /// Forgotten points that cannot come back after this (R11).
    pub finalised: Vec<PointId>,
}

/// The second step of deleting packs: their files may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// Token of the sweep.
    pub token: [u8; 16],
    /// The record up to which everything was checked a second time.
    pub marked: u64,
    /// Points committed or pinned after that which were checked too.
    pub marked_too: Vec<PointId>,
    /// Names of the packs.
    pub packs: Vec<PackName>,
    /// Packs that never came into the log and whose writers' terms are over: from here on they never can (R5).
    pub orphans: Vec<Orphan>,
}

/// A pack object that the log does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// Name of the pack: the hash of its bytes.
    pub name: PackName,
    /// The writer in its header.
    pub writer: WriterId,
    /// The term in its header.
    pub term: u64,
}

impl SessionOpened {
    /// Fewest bytes of one in encoded form.
    pub const BYTES_MIN: usize = 57;

    /// Appends its fields: the body of the event and part of a state digest.
    pub fn write(&self, to: &mut RecordWriter) {
        to.bytes(&self.session.0).u8(self.writes.into()).bytes(&self.owner.0).bytes(&self.point.0);
        write_points(to, &self.pins);
        to.extensions(&self.extensions);
    }

    /// Reads what [`Self::write`] writes.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn read(from: &mut RecordReader<'_>) -> Result<Self, RecordError> {
        Ok(Self {
            session: SessionId(from.array("session")?),
            writes: match from.u8("session kind")? {
                0 => false,
                1 => true,
                value => return Err(RecordError::Value { field: "session kind", value: value.into() }),
            },
            owner: OwnerId(from.array("owner")?),
            point: PointId(from.array("point")?),
            pins: read_points(from)?,
            extensions: from.extensions()?.to_vec(),
        })
    }
}

impl AddedPack {
    /// Bytes of one in encoded form.
    pub const BYTES: usize = 45;

    /// Appends its fields: part of the event and of a state digest.
    pub fn write(&self, to: &mut RecordWriter) {
        to.bytes(&self.name.0).u8(self.kind as u8).u64(self.bytes).u32(self.chunks);
    }

    /// Reads what [`Self::write`] writes.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn read(from: &mut RecordReader<'_>) -> Result<Self, RecordError> {
        Ok(Self {
            name: PackName(from.array("pack")?),
            kind: PackKind::from_code(from.u8("pack kind")?)?,
            bytes: from.u64("pack length")?,
            chunks: from.u32("pack chunks")?,
        })
    }
}

impl CommittedPoint {
    /// Fewest bytes of one in encoded form.
    pub const BYTES_MIN: usize = 137;

    /// Appends its fields: the body of the event and part of a state digest.
    pub fn write(&self, to: &mut RecordWriter) {
        to.bytes(&self.session.0).bytes(&self.point.0).bytes(self.manifest.as_bytes()).bytes(&self.owner.0);
        to.bytes(&self.machine.0).text(self.machine_name.as_str());
        to.option(self.group, |to, group| {
            to.bytes(&group.0);
        });
        to.i64(self.snapshot_time.0);
        to.option(self.origin, |to, (repository, time)| {
            to.bytes(&repository.0).i64(time.0);
        });
        to.i64(self.protected_until.0).u64(self.bytes_logical).u64(self.bytes_new);
        to.extensions(&self.extensions);
    }

    /// Reads what [`Self::write`] writes.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn read(from: &mut RecordReader<'_>) -> Result<Self, RecordError> {
        Ok(Self {
            session: SessionId(from.array("session")?),
            point: PointId(from.array("point")?),
            manifest: ChunkId(from.array("manifest")?),
            owner: OwnerId(from.array("owner")?),
            machine: MachineId(from.array("machine")?),
            machine_name: from
                .text("machine name")?
                .parse()
                .map_err(|_| RecordError::Text { field: "machine name" })?,
            group: from.option("group", |from| from.array("group").map(GroupId))?,
            snapshot_time: Timestamp(from.i64("snapshot time")?),
            origin: from.option("origin", |from| {
                Ok((RepositoryId(from.array("origin")?), Timestamp(from.i64("origin time")?)))
            })?,
            protected_until: Timestamp(from.i64("protected until")?),
            bytes_logical: from.u64("logical bytes")?,
            bytes_new: from.u64("new bytes")?,
            extensions: from.extensions()?.to_vec(),
        })
    }
}

/// The extension of a committed point that says who made it, and what that added to the repository.
pub fn made_by(holder: &Holder, bytes_stored: u64) -> Vec<u8> {
    let mut value = RecordWriter::new();
    value.u8(holder.role.code()).text(holder.name.as_str());
    value.option(holder.owner.as_ref(), |to, owner| {
        to.text(owner.as_str());
    });
    value.u64(bytes_stored);
    let mut to = RecordWriter::new();
    let length = u32::try_from(value.len()).expect("names are short");
    to.u16(MADE_BY).u16(0).u32(length).bytes(value.as_slice());
    to.finish()
}

/// The extension of a committed point that was copied here: the number of the record that committed it first, at its origin.
pub fn first_record(number: u64) -> Vec<u8> {
    let mut to = RecordWriter::new();
    to.u16(FIRST_RECORD).u16(0).u32(8).u64(number);
    to.finish()
}

impl CommittedPoint {
    /// The number of the record that committed it first, of a copy; none where that is not known.
    pub fn first_record(&self) -> Option<u64> {
        self.extension(FIRST_RECORD).and_then(|value| RecordReader::new(value).u64("first record").ok())
    }

    /// The value of an extension; none when it is missing, or when the extensions before it cannot be read.
    fn extension(&self, wanted: u16) -> Option<&[u8]> {
        let mut from = RecordReader::new(&self.extensions);
        while from.remaining() > 0 {
            let (tag, _, length) = (from.u16("tag").ok()?, from.u16("flags").ok()?, from.u32("length").ok()?);
            let value = from.bytes("extension", usize::try_from(length).ok()?).ok()?;
            if tag == wanted {
                return Some(value);
            }
        }
        None
    }

    /// Who made it, and the bytes of blobs that this added; none when it was made in the directory itself. If the
    /// extension cannot be read, this gives none too. That is no risk, because the rights to a point follow from its
    /// owner alone.
    pub fn made_by(&self) -> Option<(Holder, u64)> {
        read_made_by(&mut RecordReader::new(self.extension(MADE_BY)?)).ok()
    }
}

fn read_made_by(from: &mut RecordReader<'_>) -> Result<(Holder, u64), RecordError> {
    let code = from.u8("role")?;
    let role = Role::from_code(code).ok_or(RecordError::Value { field: "role", value: code.into() })?;
    let name = |text: String| text.parse().map_err(|_| RecordError::Text { field: "holder" });
    let holder = name(from.text("holder")?)?;
    let owner = from.option("owner", |from| name(from.text("owner")?))?;
    Ok((Holder { role, name: holder, owner }, from.u64("stored bytes")?))
}

/// Tag of who made a point; an old reader may overlook it.
const MADE_BY: u16 = 3;
/// Tag of the number of the first record; an old reader may overlook it.
const FIRST_RECORD: u16 = 4;

impl Doomed {
    pub(super) fn write(&self, to: &mut RecordWriter) {
        to.bytes(&self.token).u64(self.marked);
        write_points(to, &self.marked_too);
        write_packs(to, &self.packs);
        write_points(to, &self.finalised);
    }

    pub(super) fn read(from: &mut RecordReader<'_>) -> Result<Self, RecordError> {
        Ok(Self {
            token: from.array("sweep")?,
            marked: from.u64("marked")?,
            marked_too: read_points(from)?,
            packs: read_packs(from)?,
            finalised: read_points(from)?,
        })
    }
}

impl Dropped {
    pub(super) fn write(&self, to: &mut RecordWriter) {
        to.bytes(&self.token).u64(self.marked);
        write_points(to, &self.marked_too);
        write_packs(to, &self.packs);
        to.list(&self.orphans, |to, orphan| {
            to.bytes(&orphan.name.0).bytes(&orphan.writer.0).u64(orphan.term);
        });
    }

    pub(super) fn read(from: &mut RecordReader<'_>) -> Result<Self, RecordError> {
        Ok(Self {
            token: from.array("sweep")?,
            marked: from.u64("marked")?,
            marked_too: read_points(from)?,
            packs: read_packs(from)?,
            orphans: from.list("orphans", 56, |from| {
                Ok(Orphan {
                    name: PackName(from.array("pack")?),
                    writer: WriterId(from.array("pack writer")?),
                    term: from.u64("pack term")?,
                })
            })?,
        })
    }
}

pub(super) fn write_points(to: &mut RecordWriter, points: &[PointId]) {
    to.list(points, |to, point| {
        to.bytes(&point.0);
    });
}

pub(super) fn read_points(from: &mut RecordReader<'_>) -> Result<Vec<PointId>, RecordError> {
    from.list("points", 16, |from| from.array("point").map(PointId))
}

fn write_packs(to: &mut RecordWriter, packs: &[PackName]) {
    to.list(packs, |to, pack| {
        to.bytes(&pack.0);
    });
}

fn read_packs(from: &mut RecordReader<'_>) -> Result<Vec<PackName>, RecordError> {
    from.list("packs", 32, |from| from.array("pack").map(PackName))
}

pub(super) fn read_log_head(from: &mut RecordReader<'_>) -> Result<LogHead, RecordError> {
    Ok(LogHead { sequence: from.u64("sequence")?, hash: from.array("hash")? })
}
