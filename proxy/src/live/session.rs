//! A snapshot of a running machine, open for reading.

use super::bitmaps::bitmaps_of;
use super::graph::{Traces, run_state, undo};
use super::opening::{Opening, Planned};
use crate::nbd::{NbdDisk, NbdError};
use crate::qemu::TrackingName;
use crate::qmp::QmpError;
use crate::source::{Doubt, Evidence, Seen, SeenBitmap, proven_change};
use bytes::Bytes;
use chunker::{Extent, ExtentSet, GRID_BYTES};
use mover::{Changed, DiskDescription, Error, Outcome, ParentDisk, Result, Snapshot, Source, TrackingWish};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tokio::sync::Mutex;

/// All disks of a running machine at one moment.
#[derive(Debug)]
pub struct LiveSession {
    opening: Mutex<Opening>,
    planned: Vec<Facts>,
    disks: Vec<OpenDisk>,
    descriptions: Vec<DiskDescription>,
    pub(crate) snapshot: Snapshot,
    judged: std::sync::Mutex<Judged>,
    scratch_bytes_max: AtomicU64,
}

/// What was found out about bitmaps, by disk.
#[derive(Debug, Default)]
struct Judged {
    /// The repository's bitmap that proved the changes.
    proven: BTreeMap<usize, TrackingName>,
    /// Disks whose witness lost its mark.
    spoilt: BTreeSet<usize>,
}

/// The view of one disk.
#[derive(Debug)]
pub struct OpenDisk {
    nbd: NbdDisk,
}

/// What proofs need of a disk.
#[derive(Debug)]
struct Facts {
    evidence: Evidence,
}

impl OpenDisk {
    pub const fn new(nbd: NbdDisk) -> Self {
        Self { nbd }
    }
}

impl LiveSession {
    pub(super) fn new(opening: Opening, disks: Vec<OpenDisk>, snapshot: Snapshot) -> Self {
        let facts = |it: &Planned| Facts { evidence: it.files.evidence(&it.disk, it.bitmaps.witness) };
        let planned: Vec<Facts> = opening.disks.iter().map(facts).collect();
        let described = opening.disks.iter().zip(&planned).map(|(it, facts)| described(it, &facts.evidence));
        Self {
            descriptions: described.collect(),
            planned,
            disks,
            snapshot,
            opening: Mutex::new(opening),
            judged: std::sync::Mutex::default(),
            scratch_bytes_max: AtomicU64::new(0),
        }
    }

    /// The answer for one disk, from what its view and its node tell now.
    async fn judge(&self, disk: usize, parent: Option<ParentDisk<'_>>, wish: TrackingWish) -> Result<Changed> {
        let extents = self.disks[disk].nbd.extents().await.map_err(|error| self.failed(disk, error))?;
        let mut opening = self.opening.lock().await;
        let Opening { monitor, disks, path, .. } = &mut *opening;
        let planned = &disks[disk];
        let now = bitmaps_of(monitor, &planned.disk.node).await.map_err(|error| error.about(path))?;
        let copies: BTreeMap<&str, &ExtentSet> = planned
            .bitmaps
            .copied
            .iter()
            .enumerate()
            .filter_map(|(at, name)| extents.bitmap(&planned.bitmaps.copy(at)).map(|marks| (name.as_str(), marks)))
            .collect();
        let bitmaps = now.iter().map(|it| {
            let seen = SeenBitmap {
                granularity: it.granularity,
                recording: it.recording,
                consistent: !it.inconsistent,
                marks: copies.get(it.name.as_str()).copied(),
            };
            (it.name.as_str(), seen)
        });
        let facts = &self.planned[disk];
        let size = self.descriptions[disk].size;
        let seen = Seen { size, chain: &planned.files.chain, evidence: &facts.evidence, bitmaps: bitmaps.collect() };
        let candidates: Vec<TrackingName> = planned.bitmaps.candidate.into_iter().collect();
        let mut changed = match seen.proven(&candidates, parent, wish) {
            Ok((name, dirty)) => {
                if parent.is_some_and(|parent| name.is_of(parent.repository)) {
                    self.judged.lock().expect("no panic while held").proven.insert(disk, name);
                }
                proven_change(&name, dirty)
            }
            Err(doubt) => {
                if let Doubt::Lie(lie) = &doubt {
                    tracing::warn!(disk = %planned.disk.name, lie, "change tracking cannot be trusted");
                }
                doubt.changed(parent, wish)?
            }
        };
        changed.zeroes = extents.zeroes.clone();
        let witness = planned.bitmaps.witness;
        if witness.is_some_and(|it| seen.witness_holds(&it).is_err()) {
            self.judged.lock().expect("no panic while held").spoilt.insert(disk);
        }
        let begun = planned.bitmaps.next.clone();
        let begun = begun.and_then(|next| seen.will_prove(&next, witness.as_ref()).map(|()| next));
        match begun {
            Ok(next) => changed.checkpoint = Some((next.checkpoint, GRID_BYTES)),
            Err(why_not) if wish != TrackingWish::Fingerprint && changed.reason != why_not => {
                changed.reason.push_str("; no checkpoint was begun: ");
                changed.reason.push_str(&why_not);
            }
            Err(_) => {}
        }
        Ok(changed)
    }

