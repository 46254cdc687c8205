//! Storage nodes as they ship: real processes, killed and started again in the middle of a client's work.

use rustix::process::Signal;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use windlass_tests::place::{Place, signal, wait_until};
use windlass_tests::program::{SmallFileSystem, beside};

#[test]
fn every_command_of_a_directory_works_on_a_node() {
    let place = Place::new(8);
    let mut node = place.node();
    let made = place.done(&["backup", "--machine", "web", "-r", "NODE", "DISK"]);
    assert!(String::from_utf8_lossy(&made.stdout).contains("\"summary\""));
    let again = place.done(&["backup", "--machine", "web", "-r", "NODE", "DISK"]);
    let again: serde_json::Value =
        serde_json::from_str(String::from_utf8_lossy(&again.stdout).lines().last().unwrap()).unwrap();
    assert_eq!((again["chunks_new"].as_u64(), again["bytes_new"].as_u64()), (Some(0), Some(0)));
    for arguments in [
        &["points", "-r", "NODE"][..],
        &["show", "web@latest", "-r", "NODE"],
        &["diff", "web@latest~1", "web@latest", "-r", "NODE"],
        &["stats", "-r", "NODE"],
        &["show", "--log", "-r", "NODE"],
        &["verify", "--read-data", "web@latest", "-r", "NODE"],
        &["init", "-r", "HERE/second", "--like", "NODE"],
        &["copy", "--all", "-r", "NODE", "--to", "HERE/second"],
    ] {
        place.done(arguments);
    }
    place.assert_restores("NODE");
    place.assert_restores("HERE/second");
    let index = place.done(&["rebuild-index", "--json", "-r", "NODE"]);
    let index: serde_json::Value = serde_json::from_slice(&index.stdout).unwrap();
    assert!(index["packs"].as_u64() > Some(1) && index["chunks"].as_u64() > Some(1), "{index}");
    place.assert_restores("NODE");
    let doctor = place.done(&["doctor", "-r", "NODE"]);
    assert!(String::from_utf8_lossy(&doctor.stdout).contains("2 points"), "{doctor:?}");
    // The directory is the node's.
    assert_eq!(
        place.windlass(&["backup", "--machine", "web", "-r", "REPO", "DISK"]).output().unwrap().status.code(),
        Some(11)
    );
    signal(&node.0, Signal::TERM);
    assert!(node.0.wait().unwrap().success(), "a graceful stop");
    place.done(&["verify", "--decode", "-r", "REPO"]);
}

/// A disk that is not there yet must not shut the others.
#[test]
fn a_repository_that_is_away_does_not_stop_the_others() {
    let place = Place::new(8);
    place.serve_also("second", "second");
    let mut node = place.node();
    place.done(&["backup", "--machine", "web", "-r", "NODE", "DISK"]);
    let other = format!("quic://127.0.0.1:{}/second", place.port);
    let (code, said) = place.fails(&["points", "-r", &other]);
    assert!(code == 20 && said.contains("not available") && said.contains("mount"), "{code} {said}");
    place.done(&["init", "-r", "HERE/second"]);
    wait_until("it is there", || place.windlass(&["points", "-r", &other]).output().unwrap().status.success());
    place.done(&["backup", "--machine", "web", "-r", &other, "DISK"]);
    signal(&node.0, Signal::TERM);
    assert!(node.0.wait().unwrap().success(), "a graceful stop");
    // Where none is there, it says so and ends.
    fs::rename(place.path("repo"), place.path("repo.away")).unwrap();
    fs::rename(place.path("second"), place.path("second.away")).unwrap();
    let mut serve = Command::new(beside("windlass-store"));
    let ended = serve.arg("serve").arg("--config").arg(place.path("site/windlass-store.toml")).output().unwrap();
    assert_eq!(ended.status.code(), Some(10));
}

