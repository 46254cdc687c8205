//! Why messages get lost.

use mover::Error;
use quinn::WriteError;

/// Why a message did not arrive or could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection or stream is gone: on another one it may go well.
    #[error("the connection was lost: {0}")]
    Lost(String),
    /// It does not come, or too slowly.
    #[error("it did not arrive, or it arrived too slowly")]
    Slow,
    /// The peer does not speak this protocol.
    #[error("{0}")]
    Nonsense(Error),
    /// There is no room for the bulk of the message.
    #[error("no room")]
    NoRoom,
}

impl From<Error> for FrameError {
    fn from(error: Error) -> Self {
        Self::Nonsense(error)
    }
}

impl From<WriteError> for FrameError {
    fn from(error: WriteError) -> Self {
        Self::Lost(error.to_string())
    }
}
