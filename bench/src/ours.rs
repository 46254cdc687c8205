//! Our own jobs, one by one, with what each of them must do at least.

use crate::disk::{Day, Disk, IMAGE, text};
use crate::limit::{Fixed, Work};
use crate::measure::{Durable, Ran, bytes_below, measured, ran};
use crate::node::{Node, OF_NODE};
use crate::report::{BITMAP, COPY, Done, FAST, QCOW2, QUIC, RAW, Step, TRUSTING};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

/// One program's jobs on one disk, in the order in which they are called.
pub struct Ours {
    pub disk: Disk,
    today: Day,
    /// None before it is started.
    node: Option<Node>,
    /// What the backups brought into each repository.
    kept: BTreeMap<&'static str, Kept>,
    /// Bytes that the first backup added to its repository.
    full_stored: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Kept {
    plain: u64,
    stored: u64,
}

struct Backup<'a> {
    step: Step,
    tool: &'static str,
    repository: &'static str,
    machine: &'a str,
    options: &'a [&'a str],
    image: &'a str,
    fixed: Fixed,
}

impl Ours {
    /// Makes repositories and the qcow2 image, and presents the first day.
    pub fn new(disk: Disk) -> Result<Self> {
        disk.make_qcow2()?;
        for repository in [OF_RAW, OF_QCOW2] {
            ran(disk.places.windlass(&["init"], repository))?;
        }
        disk.present(Day::First)?;
        Ok(Self { disk, today: Day::First, node: None, kept: BTreeMap::new(), full_stored: 0 })
    }

    /// Starts a storage node, for the jobs that go through it.
    pub fn start_node(&mut self) -> Result<()> {
        self.node = Some(Node::start(&self.disk.places)?);
        Ok(())
    }

    /// Lets the disk become that of the second day.
    pub fn second_day(&mut self) -> Result<()> {
        self.disk.change_qcow2()?;
        self.today = Day::Second;
        self.disk.present(self.today)
    }

    pub fn full(&mut self) -> Result<Done> {
        let done = self.backup_raw(Step::Full, RAW, OF_RAW, &[])?;
        self.full_stored = self.kept(OF_RAW).stored;
        Ok(done)
    }

    /// A full backup with `--no-extra-verify`, into a repository of its own, which is removed again.
    pub fn full_fast(&mut self) -> Result<Done> {
        ran(self.disk.places.windlass(&["init"], OF_FAST))?;
        let done = self.backup_raw(Step::Full, FAST, OF_FAST, &[TRUST_CLIENT])?;
        fs::remove_dir_all(self.disk.places.path(OF_FAST))?;
        Ok(done)
    }

    pub fn full_qcow2(&mut self) -> Result<Done> {
        self.backup_qcow2(Step::Full, QCOW2, &[], FULL_QCOW2).map(|(done, _)| done)
    }

    /// Backs up the second day, with the bitmap in the image that tells what changed.
    pub fn increment(&mut self) -> Result<Done> {
        let (done, summary) = self.backup_qcow2(Step::Day2, BITMAP, &[], INCREMENT)?;
        is_by_bitmap(&summary)?;
        Ok(done)
    }

    /// Backs up the second day without a bitmap, so that the whole disk is read.
    pub fn day2(&mut self) -> Result<Done> {
        self.backup_raw(Step::Day2, RAW, OF_RAW, &[])
    }

    pub fn unchanged(&mut self) -> Result<Done> {
        self.backup_raw(Step::Rescan, RAW, OF_RAW, &[])
    }

    pub fn unchanged_qcow2(&mut self) -> Result<Done> {
        let scan = ["--change-tracking", "fingerprint"];
        self.backup_qcow2(Step::Rescan, QCOW2, &scan, UNCHANGED_QCOW2).map(|(done, _)| done)
    }

    pub fn restore(&mut self) -> Result<Done> {
        let restore = ["restore", "web@latest", "--to", RESTORED];
        let command = self.disk.places.windlass(&restore, OF_RAW);
        let done = self.restored(RAW, OF_RAW, &command)?;
        // Not timed: what the bitmap brought must be the same disk.
        ran(self.disk.places.windlass(&restore, OF_QCOW2))?;
        self.disk.compare(RESTORED, self.today)?;
        Ok(done)
    }

    pub fn verify(&mut self) -> Result<Done> {
        let command = self.disk.places.windlass(&["verify", "--decode"], OF_RAW);
        let (made, summary) = self.run(&command)?;
        let work = Work {
            read: number(&summary, "bytes_read"),
            decoded: self.kept(OF_RAW).plain,
            fixed: READING,
            ..Work::default()
        };
        self.done(Step::Verify, RAW, made, work, Some(OF_RAW))
    }

