//! The client that asks, and why a request is not done.

use crate::allowance::Allowance;
use crate::frame::FrameError;
use crate::identity::Facts;
use crate::message::{Failed, NO_ROOM};
use mover::Error;
use std::time::Duration;
use tokio::sync::watch;

/// A connection, and whose it is.
pub(super) struct Caller {
    pub allowance: Allowance,
    /// What the client's certificate says; none for a client that joins.
    pub shown: Option<Facts>,
    /// Whether it has said hello.
    pub greeted: watch::Sender<bool>,
}

/// Why a request was not done.
pub(crate) enum Refused {
    /// The client is sent this failure.
    Told(Failed),
    /// Nobody is there to be told.
    Gone,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Told(Failed::from(&error))
    }
}

impl From<FrameError> for Refused {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Lost(_) => Self::Gone,
            FrameError::Nonsense(error) => error.into(),
            FrameError::Slow => Error::transport("the request did not arrive, or it arrived too slowly").into(),
            FrameError::NoRoom => Self::no_room(),
        }
    }
}

impl Refused {
    pub(super) fn no_room() -> Self {
        let message = "the node has no memory for this request now".to_owned();
        Self::Told(Failed { code: NO_ROOM, message, hint: "try again later".into(), subject: Box::default() })
    }
}

pub(crate) type Done = Result<(), Refused>;

impl Caller {
    pub(super) async fn was_greeted(&self) -> bool {
        // Who is not known asks one thing after the other.
        if self.shown.is_none() {
            return *self.greeted.borrow();
        }
        let mut greeted = self.greeted.subscribe();
        tokio::time::timeout(GREETING_PATIENCE.min(self.allowance.patience()), greeted.wait_for(|greeted| *greeted))
            .await
            .is_ok()
    }
}

/// For the greeting of somebody who has asked already.
const GREETING_PATIENCE: Duration = Duration::from_secs(10);
