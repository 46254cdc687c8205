//! One chunk in a hundred rots: `verify --repair` brings them from the other copy, or the next backup does.

use chunker::BLOB_HEADER_BYTES;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use store::format::pack::{PackKind, RECORD_HEADER_BYTES};
use windlass_tests::fake::noise;
use windlass_tests::kept::{flip, footers, pack_path};
use windlass_tests::place::Place;

/// Damages one record in a hundred, and one page. Gives how many chunks that are.
fn rot(repository: &Path, seed: usize) -> usize {
    let mut hurt = BTreeSet::new();
    for (pack, entries) in footers(repository) {
        let is_page = PackKind::of(entries[0].kind) == PackKind::Page;
        for (at, entry) in entries.iter().enumerate() {
            let chosen = if is_page { at == 0 } else { (at * 7 + seed).is_multiple_of(100) };
            if chosen {
                let blob = u64::from(entry.offset) + RECORD_HEADER_BYTES as u64;
                let within = (seed as u64 * 31) % (u64::from(entry.blob_bytes) - BLOB_HEADER_BYTES as u64);
                flip(&pack_path(repository, &pack), blob + BLOB_HEADER_BYTES as u64 + within, 4);
                hurt.insert(entry.id);
            }
        }
    }
    hurt.len()
}

fn told(place: &Place, arguments: &[&str]) -> Value {
    let output = place.done(arguments);
    let printed = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(printed.lines().last().unwrap()).unwrap_or_else(|error| panic!("{error}: {printed}"))
}

fn works_on(place: &Place, at: &str, repository: &Path) {
    let other = place.path("other");
    let other = other.to_str().unwrap();
    fs::write(place.path("disk.raw"), noise(1, 40 << 20)).unwrap();
    place.done(&["backup", "--machine", "web", "-r", at, "DISK"]);
    place.done(&["init", "--like", at, "-r", other]);
    place.done(&["copy", "web@latest", "-r", at, "--to", other]);

    let hurt = rot(repository, 3);
    assert!(hurt > 6, "{hurt}");
    let mended = told(place, &["verify", "--repair", "--also-from", other, "-r", at]);
    assert_eq!((&mended["repaired"], &mended["errors"]), (&hurt.into(), &Value::Array(Vec::new())), "{mended}");
    let clean = told(place, &["verify", "--decode", "-r", at]);
    assert_eq!((&clean["errors"], &clean["points"]), (&Value::Array(Vec::new()), &1.into()), "{clean}");
    assert_eq!(told(place, &["stats", "-r", at])["wanted"], Value::Array(Vec::new()));
    place.assert_restores(at);

    // Nothing to repair from: the machine itself has everything.
    let empty = place.path("empty");
    place.done(&["init", "--like", at, "-r", empty.to_str().unwrap()]);
    rot(repository, 17);
    let (code, said) = place.fails(&["verify", "--decode", "-r", at]);
    assert!(code == 13 && said.contains("--repair"), "{code} {said}");
    assert!(!said.contains("verification found damage"), "what was found is told once: {said}");
    let (code, said) =
        place.fails(&["verify", "--read-data=0", "--repair", "--also-from", empty.to_str().unwrap(), "-r", at]);
    assert!(code == 13 && said.contains(" error"), "{code} {said}");
    let wanted = told(place, &["stats", "-r", at]);
    assert!(wanted["chunks_suspect"].as_u64().unwrap() > 6, "{wanted}");
    assert_eq!(wanted["wanted"].as_array().unwrap().len() as u64, wanted["chunks_suspect"].as_u64().unwrap());
    // It warns that the map of the point before is damaged.
    let (code, said) = place.fails(&["backup", "--machine", "web", "-r", at, "DISK"]);
    assert!(code == 4 && said.contains("everything is read"), "{code} {said}");
    assert_eq!(told(place, &["stats", "-r", at])["wanted"], Value::Array(Vec::new()));
    assert_eq!(told(place, &["verify", "--decode", "-r", at])["errors"], Value::Array(Vec::new()));
    place.assert_restores(at);

    // What is damaged goes with a sweep, once it is worth it.
    told(place, &["sweep", "--repack-from", "1", "-r", at]);
    let stats = told(place, &["stats", "-r", at]);
    assert!(stats["bytes_dead"].is_u64() && stats["bytes_live"].as_u64().unwrap() > 40 << 20, "{stats}");
    assert_eq!(told(place, &["verify", "--decode", "-r", at])["errors"], Value::Array(Vec::new()));
}

#[test]
fn what_rots_is_repaired() {
    let place = Place::new(4);
    works_on(&place, "REPO", &place.path("repo"));
    let (code, said) = place.fails(&["verify", "--repair", "-r", "REPO"]);
    assert!(code == 2 && said.contains("--also-from"), "{code} {said}");
}

#[test]
fn what_rots_on_a_node_is_repaired() {
    let place = Place::new(4);
    let _node = place.node();
    works_on(&place, "NODE", &place.path("repo"));
}
