//! What a commit log says, for people.

use crate::{LogHead, Timestamp, WriterId};
use serde::{Deserialize, Serialize};

/// One record of a commit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Its number and hash.
    pub end: LogHead,
    /// Time of the record, by the clock of its writer.
    pub time: Timestamp,
    /// The writer that created the record.
    pub writer: WriterId,
    /// Term of the writer; 0 for readers.
    pub term: u64,
    /// The record's events as texts: at most [`LogEntry::EVENTS_MAX`] texts, each of at most
    /// [`LogEntry::EVENT_CHARS_MAX`] characters. If there are more events, the last text says how many.
    pub events: Vec<String>,
}

impl LogEntry {
    /// Records in one answer.
    pub const TOGETHER: usize = 32;
    /// Most texts of events for one record.
    pub const EVENTS_MAX: usize = 16;
    /// Characters of an event.
    pub const EVENT_CHARS_MAX: usize = 1024;
    /// Encoded bytes of so many records: a character takes four at most.
    pub const TOGETHER_BYTES_MAX: usize = Self::TOGETHER * (128 + Self::EVENTS_MAX * (4 * Self::EVENT_CHARS_MAX + 16));

    /// Cuts the texts of events to the number and length that an entry may have.
    pub fn told(events: impl ExactSizeIterator<Item = String>) -> Vec<String> {
        let all = events.len();
        let cut = |text: String| text.chars().take(Self::EVENT_CHARS_MAX).collect();
        if all <= Self::EVENTS_MAX {
            return events.map(cut).collect();
        }
        let told = Self::EVENTS_MAX - 1;
        events.take(told).map(cut).chain([format!("and {} more", all - told)]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_and_long_events_are_cut() {
        let few = LogEntry::told((0..16).map(|at| at.to_string()));
        assert_eq!((few.len(), few[15].as_str()), (16, "15"));
        let many = LogEntry::told((0..100).map(|_| "\u{10348}".repeat(2000)));
        assert_eq!((many.len(), many[15].as_str(), many[0].chars().count()), (16, "and 85 more", 1024));
    }
}
