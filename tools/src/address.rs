//! Arguments that name places.

use mover::{Error, Name};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The address of a repository: `/path` or `file:///path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    text: String,
    path: PathBuf,
}

impl Kept {
    pub fn path(&self) -> &Path {
        &self.path
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
        let bad = |why: &str| Error::usage(format!("{why}; give a directory: /path or file:///path"));
        let path = match text.split_once("://") {
            None if text.is_empty() => return Err(bad("the address is empty")),
            // A relative path has a directory in it, so that a copy's name in a plan is never taken for one.
            None if !text.contains('/') && text != "." => {
                let why =
                    "(a relative path begins with ./; names of copies need a plan, which this version does not have)";
                return Err(bad(&format!("{text:?} is no address {why}")));
            }
            None => PathBuf::from(text),
            Some(("file", path)) if path.starts_with('/') => {
                PathBuf::from(percent_decoded(path).ok_or_else(|| bad("bad %-escape"))?)
            }
            Some(("file", _)) => return Err(bad("a file URI has three slashes")),
            Some(("quic", _)) => return Err(bad("this version cannot reach storage nodes")),
            Some(("s3", _)) => return Err(bad("this version cannot use buckets")),
            Some(_) => return Err(bad("unknown kind of address")),
        };
        Ok(Self { text: text.into(), path })
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
