//! Where recovery points are kept.

mod either;
mod failover;
mod history;
mod holder;
mod machine;
mod mem;
mod moment;
pub(crate) mod order;
mod points;
mod reach;
mod retention;
mod select;
mod sweep;
mod verify;
mod view;

pub use either::Either;
pub use failover::Failover;
pub use history::LogEntry;
pub use holder::{Holder, Role};
pub use machine::{Machine, qualifiers};
pub use mem::{Fault, FaultEffect, Mem, MemReader, MemSession};
pub use moment::Moment;
pub use order::{clock_doubt, in_order, suspect_times};
pub use points::Lineage;
pub use reach::{Had, Reach};
pub use retention::{Keep, Reason, Verdict, retain, retention_time};
pub use select::{Selector, select};
pub use sweep::{SweepOptions, SweepReport, SweepTimes};
pub use verify::{Depth, VerifyError, VerifyOptions, VerifyReport};
pub use view::{DiskView, ViewOptions};

use crate::{
    DiskId, Error, ErrorKind, GroupId, MachineId, Manifest, Name, OwnerId, PointId, Progress, RepositoryId, Result,
    Subject, Timestamp, with_decoder,
};
use chunker::{Blob, BlobHeader, ChunkId, ChunkKind, DomainKey, DomainKeys};
use futures::{Stream, StreamExt};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

/// A place that keeps chunks and recovery points. The same promises hold on a directory, across the wire and in memory:
/// the conformance suite states them as tests.
pub trait Repository: Send + Sync {
    /// Type of its write sessions.
    type Session: WriteSession;
    /// Type of its read sessions.
    type Reader: ReadSession;

    /// Ids in one answer of [`Self::wanted`].
    const WANTED_MAX: usize = 4096;

    /// Id, dedup domain and time of creation.
    fn config(&self) -> &RepositoryConfig;

    /// The owner whose points the caller makes and sees. It is the site, which sees all points, unless a node gives the
    /// caller another owner.
    fn owner(&self) -> OwnerId;

    /// Opens a write session that pins `begin.parents` until it ends. Fails with `NotFound` when a parent is not there, or
    /// is another owner's: see [`Begin::holder`].
    fn begin(&self, begin: Begin) -> impl Future<Output = Result<(Self::Session, Begun)>> + Send;

    /// Opens a read session that pins `points` until it is dropped. If the repository cannot be written, the session is
    /// not recorded, and a warning is logged.
    fn read(&self, points: &[PointId]) -> impl Future<Output = Result<Self::Reader>> + Send;

    /// The points that `filter` lets through, oldest commit first. Reads the log to its end before.
    fn list(&self, filter: &PointFilter) -> impl Future<Output = Result<Vec<RecoveryPoint>>> + Send;

    /// Totals of points, chunks, packs and bytes.
    fn stats(&self) -> impl Future<Output = Result<Stats>> + Send;

    /// Number and hash of the last record of the log. A copy remembers them, so that a later copy notices a rollback.
    fn log_head(&self) -> impl Future<Output = Result<LogHead>> + Send;

    /// Whether the log once ended with the record `seen`. False if the log was rolled back or replaced after that and
    /// no administrator accepted it. A record that was pruned cannot be compared any more, and the answer is true.
    fn has_been(&self, seen: LogHead) -> impl Future<Output = Result<bool>> + Send;

    /// How the log of `repository` ended when a point was last copied from there; none before the first.
    fn peer(&self, repository: RepositoryId) -> impl Future<Output = Result<Option<LogHead>>> + Send;

    /// Forgets or pins points, or takes that back: all of these points or none. A point that is already in the wanted
    /// state stays as it is.
    ///
    /// `NotFound` if a point does not exist or is final. `Usage` if a point to be forgotten is pinned or protected, if
    /// a point to be pinned is forgotten, or if rules are applied while the clock is in doubt. `GroupIncomplete` if
    /// only a part of a group would be forgotten or brought back.
    fn change_points(&self, points: &[PointId], change: PointChange) -> impl Future<Output = Result<()>> + Send;

    /// Sets labels of a point, each a key and a value; an empty value takes the label away. The log records which
    /// labels were changed, when and by whom. `NotFound` when the point is not there; `Usage` for labels that are too
    /// many or too long, see [`labels`](crate::labels).
    fn annotate(&self, point: PointId, labels: &[(String, String)]) -> impl Future<Output = Result<()>> + Send;

    /// Gives a machine to another owner. The points of the machine that were made in `origin`, and all later ones,
    /// belong to `owner` from then on, or to the site if `owner` is none. `NotFound` when there are no such points.
    fn move_machine(
        &self,
        machine: MachineId,
        origin: RepositoryId,
        owner: Option<Name>,
    ) -> impl Future<Output = Result<()>> + Send;

