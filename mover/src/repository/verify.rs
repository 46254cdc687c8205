//! What a verification of a repository looks at and finds.

use crate::{Error, ErrorKind, Name, PointId};
use chunker::ChunkId;
use std::time::Duration;

/// How deep to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Log, digests, pack footers, maps; every reference.
    Structure,
    /// Also reads so many per cent of the packs, beginning with those that were read longest ago, and compares their
    /// stored bytes with their names.
    ReadData {
        /// Share of the packs, 1 to 100.
        percent: u8,
    },
    /// Also every chunk, decoded and fingerprinted.
    Decode,
}

/// What to verify, how deep and how fast.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyOptions {
    /// How deep to look.
    pub depth: Depth,
    /// Only what these points need; everything when empty.
    pub points: Vec<PointId>,
    /// A pack is not read again if a verification as deep as this one found it sound no longer ago than this. So a
    /// verification that was interrupted can be continued.
    pub outdated_after: Option<Duration>,
    /// Most bytes of packs that are read in a second.
    pub rate: Option<u64>,
}

impl VerifyOptions {
    /// Verifies everything to this depth, without a limit on the rate.
    pub const fn new(depth: Depth) -> Self {
        Self { depth, points: Vec::new(), outdated_after: None, rate: None }
    }
}

/// What a verification looked at, and what it found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Points whose maps were walked.
    pub points: u64,
    /// Distinct chunks that were looked at.
    pub chunks: u64,
    /// Bytes of packs read.
    pub bytes_read: u64,
    /// Packs that were not read, because they had been found sound a short time before.
    pub packs_skipped: u64,
    /// What is wrong, at most [`VerifyReport::ERRORS_MAX`].
    pub errors: Vec<VerifyError>,
}

impl VerifyReport {
    /// Most errors in a report; errors beyond that are only in the log.
    pub const ERRORS_MAX: usize = 10_000;
    /// Target of the log lines that tell each error too. A program that prints the report leaves these lines out.
    pub const LOG_TARGET: &str = module_path!();

    /// Adds what was found.
    pub fn add(&mut self, error: VerifyError) {
        tracing::error!(target: VerifyReport::LOG_TARGET, ?error, "verification found damage");
        if self.errors.len() < Self::ERRORS_MAX {
            self.errors.push(error);
        }
    }
}

/// One thing that is wrong, and what it costs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyError {
    /// A point that needs it.
    pub point: Option<PointId>,
    /// Name of the disk, or kind of the attachment.
    pub disk: Option<Name>,
    /// Offset in it, in bytes.
    pub offset: Option<u64>,
    /// The damaged or missing chunk.
    pub chunk: Option<ChunkId>,
    /// Name of the pack that is damaged, or that has the damaged chunk.
    pub pack: Option<String>,
    /// What is wrong, for people.
    pub what: String,
    /// It could not be read, which says nothing about what is stored.
    pub unread: bool,
}

impl VerifyError {
    /// The finding for `error`, without the place where it was found.
    pub fn of(error: &Error) -> Self {
        let unread = !matches!(error.kind(), ErrorKind::Integrity | ErrorKind::Version);
        Self { what: error.to_string(), unread, ..Self::default() }
    }
}
