//! Manifests: what is read encodes to the same bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mover::Manifest;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(manifest) = Manifest::decode(bytes) {
        assert_eq!(manifest.encode_checked().expect("what was read can be written"), bytes);
    }
});