/// Somebody else takes also what a repository keeps free, until an administrator makes room.
#[test]
fn a_node_whose_storage_is_full_restores_and_says_what_to_do() {
    let place = Place::new(8);
    let small = SmallFileSystem::at(place.path("small"), 64);
    fs::rename(place.path("repo"), place.path("unused")).unwrap();
    std::os::unix::fs::symlink(small.path.join("repo"), place.path("repo")).unwrap();
    place.done(&["init", "-r", "HERE/small/repo"]);
    let mut node = place.node();
    place.done(&["backup", "--machine", "web", "-r", "NODE", "DISK"]);
    place.done(&["backup", "--machine", "old", "-r", "NODE", "DISK"]);
    let mut filler = File::create(small.path.join("filler")).unwrap();
    for size in [1 << 20, 1 << 12] {
        while filler.write_all(&vec![1; size]).is_ok() {}
    }
    for _ in 0..2 {
        let (code, said) = place.fails(&["backup", "--machine", "web", "-r", "NODE", "DISK"]);
        assert!(code == 15 && said.contains("sweep"), "{code} {said}");
    }
    // Room was kept for just this.
    place.done(&["forget", "old@latest", "-r", "NODE"]);
    place.done(&["sweep", "-r", "NODE"]);
    place.assert_restores("NODE");
    filler.set_len(0).unwrap();
    signal(&node.0, Signal::TERM);
    node.0.wait().unwrap();
    let mut node = place.node();
    let disk = File::options().write(true).open(place.path("disk.raw")).unwrap();
    disk.write_all_at(&[7; 1 << 20], 1 << 20).unwrap();
    place.done(&["backup", "--machine", "web", "-r", "NODE", "DISK"]);
    place.assert_restores("NODE");
    place.done(&["verify", "--decode", "-r", "NODE"]);
    signal(&node.0, Signal::TERM);
    assert!(node.0.wait().unwrap().success(), "a graceful stop");
}

#[test]
fn a_node_scrubs_what_it_serves_and_its_log_can_be_read() {
    let place = Place::new(8);
    let config = place.path("site/windlass-store.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("scrub_seconds = 1\nscrub_rate = \"1GiB\"\n{text}")).unwrap();
    let _node = place.node();
    place.done(&["backup", "--machine", "web", "-r", "NODE", "DISK"]);
    let stats = || -> serde_json::Value {
        serde_json::from_slice(&place.done(&["stats", "--json", "-r", "NODE"]).stdout).unwrap()
    };
    wait_until("the scrub", || stats()["scrub"]["packs"].as_u64() >= Some(2));
    let told = stats();
    assert_eq!((told["packs_unverified"].as_u64(), told["scrub"]["chunks_damaged"].as_u64()), (Some(0), Some(0)));
    assert!(told["oldest_verified"].is_string(), "{told}");
    // One byte of a blob rots.
    let pack = place.packs().into_iter().max_by_key(|pack| fs::metadata(pack).unwrap().len()).unwrap();
    let (file, mut byte) = (File::options().read(true).write(true).open(pack).unwrap(), [0]);
    file.read_exact_at(&mut byte, 5000).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 5000).unwrap();
    wait_until("the damage", || stats()["chunks_suspect"].as_u64() == Some(1));
    place.done(&["backup", "--machine", "web", "-r", "NODE", "DISK"]);
    assert_eq!(stats()["chunks_suspect"].as_u64(), Some(0));
    place.done(&["verify", "--decode", "-r", "NODE"]);

    let read = |after: &str| -> Vec<serde_json::Value> {
        let printed = place.done(&["show", "--log", "--after", after, "--json", "-r", "NODE"]).stdout;
        String::from_utf8(printed).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let log = read("0");
    assert!(log.iter().zip(1..).all(|(record, number)| record["record"].as_u64() == Some(number)), "{log:?}");
    let events = log.iter().flat_map(|record| record["events"].as_array().unwrap()).map(|it| it.as_str().unwrap());
    let events: Vec<&str> = events.collect();
    for said in ["packs added", "of web committed", "is damaged in pack"] {
        assert!(events.iter().any(|event| event.contains(said)), "{said}: {events:?}");
    }
    assert_eq!(read("3").len(), read("0").len() - 3);
}

