//! Running a tool to its end.

use mover::{Error, ErrorKind};
use rustix::fs::{MemfdFlags, memfd_create};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use tokio::process::Command;

/// Why a tool did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It is not installed.
    #[error("{program} is not installed")]
    Missing {
        /// Its name.
        program: &'static str,
    },
    /// It could not be started.
    #[error("{program} cannot be started: {error}")]
    Start {
        /// Its name.
        program: &'static str,
        /// Why.
        error: io::Error,
    },
    /// It ended with an error.
    #[error("{program} failed ({status}): {words}")]
    Failed {
        /// Its name.
        program: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// What it said on stderr.
        words: String,
    },
    /// Its answer makes no sense.
    #[error("{program} gave an unexpected answer: {what}")]
    Answer {
        /// Its name.
        program: &'static str,
        /// What is wrong.
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
        .hint("back a running machine up through its monitor: qmp+unix:///PATH; or shut it down")
}

/// What may happen to the tool when we go away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It ends with the caller.
    Shared,
    /// It goes on to its own end.
    Detached,
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
    let status = match fate {
        Fate::Shared => command.kill_on_drop(true).status().await,
        Fate::Detached => {
            let mut child = command.process_group(0).spawn().map_err(start)?;
            // Waited for by a task of its own, so that it is reaped when the caller stops waiting.
            tokio::spawn(async move { child.wait().await }).await.unwrap_or_else(|error| Err(io::Error::other(error)))
        }
    };
    let status = status.map_err(start)?;
    if !status.success() {
        return Err(ToolError::Failed { program, status, words: last_words(&words) });
    }
    read_bounded(&output, OUTPUT_BYTES_MAX)
        .ok_or_else(|| ToolError::Answer { program, what: format!("more than {OUTPUT_BYTES_MAX} bytes") })
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
    run("qemu-img", arguments, Fate::Shared).await.map(drop)
}

const OUTPUT_BYTES_MAX: u64 = 16 << 20;
const WORDS_BYTES_MAX: u64 = 2048;
