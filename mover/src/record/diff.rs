//! The difference of two maps, found by comparing ids from the root down: cost follows what changed.

mod runs;

use crate::{MapReader, MapRoot, PAGE_ENTRIES, Page, PageRef, ReadSession, Result, Visited};
use chunker::ChunkId;
use std::sync::Arc;

pub use runs::{ChangedRun, RunKind, changed_runs};

/// Walks the places in which a new map differs from an old one: parents before children, in ascending order. A page
/// that occurs in many places is examined in the first of them only (R23).
pub struct TreeDiff<'a, A, B> {
    old: &'a MapReader<'a, A>,
    new: &'a MapReader<'a, B>,
    /// Subtrees still to be compared; the next one last.
    stack: Vec<Subtrees>,
    /// Subtrees of the new map that were looked at.
    visited: &'a mut Visited,
}

struct Subtrees {
    level: u8,
    index: u64,
    old: MapRoot,
    new: MapRoot,
}

/// A place where two maps differ.
pub struct Step {
    /// 0 for leaves.
    pub level: u8,
    /// Number of the page in its level: a leaf covers 1,024 blocks from `index` × 1,024.
    pub index: u64,
    /// The old map's page; none where everything is zero, or where the old map is lower than this level.
    pub old: Option<Arc<Page>>,
    /// The new map's page.
    pub new: Option<Arc<Page>>,
    /// The new map's page's id.
    pub new_id: Option<ChunkId>,
}

impl<'a, A: ReadSession, B: ReadSession> TreeDiff<'a, A, B> {
    /// Compares `old` with `new`; they may be of different heights. What is in `visited` counts as looked at.
    pub fn new(
        old: (MapRoot, &'a MapReader<'a, A>),
        new: (MapRoot, &'a MapReader<'a, B>),
        visited: &'a mut Visited,
    ) -> Self {
        let level = old.0.level.max(new.0.level);
        let stack = vec![Subtrees { level, index: 0, old: old.0, new: new.0 }];
        Self { old: old.1, new: new.1, stack, visited }
    }

    /// The next place, or none at the end.
    ///
    /// # Errors
    /// When a page cannot be read; `Usage` when there are too many.
    pub async fn next(&mut self) -> Result<Option<Step>> {
        while let Some(at) = self.stack.pop() {
            let Some(id) = at.new.id.filter(|_| at.old != at.new) else { continue };
            if !self.visited.insert_at(&id, at.level)? {
                continue;
            }
            let old = page_at(self.old, at.old, at.level).await?;
            let new = page_at(self.new, at.new, at.level).await?;
            if at.level > 0 {
                self.descend(&at, old.as_deref(), new.as_deref());
            }
            let new_id = at.new.id.filter(|_| new.is_some());
            return Ok(Some(Step { level: at.level, index: at.index, old, new, new_id }));
        }
        Ok(None)
    }

    fn descend(&mut self, at: &Subtrees, old: Option<&Page>, new: Option<&Page>) {
        for entry in (0..entries_of(new)).rev() {
            self.stack.push(at.below(entry, old, new));
        }
    }
}

impl Subtrees {
    /// The subtrees below an entry, on both sides.
    fn below(&self, entry: u64, old: Option<&Page>, new: Option<&Page>) -> Self {
        let level = self.level - 1;
        let below = |root: MapRoot, page: Option<&Page>| match page {
            Some(page) => MapRoot { level, id: page.entry(entry).chunk() },
            // A lower tree is the first subtree of a higher one.
            None if root.level < self.level && entry == 0 => root,
            None => MapRoot { level, id: None },
        };
        let index = self.index * PAGE_ENTRIES + entry;
        Self { level, index, old: below(self.old, old), new: below(self.new, new) }
    }
}

/// Number of entries of a page to examine; 1 for a tree that is lower than this level.
fn entries_of(page: Option<&Page>) -> u64 {
    page.map_or(1, |page| page.entries().len() as u64)
}

/// The page of `root` if its level is this one; none for zeros and for trees that are lower.
async fn page_at<R: ReadSession>(reader: &MapReader<'_, R>, root: MapRoot, level: u8) -> Result<Option<Arc<Page>>> {
    match root.id {
        Some(id) if root.level == level => reader.page(id, level).await.map(Some),
        _ => Ok(None),
    }
}

/// One block that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangedBlock {
    /// Number of the block.
    pub block: u64,
    /// What the old map has there.
    pub old: PageRef,
    /// What the new map has there.
    pub new: PageRef,
}

impl Step {
    /// The blocks in which two leaves differ, ascending; nothing for a step above the leaves.
    pub fn blocks(&self) -> impl Iterator<Item = ChangedBlock> + '_ {
        let entry = |page: &Option<Arc<Page>>, at| page.as_ref().map_or(PageRef::Absent, |page| page.entry(at));
        let entries = if self.level == 0 { PAGE_ENTRIES } else { 0 };
        (0..entries)
            .map(move |at| ChangedBlock {
                block: self.index * PAGE_ENTRIES + at,
                old: entry(&self.old, at),
                new: entry(&self.new, at),
            })
            .filter(|it| it.old != it.new)
    }
}

#[cfg(test)]
mod tests;
