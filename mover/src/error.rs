//! The error that crosses the traits: what failed, on what, and what to do.

use chunker::ChunkId;
use std::error::Error as StdError;
use std::fmt;
use std::path::Path;

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a failure means for the person or program that must act on it. There are no other kinds, and an error of a
/// source is never turned into one of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request itself is wrong.
    Usage,
    /// No such repository, point or disk.
    NotFound,
    /// Something else uses it; waiting helps.
    Busy,
    /// The client may not do that.
    NotAuthorised,
    /// Stored data is corrupt.
    Integrity,
    /// No copy can serve what is wanted.
    NoCopy,
    /// The repository has no room.
    StoreFull,
    /// The repository's storage failed.
    StoreIo,
    /// The repository was rolled back or is not the one it was.
    RolledBack,
    /// This session was fenced, or a newer writer took over.
    Fenced,
    /// The source could not be read, or changed while it was read.
    Source,
    /// The target could not be written.
    Target,
    /// The target has no room.
    TargetFull,
    /// Quiescing the machine failed.
    Quiesce,
    /// Change tracking is invalid and falling back was forbidden.
    Tracking,
    /// A group would be incomplete.
    GroupIncomplete,
    /// A peer could not be reached or broke the connection or protocol.
    Transport,
    /// A format or feature that this version does not know.
    Version,
    /// Repositories of different dedup domains.
    Domain,
    /// The job was stopped: by a signal, by an administrator, or because its program ends.
    Cancelled,
    /// A broken assumption inside this program.
    Internal,
}

impl ErrorKind {
    /// Every kind: tables in tests walk it.
    pub const ALL: [Self; 21] = [
        Self::Usage,
        Self::NotFound,
        Self::Busy,
        Self::NotAuthorised,
        Self::Integrity,
        Self::NoCopy,
        Self::StoreFull,
        Self::StoreIo,
        Self::RolledBack,
        Self::Fenced,
        Self::Source,
        Self::Target,
        Self::TargetFull,
        Self::Quiesce,
        Self::Tracking,
        Self::GroupIncomplete,
        Self::Transport,
        Self::Version,
        Self::Domain,
        Self::Cancelled,
        Self::Internal,
    ];

    /// The name in `--json` output.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::NotFound => "not_found",
            Self::Busy => "busy",
            Self::NotAuthorised => "not_authorised",
            Self::Integrity => "integrity",
            Self::NoCopy => "no_copy",
            Self::StoreFull => "store_full",
            Self::StoreIo => "store_io",
            Self::RolledBack => "rolled_back",
            Self::Fenced => "fenced",
            Self::Source => "source",
            Self::Target => "target",
            Self::TargetFull => "target_full",
            Self::Quiesce => "quiesce",
            Self::Tracking => "tracking",
            Self::GroupIncomplete => "group_incomplete",
            Self::Transport => "transport",
            Self::Version => "version",
            Self::Domain => "domain",
            Self::Cancelled => "cancelled",
            Self::Internal => "internal",
        }
    }
}

/// A failure: kind, one line that names the thing, the thing itself as fields, a remedy where one is known, and the cause.
pub struct Error(Box<Parts>);

struct Parts {
    kind: ErrorKind,
    message: String,
    subject: Subject,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// What a failure is about, as far as that is known, so that a program need not read it out of the message. Field names
/// are those of `--json` output.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    /// Id of the point.
    pub point: Option<String>,
    /// Name of the disk within its machine.
    pub disk: Option<String>,
    /// Offset in the disk, in bytes.
    pub offset: Option<u64>,
    /// The chunk.
    pub chunk: Option<ChunkId>,
    /// Name of the pack.
    pub pack: Option<String>,
    /// The file or folder.
    pub path: Option<String>,
}

macro_rules! constructors {
    ($($name:ident $kind:ident)*) => { $(
        #[doc = concat!("An error of kind [`ErrorKind::", stringify!($kind), "`].")]
        pub fn $name(message: impl Into<String>) -> Self {
            Self::new(ErrorKind::$kind, message)
        }
    )* };
}

impl Error {
    /// An error without hint or cause.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Parts { kind, message: message.into(), subject: Subject::default(), hint: None, source: None }))
    }

    constructors! {
        usage Usage
        not_found NotFound
        busy Busy
        integrity Integrity
        store_full StoreFull
        store_io StoreIo
        rolled_back RolledBack
        fenced Fenced
        source Source
        target Target
        target_full TargetFull
        tracking Tracking
        transport Transport
        version Version
        domain Domain
        internal Internal
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Keeps the error that caused this one: its text is appended to the message.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Puts the name of the thing on which it happened before the message.
    #[must_use]
    pub fn context(mut self, on: impl fmt::Display) -> Self {
        self.0.message = format!("{on}: {}", self.0.message);
        self
    }

    /// It happened on this disk, which is put before the message.
    #[must_use]
    pub fn on_disk(mut self, disk: impl fmt::Display) -> Self {
        self.0.subject.disk = Some(disk.to_string());
        self.context(format_args!("disk {disk}"))
    }

    /// It happened at this offset of the disk, in bytes, which is put before the message.
    #[must_use]
    pub fn at_offset(mut self, offset: u64) -> Self {
        self.0.subject.offset = Some(offset);
        self.context(format_args!("offset {offset}"))
    }

    /// It is about this pack, which is put before the message.
    #[must_use]
    pub fn on_pack(mut self, pack: impl fmt::Display) -> Self {
        self.0.subject.pack = Some(pack.to_string());
        self.context(format_args!("pack {pack}"))
    }

    /// It is about this file, which the message names.
    #[must_use]
    pub fn of_path(mut self, path: &Path) -> Self {
        self.0.subject.path = Some(path.display().to_string());
        self
    }

    /// Sets what the error is about. The message tells it already.
    #[must_use]
    pub fn about(mut self, subject: Subject) -> Self {
        self.0.subject = subject;
        self
    }

    /// What the failure is about, as fields.
    pub fn subject(&self) -> &Subject {
        &self.0.subject
    }

    /// The kind of the failure.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What failed on what, with its causes, without the remedy.
    pub fn message(&self) -> String {
        let mut text = self.0.message.clone();
        let mut cause = self.0.source.as_deref().map(|it| it as &dyn StdError);
        while let Some(it) = cause {
            text = format!("{text}: {it}");
            // The text of one of our own tells its causes already.
            cause = if it.is::<Self>() { None } else { it.source() };
        }
        text
    }

    /// What to do about it.
    pub fn remedy(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0.kind, self.message())
    }
}

/// The text of an error tells its causes, because most errors end as one line. A program that walks the sources to print
/// them prints [`Error::message`] instead.
impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|it| it as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_kind_is_listed_once_under_its_own_name() {
        let names: BTreeSet<_> = ErrorKind::ALL.iter().map(|kind| kind.code()).collect();
        assert_eq!(names.len(), ErrorKind::ALL.len());
        assert!(ErrorKind::ALL.iter().all(|kind| kind.exit_code() != 0));
    }

    #[test]
    fn message_tells_on_what_and_why() {
        let error = Error::source("read failed").because(std::io::Error::other("bad sector")).context("disk sda");
        assert_eq!(error.message(), "disk sda: read failed: bad sector");
        let above = Error::internal("no point").because(error);
        assert_eq!(above.message(), "no point: disk sda: read failed: bad sector");
        let cause = StdError::source(&above).unwrap();
        assert_eq!(cause.downcast_ref::<Error>().unwrap().kind(), ErrorKind::Source);
        assert!(cause.source().unwrap().is::<std::io::Error>());
    }
}
