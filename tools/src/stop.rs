//! SIGINT, SIGTERM, SIGHUP and SIGQUIT: the job ends between two batches and tidies up; a second signal ends the program at once.

use mover::Signals;
use mover::{Result, StopReason, Stopper};

pub use mover::{Stop, Stoppable};

/// Listens for the signals; needs a runtime.
pub fn listen() -> Result<Stop> {
    let mut signals = Signals::listen()?;
    let (stopper, stop) = Stopper::new();
    tokio::spawn(async move {
        loop {
            let reason = signals.next().await;
            if !stopper.stop(reason) {
                std::process::exit(exit_code(reason).into());
            }
        }
    });
    Ok(stop)
}

/// The exit code of a program that stopped for this reason.
pub const fn exit_code(reason: StopReason) -> u8 {
    match reason {
        StopReason::Terminate => 143,
        StopReason::Hangup => 129,
        StopReason::Quit => 131,
        StopReason::Interrupt | StopReason::Cancel | StopReason::Shutdown => 130,
    }
}
