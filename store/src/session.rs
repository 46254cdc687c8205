//! A write session on a local repository.

use crate::damage::unless_damaged;
use crate::format::event::{CommittedPoint, Event, first_record, made_by};
use crate::format::pack::{PackKind, blob_hash};
use crate::packer::{Arrival, Packer};
use crate::reading;
use crate::repository::Inner;
use crate::state::State;
use chunker::{Blob, BlobHeader, ChunkId, ChunkKind};
use futures::Stream;
use mover::{
    Begin, ChunkBatch, Commit, Error, Had, Manifest, OwnerId, PointDraft, PointId, Presence, Presences, Reach as _,
    ReadSession, Result, SessionId, Shape, StoredTotals, Timestamp, Verification, WriteSession, labels, missing_for,
    with_compressor, with_decoder,
};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use tokio::sync::RwLock;

/// A write session; ends when it is dropped.
pub struct Session {
    inner: Arc<Inner>,
    id: SessionId,
    packer: Arc<Packer>,
    begin: Begin,
    /// The answers about chunks that this session had, so that the index is asked only once for each: the commit does
    /// not ask again about chunks that are there, and the put does not ask again about chunks that are missing.
    told: Mutex<HashMap<ChunkId, Told>>,
    /// Packs in which the present commit has found what its points need.
    relied: Mutex<BTreeSet<u32>>,
    stored: Mutex<StoredTotals>,
    /// A commit waits for puts that have begun, and later puts wait for the commit. So its flush covers all chunks that
    /// came before.
    gate: RwLock<()>,
}

/// Which chunks count as present while the log does not know them yet.
#[derive(Clone, Copy)]
enum Unlogged {
    /// All: the asker's flush makes them durable, or fails.
    Any,
    /// Those of durable packs, which the next record names: what a commit may rely on.
    Sealed,
}

/// The answer about a chunk that a session had: why the chunk is there, or that it is missing.
#[derive(Clone, Copy)]
enum Told {
    /// It was in this pack.
    Pack(u32, Shape),
    /// It came in this session, so its pack is too young to be doomed (R6).
    Own(Shape),
    /// It was missing. The number is [`Pending::logged_by_others`] at that time: while it stays the same, the index
    /// need not be asked when the chunk is put.
    Missing(u64),
}

/// What was found of a chunk.
struct Found {
    presence: Presence,
    /// What the session has to remember until its commit.
    told: Option<Told>,
    /// What it is, where it is there.
    shape: Option<Shape>,
}

impl Session {
    pub(crate) fn new(inner: Arc<Inner>, id: SessionId, packer: Arc<Packer>, begin: &Begin) -> Self {
        Self {
            inner,
            id,
            packer,
            begin: begin.clone(),
            told: Mutex::default(),
            relied: Mutex::default(),
            stored: Mutex::default(),
            gate: RwLock::default(),
        }
    }

    fn tell(&self, told: impl IntoIterator<Item = (ChunkId, Told)>) {
        let mut known = self.told.lock().expect("no holder panics");
        let mut room = self.inner.answers.room();
        let before = known.len();
        for (id, told) in told {
            if room > 0 && known.insert(id, told).is_none() {
                room -= 1;
            }
        }
        self.inner.answers.remember(known.len() - before);
    }

    /// Which of these chunks are there, in the log or on their way into it.
    async fn presence(&self, ids: &[ChunkId], pending: Unlogged) -> Result<Vec<Found>> {
        let (session, ids) = (self.id, ids.to_vec());
        self.inner
            .with(move |inner| {
                let mut found: Vec<_> = {
                    let unlogged = inner.packs.pending();
                    unlogged.check()?;
                    let at = unlogged.logged_by_others(session);
                    let missing = || Found { presence: Presence::Missing, told: Some(Told::Missing(at)), shape: None };
                    let there = |presence, shape| Found { presence, told: None, shape: Some(shape) };
                    let one = |id: &ChunkId| match (unlogged.chunk(id), pending) {
                        (None, _) => missing(),
                        (Some(_), Unlogged::Sealed) if !unlogged.is_sealed(id) => missing(),
                        (Some(chunk), _) if chunk.session == session => there(Presence::Have, chunk.shape),
                        (Some(chunk), _) => there(Presence::Pending, chunk.shape),
                    };
                    ids.iter().map(one).collect()
                };
                let asked: Vec<usize> = (0..ids.len()).filter(|at| found[*at].presence == Presence::Missing).collect();
                let unknown: Vec<ChunkId> = asked.iter().map(|at| ids[*at]).collect();
                for (at, place) in asked.into_iter().zip(inner.locate(&unknown)?) {
                    if let Some(place) = place {
                        let shape = place.shape();
                        let told = Some(Told::Pack(place.pack, shape));
                        found[at] = Found { presence: Presence::Have, told, shape: Some(shape) };
                    }
                }
                Ok(found)
            })
            .await
    }

