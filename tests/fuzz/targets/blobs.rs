//! Blobs: whatever opens has the length that its header says, and no more is allocated.

#![no_main]

use bytes::Bytes;
use chunker::Blob;
use libfuzzer_sys::fuzz_target;
use mover::with_opener;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(blob) = Blob::parse(Bytes::copy_from_slice(bytes)) {
        let _ = blob.check();
        let mut plain = Vec::new();
        if with_opener(|opener| opener.open(&blob, &mut plain)).is_ok() {
            assert_eq!(plain.len(), blob.header().plain_bytes as usize);
        }
    }
});
