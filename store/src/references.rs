//! Counts of references: for each chunk the number of pages that refer to it, of the pages that live points need. For a
//! page, manifests that refer to it count too. The counts are a view of the log and of pages, in RocksDB. Each sweep
//! brings them up to date, so its cost depends on how much has changed. No data is lost when the counts are lost, and
//! no pack is deleted because of the counts alone (R19).
//!
//! Pages and manifests are counted by their whole ids, because each new one must be walked. All chunks, pages and
//! manifests too, are also counted in rows of ids that begin alike. Lookups use these rows.
//!
//! References that a sweep takes away are kept apart from the counts until the log says that they are final. So the
//! counts do not change when a sweep is killed.

mod row;

pub use row::head;

use crate::error::{came_from_passing, rocks};
use crate::index::{Index, only_files, options};
use chunker::ChunkId;
use mover::{Error, PointId, RepositoryId, Result, codec};
use rocksdb::{DB, Direction, FlushOptions, IteratorMode, MergeOperands, WriteBatch, WriteOptions};
use row::{ROW_KEY_BYTES, row_key};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// The references of one repository, held by its one writer.
pub struct References {
    database: DB,
    folder: PathBuf,
    repository: RepositoryId,
    /// Some references may have been taken away that are not final yet.
    is_taking: AtomicBool,
    /// It was empty when it was opened.
    pub is_new: bool,
}

