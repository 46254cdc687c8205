//! The process that runs the hooks of a backup. It is this program, started again before anything is frozen. It runs
//! both commands. It runs the command after when the backup says so, when the deadline is over, or when the pipe to the
//! backup closes. The pipe also closes when SIGKILL ends the backup, a signal that no process can catch.

use mover::Signals;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use std::os::fd::AsFd;
use std::process::{ExitCode, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::unix::pipe::Receiver;
use tokio::process::Command;
use tokio::time::timeout;

/// The first message from the backup to the keeper.
#[derive(Debug, Serialize, Deserialize)]
pub struct Asked {
    pub machine: String,
    pub before: Option<String>,
    pub after: Option<String>,
    pub limit: Duration,
}

/// A message from the keeper to the backup.
#[derive(Debug, Serialize, Deserialize)]
pub enum Heard {
    /// The command before has ended.
    Before { failed: Option<String> },
    /// The command after begins, and whether because of its deadline.
    Thawing { late: bool },
    /// The command after has ended.
    After { failed: Option<String> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    PreFreeze,
    PostThaw,
}

/// Runs the keeper when this process was started as one.
pub fn run_if_asked() -> Option<ExitCode> {
    std::env::args_os().nth(1).filter(|word| word == WORD)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Some(match runtime {
        Ok(runtime) => {
            if runtime.block_on(keep()).is_some() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(_) => ExitCode::FAILURE,
    })
}

async fn keep() -> Option<()> {
    // A stop of the whole job must not stop the thaw: with a listener, signals do nothing here.
    let _signals = Signals::listen().ok()?;
    let pipe = std::io::stdin().as_fd().try_clone_to_owned().ok()?;
    let mut words = BufReader::new(Receiver::from_owned_fd(pipe).ok()?).lines();
    let asked: Asked = serde_json::from_str(&words.next_line().await.ok()??).ok()?;
    let mut told = None;
    if asked.before.is_some() {
        let failed = tokio::select! {
            biased;
            ended = run_hook(&asked, Phase::PreFreeze, true, false) => ended.err(),
            word = next_word(&mut words) => {
                told = Some(word);
                Some("it was stopped with the backup".into())
            }
        };
        say(&Heard::Before { failed });
    } else {
        say(&Heard::Before { failed: None });
    }
    let (word, late) = match told {
        Some(word) => (word, false),
        None => match timeout(asked.limit + GRACE, next_word(&mut words)).await {
            Ok(word) => (word, false),
            Err(_) => (Some(FAILED.to_owned()), true),
        },
    };
    say(&Heard::Thawing { late });
    let ok = word.as_deref() == Some(OK);
    // With the backup gone nobody reads what the command says; a closed pipe must not end it.
    let failed = run_hook(&asked, Phase::PostThaw, ok, word.is_none()).await.err();
    say(&Heard::After { failed });
    Some(())
}

/// None when the backup is gone.
async fn next_word(words: &mut Lines<BufReader<Receiver>>) -> Option<String> {
    words.next_line().await.ok().flatten()
}

fn say(heard: &Heard) {
    use std::io::Write;
    let mut line = serde_json::to_vec(heard).expect("strings and truths");
    line.push(b'\n');
    // Who should hear it may be gone.
    let _ = std::io::stdout().lock().write_all(&line);
}

/// Runs one of the commands, if there is one. At the end of its time limit, ends its whole process group.
pub async fn run_hook(asked: &Asked, phase: Phase, ok: bool, unheard: bool) -> Result<(), String> {
    let (command, name) = match phase {
        Phase::PreFreeze => (&asked.before, "pre-freeze"),
        Phase::PostThaw => (&asked.after, "post-thaw"),
    };
    let Some(command) = command else { return Ok(()) };
    let words = || if unheard { Stdio::null() } else { Stdio::from(std::io::stderr()) };
    let spawned = Command::new("sh")
        .args(["-c", command])
        .env("WINDLASS_PHASE", name)
        .env("WINDLASS_STATUS", if ok { "ok" } else { "failed" })
        .env("WINDLASS_MACHINE", &asked.machine)
        .stdin(Stdio::null())
        // Its words must not get between our own on stdout.
        .stdout(words())
        .stderr(words())
        .process_group(0)
        .spawn();
    let mut child = spawned.map_err(|error| error.to_string())?;
    let group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
    match timeout(asked.limit, child.wait()).await {
        Ok(Ok(status)) => {
            // What it left running on purpose goes on.
            std::mem::forget(group);
            if status.success() { Ok(()) } else { Err(status.to_string()) }
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => {
            group.signal(Signal::TERM);
            let _ = timeout(TERM_TIMEOUT, child.wait()).await;
            Err(format!(
                "it took longer than {} s and was stopped; set a longer limit with --hook-timeout or hook_timeout",
                asked.limit.as_secs_f64()
            ))
        }
    }
}

/// A command and all it started; ended when this is dropped.
struct Group(Option<Pid>);

impl Group {
    fn signal(&self, signal: Signal) {
        if let Some(group) = self.0 {
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// The argument that makes this program a keeper. No command for people: it talks to the backup that starts it.
pub const WORD: &str = "keep-hooks";
pub const OK: &str = "ok";
pub const FAILED: &str = "failed";
/// Time after the limit for which backup and keeper still wait for each other.
pub const GRACE: Duration = Duration::from_secs(10);
/// For a command to end by itself after its time.
const TERM_TIMEOUT: Duration = Duration::from_secs(2);
