//! Jobs of proxies: administrators ask a node for them, proxies attend the node and carry them out.
//!
//! | file | half | what it is about |
//! |---|---|---|
//! | `job` | all | what is asked for, and what is told of it |
//! | `site` | all | proxies, machines and jobs, as a node tells of them |
//! | `state` | node | who attends, and which jobs there are: no clock, no I/O |
//! | `broker` | node | streams over that state |
//! | `client` | proxy, administrator | [`Jobs`] |

pub(super) mod broker;
mod client;
pub(super) mod job;
pub(super) mod site;
mod state;
#[cfg(test)]
mod tests;

pub use client::{Jobs, Order, Orders, Told};
pub use job::{
    ATTEND_BYTES_MAX, Attend, BackupJob, Event, Given, HELD_MAX, HeldJob, Job, JobExtension, JobOf, JobReport,
    MACHINES_BYTES_MAX, Made, Report, Run, Work,
};
pub use site::{
    DISKS_MAX, JobStage, JobStatus, LABELS_MAX, MACHINES_MAX, MachinePlace, OfferedDisk, OfferedMachine, ProxyChoice,
    ProxyStatus, TAGS_MAX, machine_places,
};
