//! The programs as they ship, as real processes.

mod errors;
mod joining;
mod node;
mod places;
mod proxy;
mod repair;
mod retention;
mod rollback;
mod whole_job;
