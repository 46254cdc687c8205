//! Licences and origins of all crates that the programs are built with, by `deny.toml`. `cargo deny check` looks at the same
//! file, and at advisories too, where it is installed.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use spdx::{Expression, ParseMode};
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

/// What cargo tells of all crates.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    /// None of the workspace's own.
    source: Option<String>,
}

/// Everything that `deny.toml` does not allow.
pub fn faults(root: &Path) -> Result<Vec<String>> {
    let rules = std::fs::read_to_string(root.join("deny.toml")).context("deny.toml cannot be read")?;
    let rules: Rules = toml::from_str(&rules).context("deny.toml")?;
    let told = Command::new("cargo")
        .args(["metadata", "--locked", "--format-version", "1", "--filter-platform"])
        .arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
        .current_dir(root)
        .output()
        .context("cannot run cargo")?;
    if !told.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&told.stderr));
    }
    let all: Metadata = serde_json::from_slice(&told.stdout).context("cargo metadata")?;
    Ok(all.packages.iter().filter_map(|package| fault(package, &rules)).collect())
}

fn fault(package: &Package, rules: &Rules) -> Option<String> {
    let Package { name, version, license, source } = package;
    let source = source.as_ref()?;
    let told = |what: String| Some(format!("{name} {version} {what}; see deny.toml"));
    if !source.starts_with("registry+https://github.com/rust-lang/crates.io-index") {
        return told(format!("comes from {source}"));
    }
    if rules.bans.deny.iter().any(|banned| banned.name == *name) {
        return told("is banned".into());
    }
    let Some(license) = license else { return told("names no licence".into()) };
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
        let registry = "registry+https://github.com/rust-lang/crates.io-index";
        let of = |name: &str, license: Option<&str>, source: Option<&str>| {
            let (license, source) = (license.map(str::to_owned), source.map(str::to_owned));
            fault(&Package { name: name.into(), version: "1.0.0".into(), license, source }, &rules)
        };
        for fine in ["MIT", "MIT OR GPL-3.0", "MIT/GPL-3.0", "(Zlib OR MIT)", "MIT AND Apache-2.0 WITH LLVM-exception"]
        {
            assert_eq!(of("a", Some(fine), Some(registry)), None, "{fine}");
        }
        for wrong in ["GPL-3.0", "MIT AND GPL-3.0", "Apache-2.0", "nonsense"] {
            assert!(of("a", Some(wrong), Some(registry)).is_some(), "{wrong}");
        }
        assert!(of("ring", Some("MIT"), Some(registry)).is_some());
        assert!(of("a", None, Some(registry)).is_some());
        assert!(of("a", Some("MIT"), Some("git+https://example.org/a")).is_some());
        assert_eq!(of("own", None, None), None);
    }
}
