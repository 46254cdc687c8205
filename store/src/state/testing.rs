//! Shared by the unit tests of state, log and formats: sets of a few ids, so that random events often concern the same
//! ones.

use crate::format::event::{AddedPack, CommittedPoint, Doomed, Dropped, Event, Orphan, SessionOpened};
use crate::format::pack::{PackKind, PackName};
use crate::format::record::LogRecord;
use crate::state::{State, Void};
use chunker::ChunkId;
use mover::{GroupId, LogHead, MachineId, OwnerId, PointId, RepositoryId, SessionId, Timestamp, WriterId};
use proptest::prelude::*;

pub const CONFIG: &[u8] = b"some configuration";
pub const REPOSITORY: RepositoryId = RepositoryId([1; 16]);
/// The directory's writer, another one, and a reader.
pub const A: WriterId = WriterId([0xa; 16]);
pub const B: WriterId = WriterId([0xb; 16]);
pub const READER: WriterId = WriterId([0xe; 16]);
pub const TOKEN: [u8; 16] = [7; 16];
/// An extension that need not be understood: tag 9, flags 0, length 3.
pub const EXTENSION: &[u8] = b"\x09\0\0\0\x03\0\0\0abc";

pub fn empty() -> State {
    State::new(REPOSITORY, CONFIG)
}

/// The next record, with the hash it will have.
pub fn record(state: &State, (writer, term): (WriterId, u64), events: Vec<Event>) -> (LogRecord, LogHead) {
    let record = LogRecord {
        sequence: state.end().sequence + 1,
        previous: state.end().hash,
        repository: state.repository(),
        writer,
        term,
        nonce: [3; 16],
        time: Timestamp(1_000 + i64::try_from(state.end().sequence).unwrap()),
        events,
    };
    let (decoded, end) = LogRecord::decode(&record.encode()).unwrap();
    assert_eq!(decoded, record);
    (record, end)
}

/// Applies a record; the reasons of void events.
pub fn apply(state: &mut State, author: (WriterId, u64), events: Vec<Event>) -> Vec<Void> {
    let (record, end) = record(state, author, events);
    state.apply(&record, end.hash).unwrap().into_iter().map(|(_, void)| void).collect()
}

/// A log in which A and B have begun term 1.
pub fn begun() -> State {
    let mut state = empty();
    for writer in [A, B] {
        assert_eq!(apply(&mut state, (writer, 1), vec![Event::WriterTerm]), []);
    }
    state
}

pub fn session(number: u8) -> SessionId {
    SessionId([number; 16])
}

pub fn point(number: u8) -> PointId {
    PointId([number; 16])
}

pub fn pack(number: u8) -> PackName {
    PackName([number; 32])
}

pub fn opened(number: u8, writes: bool, pins: &[u8]) -> Event {
    let pins = pins.iter().map(|pin| point(*pin)).collect();
    let (session, owner) = (session(number), OwnerId([4; 16]));
    // As a later version might have it.
    let extensions = if number.is_multiple_of(2) { Vec::new() } else { EXTENSION.to_vec() };
    Event::SessionOpened(SessionOpened { session, writes, owner, point: point(number), pins, extensions })
}

pub fn added(numbers: &[u8]) -> Event {
    let one = |number: &u8| AddedPack {
        name: pack(*number),
        kind: if number.is_multiple_of(2) { PackKind::Data } else { PackKind::Page },
        bytes: 1 << 20,
        chunks: 9,
    };
    Event::PacksAdded(numbers.iter().map(one).collect())
}

pub fn committed(number: u8, by: u8) -> Event {
    Event::PointCommitted(CommittedPoint {
        session: session(by),
        point: point(number),
        manifest: ChunkId([number; 32]),
        owner: OwnerId([4; 16]),
        machine: MachineId([5; 16]),
        machine_name: "web".parse().unwrap(),
        group: (number.is_multiple_of(2)).then_some(GroupId([6; 16])),
        snapshot_time: Timestamp(-5),
        origin: (number.is_multiple_of(3)).then_some((RepositoryId([8; 16]), Timestamp(9))),
        protected_until: Timestamp(if number == 9 { i64::MAX } else { 0 }),
        bytes_logical: 10,
        bytes_new: 11,
        extensions: if number.is_multiple_of(2) { EXTENSION.to_vec() } else { Vec::new() },
    })
}

