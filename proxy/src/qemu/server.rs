//! A `qemu-nbd` of our own for one image.

use super::tool::{ToolError, last_words, memory_file};
use crate::nbd::{CONNECTIONS_MAX, NbdDisk, NbdError, Patience};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, getppid, pidfd_open, pidfd_send_signal, set_parent_process_death_signal,
};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use tokio::sync::oneshot;

/// What to serve.
#[derive(Debug, Clone)]
pub struct ServeOptions<'a> {
    /// The image.
    pub path: &'a Path,
    /// Its format as QEMU calls it.
    pub format: &'static str,
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
    /// The process failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// It runs, but cannot be talked to.
    #[error(transparent)]
    Nbd(#[from] NbdError),
}

/// A running `qemu-nbd`. It ends when this is dropped, and when our process dies in whatever way.
#[derive(Debug)]
pub struct NbdServerProcess {
    process: OwnedFd,
    ended: oneshot::Receiver<io::Result<ExitStatus>>,
    words: File,
    ending: Ending,
}

/// How the process is ended when it is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// At once.
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
        let (started, wait_start) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        // The signal at the parent's death is tied to the thread that forked: it must live as long as the process.
        std::thread::Builder::new()
            .name(QEMU_NBD.to_owned())
            .spawn(move || supervise(command, started, end))
            .map_err(start)?;
        let lost = || io::Error::other("the thread that starts it ended");
        let process = wait_start.await.map_err(|_| start(lost()))?.map_err(start)?;
        let server = Self { process, ended, words, ending: Ending::Kill };
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

    /// From here on a drop lets the process close the image, and waits for that: for an image that was there before us
    /// and is written in place, whose bitmaps would be lost and whose freed clusters would leak otherwise.
    pub fn end_in_order(&mut self) {
        self.ending = Ending::InOrder;
    }

    /// Ends the process and waits until it released the image. Connections must be closed, or their requests fail.
    ///
    /// # Errors
    /// When it did not end cleanly.
    pub async fn stop(mut self) -> Result<(), ToolError> {
        self.signal(Signal::TERM);
        let status = self.wait().await?;
        if status.success() {
            return Ok(());
        }
        Err(ToolError::Failed { program: QEMU_NBD, status, words: last_words(&self.words) })
    }

    /// The error that `error` on a connection really is: what the process said, when it ended by itself.
    async fn explain(mut self, error: NbdError) -> ServeError {
        self.signal(Signal::KILL);
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

    async fn wait(&mut self) -> Result<ExitStatus, ToolError> {
        let lost = || io::Error::other("the thread that watches it ended");
        let status = (&mut self.ended).await.unwrap_or_else(|_| Err(lost()));
        status.map_err(|error| ToolError::Start { program: QEMU_NBD, error })
    }

    /// By a handle of the process, not its number, which may be somebody else's by now.
    ///
    /// SIGTERM ends it in order, but only once it serves: `qemu-nbd` forgets one that comes while it starts. SIGKILL
    /// always works, and harms neither an image that is only read nor one that is ours and incomplete.
    fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.process, signal);
    }
}

impl Drop for NbdServerProcess {
    fn drop(&mut self) {
        if self.ending == Ending::Kill {
            return self.signal(Signal::KILL);
        }
        self.signal(Signal::TERM);
        // The descriptor of a process becomes readable when it has ended. No timeout: it may have much to write.
        while let Err(rustix::io::Errno::INTR) = poll(&mut [PollFd::new(&self.process, PollFlags::IN)], None) {}
    }
}

fn supervise(
    mut command: Command,
    started: oneshot::Sender<io::Result<OwnedFd>>,
    ended: oneshot::Sender<io::Result<ExitStatus>>,
) {
    let spawned = command.spawn().and_then(|child| {
        let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
        Ok((child, process))
    });
    // Our copy of the listening socket goes, or a process that failed would leave connections waiting.
    drop(command);
    match spawned {
        Ok((mut child, process)) => {
            if let Err(Ok(process)) = started.send(Ok(process)) {
                // Nobody waits any more.
                let _ = pidfd_send_signal(&process, Signal::KILL);
            }
            let _ = ended.send(child.wait());
        }
        Err(error) => {
            let _ = started.send(Err(error));
        }
    }
}

fn command(options: &ServeOptions<'_>, listener: UnixListener, words: File) -> Command {
    let mut command = Command::new("/bin/sh");
    // The handed-over socket must be descriptor 3 and the variable must hold the process's own number.
    command.arg("-c").arg("LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\" 3<&0 </dev/null").arg(QEMU_NBD);
    command.args(["--persistent", "--format", options.format, "--export-name", EXPORT]);
    command.arg(format!("--shared={CONNECTIONS_MAX}"));
    match options.access {
        Access::Read => command.arg("--read-only"),
        Access::Write => command.arg("--discard=unmap"),
    };
    options.bitmaps.iter().for_each(|name| {
        command.arg(format!("--bitmap={name}"));
    });
    command.arg(options.path).env("LC_ALL", "C");
    command.stdin(Stdio::from(OwnedFd::from(listener))).stdout(Stdio::null()).stderr(words);
    // Ctrl-C on the terminal is for us; the process ends in order when we do.
    command.process_group(0);
    let parent = Pid::from_raw(std::process::id().cast_signed());
    // SAFETY: between fork and exec the closure only makes two system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // We may have died before that.
            if getppid() == parent { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
        });
    }
    command
}

/// A listening socket and connections to it that wait for being accepted; its name exists only in between.
fn private_socket() -> io::Result<(UnixListener, Vec<UnixStream>)> {
    let mut place = std::env::temp_dir();
    if place.as_os_str().len() > SOCKET_FOLDER_BYTES_MAX {
        place = PathBuf::from("/tmp");
    }
    // Made with mode 0700: nobody else can connect.
    let folder = tempfile::Builder::new().prefix("windlass-").tempdir_in(place)?;
    let path = folder.path().join("nbd");
    let listener = UnixListener::bind(&path)?;
    let sockets = (0..CONNECTIONS_MAX).map(|_| UnixStream::connect(&path)).collect::<io::Result<Vec<_>>>()?;
    Ok((listener, sockets))
}

const QEMU_NBD: &str = "qemu-nbd";
const EXPORT: &str = "disk";
/// What `sh` ends with when there is no such program.
const SHELL_NOT_FOUND: i32 = 127;
/// A socket's path has at most 107 bytes; ours adds 16 or so to the folder's.
const SOCKET_FOLDER_BYTES_MAX: usize = 80;
