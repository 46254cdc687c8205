//! The main job with the real programs: full, incremental by bitmap, fingerprint, copy, loss of the primary, restore to
//! raw and to qcow2.

use std::fs;
use std::path::Path;
use std::process::Command;
use windlass_tests::program::Bench;

/// A field of the last line of `--json` output.
fn field(output: &str, name: &str) -> String {
    let summary: serde_json::Value = serde_json::from_str(output.lines().last().unwrap()).unwrap();
    let disk = &summary["disks"][0];
    let value = if summary[name].is_null() { &disk[name] } else { &summary[name] };
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn qemu(tool: &str, arguments: &[&str]) {
    let output = Command::new(tool).args(arguments).output().unwrap_or_else(|error| panic!("{tool}: {error}"));
    assert!(output.status.success(), "{tool} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Restores a point and compares it with an image.
fn expect_restored(bench: &Bench, point: &str, repository: &str, name: &str, image: &Path) {
    let target = bench.path(name);
    let run = bench.run(&["restore", point, "--to", target.to_str().unwrap(), "-r", repository]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    qemu("qemu-img", &["compare", target.to_str().unwrap(), image.to_str().unwrap()]);
}

#[test]
fn days_copies_and_the_loss_of_the_primary() {
    let bench = Bench::new();
    let image = bench.qcow2();
    let source = image.to_str().unwrap();
    let backup = |arguments: &[&str]| {
        let all = [&["backup", "--machine", "web", "-r", "REPO", source], arguments].concat();
        let run = bench.run(&all);
        assert_eq!(run.code, 0, "{}", run.stderr);
        run.stdout
    };

    let full = backup(&[]);
    assert_eq!(field(&full, "change_tracking"), "full");
    // The same bytes as the raw disk that machine `m` has: a machine from the same template brings nothing.
    assert_eq!(field(&full, "chunks_new"), "0");
    let day1 = bench.path("day1.qcow2");
    fs::copy(&image, &day1).unwrap();

    // Three blocks: two neighbours touched by one write across their border, and one discarded to zeros.
    qemu("qemu-io", &["-f", "qcow2", "-c", "write -P 7 131000 200", "-c", "write -z 1048576 65536", source]);
    let increment = backup(&[]);
    assert_eq!(field(&increment, "change_tracking"), "bitmap", "{}", field(&increment, "reason"));
    let read: u64 = field(&increment, "bytes_read").parse().unwrap();
    assert!((131_072..=196_608).contains(&read), "read {read} bytes");
    assert_eq!(field(&increment, "bytes_changed"), "196608");

    let again = backup(&["--change-tracking", "fingerprint"]);
    assert_eq!((field(&again, "change_tracking").as_str(), field(&again, "chunks_new").as_str()), ("fingerprint", "0"));

    assert_eq!(bench.run(&["init", "-r", "HERE/second", "--like", "REPO"]).code, 0);
    let copied = bench.run(&["copy", "--machine", "web", "-r", "REPO", "--to", "HERE/second"]);
    assert_eq!((copied.code, field(&copied.stdout, "points").as_str()), (0, "3"), "{}", copied.stderr);
    let nothing = bench.run(&["copy", "--machine", "web", "-r", "REPO", "--to", "HERE/second"]);
    assert_eq!(field(&nothing.stdout, "bytes_moved"), "0");

    expect_restored(&bench, "web@latest~2", "REPO", "p1.raw", &day1);
    expect_restored(&bench, "web@latest", "REPO", "p2.qcow2", &image);
    fs::remove_dir_all(bench.path("repo")).unwrap();
    expect_restored(&bench, "web@latest~2", "HERE/second", "a1.qcow2", &day1);
    expect_restored(&bench, "web@latest~1", "HERE/second", "a2.raw", &image);
    expect_restored(&bench, "web@latest", "HERE/second", "a3.raw", &image);
    let verified = bench.run(&["verify", "--decode", "-r", "HERE/second"]);
    assert_eq!(verified.code, 0, "{}", verified.stderr);
}
