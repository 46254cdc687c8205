//! The index: chunk id → places in packs. A view of the log in RocksDB, tagged with the record it has applied; nothing
//! is lost with it. Packs that are not in RocksDB yet are kept in memory; so are packs that cannot be written there,
//! because another process owns the database.

mod had;

use crate::error::{came_from_passing, rocks};
use crate::format::pack::PackEntry;
use chunker::{ChunkId, ChunkKind};
use had::HadRows;
use mover::{Error, LogHead, RepositoryId, Result, Shape, codec};
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, DB, Env, FlushOptions, IteratorMode, Options, WriteBatch,
    WriteOptions,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{LazyLock, Mutex};

/// Where a chunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// The pack's number in the log's order.
    pub pack: u32,
    /// Offset of the record in the pack.
    pub offset: u32,
    /// Length of the blob.
    pub blob_bytes: u32,
    /// What it decodes to: kind and length, as [`Shape`] has them.
    shape: u32,
}

/// How the index may use the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexAccess {
    /// This process holds the repository's lock.
    Owner,
    /// Another process may own the folder: nothing is written there.
    Guest,
}

/// The index of one repository in one process.
pub struct Index {
    database: Option<DB>,
    access: IndexAccess,
    is_makeshift: bool,
    /// Places of packs that are not in the database.
    overlay: HashMap<ChunkId, Vec<Place>>,
    /// What owners have had, where there is no database to write to.
    had: Mutex<HadRows>,
    /// Packs with a lower number are in the index.
    next_pack: u32,
    /// The end of the log as the database has it.
    applied: LogHead,
    /// Packs with a lower number that could not be read, in this process or an earlier one.
    skipped: BTreeSet<u32>,
    /// Packs that an earlier process could not read, and that were not tried again yet.
    again: BTreeSet<u32>,
    /// Packs put into the database's memory since the last flush.
    unflushed: AtomicU32,
    /// A number that no other index of this process has.
    instance: u64,
}

/// A prepared change of rows. The rows were read before the log was locked, so that commits wait only for the writing.
pub struct Forgetting {
    /// The instance of the index, and the number of its last write when the rows were read.
    made_for: (u64, u64),
    batch: WriteBatch,
}

/// What the database says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Tag {
    version: u16,
    repository: [u8; 16],
    sequence: u64,
    hash: [u8; 32],
    /// Packs with a lower number are in it.
    packs: u32,
}

impl Tag {
    const fn end(&self) -> LogHead {
        LogHead { sequence: self.sequence, hash: self.hash }
    }
}

impl Index {
    /// Opens the index under `folder`. An index that is damaged, or of another repository, is deleted and begins empty:
    /// [`Self::next_pack`] tells which packs are to be added. An index that cannot be opened now, because there is no
    /// room or the disk does not answer, is kept and only read: then [`Self::is_makeshift`] is true.
    ///
    /// # Errors
    /// When the folder cannot be looked at or removed.
    pub fn open(folder: &Path, access: IndexAccess, repository: RepositoryId) -> Result<Self> {
        let fresh = |database| Self { database, access, ..Self::in_memory() };
        // RocksDB would wait for a pipe for ever.
        let opened = only_files(folder).and_then(|()| {
            let opened = match access {
                IndexAccess::Owner => DB::open(&options(BLOCK_CACHE_BYTES, WRITE_BUFFER_BYTES), folder),
                IndexAccess::Guest => open_as_guest(folder),
            };
            opened.map_err(|error| Error::store_io("index").because(error))
        });
        let tag = opened.and_then(|database| {
            let tag = database.get(TAG_KEY).map_err(|error| Error::store_io("index").because(error))?;
            let tag = tag.map(|bytes| codec::decode::<Tag, TAG_BYTES_MAX>(&bytes)).transpose()?;
            let skipped = database.get(SKIPPED_KEY).map_err(|error| Error::store_io("index").because(error))?;
            let skipped = skipped.map(|bytes| codec::decode::<BTreeSet<u32>, SKIPPED_BYTES_MAX>(&bytes)).transpose()?;
            Ok((database, tag.map(|tag| (tag, skipped.unwrap_or_default()))))
        });
        match (tag, access) {
            (Ok((database, Some((tag, skipped)))), _)
                if tag.version == INDEX_VERSION && tag.repository == repository.0 =>
            {
                let applied = tag.end();
                let again = skipped.clone();
                Ok(Self { next_pack: tag.packs, applied, skipped, again, ..fresh(Some(database)) })
            }
            (Ok((database, None)), IndexAccess::Owner) => Ok(fresh(Some(database))),
            (_, IndexAccess::Guest) => Ok(fresh(None)),
            (Err(error), IndexAccess::Owner) if came_from_passing(&error) => {
                Self::makeshift(folder, repository, &error)
            }
            (unusable, IndexAccess::Owner) => {
                // What it remembers of the log holds in every version.
                let applied = match &unusable {
                    Ok((_, Some((tag, _)))) if tag.repository == repository.0 => tag.end(),
                    _ => LogHead::default(),
                };
                let why =
                    unusable.err().map_or_else(|| "of another version or repository".into(), |error| error.to_string());
                tracing::warn!(why, "the index cannot be used and is rebuilt");
                Self::remove(folder)?;
                match DB::open(&options(BLOCK_CACHE_BYTES, WRITE_BUFFER_BYTES), folder) {
                    Ok(database) => Ok(Self { applied, ..fresh(Some(database)) }),
                    Err(error) => Self::makeshift(folder, repository, &Error::store_io("index").because(error)),
                }
            }
        }
    }

