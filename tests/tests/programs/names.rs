//! Two sites with a machine of the same name, copied to a third that has its own: names are told apart, and refused where
//! they are not.

use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use windlass_tests::fake::noise;
use windlass_tests::place::Place;

fn told(place: &Place, arguments: &[&str]) -> Value {
    let output = place.done(arguments);
    let printed = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(printed.lines().last().unwrap()).unwrap_or_else(|error| panic!("{error}: {printed}"))
}

fn points(place: &Place, at: &str) -> Vec<Value> {
    told(place, &["points", "-r", at])["points"].as_array().unwrap().clone()
}

fn backup(place: &Place, seed: u64, at: &str) -> Value {
    fs::write(place.path("disk.raw"), noise(seed, 1 << 20)).unwrap();
    told(place, &["backup", "--machine", "web", "-r", at, "DISK"])
}

#[test]
fn machines_of_one_name_are_told_apart() {
    let place = Place::new(1);
    for site in ["HERE/a", "HERE/b"] {
        place.done(&["init", "-r", site, "--like", "REPO"]);
    }
    let own = backup(&place, 1, "REPO")["point"].clone();
    backup(&place, 2, "HERE/a");
    backup(&place, 3, "HERE/b");
    for site in ["HERE/a", "HERE/b"] {
        assert_eq!(told(&place, &["copy", "--all", "-r", site, "--to", "REPO"])["points"], 1);
    }
    let second = backup(&place, 4, "REPO");
    let all = points(&place, "REPO");
    let id = |of: &Value| all.iter().find(|it| it["point"] == of["point"]).map(|it| it["machine_id"].clone());
    let first = all.iter().find(|it| it["point"] == own).unwrap();
    assert_eq!(id(&second), Some(first["machine_id"].clone()), "whose machine is it? {all:#?}");

    // Rules: only the own one has two points.
    let would = told(&place, &["forget", "--keep-last", "1", "--dry-run", "-r", "REPO"]);
    let gone: Vec<&Value> = would["points"].as_array().unwrap().iter().filter(|it| it["forgotten"] == true).collect();
    assert!(gone.len() == 1 && gone[0]["point"] == own, "{would:#}");

    // One point is meant, and several machines are named: refused, with what can be typed.
    for command in
        [&["show", "web@latest"][..], &["verify", "web@latest"], &["pin", "web@latest"], &["forget", "web@latest"]]
    {
        let (code, refused) = place.fails(&[command, &["-r", "REPO"]].concat());
        assert!(code == 2 && refused.contains("3 machines here have the name web"), "{command:?} {code} {refused}");
        let hint = refused.split("write ").nth(1).unwrap();
        let choices: BTreeSet<&str> = hint.split(" or ").map(|it| it.split('"').next().unwrap().trim()).collect();
        assert_eq!(choices.len(), 3, "{refused}");
        let shown: BTreeSet<String> =
            choices.iter().map(|choice| told(&place, &["show", choice, "-r", "REPO"])["point"].to_string()).collect();
        assert_eq!(shown.len(), 3, "each choice means another point: {choices:?}");
    }
    let origin = all.iter().find(|it| it["origin_repository"] != first["origin_repository"]).unwrap();
    let origin = &origin["origin_repository"].as_str().unwrap()[..6];
    assert_eq!(
        told(&place, &["points", "--machine", &format!("{origin}/web"), "-r", "REPO"])["points"][0]["machine"],
        "web"
    );

    // A machine that is not there.
    for arguments in [
        &["points", "--machine", "wbe", "-r", "REPO"][..],
        &["copy", "--machine", "wbe", "-r", "REPO", "--to", "HERE/a"],
        &["forget", "--machine", "wbe", "--keep-last", "1", "-r", "REPO"],
        &["points", "--machine", "ffff0000/web", "-r", "REPO"],
    ] {
        assert_eq!(place.fails(arguments).0, 10, "{arguments:?}");
    }

    // What the target gave up does not come back by itself.
    let stranger = all.iter().find(|it| it["origin_repository"].as_str().unwrap().starts_with(origin)).unwrap();
    let stranger = stranger["point"].as_str().unwrap();
    let from = if points(&place, "HERE/a")[0]["point"] == stranger { "HERE/a" } else { "HERE/b" };
    place.done(&["forget", stranger, "-r", "REPO"]);
    assert_eq!(told(&place, &["copy", "--all", "-r", from, "--to", "REPO"])["points"], 0);
    let (code, refused) = place.fails(&["copy", stranger, "-r", from, "--to", "REPO"]);
    assert!(code == 2 && refused.contains("unforget"), "{code} {refused}");
    place.done(&["sweep", "-r", "REPO"]);
    assert_eq!(told(&place, &["copy", "--all", "-r", from, "--to", "REPO"])["points"], 0, "nor after a sweep");
    assert_eq!(told(&place, &["copy", stranger, "-r", from, "--to", "REPO"])["points"], 1, "but by name");
}

/// Two hosts of a cluster share an owner, by tokens or by hand; `machine move` gives a machine to somebody else.
#[test]
fn proxies_share_an_owner_and_machines_move() {
    let place = Place::new(1);
    let _node = place.node();
    place.issue("proxy", "host1", &["--owner", "cluster1"]);
    place.done(&[
        "token",
        "create",
        "--role",
        "proxy",
        "--name",
        "host2",
        "--owner",
        "cluster1",
        "-r",
        "NODE",
        "--out",
        "HERE/token",
    ]);
    place.done(&["token", "join", "--token-file", "HERE/token", "--out", "HERE/host2"]);
    let of = |who: &str, arguments: &[&str]| {
        let mut command = place.windlass(arguments);
        command.env("WINDLASS_IDENTITY", place.path(who));
        let ended = command.output().unwrap();
        (ended.status.code(), String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned())
    };
    let made = of("host1", &["backup", "--machine", "web", "-r", "NODE", "DISK"]);
    assert_eq!(made.0, Some(0), "{}", made.1);
    assert!(of("host2", &["show", "web@latest", "-r", "NODE"]).0 == Some(0), "they share it");
    place.issue("proxy", "other", &[]);
    let hidden = ["show", "web@latest", "-r", "NODE"];
    assert_eq!(of("other", &hidden).0, Some(10));
    let listed = told(&place, &["points", "-r", "NODE"])["points"][0].clone();
    assert_eq!((listed["owner"].as_str(), listed["holder"].as_str()), (Some("cluster1"), Some("proxy host1")));
    assert_eq!(
        of("other", &["machine", "move", "web", "--to-owner", "other", "-r", "NODE"]).0,
        Some(10),
        "it sees none"
    );
    place.done(&["machine", "move", "cluster1/web", "--to-owner", "other", "-r", "NODE"]);
    assert_eq!((of("other", &hidden).0, of("host1", &hidden).0), (Some(0), Some(10)));
    assert_eq!(place.fails(&["machine", "move", "wbe", "--to-owner", "other", "-r", "NODE"]).0, 10);
}
