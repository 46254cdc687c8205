//! The administrator's commands around the opening of a machine's disks.
//!
//! A process of its own runs them, the keeper (`hooks/keeper.rs`). So the command after is run once in every case, even
//! when this process is killed or stopped.

mod keeper;

pub use keeper::run_if_asked as keep_hooks;

use keeper::{Asked, Heard, Phase, run_hook};
use mover::{Error, ErrorKind, Name, Result, Stop};
use std::future::Future;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

/// Commands that are run on the host around the moment in which a machine's disks are opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hooks {
    /// Run before; when it fails, nothing is opened.
    pub before: Option<String>,
    /// Run after, in every case.
    pub after: Option<String>,
    /// Longest time for each command, and for opening the disks in between.
    pub limit: Duration,
}

/// What came of the commands when the disks were opened.
#[derive(Debug, Default)]
pub(crate) struct Frozen {
    /// Time from the start of the command before to the end of the command after; zero without a command before.
    pub duration: Duration,
    pub warning: Option<String>,
}

impl Hooks {
    /// The limit for each command, if the administrator sets no other.
    pub const LIMIT: Duration = Duration::from_secs(300);

    /// Runs the command before, `open`, and in every case the command after.
    pub(crate) async fn around<T>(
        &self,
        machine: &Name,
        stop: &Stop,
        open: impl Future<Output = Result<T>>,
    ) -> Result<(T, Frozen)> {
        let began = Instant::now();
        let asked = self.asked(machine);
        let mut keeper = Keeper::start(&asked).await?;
        let opened = match stop.race(keeper.frozen(self.limit)).await {
            Ok(()) => timeout(self.limit, open).await.unwrap_or_else(|_| {
                let limit = self.limit.as_secs_f64();
                Err(Error::new(
                    ErrorKind::Quiesce,
                    format!("the disks were not open within {limit:.1} s after the pre-freeze command"),
                )
                .hint("set a longer limit with --hook-timeout, or hook_timeout in windlass-proxy.toml"))
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
            Err(error) => Err(frozen.warning.into_iter().fold(error, |error, warning| error.context(warning))),
        }
    }

    fn asked(&self, machine: &Name) -> Asked {
        Asked {
            machine: machine.to_string(),
            before: self.before.clone(),
            after: self.after.clone(),
            limit: self.limit,
        }
    }
}

/// What is known of the end.
struct Thawed {
    failed: Option<String>,
    /// True when the command after was run because of its deadline, not because we asked for it.
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
