use super::*;
use crate::testing::{Shelf, run};
use crate::{ChunkBatch, ErrorKind, Manifest, MemSession, PageRef, PointId, WriteSession, with_compressor};
use chunker::{ChunkKind, Compression};
use futures::{Stream, stream};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

const GRID: u64 = GRID_BYTES as u64;

/// A session that counts which chunks it is asked for, and can lose, spoil and hold back.
struct Copy {
    session: MemSession,
    asked: Mutex<BTreeMap<ChunkId, u32>>,
    gone: Mutex<BTreeSet<ChunkId>>,
    /// Other bytes under the right checksum, until they are asked for in the slow way.
    spoiled: Mutex<BTreeSet<ChunkId>>,
    held: AtomicBool,
}

impl ReadSession for Copy {
    async fn manifest(&self, point: PointId) -> Result<Manifest> {
        self.session.manifest(point).await
    }

    fn get(&self, ids: Vec<ChunkId>) -> impl Stream<Item = ChunkBatch> + Send {
        ids.iter().for_each(|id| *self.asked.lock().unwrap().entry(*id).or_default() += 1);
        let (gone, spoiled) = (self.gone.lock().unwrap().clone(), self.spoiled.lock().unwrap().clone());
        let hold = async {
            while self.held.load(SeqCst) {
                tokio::task::yield_now().await;
            }
        };
        let blobs = self.session.get(ids).map(move |batch| {
            let one = |(id, blob)| match (gone.contains(&id), spoiled.contains(&id)) {
                (true, _) => (id, Err(ChunkError::Missing { chunk: id })),
                (_, true) => (id, Ok(compressed(&[0xee; GRID_BYTES as usize]))),
                _ => (id, blob),
            };
            batch.into_iter().map(one).collect()
        });
        stream::once(hold).filter_map(|()| std::future::ready(None)).chain(blobs)
    }

    async fn get_verified(&self, keys: &DomainKeys, ids: Vec<ChunkId>) -> ChunkBatch {
        let gone = self.gone.lock().unwrap().clone();
        let (lost, there): (Vec<_>, Vec<_>) = ids.into_iter().partition(|id| gone.contains(id));
        let mut made = self.session.get_verified(keys, there).await;
        made.extend(lost.into_iter().map(|chunk| (chunk, Err(ChunkError::Missing { chunk }))));
        made
    }
}

fn compressed(plain: &[u8]) -> Blob {
    with_compressor(Compression::Zstd(1), |compressor| compressor.compress(ChunkKind::Data, plain))
}

/// A disk, what it holds, and the copy it is on.
struct Lab {
    copy: Arc<Copy>,
    disk: DiskRecord,
    bytes: Vec<u8>,
    keys: DomainKeys,
}

impl Lab {
    /// A disk with one block for each number, and `tail` more bytes; 0 is a block of zeros that is not stored, and equal
    /// numbers are equal blocks.
    async fn new(blocks: &[u8], tail: usize) -> Self {
        let Shelf { session, keys } = Shelf::new().await;
        let (mut bytes, mut changes) = (Vec::new(), BTreeMap::new());
        for (number, byte) in blocks.iter().copied().chain((tail > 0).then_some(77)).enumerate() {
            let length = if number == blocks.len() { tail } else { GRID_BYTES as usize };
            let plain: Vec<u8> =
                (0..length).map(|at| if byte == 0 { 0 } else { byte.wrapping_add((at / 7) as u8) }).collect();
            if byte > 0 {
                let id = keys.id(ChunkKind::Data, &plain);
                session.put(vec![(id, compressed(&plain))]).await.unwrap();
                changes.insert(number as u64, PageRef::Chunk(id));
            }
            bytes.extend(plain);
        }
        let shelf = Shelf { session, keys };
        let root = shelf.build(bytes.len() as u64, None, &changes).await;
        let mut disk = crate::record::manifest::tests::sample().disks.remove(0);
        (disk.size, disk.root) = (bytes.len() as u64, root);
        let Shelf { session, keys } = shelf;
        session.flush().await.unwrap();
        let copy = Copy {
            session,
            asked: Mutex::default(),
            gone: Mutex::default(),
            spoiled: Mutex::default(),
            held: AtomicBool::new(false),
        };
        Self { copy: Arc::new(copy), disk, bytes, keys }
    }

