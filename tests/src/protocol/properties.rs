//! What must be true in every state, and what must be possible.

use stateright::Property;

use super::log::{Points, bit8, bit16, chunks_of, packs_of};
use super::rules::Clause;
use super::state::{Phase, ReaderPhase, State};
use super::{Config, READER};

/// A committed point that is not forgotten has all its chunks, at the places that the log gives.
pub const POINTS_WHOLE: &str = "committed points are whole";
/// The same for a point that was forgotten and came back, and for one that still may.
pub const UNFORGOTTEN_WHOLE: &str = "points that are or can be unforgotten are whole";
/// No pack object is missing that the log has not dropped.
pub const PACKS_EXIST: &str = "packs in the log exist";
/// What was acknowledged is committed, for every replayer, from then on.
pub const ACKNOWLEDGED_STAY: &str = "acknowledged commits stay";
/// What was reported as failed is never committed.
pub const FAILED_STAY_AWAY: &str = "failed backups have no point";
/// A backup that is made once is one commit.
pub const COMMITTED_ONCE: &str = "a point is committed once";
/// A backup does not fail because of what a sweep does.
pub const SWEEPS_FAIL_NOBODY: &str = "no backup fails because of a sweep";
/// A chunk of which an open session of a writer had the answer "have" is not deleted before the session has ended.
pub const PROMISES_STAY: &str = "nothing goes that an open session was told of";
/// Packs added since a session opened are not taken away from it.
pub const SESSIONS_UNDISTURBED: &str = "packs younger than an open session are not doomed";
/// What a session builds on does not go away under it.
pub const PARENTS_WHOLE: &str = "parents of open sessions are whole";
/// Readers read what they were promised.
pub const READERS_READ: &str = "readers read";
/// If an open reader session knows the place of a chunk, the chunk is there.
pub const PLACES_STAY: &str = "no open reader session loses a place";
/// All replayers agree.
pub const REPLAYERS_AGREE: &str = "replayers agree";
/// A name belongs to one pack for ever.
pub const NAMES_UNIQUE: &str = "no pack name lives twice";
/// The log can be replayed even if the newest digest cannot be read.
pub const LOG_SURVIVES_A_DIGEST: &str = "the log survives the loss of a digest";
/// Of two sweeps the later one decides.
pub const ONE_SWEEP: &str = "a superseded sweep dooms nothing";

/// A sweep can end and delete an object.
pub const SWEPT: &str = "a pack is swept";
/// A backup can end with success.
pub const BACKED_UP: &str = "a backup is acknowledged";

pub(super) fn all() -> Vec<Property<Config>> {
    vec![
        always(POINTS_WHOLE, |config, state| {
            let head = state.head(config);
            whole(config, state, head.live_points() & !head.unforgotten)
        }),
        always(UNFORGOTTEN_WHOLE, |config, state| {
            let head = state.head(config);
            let back = head.live_points() & head.unforgotten;
            whole(config, state, back | (head.forgotten & !head.finals))
        }),
        always(PACKS_EXIST, |config, state| {
            let head = state.head(config);
            head.order.iter().all(|pack| state.stored & bit16(*pack) != 0)
        }),
        always(ACKNOWLEDGED_STAY, |config, state| state.acknowledged & !state.head(config).committed == 0),
        always(FAILED_STAY_AWAY, |config, state| state.failed & state.head(config).committed == 0),
        always(COMMITTED_ONCE, |config, state| state.head(config).twice == 0),
        always(SWEEPS_FAIL_NOBODY, |_, state| state.writers.iter().all(|writer| writer.phase != Phase::Refused)),
        always(PROMISES_STAY, |config, state| {
            let head = state.head(config);
            let open = |slot: usize| head.is_open(slot as u8, state.writers[slot].session);
            let told = (0..state.writers.len()).filter(|slot| open(*slot)).map(|slot| state.writers[slot].told);
            told.fold(0, |all, told| all | told) & head.dropped == 0
        }),
        always(SESSIONS_UNDISTURBED, |config, state| {
            let head = state.head(config);
            head.sessions.iter().flatten().all(|session| session.young & head.doomed == 0)
        }),
        always(PARENTS_WHOLE, |config, state| {
            let writers = &state.head(config).sessions[..config.jobs.len()];
            let pins = writers.iter().flatten().map(|session| session.pins);
            whole(config, state, pins.fold(0, |all, pins| all | pins))
        }),
        always(READERS_READ, |config, state| {
            let head = state.head(config);
            let pins = head.sessions[READER as usize].map_or(0, |session| session.pins);
            state.reader != ReaderPhase::Broken && whole(config, state, pins)
        }),
        always(PLACES_STAY, places_stay),
        always(REPLAYERS_AGREE, |_, state| state.views.iter().all(|view| !view.astray)),
        always(NAMES_UNIQUE, |config, state| state.head(config).revived == 0),
        always(LOG_SURVIVES_A_DIGEST, |_, state| {
            let before_newest = state.digests.iter().rev().nth(1).copied().unwrap_or(0);
            state.pruned <= before_newest
        }),
        always(ONE_SWEEP, |config, state| !state.head(config).superseded_doomed),
        sometimes(SWEPT, |config, state| {
            let head = state.head(config);
            config.sweeps.is_empty() || head.dropped & !state.stored != 0
        }),
        sometimes(BACKED_UP, |config, state| config.jobs.is_empty() || state.acknowledged != 0),
    ]
}

fn whole(config: &Config, state: &State, points: Points) -> bool {
    if points == 0 {
        return true;
    }
    let head = state.head(config);
    // What damage alone has taken is nobody's fault; what it left in a doomed pack is read from there, and copied.
    let saved = |chunk: u8| {
        head.rotten & bit8(chunk) != 0
            || head.suspects.iter().any(|suspects| suspects & bit8(chunk) != 0)
                && packs_of(head.doomed).any(|pack| config.holds(state, &head, pack, chunk))
    };
    chunks_of(config.chunks_of(points)).all(|chunk| config.readable(state, &head, chunk) || saved(chunk))
}

fn places_stay(config: &Config, state: &State) -> bool {
    let Some(reading) = config.reading else {
        return true;
    };
    let open = state.reader == ReaderPhase::Reading && state.head(config).is_open(READER, 1);
    if !open || !config.rules.has(Clause::ReaderPins) {
        return true;
    }
    let known = state.known(config, READER);
    chunks_of(config.chunks_of(bit8(reading.point))).all(|chunk| config.readable(state, &known, chunk))
}

// With the types spelled out, the closures above need none.
fn always(name: &'static str, condition: fn(&Config, &State) -> bool) -> Property<Config> {
    Property::always(name, condition)
}

fn sometimes(name: &'static str, condition: fn(&Config, &State) -> bool) -> Property<Config> {
    Property::sometimes(name, condition)
}