    pub fn copy(&mut self) -> Result<Done> {
        self.copied(COPY, None)
    }

    pub fn copy_trusting(&mut self) -> Result<Done> {
        self.copied(TRUSTING, Some("--trust-source"))
    }

    /// Backs up another machine with the same disk. Gives also how many bytes it added, as a share of those that the
    /// first backup added.
    pub fn second_machine(&mut self) -> Result<(Done, f64)> {
        let image = self.disk.places.path("in/second.raw");
        fs::hard_link(self.disk.path(Day::First), &image)?;
        self.today = Day::First;
        let before = self.kept(OF_RAW).stored;
        let (done, _) = self.backup(&Backup {
            step: Step::Second,
            tool: RAW,
            repository: OF_RAW,
            machine: "second",
            options: &[],
            image: &text(image)?,
            fixed: BACKUP,
        })?;
        Ok((done, (self.kept(OF_RAW).stored - before) as f64 / self.full_stored as f64))
    }

    /// Both ends on the same cores, every chunk checked on arrival; CPU and memory are the client's alone.
    pub fn full_node(&mut self) -> Result<Done> {
        let done = self.backup_raw(Step::Full, QUIC, OF_NODE, &[])?;
        // Not timed: the same disk once more, so that its bitmap is based on a point there.
        self.command(&["backup", "--machine", "image", IMAGE], OF_NODE).and_then(ran)?;
        Ok(done)
    }

    pub fn increment_node(&mut self) -> Result<Done> {
        let backup = Backup {
            step: Step::Day2,
            tool: QUIC,
            repository: OF_NODE,
            machine: "image",
            options: &[],
            image: IMAGE,
            fixed: INCREMENT,
        };
        let (done, summary) = self.backup(&backup)?;
        is_by_bitmap(&summary)?;
        Ok(done)
    }

    pub fn restore_node(&mut self) -> Result<Done> {
        let command = self.command(&["restore", "image@latest", "--to", RESTORED], OF_NODE)?;
        self.restored(QUIC, OF_NODE, &command)
    }

    fn backup_raw(
        &mut self,
        step: Step,
        tool: &'static str,
        repository: &'static str,
        options: &[&str],
    ) -> Result<Done> {
        let image = text(self.disk.places.image())?;
        let backup = Backup { step, tool, repository, machine: "web", options, image: &image, fixed: BACKUP };
        self.backup(&backup).map(|(done, _)| done)
    }

    fn backup_qcow2(
        &mut self,
        step: Step,
        tool: &'static str,
        options: &[&str],
        fixed: Fixed,
    ) -> Result<(Done, Value)> {
        self.backup(&Backup { step, tool, repository: OF_QCOW2, machine: "web", options, image: IMAGE, fixed })
    }

    fn backup(&mut self, backup: &Backup<'_>) -> Result<(Done, Value)> {
        let mut arguments = vec!["backup", "--machine", backup.machine];
        arguments.extend(backup.options);
        arguments.push(backup.image);
        let command = self.command(&arguments, backup.repository)?;
        let (made, summary) = self.run(&command)?;
        let [new, stored] = ["bytes_new", "bytes_stored"].map(|name| number(&summary, name));
        let read = number(&summary["disks"][0], "bytes_read");
        let kept = self.kept.entry(backup.repository).or_default();
        *kept = Kept { plain: kept.plain + new, stored: kept.stored + stored };
        let work = Work {
            read,
            // Zeros are only looked at, and what is new is fingerprinted as it is compressed.
            fingerprinted: read.min(self.disk.data_bytes(self.today)).saturating_sub(new),
            compressed: new,
            decoded: if backup.options.contains(&TRUST_CLIENT) { 0 } else { new },
            written: stored,
            fixed: backup.fixed,
        };
        let done = self.done(backup.step, backup.tool, made, work, Some(backup.repository))?;
        Ok((done, summary))
    }

    /// Runs a restore of the present day and compares what it made.
    fn restored(&self, tool: &'static str, repository: &'static str, command: &Command) -> Result<Done> {
        let (made, summary) = self.run(command)?;
        self.disk.compare(RESTORED, self.today)?;
        let (kept, written) = (self.kept(repository), number(&summary, "bytes_written"));
        // What is on the disk twice has to be decoded only once.
        let decoded = written.min(kept.plain);
        let packs = summary["bytes_from"].as_object().into_iter().flatten();
        let read = packs.filter_map(|(_, bytes)| bytes.as_u64()).sum();
        let work = Work { read, decoded, written, fixed: RESTORE, ..Work::default() };
        self.done(Step::Restore, tool, made, work, None)
    }

