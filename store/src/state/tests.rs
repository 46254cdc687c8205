//! The rules of the repository protocol as far as the log alone decides them, each with a test that fails without it;
//! and the state as a fold.

use super::testing::*;
use super::*;
use proptest::prelude::*;

const W: (WriterId, u64) = (A, 1);

/// Points 1 and 2, packs 1 and 2, no open session, a sweep begun.
fn kept() -> State {
    let mut state = begun();
    let first = vec![opened(1, true, &[]), added(&[1]), committed(1, 1), Event::SessionClosed(session(1))];
    assert_eq!(apply(&mut state, W, first), []);
    let second = vec![opened(2, true, &[1]), added(&[2]), committed(2, 2), Event::SessionClosed(session(2))];
    assert_eq!(apply(&mut state, W, second), []);
    assert_eq!(apply(&mut state, W, vec![Event::SweepBegun(TOKEN)]), []);
    state
}

#[test]
fn r1_what_an_ended_session_commits_is_void() {
    let mut state = begun();
    assert_eq!(apply(&mut state, W, vec![opened(1, true, &[])]), []);
    assert_eq!(apply(&mut state, (B, 1), vec![Event::SessionFenced(session(1))]), []);
    assert_eq!(apply(&mut state, W, vec![added(&[1]), committed(1, 1)]), [Void::Session]);
    assert!(state.points().is_empty());
    // Nor somebody else's session, nor a reader's.
    assert_eq!(apply(&mut state, W, vec![opened(2, true, &[]), opened(3, false, &[])]), []);
    assert_eq!(apply(&mut state, (B, 1), vec![committed(2, 2)]), [Void::Session]);
    assert_eq!(apply(&mut state, W, vec![committed(3, 3)]), [Void::Session]);
    assert_eq!(apply(&mut state, (B, 1), vec![Event::SessionClosed(session(2))]), [Void::Session]);
    assert_eq!(apply(&mut state, W, vec![committed(2, 2), committed(2, 2)]), [Void::PointTwice]);
}

#[test]
fn r1_a_writer_whose_term_is_over_states_nothing() {
    let mut state = begun();
    assert_eq!(apply(&mut state, W, vec![opened(1, true, &[])]), []);
    assert_eq!(apply(&mut state, (A, 3), vec![Event::WriterTerm]), [Void::Term], "terms are not skipped");
    assert_eq!(apply(&mut state, (A, 2), vec![Event::WriterTerm]), []);
    assert!(state.sessions().is_empty(), "its sessions have ended");
    let all = vec![Event::WriterTerm, opened(2, true, &[]), added(&[1]), committed(1, 1), Event::Role(1)];
    assert_eq!(apply(&mut state, W, all), [Void::Term; 5]);
    assert_eq!(apply(&mut state, (A, 3), vec![added(&[1])]), [Void::Term], "a term that was not begun");
    assert_eq!(state.term(A), 2);
    assert!(state.packs().is_empty());
}

#[test]
fn r1_a_doom_that_came_first_ends_the_sweep_it_belongs_to_only() {
    let mut state = kept();
    let marked = state.end().sequence;
    assert_eq!(apply(&mut state, (B, 1), vec![Event::SweepBegun([8; 16])]), []);
    assert_eq!(apply(&mut state, W, vec![doomed(marked, &[], &[1], &[])]), [Void::Sweep], "a second sweep supersedes");
    assert_eq!(apply(&mut state, W, vec![Event::SweepEnded(TOKEN)]), [Void::Sweep]);
    assert!(state.is_live(0));
}

