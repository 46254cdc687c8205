//! Which blocks of a disk differ between two maps, in runs.

use super::{Step, Subtrees, entries_of, page_at};
use crate::{Error, MapReader, MapRoot, PAGE_ENTRIES, PageRef, ReadSession, Result};
use chunker::ChunkId;
use futures::future::BoxFuture;
use std::collections::HashMap;
use std::sync::Arc;

/// Neighbouring blocks that differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangedRun {
    /// Number of the first block.
    pub block: u64,
    /// Number of blocks.
    pub blocks: u64,
    /// What the newer map has there.
    pub kind: RunKind,
}

/// What changed blocks are now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunKind {
    /// Blocks with chunks, or blocks that could not be read.
    Data,
    /// Blocks that read as zeros.
    Zero,
}

/// The blocks in which two maps differ, ascending. Two pages are compared only once, however many places there are
/// where one map has the first page and the other map the second (R23). So the cost follows the number of stored pages
/// and of runs, not the size of the disk.
///
/// # Errors
/// When a page cannot be read; `Usage` with more than `RUNS_MAX` runs, or `PAIRS_MAX` pages that differ.
pub async fn changed_runs<R: ReadSession>(
    old: MapRoot,
    new: MapRoot,
    reader: &MapReader<'_, R>,
) -> Result<Vec<ChangedRun>> {
    let mut comparing = Comparing { reader, known: HashMap::new() };
    let top = Subtrees { level: old.level.max(new.level), index: 0, old, new };
    Ok(comparing.subtrees(top).await?.to_vec())
}

struct Comparing<'a, R> {
    reader: &'a MapReader<'a, R>,
    /// The runs below each pair of pages that was compared, with block numbers as if the pages were the first of their
    /// level.
    known: HashMap<Pair, Arc<[ChangedRun]>>,
}

type Pair = (u8, Option<(u8, ChunkId)>, Option<(u8, ChunkId)>);

impl<R: ReadSession> Comparing<'_, R> {
    fn subtrees(&mut self, at: Subtrees) -> BoxFuture<'_, Result<Arc<[ChangedRun]>>> {
        Box::pin(async move {
            let side = |root: MapRoot| root.id.map(|id| (root.level, id));
            let pair = (at.level, side(at.old), side(at.new));
            if pair.1 == pair.2 {
                return Ok([].into());
            }
            if let Some(known) = self.known.get(&pair) {
                return Ok(known.clone());
            }
            let made: Arc<[ChangedRun]> = self.compare(Subtrees { index: 0, ..at }).await?.into();
            if self.known.len() >= PAIRS_MAX {
                return Err(too_much(format!("the points differ in more than {PAIRS_MAX} pages of a disk's map")));
            }
            self.known.insert(pair, made.clone());
            Ok(made)
        })
    }

    async fn compare(&mut self, at: Subtrees) -> Result<Vec<ChangedRun>> {
        let old = page_at(self.reader, at.old, at.level).await?;
        let new = page_at(self.reader, at.new, at.level).await?;
        let mut runs = Vec::new();
        if at.level == 0 {
            let step = Step { level: 0, index: 0, old, new, new_id: None };
            for it in step.blocks() {
                let kind = if it.new == PageRef::Absent { RunKind::Zero } else { RunKind::Data };
                add(&mut runs, ChangedRun { block: it.block, blocks: 1, kind })?;
            }
            return Ok(runs);
        }
        let span = PAGE_ENTRIES.pow(at.level.into());
        for entry in 0..entries_of(old.as_deref()).max(entries_of(new.as_deref())) {
            let below = self.subtrees(at.below(entry, old.as_deref(), new.as_deref())).await?;
            for run in below.iter() {
                add(&mut runs, ChangedRun { block: entry * span + run.block, ..*run })?;
            }
        }
        Ok(runs)
    }
}

/// Adds a run that lies behind the others, to the last one where they touch.
fn add(runs: &mut Vec<ChangedRun>, run: ChangedRun) -> Result<()> {
    if let Some(last) = runs.last_mut().filter(|it| it.kind == run.kind && it.block + it.blocks == run.block) {
        last.blocks += run.blocks;
        return Ok(());
    }
    if runs.len() >= RUNS_MAX {
        return Err(too_much(format!("the points differ in more than {RUNS_MAX} ranges of a disk")));
    }
    runs.push(run);
    Ok(())
}

fn too_much(what: String) -> Error {
    Error::usage(what).hint("compare points that are closer together")
}

/// Most runs for one disk; they take 96 MiB.
const RUNS_MAX: usize = 1 << 22;
/// Most pairs of pages whose differences are remembered: enough for 128 TiB of disk in which everything changed.
const PAIRS_MAX: usize = 1 << 21;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Model, Shelf, sized_pairs};
    use crate::{NewPage, Page, WriteSession};
    use chunker::ChunkKind;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn runs_are_what_models_differ_in((size, old, new) in sized_pairs()) {
            testing::run(async {
                let shelf = Shelf::new().await;
                let (before, after) = (shelf.of(size, &old).await, shelf.of(size, &new).await);
                let runs = changed_runs(before, after, &shelf.reader()).await.unwrap();
                let blocks: Vec<(u64, RunKind)> =
                    runs.iter().flat_map(|run| (run.block..run.block + run.blocks).map(|block| (block, run.kind))).collect();
                let all: BTreeSet<u64> = old.keys().chain(new.keys()).copied().collect();
                let kind = |block: &u64| if new.contains_key(block) { RunKind::Data } else { RunKind::Zero };
                let differ = all.into_iter().filter(|block| old.get(block) != new.get(block));
                assert_eq!(blocks, differ.map(|block| (block, kind(&block))).collect::<Vec<_>>());
                assert!(runs.windows(2).all(|two| two[0].kind != two[1].kind || two[0].block + two[0].blocks < two[1].block));
            });
        }
    }

    /// The map of 2^56 bytes in which every page consists of one other, or of every `step`th entry.
    async fn endless(shelf: &Shelf, step: usize) -> MapRoot {
        let leaf: Model = (0..PAGE_ENTRIES).step_by(step).map(|block| (block, testing::chunk(1))).collect();
        let mut id = shelf.of(1 << 26, &leaf).await.id.unwrap();
        for level in 1..=3 {
            let mut page = Page::disk(level);
            (0..PAGE_ENTRIES).for_each(|at| page.set(at, PageRef::Chunk(id)));
            let plain = page.encode();
            id = shelf.keys.id(ChunkKind::Page, &plain);
            shelf.keep(vec![NewPage { id, plain }]).await;
        }
        shelf.session.flush().await.unwrap();
        MapRoot { level: 3, id: Some(id) }
    }

    #[tokio::test]
    async fn a_disk_without_end_is_one_run() {
        let shelf = Shelf::new().await;
        let none = MapRoot { level: 0, id: None };
        let root = endless(&shelf, 1).await;
        let whole = ChangedRun { block: 0, blocks: 1 << 40, kind: RunKind::Data };
        assert_eq!(changed_runs(none, root, &shelf.reader()).await.unwrap(), [whole]);
        let gone = ChangedRun { kind: RunKind::Zero, ..whole };
        assert_eq!(changed_runs(root, none, &shelf.reader()).await.unwrap(), [gone]);
    }

    #[tokio::test]
    async fn more_runs_than_anybody_reads_are_refused() {
        let shelf = Shelf::new().await;
        let (one, other) = (endless(&shelf, 2).await, endless(&shelf, 3).await);
        let error = changed_runs(one, other, &shelf.reader()).await.unwrap_err();
        assert!(error.to_string().contains("ranges"), "{error}");
    }
}
