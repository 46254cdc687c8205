//! Why a request failed, as it is told.

use mover::{Error, ErrorKind};
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
}

impl From<&Error> for Failed {
    fn from(error: &Error) -> Self {
        let cut = |text: &str| text.chars().take(TEXT_CHARS_MAX).collect();
        Self {
            code: error_code(error.kind()),
            message: cut(&error.message()),
            hint: cut(error.remedy().unwrap_or_default()),
        }
    }
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        let error = Self::new(error_kind(failed.code), failed.message);
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

/// Characters of a message or hint, each of 4 bytes at most: both fit.
const TEXT_CHARS_MAX: usize = 1900;
