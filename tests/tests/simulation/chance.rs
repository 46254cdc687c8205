//! Chance that a seed decides, and clocks that the simulation moves.

use mover::{Clock, Random, Timestamp, World};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Dice that fall the same way for one seed and name.
pub struct Dice(blake3::OutputReader);

impl Dice {
    pub fn new(seed: u64, name: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).update(name.as_bytes());
        Self(hasher.finalize_xof())
    }

    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.fill(&mut bytes);
        bytes
    }

    pub fn number(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }

    pub fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.number() % (range.end - range.start)
    }

    /// True so many times of a thousand.
    pub fn permille(&mut self, times: u32) -> bool {
        self.within(0..1000) < times.into()
    }

    pub fn one_of<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.within(0..from.len() as u64)).expect("an index")]
    }

    pub fn pause(&mut self, millis: Range<u64>) -> Duration {
        Duration::from_millis(self.within(millis))
    }
}

struct Seeded(Mutex<Dice>);

impl Random for Seeded {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().expect("not poisoned").0.fill(bytes);
    }
}

struct Virtual;

impl Clock for Virtual {
    fn now(&self) -> Timestamp {
        let elapsed = turmoil::sim_elapsed().unwrap_or_default();
        Timestamp(EPOCH + i64::try_from(elapsed.as_nanos()).expect("not for centuries"))
    }
}

/// The world of one host.
pub fn world(seed: u64, host: &str) -> World {
    World::new(Arc::new(Virtual), Arc::new(Seeded(Mutex::new(Dice::new(seed, host)))))
}

/// A day in 2026.
const EPOCH: i64 = 1_790_000_000_000_000_000;
