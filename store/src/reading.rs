//! Reading chunks out of packs: places sorted by pack and offset, neighbours read together, several reads ahead.

use crate::format::pack::{PackName, RECORD_HEADER_BYTES, read_record_header};
use crate::index::Place;
use crate::objects::Incoming;
use crate::repository::Inner;
use bytes::Bytes;
use chunker::{Blob, ChunkId, ChunkKind, DomainKeys};
use futures::{Stream, StreamExt, pin_mut, stream};
use mover::{ChunkBatch, ChunkError, Error, ErrorKind, Manifest, PointId, Result, blocking, verified, with_decoder};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// A point's manifest, verified.
///
/// # Errors
/// `NotFound`, or `Integrity`.
pub async fn manifest(inner: &Arc<Inner>, point: PointId) -> Result<Manifest> {
    let listed = inner.state().recovery_point(point);
    let listed = listed.ok_or_else(|| Error::not_found(format!("there is no point {point}")))?;
    let batches = get(inner.clone(), vec![listed.manifest]);
    pin_mut!(batches);
    let blob = batches.next().await.and_then(|batch| batch.into_iter().next());
    let (id, blob) = blob.ok_or_else(|| Error::internal("nothing was read for a manifest"))?;
    let on = |error: Error| error.context(format_args!("manifest of point {point}"));
    let blob = blob.map_err(|error| on(error.into()))?;
    let mut plain = Vec::new();
    with_decoder(|decoder| decoder.decode_verified(&inner.keys, &id, &blob, &mut plain))
        .map_err(|error| on(Error::integrity(error.to_string())))?;
    if blob.header().kind != ChunkKind::Manifest {
        return Err(on(Error::integrity("the chunk is not a manifest")));
    }
    let manifest = Manifest::decode(&plain).map_err(|error| on(error.into()))?;
    if manifest.point != point {
        return Err(on(Error::integrity("it belongs to another point")));
    }
    Ok(manifest)
}

/// The blobs of `ids` in the order of their places.
pub fn get(inner: Arc<Inner>, ids: Vec<ChunkId>) -> impl Stream<Item = ChunkBatch> + Send {
    let distinct: Vec<ChunkId> = ids.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
    let planned = stream::once(async move {
        let planner = inner.clone();
        (blocking(move || plan(&planner, distinct)).await, inner)
    });
    planned.flat_map(|(runs, inner)| {
        // Held until a run is taken: long chunks are not read ahead.
        let ahead = Arc::new(Semaphore::new(AHEAD_BYTES));
        let read = move |run: Run| {
            let (inner, ahead) = (inner.clone(), ahead.clone());
            async move {
                let bytes = u32::try_from(run.bytes()).unwrap_or(u32::MAX).min(AHEAD_BYTES as u32);
                let held = ahead.acquire_many_owned(bytes).await.expect("never closed");
                (blocking(move || read_run(&inner, run)).await, held)
            }
        };
        stream::iter(runs).map(read).buffered(RUNS_AHEAD).map(|(batch, _)| batch)
    })
}

/// The blobs of `ids`, decoded and compared. If the content of a place is wrong, the place is noted as damaged, and the
/// next place of the chunk is tried.
pub async fn get_verified(inner: &Arc<Inner>, keys: &DomainKeys, ids: Vec<ChunkId>) -> ChunkBatch {
    let mut made = ChunkBatch::new();
    let mut found_wrong: BTreeMap<ChunkId, ChunkError> = BTreeMap::new();
    let mut rest = ids;
    for _ in 0..PLACES_TRIED_MAX {
        if rest.is_empty() {
            break;
        }
        let mut wrong = Vec::new();
        for (id, blob) in verified(get(inner.clone(), rest.clone()), keys, rest).await {
            match blob {
                Err(ChunkError::Wrong { what, .. }) => wrong.push((id, what)),
                // The first place's error says more than that there is no other.
                Err(error) => made.push((id, Err(found_wrong.remove(&id).unwrap_or(error)))),
                Ok(blob) => made.push((id, Ok(blob))),
            }
        }
        let noted = inner.with(move |inner| inner.note_wrong(wrong)).await;
        rest = noted.iter().map(|(id, _)| *id).collect();
        for (id, error) in noted {
            found_wrong.entry(id).or_insert(error);
        }
    }
    let given_up = |chunk| (chunk, Err(found_wrong.remove(&chunk).unwrap_or(ChunkError::Missing { chunk })));
    made.extend(rest.into_iter().map(given_up));
    made
}

