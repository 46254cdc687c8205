//! State digests: the state after one record, in canonical bytes, so that opening does not replay history (R3).

use super::{Lost, Pack, Point, Session, State, Writer};
use crate::format::event::{AddedPack, CommittedPoint, SessionOpened};
use crate::format::pack::PackName;
use chunker::ChunkId;
use mover::{LogHead, RecordError, RecordReader, RecordWriter, RepositoryId, Timestamp, WriterId, digest};
use std::collections::HashMap;

/// Longest digest that is read, so the longest that may be written.
pub const DIGEST_BYTES_MAX: u64 = 1 << 30;

/// A state and the repository's `config`, which is repeated in each digest (R14).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest {
    /// The bytes of `config`.
    pub config: Vec<u8>,
    /// The state after the digest's record.
    pub state: State,
    /// Extensions of later versions, as they stand. They hold parts of the state that this version does not know.
    pub extensions: Vec<u8>,
}

impl Digest {
    /// A digest of all that this version knows.
    pub const fn new(config: Vec<u8>, state: State) -> Self {
        Self { config, state, extensions: Vec::new() }
    }

    /// As [`Self::encode`]; none when that is longer than `bytes_max`, as nobody would read it.
    pub fn encode_within(&self, bytes_max: u64) -> Option<Vec<u8>> {
        Some(self.encode()).filter(|bytes| bytes.len() as u64 <= bytes_max)
    }

    /// The file's bytes: two writers of one number write the same ones.
    pub fn encode(&self) -> Vec<u8> {
        let state = &self.state;
        let mut to = RecordWriter::new();
        to.bytes(DIGEST_MAGIC).u16(DIGEST_VERSION).u16(0);
        to.u32(u32::try_from(self.config.len()).expect("a config is short")).bytes(&self.config);
        to.bytes(&state.repository.0);
        write_log_head(&mut to, state.end);
        to.list(&state.writers.iter().collect::<Vec<_>>(), |to, (id, writer)| {
            to.bytes(&id.0).u64(writer.term);
            write_log_head(to, writer.last);
        });
        to.list(&state.sessions.values().collect::<Vec<_>>(), |to, session| {
            session.opened.write(to);
            to.bytes(&session.writer.0).u64(session.term).u64(session.since).i64(session.time.0);
        });
        to.u32(state.next_pack);
        to.list(&state.packs.iter().collect::<Vec<_>>(), |to, (number, pack)| {
            to.u32(**number);
            pack.added.write(to);
            to.u64(pack.since).option(pack.doomed, |to, at| {
                to.u64(at);
            });
        });
        to.list(&state.dropped.iter().collect::<Vec<_>>(), |to, name| {
            to.bytes(&name.0);
        });
        to.list(&state.points.values().collect::<Vec<_>>(), |to, point| {
            point.committed.write(to);
            to.u64(point.since).u64(point.rooted).i64(point.time.0).u8(point.pinned.into()).option(
                point.forgotten,
                |to, at| {
                    to.u64(at);
                },
            );
            write_texts(to, &point.labels.iter().collect::<Vec<_>>());
        });
        to.list(&state.suspects.iter().collect::<Vec<_>>(), |to, (chunk, pack)| {
            to.bytes(chunk.as_bytes()).bytes(&pack.0);
        });
        to.option(state.sweep, |to, token| {
            to.bytes(&token);
        });
        to.u8(state.role);
        write_texts(&mut to, &state.settings.iter().collect::<Vec<_>>());
        to.list(&state.peers.iter().collect::<Vec<_>>(), |to, (repository, seen)| {
            to.bytes(&repository.0);
            write_log_head(to, **seen);
        });
        to.list(&state.lost.iter().collect::<Vec<_>>(), |to, lost| {
            write_log_head(to, lost.end);
            to.u64(lost.at);
        });
        to.list(&state.not_understood.iter().collect::<Vec<_>>(), |to, code| {
            to.u16(**code);
        });
        to.extensions(&self.extensions);
        let hash = digest(to.as_slice());
        to.bytes(&hash);
        to.finish()
    }

