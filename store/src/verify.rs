//! Verifying a repository: its structure, its stored bytes, or every chunk; and naming what each error costs.

use crate::directory::{STATE, log_object, pack_object, state_object};
use crate::format::event::{AddedPack, Event};
use crate::format::pack::{
    PACK_BYTES_MAX, PACK_HEADER_BYTES, PackEntry, PackHeader, PackName, RECORD_HEADER_BYTES, blob_hash, decode_footer,
    footer_bytes, read_record_header, scan_records,
};
use crate::format::record::{LogRecord, RECORD_BYTES_MAX};
use crate::local::{Inner, Local, SUSPECTS_TOGETHER};
use crate::state::{DIGEST_BYTES_MAX, Digest, Pack, State};
use bytes::Bytes;
use chunker::{Blob, ChunkId, ChunkKind, GRID_BYTES};
use futures::{StreamExt, stream};
use mover::{
    ChunkError, Depth, Error, ErrorKind, Incarnation, MapReader, MapRoot, Phase, PointId, Progress, ReadSession,
    Repository, Result, TreeDiff, VerifyError, VerifyOptions, VerifyReport, blocking, digest, with_opener,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

impl Local {
    /// See [`Repository::verify`]. Damaged chunks are marked suspect in the log when the repository is open for writing.
    pub(crate) async fn look_through(&self, options: VerifyOptions, progress: Arc<Progress>) -> Result<VerifyReport> {
        // A sweep beside it deletes nothing that it will look at.
        let _held = self.hold(&options.points).await?;
        let state = self.with(Inner::catch_up).await?;
        progress.enter(Phase::Move);
        let mut report = VerifyReport::default();
        self.with(check_history).await.into_iter().for_each(|error| report.add(error));
        let packs = self.packs_to_check(&state, &options).await?;
        let depth = options.depth;
        progress.expect(packs.iter().map(|(_, pack, deep)| if *deep { pack.added.bytes } else { 0 }).sum());
        let checks = packs.into_iter().map(|(_, pack, deep)| {
            let (inner, progress) = (self.inner.clone(), progress.clone());
            let depth = if deep { depth } else { Depth::Structure };
            async move {
                let checked = check_pack(inner, &pack, depth).await;
                progress.advance(if deep { pack.added.bytes } else { 0 });
                (pack.added.name, checked)
            }
        });
        let mut checks = stream::iter(checks).buffered(PACKS_AHEAD);
        let mut bad = Bad::new();
        let mut unreadable: BTreeMap<u32, String> = BTreeMap::new();
        while let Some((name, checked)) = checks.next().await {
            report.bytes_read += checked.bytes_read;
            report.chunks += checked.chunks;
            bad.extend(checked.bad.into_iter().map(|(id, what)| ((id, name), what)));
            for what in &checked.errors {
                let (pack, what, unread) = (Some(name.to_string()), what.clone(), checked.unread);
                report.add(VerifyError { pack, what, unread, ..VerifyError::default() });
            }
            if let (true, Some(number)) = (checked.unreadable, state.pack_number(&name)) {
                unreadable.insert(number, checked.errors.concat());
            }
        }
        drop(checks);
        bad.extend(self.with(move |inner| lost_with(inner, &unreadable)).await?);
        let known: BTreeSet<(ChunkId, PackName)> = state.suspects().clone();
        self.mark_suspect(&bad).await?;
        self.walk_points(&options.points, &bad, &known, &mut report).await?;
        progress.enter(Phase::Done);
        Ok(report)
    }

    /// The packs to look at, and whether deep: pages always, data as the options say.
    async fn packs_to_check(&self, state: &State, options: &VerifyOptions) -> Result<Vec<(u32, Pack, bool)>> {
        let needed = if options.points.is_empty() { None } else { Some(self.packs_of(&options.points).await?) };
        let packs = state
            .packs()
            .iter()
            .filter(|(number, pack)| pack.doomed.is_none() && needed.as_ref().is_none_or(|them| them.contains(number)));
        let sampled = |number: u32| match options.depth {
            Depth::Structure => false,
            Depth::Decode => true,
            // Spread evenly: pack n is read when n × percent passes the next hundred, the first always.
            Depth::ReadData { percent } => {
                let at = |number: u64| (number * u64::from(percent.min(100))).div_ceil(100);
                at(u64::from(number) + 1) > at(u64::from(number))
            }
        };
        Ok(packs.map(|(number, pack)| (*number, pack.clone(), sampled(*number))).collect())
    }

    async fn packs_of(&self, points: &[PointId]) -> Result<HashSet<u32>> {
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
    async fn walk_points(
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

    /// From here on the places of damaged chunks do not count, for this process and, where the log can be written, for
    /// everybody: the next backup that has them sends them again.
    async fn mark_suspect(&self, bad: &Bad) -> Result<()> {
        let places: Vec<(ChunkId, PackName)> = bad.keys().copied().collect();
        for (chunk, pack) in &places {
            self.inner.note_damaged(*chunk, *pack);
        }
        for places in places.chunks(SUSPECTS_TOGETHER).map(<[_]>::to_vec) {
            let mark = move |inner: &Inner| {
                inner.append(|state| {
                    let new = |(chunk, pack): &&(ChunkId, PackName)| {
                        state.pack_number(pack).is_some() && !state.suspects().contains(&(*chunk, *pack))
                    };
                    let event = |(chunk, pack): &(ChunkId, PackName)| Event::ChunkSuspect(*chunk, *pack);
                    Ok(places.iter().filter(new).map(event).collect())
                })
            };
            if let Err(error) = self.with(mark).await {
                tracing::warn!(%error, "damaged chunks cannot be marked: verify again where the repository can be written");
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Damaged chunks, where they are, and what is wrong.
type Bad = BTreeMap<(ChunkId, PackName), String>;

/// What is lost with packs that cannot be read at all: the index says what was in them.
fn lost_with(inner: &Inner, unreadable: &BTreeMap<u32, String>) -> Result<Bad> {
    let mut bad = Bad::new();
    if unreadable.is_empty() {
        return Ok(bad);
    }
    let (state, packs) = (inner.state(), unreadable.keys().copied().collect());
    for (chunk, number) in inner.index.read().expect("no holder panics").chunks_of(&packs)? {
        if let Some(pack) = state.packs().get(&number) {
            bad.insert((chunk, pack.added.name), unreadable[&number].clone());
        }
    }
    Ok(bad)
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
        report.points += 1;
        let manifest = match self.session.manifest(id).await {
            Ok(manifest) => manifest,
            Err(error) => {
                report.add(VerifyError { point: Some(id), ..VerifyError::of(&error) });
                return Ok(());
            }
        };
        let disks = manifest.disks.iter().map(|disk| (&disk.name, disk.root, None));
        let attachments = manifest.attachments.iter().map(|it| (&it.kind, it.root, Some(it.bytes)));
        for (name, root, bytes) in disks.chain(attachments) {
            for error in self.tree(root, bytes).await? {
                report.add(VerifyError { point: Some(id), disk: Some(name.clone()), ..error });
            }
        }
        Ok(())
    }

    /// Errors below the root of a disk, or of a stream of so many bytes. Goes on beside a page that does not read.
    async fn tree(&mut self, root: MapRoot, bytes: Option<u64>) -> Result<Vec<VerifyError>> {
        let mut errors = Vec::new();
        let mut stack: Vec<_> = root.id.iter().map(|id| (*id, root.level, 0, bytes)).collect();
        while let Some((id, level, index, bytes)) = stack.pop() {
            if self.walked.contains(&(id, bytes)) {
                continue;
            }
            let span = u64::from(GRID_BYTES).saturating_mul(mover::PAGE_ENTRIES.saturating_pow(u32::from(level)));
            let start = span.saturating_mul(mover::PAGE_ENTRIES).saturating_mul(index);
            let page = match self.reader.page(id, level).await {
                Ok(page) => page,
                Err(error) => {
                    self.named.insert(id);
                    let pack = self.why.get(&id).map(|(pack, _)| pack.to_string());
                    errors.push(VerifyError { offset: Some(start), chunk: Some(id), pack, ..VerifyError::of(&error) });
                    continue;
                }
            };
            if let Err(error) = page.check_place(bytes) {
                self.named.insert(id);
                let (offset, chunk, what) = (Some(start), Some(id), error.to_string());
                errors.push(VerifyError { offset, chunk, what, ..VerifyError::default() });
                continue;
            }
            let offset = |at: usize| bytes.is_none().then(|| start.saturating_add(span.saturating_mul(at as u64)));
            let entries = page.entries().iter().enumerate().filter_map(|(at, entry)| Some((at, entry.chunk()?)));
            let before = errors.len();
            if level > 0 {
                let below = |at: usize| (index * mover::PAGE_ENTRIES + at as u64, page.lengths().get(at).copied());
                stack.extend(entries.map(|(at, id)| (id, level - 1, below(at).0, below(at).1)));
            } else {
                let entries: Vec<(usize, ChunkId)> = entries.collect();
                let ids: Vec<ChunkId> = entries.iter().map(|(_, id)| *id).collect();
                for (id, why) in self.local.with(move |inner| inner.not_usable(ids)).await? {
                    let (pack, what) = match (self.why.get(&id), why) {
                        (Some((pack, what)), _) => (Some(pack.to_string()), (*what).to_owned()),
                        (None, ChunkError::Damaged { pack, what, .. }) => (Some(pack), what),
                        (None, _) => (None, "the chunk is missing".to_owned()),
                    };
                    self.named.insert(id);
                    let places = entries.iter().filter(|(_, entry)| *entry == id);
                    errors.extend(places.map(|(at, _)| {
                        let (offset, chunk, pack, what) = (offset(*at), Some(id), pack.clone(), what.clone());
                        VerifyError { offset, chunk, pack, what, ..VerifyError::default() }
                    }));
                }
            }
            if errors.len() == before && (level == 0 || errors.is_empty()) {
                self.walked.insert((id, bytes));
            }
        }
        Ok(errors)
    }
}

/// Log and digests: every record chains, every digest is what the log gives.
fn check_history(inner: &Inner) -> Vec<VerifyError> {
    let damage = |what: String| VerifyError { what, ..VerifyError::default() };
    let at = |name: &str, error: &Error| VerifyError { what: format!("{name}: {error}"), ..VerifyError::of(error) };
    let mut wrong = Vec::new();
    let config = inner.config.bytes.clone();
    let end = inner.state().end().sequence;
    let digests: Vec<u64> = match inner.directory.list(STATE) {
        Ok(names) => names.iter().filter_map(|name| name.parse().ok()).collect(),
        Err(error) => return vec![VerifyError::of(&error)],
    };
    let read_digest = |sequence: u64| -> Result<Digest> {
        let bytes = inner.directory.read(&state_object(sequence), DIGEST_BYTES_MAX)?;
        let bytes = bytes.ok_or_else(|| Error::integrity("a state digest is gone"))?;
        Ok(Digest::decode(&bytes)?)
    };
    let read_record = |sequence: u64| -> Result<Option<(LogRecord, Incarnation)>> {
        let bytes = inner.directory.read(&log_object(sequence), RECORD_BYTES_MAX as u64)?;
        Ok(bytes.map(|bytes| LogRecord::decode(&bytes)).transpose()?)
    };
    let mut state = State::new(inner.config.config.id, &config);
    let first = match read_record(1) {
        Ok(first) => first,
        Err(error) => return vec![at(&log_object(1), &error)],
    };
    if first.is_none() && end > 0 {
        // A pruned log begins with a digest. What lies below was written by somebody who did not know, and counts for
        // nothing.
        match digests.first().map(|sequence| read_digest(*sequence)) {
            Some(Ok(digest)) if digest.config == config => state = digest.state,
            Some(Ok(_)) => return vec![damage("the oldest state digest is of another repository".into())],
            Some(Err(error)) => return vec![at("the oldest state digest", &error)],
            None => return vec![damage(format!("{} is missing", log_object(1)))],
        }
    }
    if let Some(beyond) = digests.iter().find(|sequence| **sequence > end) {
        wrong.push(damage(format!("{} is of a record that is not there", state_object(*beyond))));
    }
    for sequence in state.end().sequence + 1..=end {
        let name = log_object(sequence);
        let applied = read_record(sequence).and_then(|read| {
            let (record, end) = read.ok_or_else(|| Error::integrity("it is missing"))?;
            Ok(state.apply(&record, end.hash)?)
        });
        if let Err(error) = applied {
            wrong.push(at(&name, &error));
            return wrong;
        }
        if digests.contains(&sequence) {
            match read_digest(sequence) {
                Ok(digest) if digest.config == config && digest.state == state => {}
                Ok(_) => wrong.push(damage(format!("{} is not what the log gives", state_object(sequence)))),
                Err(error) => wrong.push(at(&state_object(sequence), &error)),
            }
        }
    }
    wrong
}

/// What one pack's check found.
#[derive(Default)]
struct Checked {
    chunks: u64,
    bytes_read: u64,
    bad: Vec<(ChunkId, String)>,
    errors: Vec<String>,
    /// Nothing in it can be read.
    unreadable: bool,
    /// The storage failed; the only error then.
    unread: bool,
}

async fn check_pack(inner: Arc<Inner>, pack: &Pack, depth: Depth) -> Checked {
    let added = pack.added.clone();
    let mut checked = Checked::default();
    let reader = inner.clone();
    let whole = depth != Depth::Structure;
    let read = blocking(move || read_pack(&reader, &added, whole)).await;
    let (bytes, entries) = match read {
        Ok((bytes, entries)) => (bytes, entries),
        Err(error) => {
            checked.errors.push(error.to_string());
            checked.unreadable = error.kind() == ErrorKind::Integrity;
            checked.unread = !checked.unreadable;
            return checked;
        }
    };
    checked.bytes_read = bytes.len() as u64;
    let entries = match entries {
        Ok(entries) => entries,
        Err(what) => {
            checked.errors.push(what);
            let nonce = PackHeader::decode(&bytes).map(|header| header.nonce);
            nonce.map(|nonce| scan_records(&bytes, &nonce)).unwrap_or_default()
        }
    };
    checked.chunks = entries.len() as u64;
    if u64::from(pack.added.chunks) != checked.chunks {
        checked.errors.push(format!("the log says {} chunks, the pack has {}", pack.added.chunks, checked.chunks));
    }
    if !whole {
        return checked;
    }
    let (name, header) = (pack.added.name, PackHeader::decode(&bytes));
    let hashed = bytes.clone();
    // The name and the chunks are independent work: on two threads.
    let named = inner.pool.run(move || digest(&hashed) == name.0);
    let records = check_records(&inner, &bytes, entries, header.as_ref().map(|it| it.nonce).unwrap_or_default(), depth);
    let (named, bad) = futures::join!(named, records);
    if let Err(error) = header {
        checked.errors.push(error.to_string());
        checked.unreadable = true;
    }
    if !named && bad.is_empty() && checked.errors.is_empty() {
        checked.errors.push("the pack's bytes do not match its name".into());
    }
    checked.bad = bad;
    checked
}

async fn check_records(
    inner: &Arc<Inner>,
    bytes: &Bytes,
    entries: Vec<PackEntry>,
    nonce: [u8; 16],
    depth: Depth,
) -> Vec<(ChunkId, String)> {
    let parts: Vec<(usize, Vec<PackEntry>)> =
        entries.chunks(RECORDS_TOGETHER).enumerate().map(|(at, part)| (at * RECORDS_TOGETHER, part.to_vec())).collect();
    let checks = parts.into_iter().map(|(first, part)| {
        let (inner, bytes, pool) = (inner.clone(), bytes.clone(), inner.pool.clone());
        async move {
            let check = move || {
                let mut plain = Vec::new();
                let one = |(at, entry): (usize, &PackEntry)| {
                    let what = check_record(&inner, &bytes, entry, first + at, &nonce, depth, &mut plain).err()?;
                    Some((entry.id, what))
                };
                part.iter().enumerate().filter_map(one).collect::<Vec<_>>()
            };
            pool.run(check).await
        }
    });
    stream::iter(checks).buffered(2 * inner.pool.threads()).collect::<Vec<_>>().await.concat()
}

fn check_record(
    inner: &Inner,
    bytes: &Bytes,
    entry: &PackEntry,
    ordinal: usize,
    nonce: &[u8; 16],
    depth: Depth,
    plain: &mut Vec<u8>,
) -> Result<(), String> {
    let at = usize::try_from(entry.offset).expect("inside a pack");
    let blob_at = at + RECORD_HEADER_BYTES;
    let (have, id) = read_record_header(&bytes[at..blob_at], nonce).map_err(|error| error.to_string())?;
    if id != entry.id || usize::try_from(have) != Ok(ordinal) {
        return Err("the record in its place is another one".into());
    }
    let blob = bytes.slice(blob_at..blob_at + usize::try_from(entry.blob_bytes).expect("inside a pack"));
    if depth != Depth::Decode && blob_hash(&blob) != entry.blob_hash {
        return Err("the stored bytes do not match their hash".into());
    }
    let blob = Blob::parse(blob).map_err(|error| error.to_string())?;
    blob.check().map_err(|error| error.to_string())?;
    if blob.header().kind != entry.kind || blob.header().plain_bytes != entry.plain_bytes {
        return Err("the footer describes another blob".into());
    }
    if depth == Depth::Decode {
        plain.clear();
        with_opener(|opener| opener.open_verified(&inner.prints, &entry.id, &blob, plain))
            .map_err(|error| error.to_string())?;
        if entry.kind == ChunkKind::Page {
            mover::Page::decode(plain).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

type Footer = Result<Vec<PackEntry>, String>;

/// All of a pack, or its header and footer; and its records.
fn read_pack(inner: &Inner, pack: &AddedPack, whole: bool) -> Result<(Bytes, Footer)> {
    let file = inner.directory.open_pack(&pack.name)?;
    let fail = |error| crate::error::reading(pack_object(&pack.name).as_ref(), error);
    let io = inner.directory.io();
    let length = io.length(&file).map_err(fail)?;
    if length != pack.bytes || length > PACK_BYTES_MAX {
        return Err(Error::integrity(format!("it has {length} bytes instead of {}", pack.bytes)));
    }
    let size = |bytes: u64| usize::try_from(bytes).expect("a pack fits memory");
    if whole {
        let bytes = Bytes::from(io.read_at(&file, 0, size(length)).map_err(fail)?);
        let footer = decode_footer(&bytes, pack.kind, length).map_err(|error| error.to_string());
        return Ok((bytes, footer));
    }
    let header = io.read_at(&file, 0, PACK_HEADER_BYTES.min(size(length))).map_err(fail)?;
    let header = PackHeader::decode(&header).map_err(|error| error.to_string());
    let trailer = length.min(16);
    let tail = io.read_at(&file, length - trailer, size(trailer)).map_err(fail)?;
    let footer = footer_bytes(&tail).map(|bytes| {
        let bytes = bytes.min(length);
        io.read_at(&file, length - bytes, size(bytes))
    });
    let footer = match footer {
        Ok(read) => decode_footer(&read.map_err(fail)?, pack.kind, length).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    Ok((Bytes::new(), header.and(footer)))
}

/// Packs checked at once; with the pack limit the bound on memory.
const PACKS_AHEAD: usize = 2;
/// Records of one piece of work.
const RECORDS_TOGETHER: usize = 64;
