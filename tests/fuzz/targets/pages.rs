//! Pages of maps: what is read encodes to the same bytes.

use mover::Page;

pub fn check(bytes: &[u8]) {
    if let Ok(page) = Page::decode(bytes) {
        assert_eq!(page.encode(), bytes);
    }
}
