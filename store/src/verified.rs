//! When each pack was last found sound. A verification need not read such a pack again, and a scrub reads the oldest
//! next. This is a cache in one object: if it is lost, packs are read again.

use crate::format::pack::PackName;
use crate::objects::{ObjectName, Objects};
use crate::state::State;
use mover::{Depth, RecordError, RecordReader, RecordWriter, RepositoryId, Result, Timestamp, digest};
use std::collections::HashMap;

/// When packs were found sound, as this process knows it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Verified {
    packs: HashMap<PackName, Found>,
    /// Packs that this process found damaged, and when. Notes of another process that they are sound do not count
    /// unless they are later.
    damaged: HashMap<PackName, Timestamp>,
}

/// When a pack was last found sound: nanoseconds since 1970; long ago when never.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Found {
    /// All its stored bytes were read.
    read: Timestamp,
    /// Every chunk was decoded too.
    decoded: Timestamp,
}

impl Verified {
    /// Reads the times that are stored. It gives no times when the object is missing or cannot be used.
    pub fn load(objects: &dyn Objects, repository: RepositoryId) -> Self {
        let read = objects.read(ObjectName::Verified, VERIFIED_BYTES_MAX);
        let bytes = read.unwrap_or_else(|error| {
            tracing::warn!(%error, "the times of verifications cannot be read: packs count as never verified");
            None
        });
        let Some(bytes) = bytes else { return Self::default() };
        Self::decode(&bytes, repository).unwrap_or_else(|error| {
            tracing::warn!(%error, "{VERIFIED} cannot be used: packs count as never verified");
            Self::default()
        })
    }

    /// Notes how a pack was found by a check that began at `began`. A check of the structure says nothing.
    pub fn note(&mut self, pack: PackName, depth: Depth, sound: bool, began: Timestamp) {
        if !sound {
            self.packs.remove(&pack);
            self.damaged.insert(pack, began);
        } else if depth != Depth::Structure {
            self.damaged.remove(&pack);
            let found = self.packs.entry(pack).or_default();
            found.read = found.read.max(began);
            if depth == Depth::Decode {
                found.decoded = found.decoded.max(began);
            }
        }
    }

    /// When a pack was last found sound by a check of this depth, or a deeper one; none when it never was, or when the
    /// noted time is later than `now`, so that it must be wrong.
    pub fn last(&self, pack: &PackName, depth: Depth, now: Timestamp) -> Option<Timestamp> {
        let found = self.packs.get(pack)?;
        let at = if depth == Depth::Decode { found.decoded } else { found.read };
        (at > Timestamp::default() && at <= now).then_some(at)
    }

    /// Adds the times that another process wrote meanwhile, removes packs that the log does not have, and writes the
    /// object.
    ///
    /// # Errors
    /// Of the storage. Nothing else fails for it.
    pub fn save(&mut self, objects: &dyn Objects, state: &State) -> Result<()> {
        let other = Self::load(objects, state.repository());
        for (pack, theirs) in other.packs {
            if self.damaged.get(&pack).is_some_and(|found| *found >= theirs.read.max(theirs.decoded)) {
                continue;
            }
            let ours = self.packs.entry(pack).or_default();
            ours.read = ours.read.max(theirs.read);
            ours.decoded = ours.decoded.max(theirs.decoded);
        }
        self.packs.retain(|pack, _| state.pack_number(pack).is_some());
        self.damaged.retain(|pack, _| state.pack_number(pack).is_some());
        objects.replace(ObjectName::Verified, &self.encode(state.repository()))
    }

    fn encode(&self, repository: RepositoryId) -> Vec<u8> {
        let mut packs: Vec<_> = self.packs.iter().collect();
        packs.sort_unstable_by_key(|(pack, _)| **pack);
        packs.truncate(PACKS_MAX);
        let mut to = RecordWriter::new();
        to.bytes(MAGIC).u16(VERSION).bytes(&repository.0);
        to.list(&packs, |to, (pack, found)| {
            to.bytes(&pack.0).i64(found.read.0).i64(found.decoded.0);
        });
        to.no_extensions();
        let hash = digest(to.as_slice());
        to.bytes(&hash);
        to.finish()
    }

