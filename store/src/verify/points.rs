//! Maps: the chunks that points need, and which of them are missing or damaged.

use super::Bad;
use crate::format::pack::PackName;
use crate::reader::Reader;
use crate::repository::Inner;
use chunker::ChunkId;
use mover::{
    ChunkError, Demand, Error, MapReader, MapRoot, PointId, ReadSession, Result, Spot, TreeDiff, VerifyError,
    VerifyReport, Visited,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

impl Inner {
    /// Numbers of the packs that hold what points need.
    pub(super) async fn packs_of(self: &Arc<Self>, points: &[PointId]) -> Result<HashSet<u32>> {
        let session = Reader::unpinned(self.clone());
        let reader = MapReader::new(&session, &self.keys);
        let (mut packs, mut visited) = (HashSet::new(), Visited::default());
        for point in points {
            let listed = self.state().recovery_point(*point);
            let listed = listed.ok_or_else(|| Error::not_found(format!("there is no point {point}")))?;
            let mut ids = vec![listed.manifest];
            for root in session.manifest(*point).await?.roots() {
                let nothing = MapRoot { level: root.level, id: None };
                let mut walk = TreeDiff::new((nothing, &reader), (root, &reader), &mut visited);
                while let Some(step) = walk.next().await? {
                    ids.extend(step.new_id);
                    ids.extend(step.new.iter().filter(|_| step.level == 0).flat_map(|leaf| leaf.chunks()));
                    if ids.len() >= IDS_TOGETHER {
                        self.add_packs(std::mem::take(&mut ids), &mut packs).await?;
                    }
                }
            }
            self.add_packs(ids, &mut packs).await?;
        }
        Ok(packs)
    }

    async fn add_packs(self: &Arc<Self>, ids: Vec<ChunkId>, packs: &mut HashSet<u32>) -> Result<()> {
        let found = self.with(move |inner| inner.locate(&ids)).await?;
        packs.extend(found.into_iter().flatten().map(|place| place.pack));
        Ok(())
    }

    /// Walks every map: every reference must lead to a chunk that is there; bad chunks get a point, disk and offset.
    pub(super) async fn walk_points(
        self: &Arc<Self>,
        points: &[PointId],
        bad: &Bad,
        known: &BTreeSet<(ChunkId, PackName)>,
        report: &mut VerifyReport,
    ) -> Result<()> {
        let state = self.state();
        let session = Reader::unpinned(self.clone());
        let reader = MapReader::new(&session, &self.keys);
        let why = bad.iter().map(|((id, pack), what)| (*id, (*pack, what.as_str()))).collect();
        let (named, sound, damaged) = (BTreeSet::new(), Visited::default(), Visited::default());
        let mut walk = Walk { inner: self, session: &session, reader: &reader, why, named, sound, damaged };
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

/// A step of the walk through a tree. Steps are taken from the end of a stack.
enum Step {
    /// A page, and where it begins in the disk or stream.
    Look(ChunkId, Spot, u64),
    /// Everything below a page was looked at; the number is how many errors there were before that.
    Walked(ChunkId, Spot, usize),
}

struct Walk<'a, R> {
    inner: &'a Arc<Inner>,
    session: &'a R,
    reader: &'a MapReader<'a, R>,
    /// Chunks of which no sound copy exists: the pack with a damaged copy, and what is wrong with it.
    why: HashMap<ChunkId, (PackName, &'a str)>,
    /// Bad chunks that are in the report with a point, disk and offset.
    named: BTreeSet<ChunkId>,
    /// Pages found whole: shared pages are walked once.
    sound: Visited,
    /// Pages with damage below them. Every place that needs one is reported, until a disk has [`PLACES_TOLD_MAX`]
    /// places.
    damaged: Visited,
}

impl<R: ReadSession> Walk<'_, R> {
    async fn point(&mut self, id: PointId, report: &mut VerifyReport) -> Result<()> {
        let errors = self.errors_of(id).await?;
        // A sweep may have made it final meanwhile, and then nobody misses what it had.
        let state = if errors.is_empty() { None } else { self.inner.with(Inner::catch_up).await.ok() };
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
        let disks = manifest.disks.iter().map(|it| (&it.name, it.root, Spot::of_disk(it.size, it.root.level)));
        let attached = manifest.attachments.iter();
        let attached = attached.map(|it| (&it.kind, it.root, Spot::of_stream(it.bytes, it.root.level)));
        for (name, root, spot) in disks.chain(attached) {
            let found = self.tree(root, spot).await?;
            errors.extend(found.into_iter().map(|error| VerifyError { disk: Some(name.clone()), ..error }));
        }
        Ok(errors)
    }

    /// Errors below a root. If a page cannot be read, goes on with the other pages.
    async fn tree(&mut self, root: MapRoot, spot: Spot) -> Result<Vec<VerifyError>> {
        let mut errors = Vec::new();
        let mut stack: Vec<Step> = root.id.iter().map(|id| Step::Look(*id, spot, 0)).collect();
        while let Some(step) = stack.pop() {
            let (id, spot, start) = match step {
                Step::Look(id, spot, start) => (id, spot, start),
                Step::Walked(id, spot, before) => {
                    // Below what is damaged every point is named that needs it.
                    let (whole, damaged) = (&mut self.sound, &mut self.damaged);
                    if errors.len() == before { whole } else { damaged }.insert(&id, spot)?;
                    continue;
                }
            };
            if errors.len() >= VerifyReport::ERRORS_MAX {
                return Ok(errors);
            }
            let told = errors.len() >= PLACES_TOLD_MAX && self.damaged.contains(&id, spot);
            if told || self.sound.contains(&id, spot) {
                continue;
            }
            let at = |offset: u64, chunk: ChunkId| VerifyError {
                offset: Some(start.saturating_add(offset)),
                chunk: Some(chunk),
                ..VerifyError::default()
            };
            let page = match self.reader.page(id, spot.level).await {
                Ok(page) => page,
                Err(error) => {
                    let pack = self.why.get(&id).map(|(pack, _)| pack.to_string());
                    let VerifyError { what, unread, .. } = VerifyError::of(&error);
                    errors.push(VerifyError { pack, what, unread, ..at(0, id) });
                    self.damaged.insert(&id, spot)?;
                    continue;
                }
            };
            if let Err(error) = spot.check(&page) {
                errors.push(VerifyError { what: error.to_string(), ..at(0, id) });
                self.damaged.insert(&id, spot)?;
                continue;
            }
            stack.push(Step::Walked(id, spot, errors.len()));
            let mut chunks = Vec::new();
            for (entry, id, demand) in spot.demands(&page) {
                match demand {
                    Demand::Page(below) => {
                        stack.push(Step::Look(id, below, start.saturating_add(spot.offset_of(&page, entry))));
                    }
                    Demand::Chunk(_) => chunks.push((entry, id, demand)),
                }
            }
            let asked: Vec<(ChunkId, Demand)> = chunks.iter().map(|(_, id, demand)| (*id, *demand)).collect();
            let bad = self.inner.with(move |inner| inner.not_fit(asked)).await?;
            for (entry, id, demand) in chunks.into_iter().filter(|_| !bad.is_empty()) {
                let Some(why) = bad.get(&(id, demand)) else { continue };
                let (pack, what) = match (self.why.get(&id), why) {
                    (_, Unfit::Other(what)) => (None, what.clone()),
                    (Some((pack, what)), _) => (Some(pack.to_string()), (*what).to_owned()),
                    (None, Unfit::Lost(ChunkError::Damaged { pack, what, .. })) => (Some(pack.clone()), what.clone()),
                    (None, Unfit::Lost(_)) => (None, "the chunk is missing".to_owned()),
                };
                errors.push(VerifyError { pack, what, ..at(spot.offset_of(&page, entry), id) });
            }
        }
        Ok(errors)
    }
}

/// Why nothing can be restored from a chunk.
enum Unfit {
    /// It has no usable place.
    Lost(ChunkError),
    /// The chunk does not have the kind or size that belongs at its place in the map.
    Other(String),
}

impl Inner {
    /// Those that a restore could not use, and why. Blocking.
    fn not_fit(&self, asked: Vec<(ChunkId, Demand)>) -> Result<BTreeMap<(ChunkId, Demand), Unfit>> {
        let ids: Vec<ChunkId> = asked.iter().map(|(id, _)| *id).collect();
        let places = self.locate(&ids)?;
        let (mut unfit, mut lost) = (BTreeMap::new(), Vec::new());
        for ((id, demand), place) in asked.into_iter().zip(places) {
            match place {
                None => lost.push((id, demand)),
                Some(place) => {
                    if let Some(what) = demand.misfit(&id, place.shape()) {
                        unfit.insert((id, demand), Unfit::Other(what));
                    }
                }
            }
        }
        let why = self.not_usable(lost.iter().map(|(id, _)| *id).collect())?;
        for (id, why) in why {
            let of = lost.iter().filter(|(lost, _)| *lost == id);
            unfit.extend(of.map(|(_, demand)| ((id, *demand), Unfit::Lost(why.clone()))));
        }
        Ok(unfit)
    }
}

/// Places of damage in one disk. When there are more, each further damaged page is reported only for its first place.
const PLACES_TOLD_MAX: usize = 1000;
/// Ids that are looked up together.
const IDS_TOGETHER: usize = 4096;
