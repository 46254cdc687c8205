//! The programs as they ship, as real processes.

mod crates;
mod errors;
mod file_systems;
mod giving_back;
mod guest;
mod joining;
mod live;
mod machines;
mod names;
mod node;
mod places;
mod proxy;
mod repair;
mod retention;
mod rollback;
mod stopping;
mod times;
mod units;
mod whole_job;
