//! Whole machines: what belongs to one travels with its disks, and it starts again from what was restored.

use super::{Guest, SIZE, image};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use windlass_tests::program::{Bench, Ended, Run};
use windlass_tests::qemu::{Qemu, until_some};

/// A machine with firmware, an address, a password and a disk that is plugged in later.
fn machine(bench: &Bench, image: &Path) -> Qemu {
    let (code, variables) = ("/usr/share/seabios/bios-256k.bin", bench.path("vars file.fd"));
    fs::write(&variables, vec![7; 64 << 10]).unwrap();
    let code = format!("if=pflash,unit=0,readonly=on,format=raw,file={code}");
    let variables = format!("if=pflash,unit=1,format=raw,file={}", variables.display());
    let more = [
        "-drive",
        &code,
        "-drive",
        &variables,
        "-uuid",
        "11111111-2222-3333-4444-555555555555",
        "-device",
        "e1000,mac=52:54:00:01:02:03",
        "-object",
        "secret,id=key,data=hunter2",
        "-device",
        "pcie-root-port,id=port0",
    ];
    Qemu::start(bench, &[(image, "qcow2", "virtio-blk-pci,drive=DRIVE,id=vda")], &more)
}

fn restore(bench: &Bench, more: &[&str]) -> Run {
    let to = bench.path("restored");
    bench.run(&[&["restore", "web@latest", "--machine", "-r", "REPO", "--to", to.to_str().unwrap()][..], more].concat())
}

/// What a QEMU answers that has a socket at `path`.
fn ask(path: &Path, commands: &[&str]) -> Vec<Value> {
    let mut monitor = BufReader::new(until_some(|| UnixStream::connect(path).ok()));
    let mut line = String::new();
    monitor.read_line(&mut line).unwrap();
    let mut answers = Vec::new();
    for command in ["qmp_capabilities"].iter().chain(commands) {
        writeln!(monitor.get_mut(), "{}", json!({"execute": command})).unwrap();
        answers.push(loop {
            line.clear();
            assert!(monitor.read_line(&mut line).unwrap() > 0, "{command}: QEMU is gone");
            let mut answer: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(answer.get("error"), None, "{command}");
            if let Some(value) = answer.get_mut("return") {
                break value.take();
            }
        });
    }
    answers.split_off(1)
}

#[test]
fn a_machine_starts_from_what_was_restored() {
    let bench = Bench::new();
    let (first, second) = (image(&bench, "a.qcow2", "qcow2"), image(&bench, "b.raw", "raw"));
    let qemu = machine(&bench, &first);
    let node = json!({"driver": "raw", "node-name": "late", "file": {"driver": "file", "filename": second}});
    qemu.ask("blockdev-add", node);
    qemu.ask("device_add", json!({"driver": "virtio-blk-pci", "drive": "late", "id": "vdb", "bus": "port0"}));
    qemu.write("vda", 1, 0, 1 << 20);
    let run = bench.run(&["backup", "--machine", "web", "-r", "REPO", "--quiesce", "off", &qemu.address()]);
    assert_eq!(run.code, 0, "{} {}", run.stderr, run.stdout);
    let restored = restore(&bench, &[]);
    assert_eq!(restored.code, 0, "{} {}", restored.stderr, restored.stdout);
    let summary: Value = serde_json::from_str(restored.stdout.lines().last().unwrap()).unwrap();
    assert_eq!((&summary["disks"][0]["disk"], summary["bytes_restored"].as_u64()), (&json!("vda"), Some(2 * SIZE)));
    let folder = bench.path("restored");
    let disk = fs::read(folder.join("vda.raw")).unwrap();
    assert!(disk[..1 << 20].iter().all(|it| *it == 1) && disk[1 << 20..].iter().all(|it| *it == 0));
    let everything: Vec<_> = fs::read_dir(&folder).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(everything.len(), 5, "{everything:?}");
    assert_eq!(fs::read(folder.join("nvram-1.attached")).unwrap(), vec![7; 64 << 10]);
    let script = fs::read_to_string(folder.join("start")).unwrap();
    let described = fs::read_to_string(folder.join("qemu.json")).unwrap();
    assert!(!script.contains("hunter2") && !described.contains("hunter2"));
    assert!(script.contains("disk vdb was plugged in after the start"), "{script}");
    assert!(script.contains("a password or key of -object"), "{script}");

    // The key was left out, and QEMU takes none that is empty: the administrator gives it again.
    fs::write(folder.join("start"), script.replace("data=", "data=hunter2")).unwrap();
    let mut command = Command::new(folder.join("start"));
    let mut started = Ended(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
    // Both run, one beside the other, each with its own sockets.
    let [status, uuid, drives] =
        ask(&folder.join("run/qmp"), &["query-status", "query-uuid", "query-block"]).try_into().unwrap();
    assert_eq!(status["status"], "running");
    assert_ne!(uuid["UUID"], "11111111-2222-3333-4444-555555555555");
    let files: Vec<_> = drives.as_array().unwrap().iter().filter_map(|it| it["inserted"]["file"].as_str()).collect();
    assert!(
        files.contains(&"vda.raw") && files.contains(&"vdb.raw") && files.contains(&"nvram-1.attached"),
        "{files:?}"
    );
    assert_eq!(qemu.state(), "running");
    started.0.kill().unwrap();
    started.0.wait().unwrap();
}

/// A folder with something in it is left alone; --delta goes on, --overwrite begins anew; the same identity is kept when
/// that is wanted.
#[test]
fn a_restore_of_a_machine_goes_on_or_begins_anew() {
    let guest = Guest::new();
    guest.backed_up(&[]);
    let folder = guest.bench.path("restored");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("mine"), "x").unwrap();
    let refused = restore(&guest.bench, &[]);
    assert!(refused.code == 2 && refused.stderr.contains("holds something already"), "{}", refused.stderr);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    fs::write(folder.join("vda.raw"), vec![3; SIZE as usize]).unwrap();
    for more in [["--delta", "--same-identity"], ["--overwrite", "--same-identity"], ["--delta", "--same-identity"]] {
        let restored = restore(&guest.bench, &more);
        assert_eq!(restored.code, 0, "{more:?}: {}", restored.stderr);
        for (name, content) in &guest.disks {
            assert!(fs::read(folder.join(format!("{name}.raw"))).unwrap() == *content, "{more:?} {name}");
        }
    }
    assert_eq!(fs::read_to_string(folder.join("mine")).unwrap(), "x");
}