impl References {
    /// Opens those under `folder`. Counts that cannot be used, or that were left in the middle of a point, are deleted
    /// and begin empty.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn open(folder: &Path, repository: RepositoryId) -> Result<Self> {
        only_files(folder)?;
        let opened = DB::open(&merging(), folder).map_err(failed).and_then(|database| {
            let opened = Self::of(database, folder, repository)?;
            Ok(if opened.is_whole()? { Some(opened) } else { None })
        });
        match opened {
            Ok(Some(opened)) => return Ok(opened),
            // Counting again takes long, and they may be read the next time.
            Err(error) if came_from_passing(&error) => return Err(error),
            _ => {}
        }
        Index::remove(folder)?;
        let database = DB::open(&merging(), folder).map_err(failed)?;
        database.put_opt(TAG, tag(repository)?, &without_log()).map_err(failed)?;
        Self::of(database, folder, repository).map(|it| Self { is_new: true, ..it })
    }

    fn of(database: DB, folder: &Path, repository: RepositoryId) -> Result<Self> {
        let is_taking = AtomicBool::new(database.get(TAKING).map_err(failed)?.is_some());
        Ok(Self { database, folder: folder.to_owned(), repository, is_taking, is_new: false })
    }

    /// Begins again, with nothing.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn begun_again(self) -> Result<Self> {
        let (folder, repository) = (self.folder.clone(), self.repository);
        drop(self);
        Index::remove(&folder)?;
        Self::open(&folder, repository)
    }

    /// False when it must be begun again.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn is_whole(&self) -> Result<bool> {
        let tagged = self.database.get(TAG).map_err(failed)? == Some(tag(self.repository)?);
        Ok(tagged && self.points()?.values().all(|counted| *counted))
    }

    /// The points whose references are counted. The value is false when the counting of a point was begun and has not
    /// ended.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn points(&self) -> Result<BTreeMap<PointId, bool>> {
        let mut points = BTreeMap::new();
        for row in self.database.iterator(IteratorMode::From(&[POINT], Direction::Forward)) {
            let (key, value) = row.map_err(failed)?;
            let Some(id) = key.strip_prefix(&[POINT]).and_then(|id| id.try_into().ok()) else { break };
            points.insert(PointId(id), *value == COUNTED[..]);
        }
        Ok(points)
    }

    /// A point is about to be counted; [`Self::counted`] must follow.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn counting(&self, point: PointId) -> Result<()> {
        if self.is_taking.load(Relaxed) {
            // What this point brings back to life cannot be told from what it brings anew, should nothing be taken away.
            self.database.put_opt(MIXED, b"", &without_log()).map_err(failed)?;
        }
        self.database.put_opt(key(POINT, &point.0), b"", &without_log()).map_err(failed)
    }

    /// A point is counted.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn counted(&self, point: PointId) -> Result<()> {
        self.database.put_opt(key(POINT, &point.0), COUNTED, &without_log()).map_err(failed)
    }

    /// Counts a reference to each of these pages or manifests; gives those that had none: what they refer to is to be
    /// counted next.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn add_pages(&self, ids: &[ChunkId]) -> Result<Vec<ChunkId>> {
        let turned = self.change_pages(ids, (PAGE, 1), LIVE_PAGES, 0)?;
        self.add_chunks(ids.iter().copied())?;
        Ok(turned)
    }

    /// Takes a reference to each of these pages or manifests away; gives those that have none now.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn take_pages(&self, ids: &[ChunkId]) -> Result<Vec<ChunkId>> {
        let turned = self.change_pages(ids, (TAKEN_PAGE, -1), TAKEN_PAGES, 1)?;
        self.take_chunks(ids.iter().copied())?;
        Ok(turned)
    }

    /// Changes the counts one after the other, because an id may occur twice in `ids`.
    fn change_pages(&self, ids: &[ChunkId], (kind, by): (u8, i64), total: &[u8], before: i64) -> Result<Vec<ChunkId>> {
        let mut turned = Vec::new();
        for id in ids {
            let of = |kind| number(self.database.get(key(kind, id.as_bytes())).map_err(failed)?.as_deref());
            let taken = if self.is_taking.load(Relaxed) { of(TAKEN_PAGE)? } else { 0 };
            if of(PAGE)? + taken == before {
                turned.push(*id);
            }
            self.database.merge_opt(key(kind, id.as_bytes()), by.to_le_bytes(), &without_log()).map_err(failed)?;
        }
        let sum = by * i64::try_from(turned.len()).expect("ids fit memory");
        self.database.merge_opt(total, sum.to_le_bytes(), &without_log()).map_err(failed)?;
        Ok(turned)
    }

    /// Counts a reference to each of these chunks, which refer to nothing themselves.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn add_chunks(&self, ids: impl IntoIterator<Item = ChunkId>) -> Result<()> {
        self.change_chunks(ids, ROW, 1)
    }

    /// Takes a reference to each of these chunks away.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn take_chunks(&self, ids: impl IntoIterator<Item = ChunkId>) -> Result<()> {
        self.change_chunks(ids, TAKEN_ROW, -1)
    }

    fn change_chunks(&self, ids: impl IntoIterator<Item = ChunkId>, kind: u8, by: i64) -> Result<()> {
        let mut heads: Vec<u64> = ids.into_iter().map(|id| head(&id)).collect();
        heads.sort_unstable();
        let (mut batch, mut sum) = (WriteBatch::default(), Vec::new());
        for of_row in heads.chunk_by(|a, b| row_key(*a) == row_key(*b)) {
            sum.clear();
            for same in of_row.chunk_by(|a, b| a == b) {
                row::push(&mut sum, same[0], by * i64::try_from(same.len()).expect("ids fit memory"));
            }
            batch.merge(key(kind, &row_key(of_row[0])), &sum);
        }
        self.database.write_opt(batch, &without_log()).map_err(failed)
    }

    /// How many references there are to each chunk, without those that were taken away.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn counts(&self, ids: &[ChunkId]) -> Result<Vec<i64>> {
        let counts = self.counts_before(ids)?;
        if !self.is_taking.load(Relaxed) {
            return Ok(counts);
        }
        Ok(counts
            .into_iter()
            .zip(self.numbers(TAKEN_ROW, ids)?)
            .map(|(count, taken)| count.saturating_add(taken))
            .collect())
    }

    /// The same with those that were taken away.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn counts_before(&self, ids: &[ChunkId]) -> Result<Vec<i64>> {
        self.numbers(ROW, ids)
    }

    fn numbers(&self, kind: u8, ids: &[ChunkId]) -> Result<Vec<i64>> {
        let heads: Vec<u64> = ids.iter().map(head).collect();
        let rows = self.rows(kind, heads.iter().copied().map(row_key))?;
        Ok(heads.into_iter().zip(rows).map(|(head, row)| count_in(&row, head)).collect())
    }

    /// The counts in the rows under these keys.
    fn rows(&self, kind: u8, keys: impl Iterator<Item = RowKey> + Clone) -> Result<Vec<Row>> {
        let found = self.database.multi_get(keys.clone().map(|row| key(kind, &row)));
        let decode = |(key, found): (RowKey, std::result::Result<Option<Vec<u8>>, rocksdb::Error>)| {
            row::counts(key, found.map_err(failed)?.as_deref().unwrap_or_default()).ok_or_else(unusable)
        };
        keys.zip(found).map(decode).collect()
    }

    /// Number of pages and manifests to which something refers. References that were taken away still count here.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn live_pages(&self) -> Result<i64> {
        number(self.database.get(LIVE_PAGES).map_err(failed)?.as_deref())
    }

    /// Number of pages and manifests to which something refers, without references that were taken away.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn pages_left(&self) -> Result<i64> {
        Ok(self.live_pages()? + number(self.database.get(TAKEN_PAGES).map_err(failed)?.as_deref())?)
    }

    /// A sweep begins to take these points away, until [`Self::settle`] or [`Self::give_up`].
    ///
    /// # Errors
    /// When the storage fails.
    pub fn begin_taking(&self, points: &BTreeSet<PointId>) -> Result<()> {
        let points: Vec<[u8; 16]> = points.iter().map(|point| point.0).collect();
        let bytes = codec::encode::<_, TAKING_BYTES_MAX>(&points)?;
        self.is_taking.store(true, Relaxed);
        self.database.put_opt(TAKING, bytes, &without_log()).map_err(failed)
    }

    /// Notes that all references of the points are taken away, and makes that durable. Only after this may the log say
    /// that the points are final.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn has_taken(&self) -> Result<()> {
        self.database.put_opt(TAKEN_ALL, b"", &without_log()).map_err(failed)?;
        self.flush()
    }

    /// Completes or undoes what a killed sweep took away. `final_points` is the number of its points that are final in
    /// the log. False when neither is possible: then everything must be counted again.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn recover(&self, final_points: usize) -> Result<bool> {
        let Some(points) = self.taking()? else { return Ok(true) };
        let is_there = |key: &[u8]| Ok::<_, Error>(self.database.get(key).map_err(failed)?.is_some());
        match final_points {
            all if all == points.len() && is_there(TAKEN_ALL)? => self.settle()?,
            0 if !is_there(SETTLING)? => self.give_up()?,
            _ => return Ok(false),
        }
        self.is_whole()
    }

    /// The points that a sweep is, or was, taking away.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn taking(&self) -> Result<Option<BTreeSet<PointId>>> {
        let Some(bytes) = self.database.get(TAKING).map_err(failed)? else { return Ok(None) };
        let points: Vec<[u8; 16]> = codec::decode::<_, TAKING_BYTES_MAX>(&bytes)?;
        Ok(Some(points.into_iter().map(PointId).collect()))
    }

    /// Gives the chunks to which nothing refers since something was taken away, by the first bytes of their ids, in order,
    /// many at a time.
    ///
    /// # Errors
    /// Of the storage, and those of `each`.
    pub fn dead(&self, mut each: impl FnMut(Vec<u64>) -> Result<()>) -> Result<()> {
        self.taken(|taken| {
            let counted = self.rows(ROW, taken.iter().map(|(key, _)| *key))?;
            let pairs = taken.into_iter().zip(&counted).flat_map(|((_, taken), row)| {
                taken
                    .into_iter()
                    .filter(|(head, by)| count_in(row, *head).saturating_add(*by) <= 0)
                    .map(|(head, _)| head)
            });
            each(pairs.collect())
        })
    }

    /// Gives rows of what was taken away, in order, many at a time.
    fn taken(&self, mut each: impl FnMut(Vec<(RowKey, Row)>) -> Result<()>) -> Result<()> {
        let mut rows = Vec::new();
        for row in self.database.iterator(IteratorMode::From(&[TAKEN_ROW], Direction::Forward)) {
            let (key, value) = row.map_err(failed)?;
            let Some(key) = key.strip_prefix(&[TAKEN_ROW]) else { break };
            let key: RowKey = key.try_into().map_err(|_| unusable())?;
            rows.push((key, row::counts(key, &value).ok_or_else(unusable)?));
            if rows.len() == TOGETHER {
                each(std::mem::take(&mut rows))?;
            }
        }
        if rows.is_empty() { Ok(()) } else { each(rows) }
    }

    /// Subtracts from the counts what was taken away, because it is final now.
    ///
    /// # Errors
    /// Of the storage. The next process that opens the counts can settle it again.
    pub fn settle(&self) -> Result<()> {
        let Some(points) = self.taking()? else { return Ok(()) };
        self.database.put_opt(SETTLING, b"", &without_log()).map_err(failed)?;
        // What is gone from the one side is on the other, whenever a process dies.
        self.move_all(TAKEN_PAGE, |batch, page, taken| {
            let page = key(PAGE, page);
            match number(self.database.get(&page).map_err(failed)?.as_deref())? + number(Some(taken))? {
                left @ 1.. => batch.put(page, left.to_le_bytes()),
                _ => batch.delete(page),
            }
            Ok(())
        })?;
        self.move_all(TAKEN_ROW, |batch, row, taken| {
            batch.merge(key(ROW, row), taken);
            Ok(())
        })?;
        let mut batch = WriteBatch::default();
        batch.put(LIVE_PAGES, self.pages_left()?.to_le_bytes());
        [TAKEN_PAGES, TAKING, TAKEN_ALL, SETTLING, MIXED].into_iter().for_each(|key| batch.delete(key));
        points.iter().for_each(|point| batch.delete(key(POINT, &point.0)));
        self.database.write_opt(batch, &without_log()).map_err(failed)?;
        self.is_taking.store(false, Relaxed);
        self.flush()
    }

    /// Deletes all rows of one kind. Each is deleted together with the change that `change` makes for it.
    fn move_all(&self, kind: u8, change: impl Fn(&mut WriteBatch, &[u8], &[u8]) -> Result<()>) -> Result<()> {
        let mut batch = WriteBatch::default();
        for row in self.database.iterator(IteratorMode::From(&[kind], Direction::Forward)) {
            let (key, value) = row.map_err(failed)?;
            let Some(of) = key.strip_prefix(&[kind]) else { break };
            change(&mut batch, of, &value)?;
            batch.delete(&key);
            if batch.len() >= TOGETHER {
                self.database.write_opt(std::mem::take(&mut batch), &without_log()).map_err(failed)?;
            }
        }
        self.database.write_opt(batch, &without_log()).map_err(failed)
    }

    /// Forgets what was taken away; the counts stay as they were. If points were counted meanwhile, everything must be
    /// counted again.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn give_up(&self) -> Result<()> {
        let mut batch = WriteBatch::default();
        [TAKEN_PAGE, TAKEN_ROW].into_iter().for_each(|kind| batch.delete_range([kind], [kind + 1]));
        if self.database.get(MIXED).map_err(failed)?.is_some() {
            batch.delete(TAG);
        }
        [TAKEN_PAGES, TAKING, TAKEN_ALL, MIXED].into_iter().for_each(|key| batch.delete(key));
        self.database.write_opt(batch, &without_log()).map_err(failed)?;
        self.is_taking.store(false, Relaxed);
        Ok(())
    }

    /// Bytes of each pack that nobody needs: those that the last look at it found, and those that died since. The
    /// number is too high if some of them came into use again. Packs without any are not listed.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn dead_bytes(&self) -> Result<BTreeMap<u32, u64>> {
        let mut packs = BTreeMap::new();
        for row in self.database.iterator(IteratorMode::From(&[PACK], Direction::Forward)) {
            let (key, value) = row.map_err(failed)?;
            let Some(number) = key.strip_prefix(&[PACK]).and_then(|number| number.try_into().ok()) else { break };
            let bytes = <[u8; 8]>::try_from(&*value).map_err(|_| unusable())?;
            packs.insert(u32::from_be_bytes(number), u64::from_le_bytes(bytes));
        }
        Ok(packs)
    }

    /// The same of one pack.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn dead_bytes_in(&self, pack: u32) -> Result<u64> {
        let noted = self.database.get(key(PACK, &pack.to_be_bytes())).map_err(failed)?;
        let bytes = |noted: Vec<u8>| noted.try_into().map(u64::from_le_bytes).map_err(|_| unusable());
        noted.map_or(Ok(0), bytes)
    }

    /// True when the last look at a pack found that some of its chunks are read from other packs.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn has_duplicates(&self, pack: u32) -> Result<bool> {
        Ok(self.database.get(key(DUPLICATES, &pack.to_be_bytes())).map_err(failed)?.is_some())
    }

    /// Notes what the last look at a pack found.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn note_duplicates(&self, pack: u32, has: bool) -> Result<()> {
        let key = key(DUPLICATES, &pack.to_be_bytes());
        match has {
            true => self.database.put_opt(key, b"", &without_log()),
            false => self.database.delete_opt(key, &without_log()),
        }
        .map_err(failed)
    }

    /// Notes the dead bytes of packs.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn note_packs(&self, dead_bytes: &BTreeMap<u32, u64>) -> Result<()> {
        self.note(dead_bytes, WriteBatch::default())
    }

    /// Notes the dead bytes of new packs, and that all with a lower number than `looked_at` were looked at.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn note_new_packs(&self, dead_bytes: &BTreeMap<u32, u64>, looked_at: u32) -> Result<()> {
        let mut batch = WriteBatch::default();
        batch.put(LOOKED_AT, looked_at.to_le_bytes());
        self.note(dead_bytes, batch)
    }

    fn note(&self, dead_bytes: &BTreeMap<u32, u64>, mut batch: WriteBatch) -> Result<()> {
        for (number, bytes) in dead_bytes {
            let row = key(PACK, &number.to_be_bytes());
            match bytes {
                0 => {
                    batch.delete(row);
                    batch.delete(key(DUPLICATES, &number.to_be_bytes()));
                }
                _ => batch.put(row, bytes.to_le_bytes()),
            }
        }
        self.database.write_opt(batch, &without_log()).map_err(failed)
    }

    /// All packs with a lower number were looked at.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn looked_at(&self) -> Result<u32> {
        match self.database.get(LOOKED_AT).map_err(failed)? {
            Some(bytes) => Ok(u32::from_le_bytes(bytes.as_slice().try_into().map_err(|_| unusable())?)),
            None => Ok(0),
        }
    }

    /// Makes everything that was written durable.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn flush(&self) -> Result<()> {
        let mut options = FlushOptions::default();
        options.set_wait(true);
        self.database.flush_opt(&options).map_err(failed)
    }
}

