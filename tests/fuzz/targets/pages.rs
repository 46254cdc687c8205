//! Pages of maps: what is read says the same when it is written again. Extensions of later versions are left out then.

use mover::Page;

pub fn check(bytes: &[u8]) {
    if let Ok(page) = Page::decode(bytes) {
        assert_eq!(Page::decode(&page.encode()).as_ref(), Ok(&page));
    }
}
