//! The administrator's commands around the opening of the disks.

use crate::windlass::Context;
use mover::{Error, ErrorKind, Name, Result};
use std::future::Future;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::Command;

pub struct Hooks<'a> {
    pub machine: &'a Name,
    pub before: Option<&'a str>,
    pub after: Option<&'a str>,
}

/// What came of the commands when the disks were opened.
#[derive(Default)]
pub struct Frozen {
    /// From the begin of the command before to the end of the one after; nothing without a command before.
    pub duration: Duration,
    pub warning: Option<String>,
}

impl Hooks<'_> {
    /// Runs the command before, `open`, and in every case the command after.
    pub async fn around<T>(&self, context: &Context, open: impl Future<Output = Result<T>>) -> Result<(T, Frozen)> {
        let began = Instant::now();
        let opened = match self.before {
            Some(command) => match context.stop.race(self.run(command, "pre-freeze", "ok")).await {
                Ok(()) => open.await,
                Err(error) => Err(error),
            },
            None => open.await,
        };
        let mut frozen = Frozen::default();
        if let Some(command) = self.after {
            let status = if opened.is_ok() { "ok" } else { "failed" };
            if let Err(error) = self.run(command, "post-thaw", status).await {
                // The disks were opened or not: that decides. But somebody must look whether things still stand still.
                frozen.warning = Some(error.message());
            }
        }
        if self.before.is_some() {
            frozen.duration = began.elapsed();
        }
        match opened {
            Ok(opened) => Ok((opened, frozen)),
            Err(error) => {
                frozen.warning.iter().for_each(|warning| context.out.warn(warning));
                Err(error)
            }
        }
    }

    async fn run(&self, command: &str, phase: &str, status: &str) -> Result<()> {
        let failed = |why: String| {
            Error::new(ErrorKind::Quiesce, format!("the {phase} command failed: {why}"))
                .hint("run it by hand to see why")
        };
        let ended = Command::new("sh")
            .args(["-c", command])
            .env("WINDLASS_PHASE", phase)
            .env("WINDLASS_STATUS", status)
            .env("WINDLASS_MACHINE", self.machine.as_str())
            .stdin(Stdio::null())
            // Its words must not get between our own on stdout.
            .stdout(std::io::stderr())
            .kill_on_drop(true)
            .status()
            .await
            .map_err(|error| failed(error.to_string()))?;
        if ended.success() { Ok(()) } else { Err(failed(ended.to_string())) }
    }
}
