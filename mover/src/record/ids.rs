//! Ids of 16 bytes. An id tells which thing is meant; names are only labels.

use crate::{Name, World};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident)*) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// A new random one.
            pub fn random(world: &World) -> Self {
                Self(world.random_bytes())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl FromStr for $name {
            type Err = &'static str;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                parse(text).map(Self)
            }
        }
    )* };
}

ids! {
    /// A repository; a copy of its directory has the same id.
    RepositoryId
    /// A machine: the hypervisor's UUID where there is one.
    MachineId
    /// A disk of a machine.
    DiskId
    /// A recovery point; chosen at the start of its session, so it is the key that makes commits idempotent, and it
    /// survives copying.
    PointId
    /// Recovery points that only make sense together.
    GroupId
    /// A writer's or reader's lease on a repository.
    SessionId
    /// A process that appends to a commit log, over all its runs.
    WriterId
    /// The point from which a disk's changes are tracked.
    CheckpointId
    /// A job, from the request for it until all programs have forgotten it. It is not the id of the point that the job
    /// makes.
    JobId
    /// The owner of data. All zero for the site, which owns the data that administrators bring and the data that is
    /// written by opening the directory.
    OwnerId
}

impl MachineId {
    /// A UUID as hypervisors write it: 32 hexadecimal digits, with hyphens between them or without. All zero is none.
    pub fn of_uuid(text: &str) -> Option<Self> {
        let digits: String = text.chars().filter(|it| *it != '-').take(33).collect();
        digits.parse().ok().filter(|id| *id != Self::default())
    }
}

impl OwnerId {
    /// The owner that has this name in a site.
    pub fn of(name: &Name) -> Self {
        let hash = blake3::derive_key("windlass 2026-11 owner", name.as_str().as_bytes());
        Self(*hash.first_chunk().expect("32 bytes"))
    }
}

/// BLAKE3-256 of durable bytes: names of packs, hashes of log records.
pub fn digest(bytes: &[u8]) -> [u8; 32] {
    *blake3::hash(bytes).as_bytes()
}

/// 32 hexadecimal digits, with or without the dashes of a UUID.
fn parse(text: &str) -> Result<[u8; 16], &'static str> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
    let value = |digit: u8| char::from(digit).to_digit(16).ok_or("an id is 32 hexadecimal digits");
    let digits: [u8; 32] = digits.try_into().map_err(|_| "an id is 32 hexadecimal digits")?;
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.as_chunks::<2>().0) {
        *byte = u8::try_from(value(pair[0])? * 16 + value(pair[1])?).map_err(|_| "not hexadecimal")?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trip() {
        let id = PointId(*b"0123456789abcdef");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("30313233-3435-3637-3839-616263646566".parse(), Ok(id));
        for bad in ["", "30", "3031323334353637383961626364656g", "é0313233343536373839616263646566"] {
            assert!(bad.parse::<PointId>().is_err(), "{bad}");
        }
    }
}
