//! A client of QEMU's monitor protocol, QMP: commands, answers and events, one JSON document a line (QEMU,
//! `docs/interop/qmp-spec`).
//!
//! A socket of QEMU has room for one client. So whoever is connected is alone there, and a socket on which nobody greets
//! is in use.

mod passing;

use mover::{Error, ErrorKind};
pub use passing::{receive_with_descriptors, send_with_descriptors};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout, timeout_at};

use crate::lines::{Lines, printable};

/// A connection to the monitor of a QEMU.
#[derive(Debug)]
pub struct Monitor {
    stream: UnixStream,
    lines: Lines,
    next: u64,
    version: (u32, u32),
    /// True while a command is being sent: if that is broken off, nobody knows how much of it arrived.
    torn: bool,
    /// True until a whole line was seen: another process may have read the beginning of the first.
    resuming: bool,
}

/// Why a command was not carried out, or is not known to have been.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The socket failed.
    #[error("the connection to QEMU failed: {0}")]
    Io(#[from] io::Error),
    /// QEMU ended, or closed the socket.
    #[error("QEMU closed the connection")]
    Closed,
    /// No answer in time.
    #[error("QEMU did not answer {command} within {} s", limit.as_secs())]
    Late {
        /// The command.
        command: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// QEMU refused.
    #[error("QEMU refused {command}: {why}")]
    Refused {
        /// The command.
        command: String,
        /// What QEMU said.
        why: String,
    },
    /// The answer is not what the protocol allows.
    #[error("QEMU gave an unexpected answer to {command}: {what}")]
    Answer {
        /// The command.
        command: String,
        /// What is wrong with it.
        what: String,
    },
    /// QEMU was not asked, because it would wait, and its guest too.
    #[error(
        "the snapshot stays below the disks, because its scratch space in {} does not answer; the guest is not disturbed, and \
         the snapshot is taken out when that folder answers again",
        folder.display()
    )]
    Hangs {
        /// The folder.
        folder: PathBuf,
    },
}

impl QmpError {
    /// True when QEMU heard the command and did not do it.
    pub const fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }

    /// As an error about the machine's monitor at `path`.
    pub fn about(self, path: &Path) -> Error {
        Error::source(self.to_string()).context(path.display())
    }
}

#[derive(Deserialize)]
struct Greeting {
    #[serde(rename = "QMP")]
    qmp: Qmp,
}

#[derive(Deserialize)]
struct Qmp {
    version: Version,
}

#[derive(Deserialize)]
struct Version {
    qemu: Numbers,
}

#[derive(Deserialize)]
struct Numbers {
    major: u32,
    minor: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Added {
    fdset_id: u64,
}

/// What the answer to a command means.
fn meant<T: DeserializeOwned>(command: &str, answer: Value) -> Result<T, QmpError> {
    let wrong = |error: serde_json::Error| QmpError::Answer { command: command.into(), what: error.to_string() };
    serde_json::from_value(answer).map_err(wrong)
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

impl Monitor {
    /// Connects to the monitor at `path`.
    ///
    /// # Errors
    /// `Busy` when another program is connected, `NotFound` or `Source` when QEMU cannot be reached, `Usage` for a QEMU
    /// that is too old.
    pub async fn connect(path: &Path) -> mover::Result<Self> {
        let failed = |error: io::Error| {
            let (kind, hint) = match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => (
                    ErrorKind::NotFound,
                    "check that the machine runs, and the path of its QMP socket (QEMU's -qmp option)",
                ),
                _ => (ErrorKind::Source, "check that this user may use the machine's QMP socket"),
            };
            Error::new(kind, "QEMU cannot be reached").because(error).context(path.display()).hint(hint)
        };
        let stream = UnixStream::connect(path).await.map_err(failed)?;
        let mut monitor =
            Self { stream, lines: Lines::new(LINE_BYTES_MAX), next: 1, version: (0, 0), torn: false, resuming: false };
        let greeting = match timeout(GREETING_TIMEOUT, monitor.greeting()).await {
            Ok(Ok(greeting)) => greeting,
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(Error::usage("this is not the QMP socket of a QEMU").context(path.display()));
            }
            Ok(Err(error)) => return Err(QmpError::from(error).about(path)),
            Err(_) => {
                return Err(Error::busy("another program is connected to this QMP socket")
                    .context(path.display())
                    .hint(
                        "a backup of this machine may be running; give QEMU a QMP socket of its own for Windlass (-qmp \
                     unix:PATH,server=on,wait=off)",
                    ));
            }
        };
        let Numbers { major, minor } = greeting.qmp.version.qemu;
        if (major, minor) < OLDEST {
            return Err(Error::usage(format!("QEMU {major}.{minor} is older than {}.{}", OLDEST.0, OLDEST.1))
                .context(path.display())
                .hint("shut the machine down and back up its images, or run it on a newer QEMU"));
        }
        monitor.version = (major, minor);
        monitor.execute("qmp_capabilities", json!({})).await.map_err(|error| error.about(path))?;
        Ok(monitor)
    }

