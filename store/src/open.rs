//! Making a repository, opening one, and putting right what the last process left.

use crate::caches::Caches;
use crate::directory::Directory;
use crate::format::config::{CONFIG_BYTES_MAX, ConfigFile};
use crate::format::event::{AddedPack, Event};
use crate::format::pack::{
    PACK_BYTES_MAX, PackEntry, PackHeader, PackKind, PackName, RECORD_HEADER_BYTES, blob_hash, decode_footer,
    scan_records,
};
use crate::index::{Index, IndexAccess};
use crate::io::{DiskIo, Io};
use crate::local::{Access, Local};
use crate::log::{Author, CommitLog};
use crate::objects::{Created, Incoming, ObjectName, Objects};
use crate::packer::{Arrival, PackMaker};
use crate::rebuild::rebuild_when_failed;
use crate::repository::Inner;
use crate::room::reserve_bytes;
use crate::state::{Pack, State};
use chunker::{Blob, DomainKey};
use mover::{
    Error, LogHead, Pool, RecordError, RepositoryConfig, RepositoryId, Result, SessionId, World, WriterId, blocking,
    digest, with_decoder,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;

impl Local {
    /// The directory of the repository in which `path` lies, or would lie; none when it is in no repository. Programs
    /// ask this because nothing but the repository may write there.
    pub fn around(path: &Path) -> Option<PathBuf> {
        Directory::around(path)
    }

    /// Makes a repository in a new or empty directory. With `like`, it is in the same dedup domain as that repository,
    /// so that blobs copy verbatim. If an earlier try was interrupted, the directory is completed.
    ///
    /// # Errors
    /// `Usage` when there is something already; of the storage.
    pub fn init(path: &Path, like: Option<&RepositoryConfig>, world: &World) -> Result<RepositoryConfig> {
        Self::init_with(path, like, world, Arc::new(DiskIo))
    }

    /// As [`Self::init`], through another way to files.
    ///
    /// # Errors
    /// As [`Self::init`].
    pub fn init_with(
        path: &Path,
        like: Option<&RepositoryConfig>,
        world: &World,
        io: Arc<dyn Io>,
    ) -> Result<RepositoryConfig> {
        let directory = Directory::new(path, io, world.clone());
        let is_new = directory.make_root()?;
        let lock = directory.lock()?;
        let made = directory.make_folders().and_then(|()| configure(&directory, like, world));
        let config = made.inspect_err(|_| directory.unmake(is_new))?.ok_or_else(|| directory.taken())?;
        if let Ok(space) = directory.space() {
            directory.keep_reserve(reserve_bytes(space));
        }
        drop(lock);
        Ok(config)
    }

    /// Opens a repository.
    ///
    /// # Errors
    /// `NotFound` when there is none; `Busy` when another process writes; `Version`, `Integrity`, `RolledBack`; of the
    /// storage.
    pub async fn open(path: &Path, access: Access, pool: Pool, world: World) -> Result<Self> {
        Self::open_with(path, access, pool, world, Arc::new(DiskIo)).await
    }

    /// As [`Self::open`], through another way to files.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_with(path: &Path, access: Access, pool: Pool, world: World, io: Arc<dyn Io>) -> Result<Self> {
        let directory = Directory::new(path, io, world.clone());
        let inner = blocking(move || open(directory, access, pool, world)).await?;
        let local = Self { inner };
        if access == Access::Write {
            local.start_packer();
            local.adopt_incoming().await?;
        }
        Ok(local)
    }

    /// Accepts that the log of this directory ends before, or differs from, what its index has seen, or that a record of it
    /// is lost or damaged: an administrator's decision. It goes on after the last sound record; points committed later are
    /// lost, what is left of their records is set aside, and their packs stay.
    ///
    /// # Errors
    /// `Usage` when nothing was rolled back; as [`Self::open`].
    pub async fn accept_rollback(path: &Path, pool: Pool, world: World) -> Result<LogHead> {
        let directory = Directory::new(path, Arc::new(DiskIo), world.clone());
        let world_of_log = world.clone();
        let accepted = blocking(move || {
            directory.check_folders()?;
            let (config, _lock) = (read_config(&directory)?, directory.lock()?);
            make_missing_folders(&directory, None)?;
            let (caches, id) = (Caches::new(directory.root()), config.config.id);
            let objects: Arc<dyn Objects> = Arc::new(directory);
            let (mut log, damage) = CommitLog::open_sound(objects.clone(), world_of_log, id, config.bytes.clone())?;
            let folder = caches.index();
            let mut index = Index::open(&folder, IndexAccess::Owner, id)?;
            let mut seen = index.applied();
            index.close();
            if damage.is_none() && log.passed(seen)? {
                return Err(Error::usage("the repository was not rolled back, as far as its index knows")
                    .hint("there is nothing to accept: the repository opens as it is"));
            }
            if let Some(damage) = damage {
                tracing::warn!(%damage, "the log continues after record {}; what was committed later is given up", log.state().end().sequence);
                let given_up = log.set_aside_later()?;
                seen = given_up.into_iter().chain([seen]).max_by_key(|end| end.sequence).expect("one at least");
            }
            let author = Author { writer: config.writer, term: log.state().term(config.writer) + 1 };
            // What was packed again, and only there, since the last record that is left is not garbage for that.
            let unknown = unknown_packs(&*objects, &log)?;
            log.append(author, |_| Ok(vec![Event::WriterTerm, Event::NewIncarnation(seen)]))?;
            for packs in unknown.chunks(PACKS_TOGETHER) {
                log.append(author, |_| Ok(vec![Event::PacksAdded(packs.to_vec())]))?;
            }
            // The views belong to the lost end of the log. The index goes last: it is what knows of the rollback.
            Index::remove(&caches.references())?;
            Index::remove(&folder)?;
            Ok(seen)
        });
        let seen = accepted.await?;
        // Opening it makes the index again.
        Self::open(path, Access::Write, pool, world).await?.close().await?;
        Ok(seen)
    }

    fn start_packer(&self) {
        let inner = &self.inner;
        let (objects, world) = (inner.objects.clone(), inner.world.clone());
        let maker = PackMaker { objects, world, config: inner.config.config.clone(), author: inner.log.author() };
        let weak = Arc::downgrade(inner);
        let log_sealed = move || {
            // An error has stopped all writing by now, and every session is told by its next flush.
            if let Some(inner) = weak.upgrade()
                && let Err(error) = inner.append(|_| Ok(Vec::new()))
            {
                tracing::warn!(%error, "durable packs could not be logged");
            }
        };
        inner.packs.start(maker, log_sealed);
    }

    /// Takes over what this directory's writer left under `incoming/` (R5): complete packs are hashed and logged, the
    /// sound records of incomplete packs are packed again. So no chunk that was sent must be sent again.
    async fn adopt_incoming(&self) -> Result<()> {
        let Found { complete, partial, useless } = self.inner.with(find_incoming).await?;
        if !complete.is_empty() {
            let added: Vec<AddedPack> = complete.iter().map(|(_, added)| added.clone()).collect();
            tracing::info!(packs = added.len(), "adopting packs that were durable but not logged");
            self.inner.with(move |inner| inner.append(|_| Ok(vec![Event::PacksAdded(added.clone())]))).await?;
        }
        // What would be saved is sending it again; that nothing can be opened for want of room would cost more.
        if !partial.is_empty()
            && let Err(error) = self.inner.with(|inner| inner.room.check_room()).await
        {
            tracing::warn!(%error, packs = partial.len(), "unfinished packs are given up; what was in them is sent again");
        } else {
            for pack in &partial {
                self.repack(pack.clone()).await?;
            }
        }
        self.inner
            .with(move |inner| {
                if !partial.is_empty() {
                    inner.append(|_| Ok(Vec::new()))?;
                }
                let adopted = complete.into_iter().map(|(pack, _)| pack);
                adopted.chain(partial).chain(useless).for_each(|pack| pack.settle());
                Ok(())
            })
            .await
    }

    async fn repack(&self, pack: Arc<dyn Incoming>) -> Result<()> {
        let sound = self.inner.with(move |inner| sound_records(inner, &*pack)).await?;
        tracing::info!(chunks = sound.len(), "packing again what an unfinished pack holds");
        let packer = self.inner.packs.packer()?;
        for (kind, arrival) in sound {
            packer.append(SessionId::default(), kind, vec![arrival]).await?;
        }
        packer.flush().await
    }
}

