//! Failures that a test plans.

use crate::ErrorKind;

/// A planned failure of one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// How many operations go well before it.
    pub after: u64,
    /// What the operation after these does.
    pub effect: FaultEffect,
}

/// What a fault does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultEffect {
    /// The operation does nothing and fails with this kind.
    Fails(ErrorKind),
    /// The operation is done, but its answer is lost: `Transport`.
    AnswerLost,
}
