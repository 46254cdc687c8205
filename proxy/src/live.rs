//! A machine that runs in a QEMU: all its disks at one moment, while it goes on.
//!
//! The order is what makes it safe: everything that is slow (scratch space, the agent, what earlier runs left) → the
//! watchdog → the administrator's command before → freeze → switch → thaw → the command after → read → undo → bitmaps of
//! earlier points. Between freeze and thaw nothing is connected, opened or loaded.
//!
//! The switch: the processors stop; below each device a *copier* (QEMU's `copy-before-write`) keeps what the guest
//! overwrites in scratch space, and a *view* (`snapshot-access`) shows the disk as it was; one transaction copies the
//! bitmaps and begins the next ones; the processors go on. No target, proxy or network is in the guest's way: when
//! scratch space is full or slow, the snapshot is given up, and not the guest's write.

mod belongings;
mod bitmaps;
mod doctor;
mod found;
mod graph;
mod hanging;
mod identity;
mod inventory;
mod names;
mod opening;
mod placed;
mod quiesce;
mod scratch;
mod session;
mod watchdog;

use crate::address::QmpAddress;
use crate::hooks::Hooks;
use crate::qmp::{Monitor, QmpError};
pub use doctor::{Finding, examine};
pub use hanging::run_if_asked as try_folder;
pub use identity::QemuIdentity;
use mover::{MachineSource, Name, Past, Result, Stop, Wanted, World};
use opening::Opening;
use serde::Deserialize;
use serde_json::{Value, json};
pub use session::LiveSession;
use std::path::PathBuf;
pub use watchdog::run_if_asked as watch_machine;

/// A machine that runs in a QEMU, which this host reaches through its QMP socket.
#[derive(Debug, Clone)]
pub struct QemuMachine {
    /// Name of the machine, which the commands get too.
    pub name: Name,
    /// Where its monitor is.
    pub address: QmpAddress,
    /// Commands around the moment of the snapshot.
    pub hooks: Option<Hooks>,
    /// Folder for scratch space, on a local disk; none: `TMPDIR`, or /var/tmp.
    pub scratch: Option<PathBuf>,
    /// Asked while the commands run.
    pub stop: Stop,
    /// Clock and randomness.
    pub world: World,
}

impl MachineSource for QemuMachine {
    type Session = LiveSession;

    async fn open(&self, wanted: &Wanted, past: &impl Past) -> Result<LiveSession> {
        let mut opening = Opening::prepare(self, wanted, past).await?;
        let switched = match (self.stop.check(), &self.hooks) {
            (Err(error), _) => Err(error),
            (Ok(()), None) => opening.switch().await.map(|()| None),
            (Ok(()), Some(hooks)) => {
                hooks.around(&self.name, &self.stop, opening.switch()).await.map(|((), hooked)| Some(hooked))
            }
        };
        let hooked = match switched {
            Ok(hooked) => hooked,
            Err(error) => return Err(opening.abandon(error).await),
        };
        let mut session = opening.connect().await?;
        if let Some(hooked) = hooked {
            session.snapshot.frozen = session.snapshot.frozen.max(hooked.duration);
            session.snapshot.warnings.extend(hooked.warning);
        }
        Ok(session)
    }

    fn stands_still(&self) -> bool {
        true
    }
}

#[derive(Deserialize)]
struct Child {
    name: String,
    r#type: String,
}

#[derive(Deserialize)]
struct Channel {
    label: String,
    filename: String,
}

/// Where the guest agent's socket is: as the address says, otherwise according to QEMU, which knows the channel of that
/// name and the socket behind it.
async fn agent_socket(monitor: &mut Monitor, address: &QmpAddress) -> Result<Option<PathBuf>, QmpError> {
    if address.agent.is_some() {
        return Ok(address.agent.clone());
    }
    for folder in ["/machine/peripheral", "/machine/peripheral-anon"] {
        let children: Vec<Child> = monitor.ask("qom-list", json!({"path": folder})).await?;
        for child in children.iter().filter(|it| it.r#type == "child<virtserialport>") {
            let path = format!("{folder}/{}", child.name);
            let name: Value = monitor.ask("qom-get", json!({"path": path, "property": "name"})).await?;
            if name != AGENT_CHANNEL {
                continue;
            }
            let label: String = monitor.ask("qom-get", json!({"path": path, "property": "chardev"})).await?;
            let channels: Vec<Channel> = monitor.ask("query-chardev", json!({})).await?;
            let channel = channels.into_iter().find(|it| it.label == label);
            return Ok(channel.and_then(|it| unix_path(&it.filename)));
        }
    }
    Ok(None)
}

/// The path in what QEMU says of a socket: `disconnected:unix:/run/web.agent,server=on`.
fn unix_path(filename: &str) -> Option<PathBuf> {
    let (_, rest) = filename.split_once("unix:")?;
    let path = rest.split(',').next().unwrap_or(rest);
    path.starts_with('/').then(|| path.into())
}

const AGENT_CHANNEL: &str = "org.qemu.guest_agent.0";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_channels() {
        assert_eq!(unix_path("disconnected:unix:/run/a,server=on"), Some("/run/a".into()));
        assert_eq!(unix_path("unix:/run/a,server=on <-> /run/b"), Some("/run/a".into()));
        assert_eq!(unix_path("unix:relative,server=on"), None);
        assert_eq!(unix_path("pty:/dev/pts/1"), None);
    }
}
