//! Manifests: what is read encodes to the same bytes.

use mover::Manifest;

pub fn check(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::decode(bytes) {
        assert_eq!(manifest.encode_checked().expect("what was read can be written"), bytes);
    }
}
