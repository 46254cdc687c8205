use super::*;
use crate::testing::{self, Model, Shelf, models, sizes};
use crate::{MapRoot, PAGE_ENTRIES, level_of};
use chunker::{ChunkKind, GRID_BYTES};
use proptest::prelude::*;
use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;

/// Says that everything is there but what was taken out; remembers how many were asked for.
#[derive(Default)]
struct Absent {
    ids: Mutex<BTreeSet<ChunkId>>,
    asked: Mutex<u64>,
    /// What is no page.
    chunks: HashMap<ChunkId, Shape>,
}

impl Absent {
    fn with_blocks(models: &[&Model], short: &[(ChunkId, u64)]) -> Self {
        let block = |bytes: u64| Shape { kind: ChunkKind::Data, plain_bytes: u32::try_from(bytes).unwrap() };
        let whole = models.iter().flat_map(|model| model.values()).map(|id| (*id, block(GRID_BYTES.into())));
        let short = short.iter().map(|(id, bytes)| (*id, block(*bytes)));
        Self { chunks: whole.chain(short).collect(), ..Self::default() }
    }
}

impl Presences for Absent {
    async fn shapes(&self, ids: Vec<ChunkId>) -> Result<Vec<Option<Shape>>> {
        *self.asked.lock().unwrap() += ids.len() as u64;
        let absent = self.ids.lock().unwrap();
        let page = Shape { kind: ChunkKind::Page, plain_bytes: 100 };
        let shape = |id: &ChunkId| self.chunks.get(id).copied().unwrap_or(page);
        Ok(ids.iter().map(|id| (!absent.contains(id)).then(|| shape(id))).collect())
    }
}

/// The last block of a disk that ends inside one is a chunk of its own.
fn ended(size: u64, model: &mut Model) -> Option<(ChunkId, u64)> {
    let (last, rest) = (size / u64::from(GRID_BYTES), size % u64::from(GRID_BYTES));
    let entry = model.get_mut(&last).filter(|_| rest > 0)?;
    *entry = testing::chunk(1000 + rest);
    Some((*entry, rest))
}

fn manifest(size: u64, root: MapRoot) -> Manifest {
    let mut made = crate::record::manifest::tests::sample();
    made.attachments.clear();
    made.disks[0].size = size;
    made.disks[0].root = root;
    made
}

/// Every id of a map by its place: the level (data below 0) and its number there.
async fn places(shelf: &Shelf, root: MapRoot) -> BTreeSet<(u8, u64, ChunkId)> {
    let reader = shelf.reader();
    let mut all = BTreeSet::new();
    let mut stack: Vec<_> = root.id.map(|id| (root.level + 1, 0, id)).into_iter().collect();
    while let Some((level, index, id)) = stack.pop() {
        all.insert((level, index, id));
        let Some(below) = level.checked_sub(1) else { continue };
        let page = reader.page(id, below).await.unwrap();
        stack.extend(
            (0..PAGE_ENTRIES).filter_map(|at| page.entry(at).chunk().map(|id| (below, index * PAGE_ENTRIES + at, id))),
        );
    }
    all
}

fn disks() -> impl Strategy<Value = ((u64, Model), (u64, Model))> {
    let disk = || sizes().prop_flat_map(|size| (Just(size), models(size)));
    (disk(), disk())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn lists_what_is_absent_and_not_the_parents(((old_size, mut old), (new_size, mut new)) in disks(), pick: u64, limit in 1..200usize) {
        testing::run(async {
            let short: Vec<_> = [ended(old_size, &mut old), ended(new_size, &mut new)].into_iter().flatten().collect();
            let shelf = Shelf::new().await;
            let (before, after) = (shelf.of(old_size, &old).await, shelf.of(new_size, &new).await);
            let parents = [manifest(old_size, before)];
            let child = manifest(new_size, after);
            let (had, has) = (places(&shelf, before).await, places(&shelf, after).await);
            // Half of what the new map refers to is absent, except for what the parent holds.
            let parent: BTreeSet<ChunkId> = had.iter().map(|(_, _, id)| *id).collect();
            let absent: BTreeSet<ChunkId> = has.iter().map(|(_, _, id)| *id)
                .filter(|id| !parent.contains(id) && (u64::from(id.as_bytes()[7]) ^ pick).count_ones() % 2 == 0)
                .collect();
            let world = Absent { ids: Mutex::new(absent.clone()), ..Absent::with_blocks(&[&old, &new], &short) };
            let mut found = BTreeSet::new();
            for _ in 0..500 {
                let missing = missing_for(&shelf.session, &shelf.keys, &child, &parents, &world, limit).await.unwrap();
                if missing.is_empty() { break }
                assert_eq!(missing.iter().collect::<BTreeSet<_>>().len(), missing.len());
                for id in missing {
                    assert!(world.ids.lock().unwrap().remove(&id), "listed, but there");
                    found.insert(id);
                }
            }
            assert_eq!(found, absent);
        });
    }
}