    /// For each machine and each repository that made points of it, the newest of these points that was made final
    /// here. At most [`GivenUp::MAX`] entries.
    fn given_up(&self) -> impl Future<Output = Result<Vec<GivenUp>>> + Send;

    /// The records of the commit log after number `after`, at most [`LogEntry::TOGETHER`] of them. Records that were
    /// pruned are left out. The list is empty at the end of the log.
    ///
    /// # Errors
    /// `Integrity` when a record is damaged or does not follow the one before.
    fn log(&self, after: u64) -> impl Future<Output = Result<Vec<LogEntry>>> + Send;

    /// Chunks that the repository wants from elsewhere, because all its blobs of them are damaged. Gives the ids after
    /// `after`, in order, at most [`Self::WANTED_MAX`] of them; none when there are no more.
    fn wanted(&self, after: Option<ChunkId>) -> impl Future<Output = Result<Vec<ChunkId>>> + Send;

    /// Reclaims what no point needs. Points that are forgotten become final.
    fn sweep(&self, options: SweepOptions, progress: Arc<Progress>)
    -> impl Future<Output = Result<SweepReport>> + Send;

    /// Makes the index of chunks again from the packs. Meanwhile other sessions go on with the old index.
    fn rebuild_index(&self, progress: Arc<Progress>) -> impl Future<Output = Result<IndexTotals>> + Send;

    /// Checks whether everything is there and sound. If the repository can be written, a chunk that is found damaged
    /// counts as damaged from then on, so that the next backup that has this chunk sends it again. Damage is listed in
    /// the report; the call fails only when it cannot go on.
    fn verify(
        &self,
        options: VerifyOptions,
        progress: Arc<Progress>,
    ) -> impl Future<Output = Result<VerifyReport>> + Send;
}

/// Reads chunks of pinned points.
pub trait ReadSession: Send + Sync {
    /// The manifest of a pinned point, verified.
    fn manifest(&self, point: PointId) -> impl Future<Output = Result<Manifest>> + Send;

    /// The blobs of `ids`, each at least once for each distinct id, in the order that is cheapest to read, in batches
    /// of bounded size. The checksum of each blob was compared; the caller must check the fingerprint. A chunk that
    /// cannot be read gives an item with an error, and the stream goes on.
    fn get(&self, ids: Vec<ChunkId>) -> impl Stream<Item = ChunkBatch> + Send;

    /// As [`Self::get`], for chunks whose blob turned out to have another content than the id says. Each blob that is
    /// given here was decoded, and its fingerprint was compared. If a chunk lies in several places or copies, each of
    /// them is tried, and a place that is found damaged counts as damaged from then on. It is slower than
    /// [`Self::get`]: use it for a batch, not for a whole disk.
    fn get_verified(&self, keys: &DomainKeys, ids: Vec<ChunkId>) -> impl Future<Output = ChunkBatch> + Send {
        verified(self.get(ids.clone()), keys, ids)
    }
}

/// Decodes the blobs of `ids` that `batches` give, and compares each with its fingerprint. Gives one item for each id.
pub async fn verified(
    batches: impl Stream<Item = ChunkBatch> + Send,
    keys: &DomainKeys,
    ids: Vec<ChunkId>,
) -> ChunkBatch {
    let missing = |chunk| (chunk, ChunkError::Missing { chunk });
    let mut wanted: BTreeMap<ChunkId, ChunkError> = ids.into_iter().map(missing).collect();
    let mut made = ChunkBatch::new();
    futures::pin_mut!(batches);
    while let Some(batch) = batches.next().await {
        for (chunk, blob) in batch {
            let Some(reason) = wanted.get_mut(&chunk) else { continue };
            let sound = blob.and_then(|blob| {
                let opened = with_decoder(|decoder| decoder.decode_verified(keys, &chunk, &blob, &mut Vec::new()));
                opened.map(|()| blob).map_err(|error| ChunkError::Wrong { chunk, what: error.to_string() })
            });
            match sound {
                Ok(blob) => {
                    wanted.remove(&chunk);
                    made.push((chunk, Ok(blob)));
                }
                Err(error) => *reason = error,
            }
        }
    }
    made.extend(wanted.into_iter().map(|(chunk, error)| (chunk, Err(error))));
    made
}

/// Blobs that were read together.
pub type ChunkBatch = Vec<(ChunkId, Result<Blob, ChunkError>)>;