fn merging() -> rocksdb::Options {
    let mut options = options(BLOCK_CACHE_BYTES, WRITE_BUFFER_BYTES);
    options.set_merge_operator_associative("sum", sum);
    // Each sweep leaves some files, and what lies below is rewritten with them.
    options.set_level_zero_file_num_compaction_trigger(L0_FILES);
    // What is asked for is there nearly always: filters of the lowest level would only push its index out of the cache.
    options.set_optimize_filters_for_hits(true);
    options
}

fn sum(key: &[u8], existing: Option<&[u8]>, operands: &MergeOperands) -> Option<Vec<u8>> {
    let mut all = existing.into_iter().chain(operands);
    match key.split_first()? {
        (&(ROW | TAKEN_ROW), key) => row::sum(key, all),
        _ => {
            let sum = all.try_fold(0_i64, |sum, bytes| sum.checked_add(i64::from_le_bytes(bytes.try_into().ok()?)))?;
            Some(sum.to_le_bytes().to_vec())
        }
    }
}

/// The first bits that all ids in one row share.
type RowKey = [u8; ROW_KEY_BYTES];

/// Beginnings of ids, ascending, and their counts.
type Row = Vec<(u64, i64)>;

fn count_in(row: &Row, head: u64) -> i64 {
    row.binary_search_by_key(&head, |(head, _)| *head).map_or(0, |at| row[at].1)
}

