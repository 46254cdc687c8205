//! What is asked of a proxy, and what it tells.

use super::super::message::Failed;
use chunker::Compression;
use mover::{
    Allow, Audit, BackupOptions, BackupReport, Counters, Error, Name, PointId, Result, TrackingWish, Verification,
};
use serde::{Deserialize, Serialize};

/// A backup that a proxy is to make. It names a machine: where its disks are the proxy alone knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The job, and the point it makes: so that one asked for twice makes one point.
    pub id: PointId,
    /// Of the proxy's machines.
    pub machine: Name,
    /// Of the node's repositories.
    pub repository: Name,
    /// How changes may be found.
    pub wish: TrackingWish,
    /// Level of zstd; none: not compressed.
    pub compression: Option<u8>,
    /// How the repository checks what it gets.
    pub verification: Verification,
    /// Words to find the point by.
    pub tags: Vec<String>,
    /// Most bytes to read in a second.
    pub rate: Option<u64>,
    /// Percent of each disk to audit; none: the usual.
    pub audit: Option<u8>,
    /// What may differ from the parent.
    pub allow: Allow,
}

impl Job {
    /// What `options` say, for a proxy.
    ///
    /// # Errors
    /// `Usage` for what a job does not carry.
    pub fn new(id: PointId, repository: Name, options: &BackupOptions) -> Result<Self> {
        if !options.attachments.is_empty() {
            return Err(Error::usage("--attach cannot be used with --proxy")
                .hint("leave out --attach, or run the backup on the host of the disks"));
        }
        let tags = options.tags.iter().map(String::len).sum::<usize>();
        if options.tags.len() > TAGS_MAX || tags > TAGS_BYTES_MAX {
            return Err(Error::usage(format!(
                "a job can have at most {TAGS_MAX} tags, and {TAGS_BYTES_MAX} bytes of them"
            )));
        }
        let level = |level| u8::try_from(level).map_err(|_| Error::usage(format!("{level} is not a level of zstd")));
        Ok(Self {
            id,
            machine: options.machine_name.clone(),
            repository,
            wish: options.wish,
            compression: match options.compression {
                Compression::None => None,
                Compression::Zstd(it) => Some(level(it)?),
            },
            verification: options.verification,
            tags: options.tags.clone(),
            rate: options.rate,
            audit: match options.audit {
                Audit::Usual => None,
                Audit::Percent(percent) => Some(percent),
            },
            allow: options.allow,
        })
    }

    /// What to make of the machine's disks.
    ///
    /// # Errors
    /// `Usage` for values that mean nothing.
    pub fn options(&self) -> Result<BackupOptions> {
        let compression = match self.compression {
            None => Compression::None,
            Some(level @ 1..=22) => Compression::Zstd(level.into()),
            Some(level) => return Err(Error::usage(format!("{level} is not a level of zstd"))),
        };
        if self.rate == Some(0) || self.audit.is_some_and(|percent| percent > 100) {
            return Err(Error::usage("the rate must not be 0, and the audit not more than 100 per cent"));
        }
        Ok(BackupOptions {
            machine_name: self.machine.clone(),
            machine: None,
            point: Some(self.id),
            wish: self.wish,
            compression,
            verification: self.verification,
            tags: self.tags.clone(),
            attachments: Vec::new(),
            rate: self.rate,
            audit: self.audit.map_or(Audit::Usual, Audit::Percent),
            allow: self.allow,
        })
    }
}

/// Asks for the jobs of the proxy whose certificate is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attend {
    /// Random for each process: tells one that lost its connection from one that was started again.
    pub instance: [u8; 16],
    /// Jobs that it was given, and whose end it has not told.
    pub jobs: Vec<PointId>,
}

/// Has a proxy carry a job out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Name of the proxy.
    pub proxy: Name,
    /// What it is to do.
    pub job: Job,
}

/// Names a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobOf {
    /// Id of the job.
    pub job: PointId,
}

/// What a proxy tells of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Id of the job.
    pub job: PointId,
    /// What happened to the job.
    pub event: Event,
}

/// Something that happened to a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// How far it is.
    Progress(Counters),
    /// It goes on, but somebody should know.
    Warning(String),
    /// The point is committed.
    Ended(Box<BackupReport>),
    /// It failed. A node tells this one as the reply of every failure.
    Failed(Failed),
}

impl Event {
    /// The end of a job, short enough to be sent.
    pub fn of(made: Result<BackupReport>) -> Self {
        let mut report = match made {
            Ok(report) => report,
            Err(error) => return Self::Failed((&error).into()),
        };
        let left = report.warnings.len().saturating_sub(WARNINGS_MAX);
        if left > 0 {
            report.warnings.truncate(WARNINGS_MAX);
            report.warnings.push(format!("more warnings are in the proxy's log: {left}"));
        }
        report.warnings.iter_mut().for_each(cut);
        report.disks.iter_mut().for_each(|disk| cut(&mut disk.tracking.reason));
        Self::Ended(Box::new(report))
    }
}

fn cut(text: &mut String) {
    if let Some((end, _)) = text.char_indices().nth(WORDS_CHARS_MAX) {
        text.truncate(end);
    }
}

/// Body of `Attend`.
pub const ATTEND_BYTES_MAX: usize = 4 << 10;
/// Body of `Run`, and of the job that is given on.
pub const JOB_BYTES_MAX: usize = 64 << 10;
/// Body of `Report`, and of the event that is told on: a report of [`DISKS_MAX`] disks fits.
pub const EVENT_BYTES_MAX: usize = 256 << 10;
/// Disks of a machine that a proxy backs up.
pub const DISKS_MAX: usize = 64;
/// Warnings of a job.
pub const WARNINGS_MAX: usize = 32;
const TAGS_MAX: usize = 256;
const TAGS_BYTES_MAX: usize = 32 << 10;
/// Characters of a warning or reason, each of 4 bytes at most.
const WORDS_CHARS_MAX: usize = 500;
