//! Pages of maps: what is read encodes to the same bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mover::Page;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(page) = Page::decode(bytes) {
        assert_eq!(page.encode(), bytes);
    }
});
