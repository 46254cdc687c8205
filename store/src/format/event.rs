//! Events: what a log record states. Layout in FORMAT.md, section "Log".

mod body;
mod text;

use super::pack::PackName;
use body::{read_log_head, read_points, write_points};
use chunker::ChunkId;
use mover::{
    LogHead, PointId, RecordError, RecordReader, RecordWriter, RepositoryId, Result as Outcome, SessionId, check_text,
};

pub use body::{AddedPack, CommittedPoint, Doomed, Dropped, Orphan, SessionOpened, first_record, made_by};

/// One statement of a log record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The record's writer begins the term in the record's header: its open sessions of older terms have ended.
    WriterTerm,
    /// A session begins.
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
    /// Pinned points can be forgotten again.
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
    /// A setting is set, or removed when the value is empty.
    Configuration(String, String),
    /// The end of another repository's log as seen by a copy from it.
    PeerSeen(RepositoryId, LogHead),
    /// An administrator accepted that the log was rolled back; the log that others saw ended here.
    NewIncarnation(LogHead),
    /// An event of a later version. A program that does not know a critical event may go on reading, but must not
    /// write.
    Unknown {
        /// Code of the event.
        code: u16,
        /// Whether it must be understood to write.
        critical: bool,
    },
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

    /// Whether its texts fit into a record: to be asked before it is written.
    ///
    /// # Errors
    /// `Usage`.
    pub fn check_texts(&self) -> Outcome<()> {
        let (key, value) = match self {
            Self::Annotated(_, key, value) | Self::Configuration(key, value) => (key, value),
            _ => return Ok(()),
        };
        check_text("the key of a label or setting", key)?;
        check_text("the value of a label or setting", value)
    }

    /// Appends {u16 code, u16 flags, u32 length, body}.
    ///
    /// # Panics
    /// With a text that is too long; see [`Self::check_texts`].
    pub fn write(&self, to: &mut RecordWriter) {
        let body = self.body();
        to.u16(self.code()).u16(self.is_critical().into());
        to.u32(u32::try_from(body.len()).expect("a record is bounded")).bytes(&body);
    }

    fn body(&self) -> Vec<u8> {
        let mut to = RecordWriter::new();
        match self {
            Self::WriterTerm | Self::Unknown { .. } => {}
            Self::SessionOpened(it) => it.write(&mut to),
            Self::SessionClosed(session) | Self::SessionFenced(session) => {
                to.bytes(&session.0);
            }
            Self::PacksAdded(packs) => {
                to.list(packs, |to, pack| pack.write(to));
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
            Self::Doomed(it) => it.write(&mut to),
            Self::Dropped(it) => it.write(&mut to),
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
            2 => Self::SessionOpened(SessionOpened::read(from)?),
            3 => Self::SessionClosed(SessionId(from.array("session")?)),
            4 => Self::SessionFenced(SessionId(from.array("session")?)),
            5 => Self::PacksAdded(from.list("packs", AddedPack::BYTES, AddedPack::read)?),
            6 => Self::PointCommitted(CommittedPoint::read(from)?),
            7 => Self::Forgotten(read_points(from)?),
            8 => Self::Unforgotten(read_points(from)?),
            9 => Self::Pinned(read_points(from)?),
            10 => Self::Unpinned(read_points(from)?),
            11 => Self::Annotated(PointId(from.array("point")?), from.text("label")?, from.text("label")?),
            12 => Self::ChunkSuspect(ChunkId(from.array("chunk")?), PackName(from.array("pack")?)),
            13 => Self::ChunkHealed(ChunkId(from.array("chunk")?), PackName(from.array("pack")?)),
            14 => Self::SweepBegun(from.array("sweep")?),
            15 => Self::Doomed(Doomed::read(from)?),
            16 => Self::Dropped(Dropped::read(from)?),
            17 => Self::SweepEnded(from.array("sweep")?),
            18 => Self::Role(from.u8("role")?),
            19 => Self::Configuration(from.text("setting")?, from.text("setting")?),
            20 => Self::PeerSeen(RepositoryId(from.array("repository")?), read_log_head(from)?),
            21 => Self::NewIncarnation(read_log_head(from)?),
            _ => Self::Unknown { code, critical: flags & 1 != 0 },
        })
    }
}

#[cfg(test)]
mod tests;
