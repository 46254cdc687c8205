//! What is said on the wire: requests and replies as separate enums, each message with a type code and limits.
//!
//! A body is the message's fields in order, as `codec` writes them; long data (ids, blobs, manifests) follows the body
//! as bulk and is never serialised. Layouts are in `PROTOCOL.md`.

mod failed;
mod joining;
mod rules;
mod verifying;

pub use failed::{Failed, FailedSubject, NO_ROOM, NO_SESSION, error_code, error_kind};
pub use joining::{Certified, Expected, JoinIn, RenewIn, TokenIn};
pub use rules::{Lasts, Rules, Who, Work};
pub(crate) use rules::{SHORT_COMMIT_BYTES_MAX, SHORT_GET_BYTES_MAX};
use verifying::DAMAGES_BYTES_MAX;
pub use verifying::{DAMAGES_MAX, Damage, VERIFIED_POINTS_MAX, Verified, VerifyIn};

use super::control::job::{ATTEND_BYTES_MAX, EVENT_BYTES_MAX, JOB_BYTES_MAX};
pub use super::control::job::{Attend, Event, Given, HeldJob, Job, JobOf, Report, Run};
pub use super::control::site::{JobStage, JobStatus, OfferedDisk, OfferedMachine, ProxyStatus};
use chunker::ChunkId;
use mover::{
    Begin, ChunkError, CopyReport, Counters, Error, GivenUp, IndexTotals, LogEntry, LogHead, MachineId, Name, Origin,
    OwnerId, PointChange, PointId, Presence, RecoveryPoint, RepositoryId, Result, SessionId, Stats, StoredTotals,
    Suspect, SweepOptions, SweepReport, Timestamp, Verification, codec,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How long a message of one type may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of the serialised fields.
    pub body_bytes_max: u32,
    /// Most bytes of the bulk behind them.
    pub bulk_bytes_max: u32,
}

/// A closed set of messages.
pub trait Message: Sized + Send {
    /// Type code of this message.
    fn code(&self) -> u16;

    /// The limits of a type; none for a code that is not known.
    fn limits(code: u16) -> Option<Limits>;

    /// The serialised fields.
    ///
    /// # Errors
    /// When it is over its limit.
    fn encode(&self) -> Result<Vec<u8>>;

    /// The message of this code and body.
    ///
    /// # Errors
    /// `Integrity` when it is none.
    fn decode(code: u16, body: &[u8]) -> Result<Self>;
}