    /// The owner of this session, if it may learn only about chunks that it has had; none if it may learn about all.
    fn apart(&self) -> Option<OwnerId> {
        let holder = self.begin.holder.as_ref().filter(|_| self.inner.answers.are_owners_apart())?;
        holder.owner_name().map(OwnerId::of)
    }

    /// As [`Self::presence`], for answers to the client: chunks that its owner never had count as missing, if it may
    /// learn only about its own.
    async fn shown(&self, ids: &[ChunkId], pending: Unlogged) -> Result<Vec<Found>> {
        let mut found = self.presence(ids, pending).await?;
        if let Some(owner) = self.apart() {
            let asked = ids.to_vec();
            let had = self.inner.with(move |inner| inner.had(owner, &asked)).await?;
            for (found, _) in found.iter_mut().zip(had).filter(|(found, had)| found.shape.is_some() && had.is_none()) {
                // Not that it is missing: when it is put it is looked for.
                *found = Found { presence: Presence::Missing, told: None, shape: None };
            }
        }
        Ok(found)
    }

    /// If owners are kept apart, remembers that this owner has had the chunks that it puts now. Gives those that it had
    /// not had before: the client must not see whether they were there already.
    async fn note_put(&self, arrivals: &[Arrival]) -> Result<HashSet<ChunkId>> {
        let Some(owner) = self.apart() else { return Ok(HashSet::new()) };
        let ids: Vec<ChunkId> = arrivals.iter().map(|arrival| arrival.id).collect();
        self.inner
            .with(move |inner| {
                let had = inner.had(owner, &ids)?;
                inner.note(owner, &ids, Had::Put)?;
                Ok(ids.into_iter().zip(had).filter(|(_, had)| had.is_none()).map(|(id, _)| id).collect())
            })
            .await
    }

    /// Checks blobs against ids.
    async fn verify(&self, chunks: Vec<(ChunkId, Blob)>) -> Result<Vec<Arrival>> {
        let (inner, verification) = (self.inner.clone(), self.begin.verification);
        let verified = move || {
            let mut plain = Vec::new();
            let one = |(id, blob)| verify_one(&inner.keys, verification, id, blob, &mut plain);
            chunks.into_iter().map(one).collect::<Result<_>>()
        };
        self.inner.pool.run(verified).await
    }

    /// Those of `arrivals` that are missing. Looks up those of which this is not known yet.
    async fn absent(&self, arrivals: Vec<Arrival>) -> Result<Vec<Arrival>> {
        let (mut absent, unknown): (Vec<_>, Vec<_>) =
            arrivals.into_iter().partition(|arrival| arrival.missing_at.is_some());
        if !unknown.is_empty() {
            let ids: Vec<ChunkId> = unknown.iter().map(|arrival| arrival.id).collect();
            for (arrival, found) in unknown.into_iter().zip(self.presence(&ids, Unlogged::Any).await?) {
                if let Some(Told::Missing(at)) = found.told {
                    absent.push(Arrival { missing_at: Some(at), ..arrival });
                }
            }
        }
        Ok(absent)
    }

    /// Marks the arrivals that this session knows to be missing. Each answer is used for one put only, and then
    /// forgotten.
    fn told_missing(&self, arrivals: &mut [Arrival]) {
        let mut told = self.told.lock().expect("no holder panics");
        for arrival in arrivals {
            if let Some(Told::Missing(at)) = told.get(&arrival.id) {
                arrival.missing_at = Some(*at);
                told.remove(&arrival.id);
                self.inner.answers.forget(1);
            }
        }
    }

