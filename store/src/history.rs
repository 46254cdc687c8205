//! What the log says, record by record.

use crate::format::event::Event;
use crate::format::record::{LogRecord, RECORD_BYTES_MAX};
use crate::objects::ObjectName;
use crate::repository::Inner;
use mover::{Error, LogEntry, LogHead, Result};

impl Inner {
    /// See [`mover::Repository::log`]. Blocking.
    pub fn log_after(&self, after: u64) -> Result<Vec<LogEntry>> {
        let end = self.catch_up()?.end().sequence;
        let mut entries = Vec::new();
        let mut previous: Option<LogHead> = None;
        // Older ones may have been pruned.
        let first = self.objects.records(after + 1..u64::MAX, 1)?.pop().unwrap_or(after + 1);
        for sequence in first..=end {
            let name = ObjectName::Record(sequence);
            let bytes = self.objects.read(name, RECORD_BYTES_MAX as u64)?;
            let bytes = bytes.ok_or_else(|| Error::integrity(format!("{name} is missing")))?;
            let (record, own) = LogRecord::decode(&bytes).map_err(|error| Error::from(error).context(name))?;
            if record.sequence != sequence || previous.is_some_and(|previous| previous.hash != record.previous) {
                return Err(Error::integrity(format!("{name} does not follow the record before it")));
            }
            let LogRecord { time, writer, term, events, .. } = record;
            let events = LogEntry::told(events.iter().map(Event::to_string));
            entries.push(LogEntry { end: own, time, writer, term, events });
            previous = Some(own);
            if entries.len() == LogEntry::TOGETHER {
                break;
            }
        }
        Ok(entries)
    }
}