    /// What can be read of an index that cannot be opened for writing now; the rest stands in memory.
    fn makeshift(folder: &Path, repository: RepositoryId, why: &Error) -> Result<Self> {
        tracing::warn!(
            error = %why,
            "the index cannot be opened for writing now, and stays as it is; what it lacks is read from the packs"
        );
        let guest = Self::open(folder, IndexAccess::Guest, repository)?;
        Ok(Self { is_makeshift: true, ..guest })
    }

    /// True when this stands in for an index that could not be opened for writing.
    pub const fn is_makeshift(&self) -> bool {
        self.is_makeshift
    }

    /// An empty one that has no database.
    pub fn in_memory() -> Self {
        static INSTANCES: AtomicU64 = AtomicU64::new(0);
        Self {
            instance: INSTANCES.fetch_add(1, Relaxed),
            database: None,
            access: IndexAccess::Guest,
            is_makeshift: false,
            overlay: HashMap::new(),
            had: Mutex::default(),
            next_pack: 0,
            applied: LogHead::default(),
            skipped: BTreeSet::new(),
            again: BTreeSet::new(),
            unflushed: AtomicU32::new(0),
        }
    }

    /// Removes the index's files.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn remove(folder: &Path) -> Result<()> {
        let removed = match std::fs::remove_dir_all(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => std::fs::remove_file(folder),
            removed => removed,
        };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(crate::error::storage("cannot remove", folder, error))
            }
            _ => Ok(()),
        }
    }

    /// Closes the database, so that the folder is free. Every later question to this index is an error.
    pub fn close(&mut self) {
        self.database = None;
    }

    /// Packs with a lower number need not be added.
    pub const fn next_pack(&self) -> u32 {
        self.next_pack
    }

    /// Packs that an earlier process could not read: each is named once, to be tried again.
    pub fn take_again(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.again)
    }

    /// Goes on without pack `number`, which cannot be read.
    pub fn skip(&mut self, number: u32) {
        if self.skipped.len() < SKIPPED_MAX {
            self.skipped.insert(number);
        }
        self.next_pack = self.next_pack.max(number + 1);
    }

    /// Forgets about pack `number`, which the log does not have any more.
    pub fn forget(&mut self, number: u32) {
        self.skipped.remove(&number);
    }

    /// The end of the log that the database saw last. If the log does not contain it any more, the log was rolled back
    /// (R15).
    pub const fn applied(&self) -> LogHead {
        self.applied
    }

    /// Writes the records of pack `number` into the database, where there is one to write to; [`Self::added`] must follow.
    /// One writer at a time; readers may see a part of it.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn write(&self, number: u32, entries: &[PackEntry]) -> Result<()> {
        if self.access == IndexAccess::Guest {
            return Ok(());
        }
        let database = self.database.as_ref().ok_or_else(unusable)?;
        // In the order in which the database keeps them.
        let mut entries: Vec<&PackEntry> = entries.iter().collect();
        entries.sort_by_key(|entry| entry.id);
        // A chunk twice in one pack keeps its first record: the second is for repair only.
        entries.dedup_by_key(|entry| entry.id);
        for entries in entries.chunks(ROWS_TOGETHER) {
            let mut batch = WriteBatch::default();
            let have = database.multi_get(entries.iter().map(|entry| entry.id.as_bytes()));
            for (entry, have) in entries.iter().zip(have) {
                let mut places =
                    have.map_err(failed)?.map(|bytes| decode_places(&bytes)).transpose()?.unwrap_or_default();
                if places.iter().all(|it| it.pack != number) {
                    places.push(Place::of(number, entry));
                    places.sort_unstable();
                    places.truncate(PLACES_MAX);
                    batch.put(entry.id.as_bytes(), codec::encode::<_, PLACES_BYTES_MAX>(&places)?);
                }
            }
            database.write_opt(batch, &without_log()).map_err(failed)?;
        }
        Ok(())
    }

    /// Prepares the removal of the places that these chunks have in pack `number`; none where there is no database to
    /// write to.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn forgetting(&self, number: u32, ids: &[ChunkId]) -> Result<Option<Forgetting>> {
        let Some(database) = self.database.as_ref().filter(|_| self.access == IndexAccess::Owner) else {
            return Ok(None);
        };
        let made_for = (self.instance, database.latest_sequence_number());
        let mut batch = WriteBatch::default();
        for (id, found) in ids.iter().zip(database.multi_get(ids.iter().map(ChunkId::as_bytes))) {
            let Some(bytes) = found.map_err(failed)? else { continue };
            let mut places = decode_places(&bytes)?;
            places.retain(|place| place.pack != number);
            match places.is_empty() {
                true => batch.delete(id.as_bytes()),
                false => batch.put(id.as_bytes(), codec::encode::<_, PLACES_BYTES_MAX>(&places)?),
            }
        }
        Ok(Some(Forgetting { made_for, batch }))
    }

    /// Removes the places, unless something was written to the database since `forgetting` was made. Then it changes
    /// nothing and gives false. One writer at a time.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn forget_places(&self, forgetting: Forgetting) -> Result<bool> {
        let database = self.database.as_ref().ok_or_else(unusable)?;
        let is_due = forgetting.made_for == (self.instance, database.latest_sequence_number());
        if is_due {
            database.write_opt(forgetting.batch, &without_log()).map_err(failed)?;
        }
        Ok(is_due)
    }

    /// Notes that pack `number` is in the index. An index without a database of its own keeps the records in memory.
    /// Numbers must ascend, except those of packs that were skipped.
    pub fn added(&mut self, number: u32, entries: &[PackEntry]) {
        if self.access == IndexAccess::Owner {
            self.unflushed.fetch_add(1, Relaxed);
        } else {
            entries.iter().for_each(|entry| self.overlay.entry(entry.id).or_default().push(Place::of(number, entry)));
        }
        self.next_pack = self.next_pack.max(number + 1);
        self.skipped.remove(&number);
    }

    /// Notes that everything up to `end` is in the index.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn tag(&mut self, repository: RepositoryId, end: LogHead) -> Result<()> {
        let Some(database) = self.database.as_ref().filter(|_| self.access == IndexAccess::Owner) else {
            return Ok(());
        };
        let tag = Tag {
            version: INDEX_VERSION,
            repository: repository.0,
            sequence: end.sequence,
            hash: end.hash,
            packs: self.next_pack,
        };
        let bytes = codec::encode::<_, TAG_BYTES_MAX>(&tag)?;
        let mut batch = WriteBatch::default();
        batch.put(TAG_KEY, bytes);
        batch.put(SKIPPED_KEY, codec::encode::<_, SKIPPED_BYTES_MAX>(&self.skipped)?);
        database.write_opt(batch, &without_log()).map_err(failed)?;
        self.applied = end;
        Ok(())
    }

    /// True when so much was added that it should be made to last.
    pub fn flush_is_due(&self) -> bool {
        self.unflushed.load(Relaxed) >= FLUSH_PACKS
    }

    /// Makes durable what was added. After a crash without this, the next opening adds the packs again from their
    /// footers.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn flush(&self) -> Result<()> {
        if let Some(database) = self.database.as_ref().filter(|_| self.access == IndexAccess::Owner) {
            let mut options = FlushOptions::default();
            options.set_wait(true);
            database.flush_opt(&options).map_err(failed)?;
            self.unflushed.store(0, Relaxed);
        }
        Ok(())
    }

    /// All chunks of these packs, for packs whose footers cannot be read. It reads the whole index, which takes long.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn chunks_of(&self, packs: &BTreeSet<u32>) -> Result<Vec<(ChunkId, Place)>> {
        let mut found = Vec::new();
        let mut look = |id: ChunkId, places: &[Place]| {
            found.extend(places.iter().filter(|place| packs.contains(&place.pack)).map(|place| (id, *place)));
        };
        for read in self.database.iter().flat_map(|database| database.iterator(IteratorMode::Start)) {
            if let Some((id, places)) = row(read)? {
                look(id, &places);
            }
        }
        self.overlay.iter().for_each(|(id, places)| look(*id, places));
        Ok(found)
    }

    /// The places, of those that are in the database, of all chunks whose ids begin with these 8 bytes.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn places_by_head(&self, heads: &[u64]) -> Result<Vec<Place>> {
        let mut rows = self.database.as_ref().ok_or_else(unusable)?.raw_iterator();
        let mut found = Vec::new();
        for prefix in heads.iter().map(|head| head.to_be_bytes()) {
            rows.seek(prefix);
            while let Some((_, places)) = rows.item().filter(|(key, _)| key.len() == 32 && key.starts_with(&prefix)) {
                found.extend(decode_places(places)?);
                rows.next();
            }
            rows.status().map_err(failed)?;
        }
        Ok(found)
    }

    /// The places of each chunk, earliest pack first; empty where there is none.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn places(&self, ids: &[ChunkId]) -> Result<Vec<Vec<Place>>> {
        let mut found = match &self.database {
            Some(database) => {
                let found = database.multi_get(ids.iter().map(ChunkId::as_bytes));
                let decode = |bytes: std::result::Result<Option<Vec<u8>>, rocksdb::Error>| match bytes {
                    Ok(Some(bytes)) => decode_places(&bytes),
                    Ok(None) => Ok(Vec::new()),
                    Err(error) => Err(failed(error)),
                };
                found.into_iter().map(decode).collect::<Result<Vec<_>>>()?
            }
            None if self.access == IndexAccess::Owner => return Err(unusable()),
            None => vec![Vec::new(); ids.len()],
        };
        if !self.overlay.is_empty() {
            for (id, places) in ids.iter().zip(&mut found) {
                places.extend(self.overlay.get(id).into_iter().flatten());
                places.sort_unstable();
            }
        }
        Ok(found)
    }
}