    async fn take(&self, chunks: Vec<(ChunkId, Blob)>) -> Result<()> {
        let mut arrivals = self.verify(chunks).await?;
        let fresh = self.note_put(&arrivals).await?;
        self.told_missing(&mut arrivals);
        let (structure, data): (Vec<_>, Vec<_>) =
            arrivals.into_iter().partition(|it| it.blob.header().kind.is_structure());
        self.store(PackKind::Data, data, &fresh).await?;
        self.store(PackKind::Page, structure, &fresh).await
    }

    /// Stores those of `arrivals` that are not stored yet. Chunks in `fresh` count as stored by this session in any
    /// case.
    async fn store(&self, kind: PackKind, mut arrivals: Vec<Arrival>, fresh: &HashSet<ChunkId>) -> Result<()> {
        while !arrivals.is_empty() {
            let mut there: HashMap<ChunkId, BlobHeader> = HashMap::new();
            if !fresh.is_empty() {
                let of = arrivals.iter().filter(|it| fresh.contains(&it.id));
                there.extend(of.map(|it| (it.id, *it.blob.header())));
            }
            let absent = self.absent(arrivals).await?;
            for arrival in &absent {
                there.remove(&arrival.id);
            }
            let (taken, mut late) = self.packer.append(self.id, kind, absent).await?;
            self.tell(taken.iter().map(|taken| (taken.id, Told::Own(Shape::of(&taken.header)))));
            let mut stored = self.stored.lock().expect("no holder panics");
            taken.iter().for_each(|taken| stored.add(&taken.header));
            there.values().for_each(|header| stored.add(header));
            late.iter_mut().for_each(|arrival| arrival.missing_at = None);
            arrivals = late;
        }
        Ok(())
    }

    /// Stores a manifest and gives its chunk.
    async fn put_manifest(&self, manifest: &Manifest) -> Result<ChunkId> {
        let plain = manifest.encode_checked()?;
        let id = self.inner.keys.id(ChunkKind::Manifest, &plain);
        let blob = with_compressor(chunker::Compression::default(), |compressor| {
            compressor.compress(ChunkKind::Manifest, &plain)
        });
        self.take(vec![(id, blob)]).await?;
        Ok(id)
    }

    /// The points when all of them are committed already.
    fn committed(&self, state: &State, drafts: &[PointDraft]) -> Option<Commit> {
        let points = drafts.iter().map(|draft| state.recovery_point(draft.manifest.point));
        points.collect::<Option<Vec<_>>>().map(Commit::Committed)
    }

    /// Commits points that exist already: those that were forgotten are brought back. Only administrators come here,
    /// because others may not commit such points: [`Begin::may_commit`].
    async fn bring_back(&self, points: &[PointDraft]) -> Result<Commit> {
        let (session, ids): (SessionId, Vec<PointId>) =
            (self.id, points.iter().map(|draft| draft.manifest.point).collect());
        let append = move |inner: &Inner| {
            inner.append(|state| {
                let forgotten = |id: &&PointId| state.points().get(*id).is_some_and(|it| it.forgotten.is_some());
                let forgotten: Vec<PointId> = ids.iter().filter(forgotten).copied().collect();
                let closed = state.sessions().contains_key(&session).then_some(Event::SessionClosed(session));
                let back = (!forgotten.is_empty()).then_some(Event::Unforgotten(forgotten));
                Ok(back.into_iter().chain(closed).collect())
            })
        };
        let state = self.inner.with(append).await?;
        // A sweep was faster.
        let gone = || {
            Error::not_found("the point was forgotten, and a sweep has made that final").hint("copy or back up again")
        };
        self.committed(&state, points).ok_or_else(gone)
    }

    /// Whether this session may commit them after `state`.
    fn may_commit(&self, state: &State, drafts: &[PointDraft]) -> Result<()> {
        let inner = &self.inner;
        let there = state.concerned(drafts.iter().map(|draft| &draft.manifest));
        self.begin.may_commit(drafts, &there, inner.config.config.id, inner.world.now())
    }

    fn stored_so_far(&self) -> u64 {
        self.stored.lock().expect("no holder panics").bytes_stored
    }

