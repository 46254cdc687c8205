//! What an administrator asks of a proxy, and what the proxy reports.

use super::super::message::Failed;
use super::site::{DISKS_MAX, LABELS_MAX, MACHINES_MAX, OfferedMachine};
use chunker::Compression;
use mover::{
    Allow, Audit, BackupOptions, BackupReport, Counters, Error, Examination, JobId, JobKind, Name, PointId, Quiesce,
    Result, TrackingWish, Verification, codec,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// What a proxy is to do. A node passes a job on unchanged. The proxy that carries it out must understand its kind, its
/// whole body, and each critical extension.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Random, made by the program that asks. Two requests with the same id ask for the same job.
    pub id: JobId,
    /// One of the proxy's machines. Only the proxy knows where its disks are.
    pub machine: Name,
    /// One of the node's repositories.
    pub repository: Name,
    /// Code of the kind: [`JobKind::code`].
    pub kind: u16,
    /// What is to be done, as the kind says: [`BackupJob`].
    pub body: Vec<u8>,
    /// What later versions add.
    pub extensions: Vec<JobExtension>,
}

/// Something that a later version added to jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobExtension {
    /// What it is about.
    pub tag: u16,
    /// True when a program that does not know the extension must refuse the job. If false, such a program ignores the
    /// extension.
    pub critical: bool,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// A backup that a proxy is to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupJob {
    /// Id of the point to be made: a backup that is carried out twice makes one point.
    pub point: PointId,
    /// How changes may be found.
    pub wish: TrackingWish,
    /// Level of zstd; none: not compressed.
    pub compression: Option<u8>,
    /// How the repository checks what it gets.
    pub verification: Verification,
    /// Words to find the point by.
    pub tags: Vec<String>,
    /// Most bytes to read from the source in a second.
    pub rate: Option<u64>,
    /// Percent of each disk to audit; none: the usual.
    pub audit: Option<u8>,
    /// What may differ from the parent.
    pub allow: Allow,
    /// Whether file systems of a running machine are frozen.
    pub quiesce: Quiesce,
}

impl Job {
    /// The backup that `options` describe, for a proxy: it makes `point` in `repository`.
    ///
    /// # Errors
    /// `Usage` for what a job does not carry.
    pub fn backup(id: JobId, point: PointId, repository: Name, options: &BackupOptions) -> Result<Self> {
        let body = BackupJob::new(point, options)?;
        Ok(Self {
            id,
            machine: options.machine_name.clone(),
            repository,
            kind: JobKind::Backup.code(),
            body: codec::encode::<_, BODY_BYTES_MAX>(&body)?,
            extensions: Vec::new(),
        })
    }

    /// A look at a machine: what its next backup into `repository` will do.
    pub fn examine(id: JobId, machine: Name, repository: Name) -> Self {
        let kind = JobKind::Examine.code();
        Self { id, machine, repository, kind, body: Vec::new(), extensions: Vec::new() }
    }

    /// Refuses a job with too many extensions, because a node keeps jobs in memory.
    ///
    /// # Errors
    /// `Usage`.
    pub fn check(&self) -> Result<()> {
        if self.extensions.len() > EXTENSIONS_MAX {
            return Err(Error::usage(format!("a job can have at most {EXTENSIONS_MAX} extensions")));
        }
        Ok(())
    }

    /// What is to be done.
    ///
    /// # Errors
    /// `Version` for a kind or a critical extension that this program does not know; `Usage` for values that mean nothing.
    pub fn work(&self) -> Result<Work> {
        let newer =
            |what: String| Err(Error::version(what).hint("update the proxy to the version of the administrator"));
        let kind = match JobKind::of_code(self.kind) {
            Some(kind @ (JobKind::Backup | JobKind::Examine)) => kind,
            Some(kind) => return newer(format!("this proxy does not carry out a {}", kind.as_str())),
            None => return newer(format!("this proxy does not know jobs of kind {}", self.kind)),
        };
        if let Some(unknown) = self.extensions.iter().find(|extension| extension.critical) {
            return newer(format!(
                "this proxy does not know extension {} of jobs, which must be understood",
                unknown.tag
            ));
        }
        let wrong = || Error::usage("the job is not one that can be carried out");
        if kind == JobKind::Examine {
            return if self.body.is_empty() { Ok(Work::Examine) } else { Err(wrong()) };
        }
        let body = codec::decode::<BackupJob, BODY_BYTES_MAX>(&self.body);
        let body = body.map_err(|error| wrong().because(error))?;
        body.options(&self.machine).map(|options| Work::Backup(Box::new(options)))
    }
}

