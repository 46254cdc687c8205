//! One run of a program: wall, CPU and memory.

use anyhow::{Context, Result, bail};
use rustix::fs::syncfs;
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// What one run took.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub wall_s: f64,
    /// User and system time, of children that were waited for too.
    pub cpu_s: f64,
    /// Largest resident set of the program or any child that was waited for.
    pub peak_bytes: u64,
}

/// A run with what it printed.
pub struct Ran {
    pub sample: Sample,
    pub stdout: String,
}

/// How the bytes that a program writes become durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durable {
    /// The program syncs them before it ends, or writes nothing.
    ByItself,
    /// The program does not sync them. So the file system is synced after it, and the time of this is added.
    BySync,
}

/// Runs `command`. Before that, everything that was written is synced to disk, and all files that the command names are
/// read into the page cache, because some kernels drop pages that were not used for a while. GNU time gives CPU time
/// and memory of the program alone.
pub fn measured(command: &Command, scratch: &Path, durable: Durable) -> Result<Ran> {
    ran(Command::new("sync"))?;
    let variables = command.get_envs().filter_map(|(_, value)| value);
    let directory = command.get_current_dir().unwrap_or(Path::new("."));
    for named in command.get_args().chain(variables) {
        warm(&directory.join(named))?;
    }
    let counted = scratch.join("time");
    let mut timed = Command::new("/usr/bin/time");
    timed.arg("-o").arg(&counted).args(["-f", "%U %S %M"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => timed.env(name, value),
            None => timed.env_remove(name),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        timed.current_dir(directory);
    }
    let began = Instant::now();
    let stdout = ran(timed)?;
    if durable == Durable::BySync {
        syncfs(File::open(scratch)?)?;
    }
    let wall_s = began.elapsed().as_secs_f64();
    let counted = std::fs::read_to_string(counted)?;
    let numbers: Vec<f64> = counted.split_whitespace().filter_map(|it| it.parse().ok()).collect();
    let [user, system, kib] = numbers[..] else { bail!("cannot read what time printed: {counted:?}") };
    Ok(Ran { sample: Sample { wall_s, cpu_s: user + system, peak_bytes: kib as u64 * 1024 }, stdout })
}

/// Reads every file at or below `path`; nothing when there is none.
fn warm(path: &Path) -> Result<()> {
    if path.is_dir() {
        for entry in std::fs::read_dir(path)? {
            warm(&entry?.path())?;
        }
    } else if path.is_file() {
        std::io::copy(&mut File::open(path)?, &mut std::io::sink())?;
    }
    Ok(())
}

/// Runs `command` to its successful end and gives what it printed.
pub fn ran(mut command: Command) -> Result<String> {
    let ended = command.output().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !ended.status.success() {
        let (stdout, stderr) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
        bail!("{command:?}: {}\n{stdout}{stderr}", ended.status);
    }
    Ok(String::from_utf8_lossy(&ended.stdout).into_owned())
}

/// Fails when a restored image is not byte for byte what it was made of.
pub fn compare(restored: &Path, original: &Path) -> Result<()> {
    let mut cmp = Command::new("cmp");
    cmp.arg(restored).arg(original);
    ran(cmp).map(drop)
}

/// Bytes of all files below `path`.
pub fn bytes_below(path: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(path).with_context(|| path.display().to_string())? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        sum += if metadata.is_dir() { bytes_below(&entry.path())? } else { metadata.len() };
    }
    Ok(sum)
}

/// User and system time in seconds that a process took so far.
pub fn cpu_s(process: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // After the name, which may contain anything, the state is the first: user and system time are the 12th and 13th.
    let (_, after) = stat.rsplit_once(')').context("stat")?;
    let ticks: Vec<f64> = after.split_whitespace().skip(11).take(2).filter_map(|it| it.parse().ok()).collect();
    Ok(ticks.iter().sum::<f64>() / TICKS_A_SECOND)
}

/// The middle value; of an even number the mean of the two in the middle.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let middle = |at: usize| sorted.get(at).copied().unwrap_or(f64::NAN);
    f64::midpoint(middle(sorted.len().saturating_sub(1) / 2), middle(sorted.len() / 2))
}

/// USER_HZ: the unit of times in /proc, whatever unit the kernel uses internally.
const TICKS_A_SECOND: f64 = 100.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_favours_neither_side() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        assert_eq!(median([7.0].into_iter()), 7.0);
        assert!(median([].into_iter()).is_nan());
    }
}
