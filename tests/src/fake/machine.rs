//! A machine with disks in memory, and snapshots of it as sources.

use super::Image;
use bytes::Bytes;
use chunker::{Extent, ExtentSet};
use mover::{
    ChangeTracking, Changed, CheckpointId, DiskDescription, Error, Name, Outcome, ParentDisk, Result, Source,
    TrackingWish, World,
};
use std::sync::{Arc, Mutex, MutexGuard};

/// A machine that runs on while it is backed up. Its tracking is true unless told otherwise: each checkpoint knows every
/// byte written or discarded since.
#[derive(Clone)]
pub struct Machine {
    world: World,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    disks: Vec<Disk>,
    outcomes: Vec<Outcome>,
    generation: u64,
}

#[derive(Clone)]
struct Disk {
    name: Name,
    format: String,
    image: Image,
    allocated: ExtentSet,
    /// Oldest first: what changed since each.
    checkpoints: Vec<(CheckpointId, ExtentSet)>,
}

/// What goes wrong with a snapshot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Trouble {
    /// Reads that go well before one fails.
    pub fail_read_after: Option<u64>,
    /// Reads that go well before the machine is gone for good.
    pub vanish_after: Option<u64>,
    /// Reads see the machine as it is now, not as it was; a check finds out.
    pub live: bool,
    /// The last check fails.
    pub fail_check: bool,
    /// The end of the session fails.
    pub fail_finish: bool,
}

/// The disks of a machine at one moment.
pub struct Snapshot {
    machine: Machine,
    descriptions: Vec<DiskDescription>,
    /// As they were; the last checkpoint of each is the one begun with this snapshot.
    disks: Vec<Disk>,
    moment: mover::Snapshot,
    trouble: Trouble,
    generation: u64,
    reads: Mutex<Reads>,
}

#[derive(Default)]
struct Reads {
    count: u64,
    seen: Vec<ExtentSet>,
}

impl Machine {
    /// A machine with disks of these sizes, called `sda`, `sdb` and so on.
    pub fn new(world: &World, sizes: &[u64]) -> Self {
        let machine = Self { world: world.clone(), state: Arc::default() };
        sizes.iter().for_each(|size| machine.add_disk(*size));
        machine
    }

    /// Adds a disk of zeros.
    pub fn add_disk(&self, size: u64) {
        let mut state = self.state();
        let letter = char::from(b'a' + u8::try_from(state.disks.len()).expect("few disks"));
        let name = format!("sd{letter}").parse().expect("a name");
        let (allocated, checkpoints, format) = (ExtentSet::new(), Vec::new(), "raw".to_owned());
        state.disks.push(Disk { name, format, image: Image::new(size), allocated, checkpoints });
    }

    /// The same disks in another machine, without their history.
    pub fn cloned(&self) -> Self {
        let mut disks = self.state().disks.clone();
        disks.iter_mut().for_each(|disk| disk.checkpoints.clear());
        let state = State { disks, ..State::default() };
        Self { world: self.world.clone(), state: Arc::new(Mutex::new(state)) }
    }

    /// Writes into disk number `disk`.
    pub fn write(&self, disk: usize, offset: u64, bytes: &[u8]) {
        let extent = Extent::new(offset, bytes.len() as u64);
        self.write_untracked(disk, offset, bytes);
        self.dirty(disk, extent);
    }

    /// Discards: reads as zeros from now on, by allocation.
    pub fn discard(&self, disk: usize, extent: Extent) {
        self.discard_untracked(disk, extent);
        self.dirty(disk, extent);
    }

    /// A write that the tracking does not see.
    pub fn write_untracked(&self, disk: usize, offset: u64, bytes: &[u8]) {
        let mut state = self.state();
        state.generation += 1;
        state.disks[disk].image.write(offset, bytes);
        state.disks[disk].allocated.insert(Extent::new(offset, bytes.len() as u64));
    }

    /// A discard that the tracking does not see.
    pub fn discard_untracked(&self, disk: usize, extent: Extent) {
        let mut state = self.state();
        state.generation += 1;
        let disk = &mut state.disks[disk];
        disk.image.zero(extent);
        disk.allocated = disk.allocated.subtract(&[extent].into_iter().collect());
    }

    /// Changes a disk's size.
    pub fn resize(&self, disk: usize, size: u64) {
        let mut state = self.state();
        state.generation += 1;
        let disk = &mut state.disks[disk];
        disk.image.resize(size);
        disk.allocated = disk.allocated.intersect(&ExtentSet::whole(size));
        for (_, dirty) in &mut disk.checkpoints {
            *dirty = dirty.intersect(&ExtentSet::whole(size));
        }
    }

    /// Says that a disk's file is to be read in this format.
    pub fn call_format(&self, disk: usize, format: &str) {
        format.clone_into(&mut self.state().disks[disk].format);
    }

    /// Loses all checkpoints, as a killed hypervisor does.
    pub fn lose_checkpoints(&self) {
        self.state().disks.iter_mut().for_each(|disk| disk.checkpoints.clear());
    }

    /// The disks as they are now.
    pub fn images(&self) -> Vec<Image> {
        self.state().disks.iter().map(|disk| disk.image.clone()).collect()
    }

    /// How the snapshot sessions ended, oldest first.
    pub fn outcomes(&self) -> Vec<Outcome> {
        self.state().outcomes.clone()
    }

