//! A repository's objects as files below a directory. Files, links and folders are known here and in [`crate::io`] alone.
//!
//! | what | where | how |
//! |---|---|---|
//! | objects | under their names | written under `incoming/`, synced, named, and the folder of the name synced |
//! | what is being written | `incoming/` | a pack stays there, too, until the log knows it |
//! | what does not belong to the log any more | `quarantine/<name>-<16 digits>` | moved there |
//! | room that is kept for when the storage is full | `reserve/` | files that nothing is written into |
//! | the one writer's lock | `lock` | held with flock(2) |
//!
//! How a file gets its name is in [`naming`]. For the other promises, a file is synced before it gets its name, and the
//! folder afterwards.

mod incoming;
mod lock;
mod making;
mod naming;
mod reserve;

use crate::error::{reading, storage};
use crate::format::pack::{PackKind, PackName};
use crate::io::Io;
use crate::objects::{
    Created, Incoming, LOG, Object, ObjectName, Objects, PACKS, RECORDS_TOGETHER, STATE, Space, UNPROVEN_BYTES_MAX,
};
use incoming::IncomingFile;
use mover::{Error, Result, World};
use naming::Naming;
use std::fs::File;
use std::io::{self, ErrorKind, IoSlice};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use lock::Lock;

/// The directory and the way to its files.
#[derive(Clone)]
pub struct Directory {
    root: PathBuf,
    io: Arc<dyn Io>,
    world: World,
    naming: Arc<Naming>,
}

/// An open file of the repository.
struct OpenFile {
    io: Arc<dyn Io>,
    file: File,
    /// As errors call it.
    path: PathBuf,
    /// Turns an I/O error on this file into an error of the store.
    fail: fn(&Path, io::Error) -> Error,
}

impl Object for OpenFile {
    fn length(&self) -> Result<u64> {
        self.io.length(&self.file).map_err(|error| (self.fail)(&self.path, error))
    }

    fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>> {
        self.io.read_at(&self.file, offset, length).map_err(|error| (self.fail)(&self.path, error))
    }
}

/// An error of a file that may be missing or incomplete without damage to the repository.
fn unread(path: &Path, error: io::Error) -> Error {
    storage("cannot read", path, error)
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

    fn path(&self, name: ObjectName) -> PathBuf {
        self.root.join(name.to_string())
    }

    /// A new name under `incoming/`.
    fn temporary(&self, prefix: &str) -> PathBuf {
        self.root.join(INCOMING).join(format!("{prefix}{}", self.digits()))
    }

    /// Random digits for a name: no other file has a name with them.
    fn digits(&self) -> String {
        self.world.random_bytes::<8>().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Removes a file under `incoming/` that is not needed any more. Failing is harmless: the next opening tries again.
    fn remove_incoming(&self, path: &Path) {
        if let Err(error) = self.io.remove(path) {
            tracing::debug!(path = %path.display(), %error, "left behind");
        }
    }

    /// Whether a file has these bytes; none when it is not there. Nothing is read of one that is longer.
    fn has(&self, path: &Path, bytes: &[u8]) -> Result<Option<bool>> {
        let Some(file) = self.open_if_there(path)? else { return Ok(None) };
        Ok(Some(file.length()? == bytes.len() as u64 && file.read(0, bytes.len())? == bytes))
    }

    fn open_if_there(&self, path: &Path) -> Result<Option<OpenFile>> {
        match self.io.open(path) {
            Ok(file) => Ok(Some(OpenFile { io: self.io.clone(), file, path: path.to_owned(), fail: unread })),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unread(path, error)),
        }
    }

    fn open_within(&self, name: ObjectName, bytes_max: u64) -> Result<Option<(OpenFile, u64)>> {
        let Some(file) = self.open_if_there(&self.path(name))? else { return Ok(None) };
        let length = file.length()?;
        if length > bytes_max {
            let path = file.path.display();
            return Err(Error::integrity(format!("{path} has {length} bytes, more than the format allows")));
        }
        Ok(Some((file, length)))
    }

    fn is_there(&self, path: &Path) -> bool {
        !matches!(self.io.open(path), Err(error) if error.kind() == ErrorKind::NotFound)
    }

    /// Makes a new name durable. If the file was moved, its old folder is synced first. After a power cut a file system
    /// without a journal may then have the file in neither folder, but never in both.
    fn sync_name(&self, target: &Path, moved: bool) -> Result<()> {
        if moved {
            self.sync_dir(&self.root.join(INCOMING))?;
        }
        self.sync_dir(self.folder_of(target))
    }

    fn folder_of<'a>(&'a self, path: &'a Path) -> &'a Path {
        path.parent().unwrap_or(&self.root)
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        self.io.sync_dir(path).map_err(|error| storage("cannot sync", path, error))
    }

    fn make_dir(&self, path: &Path) -> Result<()> {
        self.io.make_dir(path).map_err(|error| storage("cannot create", path, error))
    }

    /// Names in a folder, sorted.
    fn list(&self, folder: &str) -> Result<Vec<String>> {
        let path = self.root.join(folder);
        self.io.list(&path).map_err(|error| storage("cannot list", &path, error))
    }

    /// Names in a folder, sorted; none when it is not there. The caller must know whether the folder may be missing.
    fn list_or_none(&self, folder: &str) -> Result<Option<Vec<String>>> {
        let path = self.root.join(folder);
        match self.io.list(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            names => names.map(Some).map_err(|error| storage("cannot list", &path, error)),
        }
    }
}

