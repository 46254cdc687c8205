//! How each tool is called: the same work for all, on the same image, each with its usual settings.

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Folders of one run.
#[derive(Debug, Clone)]
pub struct Places {
    /// Where everything is made.
    pub work: PathBuf,
    /// The program; the others lie beside it.
    pub windlass: PathBuf,
}

impl Places {
    /// For a run of `windlass` in an empty folder.
    pub fn fresh(work: &Path, windlass: &Path) -> Result<Self> {
        let _ = fs::remove_dir_all(work);
        fs::create_dir_all(work).with_context(|| work.display().to_string())?;
        // Its jobs run in the folder.
        Ok(Self { work: fs::canonicalize(work)?, windlass: std::path::absolute(windlass)? })
    }

    /// Something in the run's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.work.join(name)
    }

    /// The raw image under the one name by which every tool knows it.
    pub fn image(&self) -> PathBuf {
        self.work.join("in/disk.raw")
    }

    /// `windlass` on a repository in the folder.
    pub fn windlass(&self, arguments: &[&str], repository: &str) -> Command {
        let mut command = Command::new(&self.windlass);
        command.args(arguments).arg("-r").arg(self.path(repository)).arg("--json").current_dir(&self.work);
        command
    }

    /// `restic` on its repository.
    pub fn restic(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("restic");
        command.args(arguments).current_dir(&self.work);
        command.env("RESTIC_REPOSITORY", self.path(RESTIC)).env("RESTIC_PASSWORD", "x");
        command.env("RESTIC_CACHE_DIR", self.path("cache.restic"));
        command
    }

    /// `borg` on its repository.
    pub fn borg(&self, arguments: &[&str], directory: &Path) -> Command {
        let mut command = Command::new("borg");
        command.args(arguments).current_dir(directory);
        command.env("BORG_REPO", self.path(BORG)).env("BORG_PASSPHRASE", "x");
        for (variable, name) in
            [("BORG_CACHE_DIR", "cache.borg"), ("BORG_CONFIG_DIR", "conf.borg"), ("BORG_SECURITY_DIR", "sec.borg")]
        {
            command.env(variable, self.path(name));
        }
        command
    }

    /// `qemu-img` in the folder.
    pub fn qemu_img(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("qemu-img");
        command.args(arguments).current_dir(&self.work);
        command
    }
}

/// Restic's repository.
pub const RESTIC: &str = "restic";
/// Borg's repository.
pub const BORG: &str = "borg";
