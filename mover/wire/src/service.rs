//! What the programs that serve have in common: how they fail, how they are configured, and what systemd is told.

use mover::{Error, Result};
use std::collections::BTreeSet;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Tells on stderr why a program failed; its exit code.
pub fn ended(made: Result<()>) -> ExitCode {
    match made {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            error.remedy().into_iter().for_each(|remedy| eprintln!("hint: {remedy}"));
            error.kind().exit_code().into()
        }
    }
}

/// Reads a configuration with `parse`, and gives it together with the folder at which its relative paths begin.
///
/// # Errors
/// `Usage` when it cannot be read, and those of `parse`; both name the file.
pub fn configured<T>(path: &Path, parse: impl FnOnce(&str) -> Result<T>) -> Result<(T, PathBuf)> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| Error::usage(path.display().to_string()).because(error))?;
    let config = parse(&text).map_err(|error| error.context(path.display()))?;
    Ok((config, path.parent().unwrap_or(Path::new(".")).to_owned()))
}

/// The first of the `items` of a configuration that is there more than once.
pub fn twice<T: Ord>(items: impl Iterator<Item = T>) -> Option<T> {
    let mut seen = BTreeSet::new();
    let mut again = None;
    for item in items {
        if let Some(known) = seen.replace(item) {
            again = again.or(Some(known));
        }
    }
    again
}

/// Tells systemd that everything is open and answers.
pub fn ready() {
    tell("READY=1");
}

/// Tells systemd that nothing new is taken.
pub fn stopping() {
    tell("STOPPING=1");
}

/// Tells systemd again and again that our tasks go on, if systemd asks for that (`WatchdogSec=`). It restarts a service
/// that stops saying so. Spawn this on the runtime that does the work.
pub async fn alive() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    // Not for us but for who started us.
    if number("WATCHDOG_PID").is_some_and(|pid| pid != u64::from(std::process::id())) {
        return;
    }
    let Some(within) = number("WATCHDOG_USEC").filter(|within| *within > 1) else { return };
    let half = Duration::from_micros(within / 2);
    let mut every = tokio::time::interval_at(tokio::time::Instant::now() + half, half);
    loop {
        every.tick().await;
        tell("WATCHDOG=1");
    }
}

/// sd_notify(3): a datagram to a socket that the environment names. Without systemd there is nobody to be told.
fn tell(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let told = (|| {
        let name = path.as_encoded_bytes();
        let address = match name.strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&path)?,
        };
        let socket = UnixDatagram::unbound()?;
        // Whoever should read it may hang; we do not.
        socket.set_write_timeout(Some(Duration::from_secs(1)))?;
        socket.send_to_addr(state.as_bytes(), &address)
    })();
    if let Err(error) = told {
        tracing::warn!(%error, "systemd could not be notified");
    }
}
