//! Three proxies that back up into one storage node at the same time, compared with one alone.

use crate::judge::{Bound, judged};
use crate::measure::{bytes_below, median};
use crate::node::{Node, OF_NODE};
use crate::tools::Places;
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Prints how fast three backups of different machines are at the same time, compared with one alone; how much three
/// clones store; and the node's memory.
///
/// # Errors
/// When a job fails, or a promise does not hold.
pub fn proxies(windlass: &Path, data: &Path, rounds: u32) -> Result<()> {
    let folder = tempfile::tempdir_in(data)?;
    let places = Places { work: folder.path().to_owned(), windlass: windlass.to_owned() };
    let mut source = File::open(data.join("day1.raw")).context("day1.raw")?;
    for (number, name) in MACHINES.iter().enumerate() {
        source.seek(SeekFrom::Start(number as u64 * DISK_BYTES))?;
        std::io::copy(&mut source.by_ref().take(DISK_BYTES), &mut File::create(places.path(name))?)?;
    }
    let (mut alone, mut together, mut peak) = (Vec::new(), Vec::new(), 0);
    for round in 0..rounds {
        // Each disk alone, one after the other: they are not equally hard. Who is first changes.
        let of_each =
            || -> Result<f64> { MACHINES.iter().map(|name| Ok(run(&places, &[(name, name)], &mut 0)?.0)).sum() };
        let mut of_all = || run(&places, &MACHINES.map(|name| (name, name)), &mut peak).map(|made| made.0);
        let (one, three) = if round % 2 == 0 {
            let one = of_each()?;
            (one, of_all()?)
        } else {
            let three = of_all()?;
            (of_each()?, three)
        };
        println!("round {}: one after the other {one:.2} s, at once {three:.2} s", round + 1);
        alone.push(one);
        together.push(three);
    }
    let speed = median(alone.into_iter()) / median(together.into_iter());
    let (_, one) = run(&places, &[("clone0", MACHINES[0])], &mut 0)?;
    let (_, three) = run(&places, &["clone0", "clone1", "clone2"].map(|name| (name, MACHINES[0])), &mut peak)?;
    let all = judged(&[
        ("three at once, of the speed of one alone", speed, Bound::AtLeast(0.9)),
        ("three clones at once, of the bytes of one", three as f64 / one as f64, Bound::AtMost(1.01)),
        ("peak of the node, MiB", peak as f64 / 1_048_576.0, Bound::AtMost(512.0)),
    ]);
    ensure!(all, "not every promise holds");
    Ok(())
}

/// Backs machines up at once, each by a proxy of its own, into a fresh repository. Gives the seconds and what it stores.
fn run(places: &Places, machines: &[(&str, &str)], peak: &mut u64) -> Result<(f64, u64)> {
    let node = Node::start(places)?;
    let commands = machines.iter().map(|(machine, disk)| {
        let mut command = node.windlass(places, &["backup", "--machine", machine, &format!("./{disk}")]);
        command.env("WINDLASS_IDENTITY", node.issue(places, "proxy", &format!("proxy-{machine}"))?);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        Ok(command)
    });
    let commands: Vec<Command> = commands.collect::<Result<_>>()?;
    let began = Instant::now();
    let running: Vec<_> = commands.into_iter().map(|mut command| command.spawn()).collect::<std::io::Result<_>>()?;
    for child in running {
        let ended = child.wait_with_output()?;
        ensure!(ended.status.success(), "a backup failed: {}", String::from_utf8_lossy(&ended.stderr));
    }
    let seconds = began.elapsed().as_secs_f64();
    *peak = node.peak_bytes()?.max(*peak);
    drop(node);
    let stored = bytes_below(&places.path(OF_NODE).join("packs"))?;
    for made in
        [OF_NODE, "site"].into_iter().map(str::to_owned).chain(machines.iter().map(|(it, _)| format!("proxy-{it}")))
    {
        fs::remove_dir_all(places.path(&made))?;
    }
    Ok((seconds, stored))
}

/// Machines, each with a disk of its own name.
const MACHINES: [&str; 3] = ["first", "second", "third"];
const DISK_BYTES: u64 = 1 << 30;
