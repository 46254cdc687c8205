//! A `qemu-nbd` of our own for one image.

use super::graph::Graph;
use super::process::{Death, Process};
use super::tool::{ToolError, last_words, memory_file};
use crate::nbd::{CONNECTIONS_MAX, NbdDisk, NbdError, Patience};
use crate::scratch::scratch_folder;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;
use tokio::time::timeout;

/// What to serve.
#[derive(Debug, Clone)]
pub struct ServeOptions<'a> {
    /// The image, and all that is opened with it.
    pub image: &'a Graph,
    /// Persistent bitmaps to export; each must be there, consistent.
    pub bitmaps: &'a [String],
    /// Whether it is written to.
    pub access: Access,
}

/// Whether an image is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Only read; the image lock lets other readers in and keeps writers out.
    Read,
    /// Written; the image lock keeps everybody out.
    Write,
}

/// Why an image cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// `qemu-nbd` could not be started, or ended.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// It runs, but cannot be talked to.
    #[error(transparent)]
    Nbd(#[from] NbdError),
}

/// A running `qemu-nbd`. It ends when this is dropped, and when our process dies in whatever way.
#[derive(Debug)]
pub struct NbdServerProcess {
    process: Process,
    words: File,
    ending: Ending,
}

/// How the process is ended when it is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// It is killed at once.
    Kill,
    /// It closes the image first, and that is waited for.
    InOrder,
}

impl NbdServerProcess {
    /// Starts `qemu-nbd` and negotiates. When this returns the process holds the image's lock.
    ///
    /// The listening socket is ours and is handed over ready (systemd's socket activation, which `qemu-nbd` knows): we
    /// connect before the process exists, so there is no waiting for a socket to appear and nothing to clean up, and a
    /// process that fails to start shows as a closed connection.
    ///
    /// # Errors
    /// [`ToolError::Failed`] with its words when it does not start; [`ToolError::is_lock`] when the image is in use.
    pub async fn start(options: &ServeOptions<'_>) -> Result<(Self, NbdDisk), ServeError> {
        let start = |error| ToolError::Start { program: QEMU_NBD, error };
        let (listener, sockets) = private_socket().map_err(start)?;
        let words = memory_file().map_err(start)?;
        let command = command(options, listener, words.try_clone().map_err(start)?);
        let process = Process::start(QEMU_NBD, command, Death::Shared).await.map_err(start)?;
        let server = Self { process, words, ending: Ending::Kill };
        let sockets = sockets
            .into_iter()
            .map(|socket| socket.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(socket)))
            .collect::<io::Result<Vec<_>>>()
            .map_err(start)?;
        match NbdDisk::over(sockets, EXPORT, options.bitmaps, Patience::own()).await {
            Ok(disk) => Ok((server, disk)),
            Err(error) => Err(server.explain(error).await),
        }
    }

    /// From here on a drop lets the process close the image, and waits for that. Call this for an image that was there
    /// before us and is written in place. If its process were killed, its bitmaps would be lost and its freed clusters
    /// would leak.
    pub fn end_in_order(&mut self) {
        self.ending = Ending::InOrder;
    }

    /// Ends the process and waits until it released the image. Connections must be closed, or their requests fail.
    ///
    /// # Errors
    /// When it did not end cleanly.
    pub async fn stop(mut self) -> Result<(), ToolError> {
        self.process.signal(Signal::TERM);
        let status = self.wait().await?;
        if status.success() {
            return Ok(());
        }
        Err(ToolError::Failed { program: QEMU_NBD, status, words: last_words(&self.words) })
    }

    /// The cause of `error` on a connection. If the process ended by itself, this is what the process said.
    async fn explain(mut self, error: NbdError) -> ServeError {
        self.process.signal(Signal::KILL);
        let status = match self.wait().await {
            Ok(status) => status,
            Err(error) => return error.into(),
        };
        match status.code() {
            Some(SHELL_NOT_FOUND) => ToolError::Missing { program: QEMU_NBD }.into(),
            Some(0) | None => error.into(),
            Some(_) => ToolError::Failed { program: QEMU_NBD, status, words: last_words(&self.words) }.into(),
        }
    }

    /// Its end, after a signal. It is killed when that takes too long.
    async fn wait(&mut self) -> Result<ExitStatus, ToolError> {
        let limit = END_TIMEOUT;
        let status = timeout(limit, self.process.wait()).await.map_err(|_| {
            self.process.signal(Signal::KILL);
            ToolError::Late { program: QEMU_NBD, limit }
        })?;
        status.map_err(|error| ToolError::Start { program: QEMU_NBD, error })
    }
}

/// SIGTERM ends the process in order, but only when it serves already: `qemu-nbd` forgets a SIGTERM that comes while it
/// starts. SIGKILL always works, and harms neither an image that is only read nor one that is ours and incomplete.
impl Drop for NbdServerProcess {
    fn drop(&mut self) {
        if self.ending == Ending::Kill {
            return self.process.signal(Signal::KILL);
        }
        self.process.signal(Signal::TERM);
        // The descriptor of a process becomes readable when it has ended.
        let limit = Timespec { tv_sec: END_TIMEOUT.as_secs() as i64, tv_nsec: 0 };
        loop {
            match poll(&mut [PollFd::new(&self.process, PollFlags::IN)], Some(&limit)) {
                Err(rustix::io::Errno::INTR) => {}
                Ok(0) => return self.process.signal(Signal::KILL),
                Ok(_) | Err(_) => return,
            }
        }
    }
}

fn command(options: &ServeOptions<'_>, listener: UnixListener, words: File) -> Command {
    let mut command = Command::new("/bin/sh");
    // The handed-over socket must be descriptor 3 and the variable must hold the process's own number.
    command.arg("-c").arg("LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\" 3<&0 </dev/null").arg(QEMU_NBD);
    command.args(["--persistent", "--export-name", EXPORT]);
    command.arg(format!("--shared={CONNECTIONS_MAX}"));
    match options.access {
        Access::Read => command.arg("--read-only"),
        Access::Write => command.arg("--discard=unmap"),
    };
    options.bitmaps.iter().for_each(|name| {
        command.arg(format!("--bitmap={name}"));
    });
    command.arg(options.image).env("LC_ALL", "C");
    command.stdin(Stdio::from(OwnedFd::from(listener))).stdout(Stdio::null()).stderr(words);
    command
}

/// A listening socket and connections to it that wait for being accepted; its name exists only in between.
fn private_socket() -> io::Result<(UnixListener, Vec<UnixStream>)> {
    // Nobody else can connect.
    let folder = scratch_folder()?;
    let path = folder.path().join("nbd");
    let listener = UnixListener::bind(&path)?;
    let sockets = (0..CONNECTIONS_MAX).map(|_| UnixStream::connect(&path)).collect::<io::Result<Vec<_>>>()?;
    Ok((listener, sockets))
}

const QEMU_NBD: &str = "qemu-nbd";
const EXPORT: &str = "disk";
/// For `qemu-nbd` to close an image: what it still has to write are tables, 32 MiB at most, and bitmaps.
const END_TIMEOUT: Duration = Duration::from_secs(300);
/// What `sh` ends with when there is no such program.
const SHELL_NOT_FOUND: i32 = 127;