#[test]
fn a_node_verifies_what_it_serves() {
    let place = Place::new(8);
    let _node = place.node();
    let summary = |arguments: &[&str]| -> (i32, serde_json::Value) {
        let ended = place.windlass(arguments).output().unwrap();
        let printed = String::from_utf8_lossy(&ended.stdout);
        let summary = printed.lines().find(|line| line.contains("bytes_read")).unwrap_or_else(|| panic!("{ended:?}"));
        let mut summary: serde_json::Value = serde_json::from_str(summary).unwrap();
        summary["duration_ms"] = 0.into();
        (ended.status.code().unwrap(), summary)
    };
    place.done(&["backup", "--machine", "web", "-r", "NODE", "DISK"]);
    let (code, made) = summary(&["verify", "--decode", "-r", "NODE"]);
    assert!(code == 0 && made["points"] == 1 && made["bytes_read"].as_u64() > Some(4 << 20), "{code} {made}");
    assert_eq!(place.fails(&["verify", "nobody@latest", "-r", "NODE"]).0, 10);

    let packs = place.packs();
    let largest = packs.iter().max_by_key(|pack| fs::metadata(pack).unwrap().len()).unwrap();
    let file = File::options().read(true).write(true).open(largest).unwrap();
    let (mut byte, middle) = ([0], file.metadata().unwrap().len() / 2);
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[!byte[0]], middle).unwrap();
    for depth in ["--read-data", "--decode"] {
        let (here, there) = (summary(&["verify", depth, "-r", "REPO"]), summary(&["verify", depth, "-r", "NODE"]));
        assert_eq!(there, here);
        let error = &there.1["errors"][0];
        assert!(there.0 == 13 && error["pack"].is_string(), "{there:?}");
    }
    // What it found is not believed to be there any more: the next backup brings it, and nothing is wrong then.
    place.done(&["backup", "--machine", "web", "-r", "NODE", "DISK"]);
    assert_eq!(summary(&["verify", "-r", "NODE"]).0, 0);
    place.assert_restores("NODE");
}

#[test]
fn a_node_killed_and_started_again_costs_no_backup() {
    let place = Place::new(256);
    let mut node = place.node();
    let backup = place.windlass(&["backup", "--machine", "web", "-r", "NODE", "DISK"]);
    let mut backup = { backup }.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    for mebibytes in [10, 60] {
        wait_until("it is under way", || place.packs_bytes() > mebibytes << 20);
        assert!(backup.try_wait().unwrap().is_none(), "killed in the middle");
        signal(&node.0, Signal::KILL);
        node.0.wait().unwrap();
        node = place.node();
    }
    let ended = backup.wait_with_output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    place.assert_restores("NODE");
    signal(&node.0, Signal::TERM);
    assert!(node.0.wait().unwrap().success());
    place.done(&["verify", "--decode", "-r", "REPO"]);
}

#[test]
fn a_node_killed_and_started_again_costs_no_restore() {
    let place = Place::new(256);
    restored_by(&place, &place.path("site/admin"));
    // A proxy whose owner is kept apart, and of which the node had forgotten what it may see.
    let place = Place::new(256);
    let config = place.path("site/windlass-store.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}dedup = \"owner\"\n")).unwrap();
    place.issue("proxy", "host7", &[]);
    restored_by(&place, &place.path("host7"));
}

fn restored_by(place: &Place, identity: &Path) {
    let mut node = place.node();
    let as_who = |arguments: &[&str]| {
        let mut command = place.windlass(arguments);
        command.env("WINDLASS_IDENTITY", identity);
        command
    };
    let made = as_who(&["backup", "--machine", "web", "-r", "NODE", "DISK"]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    place.done(&["rebuild-index", "-r", "NODE"]);
    let mut command = as_who(&["restore", "web@latest", "--to", "HERE/restored.raw", "-r", "NODE"]);
    let mut restore = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(restore.stdout.as_mut().unwrap()).read_line(&mut first).unwrap();
    signal(&node.0, Signal::KILL);
    node.0.wait().unwrap();
    let _node = place.node();
    let ended = restore.wait_with_output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    assert!(fs::read(place.path("restored.raw")).unwrap() == fs::read(place.path("disk.raw")).unwrap());
}
