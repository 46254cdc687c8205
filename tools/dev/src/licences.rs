//! Licences and origins of all crates that the programs are built with, by `deny.toml`. `cargo deny check` looks at the same
//! file, and at advisories too, where it is installed.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use spdx::{Expression, ParseMode};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// The part of `deny.toml` that is looked at here.
#[derive(Deserialize)]
struct Rules {
    licenses: Licences,
    bans: Bans,
}

#[derive(Deserialize)]
struct Licences {
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Banned>,
}

#[derive(Deserialize)]
struct Banned {
    #[serde(rename = "crate")]
    name: String,
}

/// One crate that is built on this kind of machine, as `cargo tree` tells it.
struct Package<'a> {
    name: &'a str,
    /// Version, and in brackets where it comes from when that is not crates.io.
    version: &'a str,
    license: &'a str,
}

impl<'a> Package<'a> {
    /// A line of the form `NAME VERSION (FROM)|LICENCE`, with `(*)` behind it where it was told before.
    fn parse(line: &'a str) -> Option<Self> {
        let (package, license) = line.trim_end_matches(" (*)").split_once('|')?;
        let (name, version) = package.split_once(' ')?;
        Some(Self { name, version: version.trim_end_matches(" (proc-macro)"), license })
    }
}

/// Everything that `deny.toml` does not allow.
pub fn faults(root: &Path) -> Result<Vec<String>> {
    let rules = std::fs::read_to_string(root.join("deny.toml")).context("deny.toml cannot be read")?;
    let rules: Rules = toml::from_str(&rules).context("deny.toml")?;
    let told = Command::new("cargo")
        .args(["tree", "--workspace", "--locked", "--edges", "normal,build,dev", "--prefix", "none"])
        .args(["--format", "{p}|{l}"])
        .current_dir(root)
        .output()
        .context("cannot run cargo")?;
    if !told.status.success() {
        bail!("cargo tree: {}", String::from_utf8_lossy(&told.stderr));
    }
    let text = String::from_utf8(told.stdout).context("cargo tree")?;
    let all: BTreeSet<String> = text.lines().filter_map(Package::parse).filter_map(|it| fault(&it, &rules)).collect();
    Ok(all.into_iter().collect())
}

fn fault(package: &Package<'_>, rules: &Rules) -> Option<String> {
    let Package { name, version, license } = package;
    let told = |what: String| Some(format!("{name} {version} {what}; see deny.toml"));
    // The workspace's own crates are folders.
    if version.contains("(/") {
        return None;
    }
    if version.contains('(') {
        return told("does not come from crates.io".into());
    }
    if rules.bans.deny.iter().any(|banned| banned.name == *name) {
        return told("is banned".into());
    }
    match Expression::parse_mode(license, ParseMode::LAX) {
        Ok(expression) if expression.evaluate(|one| rules.licenses.allow.contains(&one.to_string())) => None,
        Ok(_) => told(format!("has the licence {license}, which is not allowed")),
        Err(error) => told(format!("has a licence that cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_allowed_is_told() {
        let rules: Rules = toml::from_str(
            "[licenses]\nallow = [\"MIT\", \"Apache-2.0 WITH LLVM-exception\"]\n[bans]\ndeny = [{ crate = \"ring\" }]",
        )
        .unwrap();
        let of = |line: &str| fault(&Package::parse(line).unwrap(), &rules);
        for fine in ["MIT", "MIT OR GPL-3.0", "MIT/GPL-3.0", "(Zlib OR MIT)", "MIT AND Apache-2.0 WITH LLVM-exception"]
        {
            assert_eq!(of(&format!("a v1.0.0|{fine}")), None, "{fine}");
            assert_eq!(of(&format!("a v1.0.0 (proc-macro)|{fine} (*)")), None, "{fine}");
        }
        for wrong in ["GPL-3.0", "MIT AND GPL-3.0", "Apache-2.0", "nonsense", ""] {
            assert!(of(&format!("a v1.0.0|{wrong}")).is_some(), "{wrong}");
        }
        assert!(of("ring v1.0.0|MIT").is_some());
        assert!(of("a v1.0.0 (https://example.org/a#0123)|MIT").is_some());
        assert_eq!(of("own v1.0.0 (/somewhere/own)|"), None);
    }
}
