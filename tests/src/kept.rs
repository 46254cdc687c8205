//! A repository's directory seen from outside: what is in its files, and how to hurt them.

use chunker::{BLOB_HEADER_BYTES, ChunkId};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use store::format::config::ConfigFile;
use store::format::pack::{PackEntry, PackName, RECORD_HEADER_BYTES, decode_footer};
use store::format::record::LogRecord;
use store::state::State;

/// A folder for repositories that goes with the value, in memory where there is such a file system: what a sync costs
/// is no subject of these tests.
///
/// # Panics
/// When it cannot be made.
pub fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a folder")
}

/// Every file below `folder`, by path relative to it.
///
/// # Panics
/// When it cannot be listed.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        for entry in fs::read_dir(&at).expect("a folder") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => folders.push(path),
                false => found.push(path.strip_prefix(folder).expect("inside").to_owned()),
            }
        }
    }
    found.sort();
    found
}

/// The state that the log in `repository` gives, replayed from its first record.
///
/// # Panics
/// When a record is damaged or missing.
pub fn replay(repository: &Path) -> State {
    let config = ConfigFile::decode(&fs::read(repository.join("config")).expect("config")).expect("a sound config");
    let mut state = State::new(config.config.id);
    for file in files(&repository.join("log")) {
        let bytes = fs::read(repository.join("log").join(file)).expect("a record");
        let (record, end) = LogRecord::decode(&bytes).expect("a sound record");
        state.apply(&record, end.hash).expect("the next record");
    }
    state
}

/// Path of a pack.
pub fn pack_path(repository: &Path, name: &PackName) -> PathBuf {
    repository.join(format!("packs/{:02x}/{name}", name.0[0]))
}

/// The footers of all packs in the log, in the log's order.
///
/// # Panics
/// When one is damaged.
pub fn footers(repository: &Path) -> Vec<(PackName, Vec<PackEntry>)> {
    let footer = |name: PackName| {
        let bytes = fs::read(pack_path(repository, &name)).expect("a pack of the log");
        (name, decode_footer(&bytes, bytes.len() as u64).expect("a sound footer"))
    };
    replay(repository).packs().values().map(|pack| footer(pack.added.name)).collect()
}

/// How often each chunk is stored in the packs of the log.
pub fn stored(repository: &Path) -> BTreeMap<ChunkId, u32> {
    let mut counts = BTreeMap::new();
    for entry in footers(repository).into_iter().flat_map(|(_, entries)| entries) {
        *counts.entry(entry.id).or_default() += 1;
    }
    counts
}

/// Turns over a bit of a chunk's blob wherever it is stored.
///
/// # Panics
/// When it is not stored.
pub fn damage(repository: &Path, id: ChunkId) {
    let mut found = false;
    for (pack, entries) in footers(repository) {
        for entry in entries.iter().filter(|entry| entry.id == id) {
            let blob = u64::from(entry.offset) + RECORD_HEADER_BYTES as u64;
            let last = (u64::from(entry.blob_bytes) - 1).max(BLOB_HEADER_BYTES as u64 - 4);
            flip(&pack_path(repository, &pack), blob + last, 0x20);
            found = true;
        }
    }
    assert!(found, "chunk {id} is not stored");
}

/// Turns over bits of one byte of a file.
///
/// # Panics
/// When the file is shorter.
pub fn flip(path: &Path, offset: u64, bits: u8) {
    use std::os::unix::fs::FileExt;
    let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("a file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("a byte");
    file.write_all_at(&[byte[0] ^ bits], offset).expect("written");
}

/// Copies a folder with all that is in it.
///
/// # Panics
/// When it cannot.
pub fn copy_folder(from: &Path, to: &Path) {
    for file in files(from) {
        let target = to.join(&file);
        fs::create_dir_all(target.parent().expect("inside")).expect("a folder");
        fs::copy(from.join(&file), target).expect("a copy");
    }
}
