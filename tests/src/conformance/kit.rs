//! Helpers for all conformance cases.

use crate::fake::{Image, Machine, Screen, Target};
use chunker::{Blob, ChunkId, ChunkKind, Compression, DomainKeys, GRID_BYTES};
use futures::StreamExt;
use mover::{
    Audit, BackupOptions, BackupReport, Begin, Commit, Consistency, CopyReport, DiskId, DiskRecord, MachineId,
    Manifest, MapBuilder, MapReader, MapRoot, PageRef, PointDraft, PointFilter, PointId, Pool, Presence, Progress,
    ReadSession, RecoveryPoint, Repository, RestoreReport, Result, Source, Stats, Timestamp, TrackingRecord,
    TrackingWish, Verification, World, WriteSession, backup, copy, restore, restore_delta, with_compressor,
};
use std::collections::BTreeMap;
use std::future::Future;

/// One repository under test, and how to make others like it.
pub trait Fixture: Sized + Send + Sync {
    /// What is tested.
    type Repository: Repository;

    /// An empty repository in a dedup domain of its own.
    fn fresh() -> impl Future<Output = Self> + Send;

    /// Another empty repository in the same dedup domain.
    fn sibling(&self) -> impl Future<Output = Self> + Send;

    /// Clock and randomness of the repository.
    fn world(&self) -> World;

    /// Opens it; what was not durable when the last handle was dropped may be gone. Never called while one is open.
    fn open(&self) -> impl Future<Output = Result<Self::Repository>> + Send;

    /// Damages a stored chunk and lets the repository find out, so that it is suspect from now on. False when this
    /// fixture cannot; the case is skipped then.
    fn hurt(&self, repository: &Self::Repository, id: ChunkId) -> impl Future<Output = bool> + Send;
}

/// A repository under test with everything that jobs need.
pub struct Lab<F: Fixture> {
    /// The repository, open. Dropped before the fixture: RocksDB waits a second for a folder that went away under it.
    pub repository: F::Repository,
    /// Its fixture.
    pub fixture: F,
    /// Its domain's fingerprints.
    pub keys: DomainKeys,
    /// Its world.
    pub world: World,
    /// Worker threads.
    pub pool: Pool,
}

impl<F: Fixture> Lab<F> {
    /// A lab on an empty repository.
    pub async fn new() -> Self {
        Self::on(F::fresh().await).await
    }

    /// A lab on another empty repository of the same domain.
    pub async fn sibling(&self) -> Self {
        Self::on(self.fixture.sibling().await).await
    }

    async fn on(fixture: F) -> Self {
        let repository = fixture.open().await.expect("it opens");
        let keys = DomainKeys::new(&repository.config().domain);
        let (world, pool) = (fixture.world(), Pool::new(2).expect("threads"));
        Self { fixture, repository, keys, world, pool }
    }

    /// Closes the repository and opens it again.
    pub async fn reopened(self) -> Self {
        let Self { fixture, repository, .. } = self;
        drop(repository);
        Self::on(fixture).await
    }

    /// Backs up; it must go well.
    pub async fn backup(&self, name: &str, machine: &Machine) -> BackupReport {
        self.backup_with(&self.repository, &options(name), machine.snapshot()).await.expect("backup")
    }

    /// Backs up as told.
    pub async fn backup_with<R: Repository, S: Source>(
        &self,
        repository: &R,
        options: &BackupOptions,
        source: S,
    ) -> Result<BackupReport> {
        backup(repository, source, options, &self.pool, &self.world, &Progress::default()).await
    }

    /// All points.
    pub async fn points(&self) -> Vec<RecoveryPoint> {
        self.repository.list(&PointFilter::default()).await.expect("list")
    }

    /// Restores every disk of `point` and compares.
    pub async fn assert_restores(&self, point: PointId, images: &[Image]) {
        let reader = self.repository.read(&[point]).await.expect("read");
        self.assert_reader_restores(&reader, point, images).await;
    }

