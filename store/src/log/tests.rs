//! The log in a directory: races, unclear answers, pruning, rollback.

use super::*;
use crate::directory::Directory;
use crate::format::event::Event;
use crate::io::{DiskIo, Fault, FaultIo, Io};
use crate::state::testing::{A, B, CONFIG, READER, REPOSITORY, TOKEN, opened, session};
use mover::{ErrorKind, World};
use std::collections::BTreeSet;
use std::path::Path;

const A1: Author = Author { writer: A, term: 1 };
const B1: Author = Author { writer: B, term: 1 };

fn directory(root: &Path, io: Arc<dyn Io>) -> Directory {
    Directory::new(root, io, World::system())
}

fn folder() -> (tempfile::TempDir, Directory) {
    let folder = tempfile::tempdir().unwrap();
    let made = directory(folder.path(), Arc::new(DiskIo));
    // Packs are no subject here.
    for name in ["log", "state", "incoming"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
    }
    (folder, made)
}

fn open(directory: &Directory) -> Result<CommitLog> {
    CommitLog::open(Arc::new(directory.clone()), World::system(), REPOSITORY, CONFIG.to_vec())
}

fn begin(log: &mut CommitLog, author: Author) {
    log.append(author, |_| Ok(vec![Event::WriterTerm])).unwrap();
}

fn role(log: &mut CommitLog, author: Author, role: u8) -> Result<Option<LogRecord>> {
    log.append(author, |_| Ok(vec![Event::Role(role)]))
}

/// Appends until the log ends at `sequence`.
fn fill(log: &mut CommitLog, author: Author, sequence: u64) {
    while log.state().end().sequence < sequence {
        role(log, author, 1).unwrap();
    }
}

fn write_digest(log: &mut CommitLog) {
    let name = ObjectName::Digest(log.state().end().sequence);
    assert!(log.write_digest(DIGEST_BYTES_MAX).unwrap());
    assert!(log.objects.read(name, DIGEST_BYTES_MAX).unwrap().is_some());
}

fn log_object(sequence: u64) -> String {
    ObjectName::Record(sequence).to_string()
}

fn state_object(sequence: u64) -> String {
    ObjectName::Digest(sequence).to_string()
}

fn records(root: &Path) -> Vec<u64> {
    let mut found: Vec<u64> = std::fs::read_dir(root.join("log"))
        .unwrap()
        .flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap())
        .map(|name| name.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    found.sort_unstable();
    found
}

#[test]
fn r1_two_that_race_make_one_chain() {
    let (_folder, directory) = folder();
    let each = 40;
    let made: Vec<Vec<LogRecord>> = std::thread::scope(|scope| {
        let racer = |author: Author| {
            let directory = directory.clone();
            scope.spawn(move || {
                let mut log = open(&directory).unwrap();
                begin(&mut log, author);
                // What it says depends on what came before, so it must be made again after each lost race.
                let next = |log: &mut CommitLog, number: u8| {
                    log.append(author, |state| {
                        let seen = state.end().sequence.to_string();
                        Ok(vec![Event::Role(number), Event::Configuration("after".into(), seen)])
                    })
                };
                (0..each).map(|number| next(&mut log, number).unwrap().unwrap()).collect()
            })
        };
        [racer(A1), racer(B1)].map(|racer| racer.join().unwrap()).into()
    });
    let log = open(&directory).unwrap();
    assert_eq!(log.state().end().sequence, 2 * u64::from(each) + 2, "each record once, no number left out");
    let mut seen = BTreeSet::new();
    for record in made.iter().flatten() {
        let (stored, _) = log.record(record.sequence).unwrap().unwrap();
        assert_eq!(stored, *record, "what was reported is what is there");
        assert!(seen.insert(record.sequence));
        let before = (record.sequence - 1).to_string();
        assert_eq!(record.events[1], Event::Configuration("after".into(), before), "made for the state before it");
    }
}

