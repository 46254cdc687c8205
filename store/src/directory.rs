//! A repository's objects in a directory: names, create-only creation, reading. What a bucket will do in its own way.
//!
//! | object | name | made |
//! |---|---|---|
//! | configuration | `config` | once |
//! | pack | `packs/<2 digits>/<64 digits>` | named when complete |
//! | log record | `log/<sequence / 10000>/<sequence>` | create-only |
//! | state digest | `state/<sequence>` | create-only |
//! | what does not belong to the log any more | `quarantine/<name>-<16 digits>` | moved there |
//!
//! Decimal numbers have 20 digits, so that names sort as numbers.

mod naming;

use crate::error::{reading, storage};
use crate::format::pack::{PackKind, PackName};
use crate::io::Io;
use mover::{Error, Result, World};
use naming::Naming;
use std::fs::File;
use std::io::{ErrorKind, IoSlice};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Result of a create-only creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The object is durable under its name.
    New,
    /// There was an object of this name.
    Exists,
}

/// The directory and the way to its files.
#[derive(Clone)]
pub struct Directory {
    root: PathBuf,
    io: Arc<dyn Io>,
    world: World,
    naming: Arc<Naming>,
}

/// An open file of the repository.
struct Object {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Object {
    fn read(&self, io: &dyn Io, offset: u64, length: u64) -> Result<Vec<u8>> {
        let length = usize::try_from(length).map_err(|_| Error::internal("an object over the address space"))?;
        io.read_at(&self.file, offset, length).map_err(|error| storage("cannot read", &self.path, error))
    }
}

impl Directory {
    /// The directory at `root`, which need not exist.
    pub fn new(root: &Path, io: Arc<dyn Io>, world: World) -> Self {
        Self { root: root.to_owned(), io, world, naming: Arc::default() }
    }

    /// Path of the directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The seam to files.
    pub fn io(&self) -> &dyn Io {
        &*self.io
    }

    /// Clock and randomness.
    pub const fn world(&self) -> &World {
        &self.world
    }

    /// Makes the folders of a new repository.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn make_folders(&self) -> Result<()> {
        for name in folders() {
            let path = self.root.join(name);
            self.io.make_dir(&path).map_err(|error| storage("cannot create", &path, error))?;
        }
        for name in [PACKS, ""] {
            self.sync_dir(&self.root.join(name))?;
        }
        Ok(())
    }

    /// Removes those of them that are empty.
    pub fn remove_folders(&self) {
        let all: Vec<String> = folders().collect();
        for name in all.iter().rev().map(String::as_str).chain([PACKS]) {
            if let Err(error) = self.io.remove_dir(&self.root.join(name)) {
                tracing::debug!(name, %error, "a folder stays");
            }
        }
    }

