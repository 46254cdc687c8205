//! SIGINT, SIGTERM, SIGHUP and SIGQUIT: the job ends between two batches and tidies up; a second signal ends the program at once.

use mover::Signals;
use mover::{Result, Stopper};

pub use mover::{Stop, Stoppable};

/// Listens for the signals; needs a runtime.
pub fn listen() -> Result<Stop> {
    let mut signals = Signals::listen()?;
    let (stopper, stop) = Stopper::new();
    tokio::spawn(async move {
        loop {
            let reason = signals.next().await;
            if !stopper.stop(reason) {
                std::process::exit(reason.exit_code().into());
            }
        }
    });
    Ok(stop)
}
