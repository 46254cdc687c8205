//! The bitmaps of a disk of a running machine: what earlier runs left, what proves the changes, what records from now
//! on.
//!
//! The bitmap that proves the changes goes on recording. What it marks at the moment of the snapshot is copied into a
//! bitmap of the session, in the same transaction that begins the next one. So to abandon a backup is to remove what it
//! began, as with an offline image, and a bitmap of another repository can be read without being touched.

use super::inventory::{LiveDisk, Node, NodeBitmap};
use super::names::{Part, SessionNumber};
use crate::qemu::{TrackingName, WitnessName};
use crate::qmp::{Monitor, QmpError};
use crate::source::{Sorted, sorted};
use chunker::GRID_BYTES;
use mover::{CheckpointId, Past, RepositoryId, Result, TrackingWish, World};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// What is done with the bitmaps of one disk.
#[derive(Debug)]
pub struct Bitmaps {
    node: String,
    persistent: bool,
    session: SessionNumber,
    /// The bitmaps whose marks are copied at the snapshot, by name. Their place here numbers the copies.
    pub copied: Vec<String>,
    /// The bitmap that may prove the changes.
    pub candidate: Option<TrackingName>,
    /// The bitmap that records from now on, or why there is none.
    pub next: Result<TrackingName, String>,
    /// The repository's witness on this disk.
    pub witness: Option<WitnessName>,
    /// True when the witness was made by this session.
    new_witness: bool,
    /// The repository's bitmaps that a committed point makes useless.
    superseded: Vec<TrackingName>,
    /// True when the repository had no bitmap here.
    first: bool,
}

/// What the bitmaps are planned for.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// The repository of the backup.
    pub repository: RepositoryId,
    /// How changes may be found.
    pub wish: TrackingWish,
    /// The session.
    pub session: SessionNumber,
    /// The monitor's socket, for messages.
    pub monitor: &'a Path,
    /// Clock and randomness.
    pub world: &'a World,
}

impl Bitmaps {
    /// Settles what earlier runs left on the disk, and plans what to begin. `checkpoint` is that of the parent, and
    /// `witness` the one it recorded.
    ///
    /// # Errors
    /// Those of `past`, and `Source` for QEMU's.
    pub async fn plan(
        monitor: &mut Monitor,
        disk: &LiveDisk,
        (checkpoint, witness): (Option<CheckpointId>, Option<WitnessName>),
        plan: &Plan<'_>,
        past: &impl Past,
    ) -> Result<Self> {
        let is_own = |name: &TrackingName| name.is_of(plan.repository);
        let failed = |error: QmpError| error.about(plan.monitor);
        let mut unusable = untrackable(disk);
        let there = disk.bitmaps.iter().map(|it| (it.name.as_str(), it.inconsistent));
        let Sorted { own, gone } = sorted(there, plan.repository, past).await?;
        for name in &gone {
            tracing::info!(disk = %disk.name, bitmap = name, "removing a bitmap that an earlier run left");
            if let Err(error) = remove(monitor, &disk.node, name).await {
                if !error.is_refusal() {
                    return Err(failed(error));
                }
                unusable = unusable.or(Some(format!("bitmap {name} of an earlier run cannot be removed: {error}")));
            }
        }
        let left = || disk.bitmaps.iter().filter(|bitmap| !gone.contains(&bitmap.name));
        let named = left().filter_map(|bitmap| bitmap.name.parse::<TrackingName>().ok());
        // Our own first; a promoted copy has another id.
        let candidate = named.filter(|it| Some(it.checkpoint) == checkpoint).max_by_key(is_own);
        let candidate = candidate.filter(|_| plan.wish.asks_for_bitmap());
        let mut made = Self {
            node: disk.node.clone(),
            persistent: disk.image.layer.keeps_bitmaps() && disk.driver == "qcow2",
            session: plan.session,
            copied: Vec::new(),
            candidate,
            next: Err(String::new()),
            witness: None,
            new_witness: false,
            superseded: if let [only] = own[..] { vec![only] } else { Vec::new() },
            first: own.is_empty(),
        };
        if let Some(name) = &made.candidate {
            made.copied.extend([name.to_string(), name.twin().to_string()]);
            made.copied.extend(witness.map(|it| it.to_string()));
            made.copied.retain(|name| left().any(|bitmap| bitmap.name == *name && !bitmap.inconsistent));
        }
        made.next = match unusable {
            _ if plan.wish == TrackingWish::Fingerprint => Err("no bitmap was wanted".to_owned()),
            Some(why_not) => Err(why_not),
            None => {
                let base = if let [only] = own[..] { Some(only.checkpoint) } else { None };
                Ok(TrackingName::new(plan.repository, CheckpointId::random(plan.world), base))
            }
        };
        if made.next.is_ok() {
            made.find_witness(monitor, disk, plan).await.map_err(failed)?;
        }
        let own = made.witness.map(|it| it.to_string());
        made.copied.extend(own.filter(|name| !made.copied.contains(name)));
        Ok(made)
    }

    /// The repository's witness, where one fits; those that do not are removed.
    async fn find_witness(&mut self, monitor: &mut Monitor, disk: &LiveDisk, plan: &Plan<'_>) -> Result<(), QmpError> {
        let size = disk.image.layer.virtual_size;
        for bitmap in &disk.bitmaps {
            let Ok(name) = bitmap.name.parse::<WitnessName>() else { continue };
            if !name.is_of(plan.repository) {
                continue;
            }
            if name.size == size && bitmap.seen(None).is_still() && self.witness.is_none() {
                self.witness = Some(name);
            } else {
                remove(monitor, &disk.node, &bitmap.name).await?;
            }
        }
        if self.witness.is_none() {
            self.new_witness = true;
            self.witness = Some(WitnessName::random(plan.repository, size, plan.world));
        }
        Ok(())
    }

