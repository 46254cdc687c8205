//! Tests across crates: protocol model, conformance, end to end.

pub mod protocol;
