//! Log records: the repository's total order, chained by hash. Layout in FORMAT.md, section "Log".
//! What events say is in `event/body`; a recovery point there is `CommittedPoint`, its manifest is in mover.

use super::event::Event;
use mover::{LogHead, RecordError, RecordReader, RecordWriter, RepositoryId, Timestamp, WriterId, digest};

/// Longest log record in bytes.
pub const RECORD_BYTES_MAX: usize = 1 << 20;

/// One record of the commit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// Its number; the first is 1.
    pub sequence: u64,
    /// Hash of the record before; of `config` in the first.
    pub previous: [u8; 32],
    /// Id of the repository.
    pub repository: RepositoryId,
    /// The writer that created the record.
    pub writer: WriterId,
    /// Term of that writer; 0 for readers, which have none.
    pub term: u64,
    /// Random: tells the own record from another's after an unclear answer (R2).
    pub nonce: [u8; 16],
    /// Time of writing, by the writer's clock.
    pub time: Timestamp,
    /// What it states, in order.
    pub events: Vec<Event>,
}

impl LogRecord {
    /// Its bytes; the last 32 are the hash of all before, which the next record repeats.
    pub fn encode(&self) -> Vec<u8> {
        let mut to = RecordWriter::new();
        to.bytes(LOG_MAGIC).u16(LOG_VERSION).u16(0).u64(self.sequence).bytes(&self.previous);
        to.bytes(&self.repository.0).bytes(&self.writer.0).u64(self.term).bytes(&self.nonce).i64(self.time.0);
        to.list(&self.events, |to, event| event.write(to));
        let hash = digest(to.as_slice());
        to.bytes(&hash);
        to.finish()
    }

    /// Reads a record and gives its hash.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<(Self, LogHead), RecordError> {
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(RecordError::Value { field: "log record length", value: bytes.len() as u64 });
        }
        let (body, hash) = bytes.split_last_chunk::<32>().ok_or(RecordError::Short { field: "log record" })?;
        let mut from = RecordReader::new(body);
        if from.bytes("log magic", 8)? != LOG_MAGIC {
            return Err(RecordError::Value { field: "log magic", value: 0 });
        }
        if *hash != digest(body) {
            return Err(RecordError::Hash { field: "log record" });
        }
        for (field, known) in [("log version", LOG_VERSION), ("log flags", 0)] {
            let value = from.u16(field)?;
            if value != known {
                return Err(RecordError::Newer { field, value: value.into() });
            }
        }
        let record = Self {
            sequence: from.u64("log sequence")?,
            previous: from.array("log previous")?,
            repository: RepositoryId(from.array("log repository")?),
            writer: WriterId(from.array("log writer")?),
            term: from.u64("log term")?,
            nonce: from.array("log nonce")?,
            time: Timestamp(from.i64("log time")?),
            events: from.list("log events", 8, Event::read)?,
        };
        from.end()?;
        let log_head = LogHead { sequence: record.sequence, hash: *hash };
        Ok((record, log_head))
    }
}

const LOG_MAGIC: &[u8; 8] = b"WLLOGREC";
const LOG_VERSION: u16 = 1;
