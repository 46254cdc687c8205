//! Guest agents that do what they should, and those that do not. They are the test's own, because no real one misbehaves
//! on demand.

use super::{Guest, summary};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use windlass_tests::program::Run;
use windlass_tests::qemu::until_some;

/// How an agent behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Good,
    /// Answers nothing at all.
    Silent,
    /// Answers the freeze after this many seconds, and does it then.
    SlowFreeze(u64),
    /// Its freeze answers never, but freezes.
    LostAnswer,
    RefusesFreeze,
    FreezesNothing,
    /// Somebody else froze it.
    FrozenBefore,
    /// Somebody else thaws it in the middle, as a VSS time-out does.
    ThawsByItself,
    /// Talks nonsense in between, and answers what nobody asked.
    Noisy,
}

/// A guest agent.
struct FakeAgent {
    path: PathBuf,
    frozen: Arc<AtomicBool>,
    /// What it was asked, and when.
    heard: Arc<Mutex<Vec<(Instant, String)>>>,
}

impl FakeAgent {
    fn start(guest: &Guest, manner: Manner) -> Self {
        let path = guest.bench.path("agent");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let frozen = Arc::new(AtomicBool::new(manner == Manner::FrozenBefore));
        let heard = Arc::new(Mutex::new(Vec::new()));
        let agent = Self { path, frozen: frozen.clone(), heard: heard.clone() };
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                serve(client, manner, &frozen, &heard);
            }
        });
        agent
    }

    fn heard(&self, command: &str) -> usize {
        self.heard.lock().unwrap().iter().filter(|(_, it)| it == command).count()
    }

    /// When it was asked so for the first time.
    fn when(&self, command: &str) -> Option<Instant> {
        self.heard.lock().unwrap().iter().find(|(_, it)| it == command).map(|(when, _)| *when)
    }

    fn backup(&self, guest: &Guest, quiesce: &str) -> Run {
        let address = format!("{}?agent={}", guest.qemu.address(), self.path.display());
        guest.bench.run(&["backup", "--machine", "web", "--quiesce", quiesce, "-r", "REPO", &address])
    }
}

fn serve(mut client: UnixStream, manner: Manner, frozen: &AtomicBool, heard: &Mutex<Vec<(Instant, String)>>) {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(got @ 1..) = client.read(&mut piece) {
        bytes.extend(piece[..got].iter().filter(|byte| **byte != 0xFF));
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = bytes.drain(..=end).collect();
            let asked: Value = serde_json::from_slice(&line).unwrap();
            let command = asked["execute"].as_str().unwrap();
            heard.lock().unwrap().push((Instant::now(), command.to_owned()));
            if manner == Manner::Silent {
                continue;
            }
            let answer = match command {
                "guest-sync-delimited" => {
                    if manner == Manner::Noisy {
                        client
                            .write_all(b"{\"return\": 4711}\n{\"return\": {}}\nnonsense\n\xFF{\"return\": 1}\n")
                            .unwrap();
                    }
                    client.write_all(&[0xFF]).unwrap();
                    json!({"return": asked["arguments"]["id"]})
                }
                "guest-get-host-name" => json!({"return": {"host-name": "web01\u{1b}[31m"}}),
                "guest-get-time" => json!({"return": 1_000_000_000_u64}),
                "guest-fsfreeze-status" => {
                    json!({"return": if frozen.load(SeqCst) { "frozen" } else { "thawed" }})
                }
                "guest-fsfreeze-freeze" => match manner {
                    Manner::RefusesFreeze => json!({"error": {"class": "GenericError", "desc": "hook \u{7} failed"}}),
                    Manner::FreezesNothing => json!({"return": 0}),
                    Manner::LostAnswer => {
                        frozen.store(true, SeqCst);
                        continue;
                    }
                    _ => {
                        if let Manner::SlowFreeze(seconds) = manner {
                            std::thread::sleep(Duration::from_secs(seconds));
                        }
                        frozen.store(manner != Manner::ThawsByItself, SeqCst);
                        json!({"return": 2})
                    }
                },
                "guest-fsfreeze-thaw" => json!({"return": if frozen.swap(false, SeqCst) { 2 } else { 0 }}),
                _ => json!({"error": {"class": "CommandNotFound", "desc": "no such command"}}),
            };
            if client.write_all(format!("{answer}\n").as_bytes()).is_err() {
                return;
            }
        }
    }
}

