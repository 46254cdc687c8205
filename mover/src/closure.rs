//! Whether everything that a manifest refers to is there: the check of each commit (R7).

use crate::{Error, ErrorKind, Manifest, MapReader, MapRoot, PAGE_ENTRIES, Page, PageFlavour, ReadSession, Result};
use chunker::{ChunkId, ChunkKind, Fingerprinter};
use futures::future::try_join_all;
use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;

/// Tells which chunks a repository has: durable, and neither doomed nor suspect.
pub trait Presences: Send + Sync {
    /// For each id whether a chunk of this kind is there.
    fn present(&self, kind: ChunkKind, ids: Vec<ChunkId>) -> impl Future<Output = Result<Vec<bool>>> + Send;
}

/// The chunks below `manifest` that are not present, at most about `limit` of them; none means that it may be committed.
///
/// What hangs on the same place of a parent is there, because the session pins its parents; everything else is asked
/// for, so cost follows the change. Parents are matched by disk id. A page is asked for before it is read; one that is
/// absent or does not read is listed, and what is below it only when it is back. The page of a parent that does not
/// read proves nothing, which costs time and not safety. The manifest's own chunk is not looked at.
///
/// # Errors
/// `Integrity` when a page is not of the map or level it stands in; those of `session` and `presences`.
pub async fn missing_for<R: ReadSession, P: Presences>(
    session: &R,
    prints: &Fingerprinter,
    manifest: &Manifest,
    parents: &[Manifest],
    presences: &P,
    limit: usize,
) -> Result<Vec<ChunkId>> {
    let mut walk = Walk {
        reader: MapReader::new(session, prints),
        presences,
        limit,
        walked: HashSet::new(),
        listed: HashSet::new(),
        missing: Vec::new(),
        leaves: [(ChunkKind::Data, Vec::new()), (ChunkKind::Attachment, Vec::new())],
    };
    for disk in &manifest.disks {
        let mut same = parents.iter().flat_map(|parent| &parent.disks).filter(|it| it.id == disk.id);
        let old = same.clone().find(|it| it.root == disk.root).or_else(|| same.next()).map(|it| it.root);
        walk.tree(disk.root, None, old).await.map_err(|error| error.context(&disk.name))?;
    }
    for attachment in &manifest.attachments {
        let mut same = parents.iter().flat_map(|parent| &parent.attachments);
        let old = same.find(|it| it.root == attachment.root && it.bytes == attachment.bytes).map(|it| it.root);
        let walked = walk.tree(attachment.root, Some(attachment.bytes), old).await;
        walked.map_err(|error| error.context(&attachment.kind))?;
    }
    walk.ask_leaves(0).await?;
    Ok(walk.missing)
}

struct Walk<'a, R, P> {
    reader: MapReader<'a, R>,
    presences: &'a P,
    limit: usize,
    /// Pages below which everything is accounted for: a map that refers to one page a million times is walked once.
    walked: HashSet<(ChunkId, u8, Option<u64>)>,
    listed: HashSet<ChunkId>,
    missing: Vec<ChunkId>,
    /// Chunks of leaves that are still to be asked for.
    leaves: [(ChunkKind, Vec<ChunkId>); 2],
}

/// A page to be looked at, and what a parent has in its place: a map of its height or lower.
struct Subtree {
    id: ChunkId,
    level: u8,
    /// In a stream, how many of its bytes are below.
    bytes: Option<u64>,
    old: MapRoot,
}

