use super::super::record::{LogRecord, RECORD_BYTES_MAX};
use super::*;
use crate::state::testing::*;
use proptest::prelude::*;

/// One of each type; the match below stops compiling when one is added.
fn every_type() -> Vec<Event> {
    let seen = LogHead { sequence: 5, hash: [6; 32] };
    let all = vec![
        Event::WriterTerm,
        opened(1, true, &[1, 2]),
        Event::SessionClosed(session(1)),
        Event::SessionFenced(session(2)),
        added(&[1, 2]),
        committed(6, 1),
        Event::Forgotten(vec![point(1)]),
        Event::Unforgotten(vec![point(1), point(2)]),
        Event::Pinned(Vec::new()),
        Event::Unpinned(vec![point(3)]),
        Event::Annotated(point(1), "key".into(), "välue".into()),
        Event::ChunkSuspect(ChunkId([1; 32]), pack(2)),
        Event::ChunkHealed(ChunkId([3; 32]), pack(4)),
        Event::SweepBegun(TOKEN),
        doomed(4, &[1], &[2, 3], &[4]),
        dropped(5, &[1], &[2], &[(3, A, 9)]),
        Event::SweepEnded(TOKEN),
        Event::Role(1),
        Event::Configuration("key".into(), String::new()),
        Event::PeerSeen(REPOSITORY, seen),
        Event::NewIncarnation(seen),
        Event::Unknown { code: 22, critical: true },
    ];
    assert!((1..).zip(&all).all(|(code, event)| event.code() == code));
    all
}

fn encode(events: &[Event]) -> Vec<u8> {
    let mut to = RecordWriter::new();
    events.iter().for_each(|event| event.write(&mut to));
    to.finish()
}

#[test]
fn every_type_comes_back_and_no_cut_does() {
    for event in every_type() {
        let bytes = encode(std::slice::from_ref(&event));
        let mut from = RecordReader::new(&bytes);
        assert_eq!(Event::read(&mut from), Ok(event.clone()));
        assert_eq!(from.remaining(), 0);
        for cut in 0..bytes.len() {
            assert!(Event::read(&mut RecordReader::new(&bytes[..cut])).is_err(), "{event:?} cut at {cut}");
            // The body cut, with a length that says so.
            let Some(body) = cut.checked_sub(8).filter(|_| event.code() != 22) else { continue };
            let mut short = bytes[..cut].to_vec();
            short[4..8].copy_from_slice(&u32::try_from(body).unwrap().to_le_bytes());
            assert!(Event::read(&mut RecordReader::new(&short)).is_err(), "{event:?} with a body of {body}");
        }
        // A byte more than there should be.
        let mut long = bytes.clone();
        long.push(0);
        let length = u32::try_from(long.len() - 8).unwrap();
        long[4..8].copy_from_slice(&length.to_le_bytes());
        let read = Event::read(&mut RecordReader::new(&long));
        assert!(read.is_err() || event.code() == 22, "{event:?}");
    }
}

#[test]
fn hostile_counts_allocate_nothing() {
    // Counts of four thousand million items in a body of a few bytes, in each place that has a count.
    for event in every_type() {
        let bytes = encode(std::slice::from_ref(&event));
        for at in 8..bytes.len().saturating_sub(3) {
            let mut bad = bytes.clone();
            bad[at..at + 4].fill(0xff);
            let _ = Event::read(&mut RecordReader::new(&bad));
        }
    }
    let mut record = vec![0xff; RECORD_BYTES_MAX + 1];
    assert!(LogRecord::decode(&record).is_err(), "longer than can be");
    record.truncate(100);
    assert!(LogRecord::decode(&record).is_err());
}

#[test]
fn every_flip_and_cut_of_a_record_is_refused() {
    let (record, end) = record(&begun(), (A, 1), every_type());
    let bytes = record.encode();
    assert_eq!(LogRecord::decode(&bytes), Ok((record, end)));
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 0x10;
        assert!(LogRecord::decode(&bad).is_err(), "byte {at}");
        assert!(LogRecord::decode(&bytes[..at]).is_err(), "cut at {at}");
    }
}

#[test]
fn b8_extensions_of_sessions_and_points_are_kept() {
    for event in [opened(1, true, &[1]), committed(2, 1)] {
        let bytes = encode(std::slice::from_ref(&event));
        assert!(bytes.ends_with(EXTENSION));
        let read = Event::read(&mut RecordReader::new(&bytes)).unwrap();
        assert_eq!((encode(std::slice::from_ref(&read)), read), (bytes.clone(), event));
        let mut critical = bytes;
        let flags = critical.len() - EXTENSION.len() + 2;
        critical[flags] = 1;
        assert!(matches!(Event::read(&mut RecordReader::new(&critical)), Err(RecordError::Newer { .. })));
    }
}

#[test]
fn a_newer_record_is_told_apart() {
    let bytes = record(&begun(), (A, 1), vec![Event::WriterTerm]).0.encode();
    for at in [8, 10] {
        let mut newer = bytes[..bytes.len() - 32].to_vec();
        newer[at] += 1;
        let hash = mover::digest(&newer);
        newer.extend(hash);
        assert!(matches!(LogRecord::decode(&newer), Err(RecordError::Newer { .. })));
    }
}

proptest! {
    #[test]
    fn random_events_come_back(events in prop::collection::vec(events(), 0..20)) {
        let (record, end) = record(&begun(), (A, 1), events);
        prop_assert_eq!(LogRecord::decode(&record.encode()), Ok((record, end)));
    }

    #[test]
    fn random_bytes_are_no_reason_to_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), code in 0..24u16) {
        let _ = Event::read(&mut RecordReader::new(&bytes));
        if bytes.len() > 8 {
            let length = u32::try_from(bytes.len() - 8).unwrap();
            bytes[..2].copy_from_slice(&code.to_le_bytes());
            bytes[4..8].copy_from_slice(&length.to_le_bytes());
            let _ = Event::read(&mut RecordReader::new(&bytes));
        }
        let _ = LogRecord::decode(&bytes);
        let _ = crate::state::Digest::decode(&bytes);
        // Behind a hash that is right.
        for magic in [&b"WLLOGREC"[..], b"WLDIGEST"] {
            let mut sealed = [magic, &[1, 0, 0, 0], &bytes].concat();
            sealed.extend(mover::digest(&sealed));
            let _ = LogRecord::decode(&sealed);
            let _ = crate::state::Digest::decode(&sealed);
        }
    }
}