    /// A snapshot to be backed up.
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot_with(Trouble::default())
    }

    /// A snapshot with which something goes wrong.
    pub fn snapshot_with(&self, trouble: Trouble) -> Snapshot {
        let mut state = self.state();
        for disk in &mut state.disks {
            disk.checkpoints.push((CheckpointId::random(&self.world), ExtentSet::new()));
        }
        let disks = state.disks.clone();
        let (descriptions, generation) = (disks.iter().map(describe).collect(), state.generation);
        let reads = Mutex::new(Reads { count: 0, seen: vec![ExtentSet::new(); disks.len()] });
        let moment = mover::Snapshot::at(self.world.now());
        Snapshot { machine: self.clone(), descriptions, disks, moment, trouble, generation, reads }
    }

    fn dirty(&self, disk: usize, extent: Extent) {
        self.state().disks[disk].checkpoints.iter_mut().for_each(|(_, dirty)| dirty.insert(extent));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("not poisoned")
    }
}

impl Snapshot {
    /// Bytes read so far.
    pub fn bytes_read(&self) -> u64 {
        self.reads.lock().expect("not poisoned").seen.iter().map(ExtentSet::bytes).sum()
    }

    fn gone(&self) -> Result<()> {
        let count = self.reads.lock().expect("not poisoned").count;
        match self.trouble.vanish_after {
            Some(after) if count > after => Err(Error::source("the machine is gone")),
            _ => Ok(()),
        }
    }
}

impl Source for Snapshot {
    fn disks(&self) -> &[DiskDescription] {
        &self.descriptions
    }

    fn snapshot(&self) -> &mover::Snapshot {
        &self.moment
    }

    async fn changed(&self, disk: usize, parent: Option<ParentDisk<'_>>, wish: TrackingWish) -> Result<Changed> {
        let disk = &self.disks[disk];
        let (id, earlier) = disk.checkpoints.split_last().map(|((id, _), earlier)| (*id, earlier)).expect("just begun");
        let zeroes = disk.allocated.complement(disk.image.size());
        let checkpoint = Some((id, GRANULARITY_BYTES));
        let mut made = Changed {
            lie: None,
            mode: ChangeTracking::Full,
            reason: "no parent".into(),
            dirty: ExtentSet::new(),
            zeroes,
            checkpoint,
        };
        let base = parent.and_then(|it| earlier.iter().find(|(id, _)| Some(*id) == it.record.tracking.checkpoint));
        match (wish, parent, base) {
            (TrackingWish::Auto | TrackingWish::Bitmap, Some(_), Some((_, dirty))) => {
                made.mode = ChangeTracking::Bitmap;
                made.reason = "base proven".into();
                made.dirty = dirty.align(GRANULARITY_BYTES.into(), disk.image.size());
            }
            (TrackingWish::Bitmap, _, _) => return Err(Error::tracking("no checkpoint of the parent")),
            (TrackingWish::Full, _, _) | (_, None, _) => {}
            (TrackingWish::Auto | TrackingWish::Fingerprint, Some(_), _) => {
                made.mode = ChangeTracking::Fingerprint;
                made.reason = "no checkpoint of the parent".into();
            }
        }
        Ok(made)
    }

    async fn read(&self, disk: usize, extent: Extent) -> Result<Bytes> {
        tokio::task::yield_now().await;
        let count = {
            let mut reads = self.reads.lock().expect("not poisoned");
            reads.count += 1;
            reads.seen[disk].insert(extent);
            reads.count
        };
        self.gone()?;
        if self.trouble.fail_read_after.is_some_and(|after| count == after + 1) {
            return Err(Error::source(format!("bad sector at {}", extent.offset)));
        }
        Ok(match self.trouble.live {
            true => self.machine.state().disks[disk].image.read(extent),
            false => self.disks[disk].image.read(extent),
        })
    }

    async fn check(&self) -> Result<()> {
        self.gone()?;
        let moved = self.trouble.live && self.machine.state().generation != self.generation;
        if moved || self.trouble.fail_check {
            return Err(Error::source("the machine changed while it was read"));
        }
        Ok(())
    }

    async fn finish(self, outcome: Outcome) -> Result<()> {
        let mut state = self.machine.state();
        state.outcomes.push(outcome);
        let new: Vec<CheckpointId> =
            self.disks.iter().filter_map(|disk| disk.checkpoints.last().map(|(id, _)| *id)).collect();
        for disk in &mut state.disks {
            let Some(at) = disk.checkpoints.iter().position(|(id, _)| new.contains(id)) else { continue };
            match outcome {
                Outcome::Committed => drop(disk.checkpoints.drain(..at)),
                Outcome::Abandoned => drop(disk.checkpoints.remove(at)),
            }
        }
        if self.trouble.fail_finish {
            return Err(Error::source("the snapshot could not be removed"));
        }
        Ok(())
    }
}

fn describe(disk: &Disk) -> DiskDescription {
    DiskDescription {
        name: disk.name.clone(),
        size: disk.image.size(),
        logical_sector_bytes: 512,
        physical_sector_bytes: 4096,
        discard_bytes: 4096,
        boot_order: 0,
        bus: String::new(),
        serial: String::new(),
        format: disk.format.clone(),
        format_options: String::new(),
        chain: Vec::new(),
        warning: None,
    }
}

/// Granularity of the tracking.
const GRANULARITY_BYTES: u32 = 4096;
