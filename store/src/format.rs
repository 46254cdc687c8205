//! Every durable byte that this crate writes; described in `FORMAT.md`.

pub mod config;
pub mod event;
pub mod pack;
pub mod record;
