//! A process that watches over a running machine while Windlass works on it. It is this program, started again before
//! anything is changed in QEMU, with the same sockets. It thaws the guest when the deadline is over, and when the backup
//! is killed by a signal that no process can catch it sets the machine going, thaws the guest, and takes the snapshot out
//! of QEMU.

use super::graph::{Traces, is_running, undo};
use super::names::SessionNumber;
use crate::agent::Agent;
use crate::lines::Lines;
use crate::qmp::{Monitor, QmpError, receive_with_descriptors, send_with_descriptors};
use mover::{Error, Result, Signals, World};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream as StdStream};
use std::process::{ExitCode, Stdio};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// What the watchdog is told first; the sockets come with it.
#[derive(Debug, Serialize, Deserialize)]
struct Asked {
    /// The session, as its parts in QEMU are named.
    session: String,
    /// How long the guest's file systems may stand still.
    freeze_limit: Duration,
    /// Whether a socket of the guest agent came along.
    agent: bool,
}

/// What the backup tells the watchdog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word {
    /// The guest is asked to freeze its file systems.
    Freezing,
    /// They take writes again.
    Thawed,
    /// The machine's processors are stopped.
    Stopping,
    /// They go on.
    Going,
    /// Nothing is left to watch.
    End,
}

/// The watchdog, as the backup sees it.
#[derive(Debug)]
pub struct Watchdog {
    child: Child,
    socket: UnixStream,
}

impl Watchdog {
    /// Starts it.
    ///
    /// # Errors
    /// `Internal` when the process cannot be started.
    pub async fn start(
        session: &Held,
        monitor: &Monitor,
        agent: Option<&Agent>,
        freeze_limit: Duration,
    ) -> Result<Self> {
        let failed = |error: io::Error| Error::internal("the watchdog process cannot be started").because(error);
        let (ours, theirs) = StdStream::pair().map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        let socket = UnixStream::from_std(ours).map_err(failed)?;
        let mut command = Command::new("/proc/self/exe");
        // Signals from the terminal and those to a job are not for it.
        command.arg(WORD).process_group(0).stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null());
        let child = command.spawn().map_err(failed)?;
        let mut watchdog = Self { child, socket };
        let asked = Asked { session: session.number.to_string(), freeze_limit, agent: agent.is_some() };
        let mut line = serde_json::to_vec(&asked).expect("strings and numbers");
        line.push(b'\n');
        let mut sockets = vec![session.holder.as_fd().try_clone_to_owned().map_err(failed)?];
        sockets.push(monitor.socket().map_err(failed)?);
        sockets.extend(agent.map(Agent::socket).transpose().map_err(failed)?);
        let sockets: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        let sent = send_with_descriptors(&watchdog.socket, &line, &sockets).await.map_err(failed)?;
        watchdog.socket.write_all(&line[sent..]).await.map_err(failed)?;
        Ok(watchdog)
    }

    /// Tells it something before that is done.
    ///
    /// # Errors
    /// `Internal` when it is gone: nothing may be begun then.
    pub async fn tell(&mut self, word: Word) -> Result<()> {
        let mut line = serde_json::to_vec(&word).expect("a word");
        line.push(b'\n');
        let told = timeout(TELL_TIMEOUT, self.socket.write_all(&line)).await;
        let told = told.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        told.map_err(|error| Error::internal("the watchdog process is gone").because(error))
    }

    /// Ends it: nothing is left to watch.
    pub async fn end(mut self) {
        let _ = self.tell(Word::End).await;
        drop(self.socket);
        if timeout(END_TIMEOUT, self.child.wait()).await.is_err() {
            tracing::warn!("the watchdog process does not end");
        }
    }
}

/// The number of a session that lives: as long as this, or the watchdog, exists, [`is_held`] tells so.
#[derive(Debug)]
pub struct Held {
    /// The number.
    pub number: SessionNumber,
    holder: UnixListener,
}

impl Held {
    /// Takes a new number.
    ///
    /// # Errors
    /// `Internal`.
    pub fn begin(world: &World) -> Result<Self> {
        let number = SessionNumber::random(world);
        let holder = address(number).and_then(|address| UnixListener::bind_addr(&address));
        let holder = holder.map_err(|error| Error::internal("no session can be begun").because(error))?;
        Ok(Self { number, holder })
    }
}

/// True when a process of this host works in this session.
pub fn is_held(number: SessionNumber) -> bool {
    address(number).and_then(|address| StdStream::connect_addr(&address)).is_ok()
}

/// A name that exists as long as somebody has the socket open, and leaves nothing behind.
fn address(number: SessionNumber) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("windlass/live/{number}"))
}