#[test]
fn a_guest_that_freezes_gives_a_consistent_point() {
    let mut guest = Guest::new();
    guest.write("vda", 1, 0, 1 << 20);
    for manner in [Manner::Good, Manner::Noisy] {
        let agent = FakeAgent::start(&guest, manner);
        let run = agent.backup(&guest, "require");
        assert_eq!(run.code, 0, "{manner:?}: {}", run.stderr);
        let made = summary(&run);
        assert_eq!(made["consistency"], "filesystem", "{made}");
        assert!(made["freeze_ms"].as_u64().unwrap() < 7_000, "{made}");
        assert!(!agent.frozen.load(SeqCst));
        let shown = guest.bench.run(&["show", "web@latest", "-r", "REPO"]);
        let shown: Value = serde_json::from_str(shown.stdout.trim()).unwrap();
        assert_eq!(shown["labels"], json!({"guest.hostname": "web01[31m"}));
        assert_eq!((agent.heard("guest-fsfreeze-freeze"), agent.heard("guest-fsfreeze-thaw")), (1, 1));
    }
    let off = FakeAgent::start(&guest, Manner::Good);
    assert_eq!(summary(&off.backup(&guest, "off"))["consistency"], "crash");
    assert_eq!(off.heard("guest-fsfreeze-freeze"), 0);
    guest.expect(&guest.disks);
}

/// What each of them says, and whether it was asked to freeze at all. With `auto` the point is crash consistent and says
/// why; with `require` there is none. No guest stays frozen by us.
#[test]
fn a_guest_that_does_not_freeze_lowers_the_level_or_the_job_fails() {
    let mut guest = Guest::new();
    guest.write("vda", 1, 0, 1 << 20);
    for (manner, told) in [
        (Manner::Silent, "did not answer"),
        (Manner::RefusesFreeze, "hook  failed"),
        (Manner::FreezesNothing, "froze no file system"),
        (Manner::FrozenBefore, "frozen already"),
        (Manner::ThawsByItself, "thawed before the snapshot was complete"),
        (Manner::LostAnswer, "did not answer guest-fsfreeze-freeze"),
        (Manner::SlowFreeze(9), "did not answer guest-fsfreeze-freeze"),
    ] {
        for quiesce in ["auto", "require"] {
            let agent = FakeAgent::start(&guest, manner);
            let began = Instant::now();
            let run = agent.backup(&guest, quiesce);
            let all = format!("{}{}", run.stdout, run.stderr).replace("\\u0007", " ");
            assert!(all.contains(told), "{manner:?} {quiesce}: {all}");
            assert_eq!(run.code, if quiesce == "auto" { 4 } else { 16 }, "{manner:?} {quiesce}: {all}");
            if quiesce == "auto" {
                assert_eq!(summary(&run)["consistency"], "crash", "{manner:?}");
            }
            assert!(began.elapsed() < Duration::from_secs(60));
            let foreign = manner == Manner::FrozenBefore;
            until_some(|| (agent.frozen.load(SeqCst) == foreign).then_some(()));
            if foreign {
                assert_eq!(agent.heard("guest-fsfreeze-thaw"), 0, "what others froze is theirs");
            }
            assert_eq!((guest.qemu.traces().len(), guest.qemu.state().as_str()), (0, "running"), "{manner:?}");
        }
    }
    guest.backed_up(&[]);
    guest.expect(&guest.disks);
}

/// Stopped with SIGSTOP while the guest stands still, and killed: the watchdog thaws in time.
#[test]
fn the_watchdog_thaws() {
    use rustix::process::{Pid, Signal, kill_process};
    let guest = Guest::new();
    for sent in [Signal::STOP, Signal::KILL] {
        let agent = FakeAgent::start(&guest, Manner::Good);
        let process = Arc::new(std::sync::atomic::AtomicI32::new(0));
        let victim = process.clone();
        // Before the processors are stopped, the guest's file systems stand still already.
        let relay = windlass_tests::qemu::Relay::start(
            guest.bench.path("relay"),
            &guest.qemu.socket,
            Arc::new(move |_, text: &str| {
                if text.contains("\"stop\"") {
                    let pid = until_some(|| Pid::from_raw(victim.load(SeqCst)));
                    kill_process(pid, sent).unwrap();
                }
                true
            }),
        );
        let address = format!("qmp+unix://{}?agent={}", relay.path.display(), agent.path.display());
        let mut command = std::process::Command::new(windlass_tests::program::beside("windlass"));
        command.args(["backup", "--machine", "web", "-r"]).arg(guest.bench.path("repo")).arg(address);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut child = command.spawn().unwrap();
        process.store(child.id().cast_signed(), SeqCst);
        let frozen = until_some(|| agent.when("guest-fsfreeze-freeze"));
        let stood_still = until_some(|| agent.when("guest-fsfreeze-thaw")) - frozen;
        assert!(stood_still < Duration::from_secs(12), "{sent:?}: {stood_still:?}");
        until_some(|| (!agent.frozen.load(SeqCst)).then_some(()));
        until_some(|| (guest.qemu.state() == "running").then_some(()));
        kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
        child.wait().unwrap();
        until_some(|| guest.qemu.traces().is_empty().then_some(()));
        assert_eq!(guest.qemu.state(), "running");
    }
    guest.backed_up(&[]);
    guest.expect(&guest.disks);
}
