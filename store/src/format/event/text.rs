//! Events as people read them.

use super::Event;
use std::fmt;

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WriterTerm => f.write_str("the writer begins a new term"),
            Self::SessionOpened(it) if it.writes => write!(f, "session {} begins, for point {}", it.session, it.point),
            Self::SessionOpened(it) => write!(f, "session {} begins, reading {}", it.session, Few(&it.pins)),
            Self::SessionClosed(id) => write!(f, "session {id} ends"),
            Self::SessionFenced(id) => write!(f, "session {id} is ended by another"),
            Self::PacksAdded(packs) => {
                let (chunks, bytes) = packs
                    .iter()
                    .fold((0, 0), |(chunks, bytes), pack| (chunks + u64::from(pack.chunks), bytes + pack.bytes));
                let names: Vec<_> = packs.iter().map(|pack| pack.name).collect();
                let s = if chunks == 1 { "" } else { "s" };
                write!(f, "packs added, {chunks} chunk{s}, {bytes} bytes: {}", Few(&names))
            }
            Self::PointCommitted(it) => {
                write!(f, "point {} of {} committed, {} bytes new", it.point, it.machine_name, it.bytes_new)
            }
            Self::Forgotten(points) => write!(f, "forgotten: {}", Few(points)),
            Self::Unforgotten(points) => write!(f, "unforgotten: {}", Few(points)),
            Self::Pinned(points) => write!(f, "pinned: {}", Few(points)),
            Self::Unpinned(points) => write!(f, "unpinned: {}", Few(points)),
            Self::Annotated(point, key, value) => write!(f, "label of point {point}: {key}={value}"),
            Self::ChunkSuspect(chunk, pack) => write!(f, "chunk {chunk} is damaged in pack {pack}"),
            Self::ChunkHealed(chunk, pack) => write!(f, "chunk {chunk} is sound in pack {pack}"),
            Self::SweepBegun(_) => f.write_str("a sweep begins"),
            Self::Doomed(it) => write!(f, "doomed: packs {}; final: points {}", Few(&it.packs), Few(&it.finalised)),
            Self::Dropped(it) => {
                let orphans: Vec<_> = it.orphans.iter().map(|orphan| orphan.name).collect();
                write!(f, "dropped: packs {}; never in the log: {}", Few(&it.packs), Few(&orphans))
            }
            Self::SweepEnded(_) => f.write_str("a sweep ends"),
            Self::Role(0) => f.write_str("the repository is a primary copy"),
            Self::Role(_) => f.write_str("the repository is an auxiliary copy"),
            Self::Configuration(key, value) => write!(f, "setting {key}={value}"),
            Self::PeerSeen(repository, end) => write!(f, "repository {repository} was seen at record {}", end.sequence),
            Self::NewIncarnation(end) => {
                write!(f, "a rollback was accepted; others had seen record {}", end.sequence)
            }
            Self::Unknown { code, .. } => write!(f, "event {code} of a later version"),
        }
    }
}

/// The first of many.
struct Few<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for Few<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (at, it) in self.0.iter().take(SHOWN).enumerate() {
            write!(f, "{}{it}", if at == 0 { "" } else { ", " })?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

const SHOWN: usize = 8;
