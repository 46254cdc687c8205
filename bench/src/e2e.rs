//! Whole jobs: Windlass, restic, borg and qemu-img on the same two days of one disk, step by step in turn.
//!
//! Everything is in the page cache, repositories lie on the same file system, and `sync` runs before each step. Every
//! restored image is compared with what was backed up.

use crate::measure::{Ran, bytes_below, compare, measured, ran};
use crate::node::{Node, OF_NODE};
use crate::report::{BITMAP, COPY, FAST, QCOW2, QUIC, RAW, Report, Step, TRUSTING};
use crate::tools::{BORG, Places, RESTIC};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What to measure.
#[derive(Debug)]
pub struct E2eOptions {
    /// The program `windlass`.
    pub windlass: PathBuf,
    /// Folder with `day1.raw`, `day2.raw` and `cbt-64k.json`.
    pub data: PathBuf,
    /// Folder for repositories and images, on the same file system as `data`; emptied before and removed after.
    pub work: PathBuf,
    /// Runs of everything.
    pub runs: u32,
}

/// Measures, prints one table and whether each threshold holds.
///
/// # Errors
/// When a tool fails, a restored image differs, or a threshold is missed.
pub fn e2e(options: &E2eOptions) -> Result<()> {
    for program in ["restic", "borg", "qemu-img", "qemu-io", "cmp", "/usr/bin/time"] {
        let found = Command::new(program).arg("--version").output();
        found.with_context(|| format!("{program} is needed: apt-get install restic borgbackup qemu-utils time"))?;
    }
    let data = fs::canonicalize(&options.data).with_context(|| options.data.display().to_string())?;
    let mut report = Report::default();
    for run in 0..options.runs {
        eprintln!("run {} of {}", run + 1, options.runs);
        let _ = fs::remove_dir_all(&options.work);
        fs::create_dir_all(options.work.join("in"))?;
        let places = Places { work: fs::canonicalize(&options.work)?, windlass: options.windlass.clone() };
        let made = Run { places, data: data.clone(), turn: run, report: &mut report, node: None }.all();
        let _ = fs::remove_dir_all(&options.work);
        made?;
    }
    report.print();
    ensure!(report.judge(), "not every threshold holds");
    Ok(())
}

struct Run<'a> {
    places: Places,
    data: PathBuf,
    /// Number of the run: who goes first changes with it.
    turn: u32,
    report: &'a mut Report,
    /// None before the first step that needs it.
    node: Option<Node>,
}

/// One tool's part of a step.
type Part<'a, 'b> = &'b dyn Fn(&mut Run<'a>) -> Result<()>;

impl<'a> Run<'a> {
    fn all(mut self) -> Result<()> {
        let p = &self.places;
        for name in ["day1.raw", "day2.raw"] {
            // Reading warms the page cache.
            std::io::copy(&mut File::open(self.data.join(name))?, &mut std::io::sink())?;
        }
        let raw = self.data.join("day1.raw");
        let raw = raw.to_str().context("a path that is not text")?;
        ran(p.qemu_img(&["convert", "-f", "raw", "-O", "qcow2", raw, "disk.qcow2"]))?;
        for repository in [OF_RAW, OF_FAST, OF_QCOW2] {
            ran(p.windlass(&["init"], repository))?;
        }
        ran(p.restic(&["init", "--repository-version", "2"]))?;
        ran(p.borg(&["init", "-e", "repokey-blake2"], &p.work))?;

        self.node = Some(Node::start(&self.places)?);
        self.present("day1.raw")?;
        self.in_turn(&[
            &Self::full_windlass,
            &Self::full_node,
            &Self::full_restic,
            &Self::full_borg,
            &Self::full_qemu,
        ])?;
        fs::remove_dir_all(self.places.path(OF_FAST))?;
        self.change_qcow2()?;
        self.present("day2.raw")?;
        self.in_turn(&[&Self::day2_windlass, &Self::day2_node, &Self::day2_restic, &Self::day2_borg])?;
        self.touch()?;
        self.in_turn(&[&Self::rescan_windlass, &Self::rescan_restic, &Self::rescan_borg])?;
        self.in_turn(&[
            &Self::restore_windlass,
            &Self::restore_node,
            &Self::restore_restic,
            &Self::restore_borg,
            &Self::restore_qemu,
        ])?;
        self.in_turn(&[&Self::verify_windlass, &Self::verify_restic, &Self::verify_borg])?;
        self.copy()?;
        self.second_machine()
    }