#[tokio::test]
async fn cost_follows_the_change() {
    let (shelf, size) = (Shelf::new().await, 300u64 << 26);
    let mut model: Model = (0..300 * PAGE_ENTRIES).step_by(3).map(|block| (block, testing::chunk(block))).collect();
    let parents = [manifest(size, shelf.of(size, &model).await)];
    model.insert(1, testing::chunk(u64::MAX));
    let child = manifest(size, shelf.of(size, &model).await);
    let absent = Absent::with_blocks(&[&model], &[]);
    let ask = |child: &Manifest, parents: &[Manifest]| {
        let (child, parents) = (child.clone(), parents.to_vec());
        let (shelf, absent) = (&shelf, &absent);
        async move {
            let before = *absent.asked.lock().unwrap();
            let missing = missing_for(&shelf.session, &shelf.keys, &child, &parents, absent, 9).await.unwrap();
            assert_eq!(missing, []);
            *absent.asked.lock().unwrap() - before
        }
    };
    assert_eq!(ask(&child, &parents).await, 3, "a root, a leaf, a chunk");
    assert_eq!(ask(&child, &[]).await, 1 + 300 + model.len() as u64);
    assert_eq!(ask(&parents[0], &parents).await, 0);
}

#[tokio::test]
async fn a_map_that_refers_to_itself_a_million_times_is_walked_once() {
    let shelf = Shelf::new().await;
    let model: Model = (0..PAGE_ENTRIES).map(|block| (block, testing::chunk(1))).collect();
    let mut root = shelf.of(1 << 26, &model).await.id.unwrap();
    for level in 1..=3 {
        let mut page = Page::disk(level);
        (0..PAGE_ENTRIES).for_each(|at| page.set(at, crate::PageRef::Chunk(root)));
        let plain = page.encode();
        root = shelf.keys.id(ChunkKind::Page, &plain);
        shelf.keep(vec![crate::NewPage { id: root, plain }]).await;
    }
    crate::WriteSession::flush(&shelf.session).await.unwrap();
    let size = 1 << 56;
    assert_eq!(level_of(size), 3);
    let manifest = manifest(size, MapRoot { level: 3, id: Some(root) });
    let absent = Absent::with_blocks(&[&model], &[]);
    missing_for(&shelf.session, &shelf.keys, &manifest, &[], &absent, 9).await.unwrap();
    assert_eq!(*absent.asked.lock().unwrap(), 5, "four pages and a chunk");
}

#[tokio::test]
async fn maps_of_another_flavour_are_refused() {
    let shelf = Shelf::new().await;
    let (root, pages) = crate::stream_map(&shelf.keys, &[(testing::chunk(1), 5)]).unwrap();
    shelf.keep(pages).await;
    crate::WriteSession::flush(&shelf.session).await.unwrap();
    let disk = manifest(5, root);
    let error = missing_for(&shelf.session, &shelf.keys, &disk, &[], &Absent::default(), 9).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Integrity);
}

