//! The program `windlass-proxy`: attends storage nodes, and backs up the machines of its configuration when it is told
//! to.

mod attend;
mod cli;
mod config;
mod discover;
mod machines;
mod work;

use attend::Attendance;
use clap::Parser;
use cli::{Cli, Command, Doctor, Serve};
use config::Config;
use machines::{Machines, Place};
use mover::Signals;
use mover::{Error, Pool, Result, Role, StopReason, World};
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing_subscriber::EnvFilter;
use wire::service;
use wire::{IdentityRenewer, Peer, Signer, client, client_config_of};
use work::Host;

fn main() -> ExitCode {
    if let Some(code) = proxy::helper_if_asked() {
        return code;
    }
    proxy::tune_allocator();
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("WINDLASS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // A log file is no terminal.
    let colour = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colour).with_writer(std::io::stderr).init();
    match cli.command {
        Command::Serve(arguments) => service::ended(serve(&arguments)),
        Command::Doctor(arguments) => match doctor(&arguments) {
            Ok(true) => ExitCode::SUCCESS,
            // As elsewhere: done, with something to look at.
            Ok(false) => ExitCode::from(4),
            Err(error) => service::ended(Err(error)),
        },
    }
}

/// Prints what was found; true when all is sound.
fn doctor(arguments: &Doctor) -> Result<bool> {
    let config = Config::read(&arguments.config)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Error::internal("cannot start").because(error))?;
    let mut all = true;
    let scratch = config.scratch.clone();
    let machines = Machines::new(config);
    runtime.block_on(machines.look());
    for machine in machines.all().iter() {
        let (name, Place::Qemu(address)) = (&machine.offered.name, &machine.place) else { continue };
        let findings = runtime.block_on(proxy::examine(address, scratch.clone(), arguments.undo));
        for finding in findings {
            all &= finding.sound;
            println!("{} {name}: {}: {}", if finding.sound { "ok  " } else { "look" }, finding.subject, finding.remark);
        }
    }
    Ok(all)
}

fn serve(arguments: &Serve) -> Result<()> {
    let config = Config::read(&arguments.config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Error::internal("cannot start threads").because(error))?;
    let made = runtime.block_on(run(config));
    // A job that did not end in time is not waited for.
    runtime.shutdown_background();
    made
}

async fn run(config: Config) -> Result<()> {
    let world = World::system();
    let keeper = IdentityRenewer::open(&config.identity, Signer::There, &world)?;
    let current = keeper.current();
    let holder = current.get().identity.holder().clone();
    if holder.role != Role::Proxy {
        return Err(Error::usage(format!(
            "{}: this is the identity of {holder}, not of a proxy",
            config.identity.display()
        ))
        .hint("`windlass token create --role proxy --name NAME` and `windlass token join` create one of a proxy"));
    }
    let endpoint = client()?;
    let machines = Arc::new(Machines::new(config.clone()));
    let host = Arc::new(Host::new(&config, machines.clone(), endpoint.clone(), Pool::new(0)?, world));
    let mut signals = Signals::listen()?;
    // They end with this.
    let mut beside = JoinSet::new();
    beside.spawn(async move {
        let _ = keeper.run().await;
    });
    beside.spawn(service::alive());
    // Before any node is told of them. One that hangs is told of later.
    let looked = tokio::spawn({
        let machines = machines.clone();
        async move { machines.look().await }
    });
    tokio::select! {
        _ = timeout(LOOK_TIMEOUT, looked) => {}
        _ = signals.next() => return Ok(()),
    }
    beside.spawn(machines.keep());
    let (mut attending, mut attendances) = (JoinSet::new(), Vec::new());
    for node in &config.nodes {
        let peer = Peer::new(node.at.host.as_str(), node.at.port, client_config_of(&current, node.congestion)?)
            .known_as(current.clone());
        let attendance = Arc::new(Attendance::new(host.clone(), holder.name.clone(), node.to_string(), peer));
        attending.spawn(attendance.clone().run());
        attendances.push(attendance);
    }
    // A node that is away is tried for as long as this runs: it keeps neither the others nor the start of a host waiting.
    service::ready();
    let made = tokio::select! {
        _ = signals.next() => Ok(()),
        Some(ended) = attending.join_next() => {
            ended.unwrap_or_else(|error| Err(Error::internal("a node is not attended any more").because(error)))
        }
    };
    tracing::info!("stopping: jobs are cancelled");
    service::stopping();
    let stopped = async {
        for attendance in &attendances {
            attendance.stop(StopReason::Shutdown);
        }
        for attendance in &attendances {
            attendance.finished().await;
        }
    };
    // A second signal does not wait.
    tokio::select! {
        told = timeout(STOP_TIMEOUT, stopped) => {
            if told.is_err() {
                tracing::warn!("a job did not end in time, or a node could not be told of its end");
            }
        }
        _ = signals.next() => tracing::warn!("stopping at once"),
    }
    beside.shutdown().await;
    attending.shutdown().await;
    for attendance in &attendances {
        attendance.close().await;
    }
    made
}

/// For the first look for machines.
const LOOK_TIMEOUT: Duration = Duration::from_secs(20);
/// For jobs to end and nodes to be told so.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
