//! Names of machines and disks.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A label that is safe in paths, logs and terminals: `[A-Za-z0-9_][A-Za-z0-9._-]{0,127}`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = crate::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let good = text.len() <= NAME_BYTES_MAX
            && text.bytes().next().is_some_and(plain)
            && text.bytes().all(|byte| plain(byte) || byte == b'.' || byte == b'-');
        if good {
            return Ok(Self(text.to_owned()));
        }
        Err(crate::Error::usage(format!("{text:?} is not a name"))
            .hint("use up to 128 letters, digits, '_', '.' and '-'; begin with a letter, a digit or '_'"))
    }
}

impl TryFrom<String> for Name {
    type Error = crate::Error;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

const NAME_BYTES_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_harmless_names() {
        let long = "a".repeat(129);
        for bad in ["", ".", "..", "-x", "a/b", "/a", "a\0", "a b", "ü", "a\u{1b}[1m", &long] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
        for good in ["a", "web-01.example", "_x", "0", &long[..128]] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
    }
}
