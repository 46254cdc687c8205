//! Brings damaged chunks of a repository from another copy.

use crate::job::copy::same_domain;
use crate::{
    Begin, Depth, Phase, PointId, Presence, Progress, ReadSession, Repository, Result, Verification, VerifyError,
    VerifyOptions, VerifyReport, World, WriteSession,
};
use chunker::{ChunkId, ChunkKind, DomainKeys};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What a repair did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// Chunks that were stored anew.
    pub chunks: u64,
    /// Bytes of their blobs.
    pub bytes: u64,
    /// Chunks that are not sound in the other repository either.
    pub left: u64,
}

/// Brings the chunks that `repository` wants, and those of `named` that it does not have, from another repository of
/// the same dedup domain. Each chunk is decoded and compared before it is sent, and again when it arrives. The damaged
/// blobs stay in their packs and are not used any more; a sweep removes them.
///
/// # Errors
/// `Domain` when chunk ids mean different things; those of both repositories. What was brought before stays.
pub async fn repair<A: Repository, B: Repository>(
    repository: &A,
    from: &B,
    named: BTreeSet<ChunkId>,
    world: &World,
    progress: &Progress,
) -> Result<RepairReport> {
    same_domain(from, repository)?;
    progress.enter(Phase::Move);
    let reader = from.read(&[]).await?;
    let begin =
        Begin { point: PointId::random(world), parents: Vec::new(), holder: None, verification: Verification::Decode };
    let (session, _) = repository.begin(begin).await?;
    let job = Job { session: &session, reader: &reader, keys: DomainKeys::new(&from.config().domain), progress };
    let made = job.run(repository, named).await;
    let ended = session.abandon().await;
    let report = made?;
    ended?;
    Ok(report)
}

struct Job<'a, S, R> {
    session: &'a S,
    reader: &'a R,
    keys: DomainKeys,
    progress: &'a Progress,
}

impl<S: WriteSession, R: ReadSession> Job<'_, S, R> {
    async fn run<A: Repository>(&self, repository: &A, named: BTreeSet<ChunkId>) -> Result<RepairReport> {
        let (mut report, mut left) = (RepairReport::default(), BTreeSet::new());
        let mut page: Vec<ChunkId> = named.into_iter().collect();
        let mut after = None;
        loop {
            for ids in page.chunks(TOGETHER) {
                self.bring(ids, &mut report, &mut left).await?;
            }
            page = repository.wanted(after).await?;
            // In order, so that it ends.
            let Some(last) = page.last().copied().filter(|last| after.is_none_or(|after| after < *last)) else { break };
            after = Some(last);
        }
        self.session.flush().await?;
        Ok(RepairReport { left: left.len() as u64, ..report })
    }

    /// Brings those of `ids` that are missing; adds to `left` what the other repository does not have.
    async fn bring(&self, ids: &[ChunkId], report: &mut RepairReport, left: &mut BTreeSet<ChunkId>) -> Result<()> {
        let presences = self.session.missing(ChunkKind::Data, ids).await?;
        let missing = ids.iter().zip(presences).filter(|(_, presence)| *presence == Presence::Missing);
        let missing: Vec<ChunkId> = missing.map(|(id, _)| *id).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let mut chunks = Vec::new();
        for (id, blob) in self.reader.get_verified(&self.keys, missing).await {
            match blob {
                Ok(blob) => {
                    self.progress.advance(u64::from(blob.header().plain_bytes));
                    report.chunks += 1;
                    report.bytes += blob.bytes().len() as u64;
                    chunks.push((id, blob));
                }
                Err(error) => {
                    tracing::warn!(%error, "a chunk cannot be repaired from this copy");
                    left.insert(id);
                }
            }
        }
        self.session.put(chunks).await
    }
}

/// Chunks that are brought together: 4 MiB of blocks.
const TOGETHER: usize = 64;

/// Repairs the damage that `report` lists, which a verification of `repository` with `options` found. This may take
/// several rounds, because damage below a damaged page is found only after the page is repaired. Then `report` lists
/// what is still wrong.
///
/// # Errors
/// As [`repair`], and of verifications. What was brought before stays.
pub async fn repair_all<A: Repository, B: Repository>(
    repository: &A,
    from: &B,
    options: &VerifyOptions,
    report: &mut VerifyReport,
    world: &World,
    progress: Arc<Progress>,
) -> Result<RepairReport> {
    let mut repaired = RepairReport::default();
    for _ in 0..ROUNDS_MAX {
        let named = report.errors.iter().filter_map(|error| error.chunk).collect();
        let made = repair(repository, from, named, world, &progress).await?;
        repaired.chunks += made.chunks;
        repaired.bytes += made.bytes;
        repaired.left = made.left;
        let again = VerifyOptions { depth: Depth::Structure, ..options.clone() };
        let again = repository.verify(again, progress.clone()).await?;
        // What was wrong with no chunk is not mended by chunks.
        let stays = |error: &VerifyError| error.chunk.is_none() && !again.errors.contains(error);
        let stay: Vec<VerifyError> = report.errors.drain(..).filter(stays).collect();
        report.points = report.points.max(again.points);
        report.errors = again.errors;
        report.errors.extend(stay);
        if made.chunks == 0 {
            break;
        }
    }
    Ok(repaired)
}

/// A map has at most so many levels below its root, and a manifest above it.
const ROUNDS_MAX: usize = 10;
