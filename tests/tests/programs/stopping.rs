//! Waits that end: signals, silent servers, hooks that hang, and a thaw that is certain.

use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use windlass_tests::program::{Bench, beside};

/// `windlass` with these arguments, its words in pipes.
fn started(bench: &Bench, arguments: &[&str]) -> Child {
    let here = bench.path("").to_str().unwrap().trim_end_matches('/').to_owned();
    let mut command = Command::new(beside("windlass"));
    command.args(arguments.iter().map(|it| it.replace("HERE", &here)));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Its exit code and how long it took from now on.
fn ended(mut child: Child) -> (Option<i32>, Duration) {
    let began = Instant::now();
    let status = child.wait().unwrap();
    (status.code(), began.elapsed())
}

fn until(what: impl Fn() -> bool) {
    let began = Instant::now();
    while !what() {
        assert!(began.elapsed() < Duration::from_secs(60), "it never happens");
        std::thread::sleep(Duration::from_millis(5));
    }
}

const SOON: Duration = Duration::from_secs(2);

#[test]
fn every_signal_ends_a_backup_soon_and_with_its_code() {
    let bench = Bench::new();
    for (sent, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129), (Signal::QUIT, 131)] {
        // Far below a read's worth in a second: whoever waits for its turn hears the signal too.
        let arguments = ["backup", "--json", "--machine", "s", "--rate", "4KiB", "-r", "HERE/repo", "HERE/disk.raw"];
        let mut child = started(&bench, &arguments);
        let mut first = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut first).unwrap();
        signal(&child, sent);
        let (ended_with, took) = ended(child);
        assert_eq!(ended_with, Some(code), "{sent:?}");
        assert!(took < SOON, "{sent:?}: {took:?}");
    }
    assert_eq!(bench.run(&["backup", "--machine", "m", "-r", "REPO", "DISK"]).code, 0, "nothing stays locked");
}

#[test]
fn a_restore_that_is_hung_up_on_leaves_nothing() {
    let bench = Bench::new();
    fs::create_dir(bench.path("to")).unwrap();
    for name in ["a.raw", "a.qcow2"] {
        // A FIFO keeps nobody; the disk is large enough to be caught while it is written, or it is done.
        let child = started(&bench, &["restore", "m@latest", "--to", &format!("HERE/to/{name}"), "-r", "HERE/repo"]);
        let folder = bench.path("to");
        until(|| name.ends_with("raw") || fs::read_dir(&folder).unwrap().count() > 0);
        signal(&child, Signal::HUP);
        let (code, took) = ended(child);
        assert!(took < SOON, "{took:?}");
        if code != Some(0) {
            // Before its handler is there the signal itself ends it.
            assert!(code == Some(129) || code.is_none(), "{code:?}");
            until(|| fs::read_dir(&folder).unwrap().count() == 0);
        }
        let _ = fs::remove_file(folder.join(name));
    }
}

#[test]
fn an_nbd_server_that_is_stopped_is_an_error_and_nothing_stays_locked() {
    let bench = Bench::new();
    let socket = bench.path("n.sock");
    let server = bench.nbdkit(&socket, &bench.path("disk.raw"), &["--filter=rate", "rate=20M"]);
    let uri = format!("nbd+unix:///?socket={}&timeout=1", socket.display());
    let mut child = started(&bench, &["backup", "--json", "--machine", "n", "-r", "HERE/repo", &uri]);
    let mut first = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut first).unwrap();
    kill_process(Pid::from_child(&server.0), Signal::STOP).unwrap();
    let began = Instant::now();
    let output = child.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(20) && words.contains("silent for 1 s"), "{words}");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert_eq!(bench.run(&["backup", "--machine", "m", "-r", "REPO", "DISK"]).code, 0);
}

#[test]
fn a_petabyte_of_nothing_is_passed_quickly_and_heard_to_the_end() {
    let bench = Bench::new();
    let socket = bench.path("p.sock");
    fs::File::create(bench.path("p.raw")).unwrap().set_len(1 << 43).unwrap();
    let _server = bench.nbdkit(&socket, &bench.path("p.raw"), &[]);
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let child = started(&bench, &["backup", "--machine", "p", "-r", "HERE/repo", &uri]);
    std::thread::sleep(Duration::from_millis(300));
    signal(&child, Signal::TERM);
    let (code, took) = ended(child);
    assert!(took < SOON && matches!(code, Some(143 | 0)), "{code:?} {took:?}");
    // 8 TiB through it, twice: the second is compared with a parent.
    for _ in 0..2 {
        let run = bench.run(&["backup", "--machine", "p", "-r", "REPO", &uri]);
        assert_eq!(run.code, 0, "{}", run.stderr);
    }
    for name in ["p.qcow2", "q.raw"] {
        let began = Instant::now();
        let run = bench.run(&["restore", "p@latest", "--to", &format!("HERE/{name}"), "-r", "REPO"]);
        assert_eq!(run.code, 0, "{}", run.stderr);
        println!("8 TiB of nothing to {name}: {:?}", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(5), "{name}: {:?}", began.elapsed());
    }
}

