//! The table of what was measured.

use crate::judge::{Check, Verdict};
use crate::limit::{Limit, Work};
use crate::machine::Machine;
use crate::measure::{Durable, Sample, median};
use serde_json::{Value, json};

/// A step of the comparison; peers are compared within one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Full,
    Day2,
    Rescan,
    Restore,
    Verify,
    Copy,
    Second,
}

impl Step {
    const ALL: [Self; 7] =
        [Self::Full, Self::Day2, Self::Rescan, Self::Restore, Self::Verify, Self::Copy, Self::Second];

    /// As it is printed.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Full => "full backup",
            Self::Day2 => "day 2",
            Self::Rescan => "unchanged, read again",
            Self::Restore => "restore to raw",
            Self::Verify => "verify all data",
            Self::Copy => "copy to an empty repository",
            Self::Second => "second machine of the template",
        }
    }
}

/// One tool in one step, once.
#[derive(Debug)]
pub struct Done {
    pub step: Step,
    pub tool: &'static str,
    pub sample: Sample,
    pub durable: Durable,
    /// Bytes of the repository afterwards.
    pub stored: Option<u64>,
    /// The work that the job had to do; only for our own jobs.
    pub work: Option<Work>,
}

/// One tool in one step, in all runs.
struct Row {
    /// The last run.
    last: Done,
    samples: Vec<Sample>,
}

/// Everything that was measured.
#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
    /// What the machine could do, in each run.
    pub machines: Vec<Machine>,
    /// Share of the first backup that the second machine added.
    pub second_share: f64,
}

impl Report {
    /// Takes what one run of a tool gave.
    pub fn add(&mut self, done: Done) {
        eprintln!("{:<32} {:<28} {:8.2} s", done.step.title(), done.tool, done.sample.wall_s);
        let sample = done.sample;
        match self.rows.iter_mut().find(|row| row.last.step == done.step && row.last.tool == done.tool) {
            Some(row) => {
                row.samples.push(sample);
                row.last = done;
            }
            None => self.rows.push(Row { last: done, samples: vec![sample] }),
        }
    }

    /// Prints the machine and the table.
    pub fn print(&self) {
        Machine::median(&self.machines).print();
        println!(
            "+ sync: the file system is synced behind a tool that leaves that to the kernel, and it counts as wall time."
        );
        println!("limit: the least time for the job on this machine. bound by: what takes most of it, and the limit's");
        println!("share of the time that the job took.\n");
        println!(
            "{:<30} {:>8} {:>8} {:>9} {:>11} {:>12} {:>8}  bound by",
            "", "wall s", "CPU s", "peak MiB", "stored MB", "x best peer", "limit s"
        );
        for step in Step::ALL {
            println!("{}", step.title());
            self.rows.iter().filter(|row| row.last.step == step).for_each(|row| self.print_row(row));
        }
        println!();
    }

    fn print_row(&self, row: &Row) {
        let Done { step, tool, durable, stored, .. } = row.last;
        let synced = if durable == Durable::BySync { " + sync" } else { "" };
        let stored = stored.map_or(String::new(), |stored| format!("{:.1}", stored as f64 / 1e6));
        let ratio = match self.best_peer(step) {
            Some(best) if is_ours(tool) => format!("{:.2}", best / row.wall()),
            _ => String::new(),
        };
        let limit = self.limit(step, tool).map_or(String::new(), |limit| {
            let share = limit.seconds / row.wall() * 100.0;
            format!("{:>8.2}  {} {share:.0} %", limit.seconds, limit.bound_by)
        });
        let line = format!(
            "  {:<28} {:>8.2} {:>8.2} {:>9.0} {stored:>11} {ratio:>12} {limit}",
            format!("{tool}{synced}"),
            row.wall(),
            median(row.samples.iter().map(|it| it.cpu_s)),
            row.peak() as f64 / MIB,
        );
        println!("{}", line.trim_end());
    }

