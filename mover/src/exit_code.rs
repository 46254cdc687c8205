//! Exit codes of programs: the table of the command line's contract. The other exit codes of a program that did its
//! work are in `Exit` in tools.

use crate::{ErrorKind, StopReason};

impl ErrorKind {
    /// The exit code of a program that fails with it; the table of the command line's contract.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Usage => 2,
            Self::NotFound => 10,
            Self::Busy => 11,
            Self::NotAuthorised => 12,
            Self::Integrity | Self::RolledBack => 13,
            Self::NoCopy => 14,
            Self::StoreFull | Self::TargetFull => 15,
            Self::Quiesce => 16,
            Self::Tracking => 17,
            Self::GroupIncomplete => 18,
            Self::Transport => 20,
            Self::Cancelled => 130,
            Self::StoreIo
            | Self::Fenced
            | Self::Source
            | Self::Target
            | Self::Version
            | Self::Domain
            | Self::Internal => 1,
        }
    }
}

impl StopReason {
    /// The exit code of a program that stopped for this reason: 128 and the signal's number, as shells have it.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Terminate => 143,
            Self::Hangup => 129,
            Self::Quit => 131,
            Self::Interrupt | Self::Cancel | Self::Shutdown => 130,
        }
    }
}
