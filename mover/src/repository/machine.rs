//! How a person names a machine: `web`, or `cluster1/web` where the name alone fits several.

use crate::{Error, Lineage, Name, RecoveryPoint, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

/// A machine's name, and the qualifiers that tell it from other machines of that name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Each the owner's name, or the first digits of the id of owner, machine, or the repository where its points were made.
    pub qualifiers: Vec<String>,
    /// Name of the machine, as points carry it.
    pub name: Name,
}

impl Machine {
    /// Whether `point` is of this machine.
    pub fn fits(&self, point: &RecoveryPoint) -> bool {
        point.machine_name == self.name && self.qualifiers.iter().all(|it| tells(it, point))
    }

    /// Those of `points` that are of this machine.
    pub fn of<'a>(&self, points: &'a [RecoveryPoint]) -> Vec<&'a RecoveryPoint> {
        points.iter().filter(|point| self.fits(point)).collect()
    }

    /// Refuses a machine that has none of `points`: a name that was misspelt.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn is_there(&self, points: &[RecoveryPoint]) -> Result<()> {
        if points.iter().any(|point| self.fits(point)) {
            return Ok(());
        }
        Err(Error::not_found(format!("machine {self} has no points here"))
            .hint("`windlass points` lists the machines that have points"))
    }

    /// The points of this machine, if they all belong to one lineage: one machine of one owner, made in one repository.
    /// `rest` is the text that follows the name in a selector.
    ///
    /// # Errors
    /// `Usage` when they belong to several; the hint says what can be written instead.
    pub fn only<'a>(&self, points: &'a [RecoveryPoint], rest: &str) -> Result<Vec<&'a RecoveryPoint>> {
        let of = self.of(points);
        let lineages: BTreeSet<Lineage> = of.iter().map(|point| point.lineage()).collect();
        if lineages.len() < 2 {
            return Ok(of);
        }
        let names: BTreeSet<String> = qualifiers(&of).values().map(|it| format!("{it}/{}{rest}", self.name)).collect();
        let names: Vec<String> = names.into_iter().take(SHOWN_MAX).collect();
        Err(Error::usage(format!("{} machines here have the name {self}", lineages.len()))
            .hint(format!("write {}", names.join(" or "))))
    }
}

/// For each lineage in `points` that shares its machine's name with another lineage, a qualifier that tells it from the
/// others: the owner's name where that is enough, else digits of the repository where it was made, else digits of the
/// machine's id.
pub fn qualifiers(points: &[&RecoveryPoint]) -> BTreeMap<Lineage, String> {
    let mut named: BTreeMap<&Name, BTreeMap<Lineage, &RecoveryPoint>> = BTreeMap::new();
    for point in points {
        named.entry(&point.machine_name).or_default().entry(point.lineage()).or_insert(point);
    }
    let mut made = BTreeMap::new();
    for lineages in named.values().filter(|lineages| lineages.len() > 1) {
        for (lineage, point) in lineages {
            let ways = ways(point);
            // One that means this lineage and no other of the name.
            let only = |way: &&String| {
                let qualifiers = way.split('/').map(str::to_owned).collect();
                let machine = Machine { qualifiers, name: point.machine_name.clone() };
                lineages.values().filter(|point| machine.fits(point)).count() == 1
            };
            let way = ways.iter().find(only).unwrap_or(&ways[ways.len() - 1]);
            made.insert(*lineage, way.clone());
        }
    }
    made
}

fn tells(qualifier: &str, point: &RecoveryPoint) -> bool {
    let digits = qualifier.to_ascii_lowercase();
    let is_prefix = (DIGITS_MIN..=32).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let begins = |id: String| is_prefix && id.starts_with(&digits);
    point.owner_name.as_ref().is_some_and(|owner| owner.as_str() == qualifier)
        || begins(point.owner.to_string())
        || begins(point.machine.to_string())
        || begins(point.origin.0.to_string())
}

