//! The program `windlass-store`: makes a site, gives certificates out, and serves repositories.

mod cli;
mod config;
mod deny;
mod hosts;
mod site;

use clap::Parser;
use cli::{Cli, Command, Serve};
use config::Config;
use deny::DenyList;
use hosts::Hosts;
use mover::Signals;
use mover::{Error, Pool, Result, World};
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use store::ScrubOptions;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing_subscriber::EnvFilter;
use wire::identity::Registry;
use wire::service;
use wire::{IdentityRenewer, Node, Signer, client, client_config_of, server_of};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("WINDLASS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // A log file is no terminal.
    let colour = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colour).with_writer(std::io::stderr).init();
    let world = World::system();
    let made = match cli.command {
        Command::Init(arguments) => site::init(&arguments, &world),
        Command::Issue(arguments) => site::issue(&arguments, &world),
        Command::Serve(arguments) => serve(&arguments, &world),
    };
    service::ended(made)
}

fn serve(arguments: &Serve, world: &World) -> Result<()> {
    let config = Config::read(&arguments.config)?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.max_blocking_threads(BLOCKING_THREADS_MAX).enable_all().build();
    let runtime = runtime.map_err(|error| Error::internal("cannot start threads").because(error))?;
    runtime.block_on(run(config, world))
}

async fn run(config: Config, world: &World) -> Result<()> {
    let pool = Pool::new(0)?;
    let (receive, send) = (config.receive_rate.map(|it| it.0), config.send_rate.map(|it| it.0));
    let mut node = Node::new(world.clone()).paced(receive, send).choosing(config.proxy_choice);
    let mut signer = Signer::There;
    if let Some(folder) = &config.authority {
        let life = Duration::from_secs(config.certificate_seconds);
        let registry = Arc::new(Registry::open(site::authority(folder)?, folder, life, world.clone())?);
        node = node.with_registry(registry.clone());
        signer = Signer::Here(registry);
    }
    let keeper = IdentityRenewer::open(&config.identity, signer, world)?;
    let current = keeper.current();
    if let Some(path) = &config.deny {
        let list = DenyList::new(path.clone());
        node = node.denying(move |holder| list.denies(holder));
    }
    let own = current.clone();
    node = node.pulling(move |congestion| Ok((client()?, client_config_of(&own, congestion)?)));
    let scrub = ScrubOptions { rate: config.scrub_rate.0, every: Duration::from_secs(config.scrub_seconds) };
    let node = Arc::new(node);
    let hosts = Arc::new(Hosts::new(node.clone(), pool, world.clone(), scrub));
    let away = hosts.open_all(&config.repository).await?;
    let endpoint = server_of(config.listen, &current, config.congestion)?;
    // They end with it.
    let mut beside = JoinSet::new();
    beside.spawn(keeper.run());
    beside.spawn(service::alive());
    beside.spawn(hosts.clone().attend(away));
    let address = endpoint.local_addr().map_err(|error| Error::internal("no address").because(error))?;
    let (stop, stopped) = watch::channel(false);
    let mut signals = Signals::listen()?;
    // For who started this: from here on it answers.
    println!("listening on {address}");
    service::ready();
    let mut serving = tokio::spawn(node.serve(endpoint, stopped));
    tokio::select! {
        _ = signals.next() => {}
        ended = &mut serving => {
            let why = ended.err().map_or_else(|| "the socket failed".to_owned(), |error| error.to_string());
            return Err(Error::transport(format!("the node stopped serving: {why}")));
        }
    }
    tracing::info!("stopping after the requests that are under way");
    service::stopping();
    let _ = stop.send(true);
    // A second signal does not wait.
    tokio::select! {
        _ = &mut serving => {}
        _ = signals.next() => tracing::warn!("stopping at once"),
    }
    beside.shutdown().await;
    hosts.close_all().await
}

/// Most threads that wait for files and RocksDB. More of them would only take memory.
const BLOCKING_THREADS_MAX: usize = 64;