pub fn doomed(marked: u64, marked_too: &[u8], packs: &[u8], finalised: &[u8]) -> Event {
    Event::Doomed(Doomed {
        token: TOKEN,
        marked,
        marked_too: marked_too.iter().map(|it| point(*it)).collect(),
        packs: packs.iter().map(|it| pack(*it)).collect(),
        finalised: finalised.iter().map(|it| point(*it)).collect(),
    })
}

pub fn dropped(marked: u64, marked_too: &[u8], packs: &[u8], orphans: &[(u8, WriterId, u64)]) -> Event {
    let orphan =
        |(number, writer, term): &(u8, WriterId, u64)| Orphan { name: pack(*number), writer: *writer, term: *term };
    Event::Dropped(Dropped {
        token: TOKEN,
        marked,
        marked_too: marked_too.iter().map(|it| point(*it)).collect(),
        packs: packs.iter().map(|it| pack(*it)).collect(),
        orphans: orphans.iter().map(orphan).collect(),
    })
}

/// Events of every type over so few ids that they meet.
pub fn events() -> impl Strategy<Value = Event> {
    let few = || prop::collection::vec(0..4u8, 0..3);
    let points = |of: fn(Vec<PointId>) -> Event| few().prop_map(move |ids| of(ids.into_iter().map(point).collect()));
    let text = || prop::sample::select(vec!["", "a", "käse"]).prop_map(str::to_owned);
    let seen = (0..20u64, any::<[u8; 2]>()).prop_map(|(sequence, hash)| LogHead { sequence, hash: [hash[0]; 32] });
    let one = 0..4u8;
    let token = prop::sample::select(vec![TOKEN, [9; 16]]);
    prop_oneof![
        3 => Just(Event::WriterTerm),
        4 => (one.clone(), any::<bool>(), few()).prop_map(|(id, writes, pins)| opened(id, writes, &pins)),
        2 => one.clone().prop_map(|id| Event::SessionClosed(session(id))),
        1 => one.clone().prop_map(|id| Event::SessionFenced(session(id))),
        4 => few().prop_map(|ids| added(&ids)),
        4 => (one.clone(), one.clone()).prop_map(|(id, by)| committed(id, by)),
        2 => points(Event::Forgotten),
        1 => points(Event::Unforgotten),
        1 => points(Event::Pinned),
        1 => points(Event::Unpinned),
        1 => (one.clone(), text(), text()).prop_map(|(id, key, value)| Event::Annotated(point(id), key, value)),
        1 => (one.clone(), one.clone()).prop_map(|(id, at)| Event::ChunkSuspect(ChunkId([id; 32]), pack(at))),
        1 => (one.clone(), one.clone()).prop_map(|(id, at)| Event::ChunkHealed(ChunkId([id; 32]), pack(at))),
        2 => token.clone().prop_map(Event::SweepBegun),
        3 => (0..30u64, few(), few(), few()).prop_map(|(at, too, packs, last)| doomed(at, &too, &packs, &last)),
        3 => (0..30u64, few(), few(), few()).prop_map(|(at, too, packs, orphans)| {
            dropped(at, &too, &packs, &orphans.iter().map(|id| (*id, A, 1)).collect::<Vec<_>>())
        }),
        1 => token.prop_map(Event::SweepEnded),
        1 => any::<u8>().prop_map(Event::Role),
        1 => (text(), text()).prop_map(|(key, value)| Event::Configuration(key, value)),
        1 => (one, seen.clone()).prop_map(|(id, seen)| Event::PeerSeen(RepositoryId([id; 16]), seen)),
        1 => seen.prop_map(Event::NewIncarnation),
        1 => (1_000..1_003u16, any::<bool>()).prop_map(|(code, critical)| Event::Unknown { code, critical }),
    ]
}

/// Records of several writers; many of them void, some as a whole.
pub fn histories() -> impl Strategy<Value = Vec<((WriterId, u64), Vec<Event>)>> {
    let author = (prop::sample::select(vec![A, B, READER]), 0..3u64);
    prop::collection::vec((author, prop::collection::vec(events(), 0..4)), 0..40)
}