#[test]
fn r3_a_digest_accounts_for_a_writer_term_and_record() {
    let mut state = begun();
    let before = state.end();
    assert!(state.accounts_for(B, 1, before));
    apply(&mut state, W, vec![Event::Role(1)]);
    assert!(state.accounts_for(A, 1, state.end()) && state.accounts_for(B, 1, before));
    // The same writer's next process says nothing about a record of the one before.
    apply(&mut state, (A, 2), vec![Event::WriterTerm]);
    assert!(!state.accounts_for(A, 1, state.end()) && !state.accounts_for(A, 1, before));
    // A record of a term that is over, or was never begun, proves nothing about its writer and begins none.
    let (end, writers) = (state.end(), state.writers().clone());
    for (author, events) in [
        (W, vec![Event::Role(2)]),
        ((A, 3), vec![Event::Role(2)]),
        ((A, 4), vec![Event::WriterTerm, Event::Role(2)]),
        ((A, u64::MAX), vec![Event::Unknown { code: 900, critical: false }]),
        ((A, 3), Vec::new()),
        ((WriterId([0xc; 16]), 1), vec![Event::Role(2)]),
        ((WriterId([0xc; 16]), 7), vec![Event::WriterTerm]),
    ] {
        let void = vec![Void::Term; events.len()];
        assert_eq!(apply(&mut state, author, events), void);
    }
    assert!(state.accounts_for(A, 2, end));
    assert_eq!(*state.writers(), writers);
    // Readers count as long as they have a session.
    apply(&mut state, (READER, 0), vec![opened(1, false, &[])]);
    assert!(state.accounts_for(READER, 0, state.end()));
    apply(&mut state, (READER, 0), vec![Event::SessionClosed(session(1))]);
    assert!(!state.writers().contains_key(&READER));
}

#[test]
fn r4_no_pack_name_comes_twice() {
    let mut state = kept();
    assert_eq!(apply(&mut state, W, vec![added(&[1])]), [Void::PackTwice]);
    assert_eq!(apply(&mut state, W, vec![added(&[3, 3])]), [Void::PackTwice]);
    let marked = state.end().sequence;
    assert_eq!(apply(&mut state, W, vec![doomed(marked, &[], &[1], &[])]), []);
    let marked = state.end().sequence;
    assert_eq!(apply(&mut state, W, vec![dropped(marked, &[], &[1], &[])]), []);
    assert!(state.was_dropped(&pack(1)) && state.pack_number(&pack(1)).is_none());
    assert_eq!(apply(&mut state, W, vec![added(&[1])]), [Void::PackTwice], "a late delete would take it along");
    assert_eq!(apply(&mut state, W, vec![added(&[3])]), []);
    assert_eq!(state.pack_number(&pack(3)), Some(2), "numbers are not used again");
}

#[test]
fn r5_orphans_are_dropped_when_their_writers_term_is_over() {
    let mut state = kept();
    let marked = state.end().sequence;
    let drop = |number, term| dropped(marked, &[], &[], &[(number, A, term)]);
    assert_eq!(apply(&mut state, (B, 1), vec![drop(5, 1)]), [Void::InUse]);
    apply(&mut state, (A, 2), vec![Event::WriterTerm]);
    assert_eq!(apply(&mut state, (B, 1), vec![drop(5, 2)]), [Void::InUse]);
    assert_eq!(apply(&mut state, (B, 1), vec![drop(1, 1)]), [Void::InUse], "it is in the log");
    assert_eq!(apply(&mut state, (B, 1), vec![drop(5, 1)]), []);
    assert_eq!(apply(&mut state, (A, 2), vec![added(&[5])]), [Void::PackTwice], "the log decided between the two");
}

#[test]
fn r6_packs_younger_than_the_oldest_session_are_not_doomed() {
    let mut state = kept();
    assert_eq!(apply(&mut state, (B, 1), vec![opened(4, true, &[])]), []);
    assert_eq!(apply(&mut state, W, vec![added(&[4])]), []);
    let marked = state.end().sequence;
    assert_eq!(apply(&mut state, W, vec![doomed(marked, &[], &[4], &[])]), [Void::TooYoung]);
    assert_eq!(apply(&mut state, W, vec![doomed(marked, &[], &[7], &[])]), [Void::NoPack]);
    // Older than the session, but younger than the mark.
    assert_eq!(apply(&mut state, W, vec![doomed(2, &[1, 2], &[2], &[])]), [Void::TooYoung]);
    assert_eq!(apply(&mut state, W, vec![doomed(marked, &[], &[1], &[])]), []);
    assert!(!state.is_live(0) && state.is_live(1));
}