/// As [`get`], at once. Blocking.
pub fn read_now(inner: &Inner, ids: Vec<ChunkId>) -> impl Iterator<Item = (ChunkId, Result<Blob, ChunkError>)> + '_ {
    plan(inner, ids).into_iter().flat_map(|run| read_run(inner, run))
}

/// Chunks that are read together.
enum Run {
    /// Neighbours in one pack, in order.
    Pack { pack: PackName, chunks: Vec<(ChunkId, u64, u32)> },
    /// One chunk that the log does not know yet.
    Pending { chunk: ChunkId, incoming: Arc<dyn Incoming>, nonce: [u8; 16], offset: u32, blob_bytes: u32 },
    /// One chunk that is known to be damaged in all its places. All of them are tried all the same.
    LastResort { chunk: ChunkId, places: Vec<Place> },
    /// Chunks that cannot be read, each with its error.
    Failed(ChunkBatch),
}

impl Run {
    /// How much is read.
    fn bytes(&self) -> u64 {
        match self {
            Self::Pack { chunks, .. } => {
                let start = chunks.first().map_or(0, |it| it.1);
                chunks.last().map_or(0, |it| it.1 + record_bytes(it.2)) - start
            }
            Self::Pending { blob_bytes, .. } => record_bytes(*blob_bytes),
            Self::LastResort { places, .. } => places.iter().map(|place| place.blob_bytes.into()).max().unwrap_or(0),
            Self::Failed(_) => 0,
        }
    }
}

fn plan(inner: &Inner, ids: Vec<ChunkId>) -> Vec<Run> {
    let mut places = match inner.locate(&ids) {
        Ok(places) => places,
        Err(error) => return failed(ids, &error),
    };
    if places.contains(&None) {
        // Somebody else may have added it, or moved it, since the log was read (R10).
        let again = inner.known().and_then(|_| inner.locate(&ids));
        match again {
            Ok(again) => places = again,
            Err(error) => return failed(ids, &error),
        }
    }
    if places.contains(&None) {
        // A doomed pack is there until it is dropped: better than nothing.
        let lost: Vec<usize> = (0..ids.len()).filter(|at| places[*at].is_none()).collect();
        let doomed = inner.locate_doomed(&lost.iter().map(|at| ids[*at]).collect::<Vec<_>>());
        match doomed {
            Ok(doomed) => lost.into_iter().zip(doomed).for_each(|(at, place)| places[at] = place),
            Err(error) => return failed(ids, &error),
        }
    }
    let (mut runs, mut lost) = (Vec::new(), Vec::new());
    let mut placed: Vec<(Place, ChunkId)> = Vec::new();
    for (id, place) in ids.into_iter().zip(places) {
        match place {
            Some(place) => placed.push((place, id)),
            None => match pending_run(inner, id) {
                Some(run) => runs.push(run),
                None => lost.push(id),
            },
        }
    }
    runs.extend(lost_runs(inner, lost));
    placed.sort_unstable();
    let state = inner.state();
    let mut last: Option<u32> = None;
    for (place, id) in placed {
        let (offset, blob_bytes) = (u64::from(place.offset), place.blob_bytes);
        if let Some(Run::Pack { chunks, .. }) = runs.last_mut().filter(|_| last == Some(place.pack)) {
            let (start, end) = (chunks[0].1, chunks.last().map_or(0, |it| it.1 + record_bytes(it.2)));
            if offset <= end + GAP_BYTES_MAX && offset + record_bytes(blob_bytes) <= start + RUN_BYTES_MAX {
                chunks.push((id, offset, blob_bytes));
                continue;
            }
        }
        match state.packs().get(&place.pack) {
            Some(pack) => {
                runs.push(Run::Pack { pack: pack.added.name, chunks: vec![(id, offset, blob_bytes)] });
                last = Some(place.pack);
            }
            None => {
                runs.push(Run::Failed(vec![(id, Err(ChunkError::Missing { chunk: id }))]));
                last = None;
            }
        }
    }
    runs
}

