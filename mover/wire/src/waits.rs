//! How long a client waits for a node. Every wait for a peer ends by one of these limits. QUIC finds within 15 s that a
//! host is gone. These limits are for the other case: the connection lives, but the node does not answer, or stops in
//! the middle.

use super::message::Request;
use mover::{Error, Result};
use quinn::{Connection, VarInt};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long a client waits for the first sign of life after the node took the request, and for each next one. A node
/// that is at work says so six times in this time.
pub const SILENCE: Duration = Duration::from_secs(60);
/// How often in a row a node may say only that it is at work: for an hour, at the rate at which nodes say it. A commit
/// looks at every page of a first backup, which takes long on a hard disk.
pub const WAITING_MAX: u32 = 360;
/// How long a client waits for the answer to the greeting, for which a node needs nothing.
pub const GREETING: Duration = Duration::from_secs(10);
/// How many times the silence a client waits for the first answer to one request, on all connections together over
/// which it makes the request.
const CALL_OF_SILENCE: u32 = 75;
/// How many times the silence a client waits in addition for each MiB that is on its way before the request can be
/// answered.
const MEBIBYTE_OF_SILENCE: u32 = 1;
/// How often [`stands_still`] looks at the connection within one silence.
const LOOKS: u32 = 6;
/// Times that an answer which breaks off is asked for again.
pub const ATTEMPTS: u32 = 10;
/// An answer that lived for so long before it broke off came from a node at work.
const AT_WORK: Duration = Duration::from_secs(10);
/// Messages of one answer, but for those that only say that the node is at work: one a second for twelve days.
pub const MESSAGES_MAX: u32 = 1 << 20;

/// Waits until nothing has moved on a connection for `silence`: no part of any stream, in either direction. This tells
/// a slow link, on which something still moves, from a node that takes nothing.
pub async fn stands_still(connection: &Connection, silence: Duration) {
    let moved = || {
        let stats = connection.stats();
        (stats.frame_tx.stream, stats.frame_rx.stream)
    };
    let (mut last, mut since) = (moved(), Instant::now());
    while since.elapsed() < silence {
        sleep(silence / LOOKS).await;
        let now = moved();
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
}

/// The time at which the first answer to a request must be there, if the request is made now while so many bytes are on
/// their way.
pub fn call_ends(silence: Duration, bytes_on_their_way: usize) -> Instant {
    let mebibytes = u32::try_from(bytes_on_their_way >> 20).unwrap_or(u32::MAX);
    Instant::now() + silence * CALL_OF_SILENCE + silence * MEBIBYTE_OF_SILENCE * mebibytes
}

/// The text of the error for a request without an answer.
pub fn unanswered(request: &Request, silence: Duration) -> String {
    format!("no answer to {} within {} s", request.name(), silence.as_secs_f32())
}

/// Closes a connection over which the node does not answer. All other requests that wait on it are made again over
/// another connection.
pub fn give_up(connection: &Connection) {
    connection.close(VarInt::from_u32(0), b"no answer");
}

/// Limits how often a client asks again for an answer that breaks off. So it does not ask for ever, even when the node
/// begins each answer at once.
pub struct Again {
    node: String,
    patience: Duration,
    broke_off: u32,
    /// Since when nothing came of it.
    since: Option<Instant>,
    began: Instant,
}

impl Again {
    /// For an answer of `node`, which is waited for so long.
    pub fn new(node: String, patience: Duration) -> Self {
        Self { node, patience, broke_off: 0, since: None, began: Instant::now() }
    }

    /// Something came that need not be asked for again.
    pub fn came(&mut self) {
        (self.broke_off, self.since) = (0, None);
    }

    /// It is asked for now.
    pub fn asked(&mut self) {
        self.began = Instant::now();
    }

    /// It broke off, and is to be asked for again.
    ///
    /// # Errors
    /// `Transport` when that was often enough, or for long enough.
    pub fn broke_off(&mut self) -> Result<()> {
        self.broke_off += 1;
        if self.began.elapsed() > AT_WORK {
            self.since = None;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        if self.broke_off < ATTEMPTS && since.elapsed() < self.patience {
            return Ok(());
        }
        let what = format!("{}: the answer broke off {} times", self.node, self.broke_off);
        Err(Error::transport(what)
            .hint("read the log of the node, and check whether something on the way cuts connections"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_breaks_off_again_and_again_is_given_up() {
        let mut again = Again::new("a:1".into(), Duration::from_secs(120));
        for _ in 1..ATTEMPTS {
            again.asked();
            again.broke_off().unwrap();
        }
        assert!(again.broke_off().unwrap_err().to_string().contains("a:1: the answer broke off 10 times"));
        again.came();
        again.broke_off().unwrap();
        let mut hasty = Again::new("a:1".into(), Duration::ZERO);
        assert!(hasty.broke_off().is_err(), "nobody is waited for longer than for a lost node");
    }
}
