//! Quick checks that need no test: format, lints, sizes, words.

use crate::circles::{Files, circles, without_tests};
use crate::{licences, shell};
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// Runs them all and tells everything that is wrong, not only the first.
pub fn run(root: &Path) -> Result<()> {
    let mut faults = Vec::new();
    let lints = "clippy --locked --quiet --release --workspace --all-targets -- -D warnings";
    for arguments in ["fmt --all --check", lints] {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        if let Err(error) = shell(root, "cargo", &arguments) {
            faults.push(error.to_string());
        }
    }
    match licences::faults(root) {
        Ok(found) => faults.extend(found),
        Err(error) => faults.push(format!("licences and origins: {error:#}")),
    }
    let format = std::fs::read_to_string(root.join("FORMAT.md")).unwrap_or_default();
    let rules = std::fs::read_to_string(root.join("RULES.md")).unwrap_or_default();
    let mut crates: BTreeMap<String, Files> = BTreeMap::new();
    let (rules, mut all_functions) = (entries(&rules), BTreeSet::new());
    for name in files(root)? {
        let Ok(text) = std::fs::read_to_string(root.join(&name)) else { continue };
        if name.ends_with(".rs") {
            rust_file(&name, &text, &format, &mut faults);
            all_functions.extend(functions(&text).map(str::to_owned));
        }
        if let Some((of, file)) = name.split_once("/src/").filter(|_| name.ends_with(".rs") && !is_test(&name)) {
            crates.entry(of.to_owned()).or_default().insert(file.to_owned(), text.clone());
        }
        if name.ends_with(".rs") || name.ends_with(".md") {
            cited(&name, &text, &rules, &mut faults);
        }
        if !name.ends_with("Cargo.lock") && !name.starts_with("LICENSE") {
            lines(root, &name, &text, &mut faults);
        }
    }
    tests_of(&rules, &all_functions, &mut faults);
    for (of, files) in &crates {
        let told = |circle: Vec<String>| format!("{of}: a circle of files without a reason: {}", circle.join(", "));
        faults.extend(circles(files).into_iter().map(told));
    }
    for fault in &faults {
        eprintln!("{fault}");
    }
    if !faults.is_empty() {
        bail!("{} things to tidy", faults.len());
    }
    println!("tidy");
    Ok(())
}

/// The files that git tracks, and new files that it does not ignore.
fn files(root: &Path) -> Result<Vec<String>> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("cannot run git")?;
    Ok(String::from_utf8(listed.stdout)?.lines().map(str::to_owned).collect())
}

/// Code that only tests use.
fn is_test(name: &str) -> bool {
    let parts = ["tests.rs", "testing.rs"].iter().any(|end| name.ends_with(&format!("/{end}")));
    name.starts_with("tests/") || name.contains("/tests/") || parts
}

fn rust_file(name: &str, text: &str, format: &str, faults: &mut Vec<String>) {
    let is_test = is_test(name);
    let code = without_tests(text).lines().count();
    if !is_test && code > CODE_LINES_MAX {
        faults.push(format!("{name}: {code} lines before its tests; past {CODE_LINES_MAX} it is two files"));
    }
    for (number, line) in text.lines().enumerate() {
        let unfinished = UNFINISHED.iter().find(|word| line.contains(&format!("{}{}", word.0, word.1)));
        if let Some(word) = unfinished {
            faults.push(format!("{name}:{}: {}{}", number + 1, word.0, word.1));
        }
        // A magic begins something durable, which FORMAT.md must describe.
        let durable =
            !is_test && line.starts_with("const ") && line.contains("_MAGIC: ") && !name.starts_with("proxy/");
        let magic = line.split("b\"").nth(1).filter(|_| durable).and_then(|rest| rest.split('"').next());
        if let Some(magic) = magic.filter(|magic| !format.contains(*magic)) {
            faults.push(format!("{name}:{}: FORMAT.md does not mention the magic {magic}", number + 1));
        }
    }
}

fn lines(root: &Path, name: &str, text: &str, faults: &mut Vec<String>) {
    let clone = format!("{}/", root.display());
    let folders = MACHINE_FOLDERS.map(|(first, rest)| format!("/{first}{rest}/"));
    for (number, line) in text.lines().enumerate() {
        if line.contains(&clone) || folders.iter().any(|folder| line.contains(folder)) {
            faults.push(format!("{name}:{}: a path of some machine", number + 1));
        }
        if line.ends_with([' ', '\t']) {
            faults.push(format!("{name}:{}: blanks at the end of the line", number + 1));
        }
    }
}

