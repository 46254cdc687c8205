//! What a job tells while it runs and at its end. With `--json` the command line prints these events, one on each line, and
//! nothing else. Scripts depend on the names of the fields: fields may be added, and are never renamed or removed.

mod summary;

pub use summary::{
    AttachmentSummary, BackupSummary, CopySummary, DiskSummary, FindingSummary, JobSummary, MachineSummary,
    RestoreSummary, SweepSummary, VerifySummary,
};

use crate::{Error, Phase, Progress, Subject};
use serde::Serialize;
use std::time::Duration;

/// Something that a job tells.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum JobEvent {
    /// A proxy has the job.
    Given(GivenEvent),
    /// How far it is.
    Progress(ProgressEvent),
    /// The job goes on, but the administrator should know something.
    Warning(WarningEvent),
    /// One thing of many failed and the job goes on, or the job failed.
    Error(FailureEvent),
    /// The job has ended; the summary says what it did.
    Summary(JobSummary),
}

/// A proxy has the job. From then on it can be followed and cancelled by its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GivenEvent {
    /// Id of the job.
    pub job: String,
    /// Name of the proxy.
    pub proxy: String,
}

/// How far a job is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProgressEvent {
    /// What it is doing.
    pub phase: Phase,
    /// Bytes that are done.
    pub bytes_done: u64,
    /// Bytes to be done in all, including the bytes that are done; 0 where the job does not know.
    pub bytes_total: u64,
    /// Bytes in a second, since the job began.
    pub bytes_per_second: u64,
    /// Milliseconds since the job began.
    pub elapsed_ms: u64,
}

/// Something unexpected that did not stop the job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WarningEvent {
    /// What it is, for people.
    pub message: String,
}

/// A failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FailureEvent {
    /// Code of the kind of error: see [`crate::ErrorKind::code`].
    pub code: &'static str,
    /// What failed on what.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The point: its id, or a readable name if the job is over several points. This field and those below are left out
    /// when their value is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub point: Option<String>,
    /// Name of the disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// Offset in the disk, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// The chunk, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunk: Option<String>,
    /// Name of the pack.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pack: Option<String>,
    /// The file or folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

impl JobEvent {
    /// A warning with this message.
    pub fn warning(message: impl Into<String>) -> Self {
        Self::Warning(WarningEvent { message: message.into() })
    }
}

impl ProgressEvent {
    /// What the counters of a job say after `elapsed`.
    pub fn of(progress: &Progress, elapsed: Duration) -> Self {
        let (bytes_done, bytes_total) = progress.bytes();
        let bytes_per_second = (bytes_done as f64 / elapsed.as_secs_f64().max(0.001)) as u64;
        let elapsed_ms = milliseconds(elapsed);
        Self { phase: progress.phase(), bytes_done, bytes_total, bytes_per_second, elapsed_ms }
    }

    /// Seconds that are left at this speed; none where nothing moves yet.
    pub fn seconds_left(&self) -> Option<u64> {
        self.bytes_total.saturating_sub(self.bytes_done).checked_div(self.bytes_per_second)
    }
}

impl FailureEvent {
    /// The job failed.
    pub fn of(error: &Error) -> Self {
        let Subject { point, disk, offset, chunk, pack, path } = error.subject().clone();
        let (code, message, hint) = (error.kind().code(), error.message(), error.remedy().map(str::to_owned));
        Self { code, message, hint, point, disk, offset, chunk: chunk.map(|id| id.to_string()), pack, path }
    }

    /// A point could not be copied, and the others go on. `point` is a name for people.
    pub fn of_point(point: &str, error: &Error) -> Self {
        Self { point: Some(point.to_owned()), ..Self::of(error) }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CopyReport, CopyTally};
    use chunker::ChunkId;
    use serde_json::{Value, json};

    fn told(event: &JobEvent) -> Value {
        serde_json::to_value(event).unwrap()
    }

    #[test]
    fn events_are_the_lines_that_scripts_read() {
        let progress = Progress::default();
        progress.enter(Phase::Move);
        progress.expect(4000);
        progress.advance(1000);
        let progress = ProgressEvent::of(&progress, Duration::from_secs(2));
        assert_eq!(progress.seconds_left(), Some(6));
        assert_eq!(
            told(&JobEvent::Progress(progress)),
            json!({"event": "progress", "phase": "move", "bytes_done": 1000, "bytes_total": 4000, "bytes_per_second": 500,
                   "elapsed_ms": 2000})
        );
        assert_eq!(told(&JobEvent::warning("look")), json!({"event": "warning", "message": "look"}));
        let copied = CopyReport { points: 1, chunks_moved: 2, bytes_moved: 3 };
        let tally = CopyTally { copied, there: 4, failed: 5 };
        let summary = CopySummary::of(&tally, Duration::from_millis(6));
        assert_eq!(
            told(&JobEvent::Summary(JobSummary::Copy(summary))),
            json!({"event": "summary", "points": 1, "chunks_moved": 2, "bytes_moved": 3, "points_there_already": 4,
                   "points_failed": 5, "duration_ms": 6})
        );
    }

    #[test]
    fn a_failure_tells_where_it_happened() {
        let subject = Subject { chunk: Some(ChunkId([7; 32])), pack: Some("p".into()), ..Subject::default() };
        let error = Error::integrity("it is damaged").about(subject).at_offset(65536).on_disk("sda").hint("look");
        assert_eq!(error.message(), "disk sda: offset 65536: it is damaged");
        assert_eq!(
            told(&JobEvent::Error(FailureEvent::of(&error))),
            json!({"event": "error", "code": "integrity", "message": "disk sda: offset 65536: it is damaged",
                   "hint": "look", "disk": "sda", "offset": 65536, "chunk": "07".repeat(32), "pack": "p"})
        );
        let plain = told(&JobEvent::Error(FailureEvent::of_point("web@1234", &Error::busy("no room"))));
        assert_eq!(
            plain,
            json!({"event": "error", "code": "busy", "message": "no room", "hint": null, "point": "web@1234"})
        );
    }
}
