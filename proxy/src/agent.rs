//! A client of the QEMU guest agent (QEMU, `docs/interop/qemu-ga`): freezing and thawing file systems, and what the guest
//! says of itself.
//!
//! The guest is hostile or broken: it may answer anything, late, or what was asked by somebody else. Answers have no
//! numbers. So each conversation begins with a number that only we know, and after a command that was not answered in
//! time nothing counts before such a number came back.

use crate::lines::{Lines, printable};
use mover::World;
use serde_json::{Value, json};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout, timeout_at};

/// A connection to the agent of a guest.
#[derive(Debug)]
pub struct Agent {
    stream: UnixStream,
    lines: Lines,
    /// The last number that was sent to tell old answers from new ones.
    number: u64,
    /// False when something may still come that belongs to an earlier command.
    in_step: bool,
}

/// Why the agent did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The socket failed.
    #[error("the connection to the guest agent failed: {0}")]
    Io(#[from] io::Error),
    /// QEMU closed the socket.
    #[error("the connection to the guest agent was closed")]
    Closed,
    /// No answer in time.
    #[error("the guest agent did not answer {command} within {:.1} s", limit.as_secs_f64())]
    Late {
        /// The command.
        command: &'static str,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The agent refused.
    #[error("the guest agent refused {command}: {why}")]
    Refused {
        /// The command.
        command: &'static str,
        /// What it said.
        why: String,
    },
    /// The answer makes no sense.
    #[error("the guest agent gave a strange answer to {0}")]
    Answer(&'static str),
}

/// Whether the guest's file systems stand still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreezeStatus {
    /// They take writes.
    Thawed,
    /// They stand still.
    Frozen,
}

impl Agent {
    /// Connects to the agent's socket at `path`. That says nothing yet about the guest.
    ///
    /// # Errors
    /// Of the socket.
    pub async fn connect(path: &Path, world: &World) -> io::Result<Self> {
        // A socket in use lets nobody in while its queue is full; with room in the queue nobody answers.
        Ok(Self::over(timeout(CONNECT_TIMEOUT, UnixStream::connect(path)).await??, world))
    }

    /// The agent behind a socket on which another process has begun to talk.
    ///
    /// # Errors
    /// Of the socket.
    pub fn taken_over(socket: StdStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self::over(UnixStream::from_std(socket)?, &World::system()))
    }

    fn over(stream: UnixStream, world: &World) -> Self {
        // A number that nobody guesses; JSON carries 53 bits without loss.
        let number = u64::from(u32::from_be_bytes(world.random_bytes())) << 16;
        Self { stream, lines: Lines::new(LINE_BYTES_MAX), number, in_step: false }
    }

    /// The socket once more, for a process that is to go on when this one dies.
    ///
    /// # Errors
    /// Of the system.
    pub fn socket(&self) -> io::Result<OwnedFd> {
        self.stream.as_fd().try_clone_to_owned()
    }

    /// Begins a conversation: waits until the agent answers at all, and what it answers is about what we ask.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn synchronise(&mut self, limit: Duration) -> Result<(), AgentError> {
        let deadline = Instant::now() + limit;
        let late = || AgentError::Late { command: SYNC, limit };
        loop {
            if Instant::now() >= deadline {
                return Err(late());
            }
            self.number += 1;
            let line = json!({"execute": SYNC, "arguments": {"id": self.number}}).to_string();
            // The byte 0xFF makes the agent forget half of a command that came before.
            let line = [&[0xFF], line.as_bytes(), b"\n"].concat();
            timeout_at(deadline, self.stream.write_all(&line)).await.map_err(|_| late())??;
            let attempt = deadline.min(Instant::now() + SYNC_TIMEOUT);
            match timeout_at(attempt, self.number_comes_back()).await {
                Ok(done) => {
                    self.in_step = true;
                    return done;
                }
                Err(_) => tracing::debug!("the guest agent has not answered yet"),
            }
        }
    }

    async fn number_comes_back(&mut self) -> Result<(), AgentError> {
        loop {
            let line = self.lines.next(&mut self.stream).await?.ok_or(AgentError::Closed)?;
            // What stands before the byte 0xFF belongs to earlier commands.
            let Some(at) = line.iter().rposition(|byte| *byte == 0xFF) else { continue };
            let answer: Option<Value> = serde_json::from_slice(&line[at + 1..]).ok();
            if answer.is_some_and(|it| it.get("return") == Some(&self.number.into())) {
                return Ok(());
            }
        }
    }

    /// Asks the agent, which must have been in step before; begins a new conversation where it was not.
    ///
    /// # Errors
    /// See [`AgentError`].
    async fn call(&mut self, command: &'static str, arguments: Value, limit: Duration) -> Result<Value, AgentError> {
        let deadline = Instant::now() + limit;
        if !self.in_step {
            self.synchronise(limit).await?;
        }
        let line = json!({"execute": command, "arguments": arguments}).to_string() + "\n";
        self.in_step = false;
        let late = |_| AgentError::Late { command, limit };
        timeout_at(deadline, self.stream.write_all(line.as_bytes())).await.map_err(late)??;
        let line = timeout_at(deadline, self.lines.next(&mut self.stream)).await.map_err(late)??;
        let line = line.ok_or(AgentError::Closed)?;
        self.in_step = true;
        let mut answer: Value = serde_json::from_slice(&line).map_err(|_| AgentError::Answer(command))?;
        if let Some(value) = answer.get_mut("return") {
            return Ok(value.take());
        }
        let why = answer.pointer("/error/desc").and_then(Value::as_str).ok_or(AgentError::Answer(command))?;
        Err(AgentError::Refused { command, why: printable(why, WHY_CHARS_MAX) })
    }

    /// Whether file systems stand still; this is answered also while they do.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn freeze_status(&mut self) -> Result<FreezeStatus, AgentError> {
        const COMMAND: &str = "guest-fsfreeze-status";
        match self.call(COMMAND, json!({}), ANSWER_TIMEOUT).await?.as_str() {
            Some("thawed") => Ok(FreezeStatus::Thawed),
            Some("frozen") => Ok(FreezeStatus::Frozen),
            _ => Err(AgentError::Answer(COMMAND)),
        }
    }

    /// Freezes all file systems; gives how many. On Windows this is a VSS snapshot of all volumes.
    ///
    /// # Errors
    /// See [`AgentError`]. After [`AgentError::Late`] they may freeze any time later.
    pub async fn freeze(&mut self, limit: Duration) -> Result<u64, AgentError> {
        const COMMAND: &str = "guest-fsfreeze-freeze";
        self.call(COMMAND, json!({}), limit).await?.as_u64().ok_or(AgentError::Answer(COMMAND))
    }

    /// Thaws them; gives how many stood still until now. 0: somebody else thawed them before.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn thaw(&mut self, limit: Duration) -> Result<u64, AgentError> {
        const COMMAND: &str = "guest-fsfreeze-thaw";
        self.call(COMMAND, json!({}), limit).await?.as_u64().ok_or(AgentError::Answer(COMMAND))
    }

    /// The guest's clock, in nanoseconds since 1970.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn clock(&mut self) -> Result<i64, AgentError> {
        const COMMAND: &str = "guest-get-time";
        self.call(COMMAND, json!({}), ANSWER_TIMEOUT).await?.as_i64().ok_or(AgentError::Answer(COMMAND))
    }

    /// The name that the guest calls itself by.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn host_name(&mut self) -> Result<String, AgentError> {
        self.word("guest-get-host-name", "host-name").await
    }

    /// The guest's operating system, for people: `Debian GNU/Linux 12 (bookworm)`.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn system(&mut self) -> Result<String, AgentError> {
        self.word("guest-get-osinfo", "pretty-name").await
    }

    async fn word(&mut self, command: &'static str, key: &str) -> Result<String, AgentError> {
        let answer = self.call(command, json!({}), ANSWER_TIMEOUT).await?;
        let word = answer.get(key).and_then(Value::as_str).ok_or(AgentError::Answer(command))?;
        Ok(printable(word, WHY_CHARS_MAX))
    }
}

const SYNC: &str = "guest-sync-delimited";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// For one try to get an answer at all.
const SYNC_TIMEOUT: Duration = Duration::from_secs(1);
/// For commands that do nothing.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// An agent says little.
const LINE_BYTES_MAX: usize = 1 << 20;
const WHY_CHARS_MAX: usize = 200;