impl Objects for Directory {
    fn place(&self) -> String {
        self.root.display().to_string()
    }

    fn create(&self, name: ObjectName, bytes: &[u8]) -> Result<Created> {
        let (target, temporary) = (self.path(name), self.temporary(INCOMING_OBJECT));
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

    fn replace(&self, name: ObjectName, bytes: &[u8]) -> Result<()> {
        let (target, temporary) = (self.path(name), self.temporary(INCOMING_OBJECT));
        let file = self.io.create(&temporary);
        let written = file.and_then(|file| self.io.append(&file, &mut [IoSlice::new(bytes)]));
        written.and_then(|()| self.io.rename(&temporary, &target)).map_err(|error| {
            self.remove_incoming(&temporary);
            storage("cannot replace", &target, error)
        })
    }

    fn read(&self, name: ObjectName, bytes_max: u64) -> Result<Option<Vec<u8>>> {
        let Some((file, length)) = self.open_within(name, bytes_max)? else { return Ok(None) };
        file.read(0, in_memory(length)?).map(Some)
    }

    fn read_hashed(&self, name: ObjectName, bytes_max: u64) -> Result<Option<Vec<u8>>> {
        let Some((file, length)) = self.open_within(name, bytes_max)? else { return Ok(None) };
        if length > UNPROVEN_BYTES_MAX {
            let body = length - HASH_BYTES;
            let mut hasher = blake3::Hasher::new();
            for at in (0..body).step_by(HASHED_BYTES as usize) {
                hasher.update(&file.read(at, in_memory(HASHED_BYTES.min(body - at))?)?);
            }
            if file.read(body, HASH_BYTES as usize)? != hasher.finalize().as_bytes() {
                return Err(Error::integrity(format!("{} does not match its hash", file.path.display())));
            }
        }
        file.read(0, in_memory(length)?).map(Some)
    }

    fn open_pack(&self, name: &PackName) -> Result<Arc<dyn Object>> {
        let name = ObjectName::Pack(*name);
        let path = self.path(name);
        let file = self.io.open(&path).map_err(|error| reading(&path, error))?;
        Ok(Arc::new(OpenFile { io: self.io.clone(), file, path: name.to_string().into(), fail: reading }))
    }

    fn begin_pack(&self, kind: PackKind) -> Result<Arc<dyn Incoming>> {
        Ok(Arc::new(IncomingFile::create(self, kind)?))
    }

    fn left_packs(&self) -> Result<Vec<Arc<dyn Incoming>>> {
        let mut left: Vec<Arc<dyn Incoming>> = Vec::new();
        for name in self.list(INCOMING)? {
            let path = self.root.join(INCOMING).join(&name);
            if name.starts_with(INCOMING_PACK) {
                left.push(Arc::new(IncomingFile::left(self, path)));
            } else if name.starts_with(INCOMING_OBJECT) {
                self.remove_incoming(&path);
            }
        }
        Ok(left)
    }

    fn packs(&self, first: u8) -> Result<Vec<PackName>> {
        let names = self.list(&format!("{PACKS}/{first:02x}"))?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).filter(|name: &PackName| name.0[0] == first).collect())
    }

    fn records(&self, numbers: Range<u64>, most: usize) -> Result<Vec<u64>> {
        let mut found = Vec::new();
        for folder in self.list(LOG)? {
            let Ok(number) = folder.parse::<u64>() else { continue };
            let begins = number.saturating_mul(RECORDS_TOGETHER);
            if number < numbers.start / RECORDS_TOGETHER || begins >= numbers.end || found.len() >= most {
                continue;
            }
            let folder = format!("{LOG}/{folder}");
            let is_record =
                |name: &str, number: u64| ObjectName::Record(number).to_string() == format!("{folder}/{name}");
            let names = self.list(&folder)?;
            let there = names.iter().filter_map(|name| name.parse().ok().filter(|number| is_record(name, *number)));
            found.extend(there.filter(|number| numbers.contains(number)));
        }
        found.sort_unstable();
        found.truncate(most);
        Ok(found)
    }

    fn digests(&self) -> Result<Vec<u64>> {
        // A folder that is not there had none: without it, and without the records that they stand for, replay fails.
        let names = self.list_or_none(STATE)?.unwrap_or_default();
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    fn remove(&self, name: ObjectName) -> Result<()> {
        let path = self.path(name);
        match self.io.remove(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(storage("cannot remove", &path, error)),
            _ => Ok(()),
        }
    }

    fn set_aside(&self, name: ObjectName) -> Result<()> {
        let (from, folder) = (self.path(name), self.root.join(QUARANTINE));
        self.make_dir(&folder)?;
        self.sync_dir(&self.root)?;
        let to = folder.join(format!("{}-{}", name.to_string().replace('/', "-"), self.digits()));
        self.io.rename(&from, &to).map_err(|error| storage("cannot move", &from, error))?;
        self.sync_dir(&folder)?;
        self.sync_dir(self.folder_of(&from))
    }

    /// Makes the folder that it goes into.
    fn expect_record(&self, sequence: u64) -> Result<()> {
        let record = self.path(ObjectName::Record(sequence));
        self.make_dir(self.folder_of(&record))?;
        self.sync_dir(&self.root.join(LOG))
    }

    fn make_durable(&self, names: &[ObjectName]) -> Result<()> {
        let paths: Vec<PathBuf> = names.iter().map(|name| self.path(*name)).collect();
        let mut folders: Vec<&Path> = paths.iter().map(|path| self.folder_of(path)).collect();
        folders.dedup();
        folders.into_iter().try_for_each(|folder| self.sync_dir(folder))
    }

    fn space(&self) -> Result<Space> {
        self.io.space(&self.root).map_err(|error| storage("cannot ask for the room on", &self.root, error))
    }

    fn keep_reserve(&self, bytes: u64) -> bool {
        self.make_reserve(bytes)
    }

    fn give_up_reserve(&self) -> bool {
        self.remove_reserve()
    }
}

fn in_memory(bytes: u64) -> Result<usize> {
    usize::try_from(bytes).map_err(|_| Error::internal("an object over the address space"))
}

/// Folder of what is being written.
const INCOMING: &str = "incoming";
/// Folder of what does not belong to the log any more.
const QUARANTINE: &str = "quarantine";
/// Prefix of packs that are being written, or that the log does not know yet.
const INCOMING_PACK: &str = "pack-";
/// Prefix of other objects that are being written.
const INCOMING_OBJECT: &str = "object-";
/// Bytes that are read at a time to compute the hash of a long file.
const HASHED_BYTES: u64 = 1 << 20;
/// Length of the hash at the end of a file.
const HASH_BYTES: u64 = 32;
