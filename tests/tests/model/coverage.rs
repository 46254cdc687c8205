//! What happened in all histories of this process together: a test shows nothing of what never happens.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{LazyLock, Mutex, MutexGuard};

#[derive(Default)]
struct Seen {
    times: BTreeMap<String, u64>,
    /// What came right after what.
    pairs: BTreeSet<(String, String)>,
    last: Option<String>,
    operations: u64,
}

static SEEN: Mutex<Option<Seen>> = Mutex::new(None);

fn with<T>(look: impl FnOnce(&mut Seen) -> T) -> T {
    let mut seen: MutexGuard<'_, Option<Seen>> = SEEN.lock().expect("not poisoned");
    look(seen.get_or_insert_default())
}

/// A history begins.
pub fn begin() {
    with(|seen| seen.last = None);
}

/// An operation begins.
pub fn operation(name: &str) {
    with(|seen| {
        seen.operations += 1;
        let last = seen.last.replace(name.to_owned());
        seen.pairs.extend(last.map(|last| (last, name.to_owned())));
    });
}

/// It had this effect.
pub fn effect(what: impl Into<String>) {
    with(|seen| *seen.times.entry(what.into()).or_default() += 1);
}

/// Prints what happens while one seed is replayed.
pub fn trace(what: impl FnOnce() -> String) {
    static REPLAYS: LazyLock<bool> = LazyLock::new(|| std::env::var_os("WINDLASS_MODEL_SEED").is_some());
    if *REPLAYS {
        println!("{}", what());
    }
}

/// Operations so far.
pub fn operations() -> u64 {
    with(|seen| seen.operations)
}

/// Prints all of it.
pub fn tell() {
    with(|seen| {
        println!("total: {} model operations, {} different pairs in a row", seen.operations, seen.pairs.len());
        seen.times.iter().for_each(|(what, times)| println!("{times:8} {what}"));
    });
}

/// Those of `effects` that never happened.
pub fn never(effects: &[&str]) -> Vec<String> {
    with(|seen| effects.iter().filter(|it| !seen.times.contains_key(**it)).map(|it| (*it).to_owned()).collect())
}
