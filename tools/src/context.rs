//! What every command needs, and how it ends.

use crate::output::Output;
use crate::stop::Stop;
use mover::{Pool, World};

/// What every command needs.
pub struct Context {
    pub out: Output,
    pub stop: Stop,
    pub pool: Pool,
    pub world: World,
}

/// How a command that did its work ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Done = 0,
    Failed = 1,
    SomeFailed = 3,
    Warnings = 4,
    Corrupt = 13,
}
