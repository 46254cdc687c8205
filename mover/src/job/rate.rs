//! Limits on bytes a second.

use crate::{Error, Result};
use std::sync::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// Spreads what is done so that no more than a number of bytes is done in a second on average.
#[derive(Debug)]
pub struct RateLimiter {
    rate: Option<u64>,
    next: Mutex<Instant>,
}

impl Default for RateLimiter {
    fn default() -> Self {
        Self::new(None)
    }
}

impl RateLimiter {
    /// At most this many bytes a second; without a limit when none.
    pub fn new(rate: Option<u64>) -> Self {
        Self { rate, next: Mutex::new(Instant::now()) }
    }

    /// True when there is a limit.
    pub const fn is_limited(&self) -> bool {
        self.rate.is_some()
    }

    /// Waits for its turn to do so many bytes.
    pub async fn wait(&self, bytes: u64) {
        let Some(rate) = self.rate else { return };
        let turn = {
            let mut next = self.next.lock().expect("not poisoned");
            let turn = (*next).max(Instant::now());
            *next = turn + Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
            turn
        };
        tokio::time::sleep_until(turn).await;
    }
}

/// `20MiB`, `20M` (the same), `20MB` (decimal), also with `/s`.
///
/// # Errors
/// `Usage`.
pub fn parse_bytes(text: &str) -> Result<u64> {
    let bad = || Error::usage("write a size such as 20MiB");
    let number = text.strip_suffix("/s").unwrap_or(text);
    let digits = number.find(|char: char| !char.is_ascii_digit()).unwrap_or(number.len());
    let (digits, unit) = number.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(bad()),
    };
    let bytes = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).ok_or_else(bad)?;
    if bytes == 0 { Err(bad()) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_more_than_its_rate_on_average() {
        let (pacer, began) = (RateLimiter::new(Some(100_000)), Instant::now());
        for _ in 0..10 {
            pacer.wait(500).await;
        }
        // The last one's bytes take their time after it.
        assert!(began.elapsed() >= Duration::from_millis(45), "{:?}", began.elapsed());
        RateLimiter::default().wait(u64::MAX).await;
    }
}
