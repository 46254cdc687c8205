//! A snapshot session becomes a recovery point.

mod audit;
mod check;
mod contradiction;
mod disk;
mod giving_back;
mod machine;
mod past;
mod repair;

use crate::record::closure::Repairs;
use crate::record::map::stream_map;
use crate::{
    Attachment, Begin, ChangeTracking, Changed, Commit, Consistency, DiskDescription, DiskId, DiskRecord, Error,
    ErrorKind, MachineId, Manifest, MapReader, Name, NewAttachment, NewPage, Origin, Outcome, ParentDisk, Phase,
    PointDraft, PointFilter, PointId, Pool, Presence, Progress, Quiesce, ReadSession, RecoveryPoint, Repository,
    Result, Source, Suspect, Timestamp, TrackingRecord, TrackingWish, Verification, World, WriteSession, check_text,
    labels, suspect_times, with_compressor,
};
use chunker::{Blob, ChunkId, ChunkKind, Compression, DomainKeys, StreamCutter};
use disk::DiskPass;
use giving_back::GivenBack;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::future::Future;
use tokio::time::Instant;

pub use audit::{Audit, AuditReport};
pub use machine::backup_machine;
pub use past::PastOf;

/// What to make of a source.
#[derive(Debug, Clone)]
pub struct BackupOptions {
    /// The machine's name.
    pub machine_name: Name,
    /// Id of the machine, if the hypervisor gives one. When none, the backup uses the id in the newest point of this
    /// name that this owner made in this repository.
    pub machine: Option<MachineId>,
    /// The id of the point to be made: the key that makes trying again harmless. Random when none.
    pub point: Option<PointId>,
    /// How changes may be found.
    pub wish: TrackingWish,
    /// How chunks are compressed.
    pub compression: Compression,
    /// How the repository checks what it gets.
    pub verification: Verification,
    /// Words to find the point by.
    pub tags: Vec<String>,
    /// What else belongs to the machine.
    pub attachments: Vec<NewAttachment>,
    /// Most bytes to read from the source in a second.
    pub rate: Option<u64>,
    /// How much of what a bitmap calls unchanged is read to check it.
    pub audit: Audit,
    /// Which suspicious changes of disks since the parent are allowed.
    pub allow: Allow,
    /// Whether file systems of a running machine are frozen for the snapshot.
    pub quiesce: Quiesce,
}

/// Changes of a disk since the parent that are refused unless an administrator allows them, because they are mostly
/// mistakes or caused by somebody else.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allow {
    /// The disk has become smaller. The data behind its new end is in older points only.
    pub shrink: bool,
    /// The disk is read in another format, so that all its bytes mean something else.
    pub format_change: bool,
}

/// What a backup did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupReport {
    /// The point that was committed.
    pub point: RecoveryPoint,
    /// The point it was built on; none for a machine without an earlier point of its own here.
    pub parent: Option<PointId>,
    /// State of the disks in the point: as after a crash, with file systems frozen, or with applications quiesced.
    pub consistency: Consistency,
    /// How long the machine's file systems or applications stood still, in milliseconds; 0 when they did not.
    pub freeze_ms: u64,
    /// How long its processors were stopped, in milliseconds; 0 when they were not.
    pub pause_ms: u64,
    /// The most space, in bytes, that what the machine overwrote meanwhile took.
    pub scratch_bytes_max: u64,
    /// What was done with each disk, in the order of the source.
    pub disks: Vec<DiskReport>,
    /// Distinct chunks the repository did not have.
    pub chunks_new: u64,
    /// Plain bytes of these chunks.
    pub bytes_new: u64,
    /// Bytes of their blobs, as they went to the repository.
    pub bytes_sent: u64,
    /// Bytes of all blobs that the repository stored, pages and manifest too.
    pub bytes_stored: u64,
    /// What the administrator should know.
    pub warnings: Vec<String>,
}

/// What a backup did with one disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    /// Name of the disk within its machine.
    pub name: Name,
    /// Its size in bytes.
    pub size: u64,
    /// How changes were found, why, and the counts.
    pub tracking: TrackingRecord,
    /// How far the audit has come, where there was one and it found nothing.
    pub audit: Option<AuditReport>,
}

impl From<(DiskRecord, Option<AuditReport>)> for DiskReport {
    fn from((record, audit): (DiskRecord, Option<AuditReport>)) -> Self {
        let DiskRecord { name, size, tracking, .. } = record;
        Self { name, size, tracking, audit }
    }
}

