//! Feeds what libFuzzer invents to the target that `WINDLASS_FUZZ_TARGET` names; without one it names them all, and ends.

#![no_main]

mod targets;

use std::sync::OnceLock;
use targets::{Check, TARGETS};

static CHECK: OnceLock<Check> = OnceLock::new();

libfuzzer_sys::fuzz_target!(
    init: {
        let wanted = std::env::var("WINDLASS_FUZZ_TARGET").unwrap_or_default();
        let Some((_, check)) = TARGETS.into_iter().find(|(name, _)| *name == wanted) else {
            TARGETS.iter().for_each(|(name, _)| println!("{name}"));
            std::process::exit(0);
        };
        CHECK.get_or_init(|| check);
    },
    |bytes: &[u8]| CHECK.get().expect("it was chosen")(bytes)
);
