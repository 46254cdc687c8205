//! Our own jobs by two builds in turn, to see what a change costs. Other activity of the machine affects both builds
//! alike.

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
    print(&rows);
    let worst = rows.iter().map(|row| ratio(&row.walls)).fold(f64::NAN, f64::max);
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
    walls: Vec<[f64; 2]>,
    /// Seconds of CPU before and after, in each run. On a busy machine they are more reliable than wall time, but do
    /// not include waiting.
    cpus: Vec<[f64; 2]>,
}

fn print(rows: &[Row]) {
    println!("seconds: medians; each ratio is the median of those of the runs\n");
    let titles = ["before", "after", "ratio", "CPU before", "CPU after", "ratio"].map(|title| format!("{title:>11}"));
    println!("{:<32} {:<24}{}", "", "", titles.concat());
    for row in rows {
        let columns = [&row.walls, &row.cpus].map(|pairs| {
            let [before, after] = medians(pairs);
            format!("{before:>11.3}{after:>11.3}{:>11.3}", ratio(pairs))
        });
        println!("{:<32} {:<24}{}", row.step.title(), row.tool, columns.concat());
    }
    println!();
}

fn medians(pairs: &[[f64; 2]]) -> [f64; 2] {
    [0, 1].map(|side| median(pairs.iter().map(|pair| pair[side])))
}

/// The median ratio of after to before. Only times of the same run are compared, because the machine may be slower in
/// another run.
fn ratio(pairs: &[[f64; 2]]) -> f64 {
    median(pairs.iter().map(|[before, after]| after / before))
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
            let [first, second] = order(turn, number);
            let mut done = [(first, job(&mut sides[first])?), (second, job(&mut sides[second])?)];
            done.sort_by_key(|(side, _)| *side);
            add(rows, number, &done.map(|(_, done)| done));
            number += 1;
        }
    }
    Ok(())
}

/// The order of the two builds. It changes from job to job, and for each job from run to run.
const fn order(turn: usize, job: usize) -> [usize; 2] {
    if (turn + job).is_multiple_of(2) { [0, 1] } else { [1, 0] }
}

/// Adds what a job took with each build to its row.
fn add(rows: &mut Vec<Row>, number: usize, [before, after]: &[Done; 2]) {
    let (step, tool) = (before.step, before.tool);
    let walls = [before.sample.wall_s, after.sample.wall_s];
    eprintln!("{:<32} {tool:<24}{:>11.3}{:>11.3}", step.title(), walls[0], walls[1]);
    if number == rows.len() {
        rows.push(Row { step, tool, walls: Vec::new(), cpus: Vec::new() });
    }
    rows[number].walls.push(walls);
    rows[number].cpus.push([before.sample.cpu_s, after.sample.cpu_s]);
}

/// Jobs, and what happens to the disk before them.
const JOBS: [(Change, &[Job]); 3] = [
    (|_| Ok(()), &[Ours::full, Ours::full_qcow2]),
    (Ours::second_day, &[Ours::increment, Ours::day2]),
    (|ours| ours.disk.touch(), &[Ours::unchanged, Ours::restore, Ours::copy, Ours::copy_trusting, Ours::verify]),
];

/// A job may be slower by 3 %, because a few runs cannot show smaller differences.
const SLOWER_MAX: f64 = 1.03;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::{Durable, Sample};

    #[test]
    fn a_slow_run_does_not_count_for_one_side() {
        let pairs = [[1.0, 1.1], [3.0, 3.3], [2.0, 2.2]];
        assert_eq!(medians(&pairs), [2.0, 2.2]);
        assert!((ratio(&pairs) - 1.1).abs() < 1e-9);
    }

    #[test]
    fn before_and_after_stay_apart() {
        let done = |wall_s, cpu_s| Done {
            step: Step::Full,
            tool: "windlass raw",
            sample: Sample { wall_s, cpu_s, peak_bytes: 0 },
            durable: Durable::ByItself,
            stored: None,
            work: None,
        };
        let mut rows = Vec::new();
        for _ in 0..2 {
            add(&mut rows, 0, &[done(1.0, 3.0), done(2.0, 6.0)]);
        }
        let [row] = &rows[..] else { panic!("one job") };
        assert_eq!((&row.walls[..], &row.cpus[..]), (&[[1.0, 2.0]; 2][..], &[[3.0, 6.0]; 2][..]));
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