#[test]
fn r6_what_became_a_root_after_the_mark_was_marked_too() {
    let mut state = kept();
    let marked = state.end().sequence;
    let late = vec![opened(3, true, &[1]), committed(3, 3), Event::SessionClosed(session(3))];
    assert_eq!(apply(&mut state, W, late), []);
    assert_eq!(apply(&mut state, W, vec![doomed(marked, &[], &[2], &[])]), [Void::NotMarked], "a point");
    assert_eq!(apply(&mut state, W, vec![opened(4, false, &[1])]), []);
    assert_eq!(apply(&mut state, W, vec![doomed(marked, &[3], &[2], &[])]), [Void::NotMarked], "a pin");
    assert_eq!(apply(&mut state, W, vec![doomed(marked, &[3, 1], &[2], &[])]), []);
    // The same for the second look.
    let seen = state.end().sequence;
    assert_eq!(apply(&mut state, W, vec![Event::SessionClosed(session(4)), opened(5, false, &[2])]), []);
    assert_eq!(apply(&mut state, W, vec![dropped(seen, &[], &[2], &[])]), [Void::NotMarked]);
    assert_eq!(apply(&mut state, W, vec![dropped(seen, &[2], &[2], &[])]), []);
    // And for what was forgotten at the mark and came back.
    let mut state = kept();
    apply(&mut state, W, vec![Event::Forgotten(vec![point(1)])]);
    let marked = state.end().sequence;
    apply(&mut state, W, vec![Event::Unforgotten(vec![point(1)])]);
    assert_eq!(apply(&mut state, W, vec![doomed(marked, &[], &[1], &[])]), [Void::NotMarked]);
}

#[test]
fn r6_a_session_from_before_the_doom_keeps_its_packs() {
    let mut state = kept();
    assert_eq!(apply(&mut state, (B, 1), vec![opened(4, true, &[])]), []);
    let marked = state.end().sequence;
    assert_eq!(apply(&mut state, W, vec![doomed(marked, &[], &[1], &[])]), []);
    let seen = state.end().sequence;
    assert_eq!(
        apply(&mut state, W, vec![dropped(seen, &[], &[1], &[])]),
        [Void::InUse],
        "it may have been told \"have\""
    );
    assert_eq!(apply(&mut state, W, vec![dropped(seen, &[], &[2], &[])]), [Void::InUse], "it is not doomed");
    assert_eq!(apply(&mut state, W, vec![Event::SessionFenced(session(4))]), []);
    assert_eq!(apply(&mut state, W, vec![dropped(marked, &[], &[1], &[])]), [Void::InUse], "checked before the doom");
    assert_eq!(apply(&mut state, W, vec![dropped(seen, &[], &[1], &[])]), []);
}

#[test]
fn r10_readers_pin_and_do_nothing_else() {
    let mut state = kept();
    let reader = (READER, 0);
    assert_eq!(apply(&mut state, reader, vec![opened(4, true, &[])]), [Void::Term], "a reader does not write");
    assert_eq!(apply(&mut state, reader, vec![opened(4, false, &[8])]), [Void::NoPoint]);
    assert_eq!(apply(&mut state, reader, vec![opened(4, false, &[1])]), []);
    assert_eq!(apply(&mut state, (B, 1), vec![opened(4, false, &[])]), [Void::SessionTwice]);
    let not_theirs = vec![added(&[8]), committed(8, 4), Event::Role(1), Event::SessionFenced(session(4))];
    assert_eq!(apply(&mut state, reader, not_theirs), [Void::Term; 4]);
    assert_eq!(apply(&mut state, (WriterId([0xf; 16]), 0), vec![Event::SessionClosed(session(4))]), [Void::Session]);
    // Their pins are roots, and they hold packs as writers do.
    apply(&mut state, W, vec![Event::Forgotten(vec![point(1)])]);
    let marked = state.end().sequence;
    assert_eq!(apply(&mut state, W, vec![doomed(marked, &[], &[1], &[1])]), [Void::Protected]);
    assert_eq!(apply(&mut state, W, vec![doomed(marked, &[], &[1], &[])]), []);
    let seen = state.end().sequence;
    assert_eq!(apply(&mut state, W, vec![dropped(seen, &[], &[1], &[])]), [Void::InUse]);
    let damage = Event::ChunkSuspect(ChunkId([1; 32]), pack(2));
    assert_eq!(
        apply(&mut state, reader, vec![damage, Event::SessionClosed(session(4))]),
        [],
        "they may tell of damage"
    );
    assert_eq!(apply(&mut state, W, vec![dropped(seen, &[], &[1], &[])]), []);
}

