//! The repositories of a node: opened at its start, or later where a disk is not there yet; scrubbed, and closed.

use super::config::{Dedup, Repository};
use futures::future::{join, join_all};
use mover::{Error, Name, Pool, Result, World};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use store::{Access, Local, ScrubOptions};
use wire::Node;

/// Opens, scrubs and closes the repositories.
pub struct Hosts {
    node: Arc<Node<Local>>,
    pool: Pool,
    world: World,
    scrub: ScrubOptions,
    open: Mutex<Vec<(Name, Local)>>,
}

impl Hosts {
    pub const fn new(node: Arc<Node<Local>>, pool: Pool, world: World, scrub: ScrubOptions) -> Self {
        Self { node, pool, world, scrub, open: Mutex::new(Vec::new()) }
    }

    /// Opens the repositories that can be opened, and returns the others. One missing disk must not keep the other
    /// repositories closed.
    ///
    /// # Errors
    /// If no repository can be opened: the error of the first.
    pub async fn open_all(&self, repositories: &[Repository]) -> Result<Vec<Repository>> {
        let (mut away, mut first) = (Vec::new(), None);
        for repository in repositories {
            if let Err(error) = self.open(repository).await {
                tell_away(repository, &error);
                self.node.away(repository.name.as_str(), &error);
                away.push(repository.clone());
                first.get_or_insert(error);
            }
        }
        match first {
            Some(error) if away.len() == repositories.len() => Err(error),
            _ => Ok(away),
        }
    }

    async fn open(&self, repository: &Repository) -> Result<Local> {
        let local = Local::open(&repository.path, Access::Write, self.pool.clone(), self.world.clone()).await;
        let local = local.map_err(|error| error.context(&repository.name))?;
        self.open.lock().expect("no holder panics").push((repository.name.clone(), local.clone()));
        let reach = (repository.dedup == Dedup::Owner).then(|| local.keep_owners_apart());
        self.node.host(repository.name.as_str(), local.clone(), repository.quotas(), reach);
        Ok(local)
    }

    /// Scrubs the open repositories. Goes on trying to open the repositories in `away`, and scrubs each after that.
    pub async fn attend(self: Arc<Self>, away: Vec<Repository>) {
        let here: Vec<Local> = self.open.lock().expect("no holder panics").iter().map(|(_, it)| it.clone()).collect();
        let here = here.into_iter().map(|local| self.scrub(local));
        let away = away.into_iter().map(|repository| async {
            let local = self.opened(repository).await;
            self.scrub(local).await;
        });
        join(join_all(here), join_all(away)).await;
    }

    async fn opened(&self, repository: Repository) -> Local {
        let mut told = String::new();
        loop {
            tokio::time::sleep(RETRY).await;
            match self.open(&repository).await {
                Ok(local) => {
                    tracing::info!("repository {} is available now", repository.name);
                    return local;
                }
                Err(error) => {
                    self.node.away(repository.name.as_str(), &error);
                    let why = error.to_string();
                    if why != told {
                        tell_away(&repository, &error);
                        told = why;
                    }
                }
            }
        }
    }

    async fn scrub(&self, local: Local) {
        if !self.scrub.every.is_zero() {
            local.scrub(self.scrub).await;
        }
    }

    /// Closes all.
    ///
    /// # Errors
    /// The first error, after all were closed.
    pub async fn close_all(&self) -> Result<()> {
        let mut ended = Ok(());
        let open = std::mem::take(&mut *self.open.lock().expect("no holder panics"));
        for (name, local) in open {
            ended = ended.and(local.close().await.map_err(|error| error.context(&name)));
        }
        ended
    }
}

fn tell_away(repository: &Repository, error: &Error) {
    tracing::warn!(%error, every = ?RETRY, "repository {} is not available; trying again", repository.name);
}

/// Pause between two attempts to open a repository.
const RETRY: Duration = Duration::from_secs(10);
