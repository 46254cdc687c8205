//! Whole jobs: Windlass, restic, borg and qemu-img on the same two days of one disk, step by step in turn.
//!
//! Everything is in the page cache, repositories lie on the same file system, and `sync` runs before each step. Every
//! restored image is compared with what was backed up. What the machine can do is measured before the steps.

use crate::disk::Disk;
use crate::judge::all_pass;
use crate::machine::Machine;
use crate::ours::Ours;
use crate::peers::Peers;
use crate::promises::promises;
use crate::report::{Done, Report, Step};
use crate::tools::Places;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::PathBuf;
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
    /// File for all figures, to compare runs.
    pub json: Option<PathBuf>,
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
    for turn in 0..options.runs {
        eprintln!("run {} of {}", turn + 1, options.runs);
        let places = Places::fresh(&options.work, &options.windlass)?;
        let made = Disk::new(places, &data).and_then(|disk| run(disk, turn, &mut report));
        let _ = fs::remove_dir_all(&options.work);
        made?;
    }
    let checks = promises(&report);
    if let Some(path) = &options.json {
        let figures = serde_json::to_string_pretty(&report.json(&checks))?;
        fs::write(path, figures + "\n").with_context(|| path.display().to_string())?;
    }
    report.print();
    ensure!(all_pass(&checks), "not every threshold holds");
    Ok(())
}

struct Run<'a> {
    ours: Ours,
    peers: Peers,
    /// Number of the run: who goes first changes with it.
    turn: u32,
    report: &'a mut Report,
}

/// One tool's part of a step: one job or several.
type Part<'a> = &'a dyn Fn(&mut Ours, &Peers) -> Result<Vec<Done>>;

/// Everything once.
fn run(disk: Disk, turn: u32, report: &mut Report) -> Result<()> {
    report.machines.push(Machine::measure(&disk)?);
    let (peers, mut ours) = (Peers::new(disk.clone())?, Ours::new(disk)?);
    ours.start_node()?;
    Run { ours, peers, turn, report }.all()
}

impl Run<'_> {
    fn all(mut self) -> Result<()> {
        self.in_turn(&[
            &|ours, _| Ok(vec![ours.full()?, ours.full_fast()?, ours.full_qcow2()?]),
            &|ours, _| Ok(vec![ours.full_node()?]),
            &|_, peers| Ok(vec![peers.restic_backup(Step::Full)?]),
            &|_, peers| Ok(vec![peers.borg_backup(Step::Full, "::day1")?]),
            &|_, peers| Ok(vec![peers.qemu_full()?]),
        ])?;
        self.ours.second_day()?;
        self.in_turn(&[
            &|ours, _| Ok(vec![ours.increment()?, ours.day2()?]),
            &|ours, _| Ok(vec![ours.increment_node()?]),
            &|_, peers| Ok(vec![peers.restic_backup(Step::Day2)?]),
            &|_, peers| Ok(vec![peers.borg_backup(Step::Day2, "::day2")?]),
        ])?;
        self.ours.disk.touch()?;
        self.in_turn(&[
            &|ours, _| Ok(vec![ours.unchanged()?, ours.unchanged_qcow2()?]),
            &|_, peers| Ok(vec![peers.restic_backup(Step::Rescan)?]),
            &|_, peers| Ok(vec![peers.borg_backup(Step::Rescan, "::again")?]),
        ])?;
        self.in_turn(&[
            &|ours, _| Ok(vec![ours.restore()?]),
            &|ours, _| Ok(vec![ours.restore_node()?]),
            &|_, peers| Ok(vec![peers.restic_restore()?]),
            &|_, peers| Ok(vec![peers.borg_restore("::day2")?]),
            &|_, peers| Ok(vec![peers.qemu_restore()?]),
        ])?;
        self.in_turn(&[
            &|ours, _| Ok(vec![ours.verify()?]),
            &|_, peers| Ok(vec![peers.restic_verify()?]),
            &|_, peers| Ok(vec![peers.borg_verify()?]),
        ])?;
        self.in_turn(&[&|ours, _| Ok(vec![ours.copy()?, ours.copy_trusting()?])])?;
        let (done, share) = self.ours.second_machine()?;
        self.report.add(done);
        self.report.second_share = self.report.second_share.max(share);
        Ok(())
    }

    /// Runs the parts, another one first in each run.
    fn in_turn(&mut self, parts: &[Part<'_>]) -> Result<()> {
        let first = self.turn as usize % parts.len();
        for part in parts[first..].iter().chain(&parts[..first]) {
            let done = part(&mut self.ours, &self.peers)?;
            done.into_iter().for_each(|done| self.report.add(done));
        }
        Ok(())
    }
}