#[test]
fn r11_a_doom_makes_forgotten_points_final() {
    let mut state = kept();
    assert_eq!(apply(&mut state, W, vec![Event::Forgotten(vec![point(1)])]), []);
    assert_eq!(apply(&mut state, W, vec![Event::Unforgotten(vec![point(1)])]), []);
    assert_eq!(apply(&mut state, W, vec![Event::Forgotten(vec![point(1)])]), []);
    let marked = state.end().sequence;
    assert_eq!(apply(&mut state, W, vec![doomed(marked, &[], &[1], &[])]), [Void::NotMarked], "it must say which");
    assert_eq!(apply(&mut state, W, vec![doomed(marked, &[], &[1], &[1, 2])]), [Void::Protected], "2 is not forgotten");
    assert_eq!(apply(&mut state, W, vec![doomed(marked, &[], &[1], &[1])]), []);
    assert_eq!(apply(&mut state, W, vec![Event::Unforgotten(vec![point(1)])]), [Void::NoPoint]);
}

#[test]
fn protected_and_pinned_points_are_not_forgotten() {
    let mut state = kept();
    let last = vec![opened(9, true, &[]), committed(9, 9), Event::Pinned(vec![point(1)])];
    assert_eq!(apply(&mut state, W, last), []);
    for kept in [1, 9] {
        assert_eq!(apply(&mut state, W, vec![Event::Forgotten(vec![point(2), point(kept)])]), [Void::Protected]);
    }
    assert!(state.points().values().all(|point| point.forgotten.is_none()));
    assert_eq!(apply(&mut state, W, vec![Event::Unpinned(vec![point(1)]), Event::Forgotten(vec![point(1)])]), []);
}

#[test]
fn r12_critical_unknown_events_are_remembered() {
    let mut state = begun();
    assert_eq!(apply(&mut state, W, vec![Event::Unknown { code: 900, critical: false }]), []);
    assert!(state.not_understood().is_empty());
    assert_eq!(apply(&mut state, W, vec![Event::Unknown { code: 900, critical: true }]), []);
    assert!(state.not_understood().contains(&900));
}

#[test]
fn b8_what_later_versions_add_to_sessions_and_points_stays() {
    let mut state = begun();
    let both = vec![opened(1, true, &[]), opened(2, true, &[]), committed(2, 1), committed(3, 2)];
    assert_eq!(apply(&mut state, W, both), []);
    let digest = Digest::new(CONFIG.to_vec(), state);
    let read = Digest::decode(&digest.encode()).unwrap();
    assert_eq!(read, digest);
    assert_eq!(read.encode(), digest.encode());
    let sessions: Vec<_> = read.state.sessions().values().map(|it| it.opened.extensions.as_slice()).collect();
    let points: Vec<_> = read.state.points().values().map(|it| it.committed.extensions.as_slice()).collect();
    assert_eq!((sessions, points), (vec![EXTENSION, b""], vec![EXTENSION, b""]));
    // One that must be understood is not passed over.
    for at in 0..digest.encode().len() - EXTENSION.len() {
        let mut bytes = digest.encode();
        if bytes[at..].starts_with(EXTENSION) {
            bytes[at + 2] = 1;
            assert!(matches!(Digest::decode(&sealed(bytes)), Err(RecordError::Newer { .. })), "byte {at}");
        }
    }
}

