//! Long runs of all tests that look for defects at random, or by trying every case; and their totals.

use crate::fuzz;
use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

/// A test of `tests`, and how it is made long.
struct Long {
    name: &'static str,
    /// The test program for `cargo test`, and next the name of the test in it.
    program: &'static [&'static str],
    only: &'static str,
    variable: &'static str,
    /// How many cases it tries.
    amount: Amount,
}

enum Amount {
    /// Every case.
    All,
    /// `rate` cases for each minute on a machine with two processors, for `percent` of the time, and at least `least`.
    PerMinute { rate: u64, least: u64, percent: u64 },
}

const LONG: [Long; 6] = [
    Long {
        name: "kills",
        program: &["--test", "repository"],
        only: "killed_at_any_operation",
        variable: "WINDLASS_KILLS",
        amount: Amount::All,
    },
    Long {
        name: "flips",
        program: &["--test", "repository"],
        only: "every_flipped_byte_is_found",
        variable: "WINDLASS_FLIPS",
        amount: Amount::All,
    },
    Long {
        name: "orders",
        program: &["--lib"],
        only: "whatever_the_order",
        variable: "WINDLASS_SHUTTLE_SCHEDULES",
        amount: Amount::PerMinute { rate: 20_000, least: 3_000, percent: 5 },
    },
    Long {
        name: "power_cut",
        program: &["--test", "power_cut"],
        only: "",
        variable: "WINDLASS_POWER_CUT_STATES",
        amount: Amount::PerMinute { rate: 120, least: 100, percent: 10 },
    },
    Long {
        name: "simulation",
        program: &["--test", "simulation"],
        only: "seeds",
        variable: "WINDLASS_SIM_SEEDS",
        amount: Amount::PerMinute { rate: 120, least: 16, percent: 20 },
    },
    Long {
        name: "model",
        program: &["--test", "model"],
        only: "fresh",
        variable: "WINDLASS_MODEL_OPERATIONS",
        amount: Amount::PerMinute { rate: 7_000, least: 3_000, percent: 40 },
    },
];

/// Seconds of each minute for each fuzz target. Together this is the rest of the time, because two of the seven targets
/// run at the same time.
const FUZZ_SECONDS: u64 = 5;

/// Runs all of it and prints the totals. Takes about `minutes`, and in addition the time of the tests that try every
/// case. When one fails, the others are still run.
///
/// # Errors
/// When something failed.
pub fn run(root: &Path, minutes: u64, only: Option<&str>) -> Result<()> {
    let names = || LONG.iter().map(|it| it.name).chain(["fuzz"]);
    ensure!(only.is_none_or(|only| names().any(|it| it == only)), "it is {}", names().collect::<Vec<_>>().join(", "));
    let (mut totals, mut failed) = (Vec::new(), Vec::new());
    for long in LONG.iter().filter(|it| only.is_none_or(|only| only == it.name)) {
        println!("== {}", long.name);
        if !long.run(root, minutes, &mut totals)? {
            failed.push(long.name);
        }
    }
    if only.is_none_or(|only| only == "fuzz") {
        let seconds = minutes * FUZZ_SECONDS;
        println!("== fuzz, {seconds} s a target");
        if let Err(error) = fuzz::run(root, None, seconds, &mut totals) {
            println!("{error:#}");
            failed.push("fuzz");
        }
    }
    println!("\n== totals");
    totals.iter().for_each(|it| println!("{it}"));
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    println!("everything was clean");
    Ok(())
}

impl Long {
    /// False when it failed.
    fn run(&self, root: &Path, minutes: u64, totals: &mut Vec<String>) -> Result<bool> {
        let amount = match self.amount {
            Amount::All => "all".to_owned(),
            Amount::PerMinute { rate, least, percent } => (rate * minutes * percent / 100).max(least).to_string(),
        };
        let mut child = Command::new("cargo")
            .args(["test", "--locked", "--release", "-p", "windlass-mover", "-p", "windlass-tests"])
            .args(self.program)
            .args(["--", self.only, "--nocapture"])
            .env(self.variable, amount)
            .current_dir(root)
            .stdout(Stdio::piped())
            .spawn()
            .context("cargo")?;
        let out = child.stdout.take().context("its output")?;
        for line in BufReader::new(out).lines() {
            let line = line?;
            println!("{line}");
            if let Some((_, total)) = line.split_once(TOTAL) {
                totals.push(format!("{}: {total}", self.name));
            }
        }
        Ok(child.wait()?.success())
    }
}

/// What stands before a total in what a test prints.
pub const TOTAL: &str = "total: ";
