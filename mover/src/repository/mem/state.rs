//! What a repository in memory holds. Nothing here waits.

use crate::{
    Begin, Begun, ChunkError, Demand, Error, ErrorKind, GroupId, Holder, LogHead, MachineId, Manifest, MapRoot, Name,
    OwnerId, PAGE_ENTRIES, Page, PointDraft, PointFilter, PointId, Presence, RecoveryPoint, RepositoryConfig,
    RepositoryId, Result, SessionId, Shape, Spot, Stats, StoredTotals, Suspect, Timestamp, VerifyError, VerifyReport,
    digest, with_decoder,
};
use chunker::{Blob, ChunkId, ChunkKind, DomainKeys, GRID_BYTES};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Bound;

#[derive(Default)]
pub(super) struct State {
    /// Durable chunks by id.
    pub chunks: HashMap<ChunkId, Held>,
    /// Chunks of the open pack, which all sessions share (R18).
    pub open: HashMap<ChunkId, Blob>,
    pub packs: u64,
    pub suspects: BTreeSet<ChunkId>,
    /// Doomed chunks, each with the sessions that must end before it may be dropped.
    pub doomed: HashMap<ChunkId, BTreeSet<SessionId>>,
    /// All points that are not final, in the order of their commits.
    pub points: Vec<RecoveryPoint>,
    pub sessions: BTreeMap<SessionId, Lease>,
    pub log: LogHead,
    /// Ends of other repositories' logs as copies saw them.
    pub peers: BTreeMap<RepositoryId, LogHead>,
    /// The new owner of each machine that was moved; none for the site.
    pub moved: BTreeMap<(MachineId, RepositoryId), Option<Name>>,
    /// The newest point that was made final, of each machine and origin.
    pub given_up: BTreeMap<(MachineId, RepositoryId), Timestamp>,
    /// Counts what takes chunks away, so that a commit notices when its check is out of date (R1).
    pub losses: u64,
    pub operations: BTreeMap<&'static str, u64>,
    pub faults: Vec<super::fault::Fault>,
}

pub(super) struct Held {
    pub blob: Blob,
    /// The log's sequence when it became durable.
    pub added: u64,
}

pub(super) struct Lease {
    pub opened: u64,
    pub pins: Vec<PointId>,
    /// Ended by commit or abandon, or fenced.
    pub ended: bool,
    /// The first failure; every later operation tells it.
    pub failed: Option<(ErrorKind, String)>,
    /// Relies on a chunk of the open pack.
    pub shares_open: bool,
    pub flushed: StoredTotals,
}

impl State {
    pub fn open_session(&mut self, id: SessionId, pins: Vec<PointId>) -> Result<()> {
        if let Some(lost) = pins.iter().find(|pin| self.points.iter().all(|point| point.id != **pin)) {
            return Err(Error::not_found(format!("there is no point {lost}")));
        }
        self.append();
        let opened = self.log.sequence;
        let (failed, flushed) = (None, StoredTotals::default());
        let lease = Lease { opened, pins, ended: false, failed, shares_open: false, flushed };
        self.sessions.insert(id, lease);
        Ok(())
    }

    pub fn begin(&mut self, id: SessionId, begin: &Begin, keys: &DomainKeys) -> Result<Vec<Suspect>> {
        let gone = |pin: &&PointId| self.points.iter().any(|point| point.id == **pin && point.forgotten);
        if let Some(forgotten) = begin.parents.iter().find(gone) {
            return Err(Error::not_found(format!("point {forgotten} was forgotten")));
        }
        let owner = begin.owner();
        let others = |point: &&RecoveryPoint| begin.parents.contains(&point.id) && point.owner != owner;
        if let Some(hidden) = self.points.iter().find(others).filter(|_| owner != OwnerId::default()) {
            return Err(Error::not_found(format!("there is no point {}", hidden.id)));
        }
        self.open_session(id, begin.parents.clone())?;
        let mut suspects = Vec::new();
        if !self.suspects.is_empty() {
            for parent in &begin.parents {
                if let Ok(manifest) = self.manifest(*parent, keys) {
                    self.suspect_places(&manifest, keys, &mut suspects);
                }
            }
        }
        suspects.truncate(Begun::SUSPECTS_MAX);
        Ok(suspects)
    }

