//! Tags, and times: what is shown can be typed, and a wrong one can be put right.

use serde_json::Value;
use std::fs;
use windlass_tests::fake::noise;
use windlass_tests::place::Place;

fn told(place: &Place, arguments: &[&str]) -> Value {
    let output = place.done(arguments);
    let printed = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(printed.lines().last().unwrap()).unwrap_or_else(|error| panic!("{error}: {printed}"))
}

fn backup(place: &Place, seed: u64, more: &[&str]) -> String {
    fs::write(place.path("disk.raw"), noise(seed, 1 << 20)).unwrap();
    let made = told(place, &[&["backup", "--machine", "web", "-r", "REPO", "DISK"], more].concat());
    made["point"].as_str().unwrap().to_owned()
}

fn shown(place: &Place, selector: &str) -> String {
    told(place, &["show", selector, "-r", "REPO"])["point"].as_str().unwrap().to_owned()
}

#[test]
fn the_time_that_is_shown_selects_the_point() {
    let place = Place::new(1);
    for seed in 0..4 {
        backup(&place, seed, &[]);
    }
    let listed = told(&place, &["points", "-r", "REPO"]);
    let points = listed["points"].as_array().unwrap();
    let field = |point: &Value, name: &str| point[name].as_str().unwrap().to_owned();
    for point in points {
        assert_eq!(shown(&place, &format!("web@{}", field(point, "snapshot_time"))), field(point, "point"));
    }
    // To people, seconds in local time: the newest point of that second.
    let human = std::process::Command::new(windlass_tests::program::beside("windlass"))
        .args(["points", "-r", place.path("repo").to_str().unwrap()])
        .output()
        .unwrap();
    let human = String::from_utf8_lossy(&human.stdout).into_owned();
    for point in points {
        let id = field(point, "point");
        let line = human.lines().find(|line| line.contains(&id[..8])).unwrap_or_else(|| panic!("{human}"));
        let rest = line.split_once("web").unwrap().1;
        let at = rest.find("20").map(|from| &rest[from..from + "2026-01-02 03:04:05 +00:00".len()]).unwrap();
        let found = shown(&place, &format!("web@{at}"));
        let same_second: Vec<String> = points
            .iter()
            .filter(|other| human.lines().any(|line| line.contains(at) && line.contains(&field(other, "point")[..8])))
            .map(|other| field(other, "point"))
            .collect();
        assert_eq!(Some(&found), same_second.last(), "{at}: {human}");
    }
    let day = &field(&points[0], "snapshot_time")[..10];
    let last = field(points.last().unwrap(), "point");
    assert_eq!(shown(&place, &format!("web@{day}T23:59:59Z")), last);
    assert_eq!(place.fails(&["show", "web@2001-01-01", "-r", "REPO"]).0, 10);
    assert_eq!(place.fails(&["show", "web@yesterday", "-r", "REPO"]).0, 2);
}

#[test]
fn tags_are_shown_found_and_changed_and_times_put_right() {
    let place = Place::new(1);
    let first = backup(&place, 1, &["--tag", "nightly", "--tag", "before-upgrade"]);
    let second = backup(&place, 2, &["--tag", "nightly"]);
    let with = |tags: &[&str]| -> Vec<String> {
        let tags = tags.iter().flat_map(|tag| ["--tag", tag]);
        let arguments: Vec<&str> = ["points", "-r", "REPO"].into_iter().chain(tags).collect();
        let listed = told(&place, &arguments)["points"].as_array().unwrap().clone();
        listed.iter().map(|point| point["point"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(with(&["nightly"]), [first.clone(), second.clone()]);
    assert_eq!(with(&["nightly", "before-upgrade"]), std::slice::from_ref(&first));
    place.done(&["annotate", "web@latest", "--tag", "golden", "--remove-tag", "nightly", "-r", "REPO"]);
    assert_eq!((with(&["nightly"]), with(&["golden"])), (vec![first.clone()], vec![second.clone()]));
    let point = told(&place, &["show", "web@latest", "-r", "REPO"]);
    assert_eq!(point["tags"], serde_json::json!(["golden"]), "the manifest still says nightly");
    assert_eq!(place.fails(&["annotate", "web@latest", "-r", "REPO"]).0, 2, "nothing to do");
    assert_eq!(place.fails(&["annotate", "web@latest~7", "--tag", "x", "-r", "REPO"]).0, 10);
    // A time that has not come is found, told by doctor, and put right; the order stays.
    let suspects = || told(&place, &["points", "--suspect-times", "-r", "REPO"])["points"].as_array().unwrap().len();
    assert_eq!(suspects(), 0);
    place.done(&["annotate", &first, "--time", "2200-01-01", "-r", "REPO"]);
    assert_eq!((suspects(), shown(&place, "web@latest")), (1, second.clone()));
    let (code, _) = place.fails(&["doctor", "-r", "REPO"]);
    assert_eq!(code, 4);
    place.done(&["annotate", &first, "--time", "original", "-r", "REPO"]);
    assert_eq!(suspects(), 0);
    place.done(&["annotate", &first, "--time", "2026-01-02 03:04:05 +01:00", "-r", "REPO"]);
    assert_eq!(shown(&place, "web@2026-01-02T02:04:05Z"), first);
    assert!(told(&place, &["show", &first, "-r", "REPO"])["time"].as_str().unwrap().starts_with("2026-01-02T02:04:05"));
}
