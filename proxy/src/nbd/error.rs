//! What can go wrong with an NBD server.

use super::wire::{Command, STRING_BYTES_MAX};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// A failure of an NBD session. Cheap to clone: one broken connection fails every request on it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NbdError {
    /// The server said something that the protocol forbids; the connection is not usable any more.
    #[error("the NBD server broke the protocol: {0}")]
    Protocol(&'static str),
    /// The server went past one of our limits; the connection is not usable any more.
    #[error("the NBD server sent {what} of {have}, more than the limit of {max}")]
    Limit {
        /// What was too long or too many.
        what: &'static str,
        /// Length or number that the server sent.
        have: u64,
        /// Length or number that is accepted.
        max: u64,
    },
    /// The server refused the session.
    #[error("the NBD server refused {option}: {reason}")]
    Refused {
        /// The option it was asked for.
        option: &'static str,
        /// Its words, or what its code means.
        reason: String,
        /// What the refusal means.
        refusal: Refusal,
    },
    /// The server failed one request; others go on.
    #[error("NBD {} of {length} bytes at {offset} failed: {}{}{message}", command.as_str(), errno_text(*errno), if message.is_empty() { "" } else { ": " })]
    Request {
        /// Command of the request.
        command: Command,
        /// First byte of the request.
        offset: u64,
        /// Number of bytes of the request.
        length: u64,
        /// The server's error number (Linux values).
        errno: u32,
        /// Text that the server sent with it; may be empty.
        message: String,
    },
    /// A request that this export cannot take; nothing was sent.
    #[error("NBD {} of {length} bytes at {offset}: {why}", command.as_str())]
    Unsuitable {
        /// Command of the request.
        command: Command,
        /// First byte of the request.
        offset: u64,
        /// Number of bytes of the request.
        length: u64,
        /// Why the export cannot take the request.
        why: &'static str,
    },
    /// The server said nothing for as long as it is waited for; the connection is given up.
    #[error("the NBD server was silent for {} while {doing}", seconds(*limit))]
    Silent {
        /// What it was asked to do.
        doing: &'static str,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The connection ended; the text says when.
    #[error("the NBD connection ended{0}")]
    Closed(&'static str),
    /// The connection failed with this error.
    #[error("the NBD connection failed: {0}")]
    Io(Arc<io::Error>),
}

/// What a server refuses in the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It has no export of that name.
    UnknownExport,
    /// It only serves over TLS.
    TlsRequired,
    /// It refuses for another reason.
    Other,
}

impl NbdError {
    /// True when the server ran out of room.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Request { errno: ENOSPC, .. })
    }

    /// True when only the request failed and the connection is fine: asking again makes sense.
    pub fn is_request(&self) -> bool {
        matches!(self, Self::Request { .. })
    }
}

impl From<io::Error> for NbdError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Closed(""),
            _ => Self::Io(Arc::new(error)),
        }
    }
}

/// Text of a peer made safe for logs and terminals.
pub(super) fn peer_text(bytes: &[u8]) -> String {
    let bytes = &bytes[..bytes.len().min(STRING_BYTES_MAX)];
    String::from_utf8_lossy(bytes).chars().map(|it| if it.is_control() { '\u{fffd}' } else { it }).collect()
}

fn seconds(limit: Duration) -> String {
    format!("{} s", limit.as_secs_f64())
}

fn errno_text(errno: u32) -> String {
    let known = match errno {
        1 => "operation not permitted",
        5 => "input/output error",
        12 => "out of memory",
        22 => "invalid argument",
        ENOSPC => "no space left",
        75 => "value too large",
        95 => "not supported",
        108 => "server is shutting down",
        _ => return format!("error {errno}"),
    };
    known.to_owned()
}

const ENOSPC: u32 = 28;
