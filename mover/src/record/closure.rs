//! Whether everything that a manifest refers to is there: the check of each commit (R7).

use crate::{Demand, Error, ErrorKind, Manifest, MapReader, MapRoot, Page, ReadSession, Result, Shape, Spot, Visited};
use chunker::{ChunkId, DomainKeys};
use futures::future::try_join_all;
use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;

/// Tells which chunks a repository has: durable, and neither doomed nor suspect.
pub trait Presences: Send + Sync {
    /// Kind and length of each chunk; none for a chunk that is not there.
    fn shapes(&self, ids: Vec<ChunkId>) -> impl Future<Output = Result<Vec<Option<Shape>>>> + Send;
}

/// The chunks below `manifest` that are not present, at most about `limit` of them; none means that it may be committed.
///
/// A chunk that a parent has in the same place is there, because the session pins its parents. All other chunks are
/// asked for, so that the cost follows the change. Disks are matched with those of the parents by disk id. A page is
/// asked for before it is read. A page that is absent or cannot be read is listed, and the chunks below it are listed
/// only when it is back. A page of a parent that cannot be read proves nothing: the check then takes longer, but is as
/// safe. The manifest's own chunk is not checked.
///
/// # Errors
/// `Integrity` when a page or chunk is not what a restore demands in its place; those of `session` and `presences`.
pub async fn missing_for<R: ReadSession, P: Presences>(
    session: &R,
    keys: &DomainKeys,
    manifest: &Manifest,
    parents: &[Manifest],
    presences: &P,
    limit: usize,
) -> Result<Vec<ChunkId>> {
    let mut walk = Walk {
        reader: MapReader::new(session, keys),
        presences,
        limit,
        walked: Visited::default(),
        listed: HashSet::new(),
        missing: Vec::new(),
        leaves: Vec::new(),
    };
    for disk in &manifest.disks {
        let mut same = parents.iter().flat_map(|parent| &parent.disks).filter(|it| it.id == disk.id);
        let old = same.clone().find(|it| it.root == disk.root).or_else(|| same.next());
        let old = old.map(|it| Old::new(it.root, Spot::of_disk(it.size, it.root.level)));
        let walked = walk.tree(disk.root, Spot::of_disk(disk.size, disk.root.level), old).await;
        walked.map_err(|error| error.context(&disk.name))?;
    }
    for attachment in &manifest.attachments {
        let mut same = parents.iter().flat_map(|parent| &parent.attachments);
        let spot = Spot::of_stream(attachment.bytes, attachment.root.level);
        let old = same.find(|it| it.root == attachment.root && it.bytes == attachment.bytes);
        let walked = walk.tree(attachment.root, spot, old.map(|it| Old::new(it.root, spot))).await;
        walked.map_err(|error| error.context(&attachment.kind))?;
    }
    Ok(walk.missing)
}

struct Walk<'a, R, P> {
    reader: MapReader<'a, R>,
    presences: &'a P,
    limit: usize,
    /// Pages below which everything was checked. A page to which a map refers a million times is walked once.
    walked: Visited,
    listed: HashSet<ChunkId>,
    missing: Vec<ChunkId>,
    /// Chunks of leaves that are still to be asked for.
    leaves: Vec<Asked>,
}

/// A chunk that is asked for, what must be there, and where: the first offset, in bytes.
type Asked = (ChunkId, Demand, u64);

/// A page to be looked at, and what a parent has in its place: a map of its height or lower.
struct Subtree {
    id: ChunkId,
    spot: Spot,
    /// Where it begins in the disk or stream.
    offset: u64,
    old: Old,
}

/// What a parent has: the page, and what was demanded of it.
#[derive(Clone, Copy, Default)]
struct Old(Option<(ChunkId, Spot)>);

impl Old {
    fn new(root: MapRoot, spot: Spot) -> Self {
        Self(root.id.map(|id| (id, spot)))
    }

    /// The page below an entry.
    fn below((id, demand): (ChunkId, Demand)) -> Self {
        match demand {
            Demand::Page(spot) => Self(Some((id, spot))),
            Demand::Chunk(_) => Self(None),
        }
    }
}

