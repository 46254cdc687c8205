//! What a point has is given back: attached files, and disks as a stream.

use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::fs;
use std::process::{Command, Stdio};
use windlass_tests::program::{Bench, beside};

/// `windlass` without `--json`: its stdout as bytes.
fn bytes(bench: &Bench, arguments: &[&str]) -> Vec<u8> {
    let here = bench.path("").to_str().unwrap().trim_end_matches('/').to_owned();
    let mut command = Command::new(beside("windlass"));
    command.args(arguments.iter().map(|it| it.replace("HERE", &here))).stdin(Stdio::null());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn attached_files_are_listed_and_given_back() {
    let bench = Bench::new();
    let mut noise = blake3::Hasher::new().update(b"nvram").finalize_xof();
    let mut nvram = vec![0; 5 << 20];
    noise.fill(&mut nvram);
    fs::write(bench.path("vars.fd"), &nvram).unwrap();
    fs::write(bench.path("web.xml"), b"<domain/>").unwrap();
    fs::write(bench.path("empty"), b"").unwrap();
    let attach = ["--attach", "domain=HERE/web.xml", "--attach", "nvram=HERE/vars.fd", "--attach", "nvram=HERE/empty"];
    let made = bench.run(&[&["backup", "--machine", "m", "-r", "REPO", "DISK"][..], &attach].concat());
    assert_eq!(made.code, 0, "{}", made.stderr);
    let shown = bench.run(&["show", "m@latest", "-r", "REPO"]);
    for part in ["\"kind\":\"nvram\"", "\"name\":\"vars.fd\"", "\"size\":5242880", "\"kind\":\"domain\""] {
        assert!(shown.stdout.contains(part), "{}", shown.stdout);
    }
    let restore =
        |what: &str, to: &str| bench.run(&["restore", "m@latest", "--attachment", what, "--to", to, "-r", "REPO"]);
    for (what, want) in [("domain", &b"<domain/>"[..]), ("nvram/vars.fd", &nvram), ("nvram/empty", b"")] {
        let run = restore(what, "HERE/back");
        assert_eq!(run.code, 0, "{}", run.stderr);
        assert!(fs::read(bench.path("back")).unwrap() == want, "{what}");
        assert_eq!(restore(what, "HERE/back").code, 2, "what is there stays");
        fs::remove_file(bench.path("back")).unwrap();
        let arguments = ["restore", "m@latest", "--attachment", what, "--to", "-", "--copy", "HERE/repo"];
        assert!(bytes(&bench, &arguments) == want, "{what}");
    }
    let several = restore("nvram", "HERE/back");
    assert!(several.code == 2 && several.stderr.contains("nvram/vars.fd"), "{}", several.stderr);
    assert_eq!(restore("tpm", "HERE/back").code, 10);
    assert!(!bench.path("back").exists());
}

#[test]
fn attachments_end() {
    let bench = Bench::new();
    mknodat(CWD, bench.path("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    fs::File::create(bench.path("big")).unwrap().set_len((64 << 20) + 1).unwrap();
    for file in ["HERE/fifo", "/dev/zero", "/dev/stdin", "HERE/big", "HERE"] {
        let attach = format!("nvram={file}");
        let run = bench.run(&["backup", "--machine", "m", "--attach", &attach, "-r", "REPO", "DISK"]);
        assert_eq!(run.code, 2, "{file}: {}", run.stderr);
    }
}

#[test]
fn a_disk_goes_to_stdout_in_order() {
    let bench = Bench::new();
    // Holes of every length: inside a leaf, over some, at the end.
    let mut disk = vec![0; (200 << 20) + 12345];
    disk[..16 << 20].copy_from_slice(&fs::read(bench.path("disk.raw")).unwrap());
    disk[150 << 20..][..70000].fill(7);
    fs::write(bench.path("holes.raw"), &disk).unwrap();
    assert_eq!(bench.run(&["backup", "--machine", "h", "-r", "REPO", "HERE/holes.raw"]).code, 0);
    assert!(bytes(&bench, &["restore", "h@latest", "--to", "-", "--copy", "HERE/repo"]) == disk);
    let json = bench.run(&["restore", "h@latest", "--to", "-", "-r", "REPO"]);
    assert_eq!(json.code, 2, "events and a disk are not mixed");
    // A reader that went away is a disk that is not complete.
    let script = format!(
        "set -o pipefail; {} restore -q h@latest --to - -r {} | head -c 10 > /dev/null",
        beside("windlass").display(),
        bench.path("repo").display()
    );
    assert!(!Command::new("bash").args(["-c", &script]).status().unwrap().success());
}