    /// The witness that is to be made, where none fits.
    pub fn witness_to_make(&self) -> Option<WitnessName> {
        self.witness.filter(|_| self.new_witness)
    }

    /// Makes the witness out of the mark in bitmap `mark` of node `marker`.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub async fn make_witness(&self, monitor: &mut Monitor, marker: &str, mark: &str) -> Result<(), QmpError> {
        let Some(name) = self.witness_to_make() else { return Ok(()) };
        let name = name.to_string();
        let actions =
            [self.add(&name, self.persistent, Recording::No), self.merge(&name, json!({"node": marker, "name": mark}))];
        monitor.tell("transaction", json!({"actions": actions})).await
    }

    /// What happens to the bitmaps of the disk at the moment of the snapshot: parts of one transaction over all disks.
    pub fn actions(&self) -> Vec<Value> {
        let mut actions = Vec::new();
        for (at, name) in self.copied.iter().enumerate() {
            let copy = self.copy(at);
            actions.push(self.add(&copy, false, Recording::No));
            actions.push(self.merge(&copy, json!(name)));
        }
        if let (Ok(next), Some(witness)) = (&self.next, &self.witness) {
            for name in [next.to_string(), next.twin().to_string()] {
                actions.push(self.add(&name, self.persistent, Recording::Yes));
                // Each begins with the mark of the witness.
                actions.push(self.merge(&name, json!(witness.to_string())));
            }
        }
        actions
    }

    /// The bitmaps to export with the disk, as `block-export-add` names them.
    pub fn exported(&self) -> Vec<Value> {
        (0..self.copied.len()).map(|at| json!({"node": self.node, "name": self.copy(at)})).collect()
    }

    /// Name of the copy of the bitmap at `at` in [`Self::copied`].
    pub fn copy(&self, at: usize) -> String {
        self.session.part(Part::Marks, at)
    }

    /// Removes what a committed point makes useless: the bitmap that the new one is based on, and `proven`, the
    /// repository's bitmap that proved the changes. With a `spoilt` witness, which would say for ever that the image was
    /// resized, the witness goes too, and what was begun under it.
    ///
    /// # Errors
    /// The first failure; the next run settles what is left.
    pub async fn commit(
        &self,
        monitor: &mut Monitor,
        proven: Option<&TrackingName>,
        spoilt: bool,
    ) -> Result<(), QmpError> {
        let Ok(next) = &self.next else {
            // Without a next one the old one goes on recording.
            return Ok(());
        };
        let gone = self.superseded.iter().chain(proven).chain(spoilt.then_some(next));
        let names = gone.flat_map(|name| [name.to_string(), name.twin().to_string()]);
        let witness = self.witness.filter(|_| spoilt).map(|it| it.to_string());
        self.remove_all(monitor, names.chain(witness).collect()).await
    }

    /// Removes what this session began.
    ///
    /// # Errors
    /// The first failure; the next run settles what is left.
    pub async fn abandon(&self, monitor: &mut Monitor) -> Result<(), QmpError> {
        let next = self.next.iter().flat_map(|name| [name.to_string(), name.twin().to_string()]);
        let witness = self.witness_to_make().filter(|_| self.first).map(|it| it.to_string());
        self.remove_all(monitor, next.chain(witness).collect()).await
    }

    async fn remove_all(&self, monitor: &mut Monitor, names: BTreeSet<String>) -> Result<(), QmpError> {
        let there = bitmaps_of(monitor, &self.node).await?;
        let mut failed = None;
        for name in names.iter().filter(|name| there.iter().any(|bitmap| bitmap.name == **name)) {
            failed = failed.or(remove(monitor, &self.node, name).await.err());
        }
        failed.map_or(Ok(()), Err)
    }

    fn add(&self, name: &str, persistent: bool, recording: Recording) -> Value {
        json!({"type": "block-dirty-bitmap-add", "data": {
            "node": self.node, "name": name, "persistent": persistent, "granularity": GRID_BYTES,
            "disabled": recording == Recording::No,
        }})
    }

    fn merge(&self, into: &str, from: Value) -> Value {
        json!({"type": "block-dirty-bitmap-merge", "data": {"node": self.node, "target": into, "bitmaps": [from]}})
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Recording {
    Yes,
    No,
}

/// The bitmaps that a node has now.
///
/// # Errors
/// See [`QmpError`].
pub async fn bitmaps_of(monitor: &mut Monitor, node: &str) -> Result<Vec<NodeBitmap>, QmpError> {
    let found = Node::all(monitor).await?.into_iter().find(|it| it.node_name.as_deref() == Some(node));
    Ok(found.map(|it| it.dirty_bitmaps).unwrap_or_default())
}

async fn remove(monitor: &mut Monitor, node: &str, name: &str) -> Result<(), QmpError> {
    monitor.tell("block-dirty-bitmap-remove", json!({"node": node, "name": name})).await
}

/// Why the changes of a disk cannot be tracked, where that is so.
fn untrackable(disk: &LiveDisk) -> Option<String> {
    if disk.driver != "qcow2" && disk.driver != "raw" {
        return Some(format!("its block node has the driver {}, and bitmaps are kept on qcow2 and raw", disk.driver));
    }
    disk.image.layer.data_file().map(|file| format!("its data is in {file}, which changes without the bitmap"))
}
