//! Backups into a repository that answers late: what waits for an answer keeps nothing up, and holds little.

use bytes::Bytes;
use chunker::Extent;
use mover::{
    BackupReport, Changed, Depth, DiskDescription, ErrorKind, Mem, Outcome, ParentDisk, PointFilter, Pool, Progress,
    ReadSession, Repository, Result, Source, TrackingWish, VerifyOptions, World, backup, restore,
};
use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use windlass_tests::conformance::options;
use windlass_tests::fake::{Machine, Snapshot, Target, noise};
use windlass_tests::meddle::Meddled;

/// What was read of a source.
#[derive(Default)]
struct Reads {
    under_way: AtomicUsize,
    most_at_once: AtomicUsize,
    count: AtomicUsize,
    seen: Mutex<HashSet<u64>>,
}

/// A source whose reads take a moment and are counted.
struct Watched {
    inner: Snapshot,
    reads: Arc<Reads>,
    /// What is read a second time is something else.
    unsteady: bool,
}

impl Source for Watched {
    fn disks(&self) -> &[DiskDescription] {
        self.inner.disks()
    }

    fn snapshot(&self) -> &mover::Snapshot {
        self.inner.snapshot()
    }

    async fn changed(&self, disk: usize, parent: Option<ParentDisk<'_>>, wish: TrackingWish) -> Result<Changed> {
        self.inner.changed(disk, parent, wish).await
    }

    async fn read(&self, disk: usize, extent: Extent) -> Result<Bytes> {
        self.reads.count.fetch_add(1, SeqCst);
        self.reads.most_at_once.fetch_max(self.reads.under_way.fetch_add(1, SeqCst) + 1, SeqCst);
        tokio::time::sleep(Duration::from_millis(1)).await;
        let bytes = self.inner.read(disk, extent).await?;
        self.reads.under_way.fetch_sub(1, SeqCst);
        let again = !self.reads.seen.lock().unwrap().insert(extent.offset);
        Ok(if again && self.unsteady { vec![7; bytes.len()].into() } else { bytes })
    }

    async fn check(&self) -> Result<()> {
        self.inner.check().await
    }

    async fn finish(self, outcome: Outcome) -> Result<()> {
        self.inner.finish(outcome).await
    }
}

struct Far {
    mem: Mem,
    world: World,
    pool: Pool,
    machine: Machine,
}

impl Far {
    fn new() -> Self {
        let world = World::system();
        let machine = Machine::new(&world, &[DISK_BYTES]);
        machine.write(0, 0, &noise(1, DISK_BYTES));
        Self { mem: Mem::new(&world), pool: Pool::new(2).unwrap(), machine, world }
    }

    async fn backup(&self, name: &str, unsteady: bool) -> (Result<BackupReport>, Arc<Reads>) {
        let far = Meddled::new(&self.mem);
        far.meddling.plan().late = Duration::from_millis(150);
        let reads = Arc::<Reads>::default();
        let source = Watched { inner: self.machine.snapshot(), reads: reads.clone(), unsteady };
        let made = backup(&far, source, &options(name), &self.pool, &self.world, &Progress::default()).await;
        (made, reads)
    }
}

/// Pieces of a mebibyte: more than wait with their bytes.
const DISK_BYTES: u64 = 160 << 20;
const PIECES: usize = (DISK_BYTES >> 20) as usize;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_guessed_wrong_is_read_again_a_few_at_a_time() {
    let far = Far::new();
    let (made, reads) = far.backup("a", false).await;
    let made = made.unwrap();
    assert_eq!(made.bytes_new, DISK_BYTES);
    let count = reads.count.load(SeqCst);
    assert!(count > PIECES && count < 2 * PIECES, "{count} reads: some were guessed, those before them not");
    let most = reads.most_at_once.load(SeqCst);
    assert!(most <= 32, "{most} at once");
    let everything = VerifyOptions::new(Depth::Decode);
    assert_eq!(far.mem.verify(everything, Arc::default()).await.unwrap().errors, []);
    let reader = far.mem.read(&[made.point.id]).await.unwrap();
    let disk = &reader.manifest(made.point.id).await.unwrap().disks[0];
    let keys = chunker::DomainKeys::new(&far.mem.config().domain);
    let (target, screen) = Target::new(disk.size);
    restore(&reader, &keys, disk, target, &far.pool, &Progress::default()).await.unwrap();
    assert!(screen.image().as_ref() == Some(&far.machine.images()[0]), "it is the same disk");

    let (again, reads) = far.backup("b", false).await;
    assert_eq!(again.unwrap().chunks_new, 0);
    assert_eq!(reads.count.load(SeqCst), PIECES, "what is there is read once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_does_not_hold_still_is_no_point() {
    let far = Far::new();
    let (made, _) = far.backup("a", true).await;
    let error = made.unwrap_err();
    assert!(error.kind() == ErrorKind::Source && error.to_string().contains("read again"), "{error}");
    assert_eq!(far.mem.list(&PointFilter::default()).await.unwrap(), []);
}