    /// Runs the parts, another one first in each run.
    fn in_turn(&mut self, parts: &[Part<'a, '_>]) -> Result<()> {
        let first = self.turn as usize % parts.len();
        parts[first..].iter().chain(&parts[..first]).try_for_each(|part| part(self))
    }

    fn windlass(&mut self, step: Step, tool: &'static str, arguments: &[&str], repository: &str) -> Result<Ran> {
        let command = self.places.windlass(arguments, repository);
        self.measure(step, tool, &command, Some(repository))
    }

    fn measure(&mut self, step: Step, tool: &'static str, command: &Command, repository: Option<&str>) -> Result<Ran> {
        let made = measured(command, &self.places.work)?;
        let stored = repository.map(|name| stored(&self.places.path(name))).transpose()?;
        self.report.add(step, tool, made.sample, stored);
        Ok(made)
    }

    fn full_windlass(&mut self) -> Result<()> {
        let image = text(self.places.image())?;
        let made = self.windlass(Step::Full, RAW, &["backup", "--machine", "web", &image], OF_RAW)?;
        fs::write(self.places.path("full.json"), made.stdout)?;
        let fast = ["backup", "--machine", "web", "--no-extra-verify", &image];
        self.windlass(Step::Full, FAST, &fast, OF_FAST)?;
        self.windlass(Step::Full, QCOW2, &["backup", "--machine", "web", "disk.qcow2"], OF_QCOW2)?;
        Ok(())
    }

    fn day2_windlass(&mut self) -> Result<()> {
        let made = self.windlass(Step::Day2, BITMAP, &["backup", "--machine", "web", "disk.qcow2"], OF_QCOW2)?;
        let how = &summary(&made.stdout)?["disks"][0]["change_tracking"];
        ensure!(how == "bitmap", "the increment was made by {how}");
        let image = text(self.places.image())?;
        self.windlass(Step::Day2, RAW, &["backup", "--machine", "web", &image], OF_RAW)?;
        Ok(())
    }

    fn rescan_windlass(&mut self) -> Result<()> {
        let image = text(self.places.image())?;
        self.windlass(Step::Rescan, RAW, &["backup", "--machine", "web", &image], OF_RAW)?;
        let scan = ["backup", "--machine", "web", "--change-tracking", "fingerprint", "disk.qcow2"];
        self.windlass(Step::Rescan, QCOW2, &scan, OF_QCOW2)?;
        Ok(())
    }

    fn restore_windlass(&mut self) -> Result<()> {
        self.windlass(Step::Restore, RAW, &["restore", "web@latest", "--to", "restored.raw"], OF_RAW)?;
        self.compare("restored.raw", "day2.raw")?;
        // Not timed: what the bitmap brought must be the same disk.
        ran(self.places.windlass(&["restore", "web@latest", "--to", "restored.raw"], OF_QCOW2))?;
        self.compare("restored.raw", "day2.raw")
    }

    fn verify_windlass(&mut self) -> Result<()> {
        self.windlass(Step::Verify, RAW, &["verify", "--decode"], OF_RAW).map(|_| ())
    }

    fn copy(&mut self) -> Result<()> {
        for (tool, trust) in [(COPY, None), (TRUSTING, Some("--trust-source"))] {
            let like = text(self.places.path(OF_RAW))?;
            ran(self.places.windlass(&["init", "--like", &like], COPIED))?;
            let copied = text(self.places.path(COPIED))?;
            let mut arguments = vec!["copy", "web@latest", "--to", &copied];
            arguments.extend(trust);
            let command = self.places.windlass(&arguments, OF_RAW);
            self.measure(Step::Copy, tool, &command, Some(COPIED))?;
            ran(self.places.windlass(&["restore", "web@latest", "--to", "restored.raw"], COPIED))?;
            self.compare("restored.raw", "day2.raw")?;
            fs::remove_dir_all(copied)?;
        }
        Ok(())
    }

