//! The fuzz targets without a fuzzer: golden bytes, what fuzzing found once, and both changed at random, the same way each
//! time. `cargo dev fuzz` looks further.

#[path = "../../fuzz/targets/mod.rs"]
mod targets;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use targets::TARGETS;
use windlass_tests::draw::Draw;

#[test]
fn nothing_panics_on_foreign_bytes() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let golden = files(&tests.join("golden"));
    let wire = golden.iter().find(|(name, _)| name == "wire.txt").expect("golden messages");
    let messages: Vec<_> = str::from_utf8(&wire.1).expect("text").lines().map(message).collect();
    for (target, check) in TARGETS {
        let found = files(&tests.join("fuzz/seeds").join(target));
        let seeds: Vec<_> = golden.iter().chain(&messages).chain(&found).collect();
        let mut draw = Draw::new(1);
        for round in 0..ROUNDS {
            for (name, seed) in &seeds {
                // The first round is the seeds as they are.
                let bytes = (0..draw.below(4).min(round)).fold(seed.clone(), |bytes, _| {
                    let (_, other) = seeds[draw.below(seeds.len())];
                    changed(&mut draw, bytes, other)
                });
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(&bytes))) {
                    println!("{target}, from {name} in round {round}: {bytes:02x?}");
                    resume_unwind(panic);
                }
            }
        }
        println!("total: {} inputs of {target}", seeds.len() * ROUNDS);
    }
}

/// How often each seed is taken.
const ROUNDS: usize = 200;

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    // A target that nothing was found for has none.
    let entries = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.expect("an entry").path());
    let mut read: Vec<_> = entries
        .map(|path| {
            (path.file_name().expect("a name").to_string_lossy().into_owned(), fs::read(&path).expect("a file"))
        })
        .collect();
    read.sort();
    read
}

/// Of a line of the golden messages.
fn message(line: &str) -> (String, Vec<u8>) {
    let (name, hex) = line.split_once(' ').expect("a name and bytes");
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
    (name.to_owned(), (0..hex.len()).step_by(2).map(byte).collect())
}

/// One change, as fuzzers make them.
fn changed(draw: &mut Draw, mut bytes: Vec<u8>, other: &[u8]) -> Vec<u8> {
    let mut within = |bytes: &[u8]| draw.below(bytes.len().max(1));
    let (at, from) = (within(&bytes), within(other));
    match draw.below(6) {
        0 if !bytes.is_empty() => bytes[at] ^= 1 << draw.below(8),
        // Lengths and counts.
        1 => bytes.iter_mut().skip(at).take(1 << draw.below(4)).for_each(|byte| *byte = 0xff),
        2 => bytes.iter_mut().skip(at).take(1 << draw.below(4)).for_each(|byte| *byte = 0),
        3 => bytes.truncate(at),
        4 => bytes.extend_from_slice(&other[from..]),
        _ => bytes.iter_mut().skip(at).zip(&other[from..]).for_each(|(byte, other)| *byte = *other),
    }
    bytes
}