    /// Adds every place of a suspect in the disks of a point, until there are enough. Subtrees without a suspect are
    /// searched only once.
    fn suspect_places(&self, manifest: &Manifest, keys: &DomainKeys, places: &mut Vec<Suspect>) {
        let mut clean = HashSet::new();
        for disk in &manifest.disks {
            let mut found = Vec::new();
            let top = disk.root.id.map(|id| (id, disk.root.level + 1, 0));
            top.into_iter().for_each(|top| self.suspect_blocks(top, keys, &mut clean, &mut found));
            let place = |(chunk, block)| Suspect { chunk, disk: disk.id, offset: block * u64::from(GRID_BYTES) };
            places.extend(found.into_iter().map(place));
        }
    }

    /// The suspects at and below `(id, height, place)`, each with the first block below it. A chunk has height 0.
    fn suspect_blocks(
        &self,
        (id, height, index): (ChunkId, u8, u64),
        keys: &DomainKeys,
        clean: &mut HashSet<(ChunkId, u8)>,
        found: &mut Vec<(ChunkId, u64)>,
    ) {
        if found.len() >= Begun::SUSPECTS_MAX || clean.contains(&(id, height)) {
            return;
        }
        let before = found.len();
        if self.suspects.contains(&id) {
            found.push((id, index * PAGE_ENTRIES.pow(height.into())));
        }
        if let Some(page) = height.checked_sub(1).and_then(|_| self.page(id, keys)) {
            for (at, below) in (0..PAGE_ENTRIES).filter_map(|at| Some((at, page.entry(at).chunk()?))) {
                self.suspect_blocks((below, height - 1, index * PAGE_ENTRIES + at), keys, clean, found);
            }
        }
        if found.len() == before && height > 0 {
            clean.insert((id, height));
        }
    }

    /// Every id at or below `root`, and its height; a chunk has height 0. Subtrees that do not read are passed over.
    pub fn below(&self, root: MapRoot, keys: &DomainKeys) -> HashSet<(ChunkId, u8)> {
        let mut seen: HashSet<(ChunkId, u8)> = root.id.map(|id| (id, root.level + 1)).into_iter().collect();
        let mut stack: Vec<(ChunkId, u8)> = seen.iter().copied().collect();
        while let Some((id, height)) = stack.pop() {
            let Some(below) = height.checked_sub(1) else { continue };
            let new = self.page(id, keys).map_or_else(Vec::new, |page| page.chunks().collect());
            stack.extend(new.into_iter().map(|id| (id, below)).filter(|it| seen.insert(*it)));
        }
        seen
    }

    fn page(&self, id: ChunkId, keys: &DomainKeys) -> Option<Page> {
        let held = self.chunks.get(&id)?;
        let mut plain = Vec::new();
        with_decoder(|decoder| decoder.decode_verified(keys, &id, &held.blob, &mut plain)).ok()?;
        Page::decode(&plain).ok()
    }

    pub fn manifest(&self, point: PointId, keys: &DomainKeys) -> Result<Manifest> {
        let found = self.points.iter().find(|it| it.id == point);
        let id = found.ok_or_else(|| Error::not_found(format!("there is no point {point}")))?.manifest;
        let bad = |what: String| Error::integrity(format!("manifest {id} of point {point} {what}"));
        let held = self.chunks.get(&id).ok_or_else(|| bad("is missing".into()))?;
        let mut plain = Vec::new();
        held.blob.check().map_err(|error| bad("is damaged".into()).because(error))?;
        with_decoder(|decoder| decoder.decode_verified(keys, &id, &held.blob, &mut plain))
            .map_err(|error| bad("is damaged".into()).because(error))?;
        let manifest = Manifest::decode(&plain).map_err(|error| bad("cannot be read".into()).because(error))?;
        if held.blob.header().kind != ChunkKind::Manifest || manifest.point != point {
            return Err(bad("is not its manifest".into()));
        }
        Ok(manifest)
    }

