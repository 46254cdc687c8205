//! Making the directory of a repository: what may be in it before, its folders, and who may read them.

use super::lock::LOCK;
use super::reserve::RESERVE;
use super::{Directory, INCOMING, INCOMING_OBJECT};
use crate::error::storage;
use crate::format::config::{CONFIG_BYTES_MAX, CONFIG_MAGIC};
use crate::io::open_regular;
use crate::objects::{CONFIG, LOG, ObjectName, Objects, PACKS, STATE};
use mover::{Error, Result};
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

impl Directory {
    /// The directory of the repository in which `path` lies, or would lie, when it is in one.
    pub fn around(path: &Path) -> Option<PathBuf> {
        let real = std::fs::canonicalize(path).or_else(|_| {
            let folder = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
            std::fs::canonicalize(folder).map(|folder| folder.join(path.file_name().unwrap_or_default()))
        });
        let real = real.ok()?;
        let is_repository = |folder: &&Path| {
            let mut head = [0; CONFIG_MAGIC.len()];
            let config = open_regular(&folder.join(CONFIG), OpenOptions::new().read(true));
            config.is_ok_and(|mut config| config.read_exact(&mut head).is_ok()) && head == *CONFIG_MAGIC
        };
        real.ancestors().skip(1).find(is_repository).map(Path::to_owned)
    }

    /// Makes the directory, for a new repository and for its owner alone. Gives whether it was not there.
    ///
    /// # Errors
    /// `Usage` when there is anything in it that an earlier, unfinished try has not left; of the storage.
    pub fn make_root(&self) -> Result<bool> {
        let is_new = !self.root.exists();
        self.make_dir(&self.root)?;
        for name in self.list("")? {
            match name.as_str() {
                CONFIG => return Err(self.taken()),
                PACKS | LOG | STATE | INCOMING | RESERVE | LOCK => {}
                // What a file system of the ext family has from the start.
                LOST_AND_FOUND if self.root.join(LOST_AND_FOUND).is_dir() => {}
                _ => return Err(self.unfit("is not empty")),
            }
        }
        self.check_folders()?;
        self.make_private();
        Ok(is_new)
    }

    /// What to say when there is a repository already.
    pub fn taken(&self) -> Error {
        self.unfit("already holds a repository")
    }

    fn unfit(&self, why: &str) -> Error {
        Error::usage(format!("{} {why}", self.root.display()))
            .hint("choose a new or empty directory for the repository")
    }

    /// Makes the folders of a new repository.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn make_folders(&self) -> Result<()> {
        for name in folders() {
            self.make_dir(&self.root.join(name))?;
        }
        for name in [PACKS, ""] {
            self.sync_dir(&self.root.join(name))?;
        }
        Ok(())
    }

    /// Takes away again what was made for a repository that came to nothing; the directory too when it was made for it.
    pub fn unmake(&self, is_new: bool) {
        // Unless the last step took effect and only its answer was lost.
        if !matches!(self.read(ObjectName::Config, CONFIG_BYTES_MAX), Ok(None)) {
            return;
        }
        for name in self.list_or_none(INCOMING).ok().flatten().unwrap_or_default() {
            if name.starts_with(INCOMING_OBJECT) {
                self.remove_incoming(&self.root.join(INCOMING).join(name));
            }
        }
        let all: Vec<String> = folders().collect();
        for name in all.iter().rev().map(String::as_str).chain([PACKS]) {
            if let Err(error) = self.io.remove_dir(&self.root.join(name)) {
                tracing::debug!(name, %error, "a folder stays");
            }
        }
        let _ = self.io.remove(&self.root.join(LOCK));
        if is_new {
            let _ = self.io.remove_dir(&self.root);
        }
    }

    /// The missing folders of a repository whose other folders are there. Some programs leave out empty folders when
    /// they copy a repository.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn missing_folders(&self) -> Result<Vec<String>> {
        let there = |folder: &str| Ok::<_, Error>(self.list_or_none(folder)?.unwrap_or_default());
        let (root, packs) = (there("")?, there(PACKS)?);
        let is_there = |name: &String| match name.strip_prefix(PACKS).and_then(|shard| shard.strip_prefix('/')) {
            Some(shard) => packs.iter().any(|it| it == shard),
            None => root.contains(name),
        };
        Ok(folders().filter(|name| !is_there(name)).collect())
    }

    /// Makes a folder of a repository.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn make_folder(&self, name: &str) -> Result<()> {
        let path = self.root.join(name);
        self.make_dir(&path)?;
        self.sync_dir(self.folder_of(&path))
    }

    /// Makes the directory its owner's alone, where that can be done.
    fn make_private(&self) {
        let others = |path: &Path| std::fs::metadata(path).is_ok_and(|it| it.permissions().mode() & 0o077 != 0);
        let private = std::fs::Permissions::from_mode(0o700);
        if others(&self.root)
            && let Err(error) = std::fs::set_permissions(&self.root, private)
        {
            tracing::warn!(path = %self.root.display(), %error, "others can read the repository, and its file system does not allow to change that");
        } else if others(&self.root) {
            tracing::warn!(
                path = %self.root.display(),
                "others can read the repository: its file system has no permissions; mount it with umask=077"
            );
        }
    }

    /// Warns when everybody may read or change what only its owner should: who has the key in `config` restores all disks.
    pub fn tell_who_may_read(&self) {
        let mode = |path: &Path| std::fs::metadata(path).map_or(0, |it| it.permissions().mode());
        let (root, config) = (mode(&self.root), mode(&self.root.join(CONFIG)));
        let path = self.root.display();
        if root & 0o022 != 0 {
            tracing::warn!(
                "others can write to {path}, and so change or delete every backup: run `chmod -R go-w {path}`"
            );
        } else if root & 0o001 != 0 && config & 0o004 != 0 {
            tracing::warn!("everybody can read {path}, and so restore every disk: run `chmod -R go= {path}`");
        }
    }

    /// Refuses symbolic links where a repository has folders: what is behind them is somebody else's.
    ///
    /// # Errors
    /// `Integrity`; of the storage.
    pub fn check_folders(&self) -> Result<()> {
        for folder in ["", PACKS, LOG] {
            let path = self.root.join(folder);
            let entries = match std::fs::read_dir(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound && !folder.is_empty() => continue,
                entries => entries.map_err(|error| storage("cannot list", &path, error))?,
            };
            for entry in entries {
                let entry = entry.map_err(|error| storage("cannot list", &path, error))?;
                if entry.file_type().is_ok_and(|it| it.is_symlink()) {
                    return Err(Error::integrity(format!("{} is a symbolic link", entry.path().display())).hint(
                        "a repository has no symbolic links: put the real folder or file in its place, and find out who made the link",
                    ));
                }
            }
        }
        Ok(())
    }
}

/// The folders of a new repository, each after the one it is in.
fn folders() -> impl Iterator<Item = String> {
    let shards = (0..=255u8).map(|byte| format!("{PACKS}/{byte:02x}"));
    shards.chain([LOG, STATE, INCOMING].map(str::to_owned))
}

const LOST_AND_FOUND: &str = "lost+found";
