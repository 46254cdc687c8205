//! Trying again while something is busy.

use crate::{Error, ErrorKind, Result, Stop};
use std::time::{Duration, Instant};

/// How long to wait for what is busy; not at all by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    #[default]
    No,
    /// At most so long.
    For(Duration),
    /// Until it is not busy any more.
    Forever,
}

impl Wait {
    /// Runs `attempt` until it succeeds, fails with anything but `Busy`, or the time is over. Gives the first `Busy`
    /// error to `waits`, so that it can tell the user.
    ///
    /// # Errors
    /// The last of `attempt`; `Cancelled` when `stop` says so between two attempts.
    pub async fn retry<T>(
        self,
        stop: &Stop,
        waits: impl FnOnce(&Error),
        mut attempt: impl AsyncFnMut() -> Result<T>,
    ) -> Result<T> {
        let began = Instant::now();
        let mut pause = PAUSE_MIN;
        let mut waits = Some(waits);
        loop {
            let error = match attempt().await {
                Err(error) if error.kind() == ErrorKind::Busy => error,
                other => return other,
            };
            let left = match self {
                Self::No => Duration::ZERO,
                Self::For(limit) => limit.saturating_sub(began.elapsed()),
                Self::Forever => Duration::MAX,
            };
            if left.is_zero() {
                return Err(error);
            }
            if let Some(waits) = waits.take() {
                waits(&error);
            }
            stop.race(async {
                tokio::time::sleep(pause.min(left)).await;
                Ok(())
            })
            .await?;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{StopReason, Stopper};

    #[tokio::test]
    async fn only_what_is_busy_is_tried_again_and_only_for_so_long() {
        let (stopper, stop) = Stopper::new();
        let mut tries = 0;
        let busy_twice = async || {
            tries += 1;
            if tries < 3 { Err(Error::busy("in use")) } else { Ok(tries) }
        };
        let mut told = 0;
        assert_eq!(Wait::Forever.retry(&stop, |_| told += 1, busy_twice).await.unwrap(), 3);
        assert_eq!(told, 1, "somebody is told once");

        let mut tries = 0;
        let mut failing = async |kind| {
            tries += 1;
            Err::<(), _>(Error::new(kind, "no"))
        };
        for (wait, kind) in [(Wait::Forever, ErrorKind::StoreIo), (Wait::No, ErrorKind::Busy)] {
            let failed = wait.retry(&stop, |_| panic!("nobody waits"), async || failing(kind).await).await;
            assert_eq!(failed.unwrap_err().kind(), kind);
        }
        assert_eq!(tries, 2);

        let limit = Wait::For(Duration::from_millis(60));
        let busy = async || Err::<(), _>(Error::busy("in use"));
        assert_eq!(limit.retry(&stop, |_| {}, busy).await.unwrap_err().kind(), ErrorKind::Busy);
        stopper.stop(StopReason::Cancel);
        assert_eq!(Wait::Forever.retry(&stop, |_| {}, busy).await.unwrap_err().kind(), ErrorKind::Cancelled);
    }
}
