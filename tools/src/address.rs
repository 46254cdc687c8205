//! Arguments that name places.

use mover::identity::Address;
use mover::wire::{Congestion, NodeAddress};
use mover::{Error, Name};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The address of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    text: String,
    at: At,
}

/// Where a repository is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum At {
    /// `/path` or `file:///path`.
    Directory(PathBuf),
    /// `quic://host[:port]/name[?congestion=bbr]`.
    Node { host: String, port: u16, name: Name, congestion: Congestion },
}

impl Kept {
    pub const fn at(&self) -> &At {
        &self.at
    }

    /// The node that has it.
    pub fn node(&self) -> Result<Address, Error> {
        match &self.at {
            At::Node { host, port, .. } => Ok(Address { host: host.clone(), port: *port }),
            At::Directory(_) => {
                Err(Error::usage(format!("{self} is not on a storage node")).hint("name one with --node"))
            }
        }
    }

    /// The directory, for what only works there.
    pub fn directory(&self) -> Result<&Path, Error> {
        match &self.at {
            At::Directory(path) => Ok(path),
            At::Node { .. } => Err(Error::usage(format!("{self}: this works on a directory only"))
                .hint("run it on the storage node, with the repository's directory, while windlass-store is stopped")),
        }
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Kept {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = |why: &str| {
            Error::usage(format!("{why}; give a directory, /path or file:///path, or a node, quic://host[:port]/name"))
        };
        let at = match text.split_once("://") {
            None if text.is_empty() => return Err(bad("the address is empty")),
            // A relative path has a directory in it, so that a copy's name in a plan is never taken for one.
            None if !text.contains('/') && text != "." => {
                let why =
                    "(a relative path begins with ./; names of copies need a plan, which this version does not have)";
                return Err(bad(&format!("{text:?} is no address {why}")));
            }
            None => At::Directory(PathBuf::from(text)),
            Some(("file", path)) if path.starts_with('/') => {
                At::Directory(PathBuf::from(percent_decoded(path).ok_or_else(|| bad("bad %-escape"))?))
            }
            Some(("file", _)) => return Err(bad("a file URI has three slashes")),
            Some(("quic", _)) => match NodeAddress::parse(text) {
                Some((NodeAddress { at: Address { host, port }, congestion }, Some(name))) => {
                    At::Node { host, port, name, congestion }
                }
                _ => return Err(bad(&format!("{text:?} names no node and repository"))),
            },
            Some(("s3", _)) => return Err(bad("this version cannot use buckets")),
            Some(_) => return Err(bad("unknown kind of address")),
        };
        Ok(Self { text: text.into(), at })
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).ok()
}

/// `KIND=FILE`.
#[derive(Debug, Clone)]
pub struct Attach {
    pub kind: Name,
    pub file: PathBuf,
}

impl FromStr for Attach {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (kind, file) =
            text.split_once('=').filter(|(_, file)| !file.is_empty()).ok_or_else(|| Error::usage("write KIND=FILE"))?;
        Ok(Self { kind: kind.parse()?, file: file.into() })
    }
}

/// `KIND[/NAME]`: a file that a point has. Never a path here.
#[derive(Debug, Clone)]
pub struct Attachment {
    pub kind: Name,
    pub name: Option<String>,
}

impl FromStr for Attachment {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (kind, name) = text.split_once('/').map_or((text, None), |(kind, name)| (kind, Some(name.to_owned())));
        Ok(Self { kind: kind.parse()?, name })
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)?;
        self.name.as_ref().map_or(Ok(()), |name| write!(f, "/{name}"))
    }
}
