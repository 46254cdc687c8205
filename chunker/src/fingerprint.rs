//! Chunk ids: BLAKE3-256 of the plain bytes, keyed by dedup domain and kind.

use std::fmt;
use std::str::FromStr;

/// The kind of a chunk. Each kind has its own fingerprint key, so bytes that a guest writes to its disk can never be
/// taken for a map page or a manifest, whatever their content.
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

    /// True for pages and manifests, which a repository reads to know its own structure.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DomainKey, DomainKeys};

    #[test]
    fn text_round_trip() {
        let id = DomainKeys::new(&DomainKey([7; 32])).id(ChunkKind::Data, b"x");
        assert_eq!(id.to_string().parse::<ChunkId>(), Ok(id));
        assert!("zz".parse::<ChunkId>().is_err());
        assert!("é".repeat(32).parse::<ChunkId>().is_err());
    }
}
