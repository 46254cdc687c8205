//! Fuzzing: built with the nightly toolchain, each target run for a while from the golden files on.

use super::shell_with;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;

/// The targets of `tests/fuzz`.
const TARGETS: [&str; 5] = ["blobs", "manifests", "messages", "pages", "words"];

/// Runs one target, or each of them, for so many seconds.
///
/// # Errors
/// When one finds something: the input is kept in `tests/fuzz/found`, and the target run with that file does it again.
pub fn run(root: &Path, only: Option<&str>, seconds: u32) -> Result<()> {
    ensure!(only.is_none_or(|it| TARGETS.contains(&it)), "the targets are {}", TARGETS.join(", "));
    let folder = root.join("tests/fuzz");
    // As `cargo fuzz` does: coverage for the fuzzer, addresses checked, and build scripts left alone.
    let coverage = ["-level=4", "-inline-8bit-counters", "-pc-table", "-trace-compares"];
    let coverage = coverage.map(|it| format!("-Cllvm-args=-sanitizer-coverage{it}")).join(" ");
    let flags = format!("--cfg fuzzing -Cpasses=sancov-module -Zsanitizer=address -Ccodegen-units=1 {coverage}");
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let target = folder.join("target");
    let build = ["+nightly", "build", "--release", "--target", &host];
    shell_with(&folder, "cargo", &build, &[("RUSTFLAGS", flags.as_ref()), ("CARGO_TARGET_DIR", target.as_ref())])?;
    let seeds = tempfile::tempdir()?;
    seed(root, seeds.path())?;
    let found = folder.join("found/");
    fs::create_dir_all(&found)?;
    for name in TARGETS.into_iter().filter(|name| only.is_none_or(|it| it == *name)) {
        let corpus = folder.join("corpus").join(name);
        fs::create_dir_all(&corpus)?;
        let program = target.join(&host).join("release").join(name);
        let (time, artifacts) = (format!("-max_total_time={seconds}"), format!("-artifact_prefix={}", found.display()));
        let folders = [corpus.to_str(), seeds.path().to_str()].map(|it| it.context("a path that is not text"));
        let [corpus, seeds] = folders;
        let arguments = [&time, &artifacts, "-print_final_stats=1", "-rss_limit_mb=1024", corpus?, seeds?];
        println!("{name}:");
        shell_with(&folder, program.to_str().context("a path that is not text")?, &arguments, &[])?;
    }
    Ok(())
}

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