/// Backs up `source` into `repository` as one point, built on the newest point of the same machine that the same owner
/// made there. The session of the source is ended in every case. When this returns `Ok`, the point is durable and
/// visible; otherwise there is no point.
///
/// # Errors
/// `Usage` for options or disks that no manifest can hold, before anything is read. Errors of the source and of the
/// repository keep their kinds. Chunks that were stored before an error need not be sent again by the next try.
pub async fn backup<R: Repository, S: Source>(
    repository: &R,
    source: S,
    options: &BackupOptions,
    pool: &Pool,
    world: &World,
    progress: &Progress,
) -> Result<BackupReport> {
    let made = run(repository, &source, options, (pool, world), progress).await;
    end(source, made, progress).await
}

/// Ends the session of the source as what was made says.
async fn end<S: Source>(source: S, made: Result<BackupReport>, progress: &Progress) -> Result<BackupReport> {
    let outcome = if made.is_ok() { Outcome::Committed } else { Outcome::Abandoned };
    let finished = source.finish(outcome).await;
    progress.enter(Phase::Done);
    match (made, finished) {
        (Ok(mut report), Err(error)) => {
            // The point is there; what could not be tidied is settled by the next run.
            report.warnings.push(format!("the source could not be released cleanly: {error}"));
            Ok(report)
        }
        (Ok(report), Ok(())) => Ok(report),
        (Err(error), finished) => {
            if let Err(second) = finished {
                tracing::warn!(error = %second, "the source could not be released cleanly after a failed backup");
            }
            Err(error)
        }
    }
}

async fn run<R: Repository, S: Source>(
    repository: &R,
    source: &S,
    options: &BackupOptions,
    means: (&Pool, &World),
    progress: &Progress,
) -> Result<BackupReport> {
    check::check_request(options, source.disks(), &source.snapshot().attachments)?;
    let given = GivenBack::from(source, None);
    Ready::begin(repository, options, means.1).await?.make(source, means, progress, &given).await
}

/// A repository that waits for the disks of a machine: the session is open, and the parent is read.
struct Ready<'a, R: Repository> {
    repository: &'a R,
    options: &'a BackupOptions,
    session: R::Session,
    new: NewPoint,
    /// The parent's manifest.
    parent: Option<Manifest>,
    /// The newest point of the machine, also if it cannot be built on.
    before: Option<RecoveryPoint>,
    begin_time: Timestamp,
    warnings: Vec<String>,
}

impl<'a, R: Repository> Ready<'a, R> {
    async fn begin(repository: &'a R, options: &'a BackupOptions, world: &World) -> Result<Self> {
        let begin_time = world.now();
        let Lineage { machine, parent, before } = lineage(repository, options).await?;
        let machine = machine.unwrap_or_else(|| MachineId::random(world));
        let point = options.point.unwrap_or_else(|| PointId::random(world));
        let begin = Begin {
            point,
            parents: parent.iter().map(|parent| parent.id).collect(),
            holder: None,
            verification: options.verification,
        };
        let (session, begun) = repository.begin(begin).await?;
        let new = NewPoint { machine, point, suspects: begun.suspects };
        let mut ready =
            Self { repository, options, session, new, parent: None, before, begin_time, warnings: Vec::new() };
        match ready.read_parent(parent.map(|parent| parent.id)).await {
            Ok(()) => Ok(ready),
            Err(error) => {
                ready.abandon().await;
                Err(error)
            }
        }
    }

