use super::*;
use crate::testing::{self, Model, Shelf, models, sizes};
use crate::{MapRoot, level_of};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::Mutex;

/// Says that everything is there but what was taken out; remembers how many were asked for.
#[derive(Default)]
struct Absent {
    ids: Mutex<BTreeSet<ChunkId>>,
    asked: Mutex<u64>,
}

impl Presences for Absent {
    async fn present(&self, _: ChunkKind, ids: Vec<ChunkId>) -> Result<Vec<bool>> {
        *self.asked.lock().unwrap() += ids.len() as u64;
        let absent = self.ids.lock().unwrap();
        Ok(ids.iter().map(|id| !absent.contains(id)).collect())
    }
}

fn manifest(size: u64, root: MapRoot) -> Manifest {
    let mut made = crate::manifest::tests::sample();
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
    fn lists_what_is_absent_and_not_the_parents(((old_size, old), (new_size, new)) in disks(), pick: u64, limit in 1..200usize) {
        testing::run(async {
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
            let world = Absent { ids: Mutex::new(absent.clone()), asked: Mutex::default() };
            let mut found = BTreeSet::new();
            for _ in 0..500 {
                let missing = missing_for(&shelf.session, &shelf.prints, &child, &parents, &world, limit).await.unwrap();
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
    let absent = Absent::default();
    let ask = |child: &Manifest, parents: &[Manifest]| {
        let (child, parents) = (child.clone(), parents.to_vec());
        let (shelf, absent) = (&shelf, &absent);
        async move {
            let before = *absent.asked.lock().unwrap();
            let missing = missing_for(&shelf.session, &shelf.prints, &child, &parents, absent, 9).await.unwrap();
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
    let leaf: Model = (0..PAGE_ENTRIES).map(|block| (block, testing::chunk(1))).collect();
    let leaf = shelf.of(1 << 26, &leaf).await.id.unwrap();
    let mut root = leaf;
    for level in 1..=3 {
        let mut page = Page::disk(level);
        (0..PAGE_ENTRIES).for_each(|at| page.set(at, crate::PageRef::Chunk(root)));
        let plain = page.encode();
        root = shelf.prints.id(ChunkKind::Page, &plain);
        shelf.keep(vec![crate::NewPage { id: root, plain }]).await;
    }
    crate::WriteSession::flush(&shelf.session).await.unwrap();
    let size = 1 << 56;
    assert_eq!(level_of(size), 3);
    let manifest = manifest(size, MapRoot { level: 3, id: Some(root) });
    let absent = Absent::default();
    missing_for(&shelf.session, &shelf.prints, &manifest, &[], &absent, 9).await.unwrap();
    assert!(*absent.asked.lock().unwrap() < 10_000);
}

#[tokio::test]
async fn maps_of_another_flavour_are_refused() {
    let shelf = Shelf::new().await;
    let (root, pages) = crate::stream_map(&shelf.prints, &[(testing::chunk(1), 5)]).unwrap();
    shelf.keep(pages).await;
    crate::WriteSession::flush(&shelf.session).await.unwrap();
    let disk = manifest(5, root);
    let error = missing_for(&shelf.session, &shelf.prints, &disk, &[], &Absent::default(), 9).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Integrity);
}

#[tokio::test]
async fn attachments_are_as_long_as_their_maps() {
    let shelf = Shelf::new().await;
    let chunks: Vec<(ChunkId, u64)> = (0..1500).map(|number| (testing::chunk(number), 10 + number)).collect();
    let (root, pages) = crate::stream_map(&shelf.prints, &chunks).unwrap();
    let leaves: Vec<ChunkId> = pages[..2].iter().map(|page| page.id).collect();
    let length = |chunks: &[(ChunkId, u64)]| chunks.iter().map(|(_, length)| length).sum::<u64>();
    let (first, second) = (length(&chunks[..1024]), length(&chunks[1024..]));
    shelf.keep(pages).await;
    // A root whose sum is right, and which tells of its leaves what they are not.
    let plain = Page::stream(1, &[(leaves[0], first + 1), (leaves[1], second - 1)]).encode();
    let lie = MapRoot { level: 1, id: Some(shelf.prints.id(ChunkKind::Page, &plain)) };
    shelf.keep(vec![crate::NewPage { id: lie.id.unwrap(), plain }]).await;
    crate::WriteSession::flush(&shelf.session).await.unwrap();
    let with = |bytes: u64, root: MapRoot| {
        let mut made = manifest(0, MapRoot { level: 0, id: None });
        let (kind, name) = ("nvram".parse().unwrap(), "vars".to_owned());
        made.attachments.push(crate::Attachment { kind, name, bytes, root });
        made
    };
    let (absent, good) = (Absent::default(), with(first + second, root));
    let ask = async |child: &Manifest, parents: &[Manifest]| {
        missing_for(&shelf.session, &shelf.prints, child, parents, &absent, 9).await.map_err(|error| error.kind())
    };
    assert_eq!(ask(&good, &[]).await, Ok(Vec::new()));
    for bytes in [first + second - 1, first + second + 1, first] {
        assert_eq!(ask(&with(bytes, root), &[]).await, Err(ErrorKind::Integrity), "{bytes} bytes");
        let parents = std::slice::from_ref(&good);
        assert_eq!(ask(&with(bytes, root), parents).await, Err(ErrorKind::Integrity), "the parent's is shorter");
    }
    assert_eq!(ask(&with(first + second, lie), &[]).await, Err(ErrorKind::Integrity));
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