    /// The same through any reader.
    pub async fn assert_reader_restores<R: ReadSession>(&self, reader: &R, point: PointId, images: &[Image]) {
        let manifest = reader.manifest(point).await.expect("manifest");
        assert_eq!(manifest.disks.len(), images.len());
        for (disk, image) in manifest.disks.iter().zip(images) {
            let screen = self.restore(reader, disk, Target::new(disk.size)).await.expect("restore");
            let same = screen.image().as_ref() == Some(image);
            assert!(same, "disk {} of point {point} is not what it was", disk.name);
            assert_eq!(screen.covered().bytes(), disk.size, "every byte is written or made zero");
        }
    }

    /// Restores one disk.
    pub async fn restore<R: ReadSession>(
        &self,
        reader: &R,
        disk: &DiskRecord,
        (target, screen): (Target, Screen),
    ) -> Result<Screen> {
        restore(reader, &self.keys, disk, target, &self.pool, &Progress::default()).await.map(|_| screen)
    }

    /// Updates a target that holds something to the state of a disk.
    pub async fn restore_delta<R: ReadSession>(
        &self,
        reader: &R,
        disk: &DiskRecord,
        target: Target,
    ) -> Result<RestoreReport> {
        restore_delta(reader, &self.keys, disk, target, &self.pool, &Progress::default()).await
    }

    /// Copies from here to another repository.
    pub async fn copy_to<B: Repository>(&self, to: &B, point: &RecoveryPoint) -> Result<CopyReport> {
        copy(&self.repository, to, point, Verification::Decode, &Progress::default()).await
    }

    /// Totals, without what changes by itself.
    pub async fn stats(&self) -> Stats {
        Stats { bytes_free: None, ..self.repository.stats().await.expect("stats") }
    }

    /// A session without parents.
    pub async fn session(&self) -> <F::Repository as Repository>::Session {
        self.session_of(PointId::random(&self.world), &[]).await
    }

    /// A session for this point on these parents.
    pub async fn session_of(&self, point: PointId, parents: &[PointId]) -> <F::Repository as Repository>::Session {
        let begin = begin(point, parents, Verification::Decode);
        self.repository.begin(begin).await.expect("begin").0
    }

    /// A chunk of a whole block.
    pub fn block(&self, seed: u64) -> (ChunkId, Blob) {
        self.chunk(ChunkKind::Data, &crate::fake::noise(seed, GRID_BYTES.into()))
    }

    /// A chunk.
    pub fn chunk(&self, kind: ChunkKind, plain: &[u8]) -> (ChunkId, Blob) {
        let blob = with_compressor(Compression::Zstd(1), |compressor| compressor.compress(kind, plain));
        (self.keys.id(kind, plain), blob)
    }