    fn second_machine(&mut self) -> Result<()> {
        let image = self.places.path("in/second.raw");
        fs::hard_link(self.data.join("day1.raw"), &image)?;
        let made = self.windlass(Step::Second, RAW, &["backup", "--machine", "second", &text(image)?], OF_RAW)?;
        let stored =
            |printed: &str| summary(printed).map(|summary| summary["bytes_stored"].as_f64().unwrap_or(f64::NAN));
        let full = stored(&fs::read_to_string(self.places.path("full.json"))?)?;
        self.report.second_share = self.report.second_share.max(stored(&made.stdout)? / full);
        Ok(())
    }

    /// Both ends on the same cores, every chunk checked on arrival; CPU and memory are the client's alone.
    fn full_node(&mut self) -> Result<()> {
        let image = text(self.places.image())?;
        self.on_node(Step::Full, &["backup", "--machine", "web", &image])?;
        // Not timed: the same disk once more, so that its bitmap is based on a point there.
        self.node_command(&["backup", "--machine", "image", "disk.qcow2"]).and_then(ran).map(|_| ())
    }

    fn day2_node(&mut self) -> Result<()> {
        let made = self.on_node(Step::Day2, &["backup", "--machine", "image", "disk.qcow2"])?;
        let how = &summary(&made.stdout)?["disks"][0]["change_tracking"];
        ensure!(how == "bitmap", "the increment was made by {how}");
        Ok(())
    }

    fn restore_node(&mut self) -> Result<()> {
        self.on_node(Step::Restore, &["restore", "image@latest", "--to", "restored.raw"])?;
        self.compare("restored.raw", "day2.raw")
    }

    fn on_node(&mut self, step: Step, arguments: &[&str]) -> Result<Ran> {
        let command = self.node_command(arguments)?;
        self.measure(step, QUIC, &command, Some(OF_NODE))
    }

    fn node_command(&self, arguments: &[&str]) -> Result<Command> {
        Ok(self.node.as_ref().context("no node runs")?.windlass(&self.places, arguments))
    }

    fn full_restic(&mut self) -> Result<()> {
        self.restic_backup(Step::Full)
    }

    fn day2_restic(&mut self) -> Result<()> {
        self.restic_backup(Step::Day2)
    }

    fn rescan_restic(&mut self) -> Result<()> {
        self.restic_backup(Step::Rescan)
    }

    fn restic_backup(&mut self, step: Step) -> Result<()> {
        let command = self.places.restic(&["backup", &text(self.places.image())?]);
        self.measure(step, "restic", &command, Some(RESTIC)).map(|_| ())
    }

    fn restore_restic(&mut self) -> Result<()> {
        let command = self.places.restic(&["restore", "latest", "--target", "out"]);
        self.measure(Step::Restore, "restic", &command, None)?;
        let made = format!("out{}", text(self.places.image())?);
        self.compare(&made, "day2.raw")
    }

    fn verify_restic(&mut self) -> Result<()> {
        let command = self.places.restic(&["check", "--read-data"]);
        self.measure(Step::Verify, "restic", &command, None).map(|_| ())
    }

    fn full_borg(&mut self) -> Result<()> {
        self.borg_backup(Step::Full, "::day1")
    }

    fn day2_borg(&mut self) -> Result<()> {
        self.borg_backup(Step::Day2, "::day2")
    }

    fn rescan_borg(&mut self) -> Result<()> {
        self.borg_backup(Step::Rescan, "::again")
    }

    fn borg_backup(&mut self, step: Step, archive: &str) -> Result<()> {
        let image = text(self.places.image())?;
        let command = self.places.borg(&["create", "-C", "zstd,3", archive, &image], &self.places.work);
        self.measure(step, "borg", &command, Some(BORG)).map(|_| ())
    }

    fn restore_borg(&mut self) -> Result<()> {
        let out = self.places.path("out");
        fs::create_dir_all(&out)?;
        let command = self.places.borg(&["extract", "::day2"], &out);
        self.measure(Step::Restore, "borg", &command, None)?;
        let made = format!("out{}", text(self.places.image())?);
        self.compare(&made, "day2.raw")
    }

