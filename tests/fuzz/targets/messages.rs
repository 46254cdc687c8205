//! What comes on the wire: whatever is understood says the same when it is said again.

use std::fmt::Debug;
use wire::message::{Message, Reply, Request};
use wire::{decode, encode};

pub fn check(bytes: &[u8]) {
    understood::<Request>(bytes);
    understood::<Reply>(bytes);
}

fn understood<M: Message + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(Some((message, bulk_bytes, more))) = decode::<M>(bytes) {
        let again = encode(&message, bulk_bytes, more).expect("what was read can be written");
        assert!(bytes.starts_with(&again), "{message:?}");
    }
}
