//! Looks at a machine that runs, and says what its backups will meet, each with its remedy.

use super::agent_socket;
use super::graph::{Traces, run_state};
use super::inventory::Inventory;
use super::placed::undo_leftovers;
use super::quiesce::Guest;
use super::scratch::usual_folder;
use super::watchdog::is_held;
use crate::address::QmpAddress;
use crate::qemu::TrackingName;
use crate::qmp::{Monitor, QmpError};
use mover::{Quiesce, World};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Something that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is.
    pub subject: String,
    /// False when a backup will fail of it, or be worth less.
    pub sound: bool,
    /// What was found, and what to do about it.
    pub remark: String,
}

/// Looks at the machine at `address`. With `undo`, takes out what a killed backup left in its QEMU.
pub async fn examine(address: &QmpAddress, scratch: Option<PathBuf>, undo: bool) -> Vec<Finding> {
    let mut findings = vec![room(&scratch.unwrap_or_else(usual_folder))];
    let found = match Monitor::connect(&address.socket).await {
        Ok(mut monitor) => {
            look(&mut monitor, address, undo, &mut findings).await.map_err(|it| it.about(&address.socket))
        }
        Err(error) => Err(error),
    };
    if let Err(error) = found {
        let remedy = error.remedy().map(|remedy| format!("; {remedy}")).unwrap_or_default();
        findings.push(Finding { subject: "QEMU".into(), sound: false, remark: format!("{}{remedy}", error.message()) });
    }
    findings
}

async fn look(
    monitor: &mut Monitor,
    address: &QmpAddress,
    undo: bool,
    findings: &mut Vec<Finding>,
) -> Result<(), QmpError> {
    let mut find = |subject: &str, sound, remark: String| {
        findings.push(Finding { subject: subject.to_owned(), sound, remark });
    };
    find("QEMU", true, format!("answers, and the machine is in state {}", run_state(monitor).await?));
    let traces = Traces::look(monitor, None).await?;
    if traces.is_empty() {
        find("leftovers", true, "none".into());
    } else if traces.sessions().any(is_held) {
        find("leftovers", true, "a backup of this machine is running".into());
    } else if undo {
        match undo_leftovers(monitor, &address.socket, &traces, &World::system()).await {
            Ok(()) => find("leftovers", true, "the snapshot of a killed backup was removed".into()),
            Err(error) => find("leftovers", false, error.message()),
        }
    } else {
        let remark = "a killed backup left its snapshot; the next backup removes it, and so does --undo";
        find("leftovers", false, remark.into());
    }
    let inventory = Inventory::take(monitor).await?;
    for disk in &inventory.disks {
        let bitmaps = disk.bitmaps.iter().filter(|it| it.name.parse::<TrackingName>().is_ok());
        let (sound, spoilt): (Vec<_>, Vec<_>) = bitmaps.partition(|it| it.recording && !it.inconsistent);
        let remark = format!(
            "{} bytes, {}, on node {}: {} that can prove changes{}",
            disk.image.layer.virtual_size,
            disk.driver,
            disk.node,
            match sound.len() {
                0 => "no bitmap".to_owned(),
                1 => "1 bitmap".to_owned(),
                more => format!("{more} bitmaps"),
            },
            if spoilt.is_empty() { "" } else { "; one that was not saved cleanly is removed by the next backup" },
        );
        find(&format!("disk {}", disk.name), spoilt.is_empty(), remark);
    }
    for left_out in &inventory.left_out {
        find("drive", true, format!("not backed up: {left_out}"));
    }
    let agent = agent_socket(monitor, address).await?;
    match Guest::meet(agent.as_deref(), Quiesce::Require, &World::system()).await {
        Ok(_) => find("guest agent", true, "answers".into()),
        Err(error) => {
            find("guest agent", false, format!("{}; points will be crash consistent", error.message()));
        }
    }
    Ok(())
}

/// Room for what guests overwrite while their disks are read.
fn room(folder: &Path) -> Finding {
    let subject = format!("scratch space in {}", folder.display());
    match rustix::fs::statvfs(folder) {
        Ok(system) => {
            let bytes = system.f_bavail * system.f_frsize;
            let sound = bytes >= ROOM_BYTES_MIN;
            let advice = if sound {
                ""
            } else {
                "; give a folder with more room with --scratch, or `scratch` in the configuration"
            };
            Finding { subject, sound, remark: format!("{} MiB free{advice}", bytes >> 20) }
        }
        Err(error) => {
            Finding { subject, sound: false, remark: format!("{}; make the folder", std::io::Error::from(error)) }
        }
    }
}

/// Less than this is soon used up by a busy guest.
const ROOM_BYTES_MIN: u64 = 1 << 30;
