//! The program `windlass-store`: makes a site, gives certificates out, and serves repositories.

mod cli;
mod config;
mod deny;
mod site;

use crate::{Access, Local, ScrubOptions};
use clap::Parser;
use cli::{Cli, Command, Serve};
use config::Config;
use deny::DenyList;
use mover::identity::Registry;
use mover::service::{self, Signals};
use mover::wire::{Keeper, Node, Signer, client, client_config_of, server_of};
use mover::{Error, Pool, Result, World};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing_subscriber::EnvFilter;

/// Runs the program.
pub fn windlass_store() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("WINDLASS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
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

async fn run(mut config: Config, world: &World) -> Result<()> {
    let pool = Pool::new(0)?;
    let mut open = open_all(&config, &pool, world).await?;
    let mut signals = Signals::listen()?;
    loop {
        let ended = round(&mut config, world, &open, &mut signals).await?;
        for (name, local) in open {
            match (local.close().await, ended) {
                (Err(error), Ended::Signal) => return Err(error.context(name)),
                (Err(error), Ended::RoomAgain) => tracing::warn!(repository = %name, %error, "closed"),
                (Ok(()), _) => {}
            }
        }
        if ended == Ended::Signal {
            return Ok(());
        }
        open = loop {
            match open_all(&config, &pool, world).await {
                Ok(open) => break open,
                Err(error) => tracing::error!(%error, "cannot open again; trying on"),
            }
            tokio::select! {
                () = tokio::time::sleep(ROOM_CHECK) => {}
                () = signals.next() => return Ok(()),
            }
        };
    }
}

/// Repositories, and the names that they are served under.
type Repositories = Vec<(String, Local)>;

async fn open_all(config: &Config, pool: &Pool, world: &World) -> Result<Repositories> {
    let mut open = Vec::new();
    for repository in &config.repository {
        let local = Local::open(&repository.path, Access::Write, pool.clone(), world.clone()).await;
        open.push((repository.name.as_str().to_owned(), local.map_err(|error| error.context(&repository.name))?));
    }
    Ok(open)
}

/// Why a node does not serve any longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Signal,
    /// A repository has to be opened again, because there was no room on its storage; now there is.
    RoomAgain,
}

/// Serves until there is a reason to end; what is under way is finished.
async fn round(config: &mut Config, world: &World, open: &Repositories, signals: &mut Signals) -> Result<Ended> {
    let (receive, send) = (config.receive_rate.map(|it| it.0), config.send_rate.map(|it| it.0));
    let mut node = Node::new(world.clone()).paced(receive, send);
    let mut signer = Signer::There;
    if let Some(folder) = &config.authority {
        let life = Duration::from_secs(config.certificate_seconds);
        let registry = Arc::new(Registry::open(site::authority(folder)?, folder, life, world.clone())?);
        node = node.with_registry(registry.clone());
        signer = Signer::Here(registry);
    }
    let keeper = Keeper::open(&config.identity, signer, world)?;
    let current = keeper.current();
    if let Some(path) = &config.deny {
        let list = DenyList::new(path.clone());
        node = node.denying(move |holder| list.denies(holder));
    }
    let own = current.clone();
    node = node.pulling(move |congestion| Ok((client()?, client_config_of(&own, congestion)?)));
    for (name, local) in open {
        node = node.with(name, local.clone());
    }
    let scrub = ScrubOptions { rate: config.scrub_rate.0, every: Duration::from_secs(config.scrub_seconds) };
    let endpoint = server_of(config.listen, &current, config.congestion)?;
    // They end with it.
    let mut beside = JoinSet::new();
    beside.spawn(keeper.run());
    beside.spawn(service::alive());
    for (_, local) in open.iter().filter(|_| !scrub.every.is_zero()) {
        let local = local.clone();
        beside.spawn(async move { local.scrub(scrub).await });
    }
    let address = endpoint.local_addr().map_err(|error| Error::internal("no address").because(error))?;
    // Also when any port would do: who knows this one finds it again.
    config.listen.set_port(address.port());
    let (stop, stopped) = watch::channel(false);
    // For who started this: from here on it answers.
    println!("listening on {address}");
    service::ready();
    let mut serving = tokio::spawn(Arc::new(node).serve(endpoint, stopped));
    let ended = tokio::select! {
        () = signals.next() => Ended::Signal,
        name = room_again(open) => {
            tracing::warn!(repository = name, "its storage was full and has room again: opening it again");
            Ended::RoomAgain
        }
        ended = &mut serving => {
            let why = ended.err().map_or_else(|| "the socket failed".to_owned(), |error| error.to_string());
            return Err(Error::transport(format!("the node stopped serving: {why}")));
        }
    };
    if ended == Ended::Signal {
        tracing::info!("stopping: what is under way is finished");
        service::stopping();
    }
    let _ = stop.send(true);
    // A signal now does not wait.
    let ended = tokio::select! {
        _ = &mut serving => ended,
        () = signals.next() => {
            tracing::warn!("stopping at once");
            Ended::Signal
        }
    };
    beside.shutdown().await;
    Ok(ended)
}

/// Waits until a repository has stopped writing because its storage was full, and that is over.
async fn room_again(open: &Repositories) -> &str {
    let mut look = tokio::time::interval(ROOM_CHECK);
    loop {
        look.tick().await;
        if let Some((name, _)) = open.iter().find(|(_, local)| local.has_room_again()) {
            return name;
        }
    }
}

/// How often a node whose storage was full looks whether there is room again.
const ROOM_CHECK: Duration = Duration::from_secs(5);
/// Threads that wait for files and RocksDB: beyond this more of them only take memory.
const BLOCKING_THREADS_MAX: usize = 64;