    /// Reads a digest; refuses every byte string that [`Self::encode`] does not give, so that a state has one digest.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let (body, hash) = bytes.split_last_chunk::<32>().ok_or(RecordError::Short { field: "digest" })?;
        let mut from = RecordReader::new(body);
        if from.bytes("digest magic", 8)? != DIGEST_MAGIC {
            return Err(RecordError::Value { field: "digest magic", value: 0 });
        }
        if *hash != digest(body) {
            return Err(RecordError::Hash { field: "digest" });
        }
        for (field, known) in [("digest version", DIGEST_VERSION), ("digest flags", 0)] {
            let value = from.u16(field)?;
            if value != known {
                return Err(RecordError::Newer { field, value: value.into() });
            }
        }
        let length = usize::try_from(from.u32("config")?).map_err(|_| RecordError::Short { field: "config" })?;
        let config = from.bytes("config", length)?.to_vec();
        let mut state = State::new(RepositoryId(from.array("repository")?), &config);
        state.end = read_log_head(&mut from)?;
        state.writers = from.set("writers", 64, read_writer, |a, b| a.0 < b.0)?.into_iter().collect();
        let sessions = from
            .set("sessions", SessionOpened::BYTES_MIN + 40, read_session, |a, b| a.opened.session < b.opened.session)?;
        state.sessions = sessions.into_iter().map(|session| (session.opened.session, session)).collect();
        state.next_pack = from.u32("packs")?;
        state.packs = from.set("packs", AddedPack::BYTES + 13, read_pack, |a, b| a.0 < b.0)?.into_iter().collect();
        let name = |from: &mut RecordReader<'_>| from.array("dropped").map(PackName);
        state.dropped = from.set("dropped", 32, name, |a, b| a < b)?.into_iter().collect();
        state.numbers = numbers(&state)?;
        let points = from
            .set("points", CommittedPoint::BYTES_MIN + 30, read_point, |a, b| a.committed.point < b.committed.point)?;
        state.points = points.into_iter().map(|point| (point.committed.point, point)).collect();
        let suspect =
            |from: &mut RecordReader<'_>| Ok((ChunkId(from.array("suspect")?), PackName(from.array("suspect")?)));
        state.suspects = from.set("suspects", 64, suspect, |a, b| a < b)?.into_iter().collect();
        state.sweep = from.option("sweep", |from| from.array("sweep"))?;
        state.role = from.u8("role")?;
        state.settings = read_texts(&mut from)?.into_iter().collect();
        let peer = |from: &mut RecordReader<'_>| Ok((RepositoryId(from.array("peer")?), read_log_head(from)?));
        state.peers = from.set("peers", 56, peer, |a, b| a.0 < b.0)?.into_iter().collect();
        let lost = |from: &mut RecordReader<'_>| Ok(Lost { end: read_log_head(from)?, at: from.u64("lost at")? });
        state.lost = from.set("lost", 48, lost, |a, b| a < b)?.into_iter().collect();
        let code = |from: &mut RecordReader<'_>| from.u16("unknown event");
        state.not_understood = from.set("unknown events", 2, code, |a, b| a < b)?.into_iter().collect();
        let extensions = from.extensions()?.to_vec();
        from.end()?;
        Ok(Self { config, state, extensions })
    }
}

/// The packs' numbers by name. A name is in use once, and never again after it was dropped (R4).
fn numbers(state: &State) -> Result<HashMap<PackName, u32>, RecordError> {
    let numbers: HashMap<_, _> = state.packs.iter().map(|(number, pack)| (pack.added.name, *number)).collect();
    let again = numbers.keys().any(|name| state.dropped.contains(name));
    let last = state.packs.keys().next_back().is_none_or(|last| *last < state.next_pack);
    if again || numbers.len() != state.packs.len() || !last {
        return Err(RecordError::Value { field: "packs", value: state.packs.len() as u64 });
    }
    Ok(numbers)
}

fn write_log_head(to: &mut RecordWriter, it: LogHead) {
    to.u64(it.sequence).bytes(&it.hash);
}

fn read_log_head(from: &mut RecordReader<'_>) -> Result<LogHead, RecordError> {
    Ok(LogHead { sequence: from.u64("sequence")?, hash: from.array("hash")? })
}

fn write_texts(to: &mut RecordWriter, texts: &[(&String, &String)]) {
    to.list(texts, |to, (key, value)| {
        to.text(key).text(value);
    });
}

fn read_texts(from: &mut RecordReader<'_>) -> Result<Vec<(String, String)>, RecordError> {
    let label = |from: &mut RecordReader<'_>| match (from.text("label")?, from.text("label")?) {
        // Setting one to nothing removes it.
        (_, value) if value.is_empty() => Err(RecordError::Value { field: "label", value: 0 }),
        label => Ok(label),
    };
    from.set("labels", 4, label, |a, b| a.0 < b.0)
}

fn read_writer(from: &mut RecordReader<'_>) -> Result<(WriterId, Writer), RecordError> {
    let id = WriterId(from.array("writer")?);
    Ok((id, Writer { term: from.u64("term")?, last: read_log_head(from)? }))
}

fn read_flag(from: &mut RecordReader<'_>, field: &'static str) -> Result<bool, RecordError> {
    match from.u8(field)? {
        0 => Ok(false),
        1 => Ok(true),
        value => Err(RecordError::Value { field, value: value.into() }),
    }
}

fn read_session(from: &mut RecordReader<'_>) -> Result<Session, RecordError> {
    let opened = SessionOpened::read(from)?;
    if !opened.pins.is_sorted_by(|a, b| a < b) {
        return Err(RecordError::Order { field: "pins" });
    }
    Ok(Session {
        opened,
        writer: WriterId(from.array("writer")?),
        term: from.u64("term")?,
        since: from.u64("since")?,
        time: Timestamp(from.i64("time")?),
    })
}

fn read_pack(from: &mut RecordReader<'_>) -> Result<(u32, Pack), RecordError> {
    let (number, added) = (from.u32("pack number")?, AddedPack::read(from)?);
    Ok((number, Pack { added, since: from.u64("since")?, doomed: from.option("doomed", |from| from.u64("doomed"))? }))
}

fn read_point(from: &mut RecordReader<'_>) -> Result<Point, RecordError> {
    Ok(Point {
        committed: CommittedPoint::read(from)?,
        since: from.u64("since")?,
        rooted: from.u64("rooted")?,
        time: Timestamp(from.i64("time")?),
        pinned: read_flag(from, "pinned")?,
        forgotten: from.option("forgotten", |from| from.u64("forgotten"))?,
        labels: read_texts(from)?.into_iter().collect(),
    })
}

const DIGEST_MAGIC: &[u8; 8] = b"WLDIGEST";
const DIGEST_VERSION: u16 = 1;
