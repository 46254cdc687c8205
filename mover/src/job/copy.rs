//! Copies a recovery point from one repository to another. Only missing chunks are moved, and their blobs are not
//! changed.

use crate::record::closure::Repairs;
use crate::{
    Begin, ChunkBatch, Commit, Error, ErrorKind, Manifest, MapReader, MapRoot, Origin, PageFlavour, Phase, PointDraft,
    PointFilter, PointId, Presence, Progress, ReadSession, RecoveryPoint, Repository, Result, TreeDiff, Verification,
    Visited, WriteSession,
};
use chunker::{Blob, ChunkId, ChunkKind, DomainKeys};
use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};

type Labels = BTreeMap<String, String>;

/// What a copy did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyReport {
    /// Points that were copied; those that were there already do not count.
    pub points: u64,
    /// Chunks of disks and attachments that moved.
    pub chunks_moved: u64,
    /// Bytes of all blobs that moved.
    pub bytes_moved: u64,
}

/// Brings `point` from one repository to another of the same dedup domain. Nothing happens when it is there already.
///
/// # Errors
/// `Usage` when the point was forgotten in the target, because such a point is only brought back by name; `Domain` when
/// chunk ids mean different things; `RolledBack` when the source's log does not continue the log that an earlier copy
/// saw; `Version` when the point has something that must be understood and is not; those of both repositories.
pub async fn copy<A: Repository, B: Repository>(
    from: &A,
    to: &B,
    point: &RecoveryPoint,
    verification: Verification,
    progress: &Progress,
) -> Result<CopyReport> {
    same_domain(from, to)?;
    if let Some(seen) = to.peer(from.config().id).await?
        && !from.has_been(seen).await?
    {
        let (id, ends, sequence) = (from.config().id, from.log_head().await?.sequence, seen.sequence);
        // A source whose own index had seen that record would not have been opened: `doctor` finds nothing to accept.
        return Err(Error::rolled_back(format!(
            "the source {id} was rolled back or replaced, together with its index: an earlier copy saw record {sequence} of \
             its log, and the log, which now ends at record {ends}, does not continue from that record"
        ))
        .hint(
            "bring back the source's newer files; if they are lost, copy to a new repository made with `windlass init \
             --like`: what was copied before stays in this one",
        ));
    }
    let there = to.list(&PointFilter::default()).await?;
    if there.iter().any(|have| have.id == point.id) {
        return Ok(CopyReport::default());
    }
    let forgotten = to.list(&PointFilter { machine: None, forgotten: true }).await?;
    if forgotten.iter().any(|have| have.id == point.id) {
        return Err(Error::usage(format!("point {} was forgotten in the target", point.id))
            .hint(format!("`windlass unforget {}` brings it back there", point.id)));
    }
    progress.enter(Phase::Move);
    let reader = from.read(&[point.id]).await?;
    let manifest = reader.manifest(point.id).await?;
    let keys = DomainKeys::new(&from.config().domain);
    // A copy keeps its manifest byte for byte, also what this version does not know of it (R13).
    if keys.id(ChunkKind::Manifest, &manifest.encode()) != point.manifest {
        return Err(Error::internal(format!("the manifest of point {} would not be the same in the copy", point.id)));
    }
    // Pages in common with the newest copy of the same machine need not be walked: the session pins it.
    let parent = there.iter().rfind(|have| have.machine == point.machine).map(|have| have.id);
    let begin = Begin { point: point.id, parents: parent.into_iter().collect(), holder: None, verification };
    let (session, _) = to.begin(begin).await?;
    let seen = Some((from.config().id, from.log_head().await?));
    let origin = Origin { repository: point.origin.0, commit_time: point.origin.1, number: point.number, seen };
    let job = Job { reader: &reader, session: &session, keys: &keys, progress };
    match job.run(manifest, parent, (origin, point.labels.clone())).await {
        Ok(report) => Ok(report),
        Err(error) => {
            if let Err(second) = session.abandon().await {
                tracing::debug!(error = %second, "session not closed after a failed copy");
            }
            Err(error)
        }
    }
}

/// Those of `points` that a copy of everything brings to `to`. Points that were forgotten there are left out, and so
/// are points that are not newer than the newest point of the same machine that was made final there. The rules there
/// would drop these old points at once, or an administrator has dropped them. An old point is still copied if it is
/// named.
///
/// # Errors
/// The repository's.
pub async fn still_wanted<B: Repository>(to: &B, mut points: Vec<RecoveryPoint>) -> Result<Vec<RecoveryPoint>> {
    let of = |forgotten| async move { to.list(&PointFilter { machine: None, forgotten }).await };
    let ids = |points: Vec<RecoveryPoint>| points.into_iter().map(|point| point.id).collect::<HashSet<_>>();
    let (there, forgotten) = (ids(of(false).await?), ids(of(true).await?));
    let given_up: HashMap<_, _> =
        to.given_up().await?.into_iter().map(|it| ((it.machine, it.origin), it.newest)).collect();
    points.retain(|point| {
        let is_old = given_up.get(&(point.machine, point.origin.0)).is_some_and(|newest| point.origin.1 <= *newest);
        there.contains(&point.id) || !forgotten.contains(&point.id) && !is_old
    });
    Ok(points)
}

