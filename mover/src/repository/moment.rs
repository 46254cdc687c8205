//! A time as a person types it, which means all of the unit that it is given in: `2026-01-02` is a day,
//! `2026-01-02T03:04` a minute, `2026-01-02 03:04:05 +01:00` a second, and so on to the nanosecond.

use crate::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::{Offset, TimeZone};

/// The span of a typed time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// First nanosecond of the span.
    pub first: Timestamp,
    /// Last nanosecond of the span.
    pub last: Timestamp,
}

impl Moment {
    /// Reads what any command prints, and what is like it: a date, or date and time with `T` or a space between, down
    /// to minutes, seconds or a fraction of up to nine digits; then, with or without a space, `Z`, `UTC`, `+01:00`,
    /// `+0100` or `+01`. Without a zone in the text it is a time of `zone`; an hour that a clock shows twice means both
    /// hours. None for any other text.
    pub fn parse(text: &str, zone: &TimeZone) -> Option<Self> {
        let text = text.trim();
        let (date, rest) = text.split_at_checked(DATE_BYTES)?;
        let date = date_of(date)?;
        if rest.is_empty() {
            let next = date.tomorrow().ok()?;
            let first = instant(date.at(0, 0, 0, 0), zone, Twice::First)?;
            return Some(Self::between(first, instant(next.at(0, 0, 0, 0), zone, Twice::First)?));
        }
        let rest = rest.strip_prefix(['T', 't', ' '])?;
        let (clock, zone) = match rest.find(|char: char| !(char.is_ascii_digit() || matches!(char, ':' | '.' | ','))) {
            Some(at) => (&rest[..at], zone_of(rest[at..].trim_start())?),
            None => (rest, zone.clone()),
        };
        let mut parts = clock.splitn(3, ':');
        let (hour, minute) = (two_digits(parts.next()?)?, two_digits(parts.next()?)?);
        let (second, nanos, length_ns) = match parts.next() {
            None => (0, 0, 60 * SECOND_NS),
            Some(seconds) => seconds_of(seconds)?,
        };
        let start = DateTime::new(date.year(), date.month(), date.day(), hour, minute, second, nanos).ok()?;
        let last_begin = instant(start, &zone, Twice::Second)?;
        Some(Self::between(instant(start, &zone, Twice::First)?, last_begin + i128::from(length_ns)))
    }

    /// The span from `first` to just before `end`. An end that cannot be stored becomes the first or last time that
    /// can.
    fn between(first: i128, end: i128) -> Self {
        let stored = |ns: i128| Timestamp(i64::try_from(ns).unwrap_or(if ns < 0 { i64::MIN } else { i64::MAX }));
        Self { first: stored(first), last: stored(end - 1) }
    }
}

/// Which of two, for a time that a clock shows twice because it is put back.
#[derive(Clone, Copy)]
enum Twice {
    First,
    Second,
}

fn instant(time: DateTime, zone: &TimeZone, twice: Twice) -> Option<i128> {
    let ambiguous = zone.to_ambiguous_timestamp(time);
    let found = match twice {
        Twice::First => ambiguous.earlier(),
        Twice::Second => ambiguous.later(),
    };
    found.ok().map(jiff::Timestamp::as_nanosecond)
}

fn date_of(text: &str) -> Option<Date> {
    let (year, rest) = text.split_at_checked(4)?;
    let (month, day) = rest.strip_prefix('-')?.split_once('-')?;
    let year = digits(year).then(|| year.parse().ok()).flatten()?;
    Date::new(year, two_digits(month)?, two_digits(day)?).ok()
}

/// Second, nanoseconds, and how many nanoseconds the last digit stands for.
fn seconds_of(text: &str) -> Option<(i8, i32, i64)> {
    let Some((second, fraction)) = text.split_once(['.', ',']) else { return Some((two_digits(text)?, 0, SECOND_NS)) };
    let places = u32::try_from(fraction.len()).ok().filter(|places| (1..=9).contains(places))?;
    let unit = 10_i64.pow(9 - places);
    let value: i64 = digits(fraction).then(|| fraction.parse().ok()).flatten()?;
    Some((two_digits(second)?, i32::try_from(value * unit).ok()?, unit))
}