/// An entry of RULES.md: `### CODE Title`, text, and a paragraph that begins with `Tests: `, in which each word between
/// backticks is the name of a test.
struct Entry<'a> {
    code: &'a str,
    /// None where that paragraph is missing.
    tests: Option<Vec<&'a str>>,
}

fn entries(rules: &str) -> Vec<Entry<'_>> {
    let sections = rules.split("\n### ").skip(1);
    let entries = sections.filter_map(|section| {
        let code = words(section).next().filter(|word| is_code(word))?;
        let paragraph = section.split("\n\n").find_map(|it| it.strip_prefix("Tests: "));
        Some(Entry { code, tests: paragraph.map(|it| it.split('`').skip(1).step_by(2).collect()) })
    });
    entries.collect()
}

/// Refuses codes in comments and documents that have no entry.
fn cited(name: &str, text: &str, rules: &[Entry<'_>], faults: &mut Vec<String>) {
    for (number, line) in text.lines().enumerate() {
        let said = if name.ends_with(".rs") { line.split_once("//").map_or("", |(_, rest)| rest) } else { line };
        for code in words(said).filter(|word| is_code(word)) {
            if rules.iter().all(|entry| entry.code != code) {
                faults.push(format!("{name}:{}: RULES.md has no entry {code}", number + 1));
            }
        }
    }
}

/// Refuses entries without a paragraph of tests, and names of tests for which there is no function.
fn tests_of(rules: &[Entry<'_>], all_functions: &BTreeSet<String>, faults: &mut Vec<String>) {
    for Entry { code, tests } in rules {
        if tests.is_none() {
            faults.push(format!("RULES.md: {code} has no paragraph `Tests: `"));
        }
        for test in tests.iter().flatten().filter(|test| !all_functions.contains(**test)) {
            faults.push(format!("RULES.md: {code} names {test}, and there is no such function"));
        }
    }
}

/// Whether this is the code of a rule.
fn is_code(word: &str) -> bool {
    let number = word.strip_prefix(['R', 'T', 'B', 'G', 'F']).unwrap_or_default();
    matches!(number.len(), 1 | 2) && number.bytes().all(|byte| byte.is_ascii_digit())
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|it: char| !it.is_alphanumeric() && it != '_')
}

/// The names of all functions in a file.
fn functions(text: &str) -> impl Iterator<Item = &str> {
    text.split("fn ").skip(1).filter_map(|rest| words(rest).next())
}

const CODE_LINES_MAX: usize = 800;

/// Words that mark unfinished code. They are written in halves, so that this file passes.
const UNFINISHED: [(&str, &str); 5] = [("TO", "DO"), ("FIX", "ME"), ("XX", "X:"), ("#[ign", "ore]"), ("dbg", "!(")];

/// Folders in which developers have their files; in halves as well.
const MACHINE_FOLDERS: [(&str, &str); 3] = [("ho", "me"), ("ro", "ot"), ("wo", "rk")];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_have_entries_and_entries_have_tests() {
        let text = "# Rules\n\n### R1 One\n\nSee `x`.\n\nTests: `there` (store),\n`gone`.\n\n### T12 Two\n\nTests: none.\n\n\
                    ## Others\n\n### F3 Three\n\nSee `y`.\n";
        let rules = entries(text);
        let seen: Vec<_> = rules.iter().map(|entry| (entry.code, entry.tests.clone())).collect();
        assert_eq!(seen, [("R1", Some(vec!["there", "gone"])), ("T12", Some(vec![])), ("F3", None)]);

        let mut faults = Vec::new();
        let known: BTreeSet<String> = functions("async fn there() {}\nfn other<T>() {}").map(str::to_owned).collect();
        tests_of(&rules, &known, &mut faults);
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[0].contains("gone") && faults[1].contains("F3"), "{faults:?}");

        faults.clear();
        // In halves, so that this file passes.
        let source = format!("let R7 = 1; // R1, XR1, R123, R1x, {}{}\n// T12\n", 'R', 98);
        cited("a.rs", &source, &rules, &mut faults);
        cited("a.md", "R1 and F3\n02T03 and B9", &rules, &mut faults);
        assert_eq!(faults, ["a.rs:1: RULES.md has no entry R98", "a.md:2: RULES.md has no entry B9"]);
    }
}
