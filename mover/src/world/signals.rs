//! The signals that stop a program.

use crate::{Error, Result, StopReason};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM, SIGINT, SIGQUIT, and SIGHUP where it is not ignored (`nohup`).
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hangup: Option<Signal>,
}

/// SIGXFSZ, as Linux numbers it.
const FILE_TOO_LARGE: i32 = 25;

impl Signals {
    /// Listens from now on; needs a runtime.
    ///
    /// # Errors
    /// `Internal`.
    pub fn listen() -> Result<Self> {
        let failed = |error| Error::internal("cannot listen for signals").because(error);
        let listen = |kind| signal(kind).map_err(failed);
        // A file that may not grow further is an error of the write then, which says which; not the end without a word.
        drop(listen(SignalKind::from_raw(FILE_TOO_LARGE))?);
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            quit: listen(SignalKind::quit())?,
            hangup: if hangup_is_ignored() { None } else { Some(listen(SignalKind::hangup())?) },
        })
    }

    /// Waits for the next signal, and gives the reason to stop.
    pub async fn next(&mut self) -> StopReason {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => StopReason::Terminate,
            _ = self.interrupt.recv() => StopReason::Interrupt,
            _ = self.quit.recv() => StopReason::Quit,
            _ = hangup => StopReason::Hangup,
        }
    }
}

/// Whether the program was started so that it goes on when its terminal is gone (`nohup`).
fn hangup_is_ignored() -> bool {
    let ignored = |line: &str| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    // Bit 0 is signal 1.
    status.lines().find_map(ignored).is_some_and(|signals| signals & 1 == 1)
}