/// Runs the watchdog when this process was started as one.
pub fn run_if_asked() -> Option<ExitCode> {
    std::env::args_os().nth(1).filter(|word| word == WORD)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.and_then(|runtime| runtime.block_on(watch()));
    Some(if done.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is known of the machine.
struct Watched {
    session: SessionNumber,
    freeze_limit: Duration,
    agent: Option<OwnedFd>,
    monitor: OwnedFd,
    /// Since when the guest may stand still.
    frozen: Option<Instant>,
    stopped: bool,
    _holder: OwnedFd,
}

async fn watch() -> io::Result<()> {
    // A stop of the whole job must not stop the thaw: with a listener, signals do nothing here.
    let _signals = Signals::listen().map_err(io::Error::other)?;
    let (mut watched, mut socket, mut lines) = begin()?;
    loop {
        let due = watched.frozen.map(|since| since + watched.freeze_limit);
        tokio::select! {
            biased;
            line = lines.next(&mut socket) => {
                let word = line.ok().flatten().and_then(|line| serde_json::from_slice::<Word>(&line).ok());
                match word {
                    Some(Word::Freezing) => watched.frozen = Some(Instant::now()),
                    Some(Word::Thawed) => watched.frozen = None,
                    Some(Word::Stopping) => watched.stopped = true,
                    Some(Word::Going) => watched.stopped = false,
                    Some(Word::End) => return Ok(()),
                    None => break,
                }
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                say(&format!("the guest stood still for {} s and is thawed", watched.freeze_limit.as_secs()));
                watched.release().await?;
            }
        }
    }
    say("the backup is gone: the machine is set going, and the snapshot removed");
    watched.release().await?;
    let deadline = Instant::now() + HANG_TIMEOUT;
    loop {
        match watched.undo().await {
            Err(QmpError::Hangs { folder }) if Instant::now() < deadline => {
                say(&format!("waiting for {}, which does not answer", folder.display()));
                sleep(HANG_PAUSE).await;
            }
            undone => return undone.map_err(io::Error::other),
        }
    }
}

/// Receives the sockets. Blocks until they are there.
fn begin() -> io::Result<(Watched, UnixStream, Lines)> {
    let socket = StdStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut bytes = [0; 1024];
    let (got, sockets) = receive_with_descriptors(&socket, &mut bytes)?;
    let wrong = || io::Error::from(io::ErrorKind::InvalidData);
    let asked: Asked = serde_json::from_slice(bytes[..got].trim_ascii_end()).map_err(io::Error::other)?;
    let mut sockets = sockets.into_iter();
    let (holder, monitor) = (sockets.next().ok_or_else(wrong)?, sockets.next().ok_or_else(wrong)?);
    let agent = asked.agent.then(|| sockets.next().ok_or_else(wrong)).transpose()?;
    let session = SessionNumber::of(&asked.session).ok_or_else(wrong)?;
    socket.set_nonblocking(true)?;
    let (frozen, stopped, freeze_limit) = (None, false, asked.freeze_limit);
    let watched = Watched { session, freeze_limit, agent, monitor, frozen, stopped, _holder: holder };
    Ok((watched, UnixStream::from_std(socket)?, Lines::new(1024)))
}

impl Watched {
    fn monitor(&self) -> io::Result<Monitor> {
        Monitor::taken_over(StdStream::from(self.monitor.try_clone()?))
    }

    /// Takes the snapshot out.
    async fn undo(&self) -> Result<(), QmpError> {
        let mut monitor = self.monitor()?;
        let traces = Traces::look(&mut monitor, Some(self.session)).await?;
        let running = is_running(&mut monitor).await?;
        undo(&mut monitor, &traces, running).await
    }

    /// Sets the machine going and thaws the guest. An agent in a stopped machine answers nothing, so this is the order.
    async fn release(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.stopped)
            && let Err(error) = self.monitor()?.tell("cont", json!({})).await
        {
            say(&format!("the machine cannot be set going: {error}"));
        }
        if self.frozen.take().is_some()
            && let Some(agent) = &self.agent
        {
            let mut agent = Agent::taken_over(StdStream::from(agent.try_clone()?))?;
            let deadline = Instant::now() + THAW_TIMEOUT;
            loop {
                match agent.thaw(THAW_ATTEMPT).await {
                    Ok(_) => break,
                    Err(error) if Instant::now() >= deadline => {
                        say(&format!("the guest cannot be thawed: {error}"));
                        break;
                    }
                    // It may be in the middle of freezing, or just be slow.
                    Err(_) => sleep(THAW_PAUSE).await,
                }
            }
        }
        Ok(())
    }
}

/// Whoever should read it may be gone.
fn say(what: &str) {
    use std::io::Write;
    let _ = writeln!(io::stderr(), "windlass watchdog: {what}");
}

/// The argument that makes this program a watchdog. No command for people: it talks to the backup that starts it.
const WORD: &str = "watch-machine";
const TELL_TIMEOUT: Duration = Duration::from_secs(5);
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// For one try to thaw, all tries together, and between two.
const THAW_ATTEMPT: Duration = Duration::from_secs(5);
const THAW_TIMEOUT: Duration = Duration::from_secs(120);
const THAW_PAUSE: Duration = Duration::from_millis(200);
/// For scratch space that hangs to answer again, and between two tries. Later the next backup, or `doctor`, takes the
/// snapshot out.
const HANG_TIMEOUT: Duration = Duration::from_secs(3600);
const HANG_PAUSE: Duration = Duration::from_secs(5);
