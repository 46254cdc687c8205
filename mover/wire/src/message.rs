//! What is said on the wire: requests and replies as separate enums, each message with a type code and limits.
//!
//! A body is the message's fields in order, as `codec` writes them; what is long (ids, blobs, manifests) stands beside
//! it as bulk and is never serialised. Layouts are in `PROTOCOL.md`.

mod failed;
mod joining;
mod verifying;

pub use failed::{Failed, NO_ROOM, NO_SESSION, error_code, error_kind};
pub use joining::{Certified, Expected, JoinIn, RenewIn, TokenIn};
use verifying::DAMAGES_BYTES_MAX;
pub use verifying::{DAMAGES_MAX, Damage, VERIFIED_POINTS_MAX, Verified, VerifyIn};

use super::control::job::{ATTEND_BYTES_MAX, EVENT_BYTES_MAX, JOB_BYTES_MAX};
pub use super::control::job::{Attend, Event, Job, JobOf, Report, Run};
use chunker::ChunkId;
use mover::{
    Begin, ChunkError, CopyReport, Counters, Error, ErrorKind, GivenUp, IndexTotals, LogEntry, LogHead, MachineId,
    Name, Origin, OwnerId, PointChange, PointId, Presence, RecoveryPoint, RepositoryId, Result, SessionId, Stats,
    StoredTotals, Suspect, SweepOptions, SweepReport, Timestamp, Verification, codec,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How long a message of one type may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The serialised fields.
    pub body_bytes_max: u32,
    /// What stands beside them.
    pub bulk_bytes_max: u32,
}

/// A closed set of messages.
pub trait Message: Sized + Send {
    /// The type code.
    fn code(&self) -> u16;

    /// The limits of a type; none for a code that is not known.
    fn limits(code: u16) -> Option<Limits>;