    fn verify_borg(&mut self) -> Result<()> {
        let command = self.places.borg(&["check", "--verify-data"], &self.places.work);
        self.measure(Step::Verify, "borg", &command, None).map(|_| ())
    }

    /// Compresses and does not deduplicate: what a plain conversion costs.
    fn full_qemu(&mut self) -> Result<()> {
        let image = text(self.places.image())?;
        let zstd = ["-c", "-o", "compression_type=zstd", "-m", "8", "-W"];
        let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2"];
        arguments.extend(zstd);
        arguments.extend([image.as_str(), "zstd.qcow2"]);
        let command = self.places.qemu_img(&arguments);
        let made = measured(&command, &self.places.work)?;
        let stored = fs::metadata(self.places.path("zstd.qcow2"))?.len();
        self.report.add(Step::Full, "qemu-img qcow2 zstd", made.sample, Some(stored));
        Ok(())
    }

    fn restore_qemu(&mut self) -> Result<()> {
        let arguments = ["convert", "-f", "qcow2", "-O", "raw", "-m", "8", "-W", "zstd.qcow2", "restored.raw"];
        let command = self.places.qemu_img(&arguments);
        self.measure(Step::Restore, "qemu-img qcow2 zstd", &command, None)?;
        self.compare("restored.raw", "day1.raw")
    }

    /// Puts a day's disk where every tool looks for it.
    fn present(&self, day: &str) -> Result<()> {
        let image = self.places.image();
        let _ = fs::remove_file(&image);
        Ok(fs::hard_link(self.data.join(day), image)?)
    }

    /// A new modification time, so that no tool may skip the file.
    fn touch(&self) -> Result<()> {
        let mut command = Command::new("touch");
        command.arg(self.places.image());
        ran(command).map(|_| ())
    }

    /// The machine at work: what changed from day 1 to day 2 is written into the qcow2 image by QEMU.
    fn change_qcow2(&self) -> Result<()> {
        let extents: Vec<(u64, u64)> = serde_json::from_slice(&fs::read(self.data.join("cbt-64k.json"))?)?;
        let day2 = File::open(self.data.join("day2.raw"))?;
        let pieces = self.places.path("pieces");
        fs::create_dir(&pieces)?;
        for (number, batch) in extents.chunks(256).enumerate() {
            let mut command = Command::new("qemu-io");
            command.args(["-f", "qcow2"]);
            for (at, (offset, length)) in batch.iter().enumerate() {
                let mut bytes = vec![0; usize::try_from(*length)?];
                day2.read_exact_at(&mut bytes, *offset)?;
                let piece = pieces.join(format!("{number}.{at}"));
                fs::write(&piece, bytes)?;
                command.arg("-c").arg(format!("write -q -s {} {offset} {length}", text(piece)?));
            }
            ran({
                command.arg(self.places.path("disk.qcow2"));
                command
            })?;
        }
        fs::remove_dir_all(pieces)?;
        Ok(())
    }

    /// Compares a restored image with a day's disk and removes it.
    fn compare(&self, restored: &str, day: &str) -> Result<()> {
        let restored = self.places.path(restored);
        compare(&restored, &self.data.join(day))?;
        Ok(fs::remove_file(restored)?)
    }
}

/// The last line that a job printed.
fn summary(printed: &str) -> Result<Value> {
    let last = printed.lines().last().context("nothing was printed")?;
    Ok(serde_json::from_str(last)?)
}

fn text(path: impl AsRef<Path>) -> Result<String> {
    path.as_ref().to_str().map(str::to_owned).context("a path that is not text")
}

const OF_RAW: &str = "windlass-raw";
const OF_FAST: &str = "windlass-fast";
const OF_QCOW2: &str = "windlass-qcow2";
const COPIED: &str = "windlass-copy";

/// Bytes that a tool keeps: without the room that our repositories set aside for a full storage, which depends on the size
/// of the file system and not on what is stored.
fn stored(repository: &Path) -> Result<u64> {
    let reserve = repository.join("reserve");
    let reserved = if reserve.is_dir() { bytes_below(&reserve)? } else { 0 };
    Ok(bytes_below(repository)? - reserved)
}
