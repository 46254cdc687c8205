//! Why a request failed, as it is told.

use chunker::ChunkId;
use mover::{Error, ErrorKind, Subject};
use serde::{Deserialize, Serialize};

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// [`error_code`], [`NO_SESSION`] or [`NO_ROOM`].
    pub code: u16,
    /// What failed on what.
    pub message: String,
    /// What to do about it; empty when nothing is known.
    pub hint: String,
    /// What it is about.
    pub subject: Box<FailedSubject>,
}

/// What a failure is about, as far as that is known: [`Subject`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedSubject {
    /// Id of the point.
    pub point: Option<String>,
    /// Name of the disk.
    pub disk: Option<String>,
    /// Offset in it, in bytes.
    pub offset: Option<u64>,
    /// The chunk.
    pub chunk: Option<[u8; 32]>,
    /// Name of the pack.
    pub pack: Option<String>,
    /// The file or folder.
    pub path: Option<String>,
}

impl From<&Error> for Failed {
    fn from(error: &Error) -> Self {
        let cut = |text: &str| text.chars().take(TEXT_CHARS_MAX).collect();
        Self {
            code: error_code(error.kind()),
            message: cut(&error.message()),
            hint: cut(error.remedy().unwrap_or_default()),
            subject: Box::new(error.subject().into()),
        }
    }
}

impl From<&Subject> for FailedSubject {
    fn from(subject: &Subject) -> Self {
        let Subject { point, disk, offset, chunk, pack, path } = subject;
        let cut = |text: &Option<String>| text.as_ref().map(|text| text.chars().take(SUBJECT_CHARS_MAX).collect());
        let (point, disk, pack, path) = (cut(point), cut(disk), cut(pack), cut(path));
        Self { point, disk, offset: *offset, chunk: chunk.map(|id| id.0), pack, path }
    }
}

impl From<FailedSubject> for Subject {
    fn from(subject: FailedSubject) -> Self {
        let FailedSubject { point, disk, offset, chunk, pack, path } = subject;
        Self { point, disk, offset, chunk: chunk.map(ChunkId), pack, path }
    }
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        let error = Self::new(error_kind(failed.code), failed.message).about((*failed.subject).into());
        if failed.hint.is_empty() { error } else { error.hint(failed.hint) }
    }
}

/// The session is not known: it ended, or the node was restarted.
pub const NO_SESSION: u16 = 0x100;

/// The node has no room for the request now: it can be made again later.
pub const NO_ROOM: u16 = 0x110;

/// The code of an error on the wire.
pub const fn error_code(kind: ErrorKind) -> u16 {
    match kind {
        ErrorKind::Usage => 1,
        ErrorKind::NotFound => 2,
        ErrorKind::Busy => 3,
        ErrorKind::NotAuthorised => 4,
        ErrorKind::Integrity => 5,
        ErrorKind::NoCopy => 6,
        ErrorKind::StoreFull => 7,
        ErrorKind::StoreIo => 8,
        ErrorKind::RolledBack => 9,
        ErrorKind::Fenced => 10,
        ErrorKind::Source => 11,
        ErrorKind::Target => 12,
        ErrorKind::TargetFull => 13,
        ErrorKind::Quiesce => 14,
        ErrorKind::Tracking => 15,
        ErrorKind::GroupIncomplete => 16,
        ErrorKind::Transport => 17,
        ErrorKind::Version => 18,
        ErrorKind::Domain => 19,
        ErrorKind::Cancelled => 20,
        ErrorKind::Internal => 21,
    }
}

/// The kind of a code; one that is not known is `Internal`.
pub fn error_kind(code: u16) -> ErrorKind {
    ErrorKind::ALL.into_iter().find(|kind| error_code(*kind) == code).unwrap_or(ErrorKind::Internal)
}

/// Characters of a message or of a hint, each of 4 bytes at most. Both fit into the reply, together with the subject.
const TEXT_CHARS_MAX: usize = 1700;
/// Characters of each text of a subject.
const SUBJECT_CHARS_MAX: usize = 130;
