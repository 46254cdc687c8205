//! The table, and whether what is promised holds.

use crate::measure::Sample;

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

    const fn title(self) -> &'static str {
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

/// One tool in one step.
struct Row {
    step: Step,
    tool: &'static str,
    samples: Vec<Sample>,
    /// Bytes of the repository afterwards.
    stored: Option<u64>,
}

/// Everything that was measured.
#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
    /// Share of the first backup that the second machine added.
    pub second_share: f64,
}

impl Report {
    pub fn add(&mut self, step: Step, tool: &'static str, sample: Sample, stored: Option<u64>) {
        let wall = sample.wall_s;
        eprintln!("{:<32} {tool:<28} {wall:8.2} s", step.title());
        match self.rows.iter_mut().find(|row| row.step == step && row.tool == tool) {
            Some(row) => {
                row.samples.push(sample);
                row.stored = stored;
            }
            None => self.rows.push(Row { step, tool, samples: vec![sample], stored }),
        }
    }

    pub fn print(&self) {
        println!(
            "{:<30} {:>8} {:>8} {:>9} {:>11} {:>12}",
            "", "wall s", "CPU s", "peak MiB", "stored MB", "x best peer"
        );
        for step in Step::ALL {
            println!("{}", step.title());
            for row in self.rows.iter().filter(|row| row.step == step) {
                let stored = row.stored.map_or(String::new(), |stored| format!("{:.1}", stored as f64 / 1e6));
                let ratio = match self.best_peer(step) {
                    Some(best) if is_ours(row.tool) => format!("{:.2}", best / row.wall()),
                    _ => String::new(),
                };
                println!(
                    "  {:<28} {:>8.2} {:>8.2} {:>9.0} {stored:>11} {ratio:>12}",
                    row.tool,
                    row.wall(),
                    median(row.samples.iter().map(|it| it.cpu_s)),
                    row.peak() as f64 / MIB,
                );
            }
        }
        println!();
    }

    /// Prints each threshold with what was measured; true when all hold.
    pub fn judge(&self) -> bool {
        let faster = |step: Step, tool| match (self.best_peer(step), self.wall(step, tool)) {
            (Some(peer), Some(ours)) => peer / ours,
            _ => f64::NAN,
        };
        let stored =
            |step: Step, tool| self.row(step, tool).and_then(|row| row.stored).map_or(f64::NAN, |it| it as f64);
        let smaller = |step: Step| stored(step, "restic").min(stored(step, "borg"));
        let full = self.wall(Step::Full, RAW).unwrap_or(f64::NAN);
        let share = |tool| self.wall(Step::Copy, tool).unwrap_or(f64::NAN) / full;
        let ours = self.rows.iter().filter(|row| is_ours(row.tool));
        let peak = ours.map(Row::peak).max().unwrap_or(0) as f64 / MIB;
        judged(&[
            ("full backup, times the best peer", faster(Step::Full, RAW), Bound::AtLeast(2.2)),
            ("increment by bitmap, times", faster(Step::Day2, BITMAP), Bound::AtLeast(15.0)),
            ("unchanged, read again, times", faster(Step::Rescan, RAW), Bound::AtLeast(5.0)),
            ("restore, times", faster(Step::Restore, RAW), Bound::AtLeast(2.0)),
            ("verify --decode, times", faster(Step::Verify, RAW), Bound::AtLeast(2.5)),
            ("stored day 1, of the smaller peer", stored(Step::Full, RAW) / smaller(Step::Full), Bound::AtMost(1.09)),
            (
                "stored both days, of the smaller peer",
                stored(Step::Day2, BITMAP) / smaller(Step::Day2),
                Bound::Below(1.0),
            ),
            ("copy, of a full backup", share(COPY), Bound::AtMost(0.45)),
            ("copy --trust-source, of a full backup", share(TRUSTING), Bound::AtMost(0.15)),
            ("full backup across QUIC, times", faster(Step::Full, QUIC), Bound::AtLeast(1.8)),
            ("increment across QUIC, times", faster(Step::Day2, QUIC), Bound::AtLeast(12.0)),
            ("restore across QUIC, times", faster(Step::Restore, QUIC), Bound::AtLeast(1.6)),
            ("peak memory, MiB", peak, Bound::AtMost(512.0)),
            ("second machine, of the first's bytes", self.second_share, Bound::Below(0.01)),
        ])
    }

    fn row(&self, step: Step, tool: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.step == step && row.tool == tool)
    }

    fn wall(&self, step: Step, tool: &str) -> Option<f64> {
        self.row(step, tool).map(Row::wall)
    }

    /// The fastest of the deduplicating peers: qemu-img does another thing and is shown beside them.
    fn best_peer(&self, step: Step) -> Option<f64> {
        ["restic", "borg"].into_iter().filter_map(|peer| self.wall(step, peer)).min_by(f64::total_cmp)
    }
}

/// What is promised of a figure.
#[derive(Debug, Clone, Copy)]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
    Below(f64),
}

/// Prints each figure with what is promised of it; true when all hold.
pub fn judged(checks: &[(&str, f64, Bound)]) -> bool {
    let mut all = true;
    for (what, value, bound) in checks {
        let (good, limit) = match bound {
            Bound::AtLeast(limit) => (value >= limit, format!(">= {limit:.3}")),
            Bound::AtMost(limit) => (value <= limit, format!("<= {limit:.3}")),
            Bound::Below(limit) => (value < limit, format!("< {limit:.3}")),
        };
        all &= good;
        println!("{} {what:<50} {value:>9.3} {limit:>10}", if good { "pass" } else { "FAIL" });
    }
    all
}

impl Row {
    fn wall(&self) -> f64 {
        median(self.samples.iter().map(|it| it.wall_s))
    }

    fn peak(&self) -> u64 {
        self.samples.iter().map(|it| it.peak_bytes).max().unwrap_or(0)
    }
}

fn is_ours(tool: &str) -> bool {
    tool.starts_with("windlass")
}

/// The middle value; of an even number the lower one.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

pub const RAW: &str = "windlass raw";
pub const FAST: &str = "windlass raw no-extra-verify";
pub const QCOW2: &str = "windlass qcow2";
pub const BITMAP: &str = "windlass qcow2 bitmap";
pub const QUIC: &str = "windlass quic";
pub const COPY: &str = "windlass";
pub const TRUSTING: &str = "windlass --trust-source";
const MIB: f64 = 1_048_576.0;