    fn view(&self, cache_bytes: usize, ahead_bytes: u64) -> DiskView<Copy> {
        let options = ViewOptions { cache_bytes, ahead_bytes };
        DiskView::new(self.copy.clone(), &self.keys, &self.disk, &Pool::inline(), options)
    }

    fn id(&self, block: usize) -> ChunkId {
        let from = block * GRID_BYTES as usize;
        self.keys.id(ChunkKind::Data, &self.bytes[from..(from + GRID_BYTES as usize).min(self.bytes.len())])
    }

    fn is(&self, offset: u64, read: &[u8]) -> bool {
        self.bytes[offset as usize..][..read.len()] == *read
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn reads_anywhere_are_what_the_disk_holds(
        blocks in prop::collection::vec(0..6u8, 1..40),
        tail in 0..3000usize,
        cache in 0..8usize,
        reads in prop::collection::vec((any::<prop::sample::Index>(), 0..300_000u64), 1..20),
    ) {
        run(async {
            let lab = Lab::new(&blocks, tail).await;
            let view = lab.view(cache * GRID_BYTES as usize, 4 * GRID);
            let reads = stream::iter(&reads).map(|(at, length)| {
                let (view, offset) = (&view, at.index(lab.bytes.len()) as u64);
                let length = (*length).min(view.size() - offset);
                async move { (offset, length, view.read(Extent::new(offset, length)).await.unwrap()) }
            });
            let done: Vec<_> = reads.buffer_unordered(4).collect().await;
            for (offset, length, read) in done {
                assert_eq!(read.len() as u64, length);
                assert!(lab.is(offset, &read), "{offset} {length}");
            }
            let data = view.data(Extent::new(0, view.size())).await.unwrap();
            let expected = (0..).zip(&blocks).filter(|(_, byte)| **byte > 0).map(|(at, _)| Extent::new(at * GRID, GRID));
            let tail = (tail > 0).then(|| Extent::new(blocks.len() as u64 * GRID, tail as u64));
            assert_eq!(data, expected.chain(tail).collect());
        });
    }
}

/// However often a chunk stands in the disk, and however many read it at once.
#[test]
fn each_chunk_is_fetched_once_ahead_of_who_reads_in_order() {
    run(async {
        let blocks: Vec<u8> = (0..200).map(|number| number as u8 % 120 + 1).collect();
        let lab = Lab::new(&blocks, 0).await;
        let view = lab.view(64 << 20, 8 << 20);
        let mut at = 0;
        while at < view.size() {
            let step = Extent::from(at..(at + 100_000).min(view.size()));
            let (one, two) = futures::future::join(view.read(step), view.read(step)).await;
            assert!(lab.is(at, &one.unwrap()) && lab.is(at, &two.unwrap()));
            at = step.end();
        }
        let asked = lab.copy.asked.lock().unwrap();
        assert!(asked.values().all(|times| *times == 1), "{asked:?}");
        assert_eq!(asked.len(), 120 + 1, "each once, and one page");
    });
}

#[test]
fn what_is_ahead_is_there_before_it_is_asked_for() {
    run(async {
        let lab = Lab::new(&(0..300).map(|at| (at % 250) as u8 + 1).collect::<Vec<_>>(), 0).await;
        let view = lab.view(64 << 20, 16 << 20);
        for at in 0..8 {
            view.read(Extent::new(at * GRID, GRID)).await.unwrap();
        }
        for _ in 0..10_000 {
            tokio::task::yield_now().await;
        }
        let before = lab.copy.asked.lock().unwrap().len();
        assert!(before > 32, "{before}");
        view.read(Extent::new(8 * GRID, 16 * GRID)).await.unwrap();
        assert!(lab.copy.asked.lock().unwrap().contains_key(&lab.id(20)));
    });
}

#[test]
fn a_chunk_that_cannot_be_had_is_named_and_asked_for_again_later() {
    run(async {
        let lab = Lab::new(&[1, 2, 3], 100).await;
        let view = lab.view(1 << 20, 1 << 20);
        lab.copy.gone.lock().unwrap().insert(lab.id(1));
        let error = view.read(Extent::new(0, 2 * GRID)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Integrity);
        let (said, id) = (error.to_string(), lab.id(1).to_string());
        assert!(said.contains("offset 65536") && said.contains(&id) && said.contains(lab.disk.name.as_str()), "{said}");
        assert!(lab.is(0, &view.read(Extent::new(0, GRID)).await.unwrap()), "the others are served");
        lab.copy.gone.lock().unwrap().clear();
        assert!(lab.is(GRID, &view.read(Extent::new(GRID, GRID)).await.unwrap()), "the copy came back");
    });
}

#[test]
fn a_blob_of_other_content_is_never_served_and_taken_from_elsewhere() {
    run(async {
        let lab = Lab::new(&[1, 2, 3], 0).await;
        let view = lab.view(1 << 20, 0);
        lab.copy.spoiled.lock().unwrap().extend([lab.id(0), lab.id(2)]);
        assert!(lab.is(0, &view.read(Extent::new(0, 3 * GRID)).await.unwrap()));
        let view = lab.view(1 << 20, 0);
        lab.copy.gone.lock().unwrap().insert(lab.id(0));
        assert_eq!(view.read(Extent::new(0, 1)).await.unwrap_err().kind(), ErrorKind::Integrity);
    });
}

#[test]
fn a_reader_that_gives_up_takes_nothing_from_others() {
    run(async {
        let lab = Lab::new(&[1, 2], 0).await;
        let view = lab.view(1 << 20, 0);
        // The page is there.
        view.read(Extent::new(GRID, 1)).await.unwrap();
        lab.copy.held.store(true, SeqCst);
        let mut first = Box::pin(view.read(Extent::new(0, GRID)));
        let second = view.read(Extent::new(0, GRID));
        assert!(futures::poll!(first.as_mut()).is_pending());
        tokio::task::yield_now().await;
        let second = async {
            drop(first);
            lab.copy.held.store(false, SeqCst);
            second.await
        };
        assert!(lab.is(0, &second.await.unwrap()));
        assert_eq!(lab.copy.asked.lock().unwrap()[&lab.id(0)], 1);
    });
}

#[test]
fn reads_past_the_end_and_too_long_ones_are_refused() {
    run(async {
        let lab = Lab::new(&[1], 5).await;
        let view = lab.view(0, 0);
        assert_eq!(view.read(Extent::new(GRID, 6)).await.unwrap_err().kind(), ErrorKind::Usage);
        assert_eq!(view.read(Extent::new(view.size(), 0)).await.unwrap(), Bytes::new());
        assert!(lab.is(GRID, &view.read(Extent::new(GRID, 5)).await.unwrap()));
        let mut lab = lab;
        lab.disk.size = 1 << 40;
        let long = DiskView::<Copy>::READ_BYTES_MAX + 1;
        assert_eq!(lab.view(0, 0).read(Extent::new(0, long)).await.unwrap_err().kind(), ErrorKind::Usage);
    });
}

/// A block that is longer or shorter than its place, or no data at all, is an error, not bytes.
#[test]
fn what_does_not_fit_its_place_is_refused() {
    run(async {
        let lab = Lab::new(&[1, 2], 0).await;
        let mut short = Lab { disk: lab.disk.clone(), ..lab };
        short.disk.size = 2 * GRID - 5;
        let view = short.view(1 << 20, 0);
        assert!(short.is(0, &view.read(Extent::new(0, GRID)).await.unwrap()));
        assert_eq!(view.read(Extent::new(GRID, 5)).await.unwrap_err().kind(), ErrorKind::Integrity);
    });
}
