//! Damage in a repository's files: found, told with what it costs, and healed by the next backup.

use chunker::{ChunkId, ChunkKind, Compression};
use futures::StreamExt;
use mover::Depth;
use mover::{
    BackupOptions, Begin, ErrorKind, MapReader, PageRef, PointId, Progress, ReadSession, Repository, TrackingWish,
    Verification, VerifyOptions, WriteSession, backup, with_compressor,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::format::event::Event;
use store::format::pack::{PACK_HEADER_BYTES, RECORD_HEADER_BYTES};
use store::format::record::LogRecord;
use store::io::{DiskIo, Fault, FaultIo};
use store::{Access, Local};
use windlass_tests::around::Around;
use windlass_tests::conformance::options;
use windlass_tests::fake::{Machine, noise};
use windlass_tests::kept::{Bench, Frozen, copy_folder, damage, files, flip, folder, footers, pack_path, replay};

const BLOCK: u64 = 1 << 16;

/// Blocks that are all different and take a few hundred bytes each.
fn small_blocks(seed: u64, count: u64) -> Vec<u8> {
    let block =
        |number: u64| format!("{seed} {number} ").repeat(BLOCK as usize).into_bytes()[..BLOCK as usize].to_vec();
    (0..count).flat_map(block).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_flipped_byte_is_found() {
    let (bench, kept) = (Bench::new(), folder());
    Local::init(kept.path(), None, &bench.world).unwrap();
    let machine = Machine::new(&bench.world, &[100 * BLOCK, 3 * BLOCK]);
    machine.write(0, 0, &small_blocks(1, 12));
    machine.write(1, 0, &noise(1, 3_000));
    let local = bench.open(kept.path(), Access::Write).await.unwrap();
    let mut history = vec![(bench.backup(&local, &machine).await.unwrap().point.id, machine.images())];
    machine.write(0, 5 * BLOCK, &small_blocks(2, 3));
    history.push((bench.backup(&local, &machine).await.unwrap().point.id, machine.images()));
    // So many records that there is a state digest.
    while fs::read_dir(kept.path().join("state")).unwrap().count() == 0 {
        drop(local.read(&[history[0].0]).await.unwrap());
    }
    local.close().await.unwrap();
    // The index is a cache, and the lock and the reserve are empty of meaning.
    for folder in ["index", "reserve"] {
        fs::remove_dir_all(kept.path().join(folder)).unwrap();
    }
    let durable: Vec<PathBuf> = files(kept.path()).into_iter().filter(|file| *file != Path::new("lock")).collect();
    let sizes: Vec<u64> = durable.iter().map(|file| fs::metadata(kept.path().join(file)).unwrap().len()).collect();
    let total: u64 = sizes.iter().sum();
    let open = async || bench.open_with(kept.path(), Access::Read, Arc::new(Around(Frozen))).await;
    let local = open().await.unwrap();
    let report = bench.verify(&local, Depth::Decode).await;
    assert!(report.errors.is_empty() && report.points == 2 && report.chunks > 15, "{report:?}");
    // A sample, always the same, or all of them: about a thousand and a half bytes, and each bit of a byte in its turn.
    let stride = match std::env::var("WINDLASS_FLIPS") {
        Ok(all) => {
            assert_eq!(all, "all", "WINDLASS_FLIPS is all, or not set");
            1
        }
        Err(_) => (total / 1_500).max(1) | 1,
    };
    let mut tried = 0;
    for (number, position) in (0..total).step_by(usize::try_from(stride).unwrap()).enumerate() {
        let (mut at, mut file) = (position, 0);
        while at >= sizes[file] {
            at -= sizes[file];
            file += 1;
        }
        let (path, bits) = (kept.path().join(&durable[file]), 1 << (number % 8));
        flip(&path, at, bits);
        let what = format!("byte {at} of {}", durable[file].display());
        match open().await {
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::Integrity | ErrorKind::Version), "{what}: {error:?}");
            }
            Ok(local) => {
                let report = bench.verify(&local, Depth::Decode).await;
                assert!(!report.errors.is_empty(), "{what} was not found");
                if durable[file].starts_with("packs") {
                    let report = bench.verify(&local, Depth::ReadData { percent: 100 }).await;
                    assert!(!report.errors.is_empty(), "{what} was not found by reading");
                }
                // Whatever it was: the right bytes or an error.
                for (point, images) in &history {
                    let _ = bench.restore(&local, *point, images).await;
                }
            }
        }
        flip(&path, at, bits);
        tried += 1;
    }
    println!("total: {tried} of {total} bytes flipped");
    let report = bench.verify(&open().await.unwrap(), Depth::Decode).await;
    assert!(report.errors.is_empty(), "{report:?}");
}