/// A point without a description of its machine, and one with a description that somebody made: disks and files are there,
/// and a warning says why there is no script. A file whose name is a path stays in the folder.
#[test]
fn what_a_point_says_of_its_machine_is_not_trusted() {
    for (described, told) in [
        (None, "does not tell how the machine was started"),
        (Some(json!({"version": 9})), "version 9"),
        (
            Some(
                json!({"version": 1, "qemu": "10.0", "folder": "/", "arguments": ["/bin/sh", "-c", "true"], "disks": [],
                "nvram": null, "left_out": []}),
            ),
            "does not begin with a QEMU",
        ),
    ] {
        let bench = Bench::new();
        let mut arguments = vec!["backup".to_owned(), "--machine".into(), "web".into(), "-r".into(), "REPO".into()];
        if let Some(described) = &described {
            fs::write(bench.path("qemu.json"), described.to_string()).unwrap();
            arguments.push("--attach".into());
            arguments.push(format!("domain={}", bench.path("qemu.json").display()));
        }
        arguments.push("DISK".into());
        let run = bench.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(run.code, 0, "{}", run.stderr);
        let restored = restore(&bench, &[]);
        let all = format!("{}{}", restored.stdout, restored.stderr);
        assert!(restored.code == 4 && all.contains(told), "{} {all}", restored.code);
        let folder = bench.path("restored");
        assert!(!folder.join("start").exists() && folder.join("disk0.raw").exists());
    }
}

/// Ctrl-C in the middle: what was complete stays, nothing half done does, and the same command with --delta goes on.
#[test]
fn an_interrupted_restore_of_a_machine_goes_on() {
    let mut guest = Guest::new();
    guest.write("vda", 5, 0, 32 << 20);
    guest.backed_up(&[]);
    let to = guest.bench.path("restored");
    let arguments = ["restore", "web@latest", "--machine", "-r", "REPO", "--to", to.to_str().unwrap()];
    let mut child = guest.bench.command(&arguments).spawn().unwrap();
    until_some(|| to.exists().then_some(()));
    let _ = kill_process(Pid::from_child(&child), Signal::INT);
    child.wait().unwrap();
    let restored = restore(&guest.bench, &["--delta"]);
    assert_eq!(restored.code, 0, "{}", restored.stderr);
    for (name, content) in &guest.disks {
        assert!(fs::read(to.join(format!("{name}.raw"))).unwrap() == *content, "{name}");
    }
}
