//! A snapshot of a running machine, open for reading.

use super::bitmaps::bitmaps_of;
use super::graph::{Traces, run_state};
use super::placed::{Judged, Placed, Planned};
use super::scratch::Scratch;
use crate::nbd::{NbdDisk, NbdError};
use crate::qemu::TrackingName;
use crate::qmp::QmpError;
use crate::source::{Doubt, Evidence, Seen, note_no_checkpoint, proven_change};
use bytes::Bytes;
use chunker::{Extent, ExtentSet, GRID_BYTES};
use mover::{Changed, DiskDescription, Error, Outcome, ParentDisk, Result, Snapshot, Source, TrackingWish};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tokio::sync::Mutex;

/// All disks of a running machine at one moment.
#[derive(Debug)]
pub struct LiveSession {
    placed: Mutex<Placed>,
    /// What each image is, as the point records it.
    evidence: Vec<Evidence>,
    /// The views of the disks.
    views: Vec<NbdDisk>,
    descriptions: Vec<DiskDescription>,
    pub(crate) snapshot: Snapshot,
    judged: std::sync::Mutex<Judged>,
    scratch: Vec<Arc<Scratch>>,
    scratch_bytes_max: AtomicU64,
}

impl LiveSession {
    pub(super) fn new(placed: Placed, views: Vec<NbdDisk>, snapshot: Snapshot) -> Self {
        let evidence = |it: &Planned| it.files.evidence(&it.disk, it.bitmaps.witness);
        let evidence: Vec<Evidence> = placed.disks.iter().map(evidence).collect();
        let descriptions = placed.disks.iter().zip(&evidence).map(|(it, evidence)| described(it, evidence)).collect();
        let scratch = placed.disks.iter().map(|it| it.scratch.clone()).collect();
        Self {
            descriptions,
            evidence,
            views,
            snapshot,
            placed: Mutex::new(placed),
            judged: std::sync::Mutex::default(),
            scratch,
            scratch_bytes_max: AtomicU64::new(0),
        }
    }

    /// The answer for one disk, from what its view and its node tell now.
    async fn judge(&self, disk: usize, parent: Option<ParentDisk<'_>>, wish: TrackingWish) -> Result<Changed> {
        let extents = self.views[disk].extents().await.map_err(|error| self.failed(disk, error))?;
        let mut placed = self.placed.lock().await;
        let Placed { monitor, disks, path, .. } = &mut *placed;
        let planned = &disks[disk];
        let now = bitmaps_of(monitor, &planned.disk.node).await.map_err(|error| error.about(path))?;
        let copies: BTreeMap<&str, &ExtentSet> = planned
            .bitmaps
            .copied
            .iter()
            .enumerate()
            .filter_map(|(at, name)| extents.bitmap(&planned.bitmaps.copy(at)).map(|marks| (name.as_str(), marks)))
            .collect();
        let bitmaps = now.iter().map(|it| (it.name.as_str(), it.seen(copies.get(it.name.as_str()).copied())));
        let size = self.descriptions[disk].size;
        let seen = Seen {
            size,
            chain: &planned.files.chain,
            evidence: &self.evidence[disk],
            unusable: None,
            bitmaps: bitmaps.collect(),
        };
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
            Err(why_not) => note_no_checkpoint(&mut changed, wish, &why_not),
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

    fn note_scratch(&self) {
        let bytes = self.scratch.iter().map(|it| it.bytes()).sum();
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
        self.views[disk].read(extent).await.map_err(|error| self.failed(disk, error))
    }

    /// The views must still stand where they were put, and the machine must still run here: after a migration another
    /// QEMU writes to the disks, and no copier knows of that.
    async fn check(&self) -> Result<()> {
        self.note_scratch();
        let mut placed = self.placed.lock().await;
        let Placed { monitor, disks, path, held, .. } = &mut *placed;
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

    fn keeps_for_reader(&self) -> bool {
        true
    }

    /// QEMU stops keeping what the guest overwrites there, and frees what was kept.
    async fn release(&self, disk: usize, extent: Extent) {
        self.note_scratch();
        if let Err(error) = self.views[disk].trim(extent).await {
            // Whatever it is, the next read tells it.
            tracing::debug!(disk = %self.descriptions[disk].name, %error, "scratch space is kept longer than needed");
        }
    }

    fn scratch_bytes_max(&self) -> u64 {
        self.scratch_bytes_max.load(Relaxed)
    }

    async fn finish(self, outcome: Outcome) -> Result<()> {
        // Connections first, or the exports wait for them.
        drop(self.views);
        let judged = self.judged.into_inner().expect("no panic while held");
        let placed = self.placed.into_inner();
        match outcome {
            Outcome::Committed => placed.commit(&judged).await,
            Outcome::Abandoned => placed.abandon().await,
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
