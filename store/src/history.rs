//! What the log says, record by record.

use crate::directory::{LOG, LOG_FOLDER, log_object};
use crate::format::event::Event;
use crate::format::record::{LogRecord, RECORD_BYTES_MAX};
use crate::local::Inner;
use mover::{Error, LogEntry, LogHead, Result};

impl Inner {
    /// See [`mover::Repository::log`]. Blocking.
    pub fn log_after(&self, after: u64) -> Result<Vec<LogEntry>> {
        let end = self.catch_up()?.end().sequence;
        let mut entries = Vec::new();
        let mut previous: Option<LogHead> = None;
        for sequence in self.first_record(after + 1)?..=end {
            let name = log_object(sequence);
            let bytes = self.directory.read(&name, RECORD_BYTES_MAX as u64)?;
            let bytes = bytes.ok_or_else(|| Error::integrity(format!("{name} is missing")))?;
            let (record, own) = LogRecord::decode(&bytes).map_err(|error| Error::from(error).context(&name))?;
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

    /// The first record from `from` on that is there: older ones may have been pruned.
    fn first_record(&self, from: u64) -> Result<u64> {
        for folder in self.directory.list(LOG)? {
            let Ok(folder) = folder.parse::<u64>() else { continue };
            if folder < from / LOG_FOLDER {
                continue;
            }
            let records = self.directory.list(&format!("{LOG}/{folder:020}"))?;
            let first = records.iter().filter_map(|name| name.parse::<u64>().ok()).find(|number| *number >= from);
            if let Some(first) = first {
                return Ok(first);
            }
        }
        Ok(from)
    }
}
