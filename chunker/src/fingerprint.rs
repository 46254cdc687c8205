//! Chunk ids: BLAKE3-256 of the plain bytes, keyed by dedup domain and kind.

use std::fmt;
use std::str::FromStr;

/// What a chunk is. Each kind has its own fingerprint key, so bytes that a guest writes to its disk can never be taken
/// for a map page or a manifest, whatever their content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum ChunkKind {
    /// A block of a disk.
    Data = 0,
    /// A page of a disk map or of a stream map.
    Page = 1,
    /// The manifest of a point.
    Manifest = 2,
    /// A piece of an attachment or another byte stream.
    Attachment = 3,
}

impl ChunkKind {
    /// Every kind, in the order of its code.
    pub const ALL: [Self; 4] = [Self::Data, Self::Page, Self::Manifest, Self::Attachment];

    /// The kind with this code.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    /// The code of this kind in formats.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Pages and manifests: what a repository reads to know its own structure.
    pub const fn is_structure(self) -> bool {
        matches!(self, Self::Page | Self::Manifest)
    }
}

/// The fingerprint of a chunk's plain bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkId(pub [u8; 32]);

impl ChunkId {
    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..6].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for ChunkId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return Err("a chunk id is 64 hexadecimal digits");
        }
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| "not hexadecimal")?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| "not hexadecimal")?;
        }
        Ok(Self(bytes))
    }
}

/// The secret of a dedup domain: repositories that share it (and the cut) share chunk ids.
#[derive(Clone, PartialEq, Eq)]
pub struct DomainKey(pub [u8; 32]);

impl DomainKey {
    /// What may be shown and stored beside data to tell domains apart: the first 16 bytes of a derived key.
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

/// Computes chunk ids of one dedup domain. Cheap to clone, safe to share.
#[derive(Clone)]
pub struct Fingerprinter {
    keys: [[u8; 32]; 4],
}

impl Fingerprinter {
    /// Derives the key of each kind: BLAKE3 `derive_key` mode, context below, the domain key as material.
    pub fn new(domain: &DomainKey) -> Self {
        let contexts = [
            "windlass 2026-11 chunk id data",
            "windlass 2026-11 chunk id page",
            "windlass 2026-11 chunk id manifest",
            "windlass 2026-11 chunk id attachment",
        ];
        Self { keys: contexts.map(|context| blake3::derive_key(context, &domain.0)) }
    }

    /// The id of a chunk of this kind with these plain bytes: BLAKE3 `keyed_hash` mode.
    pub fn id(&self, kind: ChunkKind, plain: &[u8]) -> ChunkId {
        ChunkId(*blake3::keyed_hash(&self.keys[usize::from(kind.code())], plain).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_domains_do_not_mix() {
        let one = Fingerprinter::new(&DomainKey([1; 32]));
        let two = Fingerprinter::new(&DomainKey([2; 32]));
        let mut ids: Vec<_> =
            ChunkKind::ALL.iter().flat_map(|kind| [one.id(*kind, b"same"), two.id(*kind, b"same")]).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 8);
    }

    #[test]
    fn text_round_trip() {
        let id = Fingerprinter::new(&DomainKey([7; 32])).id(ChunkKind::Data, b"x");
        assert_eq!(id.to_string().parse::<ChunkId>(), Ok(id));
        assert!("zz".parse::<ChunkId>().is_err());
        assert!("é".repeat(32).parse::<ChunkId>().is_err());
    }
}