macro_rules! messages {
    ($(#[$doc:meta])* $name:ident {
        $( $(#[$about:meta])* $code:literal $variant:ident($body:ty), $body_max:expr, $bulk_max:expr; )*
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum $name { $( $(#[$about])* $variant($body), )* }

        impl $name {
            /// Type codes of all messages.
            pub const CODES: &'static [u16] = &[$($code),*];

            /// What a message of this type is called.
            pub const fn name(&self) -> &'static str {
                match self { $( Self::$variant(_) => stringify!($variant), )* }
            }
        }

        impl Message for $name {
            fn code(&self) -> u16 {
                match self { $( Self::$variant(_) => $code, )* }
            }

            fn limits(code: u16) -> Option<Limits> {
                match code {
                    $( $code => Some(Limits { body_bytes_max: $body_max as u32, bulk_bytes_max: $bulk_max as u32 }), )*
                    _ => None,
                }
            }

            fn encode(&self) -> Result<Vec<u8>> {
                match self { $( Self::$variant(body) => codec::encode::<_, { $body_max as usize }>(body), )* }
            }

            fn decode(code: u16, body: &[u8]) -> Result<Self> {
                match code {
                    $( $code => codec::decode::<$body, { $body_max as usize }>(body).map(Self::$variant), )*
                    _ => Err(Error::integrity(format!("no message has the type {code:#06x}"))),
                }
            }
        }
    };
}

/// As [`messages!`], and with the rules for each request.
macro_rules! requests {
    ($(#[$doc:meta])* $name:ident {
        $( $(#[$about:meta])* $code:literal $variant:ident($body:ty), $body_max:expr, $bulk_max:expr
           => $who:expr, $work:expr, $lasts:expr; )*
    }) => {
        messages! {
            $(#[$doc])*
            $name { $( $(#[$about])* $code $variant($body), $body_max, $bulk_max; )* }
        }

        impl $name {
            /// Who may make the request, and what it takes of a node.
            pub const fn rules(&self) -> Rules {
                match self { $( Self::$variant(_) => Rules { who: $who, work: $work, lasts: $lasts }, )* }
            }
        }
    };
}

// After the macros, which it uses.
mod table;

pub use table::{Reply, Request};

/// The versions and features of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Lowest and highest version it speaks.
    pub versions: (u16, u16),
    /// Bits of features; none is defined.
    pub features: u64,
    /// What it is, for the log.
    pub program: String,
}

/// The version and features that hold on this connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Version of the protocol on this connection.
    pub version: u16,
    /// Bits of the features that both sides have.
    pub features: u64,
    /// What the node is, for the log.
    pub program: String,
}

/// Names a repository of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// Name of the repository in the node's configuration.
    pub name: String,
    /// A machine whose points follow the answer, because asking for them later would cost another round trip.
    pub machine: Option<Name>,
}

/// What a repository is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Id of the repository.
    pub repository: RepositoryId,
    /// The dedup domain's key.
    pub domain: [u8; 32],
    /// When it was made.
    pub created: Timestamp,
    /// Owner of the points that the client makes and sees. Zero is the site itself, which sees all points.
    pub owner: OwnerId,
}

/// Asks about a whole repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryRef {
    /// Id of the repository.
    pub repository: RepositoryId,
}

/// Asks for points.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// Id of the repository.
    pub repository: RepositoryId,
    /// Only points of a machine of this name.
    pub machine: Option<Name>,
    /// True: forgotten points instead of the others.
    pub forgotten: bool,
}

/// Asks whether a repository's log once had this end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HasBeen {
    /// Id of the repository.
    pub repository: RepositoryId,
    /// End that the log may have had.
    pub seen: LogHead,
}

/// Asks what a repository remembers of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerOf {
    /// Id of the repository that is asked.
    pub repository: RepositoryId,
    /// Id of the other repository.
    pub peer: RepositoryId,
}

/// Asks for chunks that are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedOf {
    /// Id of the repository.
    pub repository: RepositoryId,
    /// Chunk id after which to begin; from the first on when none.
    pub after: Option<[u8; 32]>,
}

/// Asks what the commit log says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogAfter {
    /// Id of the repository.
    pub repository: RepositoryId,
    /// Number of the record after which to begin.
    pub after: u64,
}

/// Changes points.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeIn {
    /// Id of the repository.
    pub repository: RepositoryId,
    /// What to change.
    pub change: PointChange,
    /// Of which points; at most [`PointChange::POINTS_MAX`].
    pub points: Vec<PointId>,
}

/// Hands a machine over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveIn {
    /// Id of the repository.
    pub repository: RepositoryId,
    /// Id of the machine.
    pub machine: MachineId,
    /// Repository in which its points were made.
    pub origin: RepositoryId,
    /// To whom; none: the site's own.
    pub owner: Option<Name>,
}

/// Sets labels of a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnnotateIn {
    /// Id of the repository.
    pub repository: RepositoryId,
    /// Id of the point.
    pub point: PointId,
    /// Keys and values; an empty value takes the label away.
    pub labels: Vec<(String, String)>,
}

/// Sweeps a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepIn {
    /// Id of the repository.
    pub repository: RepositoryId,
    /// What the sweep may do, and how fast.
    pub options: SweepOptions,
}

/// Opens a write session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BeginIn {
    /// Id of the repository.
    pub repository: RepositoryId,
    /// Point, parents and verification of the session.
    pub begin: Begin,
}

/// Opens a read session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadIn {
    /// Id of the repository.
    pub repository: RepositoryId,
    /// The points to be pinned.
    pub points: Vec<PointId>,
}

/// Names a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRef {
    /// Id of the session.
    pub session: SessionId,
}

/// Asks about chunks of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingIn {
    /// Id of the session.
    pub session: SessionId,
    /// Code of the chunks' kind.
    pub kind: u8,
}

/// Puts chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Put {
    /// Id of the session.
    pub session: SessionId,
    /// Length of each blob.
    pub lengths: Vec<u32>,
}

/// Commits points.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitIn {
    /// Id of the session.
    pub session: SessionId,
    /// The points, with the lengths of their manifests.
    pub drafts: Vec<WireDraft>,
}

/// Points that were committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// As they are listed from now on.
    pub points: Vec<RecoveryPoint>,
    /// What the session has stored, manifests too.
    pub stored: StoredTotals,
}

/// A point to be committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireDraft {
    /// Length of its manifest in the bulk.
    pub manifest_bytes: u32,
    /// Where it was committed first.
    pub origin: Option<Origin>,
    /// Its tags, and what else the log says of it.
    pub labels: BTreeMap<String, String>,
}