    fn copied(&self, tool: &'static str, trust: Option<&str>) -> Result<Done> {
        let places = &self.disk.places;
        let (like, copied) = (text(places.path(OF_RAW))?, text(places.path(COPIED))?);
        ran(places.windlass(&["init", "--like", &like], COPIED))?;
        let mut arguments = vec!["copy", "web@latest", "--to", &copied];
        arguments.extend(trust);
        let (made, summary) = self.run(&places.windlass(&arguments, OF_RAW))?;
        let moved = number(&summary, "bytes_moved");
        let decoded = if trust.is_some() { 0 } else { self.kept(OF_RAW).plain_of(moved) };
        let work = Work { read: moved, decoded, written: moved, fixed: COPIES, ..Work::default() };
        let done = self.done(Step::Copy, tool, made, work, Some(COPIED))?;
        ran(places.windlass(&["restore", "web@latest", "--to", RESTORED], COPIED))?;
        self.disk.compare(RESTORED, self.today)?;
        fs::remove_dir_all(copied)?;
        Ok(done)
    }

    fn command(&self, arguments: &[&str], repository: &'static str) -> Result<Command> {
        let places = &self.disk.places;
        if repository == OF_NODE {
            return Ok(self.node.as_ref().context("no node runs")?.windlass(places, arguments));
        }
        Ok(places.windlass(arguments, repository))
    }

    /// A run and the last line that it printed.
    fn run(&self, command: &Command) -> Result<(Ran, Value)> {
        let made = measured(command, &self.disk.places.work, Durable::ByItself)?;
        let last = made.stdout.lines().last().context("nothing was printed")?;
        let summary = serde_json::from_str(last)?;
        Ok((made, summary))
    }

    fn done(
        &self,
        step: Step,
        tool: &'static str,
        made: Ran,
        work: Work,
        repository: Option<&'static str>,
    ) -> Result<Done> {
        let stored = repository.map(|name| stored(&self.disk.places.path(name))).transpose()?;
        Ok(Done { step, tool, sample: made.sample, durable: Durable::ByItself, stored, work: Some(work) })
    }

    fn kept(&self, repository: &str) -> Kept {
        self.kept.get(repository).copied().unwrap_or_default()
    }
}

impl Kept {
    /// Plain bytes of so many stored ones, as they are compressed on average.
    fn plain_of(self, stored: u64) -> u64 {
        (stored as f64 * self.plain as f64 / self.stored.max(1) as f64) as u64
    }
}

/// A number of a summary; none where the program is too old to tell.
fn number(summary: &Value, name: &str) -> u64 {
    summary[name].as_u64().unwrap_or(0)
}

fn is_by_bitmap(summary: &Value) -> Result<()> {
    let how = &summary["disks"][0]["change_tracking"];
    ensure!(how == "bitmap", "the increment was made by {how}");
    Ok(())
}

/// Bytes of a repository without its reserve, because the reserve depends on the size of the file system and not on the
/// stored data.
fn stored(repository: &Path) -> Result<u64> {
    let reserve = repository.join("reserve");
    let reserved = if reserve.is_dir() { bytes_below(&reserve)? } else { 0 };
    Ok(bytes_below(repository)? - reserved)
}

const OF_RAW: &str = "windlass-raw";
const OF_FAST: &str = "windlass-fast";
const OF_QCOW2: &str = "windlass-qcow2";
const COPIED: &str = "windlass-copy";
const RESTORED: &str = "restored.raw";
const TRUST_CLIENT: &str = "--no-extra-verify";

// What a job waits for in a row, as strace shows it. What goes on beside the data is not in it: syncs of packs before the
// last one, those of the index, and tools that run at once.

/// The begin of the session, the last pack with the manifest, the commit.
const BACKUP: Fixed = Fixed { tools: 0, bitmaps: 0, syncs: 3 };
/// `qemu-img info`, `create`, `qemu-io`, `qemu-nbd`, and a second look under its lock; a bitmap in the small image that
/// the witness is made from, the witness, the next bitmap and its twin.
const FULL_QCOW2: Fixed = Fixed { tools: 5, bitmaps: 4, ..BACKUP };
/// `qemu-img info`, `qemu-nbd`, and a second look under its lock; the next bitmap and its twin, and the two before them
/// go.
const INCREMENT: Fixed = Fixed { tools: 3, bitmaps: 4, ..BACKUP };
/// The same without bitmaps.
const UNCHANGED_QCOW2: Fixed = Fixed { tools: 3, ..BACKUP };
/// Begin and end of the session.
const READING: Fixed = Fixed { tools: 0, bitmaps: 0, syncs: 2 };
/// The same and the restored file.
const RESTORE: Fixed = Fixed { syncs: READING.syncs + 1, ..READING };
/// A session in both repositories.
const COPIES: Fixed = Fixed { syncs: READING.syncs + BACKUP.syncs, ..READING };