/// A repository open for writing, with two machines of which each has packs of its own.
struct Two {
    bench: Bench,
    kept: tempfile::TempDir,
    local: Local,
    machines: [Machine; 2],
    points: Vec<PointId>,
}

const NAMES: [&str; 2] = ["one", "two"];

impl Two {
    async fn new() -> Self {
        let (bench, kept) = (Bench::new(), folder());
        Local::init(kept.path(), None, &bench.world).unwrap();
        let local = bench.open(kept.path(), Access::Write).await.unwrap();
        let machines = [1, 2].map(|seed| {
            let machine = Machine::new(&bench.world, &[100 * BLOCK]);
            machine.write(0, 3 * BLOCK, &noise(seed, 20 * BLOCK));
            machine
        });
        let mut two = Self { bench, kept, local, machines, points: Vec::new() };
        for at in [0, 1] {
            let point = two.backup(at, TrackingWish::Auto).await.point.id;
            two.points.push(point);
        }
        two
    }

    async fn backup(&self, at: usize, wish: TrackingWish) -> mover::BackupReport {
        let options = BackupOptions { wish, ..options(NAMES[at]) };
        let source = self.machines[at].snapshot();
        backup(&self.local, source, &options, &self.bench.pool, &self.bench.world, &Progress::default()).await.unwrap()
    }

    async fn reopened_after(self, change: impl FnOnce(&Path)) -> Self {
        let Self { bench, kept, local, machines, points } = self;
        local.close().await.unwrap();
        change(kept.path());
        let local = bench.open(kept.path(), Access::Write).await.unwrap();
        Self { bench, kept, local, machines, points }
    }

    /// The pack of the first machine's data.
    fn data_pack(&self) -> PathBuf {
        let (name, _) = footers(self.kept.path()).into_iter().find(|(_, entries)| entries.len() == 20).unwrap();
        pack_path(self.kept.path(), &name)
    }

    async fn block(&self, number: u64) -> chunker::ChunkId {
        let keys = chunker::DomainKeys::new(&self.local.config().domain);
        let reader = self.local.read(&self.points).await.unwrap();
        let root = reader.manifest(self.points[0]).await.unwrap().disks[0].root;
        let leaf = MapReader::new(&reader, &keys).leaf(root, 0).await.unwrap().unwrap();
        let PageRef::Chunk(id) = leaf.entry(number) else { panic!("a hole") };
        id
    }

    async fn restore(&self, at: usize) -> mover::Result<()> {
        self.bench.restore(&self.local, self.points[at], &self.machines[at].images()).await
    }