    fn event(&self, draft: &PointDraft, manifest: ChunkId) -> Event {
        let it = &draft.manifest;
        let made_by = self.begin.holder.as_ref().map(|holder| made_by(holder, self.stored_so_far()));
        let first = draft.origin.filter(|origin| origin.number > 0).map(|origin| first_record(origin.number));
        Event::PointCommitted(CommittedPoint {
            session: self.id,
            point: it.point,
            manifest,
            owner: self.begin.owner(),
            machine: it.machine,
            machine_name: it.machine_name.clone(),
            group: it.group,
            snapshot_time: it.snapshot_time,
            origin: draft.origin.map(|origin| (origin.repository, origin.commit_time)),
            protected_until: Timestamp::default(),
            bytes_logical: it.bytes_logical(),
            bytes_new: it.bytes_new,
            extensions: [made_by.unwrap_or_default(), first.unwrap_or_default()].concat(),
        })
    }

    /// Chunks that the points need and the repository lacks.
    async fn missing_from(&self, points: &[PointDraft]) -> Result<Vec<ChunkId>> {
        let mut parents = Vec::new();
        for parent in &self.begin.parents {
            // Without one that is damaged all is looked at; the backup does the same.
            parents.extend(unless_damaged(self.manifest(*parent).await)?);
        }
        let mut missing = Vec::new();
        for draft in points {
            let keys = &self.inner.keys;
            missing.extend(missing_for(self, keys, &draft.manifest, &parents, self, MISSING_MAX).await?);
        }
        Ok(missing)
    }
}

impl Presences for Session {
    async fn shapes(&self, ids: Vec<ChunkId>) -> Result<Vec<Option<Shape>>> {
        let inner = &self.inner;
        let state = inner.state();
        let mut shapes: Vec<Option<Shape>> = {
            let told = self.told.lock().expect("no holder panics");
            let mut relied = self.relied.lock().expect("no holder panics");
            let known = |id: &ChunkId| match told.get(id) {
                Some(Told::Own(shape)) => inner.health.all_sound(&state).then_some(*shape),
                Some(Told::Pack(number, shape)) if inner.health.is_usable(&state, id, *number) => {
                    relied.insert(*number);
                    Some(*shape)
                }
                Some(Told::Pack(..) | Told::Missing(_)) | None => None,
            };
            ids.iter().map(known).collect()
        };
        let asked: Vec<usize> = (0..ids.len()).filter(|at| shapes[*at].is_none()).collect();
        let unknown: Vec<ChunkId> = asked.iter().map(|at| ids[*at]).collect();
        let found = if unknown.is_empty() { Vec::new() } else { self.shown(&unknown, Unlogged::Sealed).await? };
        self.tell(unknown.iter().zip(&found).filter_map(|(id, found)| Some((*id, found.told?))));
        let places =
            found.iter().filter_map(|it| if let Some(Told::Pack(number, _)) = it.told { Some(number) } else { None });
        self.relied.lock().expect("no holder panics").extend(places);
        for (at, found) in asked.into_iter().zip(found) {
            shapes[at] = found.shape;
        }
        Ok(shapes)
    }
}

fn verify_one(
    keys: &chunker::DomainKeys,
    verification: Verification,
    id: ChunkId,
    blob: Blob,
    plain: &mut Vec<u8>,
) -> Result<Arrival> {
    plain.clear();
    // The checksum also when the content is proven: every later reader looks at it.
    let checked = blob.check().and_then(|()| match verification {
        Verification::Decode => with_decoder(|decoder| decoder.decode_verified(keys, &id, &blob, plain)),
        Verification::Checksum => Ok(()),
    });
    checked.map_err(|error| Error::integrity(format!("chunk {id} arrived with the wrong content")).because(error))?;
    let hash = blob_hash(blob.bytes());
    Ok(Arrival { id, blob, hash, missing_at: None })
}

impl ReadSession for Session {
    async fn manifest(&self, point: PointId) -> Result<Manifest> {
        reading::manifest(&self.inner, point).await
    }

    fn get(&self, ids: Vec<ChunkId>) -> impl Stream<Item = ChunkBatch> + Send {
        reading::get(self.inner.clone(), ids)
    }

    async fn get_verified(&self, keys: &chunker::DomainKeys, ids: Vec<ChunkId>) -> ChunkBatch {
        reading::get_verified(&self.inner, keys, ids).await
    }
}

