//! A model of the repository protocol: commit log, sessions, sweeps and readers.
//!
//! It asks one question: which interleavings of writers, sweepers, readers, an administrator, crashes and messages
//! that take their time lose data or break a promise? With all rules none does, within the bounds of the
//! [scenarios](Config); without any one of them some does. Each switch is a [`Clause`] of a [`Rule`].
//!
//! # What is modelled
//!
//! *Storage* holds log records under numbers, digests, and pack objects. A record is created only where its number is
//! free. A create may be answered, or be on its way and arrive at any later time, or never, whatever became of its
//! author ([`Action::Delay`], [`Action::Land`]); so may the delete of a pack ([`Action::LandDelete`]). Numbers get free
//! again where the log is pruned.
//!
//! An *actor* knows a prefix of the log ([`View`]). It validates an event against what that prefix says, and
//! creates the record under the next number. If the number is taken, it reads the record there and starts over.
//!
//! *Writers* take a term, open a session naming a parent, ask what is missing, store it in a pack, add the pack to the
//! log, and commit. They crash between any two steps, come back with the next term, and find what they left behind.
//! *Sweepers* begin a sweep, mark, copy live chunks out of packs, doom packs one at a time, drop and delete them, and copy
//! what turns out to be needed of doomed ones. A *repair* is a writer that brings what is damaged and makes no point. The
//! *reader* opens a session, or none, and reads from where it knows the chunks to be. The *administrator* forgets,
//! brings back and fences, and finds copies of chunks damaged.
//!
//! There are three *chunks*. The first is a page that refers to the second. So a repository can have a page without the
//! chunks below it.
//!
//! # What makes it small
//!
//! - Records that everybody has applied are folded into [`State::base`]; two histories with the same outcome are one
//!   state.
//! - A view that is not [lagging](Config::lagging) follows the log's end. Only decisions taken from an old view tell
//!   the difference, and where a rule demands that they be taken again (R1) an old view only ever loses a number.
//! - Author, term and number stand for a record's nonce, the index into a table of headers for a pack's. Hashes never
//!   collide, and bytes do not change: rollback and damage on disk are the subject of other rules.
//! - One event a record, one pack a doom, one pack an upload. Several events in one record would be the same as several
//!   records with nothing between them.
//! - It makes no difference who deletes an object, so deletes have no actor. A sweeper that crashes is the same as one
//!   that takes no more steps.
//!
//! - A copy is damaged from the moment in which the log says so: before, nobody can act on it. A mark that comes between
//!   the second look at a pack (R19) and the record that drops it is one that comes after.
//!
//! Not modelled: shared open packs (R18), the age at which a node fences its own sessions (a session may be fenced at any
//! time), a sealed orphan whose bytes are damaged, counts of references that are wrong, which the second look is there for
//! too, and progress: a property says that a backup does not *fail* because of a sweep, none says that it ends.
//!
//! # Scenarios
//!
//! All but two are searched through; [`Config::everyone`] and [`Config::everyone_pruning`], with all actors at once,
//! have too many states for that. The former is searched through to a number of steps, and both are walked at random
//! to the end.

mod actions;
mod effects;
mod log;
mod properties;
mod rules;
mod scenarios;
mod state;
mod walks;

pub use actions::Action;
pub use log::{Chunks, Event, Header, Packs, Points, Record, Replayed, Session};
pub use properties::*;
pub use rules::{Clause, Rule, Rules};
pub use state::*;

use log::{bit8, chunks_of};

/// Slots of actors: writers first.
pub const SLOTS: usize = 6;
/// Slot of the reader.
pub const READER: u8 = 2;
/// Slot of the first sweeper.
pub const SWEEPER: u8 = 3;
/// Slot of the administrator, who forgets, brings back and fences.
pub const ADMIN: u8 = 5;
/// Names of packs: three that exist at the start, three for each writer, one for each sweeper.
pub const PACKS: usize = 11;

/// One backup to make.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// The point it commits.
    pub point: u8,
    /// The point it is an increment of.
    pub parent: Option<u8>,
    /// It makes no point. It brings the chunks of which no sound copy exists.
    pub repairs: bool,
}

impl Job {
    /// A backup.
    pub const fn backup(point: u8, parent: Option<u8>) -> Self {
        Job { point, parent, repairs: false }
    }

    /// A repair. It is counted like a point, under a number that no point has.
    pub const fn repair(number: u8) -> Self {
        Job { point: number, parent: None, repairs: true }
    }
}

/// What the reader does.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// The point it reads.
    pub point: u8,
    /// Whether it can write, and so open a session.
    pub session: bool,
}

/// A scenario: the actors, the state at the start, and how often each kind of failure may happen.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the scenario.
    pub name: &'static str,
    /// The rules in force.
    pub rules: Rules,
    /// Roots of the trees of each point.
    pub trees: Vec<Chunks>,
    /// For each chunk those it refers to; not empty for pages.
    pub children: [Chunks; 3],
    /// Packs that exist and are in the log at the start.
    pub packs: Vec<Chunks>,
    /// Points that are committed at the start.
    pub points: Points,
    /// For each writer its backups, one after the other.
    pub jobs: Vec<Vec<Job>>,
    /// The reader, if there is one.
    pub reading: Option<Reading>,
    /// For each sweeper how many sweeps it begins.
    pub sweeps: Vec<u8>,
    /// Whether sweeps copy live chunks out of packs they want to get rid of.
    pub repack: bool,
    /// Points the administrator may forget, each once.
    pub forgettable: Points,
    /// How many of them may come back.
    pub unforgets: u8,
    /// How many sessions run out of their lease.
    pub fences: u8,
    /// How often a writer crashes.
    pub crashes: u8,
    /// How many creates give no answer and land later, or never.
    pub delays: u8,
    /// Slots (a bit each) whose creates these may be.
    pub delaying: u8,
    /// Slots (a bit each) whose view of the log may fall behind its end.
    pub lagging: u8,
    /// How many digests are written; with any, the log is pruned.
    pub digests: u8,
    /// How many copies of chunks, in packs that exist at the start, are found to be damaged.
    pub suspects: u8,
    /// A writer (a bit each) that does not validate again after losing a number.
    pub careless: u8,
}

impl Config {
    /// The same scenario under other rules.
    #[must_use]
    pub fn under(mut self, rules: Rules) -> Self {
        self.rules = rules;
        self
    }

    /// Every chunk of these points, through all pages.
    pub fn chunks_of(&self, points: Points) -> Chunks {
        let points = chunks_of(points).filter(|point| (*point as usize) < self.trees.len());
        points.fold(0, |chunks, point| chunks | self.below(self.trees[point as usize]))
    }

    /// These chunks and all they refer to.
    pub fn below(&self, chunks: Chunks) -> Chunks {
        // Two levels of pages are more than three chunks can have.
        let once = chunks_of(chunks).fold(chunks, |all, chunk| all | self.children[chunk as usize]);
        chunks_of(once).fold(once, |all, chunk| all | self.children[chunk as usize])
    }

    /// Whether a slot is a sweeper's.
    pub fn is_sweeper(&self, slot: u8) -> bool {
        (SWEEPER..ADMIN).contains(&slot)
    }

    /// Whether a slot pushes its records without validating them again.
    pub fn pushes(&self, slot: u8) -> bool {
        !self.rules.has(Clause::Revalidate) || self.careless & bit8(slot) != 0
    }
}

impl stateright::Model for Config {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(self)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.steps(state, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        Some(self.after(state, action))
    }

    fn properties(&self) -> Vec<stateright::Property<Self>> {
        properties::all()
    }
}
