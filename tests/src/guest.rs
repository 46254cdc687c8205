//! A real guest: Debian with its agent and a PostgreSQL that commits numbered rows, in a QEMU without KVM. Its disks are made
//! once by `tests/guest/make` and kept.

use crate::program::Bench;
use crate::qemu::Qemu;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The folder with `system.qcow2`, `data.qcow2`, `kernel` and `initrd`, which are not to be changed. The first call makes them,
/// in about a minute, as root, with mmdebstrap and packages from a Debian mirror.
///
/// They are kept in the folder that `WINDLASS_GUEST` names, or in `guest` of the target folder.
///
/// # Panics
/// When they cannot be made.
pub fn images() -> PathBuf {
    let kept = std::env::var_os("WINDLASS_GUEST").map_or_else(
        || {
            let test = std::env::current_exe().unwrap();
            test.ancestors().nth(3).expect("tests are built in target/release/deps").join("guest")
        },
        PathBuf::from,
    );
    fs::create_dir_all(&kept).unwrap();
    // Another recipe makes another guest.
    let made = kept.join(&blake3::hash(MAKE.as_bytes()).to_hex()[..16]);
    let lock = File::create(kept.join("lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    if !made.exists() {
        let began = Instant::now();
        make(&kept.join("unfinished"), &made);
        println!("the guest was made in {} s", began.elapsed().as_secs());
    }
    made
}

fn make(unfinished: &Path, made: &Path) {
    let _ = fs::remove_dir_all(unfinished);
    fs::create_dir(unfinished).unwrap();
    let mut command = Command::new("bash");
    command.args(["-c", MAKE, "make"]).arg(unfinished).args(mirror()).stdin(Stdio::null());
    let output = command.output().expect("bash is installed");
    assert!(
        output.status.success(),
        "the guest could not be made. This takes root, mmdebstrap and a Debian mirror; a machine without them can take the \
         folder that another one made, named by WINDLASS_GUEST.\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    fs::rename(unfinished, made).unwrap();
}

/// Where this machine has its packages from, when that has those of Debian 12.
fn mirror() -> Option<String> {
    let output = Command::new("apt-cache").arg("policy").output().ok()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let words = said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    words.into_iter().find(|words| words.get(2) == Some(&"bookworm/main")).map(|words| words[1].to_owned())
}

/// The guest, running.
pub struct Guest {
    /// Its machine, with the disks `system` and `data`.
    pub qemu: Qemu,
    /// The socket of its agent.
    pub agent: PathBuf,
    /// What it tells.
    pub told: Arc<Mutex<Told>>,
}

/// What the guest is to do when it has started.
#[derive(Debug, Clone, Copy)]
pub enum Task {
    /// Make the table and commit rows for ever.
    Write,
    /// Tell which rows are there.
    Read,
}

impl Guest {
    /// Starts it on these qcow2 images, and waits until `ready`. Now and then a machine without KVM hangs in its start, so a
    /// second one may be tried; `disks` gives new images each time.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(bench: &Bench, task: Task, disks: impl Fn() -> [PathBuf; 2], ready: impl Fn(&Told) -> bool) -> Self {
        for attempt in 1..=START_ATTEMPTS {
            let began = Instant::now();
            let guest = Self::begin(bench, task, &disks());
            if guest.waits(START_TIMEOUT, &ready) {
                println!("started to {task:?} in {:.1} s", began.elapsed().as_secs_f64());
                return guest;
            }
            let console = fs::read_to_string(bench.path("console")).unwrap_or_default();
            println!(
                "attempt {attempt}: not ready after {START_TIMEOUT:?}: {:?}\n{console}",
                guest.told.lock().unwrap()
            );
        }
        panic!("the guest does not start");
    }

    fn begin(bench: &Bench, task: Task, disks: &[PathBuf; 2]) -> Self {
        let images = images();
        let file = |name: &str| images.join(name).to_str().unwrap().to_owned();
        let (agent, rows) = (bench.path("agent"), bench.path("rows"));
        let socket = |id: &str, path: &Path| {
            let _ = fs::remove_file(path);
            format!("socket,id={id},path={},server=on,wait=off", path.display())
        };
        let does = match task {
            Task::Write => "write",
            Task::Read => "read",
        };
        let more = [
            ["-m", "512"],
            ["-kernel", &file("kernel")],
            ["-initrd", &file("initrd")],
            ["-append", &format!("root=LABEL=system ro quiet console=ttyS0 ledger={does}")],
            ["-serial", &format!("file:{}", bench.path("console").display())],
            ["-device", "virtio-serial-pci"],
            ["-chardev", &socket("agent", &agent)],
            ["-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"],
            ["-chardev", &socket("rows", &rows)],
            ["-device", "virtserialport,chardev=rows,name=org.windlass.rows"],
        ];
        let disks = [
            (disks[0].as_path(), "qcow2", "virtio-blk-pci,drive=DRIVE,id=system"),
            (disks[1].as_path(), "qcow2", "virtio-blk-pci,drive=DRIVE,id=data"),
        ];
        let qemu = Qemu::start(bench, &disks, more.as_flattened());
        let told = Told::listen(&rows);
        Self { qemu, agent, told }
    }

    /// Its address for `windlass` when QEMU's monitor is reached at `monitor`.
    pub fn address(&self, monitor: &Path) -> String {
        format!("qmp+unix://{}?agent={}", monitor.display(), self.agent.display())
    }

    /// Waits until what it told is enough; false when that takes too long.
    pub fn waits(&self, limit: Duration, enough: impl Fn(&Told) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            if enough(&self.told.lock().unwrap()) {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What a guest told through its serial port.
#[derive(Debug, Default)]
pub struct Told {
    port: Option<UnixStream>,
    unfinished: Vec<u8>,
    /// Number of the last row whose transaction it was about to begin.
    pub begun: u64,
    /// Number of the last row whose transaction was committed.
    pub committed: u64,
    /// Everything else, line by line.
    pub lines: Vec<String>,
}

impl Told {
    /// Listens until QEMU ends.
    fn listen(socket: &Path) -> Arc<Mutex<Self>> {
        let port = UnixStream::connect(socket).unwrap();
        port.set_nonblocking(true).unwrap();
        let told = Self { port: Some(port.try_clone().unwrap()), ..Self::default() };
        let told = Arc::new(Mutex::new(told));
        let of_thread = told.clone();
        std::thread::spawn(move || {
            loop {
                let wait = Timespec { tv_sec: 1, tv_nsec: 0 };
                let _ = poll(&mut [PollFd::new(&port, PollFlags::IN)], Some(&wait));
                if !of_thread.lock().unwrap().take_in() {
                    return;
                }
            }
        });
        told
    }

    /// Takes in all that has come; false when nothing more will come.
    ///
    /// # Panics
    /// When a row is told out of order.
    pub fn take_in(&mut self) -> bool {
        let mut piece = [0; 4096];
        let mut ended = false;
        while let Some(port) = &mut self.port {
            match port.read(&mut piece) {
                Ok(0) => ended = true,
                Ok(got) => self.unfinished.extend_from_slice(&piece[..got]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => ended = true,
            }
            if ended {
                self.port = None;
            }
        }
        while let Some(end) = self.unfinished.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.unfinished.drain(..=end).collect();
            self.hear(String::from_utf8_lossy(&line).trim());
        }
        !ended
    }

    fn hear(&mut self, line: &str) {
        let number = |text: &str| text.parse::<u64>().unwrap_or_else(|_| panic!("{line:?}"));
        match line.split_once(' ') {
            Some(("B", row)) => {
                assert_eq!((number(row), self.begun), (self.committed + 1, self.committed), "{line}");
                self.begun += 1;
            }
            Some(("C", row)) => {
                assert_eq!((number(row), self.begun), (self.committed + 1, self.committed + 1), "{line}");
                self.committed += 1;
            }
            _ => self.lines.push(line.to_owned()),
        }
    }
}

const MAKE: &str = include_str!("../guest/make");
/// For one start until its task has begun. It takes 25 seconds on a machine that does nothing else.
const START_TIMEOUT: Duration = Duration::from_secs(180);
const START_ATTEMPTS: u32 = 2;