/// Chunks that have no usable place.
fn lost_runs(inner: &Inner, lost: Vec<ChunkId>) -> Vec<Run> {
    if lost.is_empty() {
        return Vec::new();
    }
    let places = match inner.places(&lost) {
        Ok(places) => places,
        Err(error) => return failed(lost, &error),
    };
    let (missing, damaged): (Vec<_>, Vec<_>) = lost.into_iter().zip(places).partition(|(_, places)| places.is_empty());
    // Where the log is not read any more nothing is sure to be missing.
    let stopped = inner.packs.check().err();
    let why = |chunk| match &stopped {
        Some(error) => ChunkError::unreadable(chunk, error),
        None => ChunkError::Missing { chunk },
    };
    let missing: Vec<_> = missing.into_iter().map(|(chunk, _)| (chunk, Err(why(chunk)))).collect();
    // A batch of nothing is taken for the end by who waits for one chunk.
    let missing = (!missing.is_empty()).then_some(Run::Failed(missing));
    let damaged = damaged.into_iter().map(|(chunk, places)| Run::LastResort { chunk, places });
    missing.into_iter().chain(damaged).collect()
}

fn pending_run(inner: &Inner, chunk: ChunkId) -> Option<Run> {
    let pending = inner.packs.pending();
    let (pack, offset, blob_bytes) = pending.chunk(&chunk)?.place?;
    let pack = pending.pack(pack)?;
    Some(Run::Pending { chunk, incoming: pack.incoming.clone(), nonce: pack.nonce, offset, blob_bytes })
}

fn failed(ids: Vec<ChunkId>, error: &Error) -> Vec<Run> {
    vec![Run::Failed(ids.into_iter().map(|chunk| (chunk, Err(ChunkError::unreadable(chunk, error)))).collect())]
}

fn read_run(inner: &Inner, run: Run) -> ChunkBatch {
    match run {
        Run::Failed(batch) => batch,
        Run::LastResort { chunk, places } => {
            let blob = match last_resort(inner, chunk, &places) {
                Ok(blob) => blob.ok_or_else(|| inner.why_not(chunk, &places)),
                Err(error) => Err(ChunkError::unreadable(chunk, &error)),
            };
            vec![(chunk, blob)]
        }
        Run::Pending { chunk, incoming, nonce, offset, blob_bytes } => {
            let length = usize::try_from(record_bytes(blob_bytes)).expect("a blob is bounded");
            let read = incoming.open().and_then(|pack| pack.read(offset.into(), length));
            let blob = match read {
                Ok(bytes) => record(&bytes.into(), 0, blob_bytes, chunk, &nonce, "incoming"),
                // Its pack may have come into the log in the meantime, and lost that name.
                Err(error) => match logged_run(inner, chunk) {
                    Some(run) => return read_run(inner, run),
                    None => Err(ChunkError::unreadable(chunk, &error)),
                },
            };
            vec![(chunk, blob)]
        }
        Run::Pack { pack, chunks } => read_pack_run(inner, pack, chunks),
    }
}

/// Notes that a chunk is damaged in this pack. Gives its blob all the same when it can be read from another place.
fn found_damaged(inner: &Inner, chunk: ChunkId, pack: PackName, error: ChunkError) -> Result<Blob, ChunkError> {
    inner.health.note_damaged(chunk, pack);
    let elsewhere = || inner.places(&[chunk]).and_then(|places| last_resort(inner, chunk, &places[0])).ok().flatten();
    // Somebody else may have stored it again since the log was read.
    let healed = || inner.known().ok().and_then(|_| elsewhere());
    elsewhere().or_else(healed).ok_or(error)
}