    /// The first machine's next backup under its bitmap reads so many blocks that did not change, and all is well.
    async fn heals(&self, blocks: u64) {
        let report = self.backup(0, TrackingWish::Bitmap).await;
        assert_eq!((report.chunks_new, report.disks[0].tracking.bytes_read), (blocks, blocks * BLOCK));
        self.restore(0).await.unwrap();
        self.bench.restore(&self.local, report.point.id, &self.machines[0].images()).await.unwrap();
        assert_eq!(self.local.stats().await.unwrap().suspects, 0);
        let again = self.backup(0, TrackingWish::Bitmap).await;
        assert_eq!(again.disks[0].tracking.bytes_read, 0, "once is enough");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_pack_costs_what_was_in_it_and_heals() {
    for harm in [
        (|path: &Path| fs::remove_file(path).unwrap()) as fn(&Path),
        |path| fs::write(path, b"").unwrap(),
        |path| fs::OpenOptions::new().write(true).open(path).unwrap().set_len(200).unwrap(),
    ] {
        let two = Two::new().await;
        let pack = two.data_pack();
        let name = pack.file_name().unwrap().to_str().unwrap().to_owned();
        let two = two.reopened_after(|_| harm(&pack)).await;
        let failed = two.restore(0).await.unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::Integrity, "{failed}");
        assert!(failed.to_string().contains(&name) && failed.to_string().contains("sda"), "{failed}");
        two.restore(1).await.unwrap();
        let report = two.bench.verify(&two.local, Depth::Structure).await;
        let of_point = report.errors.iter().filter(|error| error.point == Some(two.points[0]));
        let mut offsets: Vec<_> = of_point.map(|error| error.offset.unwrap() / BLOCK).collect();
        offsets.sort_unstable();
        assert_eq!(offsets, (3..23).collect::<Vec<_>>(), "{:?}", report.errors);
        assert!(report.errors.iter().any(|error| error.pack.as_ref() == Some(&name)));
        assert!(report.errors.iter().all(|error| error.point != Some(two.points[1])));
        two.heals(20).await;
        // Without the index it is the same.
        let two = two.reopened_after(|root| fs::remove_dir_all(root.join("index")).unwrap()).await;
        two.restore(0).await.unwrap();
        two.restore(1).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_verify_finds_is_marked_and_healed() {
    // R16; once verified by the writer, once by a reader beside it, as `windlass verify` does.
    for beside in [false, true] {
        for depth in [Depth::ReadData { percent: 100 }, Depth::Decode] {
            let two = Two::new().await;
            let victim = two.block(7).await;
            damage(two.kept.path(), victim);
            let reader = two.bench.open(two.kept.path(), Access::Read).await.unwrap();
            let by = if beside { &reader } else { &two.local };
            assert!(two.bench.verify(by, Depth::Structure).await.errors.is_empty(), "that does not read data");
            let report = two.bench.verify(by, depth).await;
            assert_eq!(report.errors.len(), 1, "{:?}", report.errors);
            let error = &report.errors[0];
            assert_eq!((error.point, error.offset, error.chunk), (Some(two.points[0]), Some(7 * BLOCK), Some(victim)));
            assert_eq!(error.disk.as_ref().unwrap().as_str(), "sda");
            assert_eq!(two.local.stats().await.unwrap().suspects, 1);
            assert_eq!(two.restore(0).await.unwrap_err().kind(), ErrorKind::Integrity);
            let two = two.reopened_after(|_| ()).await;
            two.heals(1).await;
            let report = two.bench.verify(&two.local, Depth::Decode).await;
            assert!(report.errors.is_empty(), "healed damage is no error: {:?}", report.errors);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_restore_finds_is_marked_and_healed() {
    let two = Two::new().await;
    damage(two.kept.path(), two.block(11).await);
    let failed = two.restore(0).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Integrity);
    two.heals(1).await;
}

/// A read session that began before does not know yet where it is now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_healed_meanwhile_is_read_by_another_process() {
    let two = Two::new().await;
    let beside = two.bench.open(two.kept.path(), Access::Read).await.unwrap();
    let reader = beside.read(&two.points).await.unwrap();
    let victim = two.block(11).await;
    damage(two.kept.path(), victim);
    two.restore(0).await.unwrap_err();
    two.heals(1).await;
    let batches: Vec<_> = reader.get(vec![victim]).collect().await;
    assert!(matches!(&batches[..], [batch] if matches!(&batch[..], [(id, Ok(_))] if *id == victim)), "{batches:?}");
}

/// A pack that was away for a while costs nothing once it is back; and a look at everything takes back what was said of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sound_after_all_is_read_and_counts_again() {
    let two = Two::new().await;
    let (pack, away) = (two.data_pack(), two.kept.path().join("away"));
    let two = two.reopened_after(|_| fs::rename(&pack, &away).unwrap()).await;
    assert!(!two.bench.verify(&two.local, Depth::Structure).await.errors.is_empty());
    assert_eq!(two.restore(0).await.unwrap_err().kind(), ErrorKind::Integrity);
    fs::rename(&away, &pack).unwrap();
    assert_eq!(two.local.stats().await.unwrap().suspects, 20);
    two.restore(0).await.unwrap();
    // Bytes that were read are no proof of what is in them.
    two.bench.verify(&two.local, Depth::ReadData { percent: 100 }).await;
    assert_eq!(two.local.stats().await.unwrap().suspects, 20);
    let report = two.bench.verify(&two.local, Depth::Decode).await;
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    assert_eq!(two.local.stats().await.unwrap().suspects, 0);
    let report = two.backup(0, TrackingWish::Bitmap).await;
    assert_eq!((report.chunks_new, report.disks[0].tracking.bytes_read), (0, 0), "nothing is sent again");
    let two = two.reopened_after(|_| ()).await;
    two.restore(0).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_around_a_chunk_costs_no_restore() {
    for at in (0..PACK_HEADER_BYTES).step_by(9).chain((0..RECORD_HEADER_BYTES).step_by(7).map(|at| at + 100_000)) {
        let two = Two::new().await;
        let pack = two.data_pack();
        let (_, entries) = footers(two.kept.path()).into_iter().find(|(_, entries)| entries.len() == 20).unwrap();
        let at = at.checked_sub(100_000).map_or(at as u64, |inside| u64::from(entries[7].offset) + inside as u64);
        let two = two.reopened_after(|_| flip(&pack, at, 2)).await;
        two.restore(0).await.unwrap();
        let report = two.bench.verify(&two.local, Depth::Decode).await;
        assert!(!report.errors.is_empty(), "byte {at} was not found");
        two.restore(0).await.unwrap();
        two.restore(1).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_verification_found_counts_before_it_ends() {
    let two = Two::new().await;
    // Three packs are looked at together, in the order in which they were made: what comes behind them takes seconds.
    for part in 0..4 {
        two.machines[1].write(0, (25 + part * 15) * BLOCK, &noise(10 + part, 15 * BLOCK));
        two.backup(1, TrackingWish::Auto).await;
    }
    damage(two.kept.path(), two.block(7).await);
    let (local, options) =
        (two.local.clone(), VerifyOptions { rate: Some(1 << 20), ..VerifyOptions::new(Depth::Decode) });
    let running = tokio::spawn(async move { local.verify(options, Arc::default()).await });
    while two.local.stats().await.unwrap().suspects == 0 {
        assert!(!running.is_finished(), "it was noted at the end");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(!running.is_finished());
    running.abort();
    two.heals(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_at_a_time_is_everything_in_the_end() {
    let two = Two::new().await;
    let packs = footers(two.kept.path()).len();
    let all = two.bench.verify(&two.local, Depth::ReadData { percent: 100 }).await.bytes_read;
    let mut read = 0;
    for _ in 0..packs {
        read += two.bench.verify(&two.local, Depth::ReadData { percent: 1 }).await.bytes_read;
    }
    assert_eq!(read, all, "each of {packs} packs once");
}

/// Also where points have the upper pages of a map in common.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_point_that_needs_what_is_damaged_is_named() {
    let (bench, kept) = (Bench::new(), folder());
    Local::init(kept.path(), None, &bench.world).unwrap();
    let local = bench.open(kept.path(), Access::Write).await.unwrap();
    let machine = Machine::new(&bench.world, &[3000 * BLOCK]);
    machine.write(0, 2500 * BLOCK, &noise(1, 3 * BLOCK));
    let first = bench.backup(&local, &machine).await.unwrap().point.id;
    let second = bench.backup(&local, &machine).await.unwrap().point.id;
    let keys = chunker::DomainKeys::new(&local.config().domain);
    damage(kept.path(), keys.id(ChunkKind::Data, &noise(1, BLOCK)));
    let report = bench.verify(&local, Depth::Decode).await;
    let mut named: Vec<_> = report.errors.iter().map(|error| (error.point, error.offset)).collect();
    named.sort_unstable();
    let mut expected = [first, second].map(|point| (Some(point), Some(2500 * BLOCK)));
    expected.sort_unstable();
    assert_eq!(named, expected, "{:?}", report.errors);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn known_damage_is_told_as_damage() {
    let two = Two::new().await;
    let (victim, pack) = (two.block(11).await, two.data_pack());
    let pack = pack.file_name().unwrap().to_str().unwrap().to_owned();
    damage(two.kept.path(), victim);
    let told = |error: mover::Error| {
        let text = error.to_string();
        assert_eq!(error.kind(), ErrorKind::Integrity, "{text}");
        assert!(text.contains("damaged") && !text.contains("missing"), "{text}");
        assert!(text.contains(&pack) && text.contains(&victim.to_string()), "{text}");
        assert!(text.contains("sda") && text.contains(&(11 * BLOCK).to_string()), "{text}");
        assert!(error.remedy().unwrap().contains("--also-from"));
        text
    };
    told(two.restore(0).await.unwrap_err());
    // Now this process knows; after the next record the log does, too.
    assert!(told(two.restore(0).await.unwrap_err()).contains("found damaged before"));
    let two = two.reopened_after(|_| ()).await;
    assert!(told(two.restore(0).await.unwrap_err()).contains("found damaged before"));
    let report = two.bench.verify(&two.local, Depth::Structure).await;
    let error = report.errors.iter().find(|error| error.chunk == Some(victim)).unwrap();
    assert_eq!((error.pack.as_ref(), error.offset), (Some(&pack), Some(11 * BLOCK)));
    two.heals(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_that_is_not_what_its_id_says_is_named_and_heals() {
    let two = Two::new().await;
    let keys = chunker::DomainKeys::new(&two.local.config().domain);
    let machine = Machine::new(&two.bench.world, &[100 * BLOCK]);
    machine.write(0, 0, &noise(3, 5 * BLOCK));
    // A trusted sender that lies: the checksum is right, the content is another block's.
    let right = keys.id(ChunkKind::Data, &noise(3, BLOCK));
    let begin =
        Begin { point: PointId([9; 16]), parents: Vec::new(), holder: None, verification: Verification::Checksum };
    let (session, _) = two.local.begin(begin).await.unwrap();
    let blob = with_compressor(Compression::None, |compressor| compressor.compress(ChunkKind::Data, &noise(4, BLOCK)));
    session.put(vec![(right, blob)]).await.unwrap();
    session.flush().await.unwrap();
    session.abandon().await.unwrap();
    let backup = async |wish| {
        let options = BackupOptions { wish, ..options("three") };
        let (bench, source) = (&two.bench, machine.snapshot());
        backup(&two.local, source, &options, &bench.pool, &bench.world, &Progress::default()).await.unwrap()
    };
    let point = backup(TrackingWish::Auto).await.point.id;
    let failed = two.bench.restore(&two.local, point, &machine.images()).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Integrity);
    let (text, (pack, _)) =
        (failed.to_string(), footers(two.kept.path()).into_iter().find(|it| holds(it, right)).unwrap());
    assert!(text.contains(&right.to_string()) && text.contains(&pack.to_string()), "{text}");
    // It was noticed: the next backup under its bitmap brings the right one, and a second place is tried.
    let report = backup(TrackingWish::Bitmap).await;
    assert_eq!((report.chunks_new, report.disks[0].tracking.bytes_read), (1, BLOCK));
    two.bench.restore(&two.local, point, &machine.images()).await.unwrap();
}

fn holds((_, entries): &(store::format::pack::PackName, Vec<store::format::pack::PackEntry>), id: ChunkId) -> bool {
    entries.iter().any(|entry| entry.id == id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pack_that_could_not_be_indexed_is_tried_again() {
    for harm in [
        (|path: &Path| fs::remove_file(path).unwrap()) as fn(&Path),
        |path| fs::write(path, b"").unwrap(),
        |path| fs::write(path, vec![0; fs::metadata(path).unwrap().len() as usize]).unwrap(),
        // What is left is found without the footer.
        |path| fs::OpenOptions::new().write(true).open(path).unwrap().set_len(10 * BLOCK).unwrap(),
    ] {
        let two = Two::new().await;
        let (pack, away) = (two.data_pack(), two.kept.path().join("away"));
        fs::copy(&pack, &away).unwrap();
        let two = two
            .reopened_after(|root| {
                fs::remove_dir_all(root.join("index")).unwrap();
                harm(&pack);
            })
            .await;
        assert_eq!(two.restore(0).await.unwrap_err().kind(), ErrorKind::Integrity);
        two.restore(1).await.unwrap();
        // Still away: remembered all the same.
        let two = two.reopened_after(|_| ()).await;
        assert_eq!(two.restore(0).await.unwrap_err().kind(), ErrorKind::Integrity);
        let two = two.reopened_after(|_| fs::rename(&away, &pack).unwrap()).await;
        two.restore(0).await.unwrap();
        let two = two.reopened_after(|_| ()).await;
        two.restore(0).await.unwrap();
        let again = two.backup(0, TrackingWish::Fingerprint).await;
        assert_eq!(again.chunks_new, 0, "and nothing is stored twice");
    }
}

/// With the footer goes what says where records are; what stands beside a damaged one is sound all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_damaged_beside_a_damaged_footer_is_the_only_one() {
    for depth in [Depth::ReadData { percent: 100 }, Depth::Decode] {
        let two = Two::new().await;
        let (pack, victim) = (two.data_pack(), two.block(7).await);
        damage(two.kept.path(), victim);
        flip(&pack, fs::metadata(&pack).unwrap().len() - 1, 2);
        let report = two.bench.verify(&two.local, depth).await;
        let chunks: Vec<_> = report.errors.iter().filter_map(|error| error.chunk).collect();
        assert_eq!(chunks, [victim], "{:?}", report.errors);
        assert_eq!(two.local.stats().await.unwrap().suspects, 1);
        two.heals(1).await;
    }
}

/// What stands beside a chunk is damaged, and the footer, and there is no index: its content tells which chunk it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_whose_id_is_damaged_beside_a_damaged_footer_is_found() {
    let two = Two::new().await;
    let (pack, victim) = (two.data_pack(), two.block(7).await);
    let (_, entries) = footers(two.kept.path()).into_iter().find(|(_, entries)| entries.len() == 20).unwrap();
    let record = entries.iter().find(|entry| entry.id == victim).unwrap().offset;
    let two = two
        .reopened_after(|root| {
            // In the magic, the nonce and the id.
            [0, 9, 30].iter().for_each(|at| flip(&pack, u64::from(record) + at, 4));
            flip(&pack, fs::metadata(&pack).unwrap().len() - 1, 2);
            fs::remove_dir_all(root.join("index")).unwrap();
        })
        .await;
    two.restore(0).await.unwrap();
    let report = two.bench.verify(&two.local, Depth::Decode).await;
    assert!(!report.errors.is_empty(), "the pack is not what it was");
    assert!(report.errors.iter().all(|error| error.chunk.is_none_or(|chunk| chunk == victim)), "{:?}", report.errors);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_disk_is_not_taken_for_damage() {
    let two = Two::new().await;
    let verify = async |local: &Local| {
        let options = VerifyOptions::new(Depth::Decode);
        let report = local.verify(options, Arc::default()).await?;
        assert!(report.errors.iter().all(|error| error.unread), "{:?}", report.errors);
        Ok(())
    };
    let restore = async |local: &Local| two.bench.restore(local, two.points[0], &two.machines[0].images()).await;
    for job in [0, 1] {
        for after in 0.. {
            assert!(after < 500, "a job ends");
            let io = Arc::new(FaultIo::new(DiskIo));
            // Each writes its session into the log, which a verification reads: the same log for all.
            let copy = folder();
            copy_folder(two.kept.path(), copy.path());
            let local = two.bench.open_with(copy.path(), Access::Read, io.clone()).await.unwrap();
            io.plan(after, Fault::Fail);
            let last = io.operations() + after;
            let made: mover::Result<()> = if job == 0 { verify(&local).await } else { restore(&local).await };
            if let Err(error) = made {
                assert_eq!(error.kind(), ErrorKind::StoreIo, "at {after}: {error}");
            }
            let again = two.bench.open(copy.path(), Access::Read).await.unwrap();
            assert_eq!(again.stats().await.unwrap().suspects, 0, "and nothing is suspect");
            if io.operations() <= last {
                assert!(after > 10, "{after} operations");
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verifying_some_points_looks_at_nothing_else() {
    let two = Two::new().await;
    damage(two.kept.path(), two.block(5).await);
    let of = async |point| {
        let options = VerifyOptions { points: vec![point], ..VerifyOptions::new(Depth::Decode) };
        two.local.verify(options, Arc::default()).await
    };
    let sound = of(two.points[1]).await.unwrap();
    assert!(sound.errors.is_empty() && sound.points == 1, "{sound:?}");
    let hurt = of(two.points[0]).await.unwrap();
    assert_eq!((hurt.errors.len(), hurt.points), (1, 1));
    assert_eq!(of(PointId([1; 16])).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_newer_is_told_apart() {
    let two = Two::new().await;
    let (root, bench) = (two.kept.path().to_owned(), Bench::new());
    two.local.clone().close().await.unwrap();
    let (points, images, kept) = (two.points.clone(), two.machines[0].images(), two.kept);
    drop(two.local);
    // The configuration's version and features, and those of the last log record, with a hash that is right.
    for at in [8, 10] {
        flip(&root.join("config"), at, 2);
        let refused = bench.open(&root, Access::Read).await.err().expect("refused");
        assert_eq!(refused.kind(), ErrorKind::Version, "{refused}");
        flip(&root.join("config"), at, 2);
        let last = root.join("log").join(files(&root.join("log")).pop().unwrap());
        let good = fs::read(&last).unwrap();
        let mut newer = good[..good.len() - 32].to_vec();
        newer[at as usize] ^= 2;
        newer.extend(mover::digest(&newer));
        fs::write(&last, newer).unwrap();
        let refused = bench.open(&root, Access::Read).await.err().expect("refused");
        assert_eq!(refused.kind(), ErrorKind::Version, "{refused}");
        fs::write(&last, good).unwrap();
    }
    // An event of a later version: what is there can be restored, and nothing is written.
    let state = replay(&root);
    let writer = *state.writers().keys().next().unwrap();
    let record = LogRecord {
        sequence: state.end().sequence + 1,
        previous: state.end().hash,
        repository: state.repository(),
        writer,
        term: state.term(writer),
        nonce: [1; 16],
        time: bench.world.now(),
        events: vec![Event::Unknown { code: 999, critical: true }],
    };
    let last = root.join("log").join(files(&root.join("log")).pop().unwrap());
    fs::write(last.with_file_name(format!("{:020}", record.sequence)), record.encode()).unwrap();
    for access in [Access::Read, Access::Write] {
        let local = bench.open(&root, access).await.unwrap();
        let listed = local.list(&mover::PointFilter::default()).await.unwrap();
        assert_eq!(listed.iter().map(|point| point.id).collect::<Vec<_>>(), points);
        let restored = bench.restore(&local, points[0], &images).await;
        assert!(restored.is_ok(), "{restored:?}");
        let refused = bench.backup(&local, &Machine::new(&bench.world, &[BLOCK])).await.unwrap_err();
        let why = refused.message();
        match access {
            Access::Read => assert_eq!(refused.kind(), ErrorKind::Usage, "{why}"),
            Access::Write => {
                assert!(refused.kind() == ErrorKind::Version && why.contains("events of kind 999"), "{why}");
                assert!(refused.remedy().is_some_and(|remedy| remedy.contains("newer version of Windlass")));
            }
        }
        assert_eq!(replay(&root).end().sequence, record.sequence, "nothing is written");
    }
    drop(kept);
}
