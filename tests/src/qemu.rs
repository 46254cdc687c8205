//! A machine that runs: a real QEMU without an operating system. Devices, bitmaps and block nodes are real; the guest's
//! writes come through its monitor.

use crate::program::{Bench, Ended};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// A QEMU that runs until the test ends.
pub struct Qemu {
    /// Its process.
    pub process: Ended,
    monitor: Mutex<BufReader<UnixStream>>,
    /// The monitor's socket for Windlass.
    pub socket: PathBuf,
    said: PathBuf,
}

/// A disk as QEMU's arguments: `qcow2` or `raw`, and the device with `DRIVE` for the node.
pub type Disk<'a> = (&'a Path, &'a str, &'a str);

impl Qemu {
    /// The usual: a qcow2 image on virtio-blk, called vda.
    ///
    /// # Panics
    /// When QEMU cannot be started, as all of these.
    pub fn with_image(bench: &Bench, image: &Path) -> Self {
        Self::start(bench, &[(image, "qcow2", "virtio-blk-pci,drive=DRIVE,id=vda")], &[])
    }

    /// Whether disks may be in iothreads: older QEMUs end with their clients then, and are refused.
    pub fn has_sound_iothreads() -> bool {
        let said = Command::new(program()).arg("--version").output().expect("qemu-system-x86 is installed");
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let major = said.split("version ").nth(1).and_then(|it| it.split('.').next()?.parse::<u32>().ok());
        major.is_some_and(|major| major >= 10)
    }