impl WriteSession for Session {
    async fn missing(&self, _kind: ChunkKind, ids: &[ChunkId]) -> Result<Vec<Presence>> {
        let found = self.shown(ids, Unlogged::Any).await?;
        self.tell(ids.iter().zip(&found).filter_map(|(id, found)| Some((*id, found.told?))));
        Ok(found.into_iter().map(|found| found.presence).collect())
    }

    async fn put(&self, chunks: Vec<(ChunkId, Blob)>) -> Result<()> {
        let _in_time = self.gate.read().await;
        self.inner.with(|inner| inner.room.check_room()).await?;
        self.take(chunks).await
    }

    async fn flush(&self) -> Result<StoredTotals> {
        self.packer.flush().await?;
        self.stored().await
    }

    async fn stored(&self) -> Result<StoredTotals> {
        Ok(*self.stored.lock().expect("no holder panics"))
    }

    async fn commit(&self, points: &[PointDraft]) -> Result<Commit> {
        let _alone = self.gate.write().await;
        let state = self.inner.with(Inner::catch_up).await?;
        self.may_commit(&state, points)?;
        if self.committed(&state, points).is_some() {
            return self.bring_back(points).await;
        }
        // Its parents may be gone with it, which would be told instead.
        still_open(&state, self.id)?;
        self.inner.with(|inner| inner.room.check_room_to_commit()).await?;
        let mut events = Vec::new();
        for draft in points {
            let manifest = self.put_manifest(&draft.manifest).await?;
            events.push(self.event(draft, manifest));
            labels::check(&draft.labels)?;
            let label =
                |(key, value): (&String, &String)| Event::Annotated(draft.manifest.point, key.clone(), value.clone());
            events.extend(draft.labels.iter().map(label));
            let seen = draft.origin.and_then(|origin| origin.seen);
            events.extend(seen.map(|(repository, seen)| Event::PeerSeen(repository, seen)));
        }
        events.push(Event::SessionClosed(self.id));
        self.packer.flush().await?;
        loop {
            // What is relied on is what this walk finds: a pack that was told of before may be doomed, and its chunks put again.
            self.relied.lock().expect("no holder panics").clear();
            let missing = self.missing_from(points).await?;
            if !missing.is_empty() {
                return Ok(Commit::Missing(missing));
            }
            let (session, wanted, relied) =
                (self.id, events.clone(), self.relied.lock().expect("no holder panics").clone());
            let ids: Vec<PointId> = points.iter().map(|draft| draft.manifest.point).collect();
            let (begin, drafts) = (self.begin.clone(), points.to_vec());
            let append = move |inner: &Inner| {
                inner.append(|state| {
                    let there = state.concerned(drafts.iter().map(|draft| &draft.manifest));
                    begin.may_commit(&drafts, &there, inner.config.config.id, inner.world.now())?;
                    // A record whose answer was lost may be the one that committed them.
                    if ids.iter().all(|id| state.points().contains_key(id)) {
                        return Ok(Vec::new());
                    }
                    still_open(state, session)?;
                    // What this session relies on may become doomed until the very record before its own (R1): then
                    // nothing is written, and the difference is walked again.
                    let live = relied.iter().all(|number| state.is_live(*number));
                    Ok(if live { wanted.clone() } else { Vec::new() })
                })
            };
            let appended = self.inner.with(append).await?;
            if let Some(done) = self.committed(&appended, points) {
                return Ok(done);
            }
        }
    }

    async fn abandon(self) -> Result<()> {
        let id = self.id;
        self.inner.with(move |inner| inner.close_session(id)).await;
        Ok(())
    }
}

fn still_open(state: &State, session: SessionId) -> Result<()> {
    if state.sessions().contains_key(&session) {
        return Ok(());
    }
    Err(Error::fenced("this session was ended by another process").hint("run the job again"))
}

impl Drop for Session {
    fn drop(&mut self) {
        let told = self.told.get_mut().map_or(0, |told| told.len());
        self.inner.answers.forget(told);
        // One small record; a session that was committed or abandoned has ended already and costs nothing here.
        if self.inner.state().sessions().contains_key(&self.id) {
            self.inner.close_session(self.id);
        }
    }
}

/// Missing chunks named by one refused commit.
const MISSING_MAX: usize = 65_536;
