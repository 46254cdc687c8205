//! Memory that a kernel can write to a disk without copying it through the page cache.

use bytes::Bytes;
use std::ops::Deref;

/// Addresses, offsets and lengths of direct I/O are multiples of this; every usual disk and file system takes it.
pub const DIRECT_BYTES: usize = 4096;

/// A buffer whose first byte lies at a multiple of [`DIRECT_BYTES`], as long as it does not outgrow its capacity.
pub struct AlignedBuffer {
    bytes: Vec<u8>,
    start: usize,
}

impl AlignedBuffer {
    /// An empty buffer with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        let mut bytes: Vec<u8> = Vec::with_capacity(capacity + DIRECT_BYTES);
        let start = bytes.as_ptr().align_offset(DIRECT_BYTES).min(DIRECT_BYTES);
        bytes.resize(start, 0);
        Self { bytes, start }
    }

    /// Calls `fill` with a vector to which it may append; what is in it already must stay.
    pub fn append_with<T>(&mut self, fill: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        fill(&mut self.bytes)
    }

    /// Appends `bytes`.
    pub fn append(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Empties it, for the next use.
    pub fn clear(&mut self) {
        self.bytes.truncate(self.start);
    }

    /// The bytes, to be shared.
    pub fn freeze(self) -> Bytes {
        Bytes::from(self.bytes).slice(self.start..)
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

/// The longest prefix of `bytes` that direct I/O takes: nothing when their address is not aligned.
pub fn direct_prefix(bytes: &[u8]) -> &[u8] {
    let aligned = bytes.as_ptr().align_offset(DIRECT_BYTES) == 0;
    if aligned { &bytes[..bytes.len() / DIRECT_BYTES * DIRECT_BYTES] } else { &[] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stay_aligned_through_reuse_and_sharing() {
        let mut buffer = AlignedBuffer::with_capacity(3 * DIRECT_BYTES);
        for round in 0..3_u8 {
            buffer.clear();
            assert!(buffer.is_empty());
            buffer.append(&vec![round; DIRECT_BYTES]);
            buffer.append_with(|bytes| bytes.extend([round; 100]));
            assert_eq!(direct_prefix(&buffer).len(), DIRECT_BYTES);
        }
        let shared = buffer.freeze();
        assert_eq!(shared.len(), DIRECT_BYTES + 100);
        assert_eq!(direct_prefix(&shared).len(), DIRECT_BYTES);
        assert!(direct_prefix(&shared[1..]).is_empty());
        assert!(shared.iter().all(|byte| *byte == 2));
    }
}