#[test]
fn r1_a_loser_validates_again() {
    let (_folder, directory) = folder();
    let (mut a, mut b) = (open(&directory).unwrap(), open(&directory).unwrap());
    begin(&mut a, A1);
    begin(&mut b, B1);
    a.append(A1, |_| Ok(vec![opened(1, true, &[])])).unwrap();
    let mut asked = 0;
    let refused = a.append(A1, |state| {
        asked += 1;
        if asked == 1 {
            // Between looking and creating, somebody fences the session.
            b.append(B1, |_| Ok(vec![Event::SessionFenced(session(1))])).unwrap();
            assert!(state.sessions().contains_key(&session(1)));
        }
        Ok(vec![Event::SessionClosed(session(1))])
    });
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(asked, 2);
    assert_eq!(open(&directory).unwrap().state().end().sequence, 4, "nothing void was written");
    // The same for a term that somebody took over meanwhile.
    let refused = a.append(A1, |state| {
        if state.term(A) == 1 {
            b.append(Author { writer: A, term: 2 }, |_| Ok(vec![Event::WriterTerm])).unwrap();
        }
        Ok(vec![Event::Role(1)])
    });
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Fenced);
}

#[test]
fn r2_after_an_unclear_answer_the_own_record_is_found() {
    let (folder, plain) = folder();
    let mut log = open(&plain).unwrap();
    begin(&mut log, A1);
    let appended = |after: u64, fault: Fault| {
        let io = Arc::new(FaultIo::new(DiskIo));
        let mut log = open(&directory(folder.path(), io.clone())).unwrap();
        let (before, start) = (log.state().end(), io.operations());
        io.plan(after, fault);
        let made = role(&mut log, A1, 9);
        (made, io.operations() > start + after, before, log)
    };
    for fault in [Fault::Fail, Fault::Full, Fault::Unclear] {
        for after in 0.. {
            let (made, struck, before, log) = appended(after, fault);
            let there = open(&plain).unwrap();
            match &made {
                Ok(made) => {
                    let made = made.as_ref().unwrap();
                    assert_eq!(log.state().end(), there.state().end());
                    assert_eq!(there.record(made.sequence).unwrap().unwrap().0, *made);
                }
                Err(error) => {
                    assert!([ErrorKind::StoreIo, ErrorKind::StoreFull].contains(&error.kind()), "{error}");
                    let known = log.state().end();
                    assert!(known == before || known == there.state().end(), "nothing is believed that is not known");
                    assert!(there.state().end().sequence <= before.sequence + 1);
                }
            }
            if !struck {
                assert!(made.is_ok() && after > 5);
                break;
            }
        }
    }
    // The answer to the one operation that decides is lost: that is no error at all.
    assert!((0..20).map(|after| appended(after, Fault::Unclear)).any(|(made, struck, _, _)| struck && made.is_ok()));
}

#[test]
fn r2_another_record_of_equal_content_is_not_the_own() {
    let (_folder, directory) = folder();
    let mut log = open(&directory).unwrap();
    begin(&mut log, A1);
    let first = role(&mut log, A1, 1).unwrap().unwrap();
    let second = role(&mut log, A1, 1).unwrap().unwrap();
    assert_ne!(first.nonce, second.nonce);
    let mut other = first.clone();
    other.nonce = second.nonce;
    let name = ObjectName::Record(first.sequence);
    assert_eq!(directory.create(name, &first.encode()).unwrap(), Created::New, "the same bytes: done already");
    assert_eq!(directory.create(name, &other.encode()).unwrap(), Created::Exists);
}

#[test]
fn r3_pruning_keeps_two_digests_and_what_lies_between() {
    let (folder, directory) = folder();
    let mut log = open(&directory).unwrap();
    begin(&mut log, A1);
    for at in [20, 40, 60] {
        fill(&mut log, A1, at);
        write_digest(&mut log);
    }
    fill(&mut log, A1, 70);
    let behind = {
        let mut behind = CommitLog { state: Arc::new(crate::state::testing::empty()), ..open(&directory).unwrap() };
        // A follower that has stopped at record 5.
        for sequence in 1..=5 {
            let (record, end) = behind.record(sequence).unwrap().unwrap();
            behind.apply(&record, end).unwrap();
        }
        behind
    };
    assert_eq!(log.prune(39).unwrap(), 0, "not worth it");
    assert_eq!(records(folder.path()).len(), 70);
    assert_eq!(log.prune(30).unwrap(), 39);
    assert_eq!(records(folder.path()), (40..=70).collect::<Vec<_>>());
    assert_eq!(log.objects.digests().unwrap(), [40, 60]);
    assert_eq!(log.prune(0).unwrap(), 0, "nothing left");
    assert_eq!(open(&directory).unwrap().state(), log.state());
    // With the newer digest gone the older one and the records do.
    std::fs::remove_file(folder.path().join(state_object(60))).unwrap();
    assert_eq!(open(&directory).unwrap().state(), log.state());
    let mut behind = behind;
    behind.catch_up().unwrap();
    assert_eq!(behind.state(), log.state(), "who was behind goes on from a digest");
    assert!(log.passed(LogHead { sequence: 5, hash: [0; 32] }).unwrap(), "what was pruned is believed");
}