/// Refuses repositories whose chunk ids mean different things.
pub fn same_domain<A: Repository, B: Repository>(from: &A, to: &B) -> Result<()> {
    if from.config().domain == to.config().domain {
        return Ok(());
    }
    Err(Error::domain("the repositories belong to different dedup domains")
        .hint("create the target with `windlass init --like SOURCE`"))
}

struct Job<'a, A, B> {
    reader: &'a A,
    session: &'a B,
    keys: &'a DomainKeys,
    progress: &'a Progress,
}

impl<A: ReadSession, B: WriteSession> Job<'_, A, B> {
    async fn run(
        &self,
        manifest: Manifest,
        parent: Option<PointId>,
        (origin, labels): (Origin, Labels),
    ) -> Result<CopyReport> {
        let parent = match parent {
            Some(parent) => unless_damaged(self.session.manifest(parent).await)?,
            None => None,
        };
        for disk in &manifest.disks {
            let base = parent.as_ref().and_then(|parent| parent.disks.iter().find(|it| it.id == disk.id));
            self.disk(base.map(|base| base.root), disk.root).await.map_err(|error| error.on_disk(&disk.name))?;
        }
        for attachment in &manifest.attachments {
            self.tree(MapRoot { level: attachment.root.level, id: None }, attachment.root).await?;
        }
        self.progress.enter(Phase::Commit);
        let draft = [PointDraft { manifest, origin: Some(origin), labels }];
        let mut repairs = Repairs::default();
        loop {
            match self.session.commit(&draft).await? {
                Commit::Committed(_) => {
                    let stored = self.session.stored().await?;
                    let (chunks_moved, bytes_moved) = (stored.chunks, stored.bytes_stored);
                    return Ok(CopyReport { points: 1, chunks_moved, bytes_moved });
                }
                Commit::Missing(ids) => {
                    repairs.begin(&ids)?;
                    self.transfer(ids).await?;
                }
            }
        }
    }

    async fn disk(&self, base: Option<MapRoot>, root: MapRoot) -> Result<()> {
        let nothing = MapRoot { level: root.level, id: None };
        if let Some(base) = base {
            // Damage in the target's last copy must not end the copying: all of the map is walked then.
            if unless_damaged(self.tree(base, root).await)?.is_some() {
                return Ok(());
            }
        }
        self.tree(nothing, root).await
    }

    /// Brings the pages and chunks below `root` that are not also below `base`, a map that the target has and the
    /// session pins.
    async fn tree(&self, base: MapRoot, root: MapRoot) -> Result<()> {
        let (old, new) = (MapReader::new(self.session, self.keys), MapReader::new(self.reader, self.keys));
        let mut visited = Visited::default();
        let walk = TreeDiff::new((base, &old), (root, &new), &mut visited);
        let steps =
            stream::try_unfold(
                walk,
                |mut walk| async move { Ok::<_, Error>(walk.next().await?.map(|step| (step, walk))) },
            );
        // Each leaf asks for its chunks while the ones before it are read and put.
        let moved = steps.map_ok(|step| async move {
            if let Some(page) = step.new_id {
                self.ask_and_transfer(ChunkKind::Page, vec![page]).await?;
            }
            let Some(leaf) = step.new.as_ref().filter(|_| step.level == 0) else { return Ok(()) };
            let (kind, ids): (_, Vec<ChunkId>) = match leaf.flavour() {
                PageFlavour::Disk => (ChunkKind::Data, step.blocks().filter_map(|block| block.new.chunk()).collect()),
                PageFlavour::Stream => (ChunkKind::Attachment, leaf.chunks().collect()),
            };
            self.ask_and_transfer(kind, ids).await
        });
        moved.try_buffered(LEAVES_MAX).try_collect().await
    }

    async fn ask_and_transfer(&self, kind: ChunkKind, mut ids: Vec<ChunkId>) -> Result<()> {
        ids.sort_unstable();
        ids.dedup();
        if ids.is_empty() {
            return Ok(());
        }
        let present = self.session.missing(kind, &ids).await?;
        let missing = ids.into_iter().zip(present).filter(|(_, it)| *it == Presence::Missing);
        self.transfer(missing.map(|(id, _)| id).collect()).await
    }

    async fn transfer(&self, ids: Vec<ChunkId>) -> Result<()> {
        let batches = self.reader.get(ids);
        futures::pin_mut!(batches);
        while let Some(batch) = batches.next().await {
            let blobs = sound(batch)?;
            self.progress.advance(blobs.iter().map(|(_, blob)| u64::from(blob.header().plain_bytes)).sum());
            self.session.put(blobs).await?;
        }
        Ok(())
    }
}

fn unless_damaged<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::Integrity => {
            tracing::warn!(%error, "the target's last copy of the machine cannot be read");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn sound(batch: ChunkBatch) -> Result<Vec<(ChunkId, Blob)>> {
    batch.into_iter().map(|(id, blob)| Ok((id, blob?))).collect()
}

/// Leaves on their way at once: 64 MiB of disk each, of which a few MiB of blobs are held.
const LEAVES_MAX: usize = 4;