fn log(bench: &Bench) -> String {
    fs::read_to_string(bench.path("log")).unwrap_or_default()
}

#[test]
fn hooks_run_once_and_only_when_the_repository_is_there() {
    let bench = Bench::new();
    let (pre, post) = (
        format!("echo pre >> {}", bench.path("log").display()),
        format!("echo post $WINDLASS_STATUS >> {}", bench.path("log").display()),
    );
    let backup = |more: &[&str]| {
        let hooks = ["backup", "--machine", "m", "--pre-freeze", &pre, "--post-thaw", &post, "-r", "REPO", "DISK"];
        bench.run(&[&hooks[..], more].concat())
    };
    assert_eq!(backup(&[]).code, 0);
    assert_eq!(log(&bench), "pre\npost ok\n");
    // Another backup has the repository for as long as we like.
    let arguments = ["backup", "--json", "--machine", "s", "--rate", "4KiB", "-r", "HERE/repo", "HERE/disk.raw"];
    let mut other = started(&bench, &arguments);
    let mut first = String::new();
    BufReader::new(other.stdout.as_mut().unwrap()).read_line(&mut first).unwrap();
    fs::remove_file(bench.path("log")).unwrap();
    let busy = backup(&["--wait=2s"]);
    assert_eq!(busy.code, 11, "{}", busy.stderr);
    assert_eq!(log(&bench), "", "nothing was frozen for a repository that is busy");
    signal(&other, Signal::TERM);
    other.wait().unwrap();
    // A source that cannot be opened: frozen once, let go once.
    let missing = ["backup", "--machine", "m", "--pre-freeze", &pre, "--post-thaw", &post, "-r", "REPO", "HERE/none"];
    assert_ne!(bench.run(&missing).code, 0);
    assert_eq!(log(&bench), "pre\npost failed\n");
}

#[test]
fn a_hook_that_hangs_is_ended_with_all_it_started() {
    let bench = Bench::new();
    let pid = bench.path("pid");
    let hang = format!("sleep 1000 & echo $! > {}; wait", pid.display());
    let post = format!("echo post $WINDLASS_STATUS >> {}", bench.path("log").display());
    let hooks = ["--pre-freeze", &hang, "--post-thaw", &post, "--hook-timeout", "1s"];
    let run = bench.run(&[&["backup", "--machine", "m", "-r", "REPO", "DISK"][..], &hooks].concat());
    assert_eq!(run.code, 16, "{}", run.stderr);
    assert!(run.stderr.contains("longer than 1 s") && run.stderr.contains("--hook-timeout"), "{}", run.stderr);
    assert_eq!(log(&bench), "post failed\n");
    let child = fs::read_to_string(pid).unwrap();
    let gone = || !fs::read_to_string(format!("/proc/{}/cmdline", child.trim())).unwrap_or_default().contains("sleep");
    until(gone);
}

/// Killed while the machine stands still: it goes on, once.
#[test]
fn a_machine_goes_on_when_the_backup_is_killed() {
    let bench = Bench::new();
    let (frozen, post) = (
        format!("touch {}", bench.path("frozen").display()),
        format!("echo post $WINDLASS_STATUS; echo post $WINDLASS_STATUS >> {}", bench.path("log").display()),
    );
    // An NBD server that never speaks keeps the disks from being opened.
    let _deaf = std::os::unix::net::UnixListener::bind(bench.path("deaf")).unwrap();
    for sent in [Signal::KILL, Signal::TERM, Signal::HUP] {
        let _ = (fs::remove_file(bench.path("frozen")), fs::remove_file(bench.path("log")));
        let arguments = [
            "backup",
            "--machine",
            "m",
            "--pre-freeze",
            &frozen,
            "--post-thaw",
            &post,
            "-r",
            "HERE/repo",
            "nbd+unix:///?socket=HERE/deaf&timeout=3",
        ];
        let child = started(&bench, &arguments);
        until(|| bench.path("frozen").exists());
        signal(&child, sent);
        let output = child.wait_with_output();
        until(|| !log(&bench).is_empty());
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(log(&bench), "post failed\n", "{sent:?} {output:?}");
    }
    // Killed while the hook itself still works: it ends before the machine goes on.
    let slow =
        format!("touch {}; sleep 1000; echo late >> {}", bench.path("slow").display(), bench.path("log").display());
    let _ = fs::remove_file(bench.path("log"));
    let arguments =
        ["backup", "--machine", "m", "--pre-freeze", &slow, "--post-thaw", &post, "-r", "HERE/repo", "HERE/disk.raw"];
    let child = started(&bench, &arguments);
    until(|| bench.path("slow").exists());
    signal(&child, Signal::KILL);
    let _ = child.wait_with_output();
    until(|| !log(&bench).is_empty());
    assert_eq!(log(&bench), "post failed\n");
}
