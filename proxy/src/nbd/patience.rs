//! How long a server may be silent.

use std::time::Duration;

/// How long a server is waited for that says nothing and takes nothing. One that is slow and lives is waited for as long
/// as it takes: each byte begins the time anew.
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

/// For a server to be reached and to negotiate.
pub const SETUP: Duration = Duration::from_secs(15);
/// For a byte, while something is owed.
pub const SILENCE: Duration = Duration::from_secs(60);
/// For a flush of what a page cache holds, or ranges that are zeroed by writing.
pub const LONG_SILENCE: Duration = Duration::from_secs(300);
