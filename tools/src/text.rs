//! Values as people read and write them.

use chunker::Compression;
use indicatif::BinaryBytes;
use jiff::tz::TimeZone;
use mover::{Error, Moment, PointId, Timestamp, Wait};
use std::str::FromStr;
use std::time::Duration;

/// IEC size.
pub fn size(bytes: u64) -> String {
    BinaryBytes(bytes).to_string()
}

/// `1,234,567`.
pub fn count(number: u64) -> String {
    indicatif::HumanCount(number).to_string()
}

/// `1 point`, `1,234 points`.
pub fn counted(number: u64, what: &str) -> String {
    format!("{} {what}{}", count(number), if number == 1 { "" } else { "s" })
}

/// A length of time in two units at most: `3 h 12 min`.
pub fn ago(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

pub fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// Local time with offset.
pub fn local_time(time: Timestamp) -> String {
    jiff_timestamp(time).to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S %:z").to_string()
}

/// RFC 3339, UTC, with all nine digits: a shorter one would name a longer time, and with it perhaps another point.
pub fn utc_time(time: Timestamp) -> String {
    format!("{:.9}", jiff_timestamp(time))
}

fn jiff_timestamp(time: Timestamp) -> jiff::Timestamp {
    jiff::Timestamp::from_nanosecond(time.0.into()).expect("64 bits of nanoseconds are a time")
}

/// As much of an id as people need.
pub fn short(point: PointId) -> String {
    point.to_string()[..8].to_owned()
}

/// Text from outside, harmless on a terminal.
pub fn escaped(text: &str) -> String {
    let mut made = String::with_capacity(text.len());
    for char in text.chars() {
        // Beside control characters also those that reorder text or cannot be seen.
        let harmful = char.is_control()
            || matches!(char, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        if harmful { made.extend(char.escape_unicode()) } else { made.push(char) }
    }
    made
}

/// Reads an argument.
pub fn parsed<T: FromStr<Err = Error>>(text: &str) -> Result<T, Error> {
    text.parse()
}

/// `30s`, `5m`, `1h`.
pub fn parsed_duration(text: &str) -> Result<Duration, Error> {
    let span = text.parse::<jiff::Span>().ok();
    let length = span.and_then(|span| span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).ok());
    let length = length.and_then(|length| Duration::try_from(length).ok());
    length.ok_or_else(|| Error::usage("write a duration such as 30s, 5m or 7d"))
}

/// `forever`, or a duration.
pub fn parsed_wait(text: &str) -> Result<Wait, Error> {
    if text == "forever" { Ok(Wait::Forever) } else { parsed_duration(text).map(Wait::For) }
}

/// `none`, `zstd`, `zstd:LEVEL`.
pub fn parse_compression(text: &str) -> Result<Compression, Error> {
    let bad = || Error::usage("write none, zstd or zstd:LEVEL with a level from 1 to 22");
    match text.split_once(':') {
        None if text == "none" => Ok(Compression::None),
        None if text == "zstd" => Ok(Compression::default()),
        Some(("zstd", level)) => {
            let level = level.parse().ok().filter(|level| (1..=22).contains(level)).ok_or_else(bad)?;
            Ok(Compression::Zstd(level))
        }
        _ => Err(bad()),
    }
}

/// The time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// What the clock said when the point was made.
    Original,
    /// This one.
    At(Timestamp),
}

impl FromStr for SetTime {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text == "original" {
            return Ok(Self::Original);
        }
        let bad = || {
            Error::usage(format!("{text:?} is not a time"))
                .hint("write a time as `windlass points` shows it, for example 2026-01-02 03:04:05 +01:00, or original")
        };
        Moment::parse(text, &TimeZone::system()).map(|typed| Self::At(typed.first)).ok_or_else(bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever is printed can be typed, and means the time that was printed.
    #[test]
    fn printed_times_are_read_again() {
        let zone = TimeZone::system();
        let second = 1_000_000_000;
        let times =
            [0, 1, -1, second - 1, 1_795_348_800 * second, 1_795_348_800 * second + 500_000_000, i64::MIN, i64::MAX];
        let spread = (0..2000).map(|step| i64::MIN.wrapping_add_unsigned(step * (u64::MAX / 2000)));
        for time in times.into_iter().chain(spread).map(Timestamp) {
            for (text, length) in [(local_time(time), second), (utc_time(time), 1)] {
                let read = Moment::parse(&text, &zone).unwrap_or_else(|| panic!("{text} cannot be typed"));
                assert!(read.first <= time && time <= read.last, "{text} is not {time:?}");
                assert!(read.last.0.saturating_sub(read.first.0) < length, "{text} is too long");
            }
        }
    }
}
