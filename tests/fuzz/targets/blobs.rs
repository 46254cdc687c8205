//! Blobs: whatever opens has the length that its header says, and no more is allocated.

use bytes::Bytes;
use chunker::Blob;
use mover::with_decoder;

pub fn check(bytes: &[u8]) {
    if let Ok(blob) = Blob::parse(Bytes::copy_from_slice(bytes)) {
        let _ = blob.check();
        let mut plain = Vec::new();
        if with_decoder(|decoder| decoder.decode(&blob, &mut plain)).is_ok() {
            assert_eq!(plain.len(), blob.header().plain_bytes as usize);
        }
    }
}
