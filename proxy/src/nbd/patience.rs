//! How long a server may be silent.

use std::time::Duration;

/// How long to wait for a server that sends nothing and takes nothing. There is no limit for a slow server that is
/// alive, because the time begins anew with each byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For connecting and negotiating, together.
    pub setup: Duration,
    /// For answers, and for room to send.
    pub silence: Duration,
    /// The same while it makes things durable or zeroes ranges, which moves no bytes to us.
    pub long_silence: Duration,
}

impl Patience {
    /// The same limit for everything.
    pub const fn of(limit: Duration) -> Self {
        Self { setup: limit, silence: limit, long_silence: limit }
    }

    /// For a server of our own, which opens an image on perhaps slow storage before it speaks.
    pub const fn own() -> Self {
        Self { setup: SILENCE, silence: SILENCE, long_silence: LONG_SILENCE }
    }
}

impl Default for Patience {
    fn default() -> Self {
        Self { setup: SETUP, silence: SILENCE, long_silence: LONG_SILENCE }
    }
}

/// Longest time to reach a server and to negotiate with it.
pub const SETUP: Duration = Duration::from_secs(15);
/// Longest time without a byte while the server owes us something.
pub const SILENCE: Duration = Duration::from_secs(60);
/// Longest time without a byte while the server flushes a page cache, or zeroes ranges by writing.
pub const LONG_SILENCE: Duration = Duration::from_secs(300);
