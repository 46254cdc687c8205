//! Events: what a log record states. Layout in FORMAT.md, section "Log".

use super::pack::{PackKind, PackName};
use chunker::ChunkId;
use mover::{
    GroupId, Incarnation, MachineId, Name, OwnerId, PointId, RecordError, RecordReader, RecordWriter, RepositoryId,
    SessionId, Timestamp, WriterId,
};

/// One statement of a log record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The record's writer begins the term in the record's header: its open sessions of older terms have ended.
    WriterTerm,
    /// A lease begins.
    SessionOpened(SessionOpened),
    /// A lease ended by its holder.
    SessionClosed(SessionId),
    /// A lease ended by somebody else.
    SessionFenced(SessionId),
    /// Packs that are durable from now on.
    PacksAdded(Vec<AddedPack>),
    /// A point is visible from now on.
    PointCommitted(CommittedPoint),
    /// Points are forgotten, until a sweep makes that final.
    Forgotten(Vec<PointId>),
    /// Forgotten points are back.
    Unforgotten(Vec<PointId>),
    /// Points are kept whatever retention says.
    Pinned(Vec<PointId>),
    /// They no longer are.
    Unpinned(Vec<PointId>),
    /// A label of a point is set, or removed when the value is empty.
    Annotated(PointId, String, String),
    /// A chunk was found damaged in a pack.
    ChunkSuspect(ChunkId, PackName),
    /// It was found sound there after all.
    ChunkHealed(ChunkId, PackName),
    /// A sweep begins and supersedes any other.
    SweepBegun([u8; 16]),
    /// Packs that no "have" may refer to any more.
    Doomed(Doomed),
    /// Doomed packs that are deleted after this.
    Dropped(Dropped),
    /// A sweep ends.
    SweepEnded([u8; 16]),
    /// What the repository is in a plan: 0 primary, 1 auxiliary.
    Role(u8),
    /// A setting.
    Configuration(String, String),
    /// The end of another repository's log as seen by a copy from it.
    PeerSeen(RepositoryId, Incarnation),
    /// An administrator accepted that the log was rolled back; the log that others saw ended here.
    NewIncarnation(Incarnation),
    /// An event of a later version; who does not know a critical one reads on, but must not write.
    Unknown {
        /// Its code.
        code: u16,
        /// Whether it must be understood to write.
        critical: bool,
    },
}

/// A lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionOpened {
    /// Its id.
    pub session: SessionId,
    /// True for a writer's.
    pub writes: bool,
    /// Whose data it is about.
    pub owner: OwnerId,
    /// The point it will commit; zero for readers.
    pub point: PointId,
    /// Points that are roots until it ends.
    pub pins: Vec<PointId>,
}

/// A pack as the log knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedPack {
    /// Its name.
    pub name: PackName,
    /// What it holds.
    pub kind: PackKind,
    /// Its length.
    pub bytes: u64,
    /// Records in it.
    pub chunks: u32,
}

/// A point as the log knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedPoint {
    /// The session that commits it.
    pub session: SessionId,
    /// The point.
    pub point: PointId,
    /// Its manifest's chunk.
    pub manifest: ChunkId,
    /// Whose it is.
    pub owner: OwnerId,
    /// The machine.
    pub machine: MachineId,
    /// The machine's name.
    pub machine_name: Name,
    /// Its group.
    pub group: Option<GroupId>,
    /// The instant it shows.
    pub snapshot_time: Timestamp,
    /// Where it was committed first, when not here.
    pub origin: Option<(RepositoryId, Timestamp)>,
    /// Neither forgotten nor swept before this time.
    pub protected_until: Timestamp,
    /// Sum of the sizes of its disks and attachments.
    pub bytes_logical: u64,
    /// Plain bytes it brought.
    pub bytes_new: u64,
}

/// Step one of deleting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doomed {
    /// The sweep.
    pub token: [u8; 16],
    /// The record up to which everything was marked.
    pub marked: u64,
    /// Points committed or pinned after that which were marked too (R6).
    pub marked_too: Vec<PointId>,
    /// The packs.
    pub packs: Vec<PackName>,
    /// Forgotten points that cannot come back after this (R11).
    pub finalised: Vec<PointId>,
}