    /// The body.
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
            /// Every type code.
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

messages! {
    /// What a client asks; one on each stream.
    Request {
        /// First on every connection.
        0x0001 Hello(Hello), 1 << 10, 0;
        /// Which repository a name means.
        0x0002 Open(Open), 1 << 10, 0;
        /// Expects somebody who joins.
        0x0003 Token(TokenIn), 8 << 10, 0;
        /// Joins with a token: all that may be asked without a certificate.
        0x0004 Join(JoinIn), 512, 0;
        /// Another certificate for who asks.
        0x0005 Renew(RenewIn), 512, 0;
        /// The points of a repository.
        0x0010 List(List), 1 << 10, 0;
        /// Its totals.
        0x0011 Stats(RepositoryRef), 64, 0;
        /// The end of its log.
        0x0012 LogHead(RepositoryRef), 64, 0;
        /// Whether its log once ended so.
        0x0013 HasBeen(HasBeen), 128, 0;
        /// What it remembers of another one.
        0x0014 Peer(PeerOf), 64, 0;
        /// Forgets points, pins them, or takes that back.
        0x0015 ChangePoints(ChangeIn), 64 << 10, 0;
        /// Chunks that are wanted.
        0x0016 WantedChunks(WantedOf), 128, 0;
        /// What the commit log says.
        0x0017 Log(LogAfter), 64, 0;
        /// Hands a machine over to another owner.
        0x0018 MoveMachine(MoveIn), 256, 0;
        /// How far points were made final.
        0x0019 GivenUp(RepositoryRef), 64, 0;
        /// Sets labels of a point.
        0x001a Annotate(AnnotateIn), 64 << 10, 0;
        /// Opens a write session.
        0x0020 Begin(BeginIn), 4 << 10, 0;
        /// Which chunks must be put. Bulk: the ids.
        0x0021 Missing(MissingIn), 64, IDS_MAX * 32;
        /// Takes chunks. Bulk: the ids, then the blobs.
        0x0022 Put(Put), 8 * IDS_MAX, PUT_BYTES_MAX;
        /// The write barrier.
        0x0023 Flush(SessionRef), 64, 0;
        /// Commits points. Bulk: the manifests.
        0x0024 Commit(CommitIn), 64 << 10, COMMIT_BYTES_MAX;
        /// Ends a session without a point.
        0x0025 Abandon(SessionRef), 64, 0;
        /// Opens a read session.
        0x0030 Read(ReadIn), 64 << 10, 0;
        /// The manifest of a point.
        0x0031 Manifest(ManifestOf), 64, 0;
        /// Blobs. Bulk: the ids.
        0x0032 Get(SessionRef), 64, GET_IDS_MAX * 32;
        /// Blobs, each decoded and compared by the node. Bulk: the ids.
        0x0033 GetVerified(SessionRef), 64, IDS_MAX * 32;
        /// Ends a read session.
        0x0034 Close(SessionRef), 64, 0;
        /// A proxy asks for its jobs.
        0x0040 Attend(Attend), ATTEND_BYTES_MAX, 0;
        /// Has a proxy carry a job out.
        0x0041 Run(Run), JOB_BYTES_MAX, 0;
        /// Has a job end.
        0x0042 Cancel(JobOf), 64, 0;
        /// A proxy tells of a job.
        0x0043 Report(Report), EVENT_BYTES_MAX, 0;
        /// Copies points from another node.
        0x0050 Pull(PullIn), 64 << 10, 0;
        /// Looks whether everything is there and sound.
        0x0051 Verify(VerifyIn), 64 << 10, 0;
        /// Makes the index again.
        0x0052 RebuildIndex(RepositoryRef), 64, 0;
        /// Reclaims what no point needs.
        0x0053 Sweep(SweepIn), 128, 0;
    }
}

messages! {
    /// What the node answers: one, or several of which all but the last say that more follows.
    Reply {
        /// It is done.
        0x8000 Done(()), 0, 0;
        /// It failed.
        0x8001 Failed(Failed), 16 << 10, 0;
        /// To `Hello`.
        0x8002 Welcome(Welcome), 1 << 10, 0;
        /// To `Open`.
        0x8003 Opened(Opened), 128, 0;
        /// To `Token`.
        0x8004 Expected(Expected), 64, 0;
        /// To `Join` and `Renew`.
        0x8005 Certified(Certified), 16 << 10, 0;
        /// To any request, before its answer: the node is at work on it.
        0x8006 Waiting(()), 0, 0;
        /// To `List`, in several.
        0x8010 Points(Vec<RecoveryPoint>), POINTS_BYTES_MAX, 0;
        /// To `Stats`.
        0x8011 Totals(Stats), 256, 0;
        /// To `Incarnation`.
        0x8012 LogHead(LogHead), 64, 0;
        /// To `HasBeen`.
        0x8013 Answer(bool), 8, 0;
        /// To `Peer`.
        0x8014 Seen(Option<LogHead>), 64, 0;
        /// To `WantedChunks`. Bulk: the ids.
        0x8016 WantedIds(()), 0, IDS_MAX * 32;
        /// To `Log`.
        0x8017 Records(Vec<LogEntry>), LogEntry::TOGETHER_BYTES_MAX, 0;
        /// To `GivenUp`.
        0x8019 GivenUpAre(Vec<GivenUp>), 8 + GivenUp::MAX * 40, 0;
        /// To `Begin` and `Read`: the session. More may follow.
        0x8020 Session(SessionRef), 64, 0;
        /// To `Begin`, after `Session`: suspect chunks.
        0x8021 Suspects(Vec<Suspect>), 8 + SUSPECTS_MAX * 56, 0;
        /// To `Missing`. Bulk: a byte for each id.
        0x8022 Presences(()), 0, IDS_MAX;
        /// To `Put` and `Flush`: what the session has stored so far.
        0x8023 Stored(StoredTotals), 64, 0;
        /// To `Commit`.
        0x8024 Committed(Committed), POINTS_BYTES_MAX, 0;
        /// To `Commit`: put these first. Bulk: the ids.
        0x8025 Lacking(()), 0, LACKING_MAX * 32;
        /// To `Manifest`. Bulk: its bytes.
        0x8031 ManifestBytes(()), 0, COMMIT_BYTES_MAX;
        /// To `Get` and `GetVerified`, in several. Bulk: the ids, then the blobs.
        0x8032 Chunks(Chunks), CHUNKS_BODY_MAX, PUT_BYTES_MAX;
        /// The end of an answer to `Get`: so many `Chunks` came on streams of their own.
        0x8033 Parts(u32), 8, 0;
        /// To `Attend` and `Run`: taken. More follows.
        0x8040 Taken(()), 0, 0;
        /// To `Attend`: a job.
        0x8041 Assigned(Job), JOB_BYTES_MAX, 0;
        /// To `Attend`: a job is to end.
        0x8042 CalledOff(JobOf), 64, 0;
        /// To `Run`: what happens to it. The last one is its end.
        0x8043 Event(Event), EVENT_BYTES_MAX, 0;
        /// To `Pull`, now and then: plain bytes that came for it so far.
        0x8050 Pulling(u64), 8, 0;
        /// To `Pull`, for each point; `Done` follows the last.
        0x8051 Pulled(Pulled), 17 << 10, 0;
        /// To `Verify`, `RebuildIndex` and `Sweep`, now and then: how far it is.
        0x8052 Working(Counters), 64, 0;
        /// To `Verify`: what is wrong, in several.
        0x8053 Damages(Vec<Damage>), DAMAGES_BYTES_MAX, 0;
        /// To `Verify`: the end.
        0x8054 Verified(Verified), 64, 0;
        /// To `RebuildIndex`: the end.
        0x8055 Rebuilt(IndexTotals), 64, 0;
        /// To `Sweep`: the end.
        0x8056 Swept(SweepReport), 128, 0;
    }
}

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
    /// The version.
    pub version: u16,
    /// Features of both.
    pub features: u64,
    /// What the node is, for the log.
    pub program: String,
}

