//! A source that was set back as a whole, its index too: it cannot know, but the repository it was copied to does (R15).

use std::fs;
use windlass_tests::kept::copy_folder;
use windlass_tests::program::Bench;

#[test]
fn a_copy_refuses_it_and_says_what_can_be_done() {
    let bench = Bench::new();
    let copy = |to: &str| bench.run(&["copy", "--all", "-r", "REPO", "--to", to]);
    let backup = || {
        let run = bench.run(&["backup", "--machine", "m", "-r", "REPO", "DISK"]);
        assert_eq!(run.code, 0, "{}", run.stderr);
    };
    assert_eq!(bench.run(&["init", "-r", "HERE/second", "--like", "REPO"]).code, 0);
    copy_folder(&bench.path("repo"), &bench.path("yesterday"));
    backup();
    assert_eq!(copy("HERE/second").code, 0);
    copy_folder(&bench.path("repo"), &bench.path("today"));
    let set_back_to = |name: &str| {
        fs::remove_dir_all(bench.path("repo")).unwrap();
        copy_folder(&bench.path(name), &bench.path("repo"));
    };
    set_back_to("yesterday");
    // Shorter than it was, and then longer but another.
    for _ in 0..2 {
        let refused = copy("HERE/second");
        assert_eq!(refused.code, 13, "{}{}", refused.stdout, refused.stderr);
        assert!(refused.stderr.contains("\"code\":\"rolled_back\""), "{}", refused.stderr);
        for part in
            ["rolled back or replaced, together with its index", "bring back the source's newer files", "init --like"]
        {
            assert!(refused.stderr.contains(part), "{part}: {}", refused.stderr);
        }
        (0..3).for_each(|_| backup());
    }
    // Nothing of the copy is lost, and nothing of the source either.
    let there = bench.run(&["points", "-r", "HERE/second"]);
    assert_eq!(
        (there.code, there.stdout.matches("\"id\"").count().max(there.stdout.matches("\"point\"").count())),
        (0, 2)
    );
    assert_eq!(bench.run(&["verify", "--decode", "-r", "HERE/second"]).code, 0);
    // The source's own index knows nothing that would have to be accepted, and says so.
    let accepted = bench.run(&["doctor", "--accept-rollback", "-r", "REPO"]);
    assert_eq!(accepted.code, 2, "{}", accepted.stderr);
    assert!(accepted.stderr.contains("as far as its index knows"), "{}", accepted.stderr);
    // Both ways out that the message names.
    assert_eq!(bench.run(&["init", "-r", "HERE/third", "--like", "REPO"]).code, 0);
    assert_eq!(copy("HERE/third").code, 0);
    set_back_to("today");
    backup();
    let again = copy("HERE/second");
    assert_eq!(again.code, 0, "{}", again.stderr);
}

#[test]
fn a_lost_record_of_the_log_is_told_and_can_be_given_up() {
    let bench = Bench::new();
    let backup = || bench.run(&["backup", "--machine", "m", "-r", "REPO", "DISK"]);
    (0..4).for_each(|_| assert_eq!(backup().code, 0));
    let points = || bench.run(&["points", "-r", "REPO"]);
    let there = |printed: &str| printed.matches("\"point\"").count();
    let all = there(&points().stdout);
    assert!(all >= 4, "{all}");
    let record = |number: u32| bench.path(&format!("repo/log/{:020}/{number:020}", 0));
    let last = (1..).take_while(|number| record(*number).exists()).last().unwrap();
    fs::remove_file(record(last / 2)).unwrap();
    // With and without what remembers more.
    for index in [true, false] {
        if !index {
            fs::remove_dir_all(bench.path("repo/index")).unwrap();
        }
        let refused = points();
        assert_eq!(refused.code, 13, "{}{}", refused.stdout, refused.stderr);
        for part in [&format!("{:020} is missing", last / 2)[..], "bring the file back", "doctor --accept-rollback"] {
            assert!(refused.stderr.contains(part), "{part}: {}", refused.stderr);
        }
    }
    let accepted = bench.run(&["doctor", "--accept-rollback", "-r", "REPO"]);
    assert_eq!(accepted.code, 0, "{}", accepted.stderr);
    assert_eq!(fs::read_dir(bench.path("repo/quarantine")).unwrap().count() as u32, last - last / 2);
    let left = there(&points().stdout);
    assert!((1..all).contains(&left), "{left} points are from before");
    assert_eq!(backup().code, 0);
    assert_eq!(bench.run(&["sweep", "-r", "REPO"]).code, 0);
    assert_eq!(there(&points().stdout), left + 1);
    assert_eq!(bench.run(&["verify", "--decode", "-r", "REPO"]).code, 0);
}