#[tokio::test]
async fn attachments_are_as_long_as_their_maps() {
    let shelf = Shelf::new().await;
    let chunks: Vec<(ChunkId, u64)> = (0..1500).map(|number| (testing::chunk(number), 10 + number)).collect();
    let (root, pages) = crate::stream_map(&shelf.keys, &chunks).unwrap();
    let leaves: Vec<ChunkId> = pages[..2].iter().map(|page| page.id).collect();
    let length = |chunks: &[(ChunkId, u64)]| chunks.iter().map(|(_, length)| length).sum::<u64>();
    let (first, second) = (length(&chunks[..1024]), length(&chunks[1024..]));
    shelf.keep(pages).await;
    // A root whose sum is right, and which tells of its leaves what they are not.
    let plain = Page::stream(1, &[(leaves[0], first + 1), (leaves[1], second - 1)]).encode();
    let lie = MapRoot { level: 1, id: Some(shelf.keys.id(ChunkKind::Page, &plain)) };
    shelf.keep(vec![crate::NewPage { id: lie.id.unwrap(), plain }]).await;
    crate::WriteSession::flush(&shelf.session).await.unwrap();
    let with = |bytes: u64, root: MapRoot| {
        let mut made = manifest(0, MapRoot { level: 0, id: None });
        let (kind, name) = ("nvram".parse().unwrap(), "vars".to_owned());
        made.attachments.push(crate::Attachment { kind, name, bytes, root });
        made
    };
    let piece = |length: u64| Shape { kind: ChunkKind::Attachment, plain_bytes: u32::try_from(length).unwrap() };
    let pieces = chunks.iter().map(|(id, length)| (*id, piece(*length))).collect();
    let (absent, good) = (Absent { chunks: pieces, ..Absent::default() }, with(first + second, root));
    let ask = async |child: &Manifest, parents: &[Manifest]| {
        missing_for(&shelf.session, &shelf.keys, child, parents, &absent, 9).await.map_err(|error| error.kind())
    };
    assert_eq!(ask(&good, &[]).await, Ok(Vec::new()));
    for bytes in [first + second - 1, first + second + 1, first] {
        assert_eq!(ask(&with(bytes, root), &[]).await, Err(ErrorKind::Integrity), "{bytes} bytes");
        let parents = std::slice::from_ref(&good);
        assert_eq!(ask(&with(bytes, root), parents).await, Err(ErrorKind::Integrity), "the parent's is shorter");
    }
    assert_eq!(ask(&with(first + second, lie), &[]).await, Err(ErrorKind::Integrity));
}

/// R24: what restore would refuse, no commit lets in, whatever stands in the parent.
#[tokio::test]
async fn chunks_of_another_kind_or_length_are_refused() {
    let grid = u64::from(GRID_BYTES);
    let (shelf, size) = (Shelf::new().await, 2 * grid + 7);
    let model: Model = (0..3).map(|block| (block, testing::chunk(block))).collect();
    let root = shelf.of(size, &model).await;
    let good = Absent::with_blocks(&[&model], &[(model[&2], 7)]);
    let ask = async |size: u64, parents: &[Manifest], presences: &Absent| {
        let asked = missing_for(&shelf.session, &shelf.keys, &manifest(size, root), parents, presences, 9).await;
        asked.map_err(|error| (error.kind(), error.to_string()))
    };
    assert_eq!(ask(size, &[], &good).await, Ok(Vec::new()));
    let shape = |kind, plain_bytes| Shape { kind, plain_bytes };
    for (block, other) in [
        (1, shape(ChunkKind::Data, 100)),
        (1, shape(ChunkKind::Attachment, GRID_BYTES)),
        (0, shape(ChunkKind::Page, GRID_BYTES)),
        (2, shape(ChunkKind::Data, GRID_BYTES)),
    ] {
        let mut bad = Absent { chunks: good.chunks.clone(), ..Absent::default() };
        bad.chunks.insert(model[&block], other);
        let (kind, what) = ask(size, &[], &bad).await.unwrap_err();
        assert!(kind == ErrorKind::Integrity && what.contains(&format!("offset {}", block * grid)), "{what}");
    }
    // The same map on a disk that ends elsewhere.
    let parents = [manifest(size, root)];
    assert_eq!(ask(size, &parents, &good).await, Ok(Vec::new()));
    for size in [size - 1, size + 1, 3 * grid, 2 * grid] {
        assert_eq!(ask(size, &parents, &good).await.unwrap_err().0, ErrorKind::Integrity, "{size} bytes");
    }
}

#[test]
fn repairs_end_when_nothing_new_is_listed() {
    let mut repairs = Repairs::default();
    (0..100).for_each(|number| repairs.begin(&[testing::chunk(number)]).unwrap());
    let mut rounds = 0;
    while repairs.begin(&[testing::chunk(5)]).is_ok() {
        rounds += 1;
    }
    assert_eq!(rounds, 2);
}
