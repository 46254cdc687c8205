//! Maps: what points need, and what of it is not there.

use super::Bad;
use crate::format::pack::PackName;
use crate::local::{Inner, Local};
use chunker::{ChunkId, GRID_BYTES};
use mover::{
    ChunkError, Error, MapReader, MapRoot, PointId, ReadSession, Repository, Result, TreeDiff, VerifyError,
    VerifyReport,
};
use std::collections::{BTreeSet, HashMap, HashSet};

impl Local {
    /// Numbers of the packs that hold what points need.
    pub(super) async fn packs_of(&self, points: &[PointId]) -> Result<HashSet<u32>> {
        let session = self.read(&[]).await?;
        let reader = MapReader::new(&session, &self.inner.prints);
        let mut packs = HashSet::new();
        for point in points {
            let listed = self.inner.state().recovery_point(*point);
            let listed = listed.ok_or_else(|| Error::not_found(format!("there is no point {point}")))?;
            let mut ids = vec![listed.manifest];
            for root in session.manifest(*point).await?.roots() {
                let mut walk = TreeDiff::new((MapRoot { level: root.level, id: None }, &reader), (root, &reader));
                while let Some(step) = walk.next().await? {
                    ids.extend(step.new_id);
                    ids.extend(step.new.iter().filter(|_| step.level == 0).flat_map(|leaf| leaf.chunks()));
                }
            }
            let found = self.with(move |inner| inner.locate(&ids)).await?;
            packs.extend(found.into_iter().flatten().map(|place| place.pack));
        }
        Ok(packs)
    }

    /// Walks every map: every reference must lead to a chunk that is there; bad chunks get a point, disk and offset.
    pub(super) async fn walk_points(
        &self,
        points: &[PointId],
        bad: &Bad,
        known: &BTreeSet<(ChunkId, PackName)>,
        report: &mut VerifyReport,
    ) -> Result<()> {
        let state = self.inner.state();
        let session = self.read(&[]).await?;
        let reader = MapReader::new(&session, &self.inner.prints);
        let why = bad.iter().map(|((id, pack), what)| (*id, (*pack, what.as_str()))).collect();
        let (named, walked) = (BTreeSet::new(), HashSet::new());
        let mut walk = Walk { local: self, session: &session, reader: &reader, why, named, walked };
        for id in state.points().keys().filter(|id| points.is_empty() || points.contains(id)) {
            walk.point(*id, report).await?;
        }
        let named = walk.named;
        let left: Vec<_> = bad.iter().filter(|((id, _), _)| !named.contains(id)).collect();
        let ids: Vec<ChunkId> = left.iter().map(|((id, _), _)| *id).collect();
        let places = self.with(move |inner| inner.locate(&ids)).await?;
        for ((place @ (id, pack), what), sound) in left.into_iter().zip(places) {
            // Damage that was known and has healed elsewhere waits for a sweep, not for an administrator.
            if sound.is_none() || !known.contains(place) {
                let (chunk, pack, what) = (Some(*id), Some(pack.to_string()), what.clone());
                report.add(VerifyError { chunk, pack, what, ..VerifyError::default() });
            }
        }
        Ok(())
    }
}

/// On the way through a tree, from the last on.
enum Step {
    /// A page: its level, its place among those of its level, and the length of what is below it in a stream.
    Look(ChunkId, u8, u64, Option<u64>),
    /// Everything below a page was looked at; so many errors there were before.
    Walked(ChunkId, Option<u64>, usize),
}

struct Walk<'a, R> {
    local: &'a Local,
    session: &'a R,
    reader: &'a MapReader<'a, R>,
    /// Why a chunk that is nowhere sound is not.
    why: HashMap<ChunkId, (PackName, &'a str)>,
    /// Bad chunks for which a place was told.
    named: BTreeSet<ChunkId>,
    /// Pages found whole: shared pages are walked once.
    walked: HashSet<(ChunkId, Option<u64>)>,
}