/// Step two of deleting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// The sweep.
    pub token: [u8; 16],
    /// The record up to which everything was checked a second time.
    pub marked: u64,
    /// Points committed or pinned after that which were checked too.
    pub marked_too: Vec<PointId>,
    /// The packs.
    pub packs: Vec<PackName>,
    /// Packs that never came into the log and whose writers' terms are over: from here on they never can (R5).
    pub orphans: Vec<Orphan>,
}

/// A pack object that the log does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// Its name.
    pub name: PackName,
    /// The writer in its header.
    pub writer: WriterId,
    /// The term in its header.
    pub term: u64,
}

impl Event {
    /// The event's code in the format.
    pub const fn code(&self) -> u16 {
        match self {
            Self::WriterTerm => 1,
            Self::SessionOpened(_) => 2,
            Self::SessionClosed(_) => 3,
            Self::SessionFenced(_) => 4,
            Self::PacksAdded(_) => 5,
            Self::PointCommitted(_) => 6,
            Self::Forgotten(_) => 7,
            Self::Unforgotten(_) => 8,
            Self::Pinned(_) => 9,
            Self::Unpinned(_) => 10,
            Self::Annotated(..) => 11,
            Self::ChunkSuspect(..) => 12,
            Self::ChunkHealed(..) => 13,
            Self::SweepBegun(_) => 14,
            Self::Doomed(_) => 15,
            Self::Dropped(_) => 16,
            Self::SweepEnded(_) => 17,
            Self::Role(_) => 18,
            Self::Configuration(..) => 19,
            Self::PeerSeen(..) => 20,
            Self::NewIncarnation(_) => 21,
            Self::Unknown { code, .. } => *code,
        }
    }

    /// True when a reader that does not know the code must not write: everything but labels and settings.
    const fn is_critical(&self) -> bool {
        match self {
            Self::Unknown { critical, .. } => *critical,
            Self::Annotated(..) | Self::Configuration(..) => false,
            _ => true,
        }
    }

    /// Appends {u16 code, u16 flags, u32 length, body}.
    pub fn write(&self, to: &mut RecordWriter) {
        let body = self.body();
        to.u16(self.code()).u16(self.is_critical().into());
        to.u32(u32::try_from(body.len()).expect("a record is bounded")).bytes(&body);
    }

    fn body(&self) -> Vec<u8> {
        let mut to = RecordWriter::new();
        match self {
            Self::WriterTerm | Self::Unknown { .. } => {}
            Self::SessionOpened(it) => {
                to.bytes(&it.session.0).u8(it.writes.into()).bytes(&it.owner.0).bytes(&it.point.0);
                write_points(&mut to, &it.pins);
                to.no_extensions();
            }
            Self::SessionClosed(session) | Self::SessionFenced(session) => {
                to.bytes(&session.0);
            }
            Self::PacksAdded(packs) => {
                to.list(packs, |to, pack| {
                    to.bytes(&pack.name.0).u8(pack.kind as u8).u64(pack.bytes).u32(pack.chunks);
                });
            }
            Self::PointCommitted(point) => point.write(&mut to),
            Self::Forgotten(points) | Self::Unforgotten(points) | Self::Pinned(points) | Self::Unpinned(points) => {
                write_points(&mut to, points);
            }
            Self::Annotated(point, key, value) => {
                to.bytes(&point.0).text(key).text(value);
            }
            Self::ChunkSuspect(chunk, pack) | Self::ChunkHealed(chunk, pack) => {
                to.bytes(chunk.as_bytes()).bytes(&pack.0);
            }
            Self::SweepBegun(token) | Self::SweepEnded(token) => {
                to.bytes(token);
            }
            Self::Doomed(it) => {
                to.bytes(&it.token).u64(it.marked);
                write_points(&mut to, &it.marked_too);
                write_packs(&mut to, &it.packs);
                write_points(&mut to, &it.finalised);
            }
            Self::Dropped(it) => {
                to.bytes(&it.token).u64(it.marked);
                write_points(&mut to, &it.marked_too);
                write_packs(&mut to, &it.packs);
                to.list(&it.orphans, |to, orphan| {
                    to.bytes(&orphan.name.0).bytes(&orphan.writer.0).u64(orphan.term);
                });
            }
            Self::Role(role) => {
                to.u8(*role);
            }
            Self::Configuration(key, value) => {
                to.text(key).text(value);
            }
            Self::PeerSeen(repository, seen) => {
                to.bytes(&repository.0).u64(seen.sequence).bytes(&seen.hash);
            }
            Self::NewIncarnation(lost) => {
                to.u64(lost.sequence).bytes(&lost.hash);
            }
        }
        to.finish()
    }

