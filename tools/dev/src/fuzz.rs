//! Fuzzing: each target run for a while from the golden files on.

use crate::shell_with;
use anyhow::{Context, Result, ensure};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs one target, or each of them, for so many seconds, two at a time. Adds a line for each to `totals`.
///
/// # Errors
/// When one finds something: the input is kept in `tests/fuzz/found`, and the target run with that file does it again.
pub fn run(root: &Path, only: Option<&str>, seconds: u64, totals: &mut Vec<String>) -> Result<()> {
    let program = build(root)?;
    let folder = root.join("tests/fuzz");
    let names = String::from_utf8(Command::new(&program).output().context("cannot run the targets")?.stdout)?;
    let names: Vec<&str> = names.lines().filter(|name| only.is_none_or(|it| it == *name)).collect();
    ensure!(!names.is_empty(), "there is no such target: {}", only.unwrap_or("none at all"));
    let seeds = tempfile::tempdir()?;
    seed(root, seeds.path())?;
    let found = folder.join("found/");
    fs::create_dir_all(&found)?;
    let fuzz = |name: &&str| {
        let corpus = folder.join("corpus").join(name);
        fs::create_dir_all(&corpus)?;
        let (time, artifacts) = (format!("-max_total_time={seconds}"), format!("-artifact_prefix={}", found.display()));
        let known = folder.join("seeds").join(name);
        let ran = Command::new(&program)
            .args([&time, &artifacts, "-print_final_stats=1", "-rss_limit_mb=1024", "-timeout=10"])
            .args([corpus.as_path(), seeds.path()])
            .args(known.is_dir().then_some(known))
            .env("WINDLASS_FUZZ_TARGET", name)
            .current_dir(&folder)
            .output()
            .with_context(|| format!("cannot run {name}"))?;
        // What it did is told on stderr.
        let text = String::from_utf8_lossy(&ran.stderr);
        if !ran.status.success() {
            let last: Vec<&str> = text.lines().rev().take(LINES_SHOWN).collect();
            last.iter().rev().for_each(|line| println!("{line}"));
        }
        ensure!(ran.status.success(), "{name} found something: {}", found.display());
        let executions = text.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
        Ok(format!("fuzz {name}: {} executions in {seconds} s", executions.unwrap_or("?").trim()))
    };
    let mut failed = Ok(());
    for some in names.chunks(AT_ONCE) {
        std::thread::scope(|scope| {
            let running: Vec<_> = some.iter().map(|name| scope.spawn(|| fuzz(name))).collect();
            for told in running.into_iter().map(|it| it.join().expect("it does not panic")) {
                match told {
                    Ok(told) => totals.push(told),
                    Err(error) => failed = Err(error),
                }
            }
        });
    }
    failed
}

/// Targets that run at the same time.
const AT_ONCE: usize = 2;

/// Builds the program of all targets.
fn build(root: &Path) -> Result<PathBuf> {
    // As `cargo fuzz` does: coverage for the fuzzer, addresses checked, and build scripts left alone.
    let coverage = ["-level=4", "-inline-8bit-counters", "-pc-table", "-trace-compares"];
    let coverage = coverage.map(|it| format!("-Cllvm-args=-sanitizer-coverage{it}")).join(" ");
    let flags = format!("--cfg fuzzing -Cpasses=sancov-module -Zsanitizer=address -Ccodegen-units=1 {coverage}");
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    // Beside this very program's, which outlives a clone.
    let release = std::env::current_exe()?;
    let release = release.parent().context("a folder")?;
    let target = release.with_file_name("fuzz");
    // Sanitizers are not stable, and a second toolchain for them alone is not worth having.
    let mut variables = vec![
        ("RUSTC_BOOTSTRAP", OsString::from("1")),
        ("RUSTFLAGS", flags.into()),
        ("CARGO_TARGET_DIR", target.clone().into()),
    ];
    if let Some(built) = rocksdb(&release.join("build")) {
        variables.extend([("ROCKSDB_LIB_DIR", built.into()), ("ROCKSDB_STATIC", "1".into())]);
    }
    let borrowed: Vec<(&str, &OsStr)> = variables.iter().map(|(name, value)| (*name, value.as_ref())).collect();
    shell_with(&root.join("tests/fuzz"), "cargo", &["build", "--release", "--target", &host], &borrowed)?;
    Ok(target.join(host).join("release/windlass-fuzz"))
}

/// RocksDB as it was built for this very program, so that it need not be built once more: 20 minutes.
fn rocksdb(builds: &Path) -> Option<PathBuf> {
    let folders = fs::read_dir(builds).ok()?.filter_map(|entry| Some(entry.ok()?.path().join("out")));
    folders.into_iter().find(|folder| folder.join("librocksdb.a").is_file())
}

/// Of what a target prints.
const LINES_SHOWN: usize = 12;

/// Golden files, and each golden message as a file of its own.
fn seed(root: &Path, into: &Path) -> Result<()> {
    let golden = root.join("tests/golden");
    for entry in fs::read_dir(&golden)? {
        let entry = entry?;
        fs::copy(entry.path(), into.join(entry.file_name()))?;
    }
    for (number, line) in fs::read_to_string(golden.join("wire.txt"))?.lines().enumerate() {
        let hex = line.split_once(' ').context("a golden message without bytes")?.1.as_bytes();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair)?, 16).context("no hex");
        let bytes: Vec<u8> = hex.chunks(2).map(byte).collect::<Result<_>>()?;
        fs::write(into.join(format!("message-{number}")), bytes)?;
    }
    Ok(())
}