    /// All figures and how they were judged.
    pub fn json(&self, checks: &[Check]) -> Value {
        json!({
            "machine": Machine::median(&self.machines).json(),
            "machines": self.machines.iter().map(Machine::json).collect::<Vec<_>>(),
            "rows": self.rows.iter().map(|row| self.row_json(row)).collect::<Vec<_>>(),
            "second_share": self.second_share,
            "checks": checks.iter().map(check_json).collect::<Vec<_>>(),
        })
    }

    fn row_json(&self, row: &Row) -> Value {
        let Done { step, tool, durable, stored, work, .. } = row.last;
        let all = |figure: fn(&Sample) -> f64| row.samples.iter().map(figure).collect::<Vec<f64>>();
        let limit = self.limit(step, tool);
        json!({
            "step": step.title(),
            "tool": tool,
            "synced_behind": durable == Durable::BySync,
            "wall_s": row.wall(),
            "walls_s": all(|it| it.wall_s),
            "cpus_s": all(|it| it.cpu_s),
            "peak_bytes": row.peak(),
            "stored_bytes": stored,
            "work": work.map(|work| work.json()),
            "limit_s": limit.map(|it| it.seconds),
            "share_of_limit": limit.map(|it| it.seconds / row.wall()),
            "bound_by": limit.map(|it| it.bound_by),
        })
    }

    /// The least time for one of our jobs on this machine.
    pub fn limit(&self, step: Step, tool: &str) -> Option<Limit> {
        Some(self.row(step, tool)?.last.work?.limit(&Machine::median(&self.machines)))
    }

    /// The median of the seconds that it took.
    pub fn wall(&self, step: Step, tool: &str) -> Option<f64> {
        self.row(step, tool).map(Row::wall)
    }

    /// Bytes of the repository afterwards.
    pub fn stored(&self, step: Step, tool: &str) -> Option<u64> {
        self.row(step, tool)?.last.stored
    }

    /// The fastest of the peers that deduplicate. qemu-img is not one of these: it is shown in the table, but does
    /// another thing.
    pub fn best_peer(&self, step: Step) -> Option<f64> {
        [RESTIC, BORG].into_iter().filter_map(|peer| self.wall(step, peer)).min_by(f64::total_cmp)
    }

    /// Most memory of any of our jobs, in MiB.
    pub fn peak_mib(&self) -> f64 {
        let ours = self.rows.iter().filter(|row| is_ours(row.last.tool));
        ours.map(Row::peak).max().unwrap_or(0) as f64 / MIB
    }

    fn row(&self, step: Step, tool: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.last.step == step && row.last.tool == tool)
    }
}

impl Row {
    fn wall(&self) -> f64 {
        median(self.samples.iter().map(|it| it.wall_s))
    }

    fn peak(&self) -> u64 {
        self.samples.iter().map(|it| it.peak_bytes).max().unwrap_or(0)
    }
}

fn check_json(check: &Check) -> Value {
    let by = match check.verdict() {
        Verdict::ByRatio => Some("ratio"),
        Verdict::ByLimit => Some("limit"),
        Verdict::Missed => None,
    };
    json!({
        "what": check.what,
        "value": check.value,
        "bound": check.bound.text(),
        "share_of_limit": check.share.map(|it| it.of_limit),
        "share_at_least": check.share.map(|it| it.at_least),
        "passes_by": by,
    })
}

fn is_ours(tool: &str) -> bool {
    tool.starts_with("windlass")
}

pub const RAW: &str = "windlass raw";
pub const FAST: &str = "windlass raw no-extra-verify";
pub const QCOW2: &str = "windlass qcow2";
pub const BITMAP: &str = "windlass qcow2 bitmap";
pub const QUIC: &str = "windlass quic";
pub const COPY: &str = "windlass";
pub const TRUSTING: &str = "windlass --trust-source";
pub const RESTIC: &str = "restic";
pub const BORG: &str = "borg";
pub const QEMU: &str = "qemu-img qcow2 zstd";
const MIB: f64 = 1_048_576.0;