    fn decode(bytes: &[u8], repository: RepositoryId) -> std::result::Result<Self, RecordError> {
        let (body, hash) = bytes.split_last_chunk::<32>().ok_or(RecordError::Short { field: VERIFIED })?;
        if digest(body) != *hash {
            return Err(RecordError::Hash { field: VERIFIED });
        }
        let mut from = RecordReader::new(body);
        if from.bytes("verified magic", MAGIC.len())? != MAGIC {
            return Err(RecordError::Value { field: "verified magic", value: 0 });
        }
        let version = from.u16("verified version")?;
        if version != VERSION {
            return Err(RecordError::Newer { field: "verified version", value: version.into() });
        }
        if from.array("verified repository")? != repository.0 {
            return Err(RecordError::Value { field: "verified repository", value: 0 });
        }
        let packs = from.list("verified packs", ENTRY_BYTES, |from| {
            let pack = PackName(from.array("verified pack")?);
            let (read, decoded) = (Timestamp(from.i64("verified read")?), Timestamp(from.i64("verified decoded")?));
            Ok((pack, Found { read, decoded }))
        })?;
        from.extensions()?;
        from.end()?;
        Ok(Self { packs: packs.into_iter().collect(), damaged: HashMap::new() })
    }
}

/// The name of the object in messages.
const VERIFIED: &str = "verified";
const MAGIC: &[u8; 8] = b"WLVERIFY";
const VERSION: u16 = 1;
const ENTRY_BYTES: usize = 48;
/// Most packs whose times are stored: 64 TiB in packs of 64 MiB. Others count as never verified.
const PACKS_MAX: usize = 1 << 20;
const VERIFIED_BYTES_MAX: u64 = (PACKS_MAX * ENTRY_BYTES + 4096) as u64;

#[cfg(test)]
mod tests {
    use super::*;

    const REPOSITORY: RepositoryId = RepositoryId([7; 16]);

    fn some() -> Verified {
        let mut some = Verified::default();
        some.note(PackName([1; 32]), Depth::Decode, true, Timestamp(10));
        some.note(PackName([2; 32]), Depth::ReadData { percent: 5 }, true, Timestamp(20));
        some
    }

    #[test]
    fn deeper_counts_for_less_deep_and_the_future_for_nothing() {
        let mut some = some();
        let (read, now) = (Depth::ReadData { percent: 1 }, Timestamp(30));
        assert_eq!(some.last(&PackName([1; 32]), read, now), Some(Timestamp(10)));
        assert_eq!(some.last(&PackName([2; 32]), read, now), Some(Timestamp(20)));
        assert_eq!(some.last(&PackName([2; 32]), Depth::Decode, now), None);
        assert_eq!(some.last(&PackName([2; 32]), read, Timestamp(19)), None);
        assert_eq!(some.last(&PackName([3; 32]), read, now), None);
        some.note(PackName([2; 32]), Depth::Structure, true, now);
        assert_eq!(some.last(&PackName([2; 32]), read, now), Some(Timestamp(20)));
        some.note(PackName([2; 32]), Depth::Structure, false, now);
        assert_eq!(some.last(&PackName([2; 32]), read, now), None);
    }

    #[test]
    fn what_was_written_is_read_and_a_changed_byte_is_seen() {
        let bytes = some().encode(REPOSITORY);
        assert_eq!(Verified::decode(&bytes, REPOSITORY).unwrap(), some());
        Verified::decode(&bytes, RepositoryId([8; 16])).unwrap_err();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            Verified::decode(&changed, REPOSITORY).unwrap_err();
            Verified::decode(&bytes[..at], REPOSITORY).unwrap_err();
        }
    }
}
