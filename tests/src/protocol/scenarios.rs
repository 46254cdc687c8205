//! The scenarios that are checked.

use super::log::bit8;
use super::{Config, Job, READER, Reading, Rules};

const A: u8 = 0b001;
const B: u8 = 0b010;
const C: u8 = 0b100;

impl Config {
    fn plain(name: &'static str) -> Self {
        Config {
            name,
            rules: Rules::all(),
            // Point 0 is old; 1 and 2 are the ones the two writers make; 3 is another old one.
            trees: vec![A, A, C, B],
            // A is a page that refers to B.
            children: [B, 0, 0],
            packs: Vec::new(),
            points: 0,
            jobs: Vec::new(),
            reading: None,
            sweeps: Vec::new(),
            repack: false,
            forgettable: 0,
            unforgets: 0,
            fences: 0,
            crashes: 0,
            delays: 0,
            delaying: 0b1_1111,
            lagging: 0,
            digests: 0,
            suspects: 0,
            careless: 0,
        }
    }

    /// Two writers and a sweep, each with its own view of the log: commits against dooms.
    pub fn commits() -> Self {
        Config {
            trees: vec![A, A, B | C],
            packs: vec![A, B],
            points: bit8(0),
            jobs: vec![vec![Job::backup(1, None)], vec![Job::backup(2, None)]],
            sweeps: vec![1],
            forgettable: bit8(0),
            lagging: 0b11,
            ..Config::plain("commits")
        }
    }

    /// The same with a lease that runs out.
    pub fn fences() -> Self {
        Config { name: "fences", fences: 1, lagging: 0, ..Config::commits() }
    }

    /// The same with a create that is not answered.
    pub fn unclear_answers() -> Self {
        Config { name: "unclear answers", delays: 1, delaying: 0b01001, lagging: 0, ..Config::commits() }
    }

    /// The same with a writer that pushes its records without looking.
    pub fn careless() -> Self {
        Config { name: "a careless writer", careless: 0b10, lagging: 0b10, ..Config::commits() }
    }

    /// A writer whose increment builds on a point that is being forgotten.
    pub fn increments() -> Self {
        Config {
            packs: vec![A, B],
            points: bit8(0),
            jobs: vec![vec![Job::backup(1, Some(0))]],
            sweeps: vec![1, 1],
            forgettable: bit8(0),
            unforgets: 1,
            fences: 1,
            crashes: 1,
            ..Config::plain("increments")
        }
    }

    /// Two sweeps over duplicates, with copying.
    pub fn sweeps() -> Self {
        Config {
            packs: vec![C, C, B | C],
            points: bit8(2) | bit8(3),
            trees: vec![A, C, C, B],
            jobs: vec![vec![Job::backup(1, None)]],
            sweeps: vec![2, 1],
            repack: true,
            forgettable: bit8(3),
            ..Config::plain("sweeps")
        }
    }

    /// A backup that relies on what a sweep is copying elsewhere, from an old view of the log, beside another.
    pub fn repacks() -> Self {
        Config {
            packs: vec![A | C, B],
            points: bit8(0),
            trees: vec![A, A, C],
            jobs: vec![vec![Job::backup(1, None)], vec![Job::backup(2, None)]],
            sweeps: vec![1],
            repack: true,
            lagging: 0b11,
            ..Config::plain("repacks")
        }
    }

    /// A copy of a chunk is found damaged, while a sweep takes duplicates away, a backup relies on what is there, and a
    /// repair brings it again.
    pub fn repairs() -> Self {
        Config {
            packs: vec![A | B, B, C],
            points: bit8(0) | bit8(2),
            trees: vec![A, A, C],
            jobs: vec![vec![Job::backup(1, None)], vec![Job::repair(4)]],
            sweeps: vec![1],
            repack: true,
            forgettable: bit8(0),
            suspects: 1,
            ..Config::plain("repairs")
        }
    }

    /// A reader in a session while its point is forgotten, copied elsewhere and swept.
    pub fn readers() -> Self {
        Config {
            packs: vec![A | C, B],
            points: bit8(0),
            reading: Some(Reading { point: 0, session: true }),
            sweeps: vec![2],
            repack: true,
            forgettable: bit8(0),
            unforgets: 1,
            fences: 1,
            lagging: bit8(READER),
            ..Config::plain("readers")
        }
    }

    /// The same reader where it cannot write.
    pub fn readers_without_session() -> Self {
        Config {
            name: "readers without session",
            reading: Some(Reading { point: 0, session: false }),
            sweeps: vec![1, 1],
            fences: 0,
            ..Config::readers()
        }
    }

    /// A writer that crashes and finds what it left behind, with a sweep around.
    pub fn orphans() -> Self {
        Config {
            packs: vec![C],
            jobs: vec![vec![Job::backup(1, None)]],
            sweeps: vec![2],
            crashes: 2,
            delays: 1,
            ..Config::plain("orphans")
        }
    }

    /// A writer that makes the same chunks again after they were swept.
    pub fn names() -> Self {
        Config {
            trees: vec![A, C, C, B],
            jobs: vec![vec![Job::backup(1, None), Job::backup(2, None)]],
            sweeps: vec![2],
            forgettable: bit8(1),
            ..Config::plain("names")
        }
    }

    /// Two writers that fall behind a log that is being pruned.
    pub fn pruning() -> Self {
        Config {
            packs: vec![A | B, C],
            points: bit8(3),
            jobs: vec![vec![Job::backup(1, None)], vec![Job::backup(2, None)]],
            forgettable: bit8(3),
            fences: 1,
            delays: 1,
            lagging: 0b11,
            digests: 2,
            ..Config::plain("pruning")
        }
    }

    /// The same with a reader, that writes only to open its session.
    pub fn pruning_under_readers() -> Self {
        Config {
            name: "pruning under readers",
            reading: Some(Reading { point: 3, session: true }),
            forgettable: 0,
            fences: 0,
            ..Config::pruning()
        }
    }

    /// Everyone at once: too many states to see them all.
    pub fn everyone() -> Self {
        Config {
            trees: vec![A, A | C, C, B],
            packs: vec![A, B, C],
            points: bit8(0) | bit8(3),
            jobs: vec![vec![Job::backup(1, Some(0))], vec![Job::backup(2, None)]],
            reading: Some(Reading { point: 0, session: true }),
            sweeps: vec![1, 1],
            repack: true,
            forgettable: bit8(0),
            unforgets: 1,
            fences: 1,
            crashes: 1,
            delays: 1,
            lagging: 0b11,
            ..Config::plain("everyone")
        }
    }

    /// The same over a log that is being pruned.
    pub fn everyone_pruning() -> Self {
        Config { name: "everyone, pruning", digests: 3, ..Config::everyone() }
    }
}
