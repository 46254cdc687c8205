//! Space for what a guest overwrites while its disks are read. It is a file without a name, handed to QEMU open: it
//! needs no path that QEMU may use, and when QEMU closes it nothing is left, whoever was killed.

use super::names::{Part, SessionNumber};
use crate::qmp::{Monitor, QmpError};
use rustix::fs::{Mode, OFlags};
use serde_json::json;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Scratch space of one disk.
#[derive(Debug)]
pub struct Scratch {
    file: File,
}

impl Scratch {
    /// Makes it in `folder` for a disk of `size` bytes. It takes room only as the guest overwrites what was not read yet.
    ///
    /// # Errors
    /// Of the file system.
    pub fn make(folder: &Path, size: u64) -> io::Result<Self> {
        let mode = Mode::RUSR | Mode::WUSR;
        let file: File = match rustix::fs::open(folder, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode) {
            Ok(file) => file.into(),
            // Some file systems only have files with names; this one loses its name at once.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => tempfile::tempfile_in(folder)?,
            Err(error) => return Err(error.into()),
        };
        file.set_len(size)?;
        Ok(Self { file })
    }

    /// Gives it to QEMU as a node of the session.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub async fn hand_over(&self, monitor: &mut Monitor, session: SessionNumber, disk: usize) -> Result<(), QmpError> {
        let set = monitor.add_file(&session.to_string(), self.file.as_fd()).await?;
        let node = json!({
            "driver": "raw", "node-name": session.part(Part::Scratch, disk), "discard": "unmap",
            "file": {"driver": "file", "filename": format!("/dev/fdset/{set}"), "discard": "unmap"},
        });
        monitor.tell("blockdev-add", node).await
    }

    /// Bytes that it takes now.
    pub fn bytes(&self) -> u64 {
        self.file.metadata().map_or(0, |it| it.blocks() * 512)
    }
}

/// Where scratch space is made when no folder is given: a folder on disk, not in memory.
pub fn usual_folder() -> PathBuf {
    std::env::var_os("TMPDIR").map(PathBuf::from).filter(|it| it.is_absolute()).unwrap_or_else(|| "/var/tmp".into())
}