    /// What QEMU says first. Answers may stand before it that were meant for a client that is gone.
    async fn greeting(&mut self) -> io::Result<Greeting> {
        let strange = || io::Error::from(io::ErrorKind::InvalidData);
        for _ in 0..STALE_LINES_MAX {
            let line = self.lines.next(&mut self.stream).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
            let value: Value = serde_json::from_slice(&line).map_err(|_| strange())?;
            if value.get("QMP").is_some() {
                return serde_json::from_value(value).map_err(|_| strange());
            }
        }
        Err(strange())
    }

    /// Version of QEMU: major and minor number.
    pub const fn version(&self) -> (u32, u32) {
        self.version
    }

    /// The monitor behind a socket on which another process has begun to talk.
    ///
    /// # Errors
    /// Of the socket.
    pub fn taken_over(socket: StdStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let stream = UnixStream::from_std(socket)?;
        // Numbers of commands that the other process did not use.
        let next = 1 << 32;
        let lines = Lines::new(LINE_BYTES_MAX);
        Ok(Self { stream, lines, next, version: (0, 0), torn: false, resuming: true })
    }

    /// Process number of QEMU, where the system tells it.
    pub fn process(&self) -> Option<u32> {
        self.stream.peer_cred().ok()?.pid().and_then(|it| u32::try_from(it).ok())
    }

    /// The socket once more, for a process that is to go on when this one dies.
    ///
    /// # Errors
    /// Of the system.
    pub fn socket(&self) -> io::Result<OwnedFd> {
        self.stream.as_fd().try_clone_to_owned()
    }

    /// Carries out a command and gives its answer.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.run(command, arguments, None).await
    }

    /// [`Self::execute`], and what the answer means.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub async fn ask<T: DeserializeOwned>(&mut self, command: &str, arguments: Value) -> Result<T, QmpError> {
        meant(command, self.run(command, arguments, None).await?)
    }

    /// Carries out a command whose answer says nothing.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub async fn tell(&mut self, command: &str, arguments: Value) -> Result<(), QmpError> {
        self.run(command, arguments, None).await.map(drop)
    }

    /// Gives QEMU an open file or socket under a word of ours; gives the number of the set that it is in.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub async fn add_file(&mut self, opaque: &str, file: BorrowedFd<'_>) -> Result<u64, QmpError> {
        const COMMAND: &str = "add-fd";
        let added: Added = meant(COMMAND, self.hand_over(COMMAND, json!({"opaque": opaque}), file).await?)?;
        Ok(added.fdset_id)
    }

    /// [`Self::execute`], with a file or socket for QEMU.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub async fn hand_over(
        &mut self,
        command: &str,
        arguments: Value,
        descriptor: BorrowedFd<'_>,
    ) -> Result<Value, QmpError> {
        self.run(command, arguments, Some(descriptor)).await
    }

    async fn run(
        &mut self,
        command: &str,
        arguments: Value,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<Value, QmpError> {
        let id = self.next;
        self.next += 1;
        let limit = COMMAND_TIMEOUT;
        let late = |_| QmpError::Late { command: command.into(), limit };
        let deadline = Instant::now() + limit;
        if self.torn {
            return Err(QmpError::Closed);
        }
        let mut line = serde_json::to_vec(&json!({"execute": command, "arguments": arguments, "id": id}))
            .expect("a value can be written");
        line.push(b'\n');
        self.torn = true;
        timeout_at(deadline, self.send(&line, descriptor)).await.map_err(late)??;
        self.torn = false;
        timeout_at(deadline, self.answer(command, id)).await.map_err(late)?
    }

    async fn send(&mut self, line: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let sent = match descriptor {
            Some(descriptor) => send_with_descriptors(&self.stream, line, &[descriptor]).await?,
            None => 0,
        };
        self.stream.write_all(&line[sent..]).await
    }

    /// The answer to the command with this number. Answers to others, for which nobody waits any more, are passed over.
    async fn answer(&mut self, command: &str, id: u64) -> Result<Value, QmpError> {
        let wrong = |what: String| QmpError::Answer { command: command.into(), what };
        loop {
            let line = self.lines.next(&mut self.stream).await?.ok_or(QmpError::Closed)?;
            let mut answer: Value = match serde_json::from_slice(&line) {
                Ok(answer) => answer,
                Err(_) if std::mem::take(&mut self.resuming) => continue,
                Err(error) => return Err(wrong(error.to_string())),
            };
            self.resuming = false;
            if answer.get("event").is_some() {
                continue;
            }
            if answer.get("id") != Some(&id.into()) {
                continue;
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            let refusal: Option<Refusal> = answer.get("error").and_then(|it| Refusal::deserialize(it).ok());
            let refusal = refusal.ok_or_else(|| wrong("neither a result nor an error".into()))?;
            let why = printable(&refusal.desc, WHY_CHARS_MAX);
            return Err(QmpError::Refused { command: command.into(), why });
        }
    }
}

/// `qom-set` of a device's `drive` needs it.
const OLDEST: (u32, u32) = (7, 0);
/// For the greeting of a QEMU that runs: it answers in milliseconds unless its main loop is busy.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// For any command. The slowest drain the requests of a disk first, whose storage may be slow.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest line: descriptions of all block nodes.
const LINE_BYTES_MAX: usize = 16 << 20;
const WHY_CHARS_MAX: usize = 500;
/// Lines before the greeting.
const STALE_LINES_MAX: usize = 1000;
