use super::*;
use crate::testing::{self, Model, Shelf, entries, models, sized_pairs};
use chunker::GRID_BYTES;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

async fn assert_reads_as(shelf: &Shelf, root: MapRoot, size: u64, model: &Model) {
    let reader = shelf.reader();
    let leaves: BTreeSet<u64> = model.keys().map(|block| block / PAGE_ENTRIES).chain(0..3).collect();
    for index in leaves {
        let mut have = Model::new();
        if let Some(page) = reader.leaf(root, index).await.unwrap() {
            assert!(!page.is_empty(), "an empty page is no page");
            have.extend(
                (0..PAGE_ENTRIES).filter_map(|at| page.entry(at).chunk().map(|id| (index * PAGE_ENTRIES + at, id))),
            );
        }
        let want = model.range(index * PAGE_ENTRIES..(index + 1) * PAGE_ENTRIES).map(|(block, id)| (*block, *id));
        assert_eq!(have, want.collect::<Model>(), "leaf {index} of a disk of {size} bytes");
    }
    let there: BTreeSet<u64> = model.keys().map(|block| block / PAGE_ENTRIES).collect();
    let mut from = 0;
    for want in there.into_iter().map(Some).chain([None]) {
        let found = reader.next_leaf(root, from).await.unwrap().map(|(leaf, _)| leaf);
        assert_eq!(found, want, "the next leaf from {from} of a disk of {size} bytes");
        from = want.map_or(from, |leaf| leaf + 1);
    }
}

/// What turns `from` into `to`, and some entries that change nothing.
fn changes(from: &Model, to: &Model, idle: usize) -> BTreeMap<u64, PageRef> {
    let mut all: BTreeMap<u64, PageRef> = from.keys().map(|block| (*block, PageRef::Absent)).collect();
    all.extend(entries(to));
    let mut same = 0;
    all.retain(|block, entry| {
        let changed = from.get(block).copied() != entry.chunk();
        same += usize::from(!changed);
        changed || same <= idle
    });
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_map_is_the_same_however_it_was_built((size, old, new) in sized_pairs(), idle in 0..9usize, parts in 1..4usize) {
        testing::run(async {
            let shelf = Shelf::new().await;
            let before = shelf.of(size, &old).await;
            let want = shelf.of(size, &new).await;
            assert_eq!(want.id.is_none(), new.is_empty());
            assert_eq!(want.level, level_of(size));
            // Several increments, each ascending in itself.
            let changes = changes(&old, &new, idle);
            let mut root = before;
            for part in 0..parts {
                let part = changes.iter().skip(part).step_by(parts).map(|(block, entry)| (*block, *entry)).collect();
                root = shelf.build(size, Some(root), &part).await;
            }
            assert_eq!(root, want);
            assert_reads_as(&shelf, before, size, &old).await;
            assert_reads_as(&shelf, root, size, &new).await;
        });
    }

    #[test]
    fn absent_entries_leave_no_trace(model in models(5 << 26)) {
        testing::run(async {
            let shelf = Shelf::new().await;
            let mut all: BTreeMap<u64, PageRef> = (0..3000).map(|block| (block, PageRef::Absent)).collect();
            all.extend(entries(&model));
            assert_eq!(shelf.build(5 << 26, None, &all).await, shelf.of(5 << 26, &model).await);
        });
    }
}

#[tokio::test]
async fn an_increment_makes_only_the_pages_on_the_way() {
    let (shelf, size) = (Shelf::new().await, 2000u64 << 26);
    let full: Model = (0..2000).map(|leaf| (leaf * PAGE_ENTRIES + leaf % 1000, testing::chunk(leaf))).collect();
    let root = shelf.of(size, &full).await;
    let reader = shelf.reader();
    let mut builder = MapBuilder::new(size, Some((root, &reader)), &shelf.keys);
    builder.set(1_234_567, PageRef::Chunk(testing::chunk(9))).await.unwrap();
    assert_eq!(builder.finish().1.len(), 3);
    let mut builder = MapBuilder::new(size, Some((root, &reader)), &shelf.keys);
    builder.set(0, PageRef::Chunk(full[&0])).await.unwrap();
    assert_eq!(builder.finish(), (root, Vec::new()), "an entry as it was makes no page");
}

#[tokio::test]
async fn a_page_in_the_wrong_place_is_refused() {
    let shelf = Shelf::new().await;
    let root = shelf.of(1 << 30, &[(5, testing::chunk(1))].into()).await;
    let reader = shelf.reader();
    let lower = MapRoot { level: 0, ..root };
    assert_eq!(reader.leaf(lower, 0).await.unwrap_err().kind(), crate::ErrorKind::Integrity);
    assert_eq!(reader.page(testing::chunk(1), 0).await.unwrap_err().kind(), crate::ErrorKind::Integrity);
    assert!(reader.leaf(root, 0).await.unwrap().is_some());
    assert!(reader.leaf(root, PAGE_ENTRIES * PAGE_ENTRIES).await.unwrap().is_none(), "past the end of the map");
}

#[test]
fn heights() {
    let leaf = PAGE_ENTRIES * u64::from(GRID_BYTES);
    for (size, level) in
        [(0, 0), (1, 0), (leaf, 0), (leaf + 1, 1), (leaf << 10, 1), ((leaf << 10) + 1, 2), (u64::MAX, 4)]
    {
        assert_eq!(level_of(size), level, "{size}");
    }
}

#[test]
fn stream_maps_of_every_height() {
    let keys = DomainKeys::new(&chunker::DomainKey([1; 32]));
    assert_eq!(stream_map(&keys, &[]).unwrap(), (MapRoot::default(), Vec::new()));
    for (count, level, pages) in [(1, 0, 1), (1024, 0, 1), (1025, 1, 3), (3000, 1, 4)] {
        let chunks: Vec<_> = (0..count).map(|number| (testing::chunk(number), number + 1)).collect();
        let (root, made) = stream_map(&keys, &chunks).unwrap();
        assert_eq!((root.level, made.len()), (level, pages), "{count} chunks");
        let top = made.last().unwrap();
        assert_eq!(root.id, Some(top.id));
        let top = Page::decode(&top.plain).unwrap();
        assert_eq!(top.lengths().iter().sum::<u64>(), (1..=count).sum::<u64>());
    }
}
