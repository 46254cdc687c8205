//! Making a repository, opening one, and putting right what the last process left.

use crate::directory::{
    CONFIG, Created, Directory, INCOMING, INCOMING_OBJECT, INCOMING_PACK, INDEX, INDEX_NEW, LOCK, LOG, PACKS,
    REFERENCES, RESERVE, STATE, pack_object,
};
use crate::error::storage;
use crate::format::config::{CONFIG_MAGIC, ConfigFile};
use crate::format::event::{AddedPack, Event};
use crate::format::pack::{
    PACK_BYTES_MAX, PackEntry, PackHeader, PackKind, PackName, RECORD_HEADER_BYTES, blob_hash, decode_footer,
    scan_records,
};
use crate::index::{Index, IndexAccess};
use crate::io::{DiskIo, Io, open_regular};
use crate::local::{Access, Inner, Local};
use crate::log::{Author, CommitLog};
use crate::packer::{Arrival, PackMaker, Packer};
use crate::room::{reserve_bytes, space_on};
use crate::state::{Pack, State};
use chunker::{Blob, DomainKey};
use mover::{
    Error, LogHead, Pool, RecordError, RepositoryConfig, RepositoryId, Result, SessionId, World, WriterId, blocking,
    digest, with_decoder,
};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

impl Local {
    /// The directory of the repository in which `path` lies, or would lie, when it is in one: nothing but a repository writes
    /// there.
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

