//! A repository's directory seen from outside: what is in its files, and how to hurt them.

use crate::around::{Before, Operation, Then};
use crate::conformance::options;
use crate::fake::{Image, Machine, Target};
use chunker::{BLOB_HEADER_BYTES, ChunkId};
use mover::{
    BackupReport, ErrorKind, PointFilter, PointId, Pool, Progress, ReadSession, RecoveryPoint, Repository,
    RepositoryConfig, Result, World, backup, restore,
};
use mover::{Depth, VerifyOptions, VerifyReport};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use store::format::config::ConfigFile;
use store::format::event::{AddedPack, Event};
use store::format::pack::{PackEntry, PackName, RECORD_HEADER_BYTES, decode_footer};
use store::format::record::LogRecord;
use store::io::{DiskIo, Io};
use store::state::State;
use store::{Access, Local};

/// What opening repositories and running jobs on them takes.
pub struct Bench {
    /// Clock and randomness.
    pub world: World,
    /// Worker threads.
    pub pool: Pool,
}

/// Points and what they must restore to, in the order of their commits.
pub type History = Vec<(PointId, Vec<Image>)>;

impl Bench {
    /// A bench with the clock of the machine and two threads.
    ///
    /// # Panics
    /// When threads cannot be started.
    pub fn new() -> Self {
        Self { world: World::system(), pool: Pool::new(2).expect("threads") }
    }

    /// Opens the repository in `folder`.
    ///
    /// # Errors
    /// As [`Local::open`].
    pub async fn open(&self, folder: &Path, access: Access) -> Result<Local> {
        self.open_with(folder, access, Arc::new(DiskIo)).await
    }

    /// Opens the repository in `folder` for writing after a job on it was dropped. Work on files that the job had begun
    /// still goes on to its end, and holds the lock until then, so this tries several times.
    ///
    /// # Errors
    /// As [`Local::open`]; `Busy` when the lock is held for long.
    pub async fn reopen(&self, folder: &Path) -> Result<Local> {
        let mut tries = 0;
        loop {
            match self.open(folder, Access::Write).await {
                Err(error) if error.kind() == ErrorKind::Busy && tries < 2000 => tries += 1,
                opened => return opened,
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Opens the repository in `folder` through `io`.
    ///
    /// # Errors
    /// As [`Local::open`].
    pub async fn open_with(&self, folder: &Path, access: Access, io: Arc<dyn Io>) -> Result<Local> {
        Local::open_with(folder, access, self.pool.clone(), self.world.clone(), io).await
    }

    /// Backs a machine up under the name `web`.
    ///
    /// # Errors
    /// As [`backup`].
    pub async fn backup(&self, repository: &Local, machine: &Machine) -> Result<BackupReport> {
        backup(repository, machine.snapshot(), &options("web"), &self.pool, &self.world, &Progress::default()).await
    }

    /// Restores every disk of a point and compares; a difference is a panic.
    ///
    /// # Errors
    /// As [`restore`].
    ///
    /// # Panics
    /// When the bytes are wrong.
    pub async fn restore(&self, repository: &Local, point: PointId, images: &[Image]) -> Result<()> {
        let reader = repository.read(&[point]).await?;
        self.restore_from(&reader, repository.config(), point, images).await
    }

    /// The same through a session that there is already.
    ///
    /// # Errors
    /// As [`restore`].
    ///
    /// # Panics
    /// When the bytes are wrong.
    pub async fn restore_from<R: ReadSession>(
        &self,
        reader: &R,
        config: &RepositoryConfig,
        point: PointId,
        images: &[Image],
    ) -> Result<()> {
        let keys = chunker::DomainKeys::new(&config.domain);
        let manifest = reader.manifest(point).await?;
        assert_eq!(manifest.disks.len(), images.len());
        for (disk, image) in manifest.disks.iter().zip(images) {
            let (target, screen) = Target::new(disk.size);
            restore(reader, &keys, disk, target, &self.pool, &Progress::default()).await?;
            assert!(screen.image().as_ref() == Some(image), "disk {} of point {point} is not what it was", disk.name);
        }
        Ok(())
    }

    /// Checks that the repository has exactly these points, and that each restores to its images.
    ///
    /// # Panics
    /// When they differ.
    pub async fn assert_holds(&self, repository: &Local, history: &History) {
        let ids: Vec<PointId> = points(repository).await.iter().map(|point| point.id).collect();
        assert_eq!(ids, history.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        for (point, images) in history {
            self.restore(repository, *point, images).await.expect("it restores");
        }
    }

    /// Verifies everything.
    ///
    /// # Panics
    /// When it cannot be done; damage is in the report.
    pub async fn verify(&self, repository: &Local, depth: Depth) -> VerifyReport {
        let options = VerifyOptions::new(depth);
        repository.verify(options, Arc::new(Progress::default())).await.expect("it can be verified")
    }
}

impl Default for Bench {
    fn default() -> Self {
        Self::new()
    }
}

/// All points.
///
/// # Panics
/// When they cannot be listed.
pub async fn points(repository: &Local) -> Vec<RecoveryPoint> {
    repository.list(&PointFilter::default()).await.expect("list")
}

/// Files of which none can be changed, as on a file system mounted for reading.
pub struct Frozen;

impl Before for Frozen {
    type Files = DiskIo;

    fn files(&self) -> &DiskIo {
        &DiskIo
    }

    fn before(&self, operation: Operation<'_>) -> io::Result<Then> {
        match operation {
            Operation::Read => Ok(Then::Do),
            _ => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
        }
    }
}

/// A folder for repositories that goes with the value, in memory if there is such a file system, because syncs to a
/// disk would only make these tests slower.
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
    let mut state = State::new(config.config.id, &config.bytes);
    for file in files(&repository.join("log")) {
        let bytes = fs::read(repository.join("log").join(file)).expect("a record");
        let (record, end) = LogRecord::decode(&bytes).expect("a sound record");
        state.apply(&record, end.hash).expect("the next record");
    }
    state
}

/// Appends a record of these events to the log, as the next process of the directory's writer would.
///
/// # Panics
/// When nobody has written there, or files fail.
pub fn append(repository: &Path, world: &World, events: Vec<Event>) {
    let state = replay(repository);
    let writer = *state.writers().keys().next().expect("a writer");
    let record = LogRecord {
        sequence: state.end().sequence + 1,
        previous: state.end().hash,
        repository: state.repository(),
        writer,
        term: state.term(writer) + 1,
        nonce: [1; 16],
        time: world.now(),
        events: [vec![Event::WriterTerm], events].concat(),
    };
    let last = repository.join("log").join(files(&repository.join("log")).pop().expect("a record"));
    fs::write(last.with_file_name(format!("{:020}", record.sequence)), record.encode()).expect("written");
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
    let footer = |pack: &AddedPack| {
        let bytes = fs::read(pack_path(repository, &pack.name)).expect("a pack of the log");
        (pack.name, decode_footer(&bytes, pack.kind, bytes.len() as u64).expect("a sound footer"))
    };
    replay(repository).packs().values().map(|pack| footer(&pack.added)).collect()
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

/// Copies a folder with all that is in it, empty folders too.
///
/// # Panics
/// When it cannot.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            fs::copy(&path, &target).expect("a copy");
        }
    }
}