impl<R: ReadSession, P: Presences> Walk<'_, R, P> {
    /// Walks the map of a disk or stream.
    async fn tree(&mut self, new: MapRoot, spot: Spot, old: Option<Old>) -> Result<()> {
        let Some(id) = new.id else { return Ok(()) };
        let old = self.lowered(old.unwrap_or_default(), new.level).await?;
        let mut stack = vec![Subtree { id, spot, offset: 0, old }];
        while !stack.is_empty() && self.missing.len() < self.limit {
            let mut batch = Vec::new();
            for at in stack.split_off(stack.len().saturating_sub(PAGES_AT_ONCE)) {
                let covered = at.old.0 == Some((at.id, at.spot));
                if !covered && self.walked.insert(&at.id, at.spot)? {
                    batch.push(at);
                }
            }
            let asked = batch.iter().map(|at| (at.id, Demand::Page(at.spot), at.offset)).collect();
            let present = self.ask(asked).await?;
            let there = batch.into_iter().zip(present).filter(|(_, present)| *present).map(|(it, _)| it);
            for (at, new, old) in try_join_all(there.map(|it| self.pages(it))).await? {
                let Some(new) = new else {
                    self.list(at.id);
                    continue;
                };
                at.spot.check(&new).map_err(|error| Error::from(error).context(format_args!("page {}", at.id)))?;
                descend(&at, &new, old.as_deref(), &mut stack, &mut self.leaves);
            }
            self.ask_leaves(IDS_AT_ONCE).await?;
        }
        self.ask_leaves(0).await
    }

    /// The part of an old map that a lower new one can share: its first subtree of that height.
    async fn lowered(&self, mut old: Old, level: u8) -> Result<Old> {
        while let Old(Some((id, spot))) = old
            && spot.level > level
        {
            let page = readable(self.reader.page(id, spot.level).await)?;
            old = page.and_then(|page| spot.demand(&page, 0)).map(Old::below).unwrap_or_default();
        }
        Ok(old)
    }

    /// The new and the old page, each none when it does not read.
    async fn pages(&self, at: Subtree) -> Result<(Subtree, Option<Arc<Page>>, Option<Arc<Page>>)> {
        let new = readable(self.reader.page(at.id, at.spot.level).await)?;
        let old = match at.old.0 {
            Some((id, spot)) if spot.level == at.spot.level => readable(self.reader.page(id, spot.level).await)?,
            _ => None,
        };
        Ok((at, new, old))
    }

    /// Asks for the chunks of leaves where more than `held` wait.
    async fn ask_leaves(&mut self, held: usize) -> Result<()> {
        if self.leaves.len() > held {
            let mut asked = std::mem::take(&mut self.leaves);
            asked.sort_unstable();
            asked.dedup_by_key(|(id, demand, _)| (*id, *demand));
            for asked in asked.chunks(IDS_AT_ONCE) {
                self.ask(asked.to_vec()).await?;
            }
        }
        Ok(())
    }

    /// Asks, and lists what is not there.
    async fn ask(&mut self, asked: Vec<Asked>) -> Result<Vec<bool>> {
        if asked.is_empty() {
            return Ok(Vec::new());
        }
        let shapes = self.presences.shapes(asked.iter().map(|(id, ..)| *id).collect()).await?;
        if shapes.len() != asked.len() {
            return Err(Error::internal("as many answers as questions about chunks"));
        }
        for ((id, demand, offset), shape) in asked.iter().zip(&shapes) {
            match shape {
                None => self.list(*id),
                Some(have) => {
                    if let Some(what) = demand.misfit(id, *have) {
                        return Err(Error::integrity(format!("offset {offset}: {what}")).hint(
                            "the map is wrong, and storing chunks again does not repair it: back up the machine again",
                        ));
                    }
                }
            }
        }
        Ok(shapes.iter().map(Option::is_some).collect())
    }

    fn list(&mut self, id: ChunkId) {
        if self.listed.insert(id) {
            self.missing.push(id);
        }
    }
}

/// Collects those references of a page that the parent's page does not have in the same place with the same demand.
fn descend(at: &Subtree, new: &Page, old: Option<&Page>, stack: &mut Vec<Subtree>, leaves: &mut Vec<Asked>) {
    let before = |entry: u64| old.zip(at.old.0).and_then(|(page, (_, spot))| spot.demand(page, entry));
    // A lower map is the first subtree of a higher one.
    let lower = at.old.0.filter(|(_, spot)| spot.level < at.spot.level);
    for (entry, id, demand) in at.spot.demands(new) {
        let offset = at.offset.saturating_add(at.spot.offset_of(new, entry));
        match demand {
            Demand::Chunk(_) if before(entry) != Some((id, demand)) => leaves.push((id, demand, offset)),
            Demand::Chunk(_) => {}
            Demand::Page(spot) => {
                let below = || before(entry).map(Old::below).unwrap_or_default();
                let old = if entry == 0 && lower.is_some() { Old(lower) } else { below() };
                stack.push(Subtree { id, spot, offset, old });
            }
        }
    }
}

fn readable(page: Result<Arc<Page>>) -> Result<Option<Arc<Page>>> {
    match page {
        Ok(page) => Ok(Some(page)),
        Err(error) if error.kind() == ErrorKind::Integrity => {
            tracing::warn!(%error, "a page cannot be read");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Decides when repairing a refused commit has no use any more. A commit lists a bounded number of chunks, so there may
/// be many rounds, but there must not be many in which no new chunk is listed.
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