    /// Makes a repository in a new or empty directory. `like`: in the same dedup domain, so that blobs copy verbatim.
    /// A directory in which an earlier try was broken off is completed.
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
        let is_new = !path.exists();
        directory.io().make_dir(path).map_err(|error| storage("cannot create", path, error))?;
        let ours = [PACKS, LOG, STATE, INCOMING, RESERVE, LOCK];
        let taken = |why: &str| {
            Error::usage(format!("{} {why}", path.display())).hint("choose a new or empty directory for the repository")
        };
        for name in directory.list("")? {
            match name.as_str() {
                CONFIG => return Err(taken("already holds a repository")),
                name if ours.contains(&name) => {}
                // What a file system of the ext family has from the start.
                LOST_AND_FOUND if path.join(LOST_AND_FOUND).is_dir() => {}
                _ => return Err(taken("is not empty")),
            }
        }
        directory.check_folders()?;
        directory.make_private()?;
        let lock = take_lock(&directory)?;
        directory.hold_alone();
        directory.drop_claims();
        let made = Self::fill(&directory, like, world);
        let config =
            made.inspect_err(|_| clean_up(&directory, is_new))?.ok_or_else(|| taken("already holds a repository"))?;
        if let Ok(space) = space_on(&directory) {
            directory.make_reserve(reserve_bytes(space));
        }
        drop(lock);
        Ok(config)
    }

    /// Makes what a new repository has; none when somebody else made one.
    fn fill(directory: &Directory, like: Option<&RepositoryConfig>, world: &World) -> Result<Option<RepositoryConfig>> {
        directory.make_folders()?;
        let domain = like.map_or_else(|| DomainKey(world.random_bytes()), |like| like.domain.clone());
        let config = RepositoryConfig { id: RepositoryId::random(world), domain, created: world.now() };
        let file = ConfigFile::new(config.clone(), WriterId::random(world));
        Ok(match directory.create(CONFIG, &file.bytes)? {
            Created::New => Some(config),
            Created::Exists => None,
        })
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
        let accepted = blocking(move || {
            directory.check_folders()?;
            let (config, _lock) = (read_config(&directory)?, take_lock(&directory)?);
            directory.hold_alone();
            directory.drop_claims();
            make_missing_folders(&directory, None)?;
            let (mut log, damage) = CommitLog::open_sound(directory.clone(), config.config.id, config.bytes.clone())?;
            let folder = directory.root().join(INDEX);
            let mut index = Index::open(&folder, IndexAccess::Owner, config.config.id)?;
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
            let unknown = unknown_packs(&directory, &log)?;
            log.append(author, |_| Ok(vec![Event::WriterTerm, Event::NewIncarnation(seen)]))?;
            for packs in unknown.chunks(PACKS_TOGETHER) {
                log.append(author, |_| Ok(vec![Event::PacksAdded(packs.to_vec())]))?;
            }
            // The views belong to the lost end of the log. The index goes last: it is what knows of the rollback.
            Index::remove(&directory.root().join(REFERENCES))?;
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
        let (directory, config, author) = (inner.directory.clone(), inner.config.config.clone(), inner.author);
        let weak = Arc::downgrade(inner);
        let log_sealed = move || {
            // An error has stopped all writing by now, and every session is told by its next flush.
            if let Some(inner) = weak.upgrade()
                && let Err(error) = inner.append(|_| Ok(Vec::new()))
            {
                tracing::warn!(%error, "durable packs could not be logged");
            }
        };
        let maker = PackMaker { directory, config, author };
        inner.set_packer(Some(Packer::start(maker, inner.pending.clone(), log_sealed)));
    }

    /// Takes over what this directory's writer left under `incoming/` (R5): complete packs are hashed and logged, the
    /// sound records of others are packed again, so that nothing that was sent must be sent again.
    async fn adopt_incoming(&self) -> Result<()> {
        let Found { complete, partial, useless } = self.with(find_incoming).await?;
        if !complete.is_empty() {
            let added: Vec<AddedPack> = complete.iter().map(|(_, added)| added.clone()).collect();
            tracing::info!(packs = added.len(), "adopting packs that were durable but not logged");
            self.with(move |inner| inner.append(|_| Ok(vec![Event::PacksAdded(added.clone())]))).await?;
        }
        // What would be saved is sending it again; that nothing can be opened for want of room would cost more.
        if !partial.is_empty()
            && let Err(error) = self.with(Inner::check_room).await
        {
            tracing::warn!(%error, packs = partial.len(), "unfinished packs are given up; what was in them is sent again");
        } else {
            for path in &partial {
                self.repack(path.clone()).await?;
            }
        }
        self.with(move |inner| {
            if !partial.is_empty() {
                inner.append(|_| Ok(Vec::new()))?;
            }
            let adopted = complete.into_iter().map(|(path, _)| path);
            adopted.chain(partial).chain(useless).for_each(|path| inner.directory.remove_incoming(&path));
            Ok(())
        })
        .await
    }

    async fn repack(&self, path: PathBuf) -> Result<()> {
        let sound = self.with(move |inner| sound_records(inner, &path)).await?;
        tracing::info!(chunks = sound.len(), "packing again what an unfinished pack holds");
        let packer = self.inner.packer()?;
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
        Access::Write => Some(take_lock(&directory)?),
        Access::Read => None,
    };
    if lock.is_some() {
        directory.hold_alone();
        directory.drop_claims();
        directory.tell_who_may_read();
        Index::remove(&directory.root().join(INDEX_NEW))?;
    }
    let id = config.config.id;
    let index_folder = directory.root().join(INDEX);
    let index_access = if access == Access::Write { IndexAccess::Owner } else { IndexAccess::Guest };
    // The two do not depend on each other, and opening the index takes most of the time.
    let (log, index) = std::thread::scope(|scope| {
        let index = scope.spawn(|| Index::open(&index_folder, index_access, id));
        let log = CommitLog::open(directory.clone(), id, config.bytes.clone());
        (log, index.join().expect("opening the index does not panic"))
    });
    let (log, mut index) = (log?, index?);
    check_rollback(&log, index.applied())?;
    if access == Access::Write && !log.goes_on_from(index.applied())? {
        // A process died when it had accepted a rollback, and before the views of the lost end were gone.
        index.close();
        Index::remove(&directory.root().join(REFERENCES))?;
        Index::remove(&index_folder)?;
        index = Index::open(&index_folder, index_access, id)?;
    }
    if access == Access::Write {
        make_missing_folders(&directory, Some(log.state()))?;
    }
    if access == Access::Write && log.state().end().sequence > 0 {
        // The process that created it may have died before its name was durable, and the index must not know more than
        // a power cut leaves.
        directory.sync_log_folder(log.state().end().sequence)?;
    }
    let author = match access {
        Access::Write => Author { writer: config.writer, term: log.state().term(config.writer) + 1 },
        Access::Read => Author { writer: WriterId::random(&world), term: 0 },
    };
    let state = log.state().clone();
    let inner = Inner::new((directory, config, pool, world), author, log, index, lock);
    let inner = Arc::new(inner);
    let _ = inner.me.set(Arc::downgrade(&inner));
    inner.index_new_packs(&state);
    inner.keep_reserve();
    Ok(inner)
}

/// Makes the folders again that a copy of a repository lacks, because whoever made it left empty ones out. One that held
/// packs is made too, and what was in it is told as lost.
fn make_missing_folders(directory: &Directory, state: Option<&State>) -> Result<()> {
    for name in directory.missing_folders()? {
        let held = |pack: &&Pack| pack_object(&pack.added.name).starts_with(&format!("{name}/"));
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

/// Takes away again what an init made that came to nothing.
fn clean_up(directory: &Directory, is_new: bool) {
    // Unless the last step took effect and only its answer was lost.
    if !matches!(directory.read(CONFIG, CONFIG_BYTES_MAX), Ok(None)) {
        return;
    }
    for name in directory.list_or_none(INCOMING).ok().flatten().unwrap_or_default() {
        if name.starts_with(INCOMING_OBJECT) {
            directory.remove_incoming(&directory.root().join(INCOMING).join(name));
        }
    }
    directory.remove_folders();
    let _ = directory.remove(LOCK);
    if is_new {
        let _ = directory.io().remove_dir(directory.root());
    }
}

/// Packs that are there and sound, and that this log does not know.
fn unknown_packs(directory: &Directory, log: &CommitLog) -> Result<Vec<AddedPack>> {
    let (state, mut found) = (log.state(), Vec::new());
    for byte in 0..=255u8 {
        for name in directory.list(&format!("{PACKS}/{byte:02x}"))? {
            let Ok(name) = name.parse::<PackName>() else { continue };
            if state.pack_number(&name).is_some() || state.was_dropped(&name) {
                continue;
            }
            let Some(bytes) = directory.read(&pack_object(&name), PACK_BYTES_MAX)? else { continue };
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

fn read_config(directory: &Directory) -> Result<ConfigFile> {
    let root = directory.root().display();
    let bytes = directory.read(CONFIG, CONFIG_BYTES_MAX)?;
    let bytes = bytes.ok_or_else(|| {
        Error::not_found(format!("{root} is not a repository"))
            .hint(format!("check the path, or create a repository with `windlass init -r {root}`"))
    })?;
    ConfigFile::decode(&bytes).map_err(|error| Error::from(error).context(format_args!("{root}/{CONFIG}")))
}

/// One process adds packs; the lock goes with the process, so it is never stale.
fn take_lock(directory: &Directory) -> Result<File> {
    let path = directory.root().join(LOCK);
    let fail = |error| storage("cannot open", &path, error);
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = open_regular(&path, &mut options).map_err(fail)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            let _ = (&file).take(20).read_to_string(&mut holder);
            let holder = holder.trim();
            let by = if holder.is_empty() { String::new() } else { format!(" by process {holder}") };
            return Err(Error::busy(format!("{} is in use{by}", directory.root().display()))
                .hint("wait until it has ended, or use --wait; a repository that windlass-store serves is used as quic://HOST/NAME"));
        }
        Err(error) => return Err(storage("cannot lock", &path, error.into())),
    }
    // For the message above only.
    let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

/// A valid beginning of a log chains perfectly; only somebody who saw more can tell that the end is gone (R15).
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

/// What is under `incoming/`.
#[derive(Default)]
struct Found {
    complete: Vec<(PathBuf, AddedPack)>,
    partial: Vec<PathBuf>,
    useless: Vec<PathBuf>,
}

fn find_incoming(inner: &Inner) -> Result<Found> {
    let mut found = Found::default();
    let state = inner.state();
    for name in inner.directory.list(INCOMING)? {
        let path = inner.directory.root().join(INCOMING).join(&name);
        if name.starts_with(INCOMING_OBJECT) {
            found.useless.push(path);
            continue;
        }
        if !name.starts_with(INCOMING_PACK) {
            continue;
        }
        let bytes = read_incoming(inner, &path)?;
        let header = match PackHeader::decode(&bytes) {
            Ok(header) => header,
            // A newer program knows what it is for.
            Err(RecordError::Newer { .. }) => continue,
            // A file of a process that died early, or one that a power cut left its length and not its bytes.
            Err(_) => {
                found.useless.push(path);
                continue;
            }
        };
        let own = header.repository == inner.config.config.id
            && header.writer == inner.config.writer
            // The present term too: a process may have died before its first record.
            && header.term <= inner.author.term;
        if !own {
            continue;
        }
        match decode_footer(&bytes, header.kind, bytes.len() as u64) {
            // After a power cut the footer may be there and what lies before it not: the records are looked at too.
            Ok(entries) if all_records_sound(&bytes, &entries) => {
                let pack = PackName(digest(&bytes));
                if state.pack_number(&pack).is_some() || state.was_dropped(&pack) {
                    found.useless.push(path);
                } else {
                    let file = inner.directory.open(&path)?;
                    let synced = inner.directory.io().sync(&file);
                    synced.map_err(|error| storage("cannot sync", &path, error))?;
                    inner.directory.publish_pack(&path, &pack)?;
                    found.complete.push((path, added(pack, &bytes, &entries)?));
                }
            }
            _ => found.partial.push(path),
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

fn read_incoming(inner: &Inner, path: &Path) -> Result<Vec<u8>> {
    let file = inner.directory.open(path)?;
    let fail = |error| storage("cannot read", path, error);
    let length = inner.directory.io().length(&file).map_err(fail)?.min(PACK_BYTES_MAX);
    inner.directory.io().read_at(&file, 0, usize::try_from(length).expect("bounded")).map_err(fail)
}

/// The records of an unfinished pack whose chunks are what they say, and that are not stored elsewhere.
fn sound_records(inner: &Inner, path: &Path) -> Result<Vec<(PackKind, Arrival)>> {
    let bytes = bytes::Bytes::from(read_incoming(inner, path)?);
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

const LOST_AND_FOUND: &str = "lost+found";
/// Packs in one record.
const PACKS_TOGETHER: usize = 4096;
const CONFIG_BYTES_MAX: u64 = 64 << 10;
