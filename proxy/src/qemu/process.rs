//! A tool as a process. A thread of its own watches it. Signals go to the process through a handle, not through its
//! number, which may be the number of another process by now.

use rustix::process::{
    Pid, PidfdFlags, Signal, getppid, pidfd_open, pidfd_send_signal, set_parent_process_death_signal,
};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus};
use tokio::sync::oneshot;

/// A process that was started, and is reaped whatever becomes of this.
#[derive(Debug)]
pub(super) struct Process {
    handle: OwnedFd,
    ended: oneshot::Receiver<io::Result<ExitStatus>>,
}

/// What becomes of a process when ours dies in whatever way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Death {
    /// The process is killed.
    Shared,
    /// It goes on to its own end.
    Own,
}

impl Process {
    /// Starts `command` in a process group of its own: Ctrl-C on the terminal is for us.
    pub async fn start(name: &'static str, mut command: Command, death: Death) -> io::Result<Self> {
        command.process_group(0);
        if death == Death::Shared {
            die_with_us(&mut command);
        }
        let (started, wait_start) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        // The signal at the parent's death is tied to the thread that forked: it must live as long as the process.
        std::thread::Builder::new().name(name.to_owned()).spawn(move || watch(command, started, end))?;
        let handle = wait_start.await.map_err(|_| io::Error::other("the thread that starts it ended"))??;
        Ok(Self { handle, ended })
    }

    /// Sends a signal. One to a process that has ended does nothing.
    pub fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.handle, signal);
    }

    /// Waits for its end. To be called until it answers, once.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        let lost = || io::Error::other("the thread that watches it ended");
        (&mut self.ended).await.unwrap_or_else(|_| Err(lost()))
    }
}

impl AsFd for Process {
    /// Readable when the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

fn watch(
    mut command: Command,
    started: oneshot::Sender<io::Result<OwnedFd>>,
    ended: oneshot::Sender<io::Result<ExitStatus>>,
) {
    let spawned = command.spawn().and_then(|child| {
        let handle = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
        Ok((child, handle))
    });
    // Our copies of what it inherits go: a process that failed would leave a listening socket open.
    drop(command);
    match spawned {
        Ok((mut child, handle)) => {
            if let Err(Ok(handle)) = started.send(Ok(handle)) {
                // Nobody waits any more, so it has been told nothing.
                let _ = pidfd_send_signal(&handle, Signal::KILL);
            }
            let _ = ended.send(child.wait());
        }
        Err(error) => {
            let _ = started.send(Err(error));
        }
    }
}

fn die_with_us(command: &mut Command) {
    let parent = Pid::from_raw(std::process::id().cast_signed());
    // SAFETY: between fork and exec the closure only makes two system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // We may have died before that.
            if getppid() == parent { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
        });
    }
}
