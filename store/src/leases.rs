//! Opening and ending sessions in the log. The points that a session pins are kept until it ends.

use crate::format::event::{Event, SessionOpened};
use crate::repository::Inner;
use crate::state::{Point, State};
use mover::{Error, OwnerId, PointId, Result, SessionId};

impl Inner {
    /// Opens a session. Blocking.
    ///
    /// # Errors
    /// `NotFound` when it pins what is not there; as [`Inner::append`].
    pub fn open_session(&self, opened: &SessionOpened) -> Result<()> {
        self.room.check_room_for_record()?;
        self.append(|state| {
            if let Some(error) = gone(state, opened) {
                return Err(error);
            }
            Ok(vec![Event::SessionOpened(opened.clone())])
        })
        .map(|_| ())
    }

    /// Ends a lease when its holder is gone. Blocking, a few milliseconds.
    pub fn close_session(&self, session: SessionId) {
        let closed = self.append(|state| {
            let open = state.sessions().contains_key(&session);
            Ok(if open { vec![Event::SessionClosed(session)] } else { Vec::new() })
        });
        if let Err(error) = closed {
            tracing::debug!(%error, "a session stays open until it is fenced");
        }
    }
}

/// The error for the first point that the session needs and cannot have, because the point is missing or belongs to
/// another owner. A forgotten point cannot be a parent, because the next doom may make it final.
pub fn gone(state: &State, opened: &SessionOpened) -> Option<Error> {
    let of_owner = |point: &Point| opened.owner == OwnerId::default() || state.owner_of(point).0 == opened.owner;
    let there = |pin: &&PointId| {
        let found = state.points().get(*pin).filter(|point| of_owner(point));
        found.is_some_and(|point| !opened.writes || point.forgotten.is_none())
    };
    let gone = opened.pins.iter().find(|pin| !there(pin))?;
    Some(Error::not_found(format!("there is no point {gone}")).hint("`windlass points` lists them"))
}
