//! The holder of a certificate: the role and name that the certificate gives, and the owner of the points that the
//! holder makes. The log keeps them with each point.

use crate::{Error, Name, OwnerId, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The role of a holder, which decides which requests the holder may make. The wire lists the roles of each request in
/// `message/table` and checks them in `access`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    /// A storage node. It reads points from other nodes in order to copy them.
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

/// The holder that a certificate names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Holder {
    /// The role, which decides which requests the holder may make.
    pub role: Role,
    /// Its name within the site.
    pub name: Name,
    /// Owner of the machines that a proxy backs up, if the owner is not the proxy itself. The proxies of a cluster
    /// share one owner.
    pub owner: Option<Name>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role.as_str(), self.name)
    }
}

impl Holder {
    /// A holder without a separate owner: a proxy of this kind owns the points that it makes.
    pub const fn new(role: Role, name: Name) -> Self {
        Self { role, name, owner: None }
    }

    /// Name of the owner whose points the holder makes and may see. None for administrators and nodes: they see all
    /// points, and the points that they make belong to the site.
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

    /// Refuses an owner if the holder is not a proxy.
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