    /// The folders of a repository that are not there, though the others are: whoever copied it left empty ones out.
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
        self.io.make_dir(&path).map_err(|error| storage("cannot create", &path, error))?;
        self.sync_dir(path.parent().unwrap_or(&self.root))
    }

    /// Makes the directory its owner's alone.
    ///
    /// # Errors
    /// Of the storage, where it matters.
    pub fn make_private(&self) -> Result<()> {
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
        Ok(())
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

    /// Creates `name` with `bytes`, durable and whole on return, unless the name is taken by other bytes. Bytes that can be told
    /// apart (a nonce) make it safe to ask again: finding the own bytes is success, whatever the first answer was (R2).
    /// An error from the last sync leaves the object visible and its durability unknown: stop writing then.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn create(&self, name: &str, bytes: &[u8]) -> Result<Created> {
        let target = self.root.join(name);
        let temporary = self.temporary(INCOMING_OBJECT);
        let fail = |error| storage("cannot create", &target, error);
        let file = self.io.create(&temporary).map_err(fail)?;
        let written = self.io.append(&file, &mut [IoSlice::new(bytes)]).and_then(|()| self.io.sync(&file));
        let named = written.map_err(fail).and_then(|()| match self.name(&temporary, &target) {
            Ok(moved) => Ok((Created::New, moved)),
            // Taken, or an unclear answer: what is there now decides.
            Err(error) => match self.has(&target, bytes)? {
                Some(true) => Ok((Created::New, !self.is_there(&temporary))),
                Some(false) => Ok((Created::Exists, false)),
                None => Err(fail(error)),
            },
        });
        // What is left under incoming/ is removed when the repository is opened next.
        if !named.as_ref().is_ok_and(|(_, moved)| *moved) {
            self.remove_incoming(&temporary);
        }
        let (created, moved) = named?;
        if created == Created::New {
            self.sync_name(&target, moved)?;
        }
        Ok(created)
    }

    /// Whether an object has these bytes; none when it is not there. Nothing is read of one that is longer.
    fn has(&self, path: &Path, bytes: &[u8]) -> Result<Option<bool>> {
        let fail = |error| storage("cannot read", path, error);
        let file = match self.io.open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fail(error)),
        };
        let same_length = self.io.length(&file).map_err(fail)? == bytes.len() as u64;
        Ok(Some(same_length && self.io.read_at(&file, 0, bytes.len()).map_err(fail)? == bytes))
    }

    fn is_there(&self, path: &Path) -> bool {
        !matches!(self.io.open(path), Err(error) if error.kind() == ErrorKind::NotFound)
    }

    /// Makes a new name durable. One that was moved leaves its old folder first: a file system without a journal may have it
    /// in neither after a power cut, and must not have it in both.
    fn sync_name(&self, target: &Path, moved: bool) -> Result<()> {
        if moved {
            self.sync_dir(&self.root.join(INCOMING))?;
        }
        self.sync_dir(target.parent().unwrap_or(&self.root))
    }

    /// Writes `bytes` as all of `name`, whatever that was. For caches: a power cut may leave anything.
    ///
    /// # Errors
    /// Of the storage; what was there is there then.
    pub fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let (target, temporary) = (self.root.join(name), self.temporary(INCOMING_OBJECT));
        let file = self.io.create(&temporary);
        let written = file.and_then(|file| self.io.append(&file, &mut [IoSlice::new(bytes)]));
        written.and_then(|()| self.io.rename(&temporary, &target)).map_err(|error| {
            self.remove_incoming(&temporary);
            storage("cannot replace", &target, error)
        })
    }

    /// A new name under `incoming/` for a pack.
    pub fn temporary_pack(&self) -> PathBuf {
        self.temporary(INCOMING_PACK)
    }

    /// Creates the file of a pack under a name of [`Self::temporary_pack`]. Data is not read again soon; pages are, by
    /// the next backup.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn create_pack(&self, path: &Path, kind: PackKind) -> Result<File> {
        let created = match kind {
            PackKind::Data => self.io.create_large(path),
            PackKind::Page => self.io.create(path),
        };
        created.map_err(|error| storage("cannot create", path, error))
    }

    fn temporary(&self, prefix: &str) -> PathBuf {
        self.root.join(INCOMING).join(format!("{prefix}{}", self.digits()))
    }

    /// Nobody has a name with these.
    fn digits(&self) -> String {
        self.world.random_bytes::<8>().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Removes a file under `incoming/` that is not needed any more. Failing is harmless: the next opening tries again.
    pub fn remove_incoming(&self, path: &Path) {
        if let Err(error) = self.io.remove(path) {
            tracing::debug!(path = %path.display(), %error, "left behind");
        }
    }

    /// All of an object; none when it is not there.
    ///
    /// # Errors
    /// Of the storage, or when it is longer than `bytes_max`.
    pub fn read(&self, name: &str, bytes_max: u64) -> Result<Option<Vec<u8>>> {
        let Some(object) = self.open_within(name, bytes_max)? else { return Ok(None) };
        object.read(&*self.io, 0, object.length).map(Some)
    }

    /// As [`Self::read`], for an object that ends with the hash of what comes before it. A long one is taken into memory
    /// only after that was compared: a file of a gigabyte that holds nothing is made in a moment.
    ///
    /// # Errors
    /// As [`Self::read`]; `Integrity` when the hash is another.
    pub fn read_hashed(&self, name: &str, bytes_max: u64) -> Result<Option<Vec<u8>>> {
        let Some(object) = self.open_within(name, bytes_max)? else { return Ok(None) };
        if object.length > UNPROVEN_BYTES_MAX {
            let body = object.length - HASH_BYTES;
            let mut hasher = blake3::Hasher::new();
            for at in (0..body).step_by(HASHED_BYTES as usize) {
                hasher.update(&object.read(&*self.io, at, HASHED_BYTES.min(body - at))?);
            }
            if object.read(&*self.io, body, HASH_BYTES)? != hasher.finalize().as_bytes() {
                return Err(Error::integrity(format!("{} does not match its hash", object.path.display())));
            }
        }
        object.read(&*self.io, 0, object.length).map(Some)
    }

    fn open_within(&self, name: &str, bytes_max: u64) -> Result<Option<Object>> {
        let path = self.root.join(name);
        let fail = |error| storage("cannot read", &path, error);
        let file = match self.io.open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fail(error)),
        };
        let length = self.io.length(&file).map_err(fail)?;
        if length > bytes_max {
            return Err(Error::integrity(format!(
                "{} has {length} bytes, more than the format allows",
                path.display()
            )));
        }
        Ok(Some(Object { path, file, length }))
    }

    /// Opens a pack.
    ///
    /// # Errors
    /// Of the storage; `Integrity` when it is not there.
    pub fn open_pack(&self, name: &PackName) -> Result<File> {
        let path = self.root.join(pack_object(name));
        self.io.open(&path).map_err(|error| reading(&path, error))
    }

    /// Makes the name of a log record durable that somebody else created.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn sync_log_folder(&self, sequence: u64) -> Result<()> {
        let record = self.root.join(log_object(sequence));
        self.sync_dir(record.parent().unwrap_or(&self.root))
    }

    /// Removes an object that nobody needs; one that is gone is fine.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.root.join(name);
        match self.io.remove(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(storage("cannot remove", &path, error)),
            _ => Ok(()),
        }
    }

    /// Moves an object out of the way, durably; nothing reads it there.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn set_aside(&self, name: &str) -> Result<()> {
        let (from, folder) = (self.root.join(name), self.root.join(QUARANTINE));
        self.io.make_dir(&folder).map_err(|error| storage("cannot create", &folder, error))?;
        self.sync_dir(&self.root)?;
        let to = folder.join(format!("{}-{}", name.replace('/', "-"), self.digits()));
        self.io.rename(&from, &to).map_err(|error| storage("cannot move", &from, error))?;
        self.sync_dir(&folder)?;
        self.sync_dir(from.parent().unwrap_or(&self.root))
    }

    /// Makes the names in a folder durable.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn sync_folder(&self, folder: &str) -> Result<()> {
        self.sync_dir(&self.root.join(folder))
    }

    /// Opens any file.
    ///
    /// # Errors
    /// Of the storage, also when it is not there.
    pub fn open(&self, path: &Path) -> Result<File> {
        self.io.open(path).map_err(|error| storage("cannot open", path, error))
    }

    /// Gives a complete, synced file under `incoming/` its name as a pack; durable on return.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn publish_pack(&self, incoming: &Path, name: &PackName) -> Result<()> {
        let target = self.pack_path(name);
        let moved = match self.name(incoming, &target) {
            Ok(moved) => moved,
            // Names are unique (R4), so an existing one was given by a try whose answer was lost.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
            Err(error) => return Err(storage("cannot create", &target, error)),
        };
        self.sync_name(&target, moved)
    }

    /// Where a pack is, or will be.
    pub fn pack_path(&self, name: &PackName) -> PathBuf {
        self.root.join(pack_object(name))
    }

    /// Names in a folder, sorted.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn list(&self, folder: &str) -> Result<Vec<String>> {
        let path = self.root.join(folder);
        self.io.list(&path).map_err(|error| storage("cannot list", &path, error))
    }

    /// Names in a folder, sorted; none when it is not there. Whoever asks must know what that means.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn list_or_none(&self, folder: &str) -> Result<Option<Vec<String>>> {
        let path = self.root.join(folder);
        match self.io.list(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            names => names.map(Some).map_err(|error| storage("cannot list", &path, error)),
        }
    }

    /// Makes the folder that a log record goes into.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn make_log_folder(&self, sequence: u64) -> Result<()> {
        let path = self.root.join(LOG).join(format!("{:020}", sequence / LOG_FOLDER));
        self.io.make_dir(&path).map_err(|error| storage("cannot create", &path, error))?;
        self.sync_dir(&self.root.join(LOG))
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        self.io.sync_dir(path).map_err(|error| storage("cannot sync", path, error))
    }
}

