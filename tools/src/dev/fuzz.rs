//! Fuzzing: built with the nightly toolchain, each target run for a while from the golden files on.

use super::shell_with;
use anyhow::{Context, Result, ensure};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The targets of `tests/fuzz`.
pub const TARGETS: [&str; 7] = ["blobs", "manifests", "messages", "nbd", "pages", "records", "words"];

/// Runs one target, or each of them, for so many seconds. Gives a line for each.
///
/// # Errors
/// When one finds something: the input is kept in `tests/fuzz/found`, and the target run with that file does it again.
pub fn run(root: &Path, only: Option<&str>, seconds: u32) -> Result<Vec<String>> {
    ensure!(only.is_none_or(|it| TARGETS.contains(&it)), "the targets are {}", TARGETS.join(", "));
    let folder = root.join("tests/fuzz");
    // As `cargo fuzz` does: coverage for the fuzzer, addresses checked, and build scripts left alone.
    let coverage = ["-level=4", "-inline-8bit-counters", "-pc-table", "-trace-compares"];
    let coverage = coverage.map(|it| format!("-Cllvm-args=-sanitizer-coverage{it}")).join(" ");
    let flags = format!("--cfg fuzzing -Cpasses=sancov-module -Zsanitizer=address -Ccodegen-units=1 {coverage}");
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    // Beside this very program's, which outlives a clone.
    let release = std::env::current_exe()?;
    let release = release.parent().context("a folder")?;
    let target = release.with_file_name("fuzz");
    let build = ["+nightly", "build", "--release", "--target", &host];
    let mut variables = vec![("RUSTFLAGS", OsString::from(flags)), ("CARGO_TARGET_DIR", target.clone().into())];
    if let Some(built) = rocksdb(&release.join("build")) {
        variables.extend([("ROCKSDB_LIB_DIR", built.into()), ("ROCKSDB_STATIC", "1".into())]);
    }
    let borrowed: Vec<(&str, &OsStr)> = variables.iter().map(|(name, value)| (*name, value.as_ref())).collect();
    shell_with(&folder, "cargo", &build, &borrowed)?;
    let seeds = tempfile::tempdir()?;
    seed(root, seeds.path())?;
    let found = folder.join("found/");
    fs::create_dir_all(&found)?;
    let mut told = Vec::new();
    for name in TARGETS.into_iter().filter(|name| only.is_none_or(|it| it == *name)) {
        let corpus = folder.join("corpus").join(name);
        fs::create_dir_all(&corpus)?;
        let program = target.join(&host).join("release").join(name);
        let (time, artifacts) = (format!("-max_total_time={seconds}"), format!("-artifact_prefix={}", found.display()));
        println!("{name}:");
        let ran = Command::new(program)
            .args([&time, &artifacts, "-print_final_stats=1", "-rss_limit_mb=1024"])
            .args([corpus.as_path(), seeds.path()])
            .current_dir(&folder)
            .output()
            .with_context(|| format!("cannot run {name}"))?;
        // What it did is told on stderr.
        let text = String::from_utf8_lossy(&ran.stderr);
        let last: Vec<&str> = text.lines().rev().take(LINES_SHOWN).collect();
        last.iter().rev().for_each(|line| println!("{line}"));
        ensure!(ran.status.success(), "{name} found something: {}", found.display());
        let executions = text.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
        told.push(format!("fuzz {name}: {} executions in {seconds} s", executions.unwrap_or("?").trim()));
    }
    Ok(told)
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