    /// Reads a chunk. What is found damaged is suspect from then on.
    pub fn read(&mut self, id: ChunkId) -> Result<Blob, ChunkError> {
        let held = self.chunks.get(&id).ok_or(ChunkError::Missing { chunk: id })?;
        match held.blob.check() {
            Ok(()) => Ok(held.blob.clone()),
            Err(error) => {
                self.losses += u64::from(self.suspects.insert(id));
                Err(ChunkError::Damaged { chunk: id, pack: "memory".into(), what: error.to_string() })
            }
        }
    }

    /// Decodes every chunk. What is found damaged is suspect from then on.
    pub fn verify(&mut self, keys: &DomainKeys) -> VerifyReport {
        let mut report = VerifyReport { points: self.points.len() as u64, ..VerifyReport::default() };
        for (id, Held { blob, .. }) in &self.chunks {
            report.chunks += 1;
            report.bytes_read += blob.bytes().len() as u64;
            if let Err(error) = with_decoder(|decoder| decoder.decode_verified(keys, id, blob, &mut Vec::new())) {
                self.losses += u64::from(self.suspects.insert(*id));
                report.add(VerifyError { chunk: Some(*id), what: error.to_string(), ..VerifyError::default() });
            }
        }
        for point in &self.points {
            if let Ok(manifest) = self.manifest(point.id, keys) {
                self.misfits(point.id, &manifest, keys).into_iter().for_each(|error| report.add(error));
            }
        }
        report
    }

    /// References in the maps of a point that a restore would refuse.
    fn misfits(&self, point: PointId, manifest: &Manifest, keys: &DomainKeys) -> Vec<VerifyError> {
        let (mut errors, mut visited) = (Vec::new(), HashSet::new());
        let disks = manifest.disks.iter().map(|it| (&it.name, it.root, Spot::of_disk(it.size, it.root.level)));
        let attached = manifest.attachments.iter();
        let attached = attached.map(|it| (&it.kind, it.root, Spot::of_stream(it.bytes, it.root.level)));
        for (name, root, spot) in disks.chain(attached) {
            let error = |offset: u64, chunk: ChunkId, what: String| {
                let (point, disk, offset, chunk) = (Some(point), Some(name.clone()), Some(offset), Some(chunk));
                VerifyError { point, disk, offset, chunk, what, ..VerifyError::default() }
            };
            let mut stack: Vec<(ChunkId, Spot, u64)> = root.id.map(|id| (id, spot, 0)).into_iter().collect();
            while let Some((id, spot, offset)) = stack.pop() {
                let Some(page) = self.page(id, keys).filter(|_| visited.insert((id, spot))) else { continue };
                if let Err(what) = spot.check(&page) {
                    errors.push(error(offset, id, what.to_string()));
                    continue;
                }
                for (at, id, demand) in spot.demands(&page) {
                    let offset = offset + spot.offset_of(&page, at);
                    match (self.shape(&id).and_then(|have| demand.misfit(&id, have)), demand) {
                        (Some(what), _) => errors.push(error(offset, id, what)),
                        (None, Demand::Page(spot)) => stack.push((id, spot, offset)),
                        (None, Demand::Chunk(_)) => {}
                    }
                }
            }
        }
        errors
    }

    /// Kind and length of a chunk, if it is there and neither suspect nor doomed.
    pub fn shape(&self, id: &ChunkId) -> Option<Shape> {
        let held = self.chunks.get(id).filter(|_| !self.suspects.contains(id) && !self.doomed.contains_key(id))?;
        Some(Shape::of(held.blob.header()))
    }

    pub fn presence(&self, id: &ChunkId) -> Presence {
        if self.shape(id).is_some() {
            Presence::Have
        } else if self.open.contains_key(id) {
            Presence::Pending
        } else {
            Presence::Missing
        }
    }

