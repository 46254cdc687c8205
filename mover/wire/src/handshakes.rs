//! Handshakes that are not done yet. When there are too many, the oldest is given up.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;

/// Handshakes under way. The clients are not known yet, so they have no shares. When there are too many handshakes, the
/// oldest is given up. So a client whose handshake takes two round trips gets through among thousands of handshakes
/// that never go on.
#[derive(Debug, Default)]
pub struct Handshakes(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    begun: u64,
    oldest_first: VecDeque<(u64, Arc<Notify>)>,
}

/// A handshake that is under way.
#[derive(Debug)]
pub struct Handshake<'a> {
    all: &'a Handshakes,
    number: u64,
    given_up: Arc<Notify>,
}

impl Handshakes {
    /// True when a client must prove its address before another handshake begins.
    pub fn are_many(&self) -> bool {
        self.0.lock().expect("no holder panics").oldest_first.len() >= HANDSHAKES_UNPROVEN_MAX
    }

    /// Begins a handshake. When there are too many, the oldest is given up.
    pub fn begin(&self) -> Handshake<'_> {
        let mut waiting = self.0.lock().expect("no holder panics");
        if waiting.oldest_first.len() >= HANDSHAKES_MAX
            && let Some((_, oldest)) = waiting.oldest_first.pop_front()
        {
            oldest.notify_one();
        }
        waiting.begun += 1;
        let (number, given_up) = (waiting.begun, Arc::new(Notify::new()));
        waiting.oldest_first.push_back((number, given_up.clone()));
        Handshake { all: self, number, given_up }
    }
}

impl Handshake<'_> {
    /// Waits until it is given up for others.
    pub async fn given_up(&self) {
        self.given_up.notified().await;
    }
}

impl Drop for Handshake<'_> {
    fn drop(&mut self) {
        self.all.0.lock().expect("no holder panics").oldest_first.retain(|(number, _)| *number != self.number);
    }
}

/// From this number of handshakes on, a client must first prove that its address is its own.
const HANDSHAKES_UNPROVEN_MAX: usize = 64;
const HANDSHAKES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn the_oldest_handshake_is_given_up_for_a_new_one() {
        let all = Handshakes::default();
        let begun: Vec<Handshake<'_>> = (0..HANDSHAKES_MAX).map(|_| all.begin()).collect();
        assert!(all.are_many());
        let new = all.begin();
        begun[0].given_up().await;
        let waiting = tokio::time::timeout(Duration::from_millis(1), begun[1].given_up()).await;
        assert!(waiting.is_err(), "only the oldest");
        drop((begun, new));
        assert!(!all.are_many() && all.0.lock().unwrap().oldest_first.is_empty());
    }
}
