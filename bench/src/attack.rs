//! What attackers cost other clients: the same backup into a storage node that is not attacked, and into one that is.

use crate::attacker::Means;
use crate::judge::{Bound, judged};
use crate::measure::{Durable, measured, median};
use crate::node::{Node, OF_NODE};
use crate::tools::Places;
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// What to measure.
#[derive(Debug)]
pub struct AttackOptions {
    /// The program `windlass`.
    pub windlass: PathBuf,
    /// Folder with `day1.raw`.
    pub data: PathBuf,
    /// Folder for repositories; emptied before and removed after.
    pub work: PathBuf,
    /// Rounds of quiet, attacked, quiet.
    pub rounds: u32,
    /// What the attackers do; everything when it is empty.
    pub only: Vec<Means>,
}

/// Measures, and prints which share of its speed a backup keeps.
///
/// # Errors
/// When a program fails, or the share is under 0.8 by more than two quiet series differ.
pub fn attack(options: &AttackOptions) -> Result<()> {
    println!("a backup of {} MiB through QUIC, both ends and the attackers on the same cores:", DISK_BYTES >> 20);
    println!("this needs a machine that does nothing else\n");
    let made = rounds(options);
    let _ = fs::remove_dir_all(&options.work);
    let [first, attacked, second] = made?;
    let of = |runs: &[f64]| median(runs.iter().copied());
    let (quiet, under_attack) = (of(&[&first[..], &second].concat()), of(&attacked));
    for (what, runs) in [("quiet", &first), ("attacked", &attacked), ("quiet again", &second)] {
        let each: Vec<String> = runs.iter().map(|run| format!("{run:.2}")).collect();
        println!("{what:12} {:7.2} s   ({})", of(runs), each.join(" "));
    }
    let share = quiet / under_attack;
    let (one, other) = (of(&first), of(&second));
    let spread = one.max(other) / one.min(other) - 1.0;
    let least = SHARE_MIN - spread;
    println!("\nquiet against quiet differs by {spread:.3}");
    ensure!(
        judged(&[("share of its speed that a job keeps", share, Bound::AtLeast(least))]),
        "attackers cost others too much"
    );
    Ok(())
}

fn rounds(options: &AttackOptions) -> Result<[Vec<f64>; 3]> {
    let mut made = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..options.rounds {
        eprintln!("round {} of {}", round + 1, options.rounds);
        made[0].push(backup(options, false)?);
        made[1].push(backup(options, true)?);
        made[2].push(backup(options, false)?);
    }
    Ok(made)
}

/// Seconds of one backup into a fresh repository.
fn backup(options: &AttackOptions, attacked: bool) -> Result<f64> {
    let _ = fs::remove_dir_all(&options.work);
    fs::create_dir_all(options.work.join("in"))?;
    let places = Places { work: fs::canonicalize(&options.work)?, windlass: options.windlass.clone() };
    let disk = File::open(options.data.join("day1.raw")).context("day1.raw")?;
    std::io::copy(&mut disk.take(DISK_BYTES), &mut File::create(places.image())?)?;
    let node = Node::start(&places)?;
    let mut attacker = attacked.then(|| Attacker::start(&places, &node, &options.only)).transpose()?;
    let image = places.image();
    let image = image.to_str().context("a path that is not text")?;
    let before = node.cpu_s()?;
    let command = node.windlass(&places, &["backup", "--machine", "web", image]);
    let sample = measured(&command, &places.work, Durable::ByItself)?.sample;
    if let Some(attacker) = &mut attacker {
        ensure!(attacker.0.try_wait()?.is_none(), "the attackers gave up");
    }
    eprintln!(
        "  {:8} {:6.2} s, CPU of the node {:.2} s, its peak {} MiB",
        if attacked { "attacked" } else { "quiet" },
        sample.wall_s,
        node.cpu_s()? - before,
        node.peak_bytes()? >> 20
    );
    ensure!(places.path(OF_NODE).is_dir(), "nothing was stored");
    Ok(sample.wall_s)
}

/// A process that attacks. It has low priority, so it only uses processor time that other processes leave.
struct Attacker(Child);

impl Attacker {
    fn start(places: &Places, node: &Node, only: &[Means]) -> Result<Self> {
        let identity = node.issue(places, "proxy", "attacker")?;
        let mut command = Command::new("nice");
        command.args(["-n", "19"]).arg(std::env::current_exe()?).args(["bench", "attacker", "--port"]);
        command.arg(node.port().to_string()).arg("--identity").arg(identity);
        command.args(only.iter().flat_map(|means| ["--only", means.name()]));
        let child = command.stdout(Stdio::piped()).spawn().context("nice")?;
        let mut attacker = Self(child);
        let mut line = String::new();
        BufReader::new(attacker.0.stdout.as_mut().context("its output")?).read_line(&mut line)?;
        ensure!(line.contains("attacking"), "the attackers do not begin");
        Ok(attacker)
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The least share of its speed that a job must keep under attack.
const SHARE_MIN: f64 = 0.8;
const DISK_BYTES: u64 = 600 << 20;