/// Why one chunk cannot be had from one repository.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ChunkError {
    /// The chunk is not in the repository.
    #[error("chunk {chunk} is missing")]
    Missing {
        /// Id of the chunk.
        chunk: ChunkId,
    },
    /// The chunk is in the repository, but damaged.
    #[error("chunk {chunk} in pack {pack} is damaged: {what}")]
    Damaged {
        /// Id of the chunk.
        chunk: ChunkId,
        /// The pack's name.
        pack: String,
        /// What is wrong with it, for people.
        what: String,
    },
    /// The checksum of the blob is right, but its content is not the one that the id says.
    #[error("chunk {chunk} has the wrong content: {what}")]
    Wrong {
        /// Id of the chunk.
        chunk: ChunkId,
        /// What is wrong with it, for people.
        what: String,
    },
    /// The chunk could not be read, so it is not known whether it is stored and sound.
    #[error("chunk {chunk} cannot be read: {what}")]
    Unreadable {
        /// Id of the chunk.
        chunk: ChunkId,
        /// Kind of the failure, for example of the storage or of a connection.
        kind: ErrorKind,
        /// The failure of the read, for people.
        what: String,
    },
}

impl ChunkError {
    /// The chunk, and the pack where that is known.
    pub fn subject(&self) -> Subject {
        let (chunk, pack) = match self {
            Self::Damaged { chunk, pack, .. } => (chunk, Some(pack.clone())),
            Self::Missing { chunk } | Self::Wrong { chunk, .. } | Self::Unreadable { chunk, .. } => (chunk, None),
        };
        Subject { chunk: Some(*chunk), pack, ..Subject::default() }
    }

    /// What `error` means for a chunk that was to be read.
    pub fn unreadable(chunk: ChunkId, error: &Error) -> Self {
        Self::Unreadable { chunk, kind: error.kind(), what: error.message() }
    }
}

impl From<ChunkError> for Error {
    fn from(error: ChunkError) -> Self {
        let subject = error.subject();
        match error {
            ChunkError::Unreadable { kind, .. } => Self::new(kind, error.to_string()).about(subject),
            ChunkError::Missing { .. } | ChunkError::Damaged { .. } | ChunkError::Wrong { .. } => {
                Self::integrity(error.to_string()).about(subject).hint(
                    "if there is another copy, give it with --also-from; `windlass verify` shows what else is damaged, \
                     and the next backup stores again what the machine still has",
                )
            }
        }
    }
}

/// What is changed about points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PointChange {
    /// The points are no longer listed, and a sweep makes them final.
    Forget,
    /// The same, for points that no rule keeps. Refused while the clock is in doubt.
    ForgetByRules,
    /// Forgotten points are listed again.
    Unforget,
    /// The points cannot be forgotten, neither by rules nor by name.
    Pin,
    /// Pinned points can be forgotten again.
    Unpin,
}

impl PointChange {
    /// Most points in one change.
    pub const POINTS_MAX: usize = 2048;
}

/// The points of a machine that were made final. A copy of all points does not bring back these points or older ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenUp {
    /// Machine of these points.
    pub machine: MachineId,
    /// Repository in which they were made.
    pub origin: RepositoryId,
    /// The newest of them, by the time of its first commit.
    pub newest: Timestamp,
}

impl GivenUp {
    /// Most machines in one answer.
    pub const MAX: usize = 16_384;
}

/// What an index holds after it was made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexTotals {
    /// Packs that were read.
    pub packs: u64,
    /// Records of these packs that were put into the index.
    pub chunks: u64,
}

/// Adds chunks and commits points. It can also read what its pinned parents hold and what it has flushed.
///
/// Methods take `&self`: several batches may be on their way at once. Dropping a session without commit leaves no
/// point; its chunks stay until a sweep, so that a backup begun again sends nothing twice.
pub trait WriteSession: ReadSession {
    /// Tells for each id whether its chunk must be put. The answers `Have` and `Pending` hold until the session ends;
    /// if such a chunk becomes doomed meanwhile, [`Self::commit`] names it. A chunk that is suspect, or that a read
    /// found damaged, is missing: putting it again heals it.
    fn missing(&self, kind: ChunkKind, ids: &[ChunkId]) -> impl Future<Output = Result<Vec<Presence>>> + Send;

    /// Takes chunks. Returns when there is room for more, before these chunks are verified or durable. An error of an
    /// earlier put is therefore returned here, by [`Self::flush`] or by [`Self::commit`]. A chunk that the repository
    /// has already is dropped.
    fn put(&self, chunks: Vec<(ChunkId, Blob)>) -> impl Future<Output = Result<()>> + Send;

