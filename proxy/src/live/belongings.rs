//! What belongs to a machine besides its disks: how its QEMU was started, and the variables of its firmware.
//!
//! The variables are read before the moment of the snapshot and again after it. What is the same both times was so at that
//! moment too, and no guest waits for it.

use super::inventory::{Firmware, Inventory, LiveDisk};
use crate::definition::{DefinedDisk, Definition};
use crate::nvram::nvram_file;
use crate::qmp::{Monitor, QmpError};
use mover::{NewAttachment, blocking};
use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What was seen before the moment of the snapshot.
#[derive(Debug, Default)]
pub struct Belongings {
    definition: Option<Definition>,
    nvram: Option<(PathBuf, NewAttachment)>,
    warnings: Vec<String>,
}

impl Belongings {
    /// Looks at the machine. What cannot be had is a warning: disks without it are better than none.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub async fn look(monitor: &mut Monitor, inventory: &Inventory) -> Result<Self, QmpError> {
        let mut made = Self::default();
        let tpms: Vec<Value> = monitor.ask("query-tpm", json!({})).await?;
        if !tpms.is_empty() {
            made.warnings.push(
                "the machine has a TPM, whose state is not part of the point: what the guest sealed with it needs its \
                 recovery key after a restore"
                    .to_owned(),
            );
        }
        let (major, minor) = monitor.version();
        let Some(process) = monitor.process() else {
            made.warnings.push("how the machine was started is not known: QEMU's process cannot be seen".to_owned());
            return Ok(made);
        };
        let firmware = inventory.firmware.clone();
        let disks = inventory.disks.iter().map(defined).collect();
        let looked = blocking(move || {
            let definition = command_line(process)
                .map(|(folder, words)| Definition::new(format!("{major}.{minor}"), folder, words, disks));
            (definition, firmware.map(|it| (variables(&it, process), it.file)))
        });
        let (definition, nvram) = looked.await;
        match definition {
            Ok(definition) => made.definition = Some(definition),
            Err(error) => made.warnings.push(format!("how the machine was started cannot be read: {error}")),
        }
        match nvram {
            None => (),
            Some((Ok((path, file)), name)) => {
                made.nvram = Some((path, file));
                made.definition.iter_mut().for_each(|it| it.nvram = Some(name.clone()));
            }
            Some((Err(error), name)) => {
                made.warnings.push(format!("the variables of the firmware, {name}, cannot be read: {error}"));
            }
        }
        Ok(made)
    }

    /// What belongs to the point, after the moment of the snapshot, and warnings.
    pub async fn settle(self) -> (Vec<NewAttachment>, Vec<String>) {
        let mut warnings = self.warnings;
        let mut attachments = Vec::from_iter(self.definition.map(|it| it.attachment()));
        if let Some((path, before)) = self.nvram {
            let again = blocking(move || nvram_file(&path)).await;
            if again.as_ref().is_ok_and(|after| *after != before) {
                warnings.push(
                    "the firmware wrote its variables during the snapshot; they are of the moments after it".to_owned(),
                );
            }
            attachments.push(again.unwrap_or(before));
        }
        (attachments, warnings)
    }
}

fn defined(disk: &LiveDisk) -> DefinedDisk {
    DefinedDisk {
        name: disk.name.clone(),
        device: disk.device.clone(),
        node: disk.node.clone(),
        drive: disk.drive.clone(),
        file: disk.image.filename.clone(),
        bus: disk.bus.clone(),
    }
}

/// The folder that a process works in, and the command line that it was started with.
fn command_line(process: u32) -> io::Result<(String, Vec<String>)> {
    let folder = std::fs::read_link(format!("/proc/{process}/cwd"))?;
    let mut bytes = Vec::new();
    File::open(format!("/proc/{process}/cmdline"))?.take(COMMAND_BYTES_MAX).read_to_end(&mut bytes)?;
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
    let words = bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    Ok((folder.to_string_lossy().into_owned(), words.collect()))
}

/// The file with the variables. QEMU says which it is, and a QEMU that its guest took over says anything: so it counts only
/// when that process has the file open.
fn variables(firmware: &Firmware, process: u32) -> io::Result<(PathBuf, NewAttachment)> {
    let path = Path::new(&firmware.file);
    let path = std::fs::read_link(format!("/proc/{process}/cwd"))?.join(path);
    // The path alone is opened, which does nothing to what lies there.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let there = File::from(rustix::fs::open(&path, flags, Mode::empty())?).metadata()?;
    let open = std::fs::read_dir(format!("/proc/{process}/fd"))?.flatten();
    let is_it = |it: &std::fs::Metadata| (it.dev(), it.ino()) == (there.dev(), there.ino());
    if !open.filter_map(|entry| std::fs::metadata(entry.path()).ok()).any(|it| is_it(&it)) {
        return Err(io::Error::other("QEMU does not have it open"));
    }
    let file = nvram_file(&path)?;
    Ok((path, file))
}

/// Linux lets a command line have 2 MiB at most, unless its stack is made larger.
const COMMAND_BYTES_MAX: u64 = 2 << 20;