/// Asks for a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestOf {
    /// Id of the session.
    pub session: SessionId,
    /// Id of the point.
    pub point: PointId,
}

/// Where a repository is on another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Name or address of the node, as the node that pulls reaches it.
    pub host: String,
    /// Its UDP port.
    pub port: u16,
    /// The repository's name there.
    pub name: String,
    /// Congestion control: 0 cubic, 1 bbr.
    pub congestion: u8,
}

/// Copies points from another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullIn {
    /// Id of the repository to copy into.
    pub repository: RepositoryId,
    /// The repository to copy from.
    pub from: Place,
    /// Which points; at most [`PULLED_TOGETHER`].
    pub points: Vec<PointId>,
    /// How what comes is checked.
    pub verification: Verification,
}

/// What became of a point that was to be pulled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pulled {
    /// Id of the point.
    pub point: PointId,
    /// What moved, or why it is not there.
    pub outcome: Result<CopyReport, Failed>,
}

/// Chunks that were asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunks {
    /// Length of each blob in the bulk.
    pub lengths: Vec<u32>,
    /// Those that cannot be had.
    pub failed: Vec<FailedChunk>,
}

/// A chunk that cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedChunk {
    /// Id of the chunk.
    pub chunk: [u8; 32],
    /// 0 missing, 1 damaged, 2 wrong, 3 unreadable.
    pub how: u8,
    /// Of an unreadable one, the code of the error.
    pub code: u16,
    /// Of a damaged one, the pack.
    pub pack: String,
    /// What is wrong, for people.
    pub what: String,
}

impl From<ChunkError> for FailedChunk {
    fn from(error: ChunkError) -> Self {
        let cut = |what: String| what.chars().take(WHAT_CHARS_MAX).collect();
        let (chunk, how, code, pack, what) = match error {
            ChunkError::Missing { chunk } => (chunk, 0, 0, String::new(), String::new()),
            ChunkError::Damaged { chunk, pack, what } => (chunk, 1, 0, pack, what),
            ChunkError::Wrong { chunk, what } => (chunk, 2, 0, String::new(), what),
            ChunkError::Unreadable { chunk, kind, what } => (chunk, 3, error_code(kind), String::new(), what),
        };
        Self { chunk: chunk.0, how, code, pack: cut(pack), what: cut(what) }
    }
}

impl From<FailedChunk> for ChunkError {
    fn from(failed: FailedChunk) -> Self {
        let FailedChunk { chunk, how, code, pack, what } = failed;
        let chunk = ChunkId(chunk);
        match how {
            0 => Self::Missing { chunk },
            1 => Self::Damaged { chunk, pack, what },
            2 => Self::Wrong { chunk, what },
            _ => Self::Unreadable { chunk, kind: error_kind(code), what },
        }
    }
}

/// The byte of an answer to `Missing`.
pub const fn presence_code(presence: Presence) -> u8 {
    match presence {
        Presence::Missing => 0,
        Presence::Have => 1,
        Presence::Pending => 2,
    }
}

/// What a byte of an answer to `Missing` means.
pub const fn presence(code: u8) -> Option<Presence> {
    match code {
        0 => Some(Presence::Missing),
        1 => Some(Presence::Have),
        2 => Some(Presence::Pending),
        _ => None,
    }
}

/// Ids in one request for blobs: many, so that the node can read neighbouring blobs in one read.
pub const GET_IDS_MAX: usize = 65_536;
/// Ids in other messages.
pub const IDS_MAX: usize = 4096;
/// Points of one commit: the answer about them fits.
pub const DRAFTS_MAX: usize = 1024;
/// Plain bytes of the chunks of one put: what a node decodes at once for somebody.
pub const PUT_PLAIN_BYTES_MAX: usize = 16 << 20;
/// Bytes of ids and blobs in one message; the longest blob fits.
pub const PUT_BYTES_MAX: usize = 20 << 20;
/// Bytes of manifests in one message.
pub const COMMIT_BYTES_MAX: usize = 2 * mover::MANIFEST_BYTES_MAX;
/// Bytes of points in one message.
pub const POINTS_BYTES_MAX: usize = 1 << 20;
/// Points that one request pulls.
pub const PULLED_TOGETHER: usize = 2048;
/// Suspects in one message.
pub const SUSPECTS_MAX: usize = 4096;
/// Chunks that a refused commit names.
pub const LACKING_MAX: usize = 65_536;
const WHAT_CHARS_MAX: usize = 512;
const CHUNKS_BODY_MAX: usize = 1 << 20;