impl<R: ReadSession, P: Presences> Walk<'_, R, P> {
    /// Walks the map of a disk, or of a stream of so many bytes.
    async fn tree(&mut self, new: MapRoot, bytes: Option<u64>, old: Option<MapRoot>) -> Result<()> {
        let Some(id) = new.id else { return Ok(()) };
        let old = self.lowered(old.unwrap_or_default(), new.level).await?;
        let mut stack = vec![Subtree { id, level: new.level, bytes, old }];
        while !stack.is_empty() && self.missing.len() < self.limit {
            let mut batch = stack.split_off(stack.len().saturating_sub(PAGES_AT_ONCE));
            batch.retain(|it| {
                let covered = it.old == MapRoot { level: it.level, id: Some(it.id) };
                !covered && self.walked.insert((it.id, it.level, it.bytes))
            });
            let present = self.ask(ChunkKind::Page, batch.iter().map(|it| it.id).collect()).await?;
            let there = batch.into_iter().zip(present).filter(|(_, present)| *present).map(|(it, _)| it);
            for (at, new, old) in try_join_all(there.map(|it| self.pages(it))).await? {
                let Some(new) = new else {
                    self.list(at.id);
                    continue;
                };
                let placed = new.check_place(at.bytes);
                placed.map_err(|error| Error::from(error).context(format_args!("page {}", at.id)))?;
                self.descend(&at, &new, old.as_deref(), &mut stack);
            }
            self.ask_leaves(IDS_AT_ONCE).await?;
        }
        Ok(())
    }

    /// The part of an old map that a lower new one can share: its first subtree of that height.
    async fn lowered(&self, mut old: MapRoot, level: u8) -> Result<MapRoot> {
        while let (Some(id), true) = (old.id, old.level > level) {
            let page = readable(self.reader.page(id, old.level).await)?;
            old = MapRoot { level: old.level - 1, id: page.and_then(|page| page.entry(0).chunk()) };
        }
        Ok(old)
    }

    /// The new and the old page, each none when it does not read.
    async fn pages(&self, at: Subtree) -> Result<(Subtree, Option<Arc<Page>>, Option<Arc<Page>>)> {
        let new = readable(self.reader.page(at.id, at.level).await)?;
        let old = match at.old.id {
            Some(id) if at.old.level == at.level => readable(self.reader.page(id, at.level).await)?,
            _ => None,
        };
        Ok((at, new, old))
    }

    fn descend(&mut self, at: &Subtree, new: &Page, old: Option<&Page>, stack: &mut Vec<Subtree>) {
        let before = |entry: u64| old.and_then(|old| old.entry(entry).chunk());
        for (entry, id) in (0..PAGE_ENTRIES).filter_map(|entry| new.entry(entry).chunk().map(|id| (entry, id))) {
            let Some(level) = at.level.checked_sub(1) else {
                if before(entry) != Some(id) {
                    self.leaves[usize::from(new.flavour() == PageFlavour::Stream)].1.push(id);
                }
                continue;
            };
            // A lower map is the first subtree of a higher one.
            let first = entry == 0 && at.old.level < at.level;
            let old = if first { at.old } else { MapRoot { level, id: before(entry) } };
            let bytes = new.lengths().get(entry as usize).copied();
            stack.push(Subtree { id, level, bytes, old });
        }
    }

    /// Asks for the chunks of leaves where more than `held` wait.
    async fn ask_leaves(&mut self, held: usize) -> Result<()> {
        for at in 0..self.leaves.len() {
            let kind = self.leaves[at].0;
            if self.leaves[at].1.len() > held {
                let mut ids = std::mem::take(&mut self.leaves[at].1);
                ids.sort_unstable();
                ids.dedup();
                for ids in ids.chunks(IDS_AT_ONCE) {
                    self.ask(kind, ids.to_vec()).await?;
                }
            }
        }
        Ok(())
    }

    /// Asks, and lists what is not there.
    async fn ask(&mut self, kind: ChunkKind, ids: Vec<ChunkId>) -> Result<Vec<bool>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let present = self.presences.present(kind, ids.clone()).await?;
        if present.len() != ids.len() {
            return Err(Error::internal("as many answers as questions about chunks"));
        }
        ids.into_iter().zip(&present).filter(|(_, present)| !**present).for_each(|(id, _)| self.list(id));
        Ok(present)
    }

    fn list(&mut self, id: ChunkId) {
        if self.listed.insert(id) {
            self.missing.push(id);
        }
    }
}

fn readable(page: Result<Arc<Page>>) -> Result<Option<Arc<Page>>> {
    match page {
        Ok(page) => Ok(Some(page)),
        Err(error) if error.kind() == ErrorKind::Integrity => {
            tracing::warn!(%error, "a page does not read");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Decides when repairing a refused commit has no use any more: what is listed is bounded, so there may be many rounds,
/// but not many in which nothing new is listed.
#[derive(Default)]
pub(crate) struct Repairs {
    listed: HashSet<ChunkId>,
    rounds_without_news: u32,
}

impl Repairs {
    /// Takes what a commit listed.
    ///
    /// # Errors
    /// `StoreIo` when the repository keeps losing what was put again.
    pub(crate) fn begin(&mut self, ids: &[ChunkId]) -> Result<()> {
        let before = self.listed.len();
        self.listed.extend(ids);
        self.rounds_without_news = if self.listed.len() > before { 0 } else { self.rounds_without_news + 1 };
        if self.rounds_without_news < ROUNDS_WITHOUT_NEWS_MAX {
            return Ok(());
        }
        Err(Error::store_io("the repository keeps losing chunks that were just stored").hint("run `windlass verify`"))
    }
}

const ROUNDS_WITHOUT_NEWS_MAX: u32 = 3;

/// Pages read together.
const PAGES_AT_ONCE: usize = 16;

/// Chunks asked for together.
const IDS_AT_ONCE: usize = 4096;

#[cfg(test)]
mod tests;
