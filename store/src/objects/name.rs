//! How the objects of a repository are called. FORMAT.md has the names: they are the same on every storage.

use crate::format::pack::PackName;
use std::fmt;

/// Name of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectName {
    /// The configuration.
    Config,
    /// A pack.
    Pack(PackName),
    /// The log record of this number.
    Record(u64),
    /// The digest of the state after this record.
    Digest(u64),
    /// When packs were verified: a cache.
    Verified,
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config => f.write_str(CONFIG),
            Self::Pack(name) => write!(f, "{PACKS}/{:02x}/{name}", name.0[0]),
            Self::Record(sequence) => write!(f, "{LOG}/{:020}/{sequence:020}", sequence / RECORDS_TOGETHER),
            Self::Digest(sequence) => write!(f, "{STATE}/{sequence:020}"),
            Self::Verified => f.write_str("verified"),
        }
    }
}

/// Name of the configuration.
pub const CONFIG: &str = "config";
/// The beginning of names of packs.
pub const PACKS: &str = "packs";
/// The beginning of names of log records.
pub const LOG: &str = "log";
/// The beginning of names of state digests.
pub const STATE: &str = "state";
/// Number of log records that share the first part of their names: `log/<sequence / 10000>`.
pub const RECORDS_TOGETHER: u64 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_format() {
        let pack = PackName([0xa7; 32]);
        for (name, text) in [
            (ObjectName::Config, "config".to_owned()),
            (ObjectName::Pack(pack), format!("packs/a7/{}", "a7".repeat(32))),
            (ObjectName::Record(9_999), "log/00000000000000000000/00000000000000009999".into()),
            (ObjectName::Record(10_000), "log/00000000000000000001/00000000000000010000".into()),
            (ObjectName::Digest(256), "state/00000000000000000256".into()),
            (ObjectName::Verified, "verified".into()),
        ] {
            assert_eq!(name.to_string(), text);
        }
    }
}
