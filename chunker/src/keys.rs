//! The secret of a dedup domain, and the keys that are made of it.

use crate::{ChunkId, ChunkKind};
use std::fmt;

/// The secret of a dedup domain: repositories that share it (and the cut) share chunk ids.
#[derive(Clone, PartialEq, Eq)]
pub struct DomainKey(pub [u8; 32]);

impl DomainKey {
    /// A value that tells domains apart and may be shown, and stored together with data: the first 16 bytes of a
    /// derived key.
    pub fn fingerprint(&self) -> [u8; 16] {
        let derived = blake3::derive_key("windlass 2026-11 dedup domain key fingerprint", &self.0);
        derived[..16].try_into().expect("16 of 32 bytes")
    }
}

impl fmt::Debug for DomainKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DomainKey(..)")
    }
}

/// All keys of one dedup domain: they are passed as this one value, so that another key changes no function's
/// signature. Today there are only the keys of chunk ids. Cheap to clone, safe to share.
#[derive(Clone)]
pub struct DomainKeys {
    /// The fingerprint key of each kind of chunk, by the code of the kind.
    fingerprints: [[u8; 32]; 4],
}

impl DomainKeys {
    /// Derives the key of each kind: BLAKE3 `derive_key` mode, context below, the domain key as material.
    pub fn new(domain: &DomainKey) -> Self {
        let contexts = [
            "windlass 2026-11 chunk id data",
            "windlass 2026-11 chunk id page",
            "windlass 2026-11 chunk id manifest",
            "windlass 2026-11 chunk id attachment",
        ];
        Self { fingerprints: contexts.map(|context| blake3::derive_key(context, &domain.0)) }
    }

    /// The id of a chunk of this kind with these plain bytes: BLAKE3 `keyed_hash` mode.
    pub fn id(&self, kind: ChunkKind, plain: &[u8]) -> ChunkId {
        ChunkId(*blake3::keyed_hash(&self.fingerprints[usize::from(kind.code())], plain).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_domains_do_not_mix() {
        let one = DomainKeys::new(&DomainKey([1; 32]));
        let two = DomainKeys::new(&DomainKey([2; 32]));
        let mut ids: Vec<_> =
            ChunkKind::ALL.iter().flat_map(|kind| [one.id(*kind, b"same"), two.id(*kind, b"same")]).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 8);
    }
}
