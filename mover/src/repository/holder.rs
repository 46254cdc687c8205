//! Who asks, makes and owns: what a certificate names its holder, and what the log keeps of that.

use crate::{Error, Name, OwnerId, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What somebody may do. Which request needs which role is said by the wire, in `access`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    /// A storage node: reads from other nodes what it is to copy.
    Node,
    /// A proxy: backs up and restores.
    Proxy,
    /// An administrator: may ask for everything but what proxies alone do.
    Admin,
}

impl Role {
    /// Every role, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Node, Self::Proxy, Self::Admin];

    /// Its number in records of the log.
    pub const fn code(self) -> u8 {
        match self {
            Self::Node => 0,
            Self::Proxy => 1,
            Self::Admin => 2,
        }
    }

    /// The role of a number.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.code() == code)
    }

    /// Its name in certificates and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Proxy => "proxy",
            Self::Admin => "admin",
        }
    }
}

impl FromStr for Role {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|role| role.as_str() == text);
        found.ok_or_else(|| Error::usage(format!("{text:?} is not a role")).hint("use node, proxy or admin"))
    }
}

/// Whom a certificate names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Holder {
    /// What it may do.
    pub role: Role,
    /// Its name within the site.
    pub name: Name,
    /// Whose machines a proxy backs up, where that is not itself: those of a cluster share one.
    pub owner: Option<Name>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role.as_str(), self.name)
    }
}

impl Holder {
    /// Somebody who owns what he makes.
    pub const fn new(role: Role, name: Name) -> Self {
        Self { role, name, owner: None }
    }

    /// Whose points it makes, and may see. Administrators and nodes see all; what they make is the site's own.
    pub fn owner_name(&self) -> Option<&Name> {
        match self.role {
            Role::Proxy => Some(self.owner.as_ref().unwrap_or(&self.name)),
            Role::Node | Role::Admin => None,
        }
    }

    /// The id of [`Self::owner_name`]; zero for the site's own.
    pub fn owner_id(&self) -> OwnerId {
        self.owner_name().map(OwnerId::of).unwrap_or_default()
    }

    /// Refuses an owner of whoever can have none.
    ///
    /// # Errors
    /// `Usage`.
    pub fn check(&self) -> Result<()> {
        if self.owner.is_some() && self.role != Role::Proxy {
            return Err(Error::usage(format!("{self} cannot have an owner"))
                .hint("only proxies have owners: what administrators make belongs to the site"));
        }
        Ok(())
    }
}