    /// The session, unless it has failed.
    pub fn lease(&mut self, id: SessionId) -> Result<&mut Lease> {
        let lease = self.sessions.get_mut(&id).ok_or_else(|| Error::fenced("the session is not known any more"))?;
        match &lease.failed {
            Some((kind, message)) => Err(Error::new(*kind, message.clone())),
            None => Ok(lease),
        }
    }

    /// The session, unless it has failed or ended.
    pub fn live(&mut self, id: SessionId) -> Result<&mut Lease> {
        let lease = self.lease(id)?;
        if lease.ended { Err(Error::usage("the session has ended")) } else { Ok(lease) }
    }

    pub fn fail(&mut self, id: SessionId, error: &Error) {
        if let Some(lease) = self.sessions.get_mut(&id) {
            lease.failed.get_or_insert((error.kind(), error.message()));
        }
    }

    /// Takes a verified chunk into the open pack.
    pub fn put(&mut self, session: SessionId, id: ChunkId, blob: Blob) {
        let before = self.presence(&id);
        let Some(lease) = self.sessions.get_mut(&session) else { return };
        lease.shares_open |= before != Presence::Have;
        if before != Presence::Missing {
            return;
        }
        lease.flushed.add(blob.header());
        self.open.insert(id, blob);
    }

    /// Makes the open pack durable, or makes all sessions that rely on it fail.
    pub fn seal(&mut self, failure: Option<&Error>) {
        let open = std::mem::take(&mut self.open);
        if failure.is_none() && !open.is_empty() {
            self.packs += 1;
            self.append();
            for (id, blob) in open {
                self.suspects.remove(&id);
                self.doomed.remove(&id);
                self.chunks.insert(id, Held { blob, added: self.log.sequence });
            }
        }
        for lease in self.sessions.values_mut() {
            let shared = std::mem::take(&mut lease.shares_open);
            if let Some(error) = failure.filter(|_| shared) {
                lease.failed.get_or_insert((error.kind(), error.message()));
            }
        }
    }

    /// The points of `drafts` that are committed already.
    pub fn committed(&self, drafts: &[PointDraft]) -> Vec<RecoveryPoint> {
        let of = |draft: &PointDraft| self.points.iter().find(|point| point.id == draft.manifest.point).cloned();
        drafts.iter().filter_map(of).collect()
    }

    /// Brings back the points of `drafts` that are there and were forgotten.
    pub fn bring_back(&mut self, drafts: &[PointDraft]) {
        let wanted = |point: &&mut RecoveryPoint| drafts.iter().any(|draft| draft.manifest.point == point.id);
        self.points.iter_mut().filter(wanted).for_each(|point| point.forgotten = false);
    }

    /// Makes points visible whose chunks have been checked; those that are there already stay as they are.
    pub fn commit(
        &mut self,
        (session, begin): (SessionId, &Begin),
        drafts: &[PointDraft],
        manifests: &[(ChunkId, Blob)],
        config: &RepositoryConfig,
        now: Timestamp,
    ) -> Result<Vec<RecoveryPoint>> {
        self.live(session)?;
        self.append();
        self.peers.extend(drafts.iter().filter_map(|draft| draft.origin?.seen));
        self.bring_back(drafts);
        let there: HashSet<PointId> = self.points.iter().map(|point| point.id).collect();
        let new = drafts.iter().zip(manifests).filter(|(draft, _)| !there.contains(&draft.manifest.point));
        for (draft, (id, blob)) in new {
            let manifest = &draft.manifest;
            // As a node would have measured it.
            let stored = self.sessions.get(&session).map_or(0, |lease| lease.flushed.bytes_stored);
            let bytes_stored = begin.holder.as_ref().map_or(0, |_| stored);
            self.points.push(RecoveryPoint {
                id: manifest.point,
                manifest: *id,
                owner: begin.owner(),
                owner_name: begin.holder.as_ref().and_then(Holder::owner_name).cloned(),
                stamped: begin.owner(),
                holder: begin.holder.clone(),
                machine: manifest.machine,
                machine_name: manifest.machine_name.clone(),
                group: manifest.group.filter(|group| *group != GroupId::default()),
                snapshot_time: manifest.snapshot_time,
                commit_time: now,
                origin: draft.origin.map_or((config.id, now), |origin| (origin.repository, origin.commit_time)),
                number: draft.origin.map_or(self.log.sequence, |origin| origin.number),
                protected_until: Timestamp::default(),
                bytes_logical: manifest.bytes_logical(),
                bytes_new: manifest.bytes_new,
                bytes_stored,
                pinned: false,
                forgotten: false,
                labels: draft.labels.clone(),
            });
            self.suspects.remove(id);
            self.doomed.remove(id);
            if let Some(lease) = self.sessions.get_mut(&session) {
                lease.flushed.add(blob.header());
            }
            self.chunks.insert(*id, Held { blob: blob.clone(), added: self.log.sequence });
        }
        self.own();
        self.end(session);
        Ok(self.committed(drafts))
    }

