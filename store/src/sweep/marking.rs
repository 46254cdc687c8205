//! Walking pages: from manifests down, each page once.

use crate::reading;
use crate::references::{References, head};
use crate::repository::Inner;
use crate::state::State;
use chunker::{ChunkId, ChunkKind};
use mover::{Error, Manifest, Page, PointId, Result, with_decoder};
use std::collections::{BTreeSet, HashSet};

impl Inner {
    /// Counts the references of a point, and of all pages below it.
    pub(super) fn count(&self, references: &References, state: &State, point: PointId) -> Result<()> {
        references.counting(point)?;
        let manifest = manifest_of(state, point)?;
        self.descend(vec![manifest], |ids| references.add_pages(ids), |leaf| references.add_chunks(leaf.chunks()))
            .map_err(|error| of_point(error, point))?;
        references.counted(point)
    }

    /// Takes away the references of a point, and of all pages below it that nothing else needs.
    pub(super) fn take_away(&self, references: &References, state: &State, point: PointId) -> Result<()> {
        let manifest = manifest_of(state, point)?;
        self.descend(vec![manifest], |ids| references.take_pages(ids), |leaf| references.take_chunks(leaf.chunks()))
            .map_err(|error| of_point(error, point))
    }

    /// Those of `wanted` to which a page of `points` refers, and the pages among them. `seen` has the pages that were
    /// looked at before.
    pub(super) fn referred_to(
        &self,
        state: &State,
        points: &BTreeSet<PointId>,
        wanted: &Wanted,
        seen: &mut HashSet<u128>,
    ) -> Result<BTreeSet<ChunkId>> {
        let mut found = BTreeSet::new();
        for point in points {
            let found = std::cell::RefCell::new(&mut found);
            self.descend(
                vec![manifest_of(state, *point)?],
                |ids| {
                    found.borrow_mut().extend(ids.iter().filter(|id| wanted.may_hold(id)));
                    Ok(ids.iter().filter(|id| seen.insert(short(id))).copied().collect())
                },
                |leaf| {
                    found.borrow_mut().extend(leaf.chunks().filter(|id| wanted.may_hold(id)));
                    Ok(())
                },
            )
            .map_err(|error| of_point(error, *point))?;
        }
        Ok(found)
    }

    /// Walks manifests and pages. `enter` gets the ids that were found, and tells which of them are to be read. `leaf`
    /// gets the pages that refer to chunks of data. A page that cannot be read is an error, because it may refer to any
    /// chunk.
    fn descend(
        &self,
        roots: Vec<ChunkId>,
        mut enter: impl FnMut(&[ChunkId]) -> Result<Vec<ChunkId>>,
        mut leaf: impl FnMut(&Page) -> Result<()>,
    ) -> Result<()> {
        let mut stack = roots;
        while !stack.is_empty() {
            let batch = stack.split_off(stack.len().saturating_sub(PAGES_AT_ONCE));
            let entered = enter(&batch)?;
            for (id, kind, plain) in self.read_structure(entered)? {
                if kind == ChunkKind::Manifest {
                    let manifest = Manifest::decode(&plain).map_err(|error| Error::from(error).context(id))?;
                    stack.extend(manifest.roots().filter_map(|root| root.id));
                    continue;
                }
                let page =
                    Page::decode(&plain).map_err(|error| Error::from(error).context(format_args!("page {id}")))?;
                match page.level() {
                    0 => leaf(&page)?,
                    _ => stack.extend(page.chunks()),
                }
            }
        }
        Ok(())
    }

    /// Pages and manifests, decoded and compared with their ids.
    fn read_structure(&self, ids: Vec<ChunkId>) -> Result<Vec<(ChunkId, ChunkKind, Vec<u8>)>> {
        let distinct: BTreeSet<ChunkId> = ids.into_iter().collect();
        let mut made = Vec::with_capacity(distinct.len());
        for (id, blob) in reading::read_now(self, distinct.into_iter().collect()) {
            let blob = blob?;
            let mut plain = Vec::new();
            with_decoder(|decoder| decoder.decode_verified(&self.keys, &id, &blob, &mut plain))
                .map_err(|error| Error::integrity(format!("chunk {id}")).because(error))?;
            made.push((id, blob.header().kind, plain));
        }
        Ok(made)
    }
}

fn manifest_of(state: &State, point: PointId) -> Result<ChunkId> {
    let found = state.points().get(&point).map(|point| point.committed.manifest);
    found.ok_or_else(|| Error::not_found(format!("there is no point {point}")))
}

fn of_point(error: Error, point: PointId) -> Error {
    error
        .context(format_args!("point {point}"))
        .hint("it is damaged, so it is not known what it needs: `windlass verify` shows the damage; repair it or forget the point, then sweep again")
}

/// Chunks that are looked for: 8 bytes for each.
#[derive(Default)]
pub(super) struct Wanted(Vec<u64>);

impl Wanted {
    pub fn add(&mut self, ids: &[ChunkId]) {
        self.0.extend(ids.iter().map(head));
    }

    /// To be called when all are added.
    pub fn sort(&mut self) {
        self.0.sort_unstable();
        self.0.dedup();
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// False only when the chunk is certainly not one of those that are looked for.
    fn may_hold(&self, id: &ChunkId) -> bool {
        self.0.binary_search(&head(id)).is_ok()
    }
}

/// Half of an id. It is as good as a whole one: nobody can find two pages with the same half.
fn short(id: &ChunkId) -> u128 {
    u128::from_le_bytes(*id.as_bytes().first_chunk().expect("ids are longer"))
}

const PAGES_AT_ONCE: usize = 256;