    /// A read that fails because the snapshot was given up says so.
    fn failed(&self, disk: usize, error: NbdError) -> Error {
        let name = &self.descriptions[disk].name;
        match &error {
            NbdError::Request { errno, .. } if *errno == libc::EINVAL.cast_unsigned() => Error::source(
                "the snapshot was given up, because its scratch space was full or did not answer in time; the guest was \
                 not disturbed",
            )
            .on_disk(name)
            .hint("give a folder with more room on a fast local disk with --scratch, or back up when less is written"),
            NbdError::Closed(_) | NbdError::Io(_) => {
                Error::source("QEMU ended, or closed the snapshot, before everything was read").because(error).on_disk(name)
            }
            _ => Error::source("the snapshot cannot be read").because(error).on_disk(name),
        }
    }

    async fn note_scratch(&self) {
        let bytes = self.opening.lock().await.disks.iter().map(|it| it.scratch.bytes()).sum();
        self.scratch_bytes_max.fetch_max(bytes, Relaxed);
    }
}

impl Source for LiveSession {
    fn disks(&self) -> &[DiskDescription] {
        &self.descriptions
    }

    fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    async fn changed(&self, disk: usize, parent: Option<ParentDisk<'_>>, wish: TrackingWish) -> Result<Changed> {
        self.judge(disk, parent, wish).await.map_err(|error| error.on_disk(&self.descriptions[disk].name))
    }

    async fn read(&self, disk: usize, extent: Extent) -> Result<Bytes> {
        self.disks[disk].nbd.read(extent).await.map_err(|error| self.failed(disk, error))
    }

    /// The views must still stand where they were put, and the machine must still run here: after a migration another
    /// QEMU writes to the disks, and no copier knows of that.
    async fn check(&self) -> Result<()> {
        self.note_scratch().await;
        let mut opening = self.opening.lock().await;
        let Opening { monitor, disks, path, held, .. } = &mut *opening;
        let about = |error: QmpError| error.about(path);
        let state = run_state(monitor).await.map_err(about)?;
        if MIGRATED.contains(&state.as_str()) {
            return Err(Error::source("the machine was migrated to another host while its disks were read")
                .context(path.display())
                .hint("back it up where it runs now"));
        }
        let traces = Traces::look(monitor, Some(held.number)).await.map_err(about)?;
        if traces.views() != disks.len() {
            return Err(
                Error::source("somebody removed the snapshot from QEMU while it was read").context(path.display())
            );
        }
        Ok(())
    }

    fn scratch_bytes_max(&self) -> u64 {
        self.scratch_bytes_max.load(Relaxed)
    }

    async fn finish(self, outcome: Outcome) -> Result<()> {
        // Connections first, or the exports wait for them.
        drop(self.disks);
        let Judged { proven, spoilt } = self.judged.into_inner().expect("no panic while held");
        let Opening { mut monitor, disks, path, held, watchdog, .. } = self.opening.into_inner();
        let about = |error: QmpError| error.about(&path);
        let ended = async {
            let traces = Traces::look(&mut monitor, Some(held.number)).await?;
            undo(&mut monitor, &traces).await?;
            for (at, planned) in disks.iter().enumerate() {
                match outcome {
                    Outcome::Committed => {
                        planned.bitmaps.commit(&mut monitor, proven.get(&at), spoilt.contains(&at)).await?;
                    }
                    Outcome::Abandoned => planned.bitmaps.abandon(&mut monitor).await?,
                }
            }
            Ok(())
        };
        match ended.await {
            Ok(()) => {
                watchdog.end().await;
                Ok(())
            }
            // Without a word the watchdog tries the same once more.
            Err(error) => Err(about(error)),
        }
    }
}

fn described(planned: &Planned, evidence: &Evidence) -> DiskDescription {
    let disk = &planned.disk;
    let format = if disk.driver == "qcow2" { "qcow2" } else { "raw" };
    let options = if disk.driver == "qcow2" { disk.image.layer.format_options() } else { String::new() };
    DiskDescription {
        name: disk.name.clone(),
        size: disk.image.layer.virtual_size,
        logical_sector_bytes: disk.logical_sector_bytes,
        physical_sector_bytes: disk.physical_sector_bytes,
        discard_bytes: disk.discard_bytes,
        boot_order: disk.boot_order,
        bus: disk.bus.clone(),
        serial: disk.serial.clone(),
        format: format.to_owned(),
        format_options: format!("{evidence},{options}"),
        chain: planned.files.chain.clone(),
        warning: None,
    }
}

/// States of a machine whose disks another QEMU writes to.
const MIGRATED: [&str; 2] = ["postmigrate", "finish-migrate"];