    /// Write barrier: on return every chunk put before is verified, durable and in the log. After a commit it only
    /// gives the totals.
    fn flush(&self) -> impl Future<Output = Result<StoredTotals>> + Send;

    /// What this session has stored of all that was put before, durable or not.
    fn stored(&self) -> impl Future<Output = Result<StoredTotals>> + Send;

    /// Flushes, makes the points visible, all of them or none, and closes the session. [`Commit::Missing`] names
    /// chunks that the repository lacks; put them and commit again. Committing a point id that is committed already
    /// gives that point.
    fn commit(&self, points: &[PointDraft]) -> impl Future<Output = Result<Commit>> + Send;

    /// Ends the session without a point.
    fn abandon(self) -> impl Future<Output = Result<()>> + Send;
}

/// What a repository is; fixed at its creation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryConfig {
    /// Id of the repository.
    pub id: RepositoryId,
    /// The dedup domain's key; equal keys (and cuts) mean that blobs copy verbatim.
    pub domain: DomainKey,
    /// When it was made.
    pub created: Timestamp,
}

/// What a write session is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// The point to be committed.
    pub point: PointId,
    /// Points whose chunks may be relied on; pinned.
    pub parents: Vec<PointId>,
    /// The holder that the client's certificate names; none if the repository was opened as a directory. A node sets
    /// this field. It is not sent on the wire, because a client could send any name there.
    #[serde(skip)]
    pub holder: Option<Holder>,
    /// How arriving blobs are checked.
    pub verification: Verification,
}

/// How arriving blobs are checked before they count as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Verification {
    /// Decoded, and the fingerprint of the plain bytes recomputed.
    #[default]
    Decode,
    /// Only the checksum over header and payload: the sender is trusted.
    Checksum,
}

/// Answer to [`Repository::begin`].
#[derive(Debug, Clone, Default)]
pub struct Begun {
    /// Suspect chunks of the parents' disks. The backup reads their blocks again, and puts each chunk again that the
    /// source still has. A suspect page is listed with the first block below it: the backup finds the damage when it
    /// reads the map there, and then reads the whole disk. At most [`Begun::SUSPECTS_MAX`] chunks; the next backup gets
    /// the rest.
    pub suspects: Vec<Suspect>,
}

impl Begun {
    /// Most suspects in one answer.
    pub const SUSPECTS_MAX: usize = 65_536;
}

/// A chunk that was found damaged, and a place in the parent that needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspect {
    /// Id of the damaged chunk.
    #[serde(with = "chunk_id")]
    pub chunk: ChunkId,
    /// Disk of the parent whose map refers to it.
    pub disk: DiskId,
    /// Offset of the block in bytes.
    pub offset: u64,
}

/// Whether a chunk must be put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// The repository does not have it: put it.
    Missing,
    /// The repository has it, and it is durable.
    Have,
    /// Another session has put it, and it is not durable yet. A flush of the session that asked waits until it is
    /// durable, and fails if it cannot be stored.
    Pending,
}

/// What a session has stored so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredTotals {
    /// Chunks of disks and attachments.
    pub chunks: u64,
    /// Plain bytes of these chunks.
    pub bytes_plain: u64,
    /// Bytes of their blobs.
    pub bytes_blobs: u64,
    /// Bytes of all blobs, pages and manifests too.
    pub bytes_stored: u64,
}

impl StoredTotals {
    /// Counts one more blob; pages and manifests only among all that was stored.
    pub fn add(&mut self, blob: &BlobHeader) {
        let bytes = u64::from(blob.blob_bytes());
        self.bytes_stored += bytes;
        if !blob.kind.is_structure() {
            self.chunks += 1;
            self.bytes_plain += u64::from(blob.plain_bytes);
            self.bytes_blobs += bytes;
        }
    }
}

/// A point to be committed.
#[derive(Debug, Clone)]
pub struct PointDraft {
    /// Everything that the point consists of.
    pub manifest: Manifest,
    /// Where it was committed first, for a copy.
    pub origin: Option<Origin>,
    /// Labels of the point in the log: for a new point its tags, for a copy the labels that it has where it is copied
    /// from.
    pub labels: BTreeMap<String, String>,
}

/// Where a copied point comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The repository of the first commit.
    pub repository: RepositoryId,
    /// The time of the first commit, by that repository's node.
    pub commit_time: Timestamp,
    /// Number of the record of the first commit there; 0 where that is not known.
    pub number: u64,
    /// The repository that was read, and the last record of its log then. A later copy refuses this repository if it
    /// was rolled back.
    pub seen: Option<(RepositoryId, LogHead)>,
}