fn zone_of(text: &str) -> Option<TimeZone> {
    if text.eq_ignore_ascii_case("z") || text.eq_ignore_ascii_case("utc") {
        return Some(TimeZone::UTC);
    }
    let (sign, rest) = match text.split_at_checked(1)? {
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ => return None,
    };
    let parts: Vec<&str> = match rest.contains(':') {
        true => rest.split(':').collect(),
        false => [rest.get(..2)?].into_iter().chain(rest.get(2..).filter(|rest| !rest.is_empty())).collect(),
    };
    let mut seconds = 0;
    for (part, (unit, most)) in parts.iter().zip([(3600, 25), (60, 59), (1, 59)]) {
        let part = i32::from(two_digits(part)?);
        seconds += (part <= most).then_some(part * unit)?;
    }
    let known = (1..=3).contains(&parts.len());
    Offset::from_seconds(sign * known.then_some(seconds)?).ok().map(TimeZone::fixed)
}

fn two_digits(text: &str) -> Option<i8> {
    (text.len() == 2 && digits(text)).then(|| text.parse().ok()).flatten()
}

fn digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

/// `2026-01-02`
const DATE_BYTES: usize = 10;
const SECOND_NS: i64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn span(text: &str, zone: &TimeZone) -> Option<(String, String)> {
        let shown = |time: Timestamp| jiff::Timestamp::from_nanosecond(time.0.into()).unwrap().to_string();
        Moment::parse(text, zone).map(|it| (shown(it.first), shown(it.last)))
    }

    #[test]
    fn a_time_is_all_of_its_unit() {
        let berlin = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        for (text, first, last) in [
            ("2026-01-02", "2026-01-01T23:00:00Z", "2026-01-02T22:59:59.999999999Z"),
            ("2026-01-02T03:04", "2026-01-02T02:04:00Z", "2026-01-02T02:04:59.999999999Z"),
            ("2026-01-02 03:04:05", "2026-01-02T02:04:05Z", "2026-01-02T02:04:05.999999999Z"),
            ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z", "2026-01-02T03:04:05.999999999Z"),
            ("2026-01-02 03:04:05 UTC", "2026-01-02T03:04:05Z", "2026-01-02T03:04:05.999999999Z"),
            ("2026-01-02 03:04:05 +05:30", "2026-01-01T21:34:05Z", "2026-01-01T21:34:05.999999999Z"),
            ("2026-01-02t03:04:05.25-0100", "2026-01-02T04:04:05.25Z", "2026-01-02T04:04:05.259999999Z"),
            ("2026-01-02T03:04:05.000000001+01", "2026-01-02T02:04:05.000000001Z", "2026-01-02T02:04:05.000000001Z"),
            // A day of 25 hours, and an hour that its clock shows twice.
            ("2026-10-25", "2026-10-24T22:00:00Z", "2026-10-25T22:59:59.999999999Z"),
            ("2026-10-25 02:30", "2026-10-25T00:30:00Z", "2026-10-25T01:30:59.999999999Z"),
            ("2026-10-25 02:30 +02:00", "2026-10-25T00:30:00Z", "2026-10-25T00:30:59.999999999Z"),
        ] {
            assert_eq!(span(text, &berlin), Some((first.into(), last.into())), "{text}");
        }
        for text in [
            "",
            "2026",
            "2026-13-01",
            "2026-02-30",
            "2026-01-02T",
            "2026-01-02T3:04",
            "2026-01-02T24:00",
            "2026-01-02T03:04:60",
            "2026-01-02T03:04:05.",
            "2026-01-02T03:04:05.0000000001",
            "2026-01-02T03:04:05 Mars",
            "2026-01-02T03:04:05+1",
            "2026-01-02T03:04:05+01:00:00:00",
            "2026-01-02T03:04:05+99:00",
            "2026-01-02T03",
            "+026-01-02",
            "2026-01-0é",
            "now",
        ] {
            assert_eq!(span(text, &berlin), None, "{text}");
        }
        let far = Moment::parse("9000-01-01", &TimeZone::UTC).unwrap();
        assert_eq!((far.first, far.last), (Timestamp(i64::MAX), Timestamp(i64::MAX)));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,40}") {
            let _ = Moment::parse(&text, &TimeZone::UTC);
        }
    }
}