/// What a proxy does for a job.
#[derive(Debug, Clone)]
pub enum Work {
    /// It backs the machine up.
    Backup(Box<BackupOptions>),
    /// It looks at the machine.
    Examine,
}

/// What a proxy made of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Made {
    /// A point.
    Backup(Box<BackupReport>),
    /// What there is to know of a machine.
    Examination(Box<Examination>),
}

impl BackupJob {
    fn new(point: PointId, options: &BackupOptions) -> Result<Self> {
        if !options.attachments.is_empty() {
            return Err(Error::usage("--attach cannot be used when a proxy makes the backup")
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
            point,
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
            quiesce: options.quiesce,
        })
    }

    fn options(self, machine: &Name) -> Result<BackupOptions> {
        let compression = match self.compression {
            None => Compression::None,
            Some(level @ 1..=22) => Compression::Zstd(level.into()),
            Some(level) => return Err(Error::usage(format!("{level} is not a level of zstd"))),
        };
        if self.rate == Some(0) || self.audit.is_some_and(|percent| percent > 100) {
            return Err(Error::usage("the rate must not be 0, and the audit not more than 100 per cent"));
        }
        Ok(BackupOptions {
            machine_name: machine.clone(),
            machine: None,
            point: Some(self.point),
            wish: self.wish,
            compression,
            verification: self.verification,
            tags: self.tags,
            attachments: Vec::new(),
            rate: self.rate,
            audit: self.audit.map_or(Audit::Usual, Audit::Percent),
            allow: self.allow,
            quiesce: self.quiesce,
        })
    }
}

/// Asks for the jobs of the proxy whose certificate is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attend {
    /// Random for each process: tells one that lost its connection from one that was started again.
    pub instance: [u8; 16],
    /// Jobs that it was given, and whose end it has not told.
    pub jobs: Vec<HeldJob>,
    /// Words that an administrator gave the proxy.
    pub labels: Vec<Name>,
    /// What it can back up. When that changes the proxy attends again.
    pub machines: Vec<OfferedMachine>,
}

/// A job that a proxy has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldJob {
    /// Its id.
    pub id: JobId,
    /// The machine, as the job names it.
    pub machine: Name,
    /// The repository.
    pub repository: Name,
    /// Code of its kind.
    pub kind: u16,
}

impl Attend {
    /// Refuses more than a node keeps in memory.
    ///
    /// # Errors
    /// `Usage`.
    pub fn check(&self) -> Result<()> {
        if self.jobs.len() > HELD_MAX || self.labels.len() > LABELS_MAX || self.machines.len() > MACHINES_MAX {
            return Err(Error::usage(format!(
                "a proxy can have at most {HELD_MAX} jobs, {LABELS_MAX} labels and {MACHINES_MAX} machines"
            )));
        }
        self.machines.iter().try_for_each(OfferedMachine::check)
    }
}

impl From<&Job> for HeldJob {
    fn from(job: &Job) -> Self {
        let (machine, repository) = (job.machine.clone(), job.repository.clone());
        Self { id: job.id, machine, repository, kind: job.kind }
    }
}

/// Has a proxy carry a job out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Name of the proxy; without it, the node chooses one that offers the machine.
    pub proxy: Option<Name>,
    /// Choose among proxies with this label only.
    pub label: Option<Name>,
    /// True when the job was asked for before, over a connection that was lost: a proxy may have it.
    pub again: bool,
    /// What it is to do.
    pub job: Job,
}

/// Which proxy a job was given to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    /// Its name.
    pub proxy: Name,
}

/// Names a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobOf {
    /// Id of the job.
    pub job: JobId,
}

/// What a proxy tells of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Id of the job.
    pub job: JobId,
    /// What happened to the job.
    pub event: Event,
}

/// What a job made. A node passes it on as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobReport {
    /// Code of the job's kind.
    pub kind: u16,
    /// What was made, as the kind says: [`BackupReport`] or [`Examination`].
    pub body: Vec<u8>,
}

