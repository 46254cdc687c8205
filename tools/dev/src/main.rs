//! The program `windlass-dev`: what developers run, so that nobody has to remember how.

mod circles;
mod dist;
mod dump;
mod fuzz;
mod licences;
mod tidy;
mod torture;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;
use windlass_bench::attacker::Means;
use windlass_bench::relay::{Relay, Shape};

#[derive(Debug, Parser)]
#[command(name = "windlass-dev", version, about = "Developer commands of Windlass")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Run every test and check, as continuous integration does
    Ci,
    /// Run the quick checks: format, lints, file sizes, words and paths that do not belong here, rules and their tests
    Tidy,
    /// Write the golden files anew; look at the difference before committing it
    Golden,
    /// Build the programs as they are given to others: stripped, their symbols beside them
    Dist {
        /// Folder for them; made when it is not there
        out: PathBuf,
    },
    /// Print a file of a repository: pack, log record, state digest, configuration; or a plain page or manifest
    Dump {
        /// The file
        file: PathBuf,
        /// Also the pages and manifests in a pack
        #[arg(long)]
        decode: bool,
    },
    /// Feed foreign bytes to every decoder
    Fuzz {
        /// One of blobs, manifests, messages, nbd, pages, records, words; all without
        target: Option<String>,
        /// For how long each
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Run for long what looks for defects: the reference model, simulations, power cuts, kills, flipped bytes, fuzzing
    Torture {
        /// About so long, beside what tries all there is
        #[arg(long, default_value_t = 60)]
        minutes: u64,
        /// Only kills, flips, orders, power_cut, simulation, model or fuzz
        #[arg(long)]
        only: Option<String>,
    },
    /// Measure
    #[command(subcommand)]
    Bench(Bench),
    /// Stand between clients and a node as a long, narrow or leaky link, until interrupted
    Relay {
        /// Where the node listens
        #[arg(long)]
        to: SocketAddr,
        /// Milliseconds there and back
        #[arg(long, default_value_t = 0)]
        round_trip: u64,
        /// Megabits a second; as fast as it can without
        #[arg(long, default_value_t = 0)]
        rate: u64,
        /// Packets of a thousand that are lost
        #[arg(long, default_value_t = 0)]
        lost: u64,
    },
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Whole jobs beside restic, borg and qemu-img, and beside what the machine can do
    E2e {
        /// Folder with day1.raw, day2.raw and cbt-64k.json
        #[arg(long)]
        data: PathBuf,
        /// Runs of each; medians are shown
        #[arg(long, default_value_t = 3)]
        runs: u32,
        /// Where repositories and images are made; they are removed
        #[arg(long)]
        work: Option<PathBuf>,
        /// File for all figures, those of the machine too
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// Our jobs by two builds in turn: no job may be slower by more than 3 %
    Pair {
        /// The program `windlass` as it was
        #[arg(long)]
        before: PathBuf,
        /// The program `windlass` as it is now
        #[arg(long)]
        after: PathBuf,
        /// Folder with day1.raw, day2.raw and cbt-64k.json
        #[arg(long)]
        data: PathBuf,
        /// Runs of each; medians are judged
        #[arg(long, default_value_t = 7)]
        runs: u32,
        /// Where repositories and images are made; they are removed
        #[arg(long)]
        work: Option<PathBuf>,
    },
    /// What the wire carries, beside quinn alone
    Wire,
    /// Jobs across QUIC on long, narrow and leaky links
    Wan {
        /// Folder with day1.raw
        #[arg(long)]
        data: PathBuf,
    },
    /// Three proxies at once into one storage node, beside one alone
    Proxies {
        /// Folder with day1.raw
        #[arg(long)]
        data: PathBuf,
        /// Rounds; medians are judged
        #[arg(long, default_value_t = 3)]
        rounds: u32,
    },
    /// Sweeps of a repository with millions of chunks, and a backup beside them
    Sweep {
        /// Folder in which repositories are made; they are removed
        #[arg(long)]
        data: PathBuf,
        /// Points of 10,000 chunks each
        #[arg(long, default_value_t = 1000)]
        points: u32,
        /// Backups beside a sweep and alone; medians are judged
        #[arg(long, default_value_t = 7)]
        rounds: u32,
    },
    /// Verifications beside b3sum and bare decoding
    Verify {
        /// Folder with day1.raw
        #[arg(long)]
        data: PathBuf,
        /// Rounds; medians are judged
        #[arg(long, default_value_t = 5)]
        rounds: u32,
    },
    /// Reading a disk through a view beside restoring it
    View {
        /// Folder with day1.raw
        #[arg(long)]
        data: PathBuf,
        /// Rounds; medians are judged
        #[arg(long, default_value_t = 5)]
        rounds: u32,
    },
    /// A backup into a storage node that is attacked meanwhile, beside one that is not
    Attack {
        /// Folder with day1.raw
        #[arg(long)]
        data: PathBuf,
        /// Rounds of quiet, attacked, quiet
        #[arg(long, default_value_t = 7)]
        rounds: u32,
        /// Only this: flood, slow, streams, lengths or lies
        #[arg(long)]
        only: Vec<Means>,
        /// Where repositories are made; they are removed
        #[arg(long)]
        work: Option<PathBuf>,
    },
    /// The attackers of `attack`
    #[command(hide = true)]
    Attacker {
        /// Port of the node on the loopback address
        #[arg(long)]
        port: u16,
        /// Whose certificate they have
        #[arg(long)]
        identity: PathBuf,
        /// Only this
        #[arg(long)]
        only: Vec<Means>,
    },
    /// Stages on one core beside what limits them
    Stages {
        /// Folder with day1.raw
        #[arg(long)]
        data: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Ci => shell(&workspace()?, "./check", &[]),
        Task::Tidy => tidy::run(&workspace()?),
        Task::Golden => golden(&workspace()?),
        Task::Dist { out } => dist::run(&workspace()?, &out),
        Task::Fuzz { target, seconds } => {
            let mut told = Vec::new();
            let ran = fuzz::run(&workspace()?, target.as_deref(), seconds, &mut told);
            told.iter().for_each(|it| println!("{it}"));
            ran
        }
        Task::Torture { minutes, only } => torture::run(&workspace()?, minutes, only.as_deref()),
        Task::Dump { file, decode } => dump::run(&file, decode),
        Task::Relay { to, round_trip, rate, lost } => {
            let delay = Duration::from_millis(round_trip) / 2;
            let shape = Shape { delay, rate: rate * 1_000_000, lost_per_mille: lost, seed: 1, ..Shape::default() };
            let relay = Relay::start(to, shape)?;
            println!("127.0.0.1:{}", relay.port);
            loop {
                std::thread::park();
            }
        }
        Task::Bench(task) => bench(task),
    }
}

/// Runs a benchmark, with the program `windlass` from the folder of this program.
fn bench(task: Bench) -> Result<()> {
    let windlass = std::env::current_exe()?.with_file_name("windlass");
    match task {
        Bench::E2e { data, runs, work, json } => {
            let work = work.unwrap_or_else(|| data.join("bench"));
            windlass_bench::e2e(&windlass_bench::E2eOptions { windlass, data, work, runs, json })
        }
        Bench::Pair { before, after, data, runs, work } => {
            let work = work.unwrap_or_else(|| data.join("bench"));
            windlass_bench::pair(&windlass_bench::PairOptions { before, after, data, work, runs })
        }
        Bench::Wire => windlass_bench::wire(),
        Bench::Wan { data } => windlass_bench::wan(&windlass, &data),
        Bench::Proxies { data, rounds } => windlass_bench::proxies(&windlass, &data, rounds),
        Bench::Sweep { data, points, rounds } => windlass_bench::sweep(&windlass, &data, points, rounds),
        Bench::Verify { data, rounds } => windlass_bench::verify(&windlass, &data, rounds),
        Bench::View { data, rounds } => windlass_bench::view(&windlass, &data, rounds),
        Bench::Attack { data, rounds, only, work } => {
            let work = work.unwrap_or_else(|| data.join("attack"));
            windlass_bench::attack(&windlass_bench::AttackOptions { windlass, data, work, rounds, only })
        }
        Bench::Attacker { port, identity, only } => {
            let runtime = tokio::runtime::Runtime::new()?;
            runtime.block_on(windlass_bench::attacker::attack(port, &identity, "main", &only))
        }
        Bench::Stages { data } => windlass_bench::stages(&data),
    }
}

/// Runs the golden tests with the variable that makes them write their files instead of comparing them.
fn golden(root: &Path) -> Result<()> {
    let ended = Command::new("cargo")
        .args(["test", "--release", "--workspace", "golden"])
        .env("WINDLASS_WRITE_GOLDEN", "1")
        .current_dir(root)
        .status()?;
    if !ended.success() {
        bail!("the golden tests failed");
    }
    shell(root, "git", &["status", "--short"])
}

/// The root of the workspace: commands for developers work on the clone in which they are called.
fn workspace() -> Result<PathBuf> {
    let here = std::env::current_dir()?;
    let root = here.ancestors().find(|it| it.join("Cargo.lock").is_file() && it.join("mover").is_dir());
    root.map(Path::to_owned).context("call it inside a clone of Windlass")
}

fn shell(root: &Path, program: &str, arguments: &[&str]) -> Result<()> {
    shell_with(root, program, arguments, &[])
}

fn shell_with(root: &Path, program: &str, arguments: &[&str], variables: &[(&str, &OsStr)]) -> Result<()> {
    let ended = Command::new(program).args(arguments).envs(variables.iter().copied()).current_dir(root).status();
    let ended = ended.with_context(|| format!("cannot run {program}"))?;
    if !ended.success() {
        bail!("{program} {}: {ended}", arguments.join(" "));
    }
    Ok(())
}
