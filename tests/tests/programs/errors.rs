//! Every kind of error through the real program: its exit code, its name in JSON, a line that says what and what to do,
//! and nothing lost. A kind without a row does not compile.

use mover::ErrorKind;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use windlass_tests::place::Place;
use windlass_tests::program::{Bench, Run};

/// How a kind is caused here.
enum Cause {
    /// By running the program; what it must say.
    Run(fn(&Bench) -> Run, &'static str),
    /// Not by this version's command line; why, and where it is tested.
    NotHere(&'static str),
}

fn cause(kind: ErrorKind) -> Cause {
    use Cause::{NotHere, Run};
    match kind {
        ErrorKind::Usage => Run(|b| b.run(&["backup", "--machine", "../x", "-r", "REPO", "DISK"]), "is not a name"),
        ErrorKind::NotFound => Run(|b| b.run(&["points", "-r", "HERE/nothing"]), "is not a repository"),
        ErrorKind::Busy => Run(image_in_use, "in use"),
        ErrorKind::NotAuthorised => Run(not_authorised, "may not do this"),
        ErrorKind::Integrity => Run(damaged_pack, "damaged"),
        ErrorKind::NoCopy => Run(no_copy, "no copy can serve"),
        ErrorKind::StoreFull => Run(repository_full, "space"),
        ErrorKind::StoreIo => Run(log_is_no_folder, "cannot"),
        ErrorKind::RolledBack => Run(rolled_back, "rolled back"),
        ErrorKind::Fenced => NotHere("needs two writers of one repository: the log's own tests"),
        ErrorKind::Source => Run(source_fails, "error"),
        ErrorKind::Target => {
            Run(|b| b.run(&["restore", "m@latest", "--to", "HERE/no/such/folder/o.raw", "-r", "REPO"]), "no/such")
        }
        ErrorKind::TargetFull => Run(target_full, "space"),
        ErrorKind::Quiesce => {
            Run(|b| b.run(&["backup", "--machine", "m", "--quiesce", "require", "-r", "REPO", "DISK"]), "quiesce")
        }
        ErrorKind::Tracking => {
            Run(|b| b.run(&["backup", "--machine", "m", "--change-tracking", "bitmap", "-r", "REPO", "DISK"]), "bitmap")
        }
        ErrorKind::GroupIncomplete => NotHere("groups have one member until applications are backed up"),
        ErrorKind::Transport => {
            Run(|b| b.run(&["backup", "--machine", "m", "-r", "REPO", "nbd+unix:///x?socket=HERE/none"]), "NBD")
        }
        ErrorKind::Version => Run(newer_repository, "newer"),
        ErrorKind::Domain => Run(other_domain, "domain"),
        ErrorKind::Cancelled => Run(interrupted, "signal"),
        ErrorKind::Internal => NotHere("is a bug when it happens"),
    }
}

#[test]
fn every_kind_of_error_is_told_as_promised() {
    let failures: Vec<String> = std::thread::scope(|scope| {
        let checks: Vec<_> = ErrorKind::ALL.into_iter().map(|kind| scope.spawn(move || check(kind))).collect();
        checks.into_iter().filter_map(|check| check.join().expect("a check ends").err()).collect()
    });
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn check(kind: ErrorKind) -> Result<(), String> {
    let (cause, says) = match cause(kind) {
        Cause::Run(cause, says) => (cause, says),
        Cause::NotHere(why) => {
            println!("{kind:?} is not caused here: {why}");
            return Ok(());
        }
    };
    let bench = Bench::new();
    let run = cause(&bench);
    let fail = |what: &str| Err(format!("{kind:?}: {what}\nexit {}\n{}\n{}", run.code, run.stdout, run.stderr));
    if run.code != i32::from(kind.exit_code()) {
        return fail("wrong exit code");
    }
    if !run.stderr.to_lowercase().contains(&says.to_lowercase())
        || !run.stderr.contains(&format!("\"code\":\"{}\"", kind.code()))
    {
        return fail(&format!("does not say {says:?}"));
    }
    // Nothing that was committed is lost. Where the repository itself was taken away there is nothing to look at.
    if !matches!(kind, ErrorKind::StoreIo | ErrorKind::RolledBack | ErrorKind::Version | ErrorKind::Integrity) {
        let points = bench.run(&["points", "-r", "REPO"]);
        if points.code != 0 || points.stdout.matches("\"id\"").count() + points.stdout.matches("\"point\"").count() == 0
        {
            return Err(format!("{kind:?}: the point is gone: {}{}", points.stdout, points.stderr));
        }
    }
    Ok(())
}

/// What is refused before any work, and the way out that is named.
#[test]
fn what_is_refused_names_the_way_out() {
    let bench = Bench::new();
    let (disk, here) = (fs::read(bench.path("disk.raw")).unwrap(), bench.path(""));
    let qemu_img = |arguments: &[&str]| {
        assert!(Command::new("qemu-img").args(arguments).current_dir(&here).status().unwrap().success());
    };
    // The first bytes of a disk, as whoever runs the machine wrote them.
    qemu_img(&["create", "-q", "-f", "qcow2", "header", "8M"]);
    File::options().write(true).open(bench.path("header")).unwrap().set_len(16 << 20).unwrap();
    fs::rename(bench.path("header"), bench.path("guest")).unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/hostname", "over.qcow2", "8M"]);
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "nbd://localhost/x", "-u", "remote.qcow2", "8M"]);
    fs::write(bench.path("short.raw"), &disk[..8 << 20]).unwrap();
    qemu_img(&["convert", "-q", "-f", "raw", "-O", "qcow2", "disk.raw", "same.qcow2"]);
    fs::write(bench.path("image.vmdk"), b"KDMV").unwrap();
    let file = |name: &str| bench.path(name).to_str().unwrap().to_owned();
    let backup = |machine: &str, name: &str| {
        ["backup", "--machine", machine, "-r", "REPO", &file(name)].map(str::to_owned).to_vec()
    };
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let mut wrong = Vec::new();
    for (arguments, code, way_out) in [
        (backup("g", "guest"), 2, "?format=raw"),
        (backup("m", "short.raw"), 2, "--allow-shrink"),
        (backup("m", "same.qcow2"), 2, "--allow-format-change"),
        (backup("g", "over.qcow2"), 2, "--image-root"),
        (backup("g", "remote.qcow2"), 2, "qemu-img rebase"),
        (backup("g", "image.vmdk"), 2, "qemu-img convert"),
        (backup("g", "none.raw"), 1, ""),
        (words("points --machine nobody -r REPO"), 10, "windlass points"),
        (words("show nobody@latest -r REPO"), 10, "windlass points"),
        (words("restore m@latest --disk sdz --to HERE/o.raw -r REPO"), 10, "disk0"),
        (words("restore m@2031-01-01x --to HERE/o.raw -r REPO"), 2, "latest"),
        (words("restore m@latest --attachment none --to HERE/o -r REPO"), 10, "windlass show"),
        (words("restore m@latest --to HERE/disk.raw -r REPO"), 2, "--overwrite"),
        (words("restore m@latest --to HERE/repo/packs/x.raw -r REPO"), 2, "outside"),
        (words("restore m@latest --to HERE/repo/config?format=raw --overwrite -r REPO"), 2, "outside"),
        (words("init -r host:/srv/repo"), 2, "quic://host/repo"),
        (words("init -r REPO"), 2, ""),
        (words("copy --all -r REPO --to REPO"), 2, ""),
        (words("forget -r REPO"), 2, "--help"),
        (words("forget m@latest~9 -r REPO"), 10, "windlass points"),
        (words("backup --machine m --wat -r REPO DISK"), 2, "did you mean"),
        (words("no-such-command"), 2, "--help"),
    ] {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let run = bench.run(&arguments);
        let told = run.stderr.contains("\"hint\":") || way_out.is_empty();
        if run.code != code || !told || !run.stderr.contains(way_out) {
            wrong.push(format!("{arguments:?}: {} {}", run.code, run.stderr));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(bench.run(&["verify", "--decode", "-r", "REPO"]).code == 0);
    assert!(fs::read(bench.path("disk.raw")).unwrap() == disk, "nothing was written");
}

fn not_authorised(_: &Bench) -> Run {
    let place = Place::new(1);
    let _node = place.node();
    place.issue("proxy", "thief", &[]);
    let refused = place.windlass(&["sweep", "-r", "NODE"]).env("WINDLASS_IDENTITY", place.path("thief")).output();
    let refused = refused.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Run { code: refused.status.code().unwrap(), stdout: text(refused.stdout), stderr: text(refused.stderr) }
}

fn image_in_use(bench: &Bench) -> Run {
    let image = bench.qcow2();
    let _holder = bench.hold_image(&image);
    bench.run(&["backup", "--machine", "m", "-r", "REPO", image.to_str().unwrap()])
}

fn damaged_pack(bench: &Bench) -> Run {
    for pack in bench.packs() {
        let mut bytes = fs::read(&pack).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle - 50..middle + 50].fill(0x5a);
        fs::write(&pack, bytes).unwrap();
    }
    let run = bench.run(&["restore", "m@latest", "--to", "HERE/o.raw", "-r", "REPO"]);
    assert!(!bench.path("o.raw").exists(), "a target that was not finished stays behind");
    run
}

fn no_copy(bench: &Bench) -> Run {
    let gone = ["restore", "m@latest", "--to", "HERE/o.raw", "-r", "HERE/nothing", "--also-from", "HERE/none"];
    bench.run(&gone)
}

fn repository_full(bench: &Bench) -> Run {
    let small = bench.small_file_system(8);
    let repository = small.path.join("r");
    let repository = repository.to_str().unwrap();
    assert_eq!(bench.run(&["init", "-r", repository]).code, 0);
    bench.run(&["backup", "--machine", "m", "-r", repository, "DISK"])
}

fn target_full(bench: &Bench) -> Run {
    let small = bench.small_file_system(4);
    let target = small.path.join("o.raw");
    bench.run(&["restore", "m@latest", "--to", target.to_str().unwrap(), "-r", "REPO"])
}

fn log_is_no_folder(bench: &Bench) -> Run {
    let packs = bench.path("repo/state");
    fs::remove_dir_all(&packs).unwrap();
    fs::write(&packs, b"not a folder").unwrap();
    bench.run(&["points", "-r", "REPO"])
}

fn rolled_back(bench: &Bench) -> Run {
    let log = bench.path("repo/log/00000000000000000000");
    let mut records: Vec<_> = fs::read_dir(&log).unwrap().map(|it| it.unwrap().path()).collect();
    records.sort();
    fs::remove_file(records.last().unwrap()).unwrap();
    bench.run(&["backup", "--machine", "m", "-r", "REPO", "DISK"])
}

fn source_fails(bench: &Bench) -> Run {
    let socket = bench.path("failing.sock");
    let _server = bench.nbdkit_failing(&socket);
    let run =
        bench.run(&["backup", "--machine", "m", "-r", "REPO", &format!("nbd+unix:///?socket={}", socket.display())]);
    let points = bench.run(&["points", "-r", "REPO"]);
    assert_eq!(
        points.stdout.matches("\"machine_name\"").count().max(points.stdout.matches("\"machine\"").count()),
        1,
        "{}",
        points.stdout
    );
    run
}

fn newer_repository(bench: &Bench) -> Run {
    let config = bench.path("repo/config");
    let mut bytes = fs::read(&config).unwrap();
    bytes[8] = 9;
    fs::write(&config, bytes).unwrap();
    bench.run(&["points", "-r", "REPO"])
}

fn other_domain(bench: &Bench) -> Run {
    assert_eq!(bench.run(&["init", "-r", "HERE/other"]).code, 0);
    bench.run(&["copy", "--all", "-r", "REPO", "--to", "HERE/other"])
}

fn interrupted(bench: &Bench) -> Run {
    bench.run_interrupted(&["backup", "--machine", "m", "--rate", "1MiB", "-r", "REPO", "DISK"])
}

/// The promise that tests rely on: what they make lies in one folder that goes with them.
#[test]
fn a_bench_leaves_nothing_behind() {
    let bench = Bench::new();
    let folder = bench.path("");
    drop(bench);
    assert!(!Path::new(&folder).exists());
}