/// The blob of a chunk from any place where its content still matches its id, also from a place that was noted as
/// damaged. So a restore does not fail because of damage around the blob, or because of an error that is gone by now (a
/// pack that was missing for a while, a bit that flipped in memory).
fn last_resort(inner: &Inner, chunk: ChunkId, places: &[Place]) -> Result<Option<Blob>> {
    let (state, mut failed) = (inner.state(), None);
    for place in places {
        let Some(pack) = state.packs().get(&place.pack) else { continue };
        match blob_at(inner, &pack.added.name, place) {
            Ok(blob) => {
                let opened =
                    with_decoder(|decoder| decoder.decode_verified(&inner.keys, &chunk, &blob, &mut Vec::new()));
                if opened.is_ok() {
                    return Ok(Some(blob));
                }
            }
            Err(error) if error.kind() == ErrorKind::Integrity => {}
            // It may be sound.
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(None), Err)
}

/// A blob at the place that the index gives. The record's header before it is not checked.
fn blob_at(inner: &Inner, pack: &PackName, place: &Place) -> Result<Blob> {
    let at = u64::from(place.offset) + RECORD_HEADER_BYTES as u64;
    let length = usize::try_from(place.blob_bytes).expect("a blob is bounded");
    let bytes = inner.objects.open_pack(pack)?.read(at, length)?;
    Blob::parse(bytes.into()).map_err(|error| Error::integrity("it is not a blob").because(error))
}

fn logged_run(inner: &Inner, chunk: ChunkId) -> Option<Run> {
    let place = inner.locate(&[chunk]).ok()?.into_iter().next().flatten()?;
    let pack = inner.state().packs().get(&place.pack)?.added.name;
    Some(Run::Pack { pack, chunks: vec![(chunk, place.offset.into(), place.blob_bytes)] })
}

fn read_pack_run(inner: &Inner, pack: PackName, chunks: Vec<(ChunkId, u64, u32)>) -> ChunkBatch {
    let start = chunks.first().map_or(0, |it| it.1);
    let end = chunks.last().map_or(0, |it| it.1 + record_bytes(it.2));
    let read = inner.packs.open(&pack).and_then(|file| {
        let bytes = file.pack.read(start, usize::try_from(end - start).expect("a run is bounded"))?;
        Ok((file, bytes))
    });
    let name = pack.to_string();
    match read {
        Ok((file, bytes)) => {
            let bytes = Bytes::from(bytes);
            let one = |(id, offset, blob_bytes): (ChunkId, u64, u32)| {
                let blob = record(&bytes, offset - start, blob_bytes, id, &file.nonce, &name);
                (id, blob.or_else(|error| found_damaged(inner, id, pack, error)))
            };
            chunks.into_iter().map(one).collect()
        }
        // Dropped since the log was read: what was needed of it is elsewhere (R10).
        Err(_) if was_dropped(inner, &pack) => {
            let ids = chunks.into_iter().map(|(id, ..)| id).collect();
            plan(inner, ids).into_iter().flat_map(|run| read_run(inner, run)).collect()
        }
        // One bad sector, or a pack cut short, must not take its neighbours along.
        Err(_) if chunks.len() > 1 => {
            chunks.into_iter().flat_map(|chunk| read_pack_run(inner, pack, vec![chunk])).collect()
        }
        Err(error) => {
            let what = error.to_string();
            let one = |(chunk, _, _)| match error.kind() {
                ErrorKind::Integrity => {
                    let error = ChunkError::Damaged { chunk, pack: name.clone(), what: what.clone() };
                    (chunk, found_damaged(inner, chunk, pack, error))
                }
                kind => (chunk, Err(ChunkError::Unreadable { chunk, kind, what: format!("pack {name}: {what}") })),
            };
            chunks.into_iter().map(one).collect()
        }
    }
}

fn was_dropped(inner: &Inner, pack: &PackName) -> bool {
    inner.known().is_ok_and(|state| state.pack_number(pack).is_none())
}

/// The blob of the record at `at`, after checking that it is the record asked for and that its checksum holds.
fn record(
    bytes: &Bytes,
    at: u64,
    blob_bytes: u32,
    chunk: ChunkId,
    nonce: &[u8; 16],
    pack: &str,
) -> Result<Blob, ChunkError> {
    let damaged = |what: String| ChunkError::Damaged { chunk, pack: pack.to_owned(), what };
    let at = usize::try_from(at).expect("inside a run");
    let blob_at = at + RECORD_HEADER_BYTES;
    let (_, id) = read_record_header(&bytes[at..blob_at], nonce).map_err(|error| damaged(error.to_string()))?;
    if id != chunk {
        return Err(damaged(format!("chunk {id} is in its place")));
    }
    let blob = bytes.slice(blob_at..blob_at + usize::try_from(blob_bytes).expect("a blob is bounded"));
    let blob = Blob::parse(blob).map_err(|error| damaged(error.to_string()))?;
    blob.checked().map_err(|error| damaged(error.to_string()))
}

fn record_bytes(blob_bytes: u32) -> u64 {
    RECORD_HEADER_BYTES as u64 + u64::from(blob_bytes)
}

/// Most bytes of one read.
const RUN_BYTES_MAX: u64 = 1 << 20;
/// Most bytes between two chunks in one read: it is faster to read them than to begin another read.
const GAP_BYTES_MAX: u64 = 64 << 10;
/// Most reads that are under way, or done and not taken yet; next, the most bytes of these.
const RUNS_AHEAD: usize = 4;
const AHEAD_BYTES: usize = 4 << 20;
/// Most places of one chunk that are tried. If as many are wrong, the fault is probably in the reading and not in the
/// packs.
const PLACES_TRIED_MAX: usize = 4;
