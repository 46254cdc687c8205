//! Arguments that name places.

use mover::{Error, Name};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use wire::identity::Address;
use wire::{Congestion, NodeAddress};

/// The address of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryAddress {
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

impl RepositoryAddress {
    pub const fn at(&self) -> &At {
        &self.at
    }

    /// The node that has it.
    pub fn node(&self) -> Result<Address, Error> {
        match &self.at {
            At::Node { host, port, .. } => Ok(Address { host: host.clone(), port: *port }),
            At::Directory(_) => {
                Err(Error::usage(format!("{self} is not on a storage node"))
                    .hint("give the node with --node quic://HOST"))
            }
        }
    }

    /// The directory, for what only works there.
    pub fn directory(&self) -> Result<&Path, Error> {
        match &self.at {
            At::Directory(path) => Ok(path),
            At::Node { .. } => Err(Error::usage(format!(
                "{self} is on a storage node, and this command needs the repository's directory"
            ))
            .hint("run it on the storage node, with the path of the directory, while windlass-store is stopped")),
        }
    }
}

impl fmt::Display for RepositoryAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for RepositoryAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = |why: &str| {
            Error::usage(why).hint(
                "write /path or file:///path for a directory, or quic://host[:port]/name for a repository on a storage node",
            )
        };
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(scheme.to_ascii_lowercase()), rest),
            None => (None, text),
        };
        let at = match scheme.as_deref().map(|scheme| (scheme, rest)) {
            None if text.is_empty() => return Err(bad("the address of the repository is empty")),
            // As ssh and rsync have it.
            None if text.find([':', '/']).is_some_and(|at| text[at..].starts_with(':'))
                && !Path::new(text).exists() =>
            {
                let (host, path) = text.split_once(':').unwrap_or((text, ""));
                let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or("NAME");
                return Err(Error::usage(format!("{text:?} is a path on another computer")).hint(format!(
                    "serve it there with windlass-store and use quic://{host}/{name}, or mount it here and use its path; \
                     write ./{text} for a local directory of this name"
                )));
            }
            // A relative path has a directory in it, so that a copy's name in a plan is never taken for one; what is there
            // is meant.
            None if !text.contains('/') && text != "." && !Path::new(text).is_dir() => {
                return Err(bad(&format!("{text:?} is not an address (a relative path begins with ./)")));
            }
            None => At::Directory(PathBuf::from(text)),
            Some(("file", path)) if path.starts_with('/') => At::Directory(PathBuf::from(
                percent_decoded(path).ok_or_else(|| bad("the address has an invalid % escape"))?,
            )),
            Some(("file", _)) => return Err(bad("a file address has three slashes")),
            Some(("quic", rest)) => match NodeAddress::parse(&format!("quic://{}", rest.trim_end_matches('/'))) {
                Some((NodeAddress { at: Address { host, port }, congestion }, Some(name))) => {
                    At::Node { host, port, name, congestion }
                }
                _ => return Err(bad(&format!("{text:?} does not name a node and a repository"))),
            },
            Some(("s3", _)) => return Err(bad("buckets are not supported")),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> At {
        text.parse::<RepositoryAddress>().unwrap_or_else(|error| panic!("{text}: {error}")).at
    }

    #[test]
    fn what_is_meant_is_understood_or_told() {
        let directory = |path: &str| At::Directory(path.into());
        for (text, meant) in [
            ("/srv/repo", directory("/srv/repo")),
            ("./repo", directory("./repo")),
            // It is there: this crate's own folder.
            ("src", directory("src")),
            ("/with:colon", directory("/with:colon")),
            ("file:///srv/a%20b", directory("/srv/a b")),
        ] {
            assert_eq!(at(text), meant);
        }
        for text in ["quic://host/repo", "QUIC://host/repo", "quic://host/repo/"] {
            assert!(
                matches!(at(text), At::Node { host, name, .. } if host == "host" && name.as_str() == "repo"),
                "{text}"
            );
        }
        let refused = |text: &str| text.parse::<RepositoryAddress>().unwrap_err();
        let elsewhere = refused("nas:/srv/repo/");
        let remedy = elsewhere.remedy().unwrap();
        assert!(elsewhere.to_string().contains("another computer") && remedy.contains("quic://nas/repo"), "{remedy}");
        assert!(refused("nowhere").to_string().contains("begins with ./"));
        for text in ["", "s3://bucket", "ftp://x/y", "file://relative", "quic://host"] {
            refused(text);
        }
    }
}