#[test]
fn an_empty_value_removes_a_setting_or_label() {
    let mut state = kept();
    let set = |key: &str, value: &str| Event::Configuration(key.into(), value.into());
    let label = |key: &str, value: &str| Event::Annotated(point(1), key.into(), value.into());
    let before = (state.settings.clone(), state.points()[&point(1)].labels.clone());
    assert_eq!(apply(&mut state, W, vec![set("keep", "7"), set("hold", "1"), label("why", "x"), set("none", "")]), []);
    assert_eq!(state.settings, [("hold", "1"), ("keep", "7")].map(|(key, value)| (key.into(), value.into())).into());
    assert_eq!(apply(&mut state, W, vec![set("keep", ""), set("hold", ""), label("why", "")]), []);
    assert_eq!((state.settings.clone(), state.points()[&point(1)].labels.clone()), before);
}

#[test]
fn a_session_pins_each_point_once() {
    let mut state = kept();
    assert_eq!(apply(&mut state, W, vec![opened(4, false, &[2, 1, 2, 1])]), []);
    assert_eq!(state.sessions()[&session(4)].opened.pins, [point(1), point(2)]);
}

/// The bytes with a hash that is right.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let body = bytes.len() - 32;
    let hash = mover::digest(&bytes[..body]);
    bytes[body..].copy_from_slice(&hash);
    bytes
}

/// A state with two of everything that a digest lists.
fn two_of_each() -> State {
    let mut state = kept();
    let seen = |sequence| LogHead { sequence, hash: [1; 32] };
    let set = |key: &str, value: &str| Event::Configuration(key.into(), value.into());
    let label = |key: &str, value: &str| Event::Annotated(point(1), key.into(), value.into());
    let events = vec![
        opened(4, true, &[1, 2]),
        opened(5, false, &[1]),
        added(&[3, 4]),
        Event::ChunkSuspect(ChunkId([8; 32]), pack(1)),
        Event::ChunkSuspect(ChunkId([8; 32]), pack(2)),
        set("a", "1"),
        set("b", "2"),
        label("c", "1"),
        label("d", "2"),
        Event::PeerSeen(mover::RepositoryId([8; 16]), seen(5)),
        Event::PeerSeen(mover::RepositoryId([9; 16]), seen(5)),
        Event::NewIncarnation(seen(10)),
        Event::NewIncarnation(seen(11)),
        Event::Unknown { code: 900, critical: true },
        Event::Unknown { code: 901, critical: true },
        dropped(state.end().sequence, &[1, 2], &[], &[(8, A, 0), (9, A, 0)]),
    ];
    assert_eq!(apply(&mut state, W, events), []);
    state
}

