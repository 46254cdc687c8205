//! How much of an answer a client takes: nothing that a node sends grows without end here.

use super::frame::Frame;
use super::link::unexpected;
use super::message::{Opened, Reply, SessionRef};
use chunker::ChunkId;
use mover::{Begun, ChunkBatch, Error, LogEntry, RecoveryPoint, Result, SessionId};

/// What comes after `Open`.
#[derive(Default)]
pub struct OpenedWith {
    pub opened: Option<Opened>,
    pub points: Vec<RecoveryPoint>,
}

pub fn opened(made: &mut OpenedWith, frame: Frame<Reply>) -> Result<()> {
    match frame.message {
        Reply::Opened(opened) if made.opened.is_none() => made.opened = Some(opened),
        Reply::Points(page) if made.opened.is_some() => add(&mut made.points, page, POINTS_MAX, "points")?,
        _ => return Err(unexpected()),
    }
    Ok(())
}

pub fn points(made: &mut Vec<RecoveryPoint>, frame: Frame<Reply>) -> Result<()> {
    match frame.message {
        Reply::Points(page) => add(made, page, POINTS_MAX, "points"),
        _ => Err(unexpected()),
    }
}

/// What comes after `Begin`.
#[derive(Default)]
pub struct BegunAs {
    pub session: Option<SessionId>,
    pub begun: Begun,
}

pub fn begun(made: &mut BegunAs, frame: Frame<Reply>) -> Result<()> {
    match frame.message {
        Reply::Session(SessionRef { session }) if made.session.is_none() => made.session = Some(session),
        Reply::Suspects(page) if made.session.is_some() => {
            add(&mut made.begun.suspects, page, Begun::SUSPECTS_MAX, "suspect chunks")?;
        }
        _ => return Err(unexpected()),
    }
    Ok(())
}

/// Chunks that were asked for, seldom one twice, and no more bytes of them together than fit.
pub fn verified(made: &mut ChunkBatch, batch: ChunkBatch, asked: &[ChunkId]) -> Result<()> {
    let bytes = |batch: &ChunkBatch| -> usize {
        batch.iter().filter_map(|(_, blob)| blob.as_ref().ok()).map(|blob| blob.bytes().len()).sum()
    };
    if batch.iter().any(|(id, _)| !asked.contains(id)) || made.len() + batch.len() > 2 * asked.len() {
        return Err(Error::transport("the node sends chunks that were not requested"));
    }
    made.extend(batch);
    match bytes(made) {
        0..=VERIFIED_BYTES_MAX => Ok(()),
        bytes => Err(Error::transport(format!(
            "the node sends {bytes} bytes of chunks in one answer, more than {VERIFIED_BYTES_MAX}"
        ))),
    }
}

/// Ids behind the one that was asked about, in order: asking on comes to an end.
pub fn ascending(after: Option<ChunkId>, ids: Vec<ChunkId>) -> Result<Vec<ChunkId>> {
    let known = after.as_slice().iter().chain(&ids);
    if known.is_sorted_by(|one, next| one < next) { Ok(ids) } else { Err(out_of_order()) }
}

/// Records behind the one that was asked about, in order.
pub fn following(after: u64, entries: Vec<LogEntry>) -> Result<Vec<LogEntry>> {
    let numbers = || std::iter::once(after).chain(entries.iter().map(|entry| entry.end.sequence));
    if numbers().is_sorted_by(|one, next| one < next) { Ok(entries) } else { Err(out_of_order()) }
}

fn add<T>(made: &mut Vec<T>, page: Vec<T>, max: usize, what: &str) -> Result<()> {
    if made.len() + page.len() > max {
        return Err(Error::transport(format!("the node sends more than {max} {what}"))
            .hint("ask for one machine with --machine, or sweep forgotten points"));
    }
    made.extend(page);
    Ok(())
}

fn out_of_order() -> Error {
    Error::transport("the node sends its answers in the wrong order")
}

/// Points of an answer: half a gigabyte of them.
pub const POINTS_MAX: usize = 1_000_000;
/// Bytes of chunks that a node vouches for, in one answer: twice what 128 pieces of streams have.
const VERIFIED_BYTES_MAX: usize = 64 << 20;