impl Place {
    /// The place of a record in pack number `pack`.
    pub const fn of(pack: u32, entry: &PackEntry) -> Self {
        // A length has 25 bits.
        let shape = entry.plain_bytes << 2 | entry.kind.code() as u32;
        Self { pack, offset: entry.offset, blob_bytes: entry.blob_bytes, shape }
    }

    /// What is there, as the pack's footer has it.
    pub fn shape(&self) -> Shape {
        let kind = ChunkKind::from_code((self.shape & 3) as u8).expect("two bits are a kind");
        Shape { kind, plain_bytes: self.shape >> 2 }
    }
}

/// Id and places, unless the key is no chunk's.
type Row = (ChunkId, Vec<Place>);

/// What the database gives for a row.
type RawRow = (Box<[u8]>, Box<[u8]>);

fn row(read: std::result::Result<RawRow, rocksdb::Error>) -> Result<Option<Row>> {
    let (key, value) = read.map_err(failed)?;
    let Ok(id) = <[u8; 32]>::try_from(&*key) else { return Ok(None) };
    Ok(Some((ChunkId(id), decode_places(&value)?)))
}

fn open_as_guest(folder: &Path) -> std::result::Result<DB, rocksdb::Error> {
    // A secondary instance reads beside the owner; its own log goes to a folder that is gone with the process's end.
    static GUESTS: AtomicU64 = AtomicU64::new(0);
    let guest = GUESTS.fetch_add(1, Relaxed);
    // Nobody else may put anything there.
    let made = mover::private_folder(&format!("windlass-index-{}-{guest}", std::process::id()));
    let Ok(scratch) = made else {
        return DB::open_for_read_only(&options(BLOCK_CACHE_BYTES, WRITE_BUFFER_BYTES), folder, false);
    };
    let mut options = options(BLOCK_CACHE_BYTES, WRITE_BUFFER_BYTES);
    options.create_if_missing(false);
    options.set_max_open_files(-1);
    let opened = DB::open_as_secondary(&options, folder, &scratch);
    let _ = std::fs::remove_dir_all(&scratch);
    opened
}

