//! The proxies of a site, the machines that they offer, and jobs, as a node tells of them.

use super::super::message::Failed;
use mover::{Counters, Error, JobId, MachineId, Name, Power, Result};
use serde::{Deserialize, Serialize};

/// A machine that a proxy can back up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferedMachine {
    /// Its name.
    pub name: Name,
    /// The hypervisor's id of it, where there is one: a machine that was renamed is still the same.
    pub id: Option<MachineId>,
    /// Whether it runs.
    pub power: Power,
    /// Its disks, as far as they are known before a backup.
    pub disks: Vec<OfferedDisk>,
    /// Words to find it by.
    pub tags: Vec<Name>,
}

/// A disk of a machine that a proxy can back up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferedDisk {
    /// Its name.
    pub name: Name,
    /// Its size in bytes, where it is known.
    pub size: Option<u64>,
}

/// A proxy, as the node knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyStatus {
    /// Its name.
    pub name: Name,
    /// The owner of the points that it makes.
    pub owner: Name,
    /// Words that an administrator gave it.
    pub labels: Vec<Name>,
    /// False when its connection was lost a short time ago.
    pub attends: bool,
    /// Milliseconds since it attends, or since it was lost.
    pub since_ms: u64,
    /// Its jobs that are not over.
    pub jobs: u32,
    /// What it can back up.
    pub machines: Vec<OfferedMachine>,
}

/// A job, as the node knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Its id.
    pub id: JobId,
    /// Who carries it out.
    pub proxy: Name,
    /// The machine. This field and the next are not known of a job of which its proxy has told nothing since the node was
    /// started.
    pub machine: Option<Name>,
    /// Name of the repository.
    pub repository: Option<Name>,
    /// Code of its kind; 0 when it is not known.
    pub kind: u16,
    /// The administrator who asked for it; none when that was before the node was started.
    pub by: Option<Name>,
    /// How far it is.
    pub stage: JobStage,
    /// What it counts.
    pub counters: Counters,
    /// Warnings so far.
    pub warnings: u32,
    /// Milliseconds since it was asked for.
    pub asked_ms: u64,
    /// Milliseconds since its proxy has it.
    pub given_ms: Option<u64>,
    /// Milliseconds since its end.
    pub ended_ms: Option<u64>,
}

/// How far a job is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobStage {
    /// Its proxy does not have it yet.
    Waiting,
    /// Its proxy carries it out.
    Given,
    /// It is to end, and has not ended yet.
    Cancelling,
    /// It did what was asked.
    Done,
    /// It failed.
    Failed(Failed),
}

/// How a node chooses among proxies that offer the same machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProxyChoice {
    /// The one that was given no job for the longest time.
    #[default]
    RoundRobin,
    /// The one with the fewest jobs that are not over.
    LeastLoaded,
}

/// A machine, and the proxies that offer it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachinePlace {
    /// The machine, as it is told by the proxy that knows most of it.
    pub machine: OfferedMachine,
    /// The owner of its points.
    pub owner: Name,
    /// The proxies.
    pub proxies: Vec<Name>,
}

impl OfferedMachine {
    /// Whether somebody who writes `text` means this machine: by its name, or by its id as hypervisors write it.
    pub fn is_called(&self, text: &Name) -> bool {
        self.name == *text || self.id.is_some_and(|id| MachineId::of_uuid(text.as_str()) == Some(id))
    }

    /// Whether both are the same machine, when their proxies have the same owner. An id says more than a name. A machine of
    /// which only disks are known has no id, and its name must do.
    pub fn is_same(&self, other: &Self) -> bool {
        same_machine((self.id, &self.name), (other.id, &other.name))
    }

    /// How much a proxy knows of it: one that runs there is better backed up there than from its images.
    pub const fn rank(&self) -> u8 {
        match self.power {
            Power::Running | Power::Paused => 2,
            Power::Off => 1,
            Power::Unknown => 0,
        }
    }

    /// About how much memory it takes on a node.
    pub fn weight(&self) -> usize {
        let of = |name: &Name| name.as_str().len() + WORD_BYTES;
        let disks: usize = self.disks.iter().map(|disk| of(&disk.name) + WORD_BYTES).sum();
        3 * WORD_BYTES + of(&self.name) + disks + self.tags.iter().map(of).sum::<usize>()
    }

    /// Bytes that it takes in a message.
    pub fn bytes(&self) -> usize {
        let of = |name: &Name| name.as_str().len() + 8;
        let disks: usize = self.disks.iter().map(|disk| of(&disk.name) + 9).sum();
        of(&self.name) + 17 + 4 + 8 + disks + 8 + self.tags.iter().map(of).sum::<usize>()
    }

    /// Refuses one with too many disks or words.
    ///
    /// # Errors
    /// `Usage`.
    pub fn check(&self) -> Result<()> {
        if self.disks.len() > DISKS_MAX || self.tags.len() > TAGS_MAX {
            return Err(Error::usage(format!(
                "machine {} has more than {DISKS_MAX} disks, or more than {TAGS_MAX} tags",
                self.name
            )));
        }
        Ok(())
    }
}

/// Whether two machines of one owner, each told by id and name, are the same.
pub fn same_machine(one: (Option<MachineId>, &Name), other: (Option<MachineId>, &Name)) -> bool {
    match (one.0, other.0) {
        (Some(one), Some(other)) => one == other,
        _ => one.1 == other.1,
    }
}

/// The machines of all proxies, each once, by name.
pub fn machine_places(proxies: &[ProxyStatus]) -> Vec<MachinePlace> {
    let mut places: Vec<MachinePlace> = Vec::new();
    for proxy in proxies {
        for machine in &proxy.machines {
            let known = places.iter_mut().find(|it| it.owner == proxy.owner && it.machine.is_same(machine));
            match known {
                Some(place) => {
                    place.proxies.push(proxy.name.clone());
                    if machine.rank() > place.machine.rank() {
                        place.machine = machine.clone();
                    }
                }
                None => places.push(MachinePlace {
                    machine: machine.clone(),
                    owner: proxy.owner.clone(),
                    proxies: vec![proxy.name.clone()],
                }),
            }
        }
    }
    places.sort_by(|a, b| (&a.machine.name, &a.owner).cmp(&(&b.machine.name, &b.owner)));
    places
}

/// Machines that a proxy offers.
pub const MACHINES_MAX: usize = 512;
/// Memory for the machines of all proxies, on a node.
pub const MACHINES_WEIGHT_MAX: usize = 8 << 20;
/// Disks of a machine that a proxy backs up.
pub const DISKS_MAX: usize = 64;
/// Labels of a proxy.
pub const LABELS_MAX: usize = 16;
/// Tags of a machine.
pub const TAGS_MAX: usize = 16;
/// What one name takes beside its letters.
const WORD_BYTES: usize = 32;
