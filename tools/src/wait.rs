//! `--wait`: trying again while something is busy.

use crate::output::Output;
use crate::stop::Stop;
use crate::text::parsed_duration;
use mover::{Error, ErrorKind, Result};
use std::str::FromStr;
use std::time::{Duration, Instant};

/// How long to be patient; not at all by default.
#[derive(Debug, Clone, Copy, Default)]
pub enum Wait {
    #[default]
    No,
    For(Duration),
    Forever,
}

impl FromStr for Wait {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "forever" {
            return Ok(Self::Forever);
        }
        parsed_duration(text).map(Self::For)
    }
}

impl Wait {
    /// Runs `attempt` until it succeeds or fails with anything but `Busy`, or patience ends.
    pub async fn retry<T>(self, out: &Output, stop: &Stop, mut attempt: impl AsyncFnMut() -> Result<T>) -> Result<T> {
        let began = Instant::now();
        let mut pause = PAUSE_MIN;
        let mut told = false;
        loop {
            let error = match attempt().await {
                Err(error) if error.kind() == ErrorKind::Busy => error,
                other => return other,
            };
            let patient = match self {
                Self::No => false,
                Self::For(limit) => began.elapsed() < limit,
                Self::Forever => true,
            };
            if !patient {
                return Err(error);
            }
            if !told {
                out.note(&format!("waiting: {}", error.message()));
                told = true;
            }
            let pause_left = match self {
                Self::For(limit) => pause.min(limit.saturating_sub(began.elapsed())),
                _ => pause,
            };
            stop.race(async {
                tokio::time::sleep(pause_left).await;
                Ok(())
            })
            .await?;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