/// Options for a database that is only a cache.
pub(crate) fn options(block_cache_bytes: usize, write_buffer_bytes: usize) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_bloom_filter(10.0, false);
    table.set_block_cache(&Cache::new_lru_cache(block_cache_bytes));
    // Filters and indexes in parts, in the cache like everything else: whole ones stay in memory beside it, more than a
    // byte for each chunk that there is.
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_top_level_index_and_filter(true);
    let mut options = Options::default();
    options.set_env(compacting_quietly());
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_size(write_buffer_bytes);
    // Most questions of a first backup or copy are about chunks that are not there.
    options.set_memtable_prefix_bloom_ratio(0.1);
    options.set_memtable_whole_key_filtering(true);
    options.set_max_open_files(256);
    options.set_keep_log_file_num(1);
    // Setting 4 MiB aside for each would fail where so much is not left.
    options.set_manifest_preallocation_size(MANIFEST_BYTES);
    options.set_max_background_jobs(2);
    options.set_compression_type(rocksdb::DBCompressionType::None);
    options.set_skip_stats_update_on_db_open(true);
    options
}

/// An environment that compacts files with low priority, because nothing waits for compaction.
fn compacting_quietly() -> &'static Env {
    static ENV: LazyLock<Env> = LazyLock::new(|| {
        let mut env = Env::new().expect("RocksDB has a default");
        env.lower_thread_pool_cpu_priority();
        env
    });
    &ENV
}

