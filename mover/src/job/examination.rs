//! What is found when a machine is looked at before its next backup. Nothing of the machine is changed by that.

use crate::{MachineId, Name, PointId, Timestamp};
use serde::{Deserialize, Serialize};

/// Whether a machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Power {
    /// Nobody could be asked.
    #[default]
    Unknown,
    /// It is shut down: its disks are all there is.
    Off,
    /// It runs.
    Running,
    /// It is in memory, and its processors stand still.
    Paused,
}

/// A machine as it is now, and what its next backup will do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Examination {
    /// Its name.
    pub name: Name,
    /// The hypervisor's id of it, where there is one.
    pub id: Option<MachineId>,
    /// Whether it runs.
    pub power: Power,
    /// Whether its guest agent answers.
    pub agent_answers: bool,
    /// What is known of the agent, for people.
    pub agent: String,
    /// Its disks.
    pub disks: Vec<ExaminedDisk>,
    /// What else an administrator should know.
    pub remarks: Vec<String>,
    /// The point that the next backup continues.
    pub last: Option<LastPoint>,
}

/// A disk as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExaminedDisk {
    /// Its name in points.
    pub name: Name,
    /// Its size in bytes, where it is known.
    pub size: Option<u64>,
    /// `qcow2`, `raw`, `nbd` or another word for how it is kept.
    pub format: String,
    /// True when the next backup will read only what changed, as far as can be seen without making a snapshot.
    pub incremental: bool,
    /// Why it will or will not.
    pub reason: String,
}

/// The point that a backup continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastPoint {
    /// Its id.
    pub point: PointId,
    /// When it was made.
    pub time: Timestamp,
}

impl Power {
    /// Its name in output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Off => "off",
            Self::Running => "running",
            Self::Paused => "paused",
        }
    }
}