#[test]
fn digests_with_anything_twice_or_out_of_order_are_refused() {
    let digest = Digest::new(CONFIG.to_vec(), two_of_each());
    let bytes = digest.encode();
    assert_eq!(Digest::decode(&bytes), Ok(digest.clone()));
    // Each pair of neighbours by its encoding: given twice, or exchanged, it is another way to say the same.
    let text = |key: &str, value: &str| {
        let mut to = mover::RecordWriter::new();
        to.text(key).text(value);
        to.finish()
    };
    let suspect = |number: u8| [[8; 32], [number; 32]].concat();
    let end = |sequence: u64| [&sequence.to_le_bytes()[..], &[1; 32]].concat();
    let lost = |sequence: u64| [end(sequence), digest.state.end.sequence.to_le_bytes().to_vec()].concat();
    let peer = |number: u8| [&[number; 16][..], &end(5)].concat();
    let pairs: Vec<(&str, Vec<u8>, Vec<u8>)> = vec![
        ("pins", vec![1; 16], vec![2; 16]),
        ("dropped", vec![8; 32], vec![9; 32]),
        ("labels", text("c", "1"), text("d", "2")),
        ("suspects", suspect(1), suspect(2)),
        ("labels", text("a", "1"), text("b", "2")),
        ("peers", peer(8), peer(9)),
        ("lost", lost(10), lost(11)),
        ("unknown events", 900u16.to_le_bytes().to_vec(), 901u16.to_le_bytes().to_vec()),
    ];
    for (field, first, second) in pairs {
        let list = [&2u32.to_le_bytes()[..], &first, &second].concat();
        let at: Vec<usize> = (0..bytes.len() - list.len()).filter(|at| bytes[*at..].starts_with(&list)).collect();
        assert_eq!(at.len(), 1, "{field}");
        for items in [[&second, &first], [&first, &first]] {
            let mut bad = bytes.clone();
            bad[at[0] + 4..at[0] + list.len()].copy_from_slice(&items.map(Vec::as_slice).concat());
            assert_eq!(Digest::decode(&sealed(bad)), Err(RecordError::Order { field }));
        }
    }
    // Lists of longer items: what begins the second is made to begin like the first, or before it.
    let packs = |number: u32, name: u8| [&number.to_le_bytes()[..], &[name; 32]].concat();
    let session = |number: u8| [&[number; 16][..], &[u8::from(number == 4)], &[4; 16], &[number; 16]].concat();
    let points = |by: u8| [&[by; 16][..], &[by; 16], &[by; 32]].concat();
    let point = |by: u8, id: u8| [&[by; 16][..], &[id; 16], &[2; 32]].concat();
    let own = |id: WriterId, term: u64| [&id.0[..], &term.to_le_bytes()].concat();
    for (field, second, instead) in [
        ("writers", own(B, 1), own(A, 1)),
        ("sessions", session(5), session(4)),
        ("sessions", session(5), session(3)),
        ("packs", packs(1, 2), packs(0, 2)),
        ("points", points(2), point(2, 1)),
        ("points", points(2), point(2, 0)),
    ] {
        let at: Vec<usize> = (0..bytes.len() - second.len()).filter(|at| bytes[*at..].starts_with(&second)).collect();
        assert_eq!(at.len(), 1, "{field}");
        let mut bad = bytes.clone();
        bad[at[0]..at[0] + second.len()].copy_from_slice(&instead);
        assert_eq!(Digest::decode(&sealed(bad)), Err(RecordError::Order { field }));
    }
    let mut removed = digest.clone();
    removed.state.settings.insert("a".into(), String::new());
    assert!(matches!(Digest::decode(&removed.encode()), Err(RecordError::Value { field: "label", .. })));
    // Packs besides their numbers: a name twice, a name that was dropped, a number that is still to come.
    let mut twice = digest.clone();
    twice.state.packs.get_mut(&1).unwrap().added.name = pack(1);
    let mut back = digest.clone();
    back.state.dropped.insert(pack(2));
    let mut early = digest;
    early.state.next_pack = 3;
    for bad in [twice, back, early] {
        assert!(matches!(Digest::decode(&bad.encode()), Err(RecordError::Value { field: "packs", .. })));
    }
}

#[test]
fn a_digest_is_written_within_its_limit_or_not() {
    let digest = Digest::new(CONFIG.to_vec(), kept());
    let bytes = digest.encode();
    assert_eq!(digest.encode_within(bytes.len() as u64), Some(bytes.clone()));
    assert_eq!(digest.encode_within(bytes.len() as u64 - 1), None);
}

#[test]
fn r14_a_log_belongs_to_its_configuration() {
    let (first, end) = record(&empty(), W, vec![Event::WriterTerm]);
    let mut other = State::new(REPOSITORY, b"another configuration");
    assert!(other.apply(&first, end.hash).is_err());
    let mut stranger = State::new(mover::RepositoryId([2; 16]), CONFIG);
    assert!(stranger.apply(&first, end.hash).is_err());
    assert_eq!(empty().apply(&first, end.hash), Ok(Vec::new()));
}

#[test]
fn r15_a_part_that_was_given_up_is_known() {
    let mut state = begun();
    let seen = |sequence| LogHead { sequence, hash: [1; 32] };
    assert!(!state.gave_up(seen(3)));
    assert_eq!(apply(&mut state, W, vec![Event::NewIncarnation(seen(10))]), []);
    assert!(!state.gave_up(seen(2)), "what stayed must be as it was");
    assert!((3..=10).all(|sequence| state.gave_up(seen(sequence))));
    assert!(!state.gave_up(seen(11)), "nobody knew of more");
}

