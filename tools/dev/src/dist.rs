//! The programs as they are released: stripped, with their debug symbols in separate files.

use crate::shell;
use anyhow::{Context, Result};
use std::path::Path;

/// Builds the programs and puts them into `out`.
pub fn run(root: &Path, out: &Path) -> Result<()> {
    shell(root, "cargo", &["build", "--locked", "--release", "--workspace", "--bins"])?;
    std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let built = std::env::current_exe()?;
    for program in PROGRAMS {
        strip(&built.with_file_name(program), out)?;
        println!("{}", out.join(program).display());
    }
    Ok(())
}

/// Puts a program without symbols into the folder `out`, and its symbols beside it as `PROGRAM.debug`, where debuggers and
/// the program's own stack backtraces find them.
fn strip(built: &Path, out: &Path) -> Result<()> {
    let name = built.file_name().and_then(|it| it.to_str()).context("a program has a name")?;
    let from = built.to_str().context("the path of the programs is no text")?;
    let symbols = format!("{name}.debug");
    shell(out, "objcopy", &["--only-keep-debug", from, &symbols])?;
    // Symbols are looked for by this name and their checksum: they must be there first.
    let link = format!("--add-gnu-debuglink={symbols}");
    shell(out, "objcopy", &["--strip-all", &link, from, name])
}

const PROGRAMS: [&str; 3] = ["windlass", "windlass-store", "windlass-proxy"];

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn what_is_stripped_works_and_finds_its_symbols() {
        let (folder, own) = (tempfile::tempdir().unwrap(), std::env::current_exe().unwrap());
        strip(&own, folder.path()).unwrap();
        let (made, symbols) = (folder.path().join(own.file_name().unwrap()), folder.path().read_dir().unwrap().count());
        assert_eq!(symbols, 2);
        let length = |path: &Path| path.metadata().unwrap().len();
        assert!(length(&made) < length(&own), "{} of {}", length(&made), length(&own));
        // The stack of a test that fails names functions, as long as the symbols are there.
        let stack_names_functions = || {
            let failing = ["--ignored", "--exact", "dist::tests::fails_on_purpose"];
            let ran = Command::new(&made).args(failing).env("RUST_BACKTRACE", "1").output().unwrap();
            assert!(!ran.status.success());
            // Where it is said depends on who runs tests.
            let said = String::from_utf8_lossy(&[ran.stdout, ran.stderr].concat()).into_owned();
            said.contains("windlass_dev::dist::tests::fails_on_purpose")
        };
        assert!(stack_names_functions());
        let symbols = format!("{}.debug", own.file_name().unwrap().to_str().unwrap());
        std::fs::remove_file(folder.path().join(symbols)).unwrap();
        assert!(!stack_names_functions(), "they were not in the program itself");
    }

    #[test]
    #[ignore = "it fails, so that another test sees how"]
    fn fails_on_purpose() {
        panic!("on purpose");
    }
}