    /// Starts one with these disks, whose nodes are called node0, node1 and so on, and more arguments.
    pub fn start(bench: &Bench, disks: &[Disk<'_>], more: &[&str]) -> Self {
        let (socket, own, said) = (bench.path("qmp"), bench.path("own.qmp"), bench.path("qemu.out"));
        for path in [&socket, &own] {
            let _ = std::fs::remove_file(path);
        }
        let words = File::options().create(true).append(true).open(&said).unwrap();
        let mut command = Command::new(program());
        command.args([
            "-machine",
            "q35",
            "-accel",
            "tcg",
            "-m",
            "64",
            "-nodefaults",
            "-display",
            "none",
            "-no-user-config",
        ]);
        for path in [&socket, &own] {
            command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", path.display()));
        }
        command.args(more);
        for (at, (path, format, device)) in disks.iter().enumerate() {
            let file = format!("driver=file,filename={},node-name=file{at},discard=unmap", path.display());
            let node = format!("driver={format},file=file{at},node-name=node{at},discard=unmap");
            let device = device.replace("DRIVE", &format!("node{at}"));
            command.args(["-blockdev", &file, "-blockdev", &node, "-device", &device]);
        }
        command.stdin(Stdio::null()).stdout(words.try_clone().unwrap()).stderr(words);
        let process = Ended(command.spawn().expect("qemu-system-x86 is installed"));
        let monitor = until_some(|| UnixStream::connect(&own).ok());
        let mut monitor = BufReader::new(monitor);
        monitor.read_line(&mut String::new()).unwrap();
        let qemu = Self { process, monitor: Mutex::new(monitor), socket, said };
        qemu.ask("qmp_capabilities", json!({}));
        qemu
    }

    /// Its address for `windlass`.
    pub fn address(&self) -> String {
        format!("qmp+unix://{}", self.socket.display())
    }

    /// Carries out a command of the monitor.
    pub fn ask(&self, command: &str, arguments: Value) -> Value {
        self.try_ask(command, arguments).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// The same for what may be refused.
    ///
    /// # Errors
    /// What QEMU said.
    pub fn try_ask(&self, command: &str, arguments: Value) -> Result<Value, String> {
        let mut monitor = self.monitor.lock().unwrap();
        let line = json!({"execute": command, "arguments": arguments}).to_string() + "\n";
        monitor.get_mut().write_all(line.as_bytes()).map_err(|error| error.to_string())?;
        loop {
            let mut line = String::new();
            if monitor.read_line(&mut line).unwrap_or(0) == 0 {
                return Err("QEMU is gone".into());
            }
            let mut answer: Value = serde_json::from_str(&line).unwrap();
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(error.to_string());
            }
        }
    }

    /// The guest writes `length` bytes of `pattern`, through its device.
    pub fn write(&self, device: &str, pattern: u8, offset: u64, length: u64) {
        self.guest(device, &format!("write -P {pattern} {offset} {length}"));
    }

    /// The guest discards a range.
    pub fn discard(&self, device: &str, offset: u64, length: u64) {
        self.guest(device, &format!("discard {offset} {length}"));
    }

    /// A request of the guest, which must succeed.
    pub fn guest(&self, device: &str, request: &str) {
        let mut device =
            if device.starts_with('/') { device.to_owned() } else { format!("/machine/peripheral/{device}") };
        let parts = self.ask("qom-list", json!({"path": device}));
        if parts.as_array().unwrap().iter().any(|part| part["name"] == "virtio-backend") {
            device += "/virtio-backend";
        }
        let line = format!("qemu-io -d {device} \"{request}\"");
        let before = std::fs::metadata(&self.said).unwrap().len();
        // QEMU 7.2 answers with what it says, QEMU 10 says it on its standard output.
        let mut said = self.ask("human-monitor-command", json!({"command-line": line})).as_str().unwrap().to_owned();
        let words = std::fs::read(&self.said).unwrap();
        said += &String::from_utf8_lossy(&words[before as usize..]);
        assert!(said.contains("ops;"), "{request}: {said}");
    }

    /// State of the machine, as QEMU calls it.
    pub fn state(&self) -> String {
        self.ask("query-status", json!({}))["status"].as_str().unwrap().to_owned()
    }

    /// What Windlass has in this QEMU for the time of a backup: nodes, exports, open files, and bitmaps of sessions.
    pub fn traces(&self) -> Vec<String> {
        let mut found = Vec::new();
        let is_ours = |name: &str| name.starts_with("windlass-") && name.len() < 32;
        for node in self.ask("query-named-block-nodes", json!({"flat": true})).as_array().unwrap() {
            found.extend(node["node-name"].as_str().filter(|it| is_ours(it)).map(str::to_owned));
            for bitmap in node["dirty-bitmaps"].as_array().into_iter().flatten() {
                found.extend(bitmap["name"].as_str().filter(|it| is_ours(it)).map(str::to_owned));
            }
        }
        for export in self.ask("query-block-exports", json!({})).as_array().unwrap() {
            found.extend(export["id"].as_str().filter(|it| is_ours(it)).map(str::to_owned));
        }
        for set in self.ask("query-fdsets", json!({})).as_array().unwrap() {
            found.push(set.to_string());
        }
        found
    }

    /// Names of the bitmaps that Windlass keeps in a node.
    pub fn bitmaps(&self, node: &str) -> Vec<String> {
        let nodes = self.ask("query-named-block-nodes", json!({"flat": true}));
        let node = nodes.as_array().unwrap().iter().find(|it| it["node-name"] == node).unwrap().clone();
        let bitmaps = node["dirty-bitmaps"].as_array().cloned().unwrap_or_default();
        bitmaps.iter().filter_map(|it| it["name"].as_str().map(str::to_owned)).collect()
    }

    /// The guest is shut down: QEMU closes its images and ends.
    pub fn quit(self) {
        let Self { mut process, monitor, .. } = self;
        let _ = monitor.lock().unwrap().get_mut().write_all(b"{\"execute\":\"quit\"}\n");
        process.0.wait().unwrap();
    }
}

/// The QEMU to test with: `WINDLASS_QEMU` names another.
fn program() -> String {
    std::env::var("WINDLASS_QEMU").unwrap_or_else(|_| "qemu-system-x86_64".into())
}

/// Stands between `windlass` and a QEMU, and sees each command before QEMU does.
pub struct Relay {
    /// Where `windlass` is to connect.
    pub path: PathBuf,
    commands: Arc<AtomicUsize>,
}

/// What happens before a command: its number from 1, and its text. False: it is never handed on.
pub type Before = dyn Fn(usize, &str) -> bool + Send + Sync;

impl Relay {
    /// Begins. It ends with the connections.
    ///
    /// # Panics
    /// When a socket cannot be made.
    pub fn start(path: PathBuf, qemu: &Path, before: Arc<Before>) -> Self {
        let _ = std::fs::remove_file(&path);
        let (listener, qemu) = (UnixListener::bind(&path).unwrap(), qemu.to_owned());
        let commands = Arc::new(AtomicUsize::new(0));
        let counter = commands.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                let server = UnixStream::connect(&qemu).unwrap();
                let (up, down) = ((client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client));
                let (before, counter) = (before.clone(), counter.clone());
                std::thread::spawn(move || {
                    hand_on(&up.0, &up.1, |text| before(counter.fetch_add(1, SeqCst) + 1, text));
                    let _ = up.1.shutdown(std::net::Shutdown::Both);
                });
                std::thread::spawn(move || {
                    hand_on(&down.0, &down.1, |_| true);
                    let _ = down.1.shutdown(std::net::Shutdown::Both);
                });
            }
        });
        Self { path, commands }
    }

    /// Commands that came so far.
    pub fn commands(&self) -> usize {
        self.commands.load(SeqCst)
    }
}

/// Hands bytes and descriptors on until one side is gone.
fn hand_on(from: &UnixStream, to: &UnixStream, before: impl Fn(&str) -> bool) {
    let mut bytes = vec![0; 256 << 10];
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let got = recvmsg(from, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC);
        let got = got.map_or(0, |it| it.bytes);
        let mut descriptors: Vec<OwnedFd> = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if got == 0 {
            return;
        }
        if !before(&String::from_utf8_lossy(&bytes[..got])) {
            continue;
        }
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !borrowed.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)));
        }
        let Ok(sent) = sendmsg(to, &[IoSlice::new(&bytes[..got])], &mut ancillary, SendFlags::NOSIGNAL) else { return };
        let mut to = to;
        if to.write_all(&bytes[sent..got]).is_err() {
            return;
        }
    }
}

/// Waits until `found` gives something.
///
/// # Panics
/// When that takes too long.
#[track_caller]
pub fn until_some<T>(mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(it) = found() {
            return it;
        }
        assert!(Instant::now() < deadline, "it did not come to that");
        std::thread::sleep(Duration::from_millis(5));
    }
}
