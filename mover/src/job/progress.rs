//! What a running job has done so far, for programs that show it.

use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

/// What a job is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[repr(u8)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Opening repositories, sources and targets.
    #[default]
    Prepare = 0,
    /// Reading, comparing and writing the bytes of disks, chunks or packs.
    Move = 1,
    /// Making what was moved durable and visible.
    Commit = 2,
    /// The job has ended.
    Done = 3,
}

impl Phase {
    /// Its name in output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Move => "move",
            Self::Commit => "commit",
            Self::Done => "done",
        }
    }
}

/// What the counters of a job say at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// What the job is doing.
    pub phase: Phase,
    /// Bytes that are done.
    pub bytes_done: u64,
    /// Bytes to be done in all; they include the bytes that are done.
    pub bytes_total: u64,
}

/// Counters of one job; written by the job, read by a display at any time.
#[derive(Debug, Default)]
pub struct Progress {
    phase: AtomicU8,
    bytes_total: AtomicU64,
    bytes_done: AtomicU64,
}

impl Progress {
    /// Says that the job is in this phase from now on.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
    }

    /// Adds bytes that are to be done.
    pub fn expect(&self, bytes: u64) {
        self.bytes_total.fetch_add(bytes, Relaxed);
    }

    /// Adds bytes that are done.
    pub fn advance(&self, bytes: u64) {
        self.bytes_done.fetch_add(bytes, Relaxed);
    }

    /// The phase that was entered last.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::Prepare,
            1 => Phase::Move,
            2 => Phase::Commit,
            _ => Phase::Done,
        }
    }

    /// (done, to be done) in bytes.
    pub fn bytes(&self) -> (u64, u64) {
        (self.bytes_done.load(Relaxed), self.bytes_total.load(Relaxed))
    }

    /// The values of all counters at this moment.
    pub fn counters(&self) -> Counters {
        let (bytes_done, bytes_total) = self.bytes();
        Counters { phase: self.phase(), bytes_done, bytes_total }
    }

    /// Sets the counters to those of a job that runs elsewhere.
    pub fn show(&self, counters: &Counters) {
        self.enter(counters.phase);
        self.bytes_total.store(counters.bytes_total, Relaxed);
        self.bytes_done.store(counters.bytes_done, Relaxed);
    }
}
