use super::*;
use crate::testing::{self, Model, Shelf, models, sizes};
use chunker::ChunkId;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn two_disks() -> impl Strategy<Value = ((u64, Model), (u64, Model))> {
    let disk = || sizes().prop_flat_map(|size| (Just(size), models(size)));
    let akin = (disk(), models(1 << 26)).prop_map(|((size, old), other)| {
        // The same disk, a little later.
        let blocks = size.div_ceil(65_536);
        let new = old.iter().chain(&other).filter(|(block, _)| **block < blocks).map(|(block, id)| (*block, *id));
        ((size, old.clone()), (size, new.collect()))
    });
    prop_oneof![akin, (disk(), disk())]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn differences_are_those_of_the_models(((old_size, old), (new_size, new)) in two_disks()) {
        testing::run(async {
            let shelf = Shelf::new().await;
            let (before, after) = (shelf.of(old_size, &old).await, shelf.of(new_size, &new).await);
            let reader = shelf.reader();
            let mut visited = Visited::default();
    let mut walk = TreeDiff::new((before, &reader), (after, &reader), &mut visited);
            let mut have = BTreeMap::new();
            let mut listed = BTreeSet::new();
            let mut last = None;
            while let Some(step) = walk.next().await.unwrap() {
                assert_eq!(step.new_id.is_some(), step.new.is_some());
                listed.extend(step.new_id);
                for changed in step.blocks() {
                    assert!(last < Some(changed.block), "blocks ascend");
                    last = Some(changed.block);
                    have.insert(changed.block, (changed.old.chunk(), changed.new.chunk()));
                }
            }
            let blocks: BTreeSet<u64> = old.keys().chain(new.keys()).copied().collect();
            let pair = |block: u64| (block, (old.get(&block).copied(), new.get(&block).copied()));
            let want: BTreeMap<u64, (Option<ChunkId>, Option<ChunkId>)> =
                blocks.into_iter().map(pair).filter(|(_, (old, new))| old != new).collect();
            // Of a page that stands in several places one is told: what it refers to is told, or was there.
            assert!(have.iter().all(|it| want.get(it.0) == Some(it.1)));
            let told: BTreeSet<ChunkId> = have.values().filter_map(|it| it.1).chain(old.values().copied()).collect();
            assert!(want.values().filter_map(|it| it.1).all(|id| told.contains(&id)));
            assert_eq!(listed.is_empty(), before == after || after.id.is_none() || shares_all(&shelf, before, after).await);
        });
    }
}

/// Whether every page of `new` stands in the same place of `old`.
async fn shares_all(shelf: &Shelf, old: MapRoot, new: MapRoot) -> bool {
    let mut at = old;
    while let (Some(id), true) = (at.id, at.level > new.level) {
        let page = shelf.reader().page(id, at.level).await.unwrap();
        at = MapRoot { level: at.level - 1, id: page.entry(0).chunk() };
    }
    at == new
}

#[tokio::test]
async fn what_is_shared_is_not_read() {
    let (shelf, size) = (Shelf::new().await, 500u64 << 26);
    let mut model: Model = (0..500).map(|leaf| (leaf * PAGE_ENTRIES, testing::chunk(leaf))).collect();
    let before = shelf.of(size, &model).await;
    model.insert(77 * PAGE_ENTRIES + 5, testing::chunk(1000));
    let after = shelf.of(size, &model).await;
    let reader = shelf.reader();
    let mut visited = Visited::default();
    let mut walk = TreeDiff::new((before, &reader), (after, &reader), &mut visited);
    let mut steps = Vec::new();
    while let Some(step) = walk.next().await.unwrap() {
        steps.push((step.level, step.index, step.blocks().count()));
    }
    assert_eq!(steps, [(1, 0, 0), (0, 77, 1)]);
}

#[tokio::test]
async fn a_page_that_stands_in_a_million_places_is_looked_at_once() {
    let shelf = Shelf::new().await;
    let leaf: Model = (0..PAGE_ENTRIES).map(|block| (block, testing::chunk(1))).collect();
    let mut root = shelf.of(1 << 26, &leaf).await;
    for level in 1..=3 {
        let mut page = Page::disk(level);
        (0..PAGE_ENTRIES).for_each(|at| page.set(at, PageRef::Chunk(root.id.unwrap())));
        let plain = page.encode();
        root = MapRoot { level, id: Some(shelf.keys.id(chunker::ChunkKind::Page, &plain)) };
        shelf.keep(vec![crate::NewPage { id: root.id.unwrap(), plain }]).await;
    }
    crate::WriteSession::flush(&shelf.session).await.unwrap();
    let (reader, mut visited) = (shelf.reader(), Visited::default());
    let none = MapRoot { level: 3, id: None };
    let mut walk = TreeDiff::new((none, &reader), (root, &reader), &mut visited);
    let mut levels = Vec::new();
    while let Some(step) = walk.next().await.unwrap() {
        levels.push(step.level);
    }
    assert_eq!(levels, [3, 2, 1, 0]);
}