#[test]
fn r3_nothing_is_pruned_that_is_not_proven() {
    let (folder, directory) = folder();
    let mut log = open(&directory).unwrap();
    begin(&mut log, A1);
    fill(&mut log, A1, 20);
    write_digest(&mut log);
    assert_eq!(log.prune(0).unwrap(), 0, "one digest is not enough");
    fill(&mut log, A1, 40);
    // A digest that says something else, and is sound as bytes.
    let mut wrong = State::clone(log.state());
    let lie = LogRecord { events: vec![Event::Role(77)], ..log.record(40).unwrap().unwrap().0 };
    let mut before = open(&directory).unwrap();
    before.state = Arc::new(crate::state::testing::empty());
    for sequence in 1..40 {
        let (record, end) = before.record(sequence).unwrap().unwrap();
        before.apply(&record, end).unwrap();
    }
    let before = Arc::make_mut(&mut before.state);
    before.apply(&lie, wrong.end().hash).unwrap();
    std::mem::swap(&mut wrong, before);
    let digest = Digest::new(CONFIG.to_vec(), wrong);
    directory.create(ObjectName::Digest(40), &digest.encode()).unwrap();
    assert_eq!(log.prune(0).unwrap_err().kind(), ErrorKind::Integrity);
    assert_eq!(records(folder.path()).len(), 40);
    // Nor where a record between the digests is missing.
    std::fs::remove_file(folder.path().join(state_object(40))).unwrap();
    write_digest(&mut log);
    std::fs::remove_file(folder.path().join(log_object(30))).unwrap();
    assert_eq!(log.prune(0).unwrap_err().kind(), ErrorKind::Integrity);
    assert_eq!(records(folder.path()).len(), 39);
}

/// A writer reads the log, and then others append many records and prune. After that the writer's create arrives, under
/// a number that is free again.
fn late(author: Author, events: Vec<Event>, takeover: Option<Author>) -> Result<Option<LogRecord>> {
    let (folder, directory) = folder();
    let (mut stale, mut other) = (open(&directory).unwrap(), open(&directory).unwrap());
    begin(&mut other, B1);
    if author.term > 0 {
        begin(&mut stale, author);
    }
    let mut gone_on = false;
    let made = stale.append(author, |state| {
        let end = state.end().sequence;
        if !gone_on {
            gone_on = true;
            if let Some(author) = takeover {
                begin(&mut other, author);
            }
            for at in [end + 20, end + 40] {
                fill(&mut other, B1, at);
                write_digest(&mut other);
            }
            assert!(other.prune(0).unwrap() > 0);
        }
        Ok(events.clone())
    });
    assert!(gone_on);
    let read = open(&directory).unwrap();
    assert_eq!(read.state().end().hash, other.state().end().hash, "nobody believes a record below the digests");
    drop(folder);
    made
}

#[test]
fn r3_a_stale_writer_is_fenced_by_the_digests() {
    let refused = late(A1, vec![Event::Role(5)], None);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Fenced);
}

#[test]
fn r3_the_next_process_of_the_same_writer_does_not_vouch_for_it() {
    let refused = late(A1, vec![Event::Role(5)], Some(Author { writer: A, term: 2 }));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Fenced);
}

#[test]
fn r3_a_stale_reader_has_no_session() {
    let reader = Author { writer: READER, term: 0 };
    let refused = late(reader, vec![opened(1, false, &[])], None);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Fenced);
}

