//! Tests across crates: protocol model, conformance, end to end.