/// Something that happened to a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// How far it is.
    Progress(Counters),
    /// It goes on, but somebody should know.
    Warning(String),
    /// It did what was asked.
    Ended(JobReport),
    /// It failed. The node tells the administrator with the reply that it uses for every failure.
    Failed(Failed),
}

impl Event {
    /// The end of a job, short enough to be sent.
    pub fn of(made: Result<Made>) -> Self {
        match made {
            Ok(Made::Backup(report)) => Self::backup(*report),
            Ok(Made::Examination(found)) => Self::examination(*found),
            Err(error) => Self::Failed((&error).into()),
        }
    }

    fn backup(mut report: BackupReport) -> Self {
        let left = report.warnings.len().saturating_sub(WARNINGS_MAX);
        if left > 0 {
            report.warnings.truncate(WARNINGS_MAX);
            report.warnings.push(format!("more warnings are in the proxy's log: {left}"));
        }
        report.warnings.iter_mut().for_each(cut);
        report.disks.iter_mut().for_each(|disk| cut(&mut disk.tracking.reason));
        Self::ended(JobKind::Backup, &report)
    }

    fn examination(mut found: Examination) -> Self {
        found.remarks.truncate(WARNINGS_MAX);
        found.disks.truncate(DISKS_MAX);
        found.remarks.iter_mut().for_each(cut);
        found.disks.iter_mut().for_each(|disk| cut(&mut disk.reason));
        cut(&mut found.agent);
        Self::ended(JobKind::Examine, &found)
    }

    fn ended(kind: JobKind, made: &impl Serialize) -> Self {
        match codec::encode::<_, REPORT_BYTES_MAX>(made) {
            Ok(body) => Self::Ended(JobReport { kind: kind.code(), body }),
            Err(error) => Self::Failed((&Error::internal("the report of the job is too long").because(error)).into()),
        }
    }
}

impl JobReport {
    /// What a backup made.
    ///
    /// # Errors
    /// `Transport` when it is not the report of a backup.
    pub fn backup(&self) -> Result<BackupReport> {
        self.of_kind(JobKind::Backup)
    }

    /// What was found of a machine.
    ///
    /// # Errors
    /// `Transport` when it is not the report of an examination.
    pub fn examination(&self) -> Result<Examination> {
        self.of_kind(JobKind::Examine)
    }

    fn of_kind<T: DeserializeOwned>(&self, kind: JobKind) -> Result<T> {
        if JobKind::of_code(self.kind) != Some(kind) {
            let what = format!("the proxy reports a job of kind {}, not of kind {}", self.kind, kind.code());
            return Err(Error::transport(what));
        }
        let report = codec::decode::<_, REPORT_BYTES_MAX>(&self.body);
        report.map_err(|error| Error::transport("what the proxy reports cannot be read").because(error))
    }
}

fn cut(text: &mut String) {
    if let Some((end, _)) = text.char_indices().nth(WORDS_CHARS_MAX) {
        text.truncate(end);
    }
}

/// Longest body of a job: what is around it has room in [`JOB_BYTES_MAX`].
const BODY_BYTES_MAX: usize = 48 << 10;
/// Extensions of one job.
const EXTENSIONS_MAX: usize = 16;
/// Body of `Attend`.
pub const ATTEND_BYTES_MAX: usize = 128 << 10;
/// What of that is for machines.
pub const MACHINES_BYTES_MAX: usize = 96 << 10;
/// Jobs that a proxy holds, with those that ended lately.
pub const HELD_MAX: usize = 64;
/// Body of `Run`, and of the job that is given on.
pub const JOB_BYTES_MAX: usize = 64 << 10;
/// Body of `Report`, and of the event that is told on: a report of [`DISKS_MAX`] disks fits.
pub const EVENT_BYTES_MAX: usize = 256 << 10;
/// Longest body of a report: what is around it has room in [`EVENT_BYTES_MAX`].
const REPORT_BYTES_MAX: usize = 255 << 10;
/// Warnings of a job.
pub const WARNINGS_MAX: usize = 32;
const TAGS_MAX: usize = 256;
const TAGS_BYTES_MAX: usize = 32 << 10;
/// Characters of a warning or reason, each of 4 bytes at most.
const WORDS_CHARS_MAX: usize = 500;