fn open(directory: Directory, access: Access, pool: Pool, world: World) -> Result<Arc<Inner>> {
    let config = read_config(&directory)?;
    directory.check_folders()?;
    let lock = match access {
        Access::Write => Some(directory.lock()?),
        Access::Read => None,
    };
    let caches = Caches::new(directory.root());
    if lock.is_some() {
        directory.tell_who_may_read();
        Index::remove(&caches.index_new())?;
    }
    let objects: Arc<dyn Objects> = Arc::new(directory.clone());
    let (id, index_folder) = (config.config.id, caches.index());
    let index_access = if access == Access::Write { IndexAccess::Owner } else { IndexAccess::Guest };
    // The two do not depend on each other, and opening the index takes most of the time.
    let (log, index) = std::thread::scope(|scope| {
        let index = scope.spawn(|| Index::open(&index_folder, index_access, id));
        let log = CommitLog::open(objects.clone(), world.clone(), id, config.bytes.clone());
        (log, index.join().expect("opening the index does not panic"))
    });
    let (log, mut index) = (log?, index?);
    check_rollback(&log, index.applied())?;
    if access == Access::Write && !log.goes_on_from(index.applied())? {
        // A process died when it had accepted a rollback, and before the views of the lost end were gone.
        index.close();
        Index::remove(&caches.references())?;
        Index::remove(&index_folder)?;
        index = Index::open(&index_folder, index_access, id)?;
    }
    if access == Access::Write {
        make_missing_folders(&directory, Some(log.state()))?;
    }
    if access == Access::Write && log.state().end().sequence > 0 {
        // The process that created it may have died before its name was durable, and the index must not know more than
        // a power cut leaves.
        objects.make_durable(&[ObjectName::Record(log.state().end().sequence)])?;
    }
    let author = match access {
        Access::Write => Author { writer: config.writer, term: log.state().term(config.writer) + 1 },
        Access::Read => Author { writer: WriterId::random(&world), term: 0 },
    };
    let state = log.state().clone();
    let inner = Arc::new(Inner::new((objects, caches), (config, pool, world), author, log, index, lock));
    rebuild_when_failed(&inner);
    inner.index.add(&state, |_| None);
    inner.room.keep_reserve();
    Ok(inner)
}