    /// The map of a disk of 1 GiB with these blocks, and its pages, root last.
    pub async fn map(&self, blocks: &[(u64, ChunkId)]) -> (MapRoot, Vec<(ChunkId, Blob)>) {
        let none = None::<(MapRoot, &MapReader<'_, <F::Repository as Repository>::Session>)>;
        let mut builder = MapBuilder::new(DISK_BYTES, none, &self.keys);
        for (block, id) in blocks {
            builder.set(*block, PageRef::Chunk(*id)).await.expect("no base");
        }
        let (root, pages) = builder.finish();
        (root, pages.iter().map(|page| self.chunk(ChunkKind::Page, &page.plain)).collect())
    }

    /// A point of one disk of 1 GiB with this map.
    pub fn draft(&self, point: PointId, root: MapRoot) -> PointDraft {
        PointDraft { manifest: manifest(point, root), origin: None, labels: Default::default() }
    }

    /// The disk's bytes that [`Self::map`] of these seeds' blocks stands for.
    pub fn image(&self, blocks: &[(u64, u64)]) -> Image {
        let mut image = Image::new(DISK_BYTES);
        for (block, seed) in blocks {
            let bytes = crate::fake::noise(*seed, GRID_BYTES.into());
            image.write(block * u64::from(GRID_BYTES), &bytes);
        }
        image
    }

    /// Whether a new session finds a chunk in the repository, after everything that was put before is durable.
    pub async fn has(&self, kind: ChunkKind, id: ChunkId) -> bool {
        let session = self.session().await;
        session.flush().await.expect("flush");
        session.missing(kind, &[id]).await.expect("missing") == [Presence::Have]
    }

    /// Every blob below a point, by id, and the pages among them.
    pub async fn blobs(&self, point: PointId) -> BTreeMap<ChunkId, Blob> {
        let reader = self.repository.read(&[point]).await.expect("read");
        let manifest = reader.manifest(point).await.expect("manifest");
        let maps = MapReader::new(&reader, &self.keys);
        let mut blobs = BTreeMap::new();
        let mut level: Vec<(ChunkId, Option<u8>)> =
            manifest.roots().filter_map(|root| root.id.map(|id| (id, Some(root.level)))).collect();
        while !level.is_empty() {
            fetch(&reader, level.iter().map(|(id, _)| *id).collect(), &mut blobs).await;
            let mut below = Vec::new();
            for (id, height) in level {
                let Some(height) = height else { continue };
                let page = maps.page(id, height).await.expect("page");
                below.extend(page.chunks().map(|id| (id, height.checked_sub(1))));
            }
            level = below;
        }
        blobs
    }
}

/// Reads chunks that must be there.
pub async fn fetch<R: ReadSession>(reader: &R, ids: Vec<ChunkId>, blobs: &mut BTreeMap<ChunkId, Blob>) {
    let batches = reader.get(ids);
    futures::pin_mut!(batches);
    while let Some(batch) = batches.next().await {
        blobs.extend(batch.into_iter().map(|(id, blob)| (id, blob.expect("it is there"))));
    }
}

/// The committed points, or a panic.
pub fn committed(commit: Commit) -> Vec<RecoveryPoint> {
    match commit {
        Commit::Committed(points) => points,
        Commit::Missing(ids) => panic!("missing {ids:?}"),
    }
}

/// The missing ids in order, or a panic.
pub fn missing(commit: Commit) -> Vec<ChunkId> {
    match commit {
        Commit::Committed(points) => panic!("committed {points:?}"),
        Commit::Missing(mut ids) => {
            ids.sort();
            ids
        }
    }
}

/// What is asked of a new session.
pub fn begin(point: PointId, parents: &[PointId], verification: Verification) -> Begin {
    Begin { point, parents: parents.to_vec(), holder: None, verification }
}

/// Options of an ordinary backup.
pub fn options(name: &str) -> BackupOptions {
    BackupOptions {
        machine_name: name.parse().expect("a name"),
        machine: None,
        point: None,
        wish: TrackingWish::Auto,
        compression: Compression::Zstd(1),
        verification: Verification::Decode,
        tags: Vec::new(),
        attachments: Vec::new(),
        rate: None,
        audit: Audit::Percent(0),
        allow: mover::Allow { shrink: true, format_change: false },
        quiesce: mover::Quiesce::Auto,
    }
}

/// A manifest of one disk of [`DISK_BYTES`] with this map.
pub fn manifest(point: PointId, root: MapRoot) -> Manifest {
    Manifest {
        point,
        machine: MachineId([7; 16]),
        machine_name: "manual".parse().expect("a name"),
        parent: None,
        group: None,
        snapshot_time: Timestamp(1),
        begin_time: Timestamp(2),
        end_time: Timestamp(3),
        guest_clock_offset_ns: None,
        consistency: Consistency::Crash,
        tags: Vec::new(),
        labels: BTreeMap::new(),
        producer: "conformance".into(),
        disks: vec![DiskRecord {
            id: DiskId([8; 16]),
            name: "sda".parse().expect("a name"),
            size: DISK_BYTES,
            grid: GRID_BYTES,
            root,
            logical_sector_bytes: 512,
            physical_sector_bytes: 512,
            discard_bytes: 0,
            boot_order: 0,
            bus: String::new(),
            serial: String::new(),
            format: "raw".into(),
            format_options: String::new(),
            chain: Vec::new(),
            tracking: TrackingRecord {
                mode: mover::ChangeTracking::Full,
                reason: "by hand".into(),
                checkpoint: None,
                granularity: 0,
                bytes_read: 0,
                bytes_changed: 0,
                bytes_audited: 0,
            },
        }],
        attachments: Vec::new(),
        bytes_new: 0,
        extensions: Vec::new(),
    }
}

/// Size of disks made by hand: a map of two levels.
pub const DISK_BYTES: u64 = 1 << 30;

/// A block.
pub const BLOCK: u64 = GRID_BYTES as u64;

/// A leaf's worth of disk.
pub const LEAF: u64 = mover::PAGE_ENTRIES * BLOCK;