/// Result of a commit.
#[derive(Debug, Clone)]
pub enum Commit {
    /// The points as they are listed from now on.
    Committed(Vec<RecoveryPoint>),
    /// Chunks that are absent, doomed or suspect (a bounded part of them).
    Missing(Vec<ChunkId>),
}

/// A committed point, as the log has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryPoint {
    /// Id of the point.
    pub id: PointId,
    /// Its manifest's chunk.
    #[serde(with = "chunk_id")]
    pub manifest: ChunkId,
    /// The owner, who may see the point, continue it and add to it; zero for the site.
    pub owner: OwnerId,
    /// The owner's name, where one is known.
    pub owner_name: Option<Name>,
    /// The owner when the point was made. It differs from `owner` if an administrator has moved the machine since.
    pub stamped: OwnerId,
    /// The holder of the certificate that made the point; none if the repository was opened as a directory.
    pub holder: Option<Holder>,
    /// Id of the machine.
    pub machine: MachineId,
    /// The machine's name.
    pub machine_name: Name,
    /// The group it belongs to.
    pub group: Option<GroupId>,
    /// The instant that its disks show.
    pub snapshot_time: Timestamp,
    /// When this repository committed it, by its node's clock.
    pub commit_time: Timestamp,
    /// Where and when it was committed first; this repository unless it is a copy.
    pub origin: (RepositoryId, Timestamp),
    /// Number of the record that committed the point first, in the log of its origin. It gives the order of a machine's
    /// points even if clocks are wrong. 0 where it is not known, for copies by an earlier version.
    pub number: u64,
    /// Neither forgotten nor swept before this time.
    pub protected_until: Timestamp,
    /// Sum of the sizes of its disks and attachments.
    pub bytes_logical: u64,
    /// Plain bytes it brought.
    pub bytes_new: u64,
    /// Bytes that its session had added to the packs, as the node measured them; 0 where no node did.
    pub bytes_stored: u64,
    /// Kept whatever retention says.
    pub pinned: bool,
    /// Forgotten, but not final yet.
    pub forgotten: bool,
    /// Its tags, and the labels that were set later: see [`labels`](crate::labels).
    pub labels: BTreeMap<String, String>,
}

/// Which points to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PointFilter {
    /// Only points of machines with this name; of all machines when none.
    pub machine: Option<Name>,
    /// True for the forgotten points only, false for the others only.
    pub forgotten: bool,
}

/// Totals of a repository.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Points that are not forgotten.
    pub points: u64,
    /// Distinct chunks, as the packs' footers count them.
    pub chunks: u64,
    /// Packs that are not deleted.
    pub packs: u64,
    /// Sum of the points' logical bytes.
    pub bytes_logical: u64,
    /// Bytes of all packs.
    pub bytes_stored: u64,
    /// Part of `bytes_stored` that no point needed when space was last reclaimed; none before the first time.
    pub bytes_dead: Option<u64>,
    /// Bytes of doomed packs. They can be deleted as soon as the sessions that began before the packs were doomed have
    /// ended.
    pub bytes_waiting: u64,
    /// Free space of the storage; none where it is not known.
    pub bytes_free: Option<u64>,
    /// Part of `bytes_free` that new chunks may not take: room for commits, and for reclaiming space.
    pub bytes_reserved: u64,
    /// Number of chunks of which all blobs are damaged: see [`Repository::wanted`].
    pub suspects: u64,
    /// Packs that no verification or scrub, as far as is known, has decoded completely since they were written.
    pub packs_unverified: u64,
    /// The earliest time at which one of the other packs was decoded completely.
    pub oldest_verified: Option<Timestamp>,
    /// If a node reads all packs again and again (a scrub): what the scrub did since the node started.
    pub scrub: Option<ScrubTotals>,
}

/// What a scrub has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ScrubTotals {
    /// Packs that it read.
    pub packs: u64,
    /// Bytes of these packs.
    pub bytes: u64,
    /// Damaged chunks that it found.
    pub chunks_damaged: u64,
    /// Packs that are due now and were not read yet.
    pub packs_left: u64,
}

/// The end of a commit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct LogHead {
    /// Number of the last record.
    pub sequence: u64,
    /// Hash of that record.
    pub hash: [u8; 32],
}

/// Serde's functions for chunk ids, because `chunker` does not use serde.
mod chunk_id {
    use chunker::ChunkId;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(id: &ChunkId, to: S) -> Result<S::Ok, S::Error> {
        id.0.serialize(to)
    }

    pub fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<ChunkId, D::Error> {
        <[u8; 32]>::deserialize(from).map(ChunkId)
    }
}