#[test]
fn records_come_in_order_or_not_at_all() {
    let state = begun();
    let (next, end) = record(&state, W, vec![Event::Role(1)]);
    for change in [
        (|it: &mut LogRecord| it.sequence += 1) as fn(&mut LogRecord),
        |it| it.sequence -= 1,
        |it| it.previous[0] ^= 1,
        |it| it.repository.0[0] ^= 1,
    ] {
        let mut wrong = next.clone();
        change(&mut wrong);
        let mut same = state.clone();
        assert!(same.apply(&wrong, end.hash).is_err());
        assert_eq!(same, state, "a refused record changes nothing");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Everybody has the same state, whether they replay, follow, or begin with any digest on the way.
    #[test]
    fn the_state_is_a_fold(history in histories()) {
        let mut state = empty();
        let mut records = Vec::new();
        let mut states = vec![state.clone()];
        for (author, events) in history {
            let (made, end) = record(&state, author, events);
            state.apply(&made, end.hash).unwrap();
            records.push((made, end));
            states.push(state.clone());
        }
        for (at, then) in states.iter().enumerate() {
            let digest = Digest::new(CONFIG.to_vec(), then.clone());
            let bytes = digest.encode();
            let read = Digest::decode(&bytes).unwrap();
            prop_assert_eq!(&read, &digest);
            prop_assert_eq!(read.encode(), bytes, "canonical");
            let mut replayed = read.state;
            for (made, end) in &records[at..] {
                replayed.apply(made, end.hash).unwrap();
            }
            prop_assert_eq!(&replayed, &state);
        }
    }

    /// What holds after any history, however void.
    #[test]
    fn invariants(history in histories()) {
        let mut state = empty();
        let mut dropped = BTreeSet::new();
        for (author, events) in history {
            let before = state.clone();
            apply(&mut state, author, events);
            for (number, pack) in state.packs() {
                prop_assert!(*number < state.next_pack && state.pack_number(&pack.added.name) == Some(*number));
                prop_assert!(!state.was_dropped(&pack.added.name) && !dropped.contains(&pack.added.name));
            }
            prop_assert_eq!(state.packs().len(), state.numbers.len());
            prop_assert!(state.dropped.is_superset(&dropped));
            dropped = state.dropped.clone();
            prop_assert!(state.suspects().iter().all(|(_, pack)| state.pack_number(pack).is_some()));
            for (id, session) in state.sessions() {
                prop_assert_eq!(session.opened.session, *id);
                prop_assert_eq!(session.term, state.term(session.writer), "sessions end with their term");
            }
            // A point that a session pinned before the record and after it is still there.
            for (id, session) in before.sessions().iter().filter(|(id, _)| state.sessions().contains_key(*id)) {
                let kept = session.opened.pins.iter().all(|pin| state.points().contains_key(pin));
                prop_assert!(kept, "pins of session {}", id);
            }
        }
    }

    /// What is read is what would be written: whatever was changed under a hash that is right.
    #[test]
    fn what_decodes_is_canonical(
        history in histories(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        extended in any::<bool>(),
    ) {
        let mut state = empty();
        for (author, events) in history {
            apply(&mut state, author, events);
        }
        let extensions = if extended { EXTENSION.to_vec() } else { Vec::new() };
        let digest = Digest { config: CONFIG.to_vec(), state, extensions };
        let mut bytes = digest.encode();
        prop_assert_eq!(Digest::decode(&bytes), Ok(digest));
        for (at, value) in changes {
            let at = at.index(bytes.len() - 32);
            bytes[at] = value;
        }
        let bytes = sealed(bytes);
        if let Ok(read) = Digest::decode(&bytes) {
            prop_assert_eq!(read.encode(), bytes);
        }
    }

    #[test]
    fn every_cut_and_flip_of_a_digest_is_refused(history in histories(), at in any::<prop::sample::Index>(), bit in 0..8u32) {
        let mut state = empty();
        for (author, events) in history {
            apply(&mut state, author, events);
        }
        let bytes = Digest::new(CONFIG.to_vec(), state).encode();
        let at = at.index(bytes.len());
        prop_assert!(Digest::decode(&bytes[..at]).is_err());
        let mut flipped = bytes;
        flipped[at] ^= 1 << bit;
        prop_assert!(Digest::decode(&flipped).is_err());
    }
}
