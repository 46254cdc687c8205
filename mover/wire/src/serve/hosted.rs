//! The repositories of a node: those that are open, and those that could not be opened so far.

use super::served::Served;
use mover::{Error, Repository, RepositoryId, Result};
use std::collections::HashMap;
use std::sync::{Arc, RwLock, RwLockReadGuard};

/// All of them, by name.
pub(super) struct Hosted<R: Repository>(RwLock<HashMap<String, Hosting<R>>>);

/// A repository of the node's configuration.
pub(super) enum Hosting<R: Repository> {
    /// It is open and served.
    Here(Arc<Served<R>>),
    /// It cannot be opened, for this reason.
    Away(String),
}

impl<R: Repository> Hosting<R> {
    const fn here(&self) -> Option<&Arc<Served<R>>> {
        match self {
            Self::Here(served) => Some(served),
            Self::Away(_) => None,
        }
    }
}

impl<R: Repository> Hosted<R> {
    pub fn new() -> Self {
        Self(RwLock::default())
    }

    pub fn put(&self, name: &str, hosting: Hosting<R>) {
        self.0.write().expect("no holder panics").insert(name.to_owned(), hosting);
    }

    /// The one that addresses call `name`.
    ///
    /// # Errors
    /// `NotFound`; `Transport` for one that is away.
    pub fn named(&self, name: &str) -> Result<Arc<Served<R>>> {
        match self.read().get(name) {
            Some(Hosting::Here(served)) => Ok(served.clone()),
            Some(Hosting::Away(why)) => {
                Err(Error::transport(format!("repository {name:?} of the node is not available: {why}"))
                    .hint("the node tries again every 10 s; mount the disk of the repository, or read the node's log"))
            }
            None => Err(Error::not_found(format!("the node has no repository {name:?}"))),
        }
    }

    /// The one with this id.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn of(&self, repository: RepositoryId) -> Result<Arc<Served<R>>> {
        let found = self.find(|served| (served.repository.config().id == repository).then(|| served.clone()));
        found.ok_or_else(|| Error::not_found(format!("the node has no repository {repository}")))
    }

    /// The first result that `wanted` gives for an open repository. Called at every request.
    pub fn find<T>(&self, wanted: impl FnMut(&Arc<Served<R>>) -> Option<T>) -> Option<T> {
        self.read().values().filter_map(Hosting::here).find_map(wanted)
    }

    /// All that are open.
    pub fn all(&self) -> Vec<Arc<Served<R>>> {
        self.read().values().filter_map(Hosting::here).cloned().collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<String, Hosting<R>>> {
        self.0.read().expect("no holder panics")
    }
}