impl<R: ReadSession> Walk<'_, R> {
    async fn point(&mut self, id: PointId, report: &mut VerifyReport) -> Result<()> {
        let errors = self.errors_of(id).await?;
        // A sweep may have made it final meanwhile, and then nobody misses what it had.
        let state = if errors.is_empty() { None } else { self.local.with(Inner::catch_up).await.ok() };
        if state.is_some_and(|state| !state.points().contains_key(&id)) {
            return Ok(());
        }
        report.points += 1;
        for error in errors {
            self.named.extend(error.chunk);
            report.add(VerifyError { point: Some(id), ..error });
        }
        Ok(())
    }

    async fn errors_of(&mut self, id: PointId) -> Result<Vec<VerifyError>> {
        let mut errors = Vec::new();
        let manifest = match self.session.manifest(id).await {
            Ok(manifest) => manifest,
            Err(error) => return Ok(vec![VerifyError::of(&error)]),
        };
        let disks = manifest.disks.iter().map(|disk| (&disk.name, disk.root, None));
        let attachments = manifest.attachments.iter().map(|it| (&it.kind, it.root, Some(it.bytes)));
        for (name, root, bytes) in disks.chain(attachments) {
            let found = self.tree(root, bytes).await?;
            errors.extend(found.into_iter().map(|error| VerifyError { disk: Some(name.clone()), ..error }));
        }
        Ok(errors)
    }

    /// Errors below the root of a disk, or of a stream of so many bytes. Goes on beside a page that does not read.
    async fn tree(&mut self, root: MapRoot, bytes: Option<u64>) -> Result<Vec<VerifyError>> {
        let mut errors = Vec::new();
        let mut stack: Vec<Step> = root.id.iter().map(|id| Step::Look(*id, root.level, 0, bytes)).collect();
        while let Some(step) = stack.pop() {
            let (id, level, index, bytes) = match step {
                Step::Look(id, level, index, bytes) => (id, level, index, bytes),
                Step::Walked(id, bytes, before) => {
                    // Below what is damaged every point is named that needs it.
                    if errors.len() == before {
                        self.walked.insert((id, bytes));
                    }
                    continue;
                }
            };
            if self.walked.contains(&(id, bytes)) {
                continue;
            }
            let span = u64::from(GRID_BYTES).saturating_mul(mover::PAGE_ENTRIES.saturating_pow(u32::from(level)));
            let start = span.saturating_mul(mover::PAGE_ENTRIES).saturating_mul(index);
            let page = match self.reader.page(id, level).await {
                Ok(page) => page,
                Err(error) => {
                    let pack = self.why.get(&id).map(|(pack, _)| pack.to_string());
                    errors.push(VerifyError { offset: Some(start), chunk: Some(id), pack, ..VerifyError::of(&error) });
                    continue;
                }
            };
            if let Err(error) = page.check_place(bytes) {
                let (offset, chunk, what) = (Some(start), Some(id), error.to_string());
                errors.push(VerifyError { offset, chunk, what, ..VerifyError::default() });
                continue;
            }
            let offset = |at: usize| bytes.is_none().then(|| start.saturating_add(span.saturating_mul(at as u64)));
            let entries = page.entries().iter().enumerate().filter_map(|(at, entry)| Some((at, entry.chunk()?)));
            stack.push(Step::Walked(id, bytes, errors.len()));
            if level > 0 {
                let below = |at: usize| (index * mover::PAGE_ENTRIES + at as u64, page.lengths().get(at).copied());
                stack.extend(entries.map(|(at, id)| Step::Look(id, level - 1, below(at).0, below(at).1)));
            } else {
                let entries: Vec<(usize, ChunkId)> = entries.collect();
                let ids: Vec<ChunkId> = entries.iter().map(|(_, id)| *id).collect();
                for (id, why) in self.local.with(move |inner| inner.not_usable(ids)).await? {
                    let (pack, what) = match (self.why.get(&id), why) {
                        (Some((pack, what)), _) => (Some(pack.to_string()), (*what).to_owned()),
                        (None, ChunkError::Damaged { pack, what, .. }) => (Some(pack), what),
                        (None, _) => (None, "the chunk is missing".to_owned()),
                    };
                    let places = entries.iter().filter(|(_, entry)| *entry == id);
                    errors.extend(places.map(|(at, _)| {
                        let (offset, chunk, pack, what) = (offset(*at), Some(id), pack.clone(), what.clone());
                        VerifyError { offset, chunk, pack, what, ..VerifyError::default() }
                    }));
                }
            }
        }
        Ok(errors)
    }
}