/// Ways to tell a point's lineage from others, the most readable first. At least one.
fn ways(point: &RecoveryPoint) -> Vec<String> {
    let head = |id: String| id[..SHOWN_DIGITS].to_owned();
    let owner = point.owner_name.as_ref().map_or_else(|| head(point.owner.to_string()), ToString::to_string);
    let (origin, machine) = (head(point.origin.0.to_string()), head(point.machine.to_string()));
    let both = format!("{origin}/{}", point.machine);
    let all = format!("{owner}/{both}");
    point.owner_name.iter().map(|_| owner.clone()).chain([origin, machine, both, all]).collect()
}

impl FromStr for Machine {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut qualifiers: Vec<String> = text.split('/').map(str::to_owned).collect();
        let name = qualifiers.pop().unwrap_or_default();
        if qualifiers.len() > QUALIFIERS_MAX || qualifiers.iter().any(|it| it.parse::<Name>().is_err()) {
            return Err(Error::usage(format!("{text:?} does not name a machine"))
                .hint("write NAME, OWNER/NAME or at least 4 digits of an id before the slash"));
        }
        Ok(Self { qualifiers, name: name.parse()? })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.qualifiers.iter().try_for_each(|qualifier| write!(f, "{qualifier}/"))?;
        write!(f, "{}", self.name)
    }
}

/// Fewest digits of an id.
const DIGITS_MIN: usize = 4;
/// Digits that are shown.
const SHOWN_DIGITS: usize = 8;
/// Before a name: owner, origin, machine.
const QUALIFIERS_MAX: usize = 3;
/// Choices in one error.
const SHOWN_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MachineId, OwnerId, PointId, RepositoryId, Timestamp};
    use chunker::ChunkId;

    fn point(machine: u8, origin: u8, owner: Option<&str>) -> RecoveryPoint {
        let owner: Option<Name> = owner.map(|owner| owner.parse().unwrap());
        let id = owner.as_ref().map(OwnerId::of).unwrap_or_default();
        RecoveryPoint {
            id: PointId([1; 16]),
            manifest: ChunkId([0; 32]),
            owner: id,
            owner_name: owner,
            stamped: id,
            holder: None,
            machine: MachineId([machine + 0x10; 16]),
            machine_name: "web".parse().unwrap(),
            group: None,
            snapshot_time: Timestamp(1),
            commit_time: Timestamp(2),
            origin: (RepositoryId([origin; 16]), Timestamp(2)),
            protected_until: Timestamp(0),
            bytes_logical: 0,
            bytes_new: 0,
            bytes_stored: 0,
            pinned: false,
            forgotten: false,
            labels: Default::default(),
            number: 1,
        }
    }

    /// Whatever a refusal suggests can be typed, and means one lineage.
    #[test]
    fn what_is_ambiguous_is_refused_with_what_can_be_typed() {
        let plain: Machine = "web".parse().unwrap();
        for points in [
            vec![point(1, 1, None), point(2, 2, None), point(3, 3, None)],
            vec![point(1, 1, Some("host7")), point(2, 1, Some("host8"))],
            vec![point(1, 1, Some("host7")), point(2, 1, Some("host7")), point(1, 2, None)],
            vec![point(1, 1, None), point(1, 2, None), point(2, 1, None), point(2, 1, Some("host7"))],
        ] {
            let refused = plain.only(&points, "@latest").unwrap_err();
            assert_eq!(refused.kind(), crate::ErrorKind::Usage);
            let hint = refused.remedy().unwrap().strip_prefix("write ").unwrap().to_owned();
            let all: Vec<&RecoveryPoint> = points.iter().collect();
            let shown = qualifiers(&all);
            assert_eq!(shown.len(), points.len());
            for choice in hint.split(" or ") {
                let machine: Machine = choice.strip_suffix("@latest").unwrap().parse().unwrap();
                machine.only(&points, "").unwrap_or_else(|error| panic!("{choice}: {error}"));
            }
        }
        let alone = [point(1, 1, None), point(1, 1, None)];
        assert_eq!(plain.only(&alone, "").unwrap().len(), 2, "one machine");
        assert!(qualifiers(&alone.iter().collect::<Vec<_>>()).is_empty());
        for bad in ["/web", "a b/web", "web/", "a/b/c/d/web", "../web"] {
            assert!(bad.parse::<Machine>().is_err(), "{bad}");
        }
    }
}
