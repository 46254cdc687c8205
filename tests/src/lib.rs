//! Tests across crates: protocol model, conformance, end to end.

pub mod around;
pub mod conformance;
pub mod draw;
pub mod fake;
pub mod guest;
pub mod holding;
pub mod kept;
pub mod meddle;
pub mod node;
pub mod objects;
pub mod place;
pub mod program;

pub mod protocol;
pub mod qemu;