#[test]
fn r3_digests_are_written_and_used() {
    let (folder, directory) = folder();
    let mut log = open(&directory).unwrap();
    begin(&mut log, A1);
    for _ in 0..DIGEST_RECORDS + 10 {
        role(&mut log, A1, 1).unwrap();
        log.digest_when_due().unwrap();
    }
    assert_eq!(log.objects.digests().unwrap(), [DIGEST_RECORDS]);
    let state = log.state().clone();
    // Nothing below it is read: the log opens without it.
    for sequence in 1..DIGEST_RECORDS {
        std::fs::remove_file(folder.path().join(log_object(sequence))).unwrap();
    }
    assert_eq!(*open(&directory).unwrap().state(), state);
    // Damaged, it is passed over, and then the log does not say enough.
    let path = folder.path().join(state_object(DIGEST_RECORDS));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert!(open(&directory).is_err() || *open(&directory).unwrap().state() != state);
}

#[test]
fn r3_a_state_that_no_digest_can_hold_stays_in_the_log() {
    let (folder, directory) = folder();
    let mut log = open(&directory).unwrap();
    begin(&mut log, A1);
    fill(&mut log, A1, 20);
    let length = Digest::new(CONFIG.to_vec(), State::clone(log.state())).encode().len() as u64;
    assert!(!log.write_digest(length - 1).unwrap());
    assert!(log.objects.digests().unwrap().is_empty(), "what nobody can read is not written");
    assert_eq!(log.prune(0).unwrap(), 0);
    assert_eq!(records(folder.path()).len(), 20);
    assert_eq!(open(&directory).unwrap().state(), log.state());
    assert!(log.write_digest(length).unwrap());
    assert_eq!(log.objects.digests().unwrap(), [20]);
}

/// A program that knows the event must find it in the log or in a digest.
#[test]
fn r3_no_digest_lacks_what_a_later_version_said() {
    let (_folder, directory) = folder();
    let mut log = open(&directory).unwrap();
    begin(&mut log, A1);
    log.append(A1, |_| Ok(vec![Event::Unknown { code: 900, critical: false }])).unwrap();
    let mut log = open(&directory).unwrap();
    fill(&mut log, A1, DIGEST_RECORDS + 10);
    log.digest_when_due().unwrap();
    assert!(log.objects.digests().unwrap().is_empty());
    // A digest by a program that knows it says it in an extension; this one begins there, and adds none of its own.
    let later = |log: &CommitLog, extensions: &[u8]| {
        let digest =
            Digest { extensions: extensions.to_vec(), ..Digest::new(CONFIG.to_vec(), log.state().as_ref().clone()) };
        directory.create(ObjectName::Digest(log.state().end().sequence), &digest.encode()).unwrap();
    };
    later(&log, b"\x09\0\0\0\x03\0\0\0abc");
    let mut read = open(&directory).unwrap();
    assert_eq!((read.state(), read.digested), (log.state(), log.state().end().sequence));
    fill(&mut read, A1, log.state().end().sequence + DIGEST_RECORDS);
    read.digest_when_due().unwrap();
    assert_eq!(read.objects.digests().unwrap(), [log.state().end().sequence]);
    // With everything known again there are digests again.
    log.catch_up().unwrap();
    later(&log, b"");
    let mut read = open(&directory).unwrap();
    fill(&mut read, A1, log.state().end().sequence + DIGEST_RECORDS);
    read.digest_when_due().unwrap();
    assert_eq!(read.objects.digests().unwrap().len(), 3);
}

#[test]
fn texts_that_no_record_holds_are_refused() {
    let (_folder, directory) = folder();
    let mut log = open(&directory).unwrap();
    begin(&mut log, A1);
    let before = log.state().end();
    let long = "x".repeat(mover::TEXT_BYTES_MAX + 1);
    let point = crate::state::testing::point(1);
    for event in [
        Event::Configuration(long.clone(), "7".into()),
        Event::Configuration("keep".into(), long.clone()),
        Event::Annotated(point, long.clone(), "a".into()),
        Event::Annotated(point, "a".into(), long.clone()),
    ] {
        let refused = log.append(A1, |_| Ok(vec![event.clone()])).unwrap_err();
        assert!(refused.kind() == ErrorKind::Usage && refused.remedy().is_some(), "{refused}");
    }
    assert_eq!(log.state().end(), before);
    log.append(A1, |_| Ok(vec![Event::Configuration("keep".into(), long[1..].into())])).unwrap();
    assert_eq!(open(&directory).unwrap().state(), log.state());
}