    /// Reads one event.
    ///
    /// # Errors
    /// What is wrong. An unknown code is no error here.
    pub fn read(from: &mut RecordReader<'_>) -> Result<Self, RecordError> {
        let (code, flags, length) = (from.u16("event code")?, from.u16("event flags")?, from.u32("event length")?);
        let body = from.bytes("event", usize::try_from(length).map_err(|_| RecordError::Short { field: "event" })?)?;
        let mut body = RecordReader::new(body);
        let event = Self::read_body(code, flags, &mut body)?;
        if !matches!(event, Self::Unknown { .. }) {
            body.end()?;
        }
        Ok(event)
    }

    fn read_body(code: u16, flags: u16, from: &mut RecordReader<'_>) -> Result<Self, RecordError> {
        Ok(match code {
            1 => Self::WriterTerm,
            2 => {
                let opened = SessionOpened {
                    session: SessionId(from.array("session")?),
                    writes: match from.u8("session kind")? {
                        0 => false,
                        1 => true,
                        value => return Err(RecordError::Value { field: "session kind", value: value.into() }),
                    },
                    owner: OwnerId(from.array("owner")?),
                    point: PointId(from.array("point")?),
                    pins: read_points(from)?,
                };
                from.extensions()?;
                Self::SessionOpened(opened)
            }
            3 => Self::SessionClosed(SessionId(from.array("session")?)),
            4 => Self::SessionFenced(SessionId(from.array("session")?)),
            5 => Self::PacksAdded(from.list("packs", 45, |from| {
                Ok(AddedPack {
                    name: PackName(from.array("pack")?),
                    kind: PackKind::from_code(from.u8("pack kind")?)?,
                    bytes: from.u64("pack length")?,
                    chunks: from.u32("pack chunks")?,
                })
            })?),
            6 => Self::PointCommitted(CommittedPoint::read(from)?),
            7 => Self::Forgotten(read_points(from)?),
            8 => Self::Unforgotten(read_points(from)?),
            9 => Self::Pinned(read_points(from)?),
            10 => Self::Unpinned(read_points(from)?),
            11 => Self::Annotated(PointId(from.array("point")?), from.text("label")?, from.text("label")?),
            12 => Self::ChunkSuspect(ChunkId(from.array("chunk")?), PackName(from.array("pack")?)),
            13 => Self::ChunkHealed(ChunkId(from.array("chunk")?), PackName(from.array("pack")?)),
            14 => Self::SweepBegun(from.array("sweep")?),
            15 => Self::Doomed(Doomed {
                token: from.array("sweep")?,
                marked: from.u64("marked")?,
                marked_too: read_points(from)?,
                packs: read_packs(from)?,
                finalised: read_points(from)?,
            }),
            16 => Self::Dropped(Dropped {
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
            }),
            17 => Self::SweepEnded(from.array("sweep")?),
            18 => Self::Role(from.u8("role")?),
            19 => Self::Configuration(from.text("setting")?, from.text("setting")?),
            20 => Self::PeerSeen(RepositoryId(from.array("repository")?), read_incarnation(from)?),
            21 => Self::NewIncarnation(read_incarnation(from)?),
            _ => Self::Unknown { code, critical: flags & 1 != 0 },
        })
    }
}

impl CommittedPoint {
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
        to.i64(self.protected_until.0).u64(self.bytes_logical).u64(self.bytes_new).no_extensions();
    }

    /// Reads what [`Self::write`] writes.
    ///
    /// # Errors
    /// What is wrong.
    pub fn read(from: &mut RecordReader<'_>) -> Result<Self, RecordError> {
        let point = Self {
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
        };
        from.extensions()?;
        Ok(point)
    }
}

fn write_points(to: &mut RecordWriter, points: &[PointId]) {
    to.list(points, |to, point| {
        to.bytes(&point.0);
    });
}

fn read_points(from: &mut RecordReader<'_>) -> Result<Vec<PointId>, RecordError> {
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

fn read_incarnation(from: &mut RecordReader<'_>) -> Result<Incarnation, RecordError> {
    Ok(Incarnation { sequence: from.u64("sequence")?, hash: from.array("hash")? })
}

#[cfg(test)]
mod tests;
