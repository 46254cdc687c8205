//! Running a tool to its end.

use super::process::{Death, Process};
use mover::{Error, ErrorKind};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::Signal;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;
use tokio::time::timeout;

/// Why a tool did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It is not installed.
    #[error("{program} is not installed")]
    Missing {
        /// Name of the program.
        program: &'static str,
    },
    /// It could not be started.
    #[error("{program} cannot be started: {error}")]
    Start {
        /// Name of the program.
        program: &'static str,
        /// Why it could not be started.
        error: io::Error,
    },
    /// It ended with an error.
    #[error("{program} failed ({status}): {words}")]
    Failed {
        /// Name of the program.
        program: &'static str,
        /// Its exit status.
        status: ExitStatus,
        /// What it said on stderr.
        words: String,
    },
    /// It did not end in time.
    #[error("{program} did not end within {} s", limit.as_secs())]
    Late {
        /// Name of the program.
        program: &'static str,
        /// How long it was waited for.
        limit: Duration,
    },
    /// Its answer makes no sense.
    #[error("{program} gave an unexpected answer: {what}")]
    Answer {
        /// Name of the program.
        program: &'static str,
        /// What is wrong with the answer.
        what: String,
    },
}

impl ToolError {
    /// True when the image is locked by another process: a machine that runs.
    pub fn is_lock(&self) -> bool {
        matches!(self, Self::Failed { words, .. } if words.contains("Failed to get") && words.contains("lock"))
    }

    /// As an error about `path`: busy when the image is locked, otherwise of `kind`.
    pub fn about(self, path: &Path, kind: ErrorKind) -> Error {
        if self.is_lock() {
            return busy(path);
        }
        let error = match &self {
            Self::Missing { .. } => Error::new(kind, self.to_string()).hint("install the package qemu-utils"),
            Self::Late { .. } => {
                Error::new(kind, self.to_string()).hint("check whether the storage of the image still answers")
            }
            Self::Failed { words, .. } if words.contains("No space left") && kind == ErrorKind::Target => {
                Error::new(ErrorKind::TargetFull, self.to_string())
            }
            _ => Error::new(kind, self.to_string()),
        };
        error.context(path.display())
    }
}

/// The image is in use by a machine that runs.
pub fn busy(path: &Path) -> Error {
    Error::busy(format!("{} is in use by another process, probably a running machine", path.display()))
        .hint("shut the machine down, or back up a snapshot of the disk")
}

/// How long a tool may take, and what becomes of it when we go away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is killed when its time is up, when the caller stops waiting, and when our process dies.
    Shared(Duration),
    /// It goes on to its own end, whatever happens. After this time it is not waited for any more.
    Detached(Duration),
}

/// Runs a tool and gives its standard output. It writes into memory files, not pipes: a tool that outlives us must not
/// be killed by SIGPIPE, and one that talks much must not wait for a reader.
pub(super) async fn run(
    program: &'static str,
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    fate: Fate,
) -> Result<Vec<u8>, ToolError> {
    let start = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => ToolError::Missing { program },
        _ => ToolError::Start { program, error },
    };
    let (output, words) = (memory_file().map_err(start)?, memory_file().map_err(start)?);
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C").stdin(Stdio::null());
    command.stdout(output.try_clone().map_err(start)?).stderr(words.try_clone().map_err(start)?);
    let (death, limit) = match fate {
        Fate::Shared(limit) => (Death::Shared, limit),
        Fate::Detached(limit) => (Death::Own, limit),
    };
    let mut running = Running { process: Process::start(program, command, death).await.map_err(start)?, death };
    // Dropping it kills what may be killed, and nobody waits for a process that cannot die: its thread reaps it.
    let ended = timeout(limit, running.process.wait()).await;
    let status = ended.map_err(|_| ToolError::Late { program, limit })?.map_err(start)?;
    if !status.success() {
        return Err(ToolError::Failed { program, status, words: last_words(&words) });
    }
    read_bounded(&output, OUTPUT_BYTES_MAX)
        .ok_or_else(|| ToolError::Answer { program, what: format!("more than {OUTPUT_BYTES_MAX} bytes") })
}

struct Running {
    process: Process,
    death: Death,
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.death == Death::Shared {
            self.process.signal(Signal::KILL);
        }
    }
}

/// A file in memory for a tool's output.
pub(super) fn memory_file() -> io::Result<File> {
    Ok(memfd_create("windlass-tool", MemfdFlags::CLOEXEC)?.into())
}

/// The end of what a tool wrote to stderr, on one line.
pub(super) fn last_words(file: &File) -> String {
    let length = file.metadata().map_or(0, |it| it.len());
    let from = length.saturating_sub(WORDS_BYTES_MAX);
    let mut bytes = vec![0; (length - from) as usize];
    if file.read_exact_at(&mut bytes, from).is_err() {
        return String::new();
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<String> =
        text.lines().map(|line| line.chars().filter(|it| !it.is_control()).collect::<String>()).collect();
    lines.join("; ")
}

fn read_bounded(file: &File, bytes_max: u64) -> Option<Vec<u8>> {
    let length = file.metadata().ok()?.len();
    if length > bytes_max {
        return None;
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, 0).ok()?;
    Some(bytes)
}

/// Makes an empty qcow2 image of `size` bytes at `path`, which must not be in use.
///
/// # Errors
/// Those of `qemu-img create`.
pub async fn create_qcow2(path: &Path, size: u64) -> Result<(), ToolError> {
    let size = OsString::from(size.to_string());
    let arguments = ["create", "-q", "-f", "qcow2"].map(OsStr::new).into_iter().chain([path.as_os_str(), &size]);
    run("qemu-img", arguments, Fate::Shared(CREATE_TIMEOUT)).await.map(drop)
}

/// For `qemu-img create`, which writes headers and empty tables.
const CREATE_TIMEOUT: Duration = Duration::from_secs(120);

const OUTPUT_BYTES_MAX: u64 = 16 << 20;
const WORDS_BYTES_MAX: u64 = 2048;