#[test]
fn r12_who_does_not_understand_reads_on_and_writes_nothing() {
    let (_folder, directory) = folder();
    let mut log = open(&directory).unwrap();
    begin(&mut log, A1);
    log.append(A1, |_| Ok(vec![Event::Unknown { code: 900, critical: false }])).unwrap();
    role(&mut log, A1, 4).unwrap();
    log.append(A1, |_| Ok(vec![Event::Unknown { code: 901, critical: true }])).unwrap();
    let mut read = open(&directory).unwrap();
    assert_eq!(read.state().end(), log.state().end());
    assert_eq!(role(&mut read, A1, 5).unwrap_err().kind(), ErrorKind::Version);
}

#[test]
fn r14_a_digest_of_another_configuration_is_not_used() {
    let (_folder, directory) = folder();
    let mut log = open(&directory).unwrap();
    begin(&mut log, A1);
    fill(&mut log, A1, 10);
    write_digest(&mut log);
    let other = CommitLog::open(Arc::new(directory.clone()), World::system(), REPOSITORY, b"another".to_vec());
    assert_eq!(other.err().expect("refused").kind(), ErrorKind::Integrity);
}

#[test]
fn a_digest_of_a_log_that_went_another_way_is_not_used() {
    let (folder, directory) = folder();
    let mut log = open(&directory).unwrap();
    begin(&mut log, A1);
    fill(&mut log, A1, 10);
    write_digest(&mut log);
    for sequence in 8..=10 {
        std::fs::remove_file(folder.path().join(log_object(sequence))).unwrap();
    }
    // Eight to twelve once more, in other words, by somebody who had not seen the digest.
    let mut other = CommitLog { state: Arc::new(crate::state::testing::empty()), ..open(&directory).unwrap() };
    for sequence in 1..=7 {
        let (record, end) = other.record(sequence).unwrap().unwrap();
        other.apply(&record, end).unwrap();
    }
    for _ in 8..=12 {
        let (record, _) = crate::state::testing::record(other.state(), (A, 1), vec![Event::Role(200)]);
        let bytes = record.encode();
        let (_, end) = LogRecord::decode(&bytes).unwrap();
        directory.create(ObjectName::Record(record.sequence), &bytes).unwrap();
        other.apply(&record, end).unwrap();
    }
    assert_eq!(open(&directory).unwrap().state(), other.state());
}

#[test]
fn r15_ends_that_were_seen_are_compared() {
    let (folder, directory) = folder();
    let mut log = open(&directory).unwrap();
    begin(&mut log, A1);
    fill(&mut log, A1, 10);
    let seen = log.state().end();
    let old = open(&directory).unwrap();
    fill(&mut log, A1, 20);
    let newer = log.state().end();
    assert!(log.passed(seen).unwrap() && log.passed(newer).unwrap() && log.passed(LogHead::default()).unwrap());
    assert!(!log.passed(LogHead { sequence: 10, ..newer }).unwrap(), "another record of that number");
    assert!(!old.passed(newer).unwrap(), "an end that is gone");
    // Rolled back to record 10, and written on.
    for sequence in 11..=20 {
        std::fs::remove_file(folder.path().join(log_object(sequence))).unwrap();
    }
    let mut again = open(&directory).unwrap();
    fill(&mut again, A1, 30);
    assert!(again.passed(seen).unwrap());
    assert!(!again.passed(newer).unwrap(), "longer, and still not the one that was");
    again.append(A1, |_| Ok(vec![Event::NewIncarnation(newer)])).unwrap();
    assert!(!again.passed(newer).unwrap(), "accepting comes before going on");
}