/// Names a repository of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// Its name.
    pub name: String,
    /// A machine whose points follow the answer: from far away asking for them then costs another round trip.
    pub machine: Option<Name>,
}

/// What a repository is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Its id.
    pub repository: RepositoryId,
    /// The dedup domain's key.
    pub domain: [u8; 32],
    /// When it was made.
    pub created: Timestamp,
    /// Whose points whoever asks makes and sees; zero: the site's own, which sees all.
    pub owner: OwnerId,
}

/// Asks about a whole repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryRef {
    /// Which.
    pub repository: RepositoryId,
}

/// Asks for points.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// Of which repository.
    pub repository: RepositoryId,
    /// Of this machine only.
    pub machine: Option<Name>,
    /// The forgotten ones.
    pub forgotten: bool,
}

/// Asks whether a log once ended so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HasBeen {
    /// Of which repository.
    pub repository: RepositoryId,
    /// What was seen.
    pub seen: LogHead,
}

/// Asks what a repository remembers of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerOf {
    /// Which is asked.
    pub repository: RepositoryId,
    /// About which.
    pub peer: RepositoryId,
}

/// Asks for chunks that are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedOf {
    /// Of which repository.
    pub repository: RepositoryId,
    /// Those after this one.
    pub after: Option<[u8; 32]>,
}

/// Asks what the commit log says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogAfter {
    /// Of which repository.
    pub repository: RepositoryId,
    /// After this record.
    pub after: u64,
}

/// Changes points.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeIn {
    /// Of which repository.
    pub repository: RepositoryId,
    /// What.
    pub change: PointChange,
    /// Of which points; at most [`PointChange::POINTS_MAX`].
    pub points: Vec<PointId>,
}

/// Hands a machine over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveIn {
    /// In which repository.
    pub repository: RepositoryId,
    /// Which.
    pub machine: MachineId,
    /// Its points that were made there.
    pub origin: RepositoryId,
    /// To whom; none: the site's own.
    pub owner: Option<Name>,
}

/// Sets labels of a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnnotateIn {
    /// Of which repository.
    pub repository: RepositoryId,
    /// Of which point.
    pub point: PointId,
    /// Keys and values; an empty value takes the label away.
    pub labels: Vec<(String, String)>,
}

/// Sweeps a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepIn {
    /// Which.
    pub repository: RepositoryId,
    /// How.
    pub options: SweepOptions,
}

/// Opens a write session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BeginIn {
    /// Where.
    pub repository: RepositoryId,
    /// What for.
    pub begin: Begin,
}

/// Opens a read session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadIn {
    /// Where.
    pub repository: RepositoryId,
    /// The points to be pinned.
    pub points: Vec<PointId>,
}

/// Names a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRef {
    /// Which.
    pub session: SessionId,
}

/// Asks about chunks of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingIn {
    /// In which session.
    pub session: SessionId,
    /// The kind's code.
    pub kind: u8,
}

/// Puts chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Put {
    /// In which session.
    pub session: SessionId,
    /// Length of each blob.
    pub lengths: Vec<u32>,
}

/// Commits points.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitIn {
    /// The session.
    pub session: SessionId,
    /// The points.
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
    /// In which session.
    pub session: SessionId,
    /// Of which point.
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
    /// 0 cubic, 1 bbr.
    pub congestion: u8,
}

/// Copies points from another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullIn {
    /// Into which repository.
    pub repository: RepositoryId,
    /// Where from.
    pub from: Place,
    /// Which points; at most [`PULLED_TOGETHER`].
    pub points: Vec<PointId>,
    /// How what comes is checked.
    pub verification: Verification,
}

/// What became of a point that was to be pulled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pulled {
    /// Which.
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
    /// Which.
    pub chunk: [u8; 32],
    /// 0 missing, 1 damaged, 2 wrong, 3 unreadable.
    pub how: u8,
    /// Of an unreadable one, the code of the error.
    pub code: u16,
    /// Of a damaged one, the pack.
    pub pack: String,
    /// What is wrong.
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

/// What that byte means.
pub const fn presence(code: u8) -> Option<Presence> {
    match code {
        0 => Some(Presence::Missing),
        1 => Some(Presence::Have),
        2 => Some(Presence::Pending),
        _ => None,
    }
}

/// Ids in one request for blobs: many, so that the node can read what lies together together.
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