/// Makes the folders that are missing in a copy of a repository: some programs leave out empty folders. A missing
/// folder that held packs is made too, and an error in the log of the program says that these packs are lost.
fn make_missing_folders(directory: &Directory, state: Option<&State>) -> Result<()> {
    for name in directory.missing_folders()? {
        let held = |pack: &&Pack| ObjectName::Pack(pack.added.name).to_string().starts_with(&format!("{name}/"));
        let lost = state.map_or(0, |state| state.packs().values().filter(held).count());
        if lost > 0 {
            tracing::error!(
                folder = name,
                packs = lost,
                "a folder of the repository is missing, with all packs that were in it: bring it back from a copy of the \
                 repository's directory; `windlass verify` shows what is lost without it"
            );
        }
        directory.make_folder(&name)?;
    }
    Ok(())
}

/// Creates the configuration of a new repository; none when somebody else did.
fn configure(
    objects: &dyn Objects,
    like: Option<&RepositoryConfig>,
    world: &World,
) -> Result<Option<RepositoryConfig>> {
    let domain = like.map_or_else(|| DomainKey(world.random_bytes()), |like| like.domain.clone());
    let config = RepositoryConfig { id: RepositoryId::random(world), domain, created: world.now() };
    let file = ConfigFile::new(config.clone(), WriterId::random(world));
    Ok(match objects.create(ObjectName::Config, &file.bytes)? {
        Created::New => Some(config),
        Created::Exists => None,
    })
}

/// Packs that are there and sound, and that this log does not know.
fn unknown_packs(objects: &dyn Objects, log: &CommitLog) -> Result<Vec<AddedPack>> {
    let (state, mut found) = (log.state(), Vec::new());
    for first in 0..=255 {
        for name in objects.packs(first)? {
            if state.pack_number(&name).is_some() || state.was_dropped(&name) {
                continue;
            }
            let Some(bytes) = objects.read(ObjectName::Pack(name), PACK_BYTES_MAX)? else { continue };
            let Ok(header) = PackHeader::decode(&bytes) else { continue };
            let entries = decode_footer(&bytes, header.kind, bytes.len() as u64);
            if header.repository == state.repository()
                && PackName(digest(&bytes)) == name
                && let Ok(entries) = entries
            {
                found.push(added(name, &bytes, &entries)?);
            }
        }
    }
    Ok(found)
}

fn read_config(objects: &dyn Objects) -> Result<ConfigFile> {
    let (place, name) = (objects.place(), ObjectName::Config);
    let bytes = objects.read(name, CONFIG_BYTES_MAX)?;
    let bytes = bytes.ok_or_else(|| {
        Error::not_found(format!("{place} is not a repository"))
            .hint(format!("check the path, or create a repository with `windlass init -r {place}`"))
    })?;
    ConfigFile::decode(&bytes).map_err(|error| Error::from(error).context(format_args!("{place}/{name}")))
}