/// The folders of a new repository, each after the one it is in.
fn folders() -> impl Iterator<Item = String> {
    let shards = (0..=255u8).map(|byte| format!("{PACKS}/{byte:02x}"));
    shards.chain([LOG, STATE, INCOMING].map(str::to_owned))
}

/// Name of a pack.
pub fn pack_object(name: &PackName) -> String {
    format!("{PACKS}/{:02x}/{name}", name.0[0])
}

/// Name of a log record.
pub fn log_object(sequence: u64) -> String {
    format!("{LOG}/{:020}/{sequence:020}", sequence / LOG_FOLDER)
}

/// Name of a state digest.
pub fn state_object(sequence: u64) -> String {
    format!("{STATE}/{sequence:020}")
}

/// Name of the configuration.
pub const CONFIG: &str = "config";
/// Folder of packs.
pub const PACKS: &str = "packs";
/// Folder of the log.
pub const LOG: &str = "log";
/// Folder of state digests.
pub const STATE: &str = "state";
/// Folder of what is being written.
pub const INCOMING: &str = "incoming";
/// Folder of what does not belong to the log any more.
const QUARANTINE: &str = "quarantine";
/// Prefix of packs that are being written, or that the log does not know yet.
pub const INCOMING_PACK: &str = "pack-";
/// Prefix of other objects that are being written.
pub const INCOMING_OBJECT: &str = "object-";
/// Folder of the index, which is a cache.
pub const INDEX: &str = "index";
/// Folder of one that is being made.
pub const INDEX_NEW: &str = "index.new";
/// Folder of the counts of references, which is a cache.
pub const REFERENCES: &str = "references";
/// File that says when packs were verified, which is a cache.
pub const VERIFIED: &str = "verified";
/// File that the one writer holds locked.
pub const LOCK: &str = "lock";
/// Folder of room that is kept for when the storage is full.
pub const RESERVE: &str = "reserve";
/// Records in one folder of the log.
pub const LOG_FOLDER: u64 = 10_000;
/// So much is taken into memory before it is known to be what it should be.
const UNPROVEN_BYTES_MAX: u64 = 64 << 20;
/// Read at once where only the hash is wanted.
const HASHED_BYTES: u64 = 1 << 20;
/// Of the hash at the end.
const HASH_BYTES: u64 = 32;
