//! Forgetting, bringing back, pinning and sweeping as administrators do it, on a directory and on a node.

use serde_json::Value;
use std::fs;
use windlass_tests::fake::noise;
use windlass_tests::place::Place;
use windlass_tests::program::SmallFileSystem;

/// The last line that the command printed.
fn told(place: &Place, arguments: &[&str]) -> Value {
    let output = place.done(arguments);
    let printed = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(printed.lines().last().unwrap()).unwrap_or_else(|error| panic!("{error}: {printed}"))
}

fn ids(document: &Value) -> Vec<String> {
    document["points"].as_array().unwrap().iter().map(|point| point["point"].as_str().unwrap().to_owned()).collect()
}

fn works_on(place: &Place, at: &str) {
    for round in 0..4u64 {
        fs::write(place.path("disk.raw"), noise(round, 4 << 20)).unwrap();
        place.done(&["backup", "--machine", "web", "-r", at, "DISK"]);
    }
    let all = ids(&told(place, &["points", "-r", at]));
    assert_eq!(all.len(), 4);
    place.done(&["pin", &all[0], "-r", at]);

    let rules = ["--keep-last", "1", "--keep-yearly", "3"];
    let would = told(place, &[&["forget", "--dry-run", "-r", at][..], &rules].concat());
    assert_eq!(
        (&would["dry_run"], &would["points_forgotten"], &would["points_kept"]),
        (&true.into(), &2.into(), &2.into())
    );
    let why = |at: usize| would["points"][at]["reasons"].clone();
    assert_eq!(why(0), serde_json::json!(["pinned"]));
    assert_eq!((why(1), why(3)), (serde_json::json!([]), serde_json::json!(["last", "yearly"])));
    assert_eq!(ids(&told(place, &["points", "-r", at])), all, "only told");
    told(place, &[&["forget", "-r", at][..], &rules].concat());
    assert_eq!(ids(&told(place, &["points", "-r", at])), [&all[0][..], &all[3]]);
    assert_eq!(ids(&told(place, &["points", "--forgotten", "-r", at])), all[1..3]);

    let (code, pinned) = place.fails(&["forget", &all[0], "-r", at]);
    assert!(code == 2 && pinned.contains("pinned") && pinned.contains("unpin"), "{pinned}");
    place.done(&["unpin", &all[0][..8], "-r", at]);
    place.done(&["forget", &all[0], "-r", at]);
    place.done(&["unforget", &all[1], "-r", at]);
    assert_eq!(ids(&told(place, &["points", "-r", at])), [&all[1][..], &all[3]]);

    let before = place.packs_bytes();
    let would = told(place, &["sweep", "--dry-run", "-r", at]);
    assert_eq!(place.packs_bytes(), before);
    let swept = told(place, &["sweep", "-r", at]);
    for field in ["points_final", "bytes_reclaimed", "packs_deleted"] {
        assert_eq!(would[field], swept[field], "{field}");
    }
    let freed = before - place.packs_bytes();
    assert!(swept["bytes_reclaimed"] == freed && freed > 8 << 20, "{swept}");
    let (code, gone) = place.fails(&["unforget", &all[2], "-r", at]);
    assert!(code == 10, "{code} {gone}");
    assert_eq!(told(place, &["verify", "--decode", "-r", at])["points"], 2);
    place.assert_restores(at);
}

/// On a file system that nobody may write: everything that only looks works, also without folders that were empty.
#[test]
fn what_only_looks_needs_no_write_access() {
    let place = Place::new(4);
    let small = SmallFileSystem::at(place.path("small"), 256);
    let at = "HERE/small/repo";
    place.done(&["init", "-r", at]);
    for round in 0..2u64 {
        fs::write(place.path("disk.raw"), noise(round, 4 << 20)).unwrap();
        place.done(&["backup", "--machine", "web", "-r", at, "DISK"]);
    }
    place.done(&["forget", "web@latest~1", "-r", at]);
    for name in ["incoming", "quarantine"] {
        let _ = fs::remove_dir(small.path.join("repo").join(name));
    }
    small.freeze();
    let would = told(&place, &["sweep", "--dry-run", "-r", at]);
    assert!(would["points_final"] == 1 && would["bytes_reclaimed"].as_u64() > Some(3 << 20), "{would}");
    for arguments in [
        &["points", "-r", at][..],
        &["show", "web@latest", "-r", at],
        &["forget", "--dry-run", "--keep-last", "1", "-r", at],
        &["verify", "--decode", "-r", at],
        &["stats", "-r", at],
        &["init", "-r", "HERE/second", "--like", at],
        &["copy", "--all", "-r", at, "--to", "HERE/second"],
    ] {
        place.done(arguments);
    }
    place.assert_restores(at);
    for arguments in [&["sweep", "-r", at][..], &["backup", "--machine", "web", "-r", at, "DISK"]] {
        let (code, said) = place.fails(arguments);
        assert!(code == 1 && said.contains("Read-only file system"), "{code} {said}");
    }
}

#[test]
fn points_are_forgotten_brought_back_and_swept() {
    let place = Place::new(4);
    works_on(&place, "REPO");
    for arguments in [
        &["forget", "-r", "REPO"][..],
        &["forget", "--keep-last", "0", "-r", "REPO"],
        &["forget", "web@latest", "--keep-last", "1", "-r", "REPO"],
        &["sweep", "--repack-from", "0", "-r", "REPO"],
        &["pin", "-r", "REPO"],
    ] {
        assert_eq!(place.fails(arguments).0, 2, "{arguments:?}");
    }
    assert_eq!(place.fails(&["forget", "nobody@latest", "-r", "REPO"]).0, 10);
}

#[test]
fn points_are_forgotten_brought_back_and_swept_on_a_node() {
    let place = Place::new(4);
    let _node = place.node();
    works_on(&place, "NODE");
}