/// Fails when the log was rolled back to before `seen`. A log whose end is gone still chains without error, so only an
/// index that has seen more can show this (R15).
fn check_rollback(log: &CommitLog, seen: LogHead) -> Result<()> {
    if log.passed(seen)? {
        return Ok(());
    }
    Err(Error::rolled_back(format!(
        "the log ends at record {}, but record {} was seen before: the repository was rolled back or replaced",
        log.state().end().sequence,
        seen.sequence
    ))
    .hint("bring the newer files back; if they are lost, run `windlass doctor --accept-rollback -r ADDR`"))
}

/// What an earlier process left.
#[derive(Default)]
struct Found {
    complete: Vec<(Arc<dyn Incoming>, AddedPack)>,
    partial: Vec<Arc<dyn Incoming>>,
    useless: Vec<Arc<dyn Incoming>>,
}

fn find_incoming(inner: &Inner) -> Result<Found> {
    let mut found = Found::default();
    let state = inner.state();
    for incoming in inner.objects.left_packs()? {
        let bytes = read_incoming(&*incoming)?;
        let header = match PackHeader::decode(&bytes) {
            Ok(header) => header,
            // A newer program knows what it is for.
            Err(RecordError::Newer { .. }) => continue,
            // One of a process that died early, or one that a power cut left its length and not its bytes.
            Err(_) => {
                found.useless.push(incoming);
                continue;
            }
        };
        let own = header.repository == inner.config.config.id
            && header.writer == inner.config.writer
            // The present term too: a process may have died before its first record.
            && header.term <= inner.log.author().term;
        if !own {
            continue;
        }
        match decode_footer(&bytes, header.kind, bytes.len() as u64) {
            // After a power cut the footer may be there and what lies before it not: the records are looked at too.
            Ok(entries) if all_records_sound(&bytes, &entries) => {
                let pack = PackName(digest(&bytes));
                if state.pack_number(&pack).is_some() || state.was_dropped(&pack) {
                    found.useless.push(incoming);
                } else {
                    incoming.publish(&pack)?;
                    found.complete.push((incoming, added(pack, &bytes, &entries)?));
                }
            }
            _ => found.partial.push(incoming),
        }
    }
    Ok(found)
}

fn all_records_sound(bytes: &[u8], entries: &[PackEntry]) -> bool {
    let Ok(header) = PackHeader::decode(bytes) else { return false };
    scan_records(bytes, &header.nonce) == entries
}

fn added(name: PackName, bytes: &[u8], entries: &[PackEntry]) -> Result<AddedPack> {
    let kind = PackHeader::decode(bytes)?.kind;
    let chunks = u32::try_from(entries.len()).map_err(|_| Error::integrity("a pack of too many chunks"))?;
    Ok(AddedPack { name, kind, bytes: bytes.len() as u64, chunks })
}

fn read_incoming(incoming: &dyn Incoming) -> Result<Vec<u8>> {
    let pack = incoming.open()?;
    let length = pack.length()?.min(PACK_BYTES_MAX);
    pack.read(0, usize::try_from(length).expect("bounded"))
}

/// The records of an unfinished pack whose chunks are what they say, and that are not stored elsewhere.
fn sound_records(inner: &Inner, incoming: &dyn Incoming) -> Result<Vec<(PackKind, Arrival)>> {
    let bytes = bytes::Bytes::from(read_incoming(incoming)?);
    let header = PackHeader::decode(&bytes)?;
    let entries = scan_records(&bytes, &header.nonce);
    let ids: Vec<_> = entries.iter().map(|entry| entry.id).collect();
    let mut plain = Vec::new();
    let mut sound = Vec::new();
    for (entry, place) in entries.iter().zip(inner.locate(&ids)?) {
        let from = usize::try_from(entry.offset).expect("bounded") + RECORD_HEADER_BYTES;
        let blob = bytes.slice(from..from + usize::try_from(entry.blob_bytes).expect("bounded"));
        let Ok(blob) = Blob::parse(blob) else { continue };
        plain.clear();
        let good = with_decoder(|decoder| decoder.decode_verified(&inner.keys, &entry.id, &blob, &mut plain)).is_ok();
        if good && place.is_none() {
            let hash = blob_hash(blob.bytes());
            // Nobody else stores while it is opened.
            let missing_at = Some(u64::MAX);
            sound.push((PackKind::of(entry.kind), Arrival { id: entry.id, blob, hash, missing_at }));
        }
    }
    Ok(sound)
}

/// Packs in one record.
const PACKS_TOGETHER: usize = 4096;
