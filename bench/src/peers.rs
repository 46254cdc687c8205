//! What restic, borg and qemu-img do in each step. They end before the bytes that they wrote are durable, while our
//! jobs return when they are. So the file system is synced after each of their steps that writes, and the time of this
//! is added.

use crate::disk::{Day, Disk, text};
use crate::measure::{Durable, bytes_below, measured, ran};
use crate::report::{BORG, Done, QEMU, RESTIC, Step};
use crate::tools::{BORG as OF_BORG, RESTIC as OF_RESTIC};
use anyhow::Result;
use std::fs;
use std::process::Command;

/// Peers on one disk, in one run.
pub struct Peers {
    disk: Disk,
}

impl Peers {
    /// Makes their repositories.
    pub fn new(disk: Disk) -> Result<Self> {
        ran(disk.places.restic(&["init", "--repository-version", "2"]))?;
        ran(disk.places.borg(&["init", "-e", "repokey-blake2"], &disk.places.work))?;
        Ok(Self { disk })
    }

    pub fn restic_backup(&self, step: Step) -> Result<Done> {
        let command = self.disk.places.restic(&["backup", &text(self.disk.places.image())?]);
        self.done(step, RESTIC, &command, Durable::BySync, Some(OF_RESTIC))
    }

    pub fn restic_restore(&self) -> Result<Done> {
        let command = self.disk.places.restic(&["restore", "latest", "--target", OUT]);
        let done = self.done(Step::Restore, RESTIC, &command, Durable::BySync, None)?;
        self.compare_out()?;
        Ok(done)
    }

    pub fn restic_verify(&self) -> Result<Done> {
        let command = self.disk.places.restic(&["check", "--read-data"]);
        self.done(Step::Verify, RESTIC, &command, Durable::ByItself, None)
    }

    pub fn borg_backup(&self, step: Step, archive: &str) -> Result<Done> {
        let image = text(self.disk.places.image())?;
        let create = ["create", "-C", "zstd,3", archive, &image];
        let command = self.disk.places.borg(&create, &self.disk.places.work);
        self.done(step, BORG, &command, Durable::BySync, Some(OF_BORG))
    }

    pub fn borg_restore(&self, archive: &str) -> Result<Done> {
        let out = self.disk.places.path(OUT);
        fs::create_dir_all(&out)?;
        let command = self.disk.places.borg(&["extract", archive], &out);
        let done = self.done(Step::Restore, BORG, &command, Durable::BySync, None)?;
        self.compare_out()?;
        Ok(done)
    }

    pub fn borg_verify(&self) -> Result<Done> {
        let command = self.disk.places.borg(&["check", "--verify-data"], &self.disk.places.work);
        self.done(Step::Verify, BORG, &command, Durable::ByItself, None)
    }

    /// Converts the disk with compression and without deduplication, to show what that alone costs.
    pub fn qemu_full(&self) -> Result<Done> {
        let image = text(self.disk.places.image())?;
        let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2"];
        arguments.extend(["-c", "-o", "compression_type=zstd", "-m", "8", "-W"]);
        arguments.extend([image.as_str(), CONVERTED]);
        let done = self.done(Step::Full, QEMU, &self.disk.places.qemu_img(&arguments), Durable::BySync, None)?;
        Ok(Done { stored: Some(fs::metadata(self.disk.places.path(CONVERTED))?.len()), ..done })
    }

    /// Restores the first day from the converted image.
    pub fn qemu_restore(&self) -> Result<Done> {
        let arguments = ["convert", "-f", "qcow2", "-O", "raw", "-m", "8", "-W", CONVERTED, "restored.raw"];
        let done = self.done(Step::Restore, QEMU, &self.disk.places.qemu_img(&arguments), Durable::BySync, None)?;
        self.disk.compare("restored.raw", Day::First)?;
        Ok(done)
    }

    fn done(
        &self,
        step: Step,
        tool: &'static str,
        command: &Command,
        durable: Durable,
        repository: Option<&str>,
    ) -> Result<Done> {
        let made = measured(command, &self.disk.places.work, durable)?;
        let stored = repository.map(|name| bytes_below(&self.disk.places.path(name))).transpose()?;
        Ok(Done { step, tool, sample: made.sample, durable, stored, work: None })
    }

    /// Both restore the second day below its whole path.
    fn compare_out(&self) -> Result<()> {
        self.disk.compare(&format!("{OUT}{}", text(self.disk.places.image())?), Day::Second)
    }
}

const OUT: &str = "out";
const CONVERTED: &str = "zstd.qcow2";
