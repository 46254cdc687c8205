//! The administrator's commands around the opening of the disks.
//!
//! They are run by a process of their own, the keeper (`hooks/keeper.rs`): whatever becomes of this one, killed or stopped,
//! the command after is run, and once.

pub mod keeper;

use crate::text::seconds;
use crate::windlass::Context;
use keeper::{Asked, Heard, Phase, run_hook};
use mover::{Error, ErrorKind, Name, Result};
use std::future::Future;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

pub struct Hooks<'a> {
    pub machine: &'a Name,
    pub before: Option<&'a str>,
    pub after: Option<&'a str>,
    /// For each command, and for the disks to be opened in between.
    pub limit: Duration,
}

/// What came of the commands when the disks were opened.
#[derive(Default)]
pub struct Frozen {
    /// From the begin of the command before to the end of the one after; nothing without a command before.
    pub duration: Duration,
    pub warning: Option<String>,
}

impl Hooks<'_> {
    /// Whether there are any.
    pub fn are_some(&self) -> bool {
        self.before.is_some() || self.after.is_some()
    }

    /// Runs the command before, `open`, and in every case the command after.
    pub async fn around<T>(&self, context: &Context, open: impl Future<Output = Result<T>>) -> Result<(T, Frozen)> {
        let began = Instant::now();
        let asked = self.asked();
        let mut keeper = Keeper::start(&asked).await?;
        let opened = match context.stop.race(keeper.frozen(self.limit)).await {
            Ok(()) => timeout(self.limit, open).await.unwrap_or_else(|_| {
                let limit = seconds(self.limit);
                Err(Error::new(
                    ErrorKind::Quiesce,
                    format!("the disks were not open within {limit} after the pre-freeze command"),
                )
                .hint("set a longer limit with --hook-timeout"))
            }),
            Err(error) => Err(error),
        };
        let thawed = keeper.thaw(&asked, opened.is_ok()).await;
        let mut frozen = Frozen::default();
        if self.before.is_some() {
            frozen.duration = began.elapsed();
        }
        // The disks were opened or not: that decides. But somebody must look whether things still stand still.
        frozen.warning = thawed.failed.map(|why| failed("post-thaw", &why).message());
        match opened {
            Ok(_) if thawed.late => Err(Error::new(
                ErrorKind::Quiesce,
                "this process was stopped for so long that its time limit ended before the disks were open",
            )),
            Ok(opened) => Ok((opened, frozen)),
            Err(error) => {
                frozen.warning.iter().for_each(|warning| context.out.warn(warning));
                Err(error)
            }
        }
    }

    fn asked(&self) -> Asked {
        Asked {
            machine: self.machine.to_string(),
            before: self.before.map(str::to_owned),
            after: self.after.map(str::to_owned),
            limit: self.limit,
        }
    }
}

/// What is known of the end.
struct Thawed {
    failed: Option<String>,
    /// It came by its deadline, not because we asked.
    late: bool,
}

/// The process that runs the commands.
struct Keeper {
    _child: Child,
    ask: ChildStdin,
    heard: Lines<BufReader<ChildStdout>>,
}

impl Keeper {
    async fn start(asked: &Asked) -> Result<Self> {
        let failed = |error| Error::internal("the process that runs the hooks cannot be started").because(error);
        let mut command = Command::new("/proc/self/exe");
        // Signals from the terminal and those to a job are not for it.
        command.arg(keeper::WORD).process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        let (ask, heard) = (child.stdin.take(), child.stdout.take());
        let (Some(ask), Some(heard)) = (ask, heard) else { return Err(Error::internal("pipes without ends")) };
        let mut keeper = Self { _child: child, ask, heard: BufReader::new(heard).lines() };
        let line = serde_json::to_string(asked).expect("strings and a number");
        keeper.say(&line).await.map_err(failed)?;
        Ok(keeper)
    }

    async fn say(&mut self, line: &str) -> std::io::Result<()> {
        self.ask.write_all(format!("{line}\n").as_bytes()).await?;
        self.ask.flush().await
    }

    async fn hear(&mut self) -> Option<Heard> {
        let line = self.heard.next_line().await.ok()??;
        serde_json::from_str(&line).ok()
    }

    /// Waits until the command before has ended.
    async fn frozen(&mut self, limit: Duration) -> Result<()> {
        match timeout(limit + keeper::GRACE, self.hear()).await {
            Ok(Some(Heard::Before { failed: None })) => Ok(()),
            Ok(Some(Heard::Before { failed: Some(why) })) => Err(failed("pre-freeze", &why)),
            Ok(_) | Err(_) => Err(failed("pre-freeze", "the process that ran it was killed")),
        }
    }

    /// Has the command after run, and waits for its end.
    async fn thaw(&mut self, asked: &Asked, ok: bool) -> Thawed {
        let _ = self.say(if ok { keeper::OK } else { keeper::FAILED }).await;
        let (mut late, mut begun) = (false, false);
        let ended = timeout(asked.limit + keeper::GRACE, async {
            loop {
                match self.hear().await {
                    Some(Heard::Before { .. }) => {}
                    Some(Heard::Thawing { late: by_deadline }) => (late, begun) = (by_deadline, true),
                    Some(Heard::After { failed }) => return Some(failed),
                    None => return None,
                }
            }
        });
        let failed = match ended.await {
            Ok(Some(failed)) => failed,
            // Somebody killed it before it came to that.
            _ if !begun => run_hook(asked, Phase::PostThaw, ok, false).await.err(),
            Ok(None) | Err(_) => {
                Some("the process that ran it was killed; it is not known whether the command ended".into())
            }
        };
        Thawed { failed, late }
    }
}

fn failed(phase: &str, why: &str) -> Error {
    Error::new(ErrorKind::Quiesce, format!("the {phase} command failed: {why}")).hint("run it by hand to see why")
}