/// Options to write without RocksDB's own log. That log is not needed, because packs that are lost from memory are
/// simply added again.
fn without_log() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.disable_wal(true);
    options
}

fn decode_places(bytes: &[u8]) -> Result<Vec<Place>> {
    // A damaged cache is no damaged repository.
    codec::decode::<_, PLACES_BYTES_MAX>(bytes).map_err(|error| unusable().because(error))
}

fn failed(error: rocksdb::Error) -> Error {
    rocks(FAILED, REBUILD, error)
}

fn unusable() -> Error {
    Error::store_io(FAILED).hint(REBUILD)
}

/// Refuses a folder in which anything but files is.
///
/// # Errors
/// `StoreIo`.
pub(crate) fn only_files(folder: &Path) -> Result<()> {
    // One that is not there, or cannot be looked at, RocksDB tells about.
    let Ok(mut entries) = std::fs::read_dir(folder) else { return Ok(()) };
    let strange = entries.find_map(|it| it.ok().filter(|it| it.file_type().is_ok_and(|it| !it.is_file())));
    strange.map_or(Ok(()), |it| Err(Error::store_io(format!("{} is not a file", it.path().display()))))
}

const FAILED: &str = "the index failed";
const REBUILD: &str = "run `windlass rebuild-index`; nothing is lost with it";

const INDEX_VERSION: u16 = 2;
/// Key of the tag; not a chunk id, which has 32 bytes.
const TAG_KEY: &[u8] = b"tag";
const TAG_BYTES_MAX: usize = 128;
/// Key of the packs that could not be read; not a chunk id either.
const SKIPPED_KEY: &[u8] = b"skipped";
/// Packs that are remembered as not read; more need `windlass rebuild-index`.
const SKIPPED_MAX: usize = 1024;
const SKIPPED_BYTES_MAX: usize = 8 + SKIPPED_MAX * 4;
/// Places kept for one chunk; more only waste space.
const PLACES_MAX: usize = 64;
const PLACES_BYTES_MAX: usize = 8 + PLACES_MAX * 16;
/// Rows that are written together.
const ROWS_TOGETHER: usize = 4096;
const MANIFEST_BYTES: usize = 16 << 10;
const BLOCK_CACHE_BYTES: usize = 32 << 20;
const WRITE_BUFFER_BYTES: usize = 16 << 20;
/// Packs whose records may have to be added again after a crash: reading so many footers takes well under a second.
const FLUSH_PACKS: u32 = 64;
