//! Jobs of proxies: administrators ask a node for them, proxies attend the node and carry them out.
//!
//! | file | half | what it is about |
//! |---|---|---|
//! | `job` | all | what is asked for, and what is told of it |
//! | `state` | node | who attends, and which jobs there are: no clock, no I/O |
//! | `broker` | node | streams over that state |
//! | `client` | proxy, administrator | [`Jobs`] |

pub(super) mod broker;
mod client;
pub(super) mod job;
mod state;
#[cfg(test)]
mod tests;

pub use client::{Jobs, Order, Orders};
pub use job::{Attend, BackupJob, DISKS_MAX, Event, Job, JobExtension, JobOf, JobReport, Report, Run};
