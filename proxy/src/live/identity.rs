//! Which machine runs behind a QMP socket, what it has, and what its next backup will do. Only questions are asked.

use super::QemuMachine;
use super::agent_socket;
use super::found::Files;
use super::inventory::{Inventory, LiveDisk};
use super::quiesce::Guest;
use crate::address::QmpAddress;
use crate::forecast::{Before, Forecast};
use crate::qmp::{Monitor, QmpError};
use crate::source::Seen;
use mover::{Error, Examination, ExaminedDisk, MachineId, Name, Power, Quiesce, Result, blocking};
use serde::Deserialize;
use serde_json::json;
use std::path::Path;
use std::time::Duration;
use tokio::time::timeout;

/// A machine, as its QEMU tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuIdentity {
    /// The name that QEMU was given, where that is one.
    pub name: Option<Name>,
    /// Its UUID, where it was given one.
    pub id: Option<MachineId>,
    /// Whether it runs.
    pub power: Power,
    /// Names and sizes of the disks that a backup has.
    pub disks: Vec<(Name, u64)>,
}

#[derive(Deserialize)]
struct Named {
    name: Option<String>,
}

#[derive(Deserialize)]
struct Unique {
    #[serde(rename = "UUID")]
    uuid: String,
}

#[derive(Deserialize)]
struct Status {
    running: bool,
    status: String,
}

impl QemuIdentity {
    /// Asks the QEMU at `address`.
    ///
    /// # Errors
    /// `Busy` when something else uses the socket, `NotFound` when nobody is there, `Source` when it does not answer in
    /// time or says what makes no sense.
    pub async fn ask(address: &QmpAddress) -> Result<Self> {
        let path = &address.socket;
        let asked = async {
            let mut monitor = Monitor::connect(path).await?;
            let inventory = Inventory::take(&mut monitor).await.map_err(|error| error.about(path))?;
            Self::of(&mut monitor, &inventory).await.map_err(|error| error.about(path))
        };
        timeout(ASK_TIMEOUT, asked).await.unwrap_or_else(|_| Err(late(path, ASK_TIMEOUT)))
    }

    async fn of(monitor: &mut Monitor, inventory: &Inventory) -> Result<Self, QmpError> {
        let Named { name } = monitor.ask("query-name", json!({})).await?;
        let Unique { uuid } = monitor.ask("query-uuid", json!({})).await?;
        let Status { running, status } = monitor.ask("query-status", json!({})).await?;
        let disks = inventory.disks.iter().map(|disk| (disk.name.clone(), disk.image.layer.virtual_size));
        Ok(Self {
            name: name.and_then(|name| name.parse().ok()),
            id: MachineId::of_uuid(&uuid),
            power: power(running, &status),
            disks: disks.collect(),
        })
    }
}

impl QemuMachine {
    /// Looks at the machine.
    ///
    /// # Errors
    /// As [`QemuIdentity::ask`].
    pub async fn examine(&self, before: Before<'_>) -> Result<Examination> {
        let looked = timeout(EXAMINE_TIMEOUT, self.look(before)).await;
        looked.unwrap_or_else(|_| Err(late(&self.address.socket, EXAMINE_TIMEOUT)))
    }

    async fn look(&self, before: Before<'_>) -> Result<Examination> {
        let path = &self.address.socket;
        let about = |error: QmpError| error.about(path);
        let mut monitor = Monitor::connect(path).await?;
        let inventory = Inventory::take(&mut monitor).await.map_err(about)?;
        let identity = QemuIdentity::of(&mut monitor, &inventory).await.map_err(about)?;
        let agent = agent_socket(&mut monitor, &self.address).await.map_err(about)?;
        let process = monitor.process();
        // The socket is free again for a backup.
        drop(monitor);
        let agent = Guest::meet(agent.as_deref(), Quiesce::Require, &self.world).await;
        let mut disks = Vec::new();
        for disk in inventory.disks {
            let parent = before.disk(&disk.name);
            let (disk, files) = blocking(move || {
                let files = Files::look(&disk, process);
                (disk, files)
            })
            .await;
            let Forecast { incremental, reason } = forecast(&disk, &files, parent);
            let size = Some(disk.image.layer.virtual_size);
            disks.push(ExaminedDisk { name: disk.name, size, format: disk.driver, incremental, reason });
        }
        Ok(Examination {
            name: self.name.clone(),
            id: identity.id,
            power: identity.power,
            agent_answers: agent.is_ok(),
            agent: agent.map_or_else(|error| error.message(), |_| "answers".to_owned()),
            disks,
            remarks: inventory.left_out.iter().map(|it| format!("not backed up: {it}")).collect(),
            last: None,
        })
    }
}

fn forecast(disk: &LiveDisk, files: &Files, parent: Option<mover::ParentDisk<'_>>) -> Forecast {
    let seen = Seen {
        size: disk.image.layer.virtual_size,
        chain: &files.chain,
        evidence: &files.evidence(disk, None),
        unusable: None,
        bitmaps: disk.bitmaps.iter().map(|it| (it.name.as_str(), it.seen(None))).collect(),
    };
    Forecast::of(&seen, parent)
}

fn power(running: bool, status: &str) -> Power {
    match (running, status) {
        (true, _) => Power::Running,
        // It is, or will be, in another QEMU, which knows better.
        (_, "inmigrate" | "postmigrate" | "finish-migrate") => Power::Unknown,
        (_, "shutdown") => Power::Off,
        _ => Power::Paused,
    }
}

fn late(path: &Path, limit: Duration) -> Error {
    Error::source(format!("QEMU did not answer within {} s", limit.as_secs())).context(path.display())
}

/// For a QEMU to say who it is.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// For looking at a machine and its files.
const EXAMINE_TIMEOUT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_of_machines() {
        assert_eq!(power(true, "running"), Power::Running);
        assert_eq!((power(false, "paused"), power(false, "inmigrate")), (Power::Paused, Power::Unknown));
        assert_eq!(MachineId::of_uuid("00000000-0000-0000-0000-000000000000"), None);
        assert_eq!(MachineId::of_uuid("05050505-0505-0505-0505-050505050505"), Some(MachineId([5; 16])));
        assert_eq!(MachineId::of_uuid("nonsense"), None);
    }

    /// A socket on which somebody says strange things, or nothing.
    #[tokio::test]
    async fn strangers_are_told_and_not_waited_for() {
        use tokio::io::AsyncWriteExt as _;
        let folder = tempfile::tempdir().unwrap();
        let address = |name: &str| -> QmpAddress {
            format!("qmp+unix://{}", folder.path().join(name).display()).parse().unwrap()
        };
        for (name, says) in [("a", &b"\x1b[2J\n"[..]), ("b", b"{\"QMP\":7}\n"), ("c", b"")] {
            let address = address(name);
            let listener = tokio::net::UnixListener::bind(&address.socket).unwrap();
            let talks = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.write_all(says).await;
            };
            let (told, ()) = tokio::join!(QemuIdentity::ask(&address), talks);
            assert!(told.is_err(), "{name}");
        }
        assert_eq!(QemuIdentity::ask(&address("nobody")).await.unwrap_err().kind(), mover::ErrorKind::NotFound);
    }
}
