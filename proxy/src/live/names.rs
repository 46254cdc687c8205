//! Names of what Windlass puts into a running QEMU. Each bears the number of its session, so that whoever comes later
//! sees what belongs together, and whether it is Windlass's at all.

use mover::World;
use std::fmt;

/// The number of one snapshot session in a QEMU: 8 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionNumber(u32);

/// What a node of a session is. QEMU allows 31 characters for a node's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Keeps what the guest overwrites.
    Scratch,
    /// Copies it there, below the device.
    Copier,
    /// Shows the disk as it was.
    View,
    /// What the view is served by.
    Export,
    /// A bitmap's marks at the moment of the snapshot.
    Marks,
    /// A node without content, on which a mark is made.
    Marker,
    /// Tells that the NBD server is ours: QEMU itself does not say whose it is.
    Server,
}

impl SessionNumber {
    /// A new one.
    pub fn random(world: &World) -> Self {
        let [a, b, c, d, ..] = world.random_bytes::<16>();
        Self(u32::from_be_bytes([a, b, c, d]))
    }

    /// The session that `name` belongs to; none for names that Windlass does not give.
    pub fn of(name: &str) -> Option<Self> {
        let rest = name.strip_prefix(PREFIX)?;
        let (number, rest) = rest.split_at_checked(8)?;
        let number = Self(u32::from_str_radix(number, 16).ok()?);
        let ours = rest.is_empty()
            || Part::ALL.iter().any(|part| {
                rest.strip_prefix('-')
                    .and_then(|it| it.strip_prefix(part.letter()))
                    .is_some_and(|it| it.parse::<u32>().is_ok())
            });
        ours.then_some(number)
    }

    /// The name of a part for the disk at this place.
    pub fn part(self, part: Part, disk: usize) -> String {
        format!("{self}-{}{disk}", part.letter())
    }

    /// True when `name` is this part of this session.
    pub fn is_part(self, name: &str, part: Part) -> bool {
        name.strip_prefix(&format!("{self}-{}", part.letter())).is_some_and(|rest| rest.parse::<u32>().is_ok())
    }
}

impl fmt::Display for SessionNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{:08x}", self.0)
    }
}

impl Part {
    const ALL: [Self; 7] =
        [Self::Scratch, Self::Copier, Self::View, Self::Export, Self::Marks, Self::Marker, Self::Server];

    const fn letter(self) -> char {
        match self {
            Self::Scratch => 's',
            Self::Copier => 'c',
            Self::View => 'v',
            Self::Export => 'e',
            Self::Marks => 'b',
            Self::Marker => 'm',
            Self::Server => 'n',
        }
    }
}

const PREFIX: &str = "windlass-";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart() {
        let number = SessionNumber(0xab);
        let name = number.part(Part::Copier, 12);
        assert_eq!(name, "windlass-000000ab-c12");
        assert!(name.len() <= 31);
        assert_eq!(SessionNumber::of(&name), Some(number));
        assert!(number.is_part(&name, Part::Copier) && !number.is_part(&name, Part::View));
        assert_eq!(SessionNumber::of(&number.to_string()), Some(number));
        // Bitmaps that stay have longer names; other products have other names.
        let bitmap = format!("windlass-000000ab-{}-{}", "07".repeat(16), "00".repeat(16));
        for other in [bitmap.as_str(), "windlass-000000ab-x1", "windlass-ab", "d0", "windlass-000000ab-c", "#block123"]
        {
            assert_eq!(SessionNumber::of(other), None, "{other}");
        }
    }
}