    pub fn annotate(&mut self, point: PointId, labels: &[(String, String)]) -> Result<()> {
        let gone = || Error::not_found(format!("there is no point {point}"));
        let found = self.points.iter().position(|it| it.id == point).ok_or_else(gone)?;
        let changed = crate::record::labels::with(&self.points[found].labels, labels)?;
        self.append();
        self.points[found].labels = changed;
        Ok(())
    }

    pub fn move_machine(&mut self, of: (MachineId, RepositoryId), owner: Option<Name>) -> Result<()> {
        let belongs = |point: &RecoveryPoint| (point.machine, point.origin.0) == of;
        if !self.points.iter().any(belongs) {
            return Err(Error::not_found(format!("machine {} has no points here", of.0)));
        }
        self.append();
        self.moved.insert(of, owner);
        self.own();
        Ok(())
    }

    /// Sets the owner of the points of all machines that were moved.
    fn own(&mut self) {
        for point in &mut self.points {
            if let Some(owner) = self.moved.get(&(point.machine, point.origin.0)) {
                point.owner = owner.as_ref().map(OwnerId::of).unwrap_or_default();
                point.owner_name.clone_from(owner);
            }
        }
    }

    pub fn end(&mut self, session: SessionId) {
        if let Some(lease) = self.sessions.get_mut(&session) {
            lease.ended = true;
            lease.pins.clear();
        }
    }

    pub fn list(&self, filter: &PointFilter) -> Vec<RecoveryPoint> {
        let named = |point: &&RecoveryPoint| filter.machine.as_ref().is_none_or(|name| *name == point.machine_name);
        self.points.iter().filter(|point| point.forgotten == filter.forgotten).filter(named).cloned().collect()
    }

    pub fn stats(&self) -> Stats {
        let living = || self.points.iter().filter(|point| !point.forgotten);
        Stats {
            points: living().count() as u64,
            chunks: self.chunks.len() as u64,
            packs: self.packs,
            bytes_logical: living().map(|point| point.bytes_logical).sum(),
            bytes_stored: self.chunks.values().map(|held| held.blob.bytes().len() as u64).sum(),
            suspects: self.suspects.len() as u64,
            ..Stats::default()
        }
    }

    pub fn wanted(&self, after: Option<ChunkId>, max: usize) -> Vec<ChunkId> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.suspects.range((from, Bound::Unbounded)).take(max).copied().collect()
    }

    pub fn append(&mut self) {
        self.log = after(self.log);
    }

    /// The chain depends on the number alone, so it can be followed again.
    pub fn has_been(&self, seen: LogHead) -> bool {
        let mut at = LogHead::default();
        while at.sequence < seen.sequence.min(self.log.sequence) {
            at = after(at);
        }
        at == seen
    }
}

fn after(end: LogHead) -> LogHead {
    let sequence = end.sequence + 1;
    LogHead { sequence, hash: digest(&[&end.hash[..], &sequence.to_le_bytes()].concat()) }
}
