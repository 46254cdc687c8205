//! Our own jobs by two builds in turn, to see what a change costs. Whatever the machine does meanwhile happens to both.

use crate::disk::Disk;
use crate::judge::{Bound, judged};
use crate::measure::median;
use crate::ours::Ours;
use crate::report::{Done, Step};
use crate::tools::Places;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};

/// What to compare.
#[derive(Debug)]
pub struct PairOptions {
    /// The program `windlass` as it was; its command line may be older.
    pub before: PathBuf,
    /// The program `windlass` as it is now.
    pub after: PathBuf,
    /// Folder with `day1.raw`, `day2.raw` and `cbt-64k.json`.
    pub data: PathBuf,
    /// Folder for repositories and images, on the same file system as `data`; emptied before and removed after.
    pub work: PathBuf,
    /// Runs of everything.
    pub runs: u32,
}

/// Measures both programs, prints the medians, and whether any job became slower.
///
/// # Errors
/// When a job fails, a restored image differs, or a job became slower by more than 3 %.
pub fn pair(options: &PairOptions) -> Result<()> {
    let data = fs::canonicalize(&options.data).with_context(|| options.data.display().to_string())?;
    let mut rows = Vec::new();
    for turn in 0..options.runs as usize {
        eprintln!("run {} of {}", turn + 1, options.runs);
        let made = run(options, &data, turn, &mut rows);
        let _ = fs::remove_dir_all(&options.work);
        made?;
    }
    println!("medians; the ratio is the median of those of each run\n");
    println!("{:<32} {:<28} {:>10} {:>10} {:>10}", "", "", "before, s", "after, s", "ratio");
    for row in &rows {
        let [before, after] = row.medians();
        println!("{:<32} {:<28} {before:>10.3} {after:>10.3} {:>10.3}", row.step.title(), row.tool, row.ratio());
    }
    println!();
    let worst = rows.iter().map(Row::ratio).fold(f64::NAN, f64::max);
    ensure!(
        judged(&[("no job slower by more than 3 %: the slowest", worst, Bound::AtMost(SLOWER_MAX))]),
        "a job became slower"
    );
    Ok(())
}

/// One job by both programs.
struct Row {
    step: Step,
    tool: &'static str,
    /// Seconds before and after, in each run.
    pairs: Vec<[f64; 2]>,
}

impl Row {
    fn medians(&self) -> [f64; 2] {
        [0, 1].map(|side| median(self.pairs.iter().map(|pair| pair[side])))
    }

    /// The two of one run are compared with each other: the machine may be slower in another run.
    fn ratio(&self) -> f64 {
        median(self.pairs.iter().map(|[before, after]| after / before))
    }
}

type Job = fn(&mut Ours) -> Result<Done>;
type Change = fn(&mut Ours) -> Result<()>;

fn run(options: &PairOptions, data: &Path, turn: usize, rows: &mut Vec<Row>) -> Result<()> {
    let side = |name: &str, program: &PathBuf| -> Result<Ours> {
        let places = Places::fresh(&options.work.join(name), program)?;
        Ours::new(Disk::new(places, data)?)
    };
    let mut sides = [side("before", &options.before)?, side("after", &options.after)?];
    let mut number = 0;
    for (change, jobs) in JOBS {
        sides.iter_mut().try_for_each(change)?;
        for job in jobs {
            let mut seconds = [f64::NAN; 2];
            let mut done = None;
            for side in order(turn, number) {
                let made = job(&mut sides[side])?;
                seconds[side] = made.sample.wall_s;
                done = Some(made);
            }
            let done = done.expect("there are two sides");
            eprintln!("{:<32} {:<28} {:8.3} s {:8.3} s", done.step.title(), done.tool, seconds[0], seconds[1]);
            add(rows, number, &done, seconds);
            number += 1;
        }
    }
    Ok(())
}

/// Who goes first changes from job to job, and for each job from run to run.
const fn order(turn: usize, job: usize) -> [usize; 2] {
    if (turn + job).is_multiple_of(2) { [0, 1] } else { [1, 0] }
}

fn add(rows: &mut Vec<Row>, number: usize, done: &Done, seconds: [f64; 2]) {
    match rows.get_mut(number) {
        Some(row) => row.pairs.push(seconds),
        None => rows.push(Row { step: done.step, tool: done.tool, pairs: vec![seconds] }),
    }
}

/// Jobs, and what happens to the disk before them.
const JOBS: [(Change, &[Job]); 3] = [
    (|_| Ok(()), &[Ours::full, Ours::full_qcow2]),
    (Ours::second_day, &[Ours::increment, Ours::day2]),
    (|ours| ours.disk.touch(), &[Ours::unchanged, Ours::restore, Ours::copy, Ours::copy_trusting, Ours::verify]),
];

/// A job may be slower by 3 %: nearer than that a few runs do not tell.
const SLOWER_MAX: f64 = 1.03;

#[cfg(test)]
mod tests {
    use super::*;

    fn row(pairs: &[[f64; 2]]) -> Row {
        Row { step: Step::Full, tool: "windlass raw", pairs: pairs.to_vec() }
    }

    #[test]
    fn a_slow_run_does_not_count_for_one_side() {
        let row = row(&[[1.0, 1.1], [3.0, 3.3], [2.0, 2.2]]);
        assert_eq!(row.medians(), [2.0, 2.2]);
        assert!((row.ratio() - 1.1).abs() < 1e-9);
    }

    #[test]
    fn each_goes_first_as_often() {
        assert_ne!(order(0, 0), order(1, 0));
        assert_ne!(order(0, 0), order(0, 1));
        let mut both = order(0, 3);
        both.sort_unstable();
        assert_eq!(both, [0, 1]);
    }
}
