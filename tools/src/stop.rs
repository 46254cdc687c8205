//! SIGINT and SIGTERM: the job ends between two batches and tidies up; a second signal ends the program at once.

use mover::{Error, Result, StopReason, Stopper};
use tokio::signal::unix::{SignalKind, signal};

pub use mover::{Stop, Stoppable};

/// Listens for the signals; needs a runtime.
pub fn listen() -> Result<Stop> {
    let failed = |error| Error::internal("cannot listen for signals").because(error);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let (stopper, stop) = Stopper::new();
    tokio::spawn(async move {
        loop {
            let reason = tokio::select! {
                _ = interrupt.recv() => StopReason::Interrupt,
                _ = terminate.recv() => StopReason::Terminate,
            };
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
        StopReason::Interrupt | StopReason::Cancel | StopReason::Shutdown => 130,
    }
}
