//! How a person names a point: `web@latest`, `web@latest~2`, `web@2026-01-02T03:04:05Z`, `cluster1/web@latest`, `3fa9c1`.

use crate::{Error, Machine, Moment, RecoveryPoint, Result, Timestamp, in_order};
use jiff::tz::TimeZone;
use std::str::FromStr;

/// A parsed selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// The n-th newest point of a machine, 0 being the newest.
    Latest {
        /// Machine of the point.
        machine: Machine,
        /// How many newer ones there are.
        back: u32,
    },
    /// The newest point of a machine whose snapshot time is not later than the end of what was typed.
    At {
        /// Machine of the point.
        machine: Machine,
        /// The last nanosecond of the time that was typed.
        time: Timestamp,
    },
    /// The beginning of a point's id, in lower case.
    Prefix(String),
}

impl FromStr for Selector {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            Error::usage(format!("{text:?} does not name a point")).hint(
                "write MACHINE@latest, MACHINE@latest~2, MACHINE@TIME with a time as `windlass points` shows it (a date or a minute \
                 will do), or at least 4 digits of an id",
            )
        };
        let Some((machine, when)) = text.split_once('@') else {
            let prefix = text.to_ascii_lowercase();
            let good = (4..=32).contains(&prefix.len()) && prefix.bytes().all(|byte| byte.is_ascii_hexdigit());
            return if good { Ok(Self::Prefix(prefix)) } else { Err(bad()) };
        };
        let machine: Machine = machine.parse()?;
        if let Some(rest) = when.strip_prefix("latest") {
            let back = match rest.strip_prefix('~') {
                Some(number) => number.parse().map_err(|_| bad())?,
                None if rest.is_empty() => 0,
                None => return Err(bad()),
            };
            return Ok(Self::Latest { machine, back });
        }
        let typed = Moment::parse(when, &TimeZone::system()).ok_or_else(bad)?;
        Ok(Self::At { machine, time: typed.last })
    }
}

/// The point of `points` that `selector` names.
///
/// # Errors
/// `NotFound` when there is none, `Usage` when a prefix fits several, or the name is that of several machines.
pub fn select<'a>(points: &'a [RecoveryPoint], selector: &Selector) -> Result<&'a RecoveryPoint> {
    let of = |machine: &Machine| machine.only(points, "@latest").map(in_order);
    let found = match selector {
        Selector::Latest { machine, back } => {
            let of = of(machine)?;
            usize::try_from(*back).ok().and_then(|back| of.len().checked_sub(back + 1)).map(|at| of[at])
        }
        // Of equal times the last: what was shown selects what was shown, whatever clocks did meanwhile.
        Selector::At { machine, time } => {
            of(machine)?.into_iter().filter(|point| point.time() <= *time).max_by_key(|point| point.time())
        }
        Selector::Prefix(prefix) => {
            let mut fits = points.iter().filter(|point| point.id.to_string().starts_with(prefix));
            let first = fits.next();
            if fits.next().is_some() {
                return Err(Error::usage(format!("several points have an id that begins with {prefix}"))
                    .hint("write more digits"));
            }
            first
        }
    };
    found.ok_or_else(|| {
        let what = match selector {
            Selector::Latest { machine, .. } | Selector::At { machine, .. } => {
                format!("machine {machine} has no such point")
            }
            Selector::Prefix(prefix) => format!("there is no point {prefix}"),
        };
        Error::not_found(what).hint("`windlass points` lists the points")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GroupId, MachineId, OwnerId, PointId, RepositoryId};
    use chunker::ChunkId;

    fn point(id: u8, name: &str, time: i64) -> RecoveryPoint {
        RecoveryPoint {
            id: PointId([id; 16]),
            manifest: ChunkId([0; 32]),
            owner: OwnerId::default(),
            owner_name: None,
            stamped: OwnerId::default(),
            holder: None,
            machine: MachineId::default(),
            machine_name: name.parse().unwrap(),
            group: None::<GroupId>,
            snapshot_time: Timestamp(time),
            commit_time: Timestamp(time),
            origin: (RepositoryId::default(), Timestamp(time)),
            protected_until: Timestamp(0),
            bytes_logical: 0,
            bytes_new: 0,
            bytes_stored: 0,
            pinned: false,
            forgotten: false,
            labels: Default::default(),
            number: u64::from(id),
        }
    }

    #[test]
    fn selectors_find_what_they_name() {
        // The one that was made last has the earlier time: its clock was set back.
        let points = [point(0x11, "a", 2_000_000_000), point(0x12, "a", 1_000_000_000), point(0x22, "b", 5)];
        let id = |text: &str| select(&points, &text.parse().unwrap()).map(|point| point.id.0[0]);
        for (text, want) in [
            ("a@latest", 0x12),
            ("a@latest~1", 0x11),
            ("b@latest", 0x22),
            ("a@1970-01-01T00:00:01Z", 0x12),
            ("a@1970-01-01T00:00:01.5Z", 0x12),
            ("a@1970-01-01 00:00:02 +00:00", 0x11),
            ("a@2030-01-01T00:00:00+02:00", 0x11),
            ("1111", 0x11),
            ("2222", 0x22),
        ] {
            assert_eq!(id(text).unwrap(), want, "{text}");
        }
        for text in ["a@latest~2", "c@latest", "a@1969-01-01T00:00:00Z", "3333"] {
            assert_eq!(id(text).unwrap_err().kind(), crate::ErrorKind::NotFound, "{text}");
        }
        for text in ["a@", "a@latest~", "a@latestx", "a@yesterday", "111", "11g1", "@latest", ""] {
            assert!(text.parse::<Selector>().is_err(), "{text}");
        }
        let twins = [point(0x11, "a", 1), point(0x11, "a", 2)];
        assert_eq!(select(&twins, &"1111".parse().unwrap()).unwrap_err().kind(), crate::ErrorKind::Usage);
    }
}