#[test]
fn r20_appending_reads_to_the_end_first() {
    let (_folder, directory) = folder();
    let (mut a, mut b) = (open(&directory).unwrap(), open(&directory).unwrap());
    begin(&mut a, A1);
    begin(&mut b, B1);
    role(&mut a, A1, 3).unwrap();
    b.append(B1, |state| {
        assert_eq!(state.end().sequence, 3, "the state it decides from is the newest");
        Ok(vec![Event::SweepBegun(TOKEN)])
    })
    .unwrap();
    a.catch_up().unwrap();
    assert_eq!(a.state(), b.state());
}

#[test]
fn damage_is_told_with_the_records_name() {
    let (folder, directory) = folder();
    let mut log = open(&directory).unwrap();
    begin(&mut log, A1);
    fill(&mut log, A1, 9);
    let path = folder.path().join(log_object(4));
    let good = std::fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&path, bad).unwrap();
        let error = open(&directory).err().expect("refused");
        assert!([ErrorKind::Integrity, ErrorKind::Version].contains(&error.kind()), "byte {at}: {error:?}");
        assert!(error.to_string().contains(&log_object(4)), "{error}");
    }
    // Another record in its place.
    std::fs::copy(folder.path().join(log_object(5)), &path).unwrap();
    assert_eq!(open(&directory).err().expect("refused").kind(), ErrorKind::Integrity);
}

#[test]
fn a_lost_or_damaged_record_is_no_end_and_can_be_given_up() {
    for damage in ["lost", "garbage", "another log's"] {
        let (folder, directory) = folder();
        let mut log = open(&directory).unwrap();
        begin(&mut log, A1);
        fill(&mut log, A1, 8);
        let (end, path) = (log.state().end(), folder.path().join(log_object(5)));
        match damage {
            "lost" => std::fs::remove_file(&path).unwrap(),
            "garbage" => std::fs::write(&path, b"garbage").unwrap(),
            _ => drop(std::fs::copy(folder.path().join(log_object(6)), &path).unwrap()),
        }
        let refused = open(&directory).err().expect("it is no log");
        assert_eq!(refused.kind(), ErrorKind::Integrity, "{refused}");
        let told = refused.to_string();
        assert!(told.contains(&log_object(5)) && refused.remedy().unwrap().contains("--accept-rollback"), "{told}");
        assert_eq!(records(folder.path()).len(), if damage == "lost" { 7 } else { 8 }, "nothing was changed");

        let objects: Arc<dyn Objects> = Arc::new(directory.clone());
        let sound = || CommitLog::open_sound(objects.clone(), World::system(), REPOSITORY, CONFIG.to_vec()).unwrap();
        let (log, wrong) = sound();
        assert_eq!((log.state().end().sequence, wrong.map(|error| error.kind())), (4, Some(ErrorKind::Integrity)));
        assert_eq!(log.set_aside_later().unwrap(), Some(end), "who saw that end will be told that it is gone");
        assert_eq!(records(folder.path()), [1, 2, 3, 4]);
        assert_eq!(
            std::fs::read_dir(folder.path().join("quarantine")).unwrap().count(),
            if damage == "lost" { 3 } else { 4 },
            "nothing is deleted"
        );
        let (mut log, wrong) = sound();
        assert!(wrong.is_none() && log.set_aside_later().unwrap().is_none());
        role(&mut log, A1, 2).unwrap();
        assert_eq!(open(&directory).unwrap().state().end().sequence, 5);
    }
}

/// It takes only a moment to make a digest file of a gigabyte without content. Reading it must not take a gigabyte of
/// memory.
#[test]
fn a_long_digest_is_hashed_before_it_is_believed() {
    let (folder, directory) = folder();
    let mut log = open(&directory).unwrap();
    begin(&mut log, A1);
    write_digest(&mut log);
    let path = folder.path().join(state_object(log.state().end().sequence));
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(1000 << 20).unwrap();
    drop(log);
    let before = peak();
    let error = directory.read_hashed(ObjectName::Digest(1), DIGEST_BYTES_MAX).unwrap_err();
    assert!(error.kind() == ErrorKind::Integrity && error.to_string().contains("hash"), "{error}");
    assert!(open(&directory).unwrap().state().end().sequence == 1, "it opens from its records");
    assert!(peak() - before < 100 << 10, "{} KiB", peak() - before);
}

/// The most memory that this process had, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