fn number(bytes: Option<&[u8]>) -> Result<i64> {
    bytes.map_or(Ok(0), |bytes| Ok(i64::from_le_bytes(bytes.try_into().map_err(|_| unusable())?)))
}

fn key(kind: u8, rest: &[u8]) -> Vec<u8> {
    [&[kind], rest].concat()
}

fn tag(repository: RepositoryId) -> Result<Vec<u8>> {
    codec::encode::<_, 32>(&(VERSION, repository.0))
}

/// Options to write without RocksDB's own log. After a crash the database is as it was at some earlier moment, and
/// points that are missing are counted again.
fn without_log() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.disable_wal(true);
    options
}

fn failed(error: rocksdb::Error) -> Error {
    rocks(FAILED, AGAIN, error)
}

fn unusable() -> Error {
    Error::store_io(FAILED).hint(AGAIN)
}

const FAILED: &str = "the counts of references failed";
const AGAIN: &str = "sweep again; they are rebuilt if they cannot be read";

const VERSION: u16 = 2;
const TAG: &[u8] = b"t";
/// Key: this byte and the id of a page or manifest. Value: the number of references to it.
const PAGE: u8 = b'c';
/// The same key with the change by the present sweep as the value: a negative number.
const TAKEN_PAGE: u8 = b'd';
/// Key: this byte and the beginning of chunk ids. Value: a row with the number of references to each chunk.
const ROW: u8 = b'h';
/// The same key with the changes by the present sweep as the value: a row of negative numbers.
const TAKEN_ROW: u8 = b'k';
/// Key: this byte and a pack's number. Value: the number of its dead bytes.
const PACK: u8 = b'p';
/// Key: this byte and the number of a pack of which some chunks are read from other packs.
const DUPLICATES: u8 = b'q';
/// Key: this byte and a point's id. Value: [`COUNTED`], or empty while the point is being counted.
const POINT: u8 = b'r';
const COUNTED: &[u8] = b"counted";
const LIVE_PAGES: &[u8] = b"n";
const TAKEN_PAGES: &[u8] = b"m";
const TAKING: &[u8] = b"u";
/// Key that exists when everything is taken away of the points under [`TAKING`].
const TAKEN_ALL: &[u8] = b"a";
/// Key that exists when points were counted since the present sweep began to take away.
const MIXED: &[u8] = b"x";
/// Key that exists while what was taken away is being moved into the counts.
const SETTLING: &[u8] = b"s";
const LOOKED_AT: &[u8] = b"w";
/// Rows that are looked at together. RocksDB holds the block of each meanwhile.
const TOGETHER: usize = 4096;
/// Files that RocksDB collects before it compacts them: those of three or four sweeps.
const L0_FILES: i32 = 8;
/// Memory for blocks. It is small, because ids are asked for in order, so few blocks are needed again.
const BLOCK_CACHE_BYTES: usize = 8 << 20;
const WRITE_BUFFER_BYTES: usize = 8 << 20;
/// Longest list of points that one sweep takes away: room for a million.
const TAKING_BYTES_MAX: usize = 8 + (16 << 20);

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> ChunkId {
        ChunkId([number; 32])
    }

    fn dead(references: &References) -> Vec<u8> {
        let mut found = Vec::new();
        let note = |heads: Vec<u64>| {
            found.extend(heads.iter().map(|head| head.to_be_bytes()[0]));
            Ok(())
        };
        references.dead(note).unwrap();
        found
    }

    /// The counts of two points after a sweep was killed that was taking away the points `taken`. With `all` it was
    /// killed when everything was taken away, otherwise in the middle.
    fn killed(folder: &Path, taken: &[u8], all: bool) -> References {
        let references = References::open(folder, RepositoryId([1; 16])).unwrap();
        for point in [1, 2] {
            references.counting(PointId([point; 16])).unwrap();
            references.add_pages(&[id(point)]).unwrap();
            references.add_chunks([id(100), id(100 + point)]).unwrap();
            references.counted(PointId([point; 16])).unwrap();
        }
        references.begin_taking(&taken.iter().map(|point| PointId([*point; 16])).collect()).unwrap();
        for point in taken {
            references.take_pages(&[id(*point)]).unwrap();
            references.take_chunks([id(100)]).unwrap();
            if all {
                references.take_chunks([id(100 + point)]).unwrap();
            }
        }
        if all {
            references.has_taken().unwrap();
        }
        references.flush().unwrap();
        drop(references);
        References::open(folder, RepositoryId([1; 16])).unwrap()
    }

    /// R19: counts that are too low would doom chunks that are needed; counts that are too high would keep chunks that
    /// are not. After a kill the counts agree with what the log says of the points, or they are begun again.
    #[test]
    fn a_killed_sweep_has_taken_what_the_log_says_or_nothing_can_be_told() {
        let folder = tempfile::tempdir().unwrap();
        let counts = |references: &References| references.counts(&[id(1), id(100), id(101), id(2), id(102)]).unwrap();
        let mut number = 0;
        let mut case = |taken: &[u8], all: bool| {
            number += 1;
            killed(&folder.path().join(number.to_string()), taken, all)
        };
        for all in [true, false] {
            let references = case(&[1], all);
            assert!(references.recover(0).unwrap(), "the log says nothing of it");
            assert_eq!((counts(&references), references.live_pages().unwrap()), (vec![1, 2, 1, 1, 1], 2));
            assert_eq!((references.points().unwrap().len(), references.taking().unwrap()), (2, None));
        }
        let references = case(&[1], true);
        assert!(references.recover(1).unwrap(), "the log says that it is final");
        assert_eq!((counts(&references), references.live_pages().unwrap()), (vec![0, 1, 0, 1, 1], 1));
        assert_eq!((references.points().unwrap().len(), references.taking().unwrap()), (1, None));
        assert!(references.recover(0).unwrap(), "there is nothing to recover from any more");
        assert_eq!(counts(&references), [0, 1, 0, 1, 1]);

        assert!(!case(&[1], false).recover(1).unwrap(), "final, and not everything was taken");
        assert!(!case(&[1, 2], true).recover(1).unwrap(), "one of two");
        let references = case(&[1], true);
        references.database.put_opt(SETTLING, b"", &without_log()).unwrap();
        assert!(!references.recover(0).unwrap(), "it was going into the counts");
        let references = case(&[1], true);
        references.counting(PointId([3; 16])).unwrap();
        references.counted(PointId([3; 16])).unwrap();
        assert!(!references.recover(0).unwrap(), "a point was counted meanwhile");
    }

    #[test]
    fn counts_what_is_taken_away_only_when_it_is_settled() {
        let folder = tempfile::tempdir().unwrap();
        let (path, repository) = (folder.path().join("references"), RepositoryId([1; 16]));
        let references = References::open(&path, repository).unwrap();
        assert!(references.is_new && references.points().unwrap().is_empty());
        let (first, second) = (PointId([1; 16]), PointId([2; 16]));
        for point in [first, second] {
            references.counting(point).unwrap();
            let new = references.add_pages(&[id(point.0[0]), id(9), id(9)]).unwrap();
            assert_eq!(new.len(), if point == first { 2 } else { 1 }, "a page is walked once");
            references.add_chunks([id(100), id(100 + point.0[0])]).unwrap();
            references.counted(point).unwrap();
        }
        assert_eq!(references.counts(&[id(1), id(9), id(100), id(101), id(7)]).unwrap(), [1, 4, 2, 1, 0]);
        assert_eq!(references.live_pages().unwrap(), 3);
        for settled in [false, true] {
            references.begin_taking(&BTreeSet::from([first])).unwrap();
            assert_eq!(references.take_pages(&[id(1), id(9), id(9)]).unwrap(), [id(1)]);
            references.take_chunks([id(100), id(101)]).unwrap();
            assert_eq!(dead(&references), [1, 101]);
            assert_eq!(references.counts(&[id(9), id(100), id(101)]).unwrap(), [2, 1, 0]);
            assert_eq!((references.live_pages().unwrap(), references.pages_left().unwrap()), (3, 2));
            if settled {
                references.settle().unwrap()
            } else {
                references.give_up().unwrap()
            }
            assert_eq!((dead(&references), references.taking().unwrap()), (Vec::new(), None));
        }
        assert_eq!(references.counts(&[id(1), id(9), id(100), id(101)]).unwrap(), [0, 2, 1, 0]);
        assert_eq!(references.live_pages().unwrap(), 2);
        references.note_new_packs(&BTreeMap::from([(3, 7), (300, 5)]), 10).unwrap();
        references.note_packs(&BTreeMap::from([(3, 0)])).unwrap();
        references.flush().unwrap();
        drop(references);
        let references = References::open(&path, repository).unwrap();
        assert!(!references.is_new);
        assert_eq!(references.points().unwrap(), BTreeMap::from([(second, true)]));
        assert_eq!(
            (references.dead_bytes().unwrap(), references.looked_at().unwrap()),
            (BTreeMap::from([(300, 5)]), 10)
        );
        // Left in the middle of a point, or of another repository: it begins again.
        references.counting(first).unwrap();
        references.flush().unwrap();
        drop(references);
        let references = References::open(&path, repository).unwrap();
        assert!(references.is_new && references.counts(&[id(9)]).unwrap() == [0]);
        references.counted(first).unwrap();
        references.flush().unwrap();
        drop(references);
        assert!(References::open(&path, RepositoryId([2; 16])).unwrap().is_new);
    }
}
