//! What a machine of a plain QEMU is made of besides its disks: the command line, written down when it is backed up, and
//! made into a script that starts the machine from its restored disks.

mod options;
mod secrets;
mod start;

use bytes::Bytes;
use mover::{Error, Name, NewAttachment, Result};
use serde::{Deserialize, Serialize};
pub use start::{Identity, RUN_FOLDER, RestoredFiles, start_script};

/// How a machine was started. In a point it is the attachment `domain`, file [`DEFINITION_FILE`], as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// [`VERSION`]; a later one is not understood.
    version: u32,
    /// Version of the QEMU: `10.0`.
    pub qemu: String,
    /// Folder that the QEMU was started in: paths without a folder lie there.
    pub folder: String,
    /// The command line, with the name of the program. Passwords and keys are left out.
    pub arguments: Vec<String>,
    /// Disks of the point.
    pub disks: Vec<DefinedDisk>,
    /// File of the firmware's variables, when it has some.
    pub nvram: Option<String>,
    /// What is missing in the command line, for people.
    pub left_out: Vec<String>,
}

/// Where a disk of a point was in the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefinedDisk {
    /// Its name in the point.
    pub name: Name,
    /// Place of its device in QEMU's tree of objects.
    pub device: String,
    /// The node that the device used.
    pub node: String,
    /// Its name as a drive; empty when it has none.
    pub drive: String,
    /// Its file, as QEMU called it.
    pub file: String,
    /// virtio, scsi, nvme, ide or usb; empty when it is another.
    pub bus: String,
}

impl Definition {
    /// Of a QEMU with this command line. Passwords and keys in it are left out.
    pub fn new(qemu: String, folder: String, arguments: Vec<String>, disks: Vec<DefinedDisk>) -> Self {
        let (arguments, left_out) = secrets::remove(arguments);
        Self { version: VERSION, qemu, folder, arguments, disks, nvram: None, left_out }
    }

    /// From the content of an attachment.
    ///
    /// # Errors
    /// `Usage` when it is not one of ours, or of a later version.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let wrong = |error: &dyn std::fmt::Display| {
            Error::usage(format!("the description of the machine cannot be read: {error}"))
                .hint("restore the disks one by one with --disk, and the files with --attachment")
        };
        if bytes.len() > BYTES_MAX {
            return Err(wrong(&"it is too long"));
        }
        let Version { version } = serde_json::from_slice(bytes).map_err(|error| wrong(&error))?;
        if version != VERSION {
            return Err(wrong(&format_args!("it has version {version}, and this program knows version {VERSION}")));
        }
        serde_json::from_slice(bytes).map_err(|error| wrong(&error))
    }

    /// The attachment of it.
    pub fn attachment(&self) -> NewAttachment {
        let text = serde_json::to_string_pretty(self).expect("text can be written as JSON");
        NewAttachment {
            kind: DEFINITION_KIND.parse().expect("a valid name"),
            name: DEFINITION_FILE.to_owned(),
            bytes: Bytes::from(text + "\n"),
        }
    }
}

/// Kind of the attachment that tells what a machine is made of.
pub const DEFINITION_KIND: &str = "domain";
/// Its file name for a plain QEMU.
pub const DEFINITION_FILE: &str = "qemu.json";
const VERSION: u32 = 1;
/// A command line has at most 2 MiB (Linux), and JSON makes it longer.
pub const BYTES_MAX: usize = 8 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let mut made = Definition::new("10.0".into(), "/".into(), vec!["qemu-system-x86_64".into()], Vec::new());
        made.nvram = Some("/vars.fd".into());
        let attachment = made.attachment();
        assert_eq!(Definition::read(&attachment.bytes).unwrap(), made);
        let text = String::from_utf8(attachment.bytes.to_vec()).unwrap();
        let later = text.replace("\"version\": 1", "\"version\": 2");
        assert!(Definition::read(later.as_bytes()).unwrap_err().to_string().contains("version 2"));
        assert!(Definition::read(b"{}").is_err());
        assert!(Definition::read(&vec![b' '; BYTES_MAX + 1]).unwrap_err().to_string().contains("too long"));
    }
}
