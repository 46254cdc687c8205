//! Benchmarks: stages and whole jobs beside their peers.