    /// The parent's manifest. A damaged manifest must not end the machine's backups, so the backup then goes on without
    /// a parent.
    async fn read_parent(&mut self, parent: Option<PointId>) -> Result<()> {
        let Some(parent) = parent else { return Ok(()) };
        match self.session.manifest(parent).await {
            Ok(manifest) => self.parent = Some(manifest),
            Err(error) if may_read_all(&error, self.options) => {
                tracing::warn!(%error, "the parent cannot be read; everything is read instead");
                self.warnings.push(format!("everything was read, because the parent cannot be read: {error}"));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn make<S: Source>(
        self,
        source: &S,
        (pool, world): (&Pool, &World),
        progress: &Progress,
        given: &GivenBack,
    ) -> Result<BackupReport> {
        let Self { repository, options, session, new, parent, before, begin_time, warnings } = self;
        let keys = DomainKeys::new(&repository.config().domain);
        let job = Job { repository, session: &session, source, options, pool, keys: &keys, progress, given };
        let mut made = job.run(new, parent, warnings, begin_time, world).await;
        if let (Ok(report), Some(before)) = (&mut made, before) {
            report.warnings.extend(wrong_clock(&before, &report.point));
        }
        if made.is_err() {
            abandon(session).await;
        }
        made
    }

    async fn abandon(self) {
        abandon(self.session).await;
    }
}

/// Closes a session that makes no point.
async fn abandon(session: impl WriteSession) {
    // The error that counts is the first; a session that cannot be closed is fenced later.
    if let Err(error) = session.abandon().await {
        tracing::debug!(%error, "session not closed after a failed backup");
    }
}

/// Whether reading everything is the way out of damage in the parent.
fn may_read_all(error: &Error, options: &BackupOptions) -> bool {
    error.kind() == ErrorKind::Integrity && options.wish != TrackingWish::Bitmap
}

/// The machine's id, and the point to build on: the last point of this machine that this owner committed to this
/// repository. Points that were copied in, or that another owner made, are not used for either (R21).
async fn lineage<R: Repository>(repository: &R, options: &BackupOptions) -> Result<Lineage> {
    let machine = options.machine.is_none().then(|| options.machine_name.clone());
    let mut points = repository.list(&PointFilter { machine, forgotten: false }).await?;
    let (here, owner) = (repository.config().id, repository.owner());
    points.retain(|point| point.was_made_in(here) && point.owner == owner);
    let id = options.machine.or(points.last().map(|point| point.machine));
    points.retain(|point| Some(point.machine) == id);
    let parent = points.iter().rfind(|point| point.is_base_for(owner, here)).cloned();
    Ok(Lineage { machine: id, parent, before: points.pop() })
}

/// The point that a backup with these options would continue.
///
/// # Errors
/// The repository's.
pub async fn parent_of<R: Repository>(repository: &R, options: &BackupOptions) -> Result<Option<RecoveryPoint>> {
    Ok(lineage(repository, options).await?.parent)
}

/// A warning if the times of a point and of the point before it contradict the order in which they were made (R25).
fn wrong_clock(before: &RecoveryPoint, point: &RecoveryPoint) -> Option<String> {
    let (suspect, why) = suspect_times(&[before, point], point.commit_time).into_iter().next()?;
    Some(format!(
        "the time of point {} cannot be right: {why}; check the clocks, then correct it with `windlass annotate {} --time TIME`",
        suspect.id, suspect.id
    ))
}

/// What a backup continues.
struct Lineage {
    /// Id of the machine; none if the machine is new.
    machine: Option<MachineId>,
    /// The point to build on.
    parent: Option<RecoveryPoint>,
    /// The newest point of the machine, also if it cannot be built on.
    before: Option<RecoveryPoint>,
}

/// What was made of the disks, in the order of the source.
#[derive(Default)]
struct Disks {
    records: Vec<DiskRecord>,
    audits: Vec<Option<AuditReport>>,
    /// Where the next audit of each disk begins.
    positions: BTreeMap<DiskId, u64>,
}

/// Where the new point belongs.
struct NewPoint {
    machine: MachineId,
    point: PointId,
    suspects: Vec<Suspect>,
}

/// Everything the steps of one backup share.
struct Job<'a, R: Repository, S> {
    repository: &'a R,
    session: &'a R::Session,
    source: &'a S,
    options: &'a BackupOptions,
    pool: &'a Pool,
    keys: &'a DomainKeys,
    progress: &'a Progress,
    given: &'a GivenBack,
}

impl<R: Repository, S: Source> Job<'_, R, S> {
    async fn run(
        &self,
        new: NewPoint,
        parent: Option<Manifest>,
        mut warnings: Vec<String>,
        begin_time: Timestamp,
        world: &World,
    ) -> Result<BackupReport> {
        if let Some(parent) = &parent {
            check::check_changes(parent, self.source.disks(), self.options.allow)?;
        }
        self.progress.enter(Phase::Move);
        let disks = self.disks(parent.as_ref(), &new.suspects, world, &mut warnings).await?;
        let snapshot = self.source.snapshot();
        warnings.extend(snapshot.warnings.iter().cloned());
        let mut attachments = Vec::new();
        for attachment in self.options.attachments.iter().chain(&snapshot.attachments) {
            attachments.push(self.until_stopped(self.attach(attachment)).await?.0);
        }
        let end_time = world.now();
        self.progress.enter(Phase::Commit);
        self.source.check().await?;
        let manifest = Manifest {
            point: new.point,
            machine: new.machine,
            machine_name: self.options.machine_name.clone(),
            parent: parent.map(|parent| parent.point),
            group: None,
            snapshot_time: snapshot.time,
            begin_time,
            end_time,
            guest_clock_offset_ns: snapshot.guest_clock_offset_ns,
            consistency: snapshot.consistency,
            tags: self.options.tags.clone(),
            labels: BTreeMap::new(),
            producer: concat!("windlass ", env!("CARGO_PKG_VERSION")).into(),
            disks: disks.records,
            attachments,
            bytes_new: self.session.stored().await?.bytes_plain,
            extensions: audit::extension(&disks.positions),
        };
        let point = self.commit(&manifest, &mut warnings).await?;
        let stored = self.session.stored().await?;
        Ok(BackupReport {
            point,
            parent: manifest.parent,
            consistency: manifest.consistency,
            freeze_ms: snapshot.frozen.as_millis().try_into().unwrap_or(u64::MAX),
            pause_ms: snapshot.paused.as_millis().try_into().unwrap_or(u64::MAX),
            scratch_bytes_max: self.source.scratch_bytes_max(),
            disks: manifest.disks.into_iter().zip(disks.audits).map(DiskReport::from).collect(),
            chunks_new: stored.chunks,
            bytes_new: stored.bytes_plain,
            bytes_sent: stored.bytes_blobs,
            bytes_stored: stored.bytes_stored,
            warnings,
        })
    }

    /// Brings all disks into the repository, one after the other. What is not going to be read is given back of all
    /// of them before the first is read.
    async fn disks(
        &self,
        parent: Option<&Manifest>,
        suspects: &[Suspect],
        world: &World,
        warnings: &mut Vec<String>,
    ) -> Result<Disks> {
        let reader = MapReader::new(self.session, self.keys);
        let positions = parent.map(audit::positions).unwrap_or_default();
        let mut passes = Vec::new();
        for (index, description) in self.source.disks().iter().enumerate() {
            let before = parent.and_then(|parent| parent.disk(&description.name));
            let id = before.map_or_else(|| DiskId::random(world), |disk| disk.id);
            let suspects = suspects.iter().filter(|it| it.disk == id).map(|it| it.offset).collect();
            let begun =
                disk::Begun { position: positions.get(&id).copied().unwrap_or_default(), since: Instant::now() };
            let pass = DiskPass { job: self, index, description, before, reader: &reader, suspects, begun };
            let settled = self.until_stopped(self.settled(&pass, warnings)).await;
            passes.push((id, settled.map_err(|error| error.on_disk(&description.name))?, pass));
        }
        let mut made = Disks::default();
        for (id, changed, mut pass) in passes {
            let description = pass.description;
            pass.begun.since = Instant::now();
            let position = pass.begun.position;
            let ran = self.until_stopped(pass.run(changed, warnings)).await;
            let (root, tracking, audit) = ran.map_err(|error| error.on_disk(&description.name))?;
            // Passes that read everything begin a new turn; without an audit its place is kept.
            let kept = if tracking.mode == ChangeTracking::Bitmap { position } else { 0 };
            made.positions.insert(id, audit.map_or(kept, |audit| audit.position));
            made.audits.push(audit);
            warnings.extend(description.warning.iter().map(|warning| format!("disk {}: {warning}", description.name)));
            made.records.push(description.record(id, root, tracking));
        }
        Ok(made)
    }

    /// How a disk is read; what need not be read is given back.
    async fn settled(&self, pass: &DiskPass<'_, R, S>, warnings: &mut Vec<String>) -> Result<Changed> {
        let changed = self.changed(pass.index, pass.description, pass.before, warnings).await?;
        let settled = match pass.settle(changed.clone(), warnings).await {
            Err(error) if pass.before.is_some() && self.may_read_all(&error) => {
                pass.of_damaged(changed, &error, warnings)?
            }
            settled => settled?,
        };
        pass.give_back_unread(&settled).await;
        Ok(settled)
    }

    /// What the source says of the changes of a disk.
    async fn changed(
        &self,
        index: usize,
        description: &DiskDescription,
        before: Option<&DiskRecord>,
        warnings: &mut Vec<String>,
    ) -> Result<Changed> {
        let repository = self.repository.config().id;
        let base = before.map(|record| ParentDisk { repository, record });
        let changed = self.source.changed(index, base, self.options.wish).await?;
        check_text("the reason of its tracking", &changed.reason)?;
        if let Some(lie) = &changed.lie {
            warnings.push(format!("disk {}: its change tracking is wrong and is not used: {lie}", description.name));
        }
        Ok(changed)
    }

    /// The result of `work`, or why the job is to stop. Nothing is harmed by dropping work before the commit.
    async fn until_stopped<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            done = work => done,
            stopped = self.source.stopped() => Err(stopped),
        }
    }

    fn may_read_all(&self, error: &Error) -> bool {
        may_read_all(error, self.options)
    }

    /// Commits. If the repository turns out to lack chunks, puts them and commits again, as long as that makes progress
    /// (R8).
    async fn commit(&self, manifest: &Manifest, warnings: &mut Vec<String>) -> Result<RecoveryPoint> {
        let draft = [PointDraft {
            manifest: manifest.clone(),
            origin: None::<Origin>,
            labels: labels::of_tags(&manifest.tags),
        }];
        let mut repairs = Repairs::default();
        loop {
            match self.session.commit(&draft).await {
                Ok(Commit::Committed(points)) => {
                    return points.into_iter().next().ok_or_else(|| Error::internal("a commit without its point"));
                }
                Ok(Commit::Missing(ids)) => {
                    tracing::warn!(chunks = ids.len(), "the repository lost chunks since they were asked for");
                    repairs.begin(&ids)?;
                    self.repair(manifest, ids).await?;
                }
                // The answer may be lost and the point there: then the source must not go back behind it.
                Err(error) => {
                    let there = self.repository.list(&PointFilter::default()).await.unwrap_or_default();
                    let Some(point) = there.into_iter().find(|point| point.id == manifest.point) else {
                        return Err(error);
                    };
                    warnings.push(format!("the point is committed, although the commit reported an error: {error}"));
                    return Ok(point);
                }
            }
        }
    }

    /// Stores an attachment; gives the ids of its chunks and pages too.
    async fn attach(&self, attachment: &NewAttachment) -> Result<(Attachment, Vec<ChunkId>)> {
        let mut cutter = StreamCutter::default();
        let mut chunks = cutter.push(&attachment.bytes);
        chunks.extend(cutter.finish());
        let mut entries = Vec::new();
        for plain in chunks {
            let id = self.keys.id(ChunkKind::Attachment, &plain);
            entries.push((id, plain.len() as u64));
            self.store(ChunkKind::Attachment, vec![(id, plain)]).await?;
        }
        let (root, pages) = stream_map(self.keys, &entries)?;
        let ids = entries.into_iter().map(|(id, _)| id).chain(pages.iter().map(|page| page.id)).collect();
        self.store_pages(pages).await?;
        let bytes = attachment.bytes.len() as u64;
        Ok((Attachment { kind: attachment.kind.clone(), name: attachment.name.clone(), bytes, root }, ids))
    }

    async fn store_pages(&self, pages: Vec<NewPage>) -> Result<()> {
        self.store(ChunkKind::Page, pages.into_iter().map(|page| (page.id, page.plain)).collect()).await
    }

    /// Puts those of `chunks` that the repository lacks.
    async fn store(&self, kind: ChunkKind, chunks: Vec<(ChunkId, Vec<u8>)>) -> Result<()> {
        let ids: Vec<ChunkId> = chunks.iter().map(|(id, _)| *id).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let present = self.session.missing(kind, &ids).await?;
        let missing = chunks.into_iter().zip(present).filter(|(_, it)| *it == Presence::Missing);
        let missing: Vec<_> = missing.map(|(chunk, _)| chunk).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let compression = self.options.compression;
        let compress = move |(id, plain): (ChunkId, Vec<u8>)| -> (ChunkId, Blob) {
            (id, with_compressor(compression, |compressor| compressor.compress(kind, &plain)))
        };
        let blobs = self.pool.run(move || missing.into_iter().map(compress).collect()).await;
        self.session.put(blobs).await
    }
}
