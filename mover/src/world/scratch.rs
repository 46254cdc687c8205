//! Folders for files and sockets that no other program needs to see.

use crate::{Random as _, SystemRandom};
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Folders in which a private folder may be made, the best first: those that systemd or the session made for this
/// program, then those that every program has. A service may be able to write in the first of them only.
pub fn scratch_places() -> Vec<PathBuf> {
    let named = ["RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR", "TMPDIR"].iter().filter_map(std::env::var_os);
    // The first may name several.
    let first = |it: std::ffi::OsString| std::env::split_paths(&it).next();
    let usual = ["/tmp", "/dev/shm", "/var/tmp"].map(PathBuf::from);
    named.filter_map(first).filter(|it| it.is_absolute()).chain(usual).collect()
}

/// Makes a new folder that nobody else can look into or put anything in.
///
/// # Errors
/// The error of the last place that was tried.
pub fn private_folder(prefix: &str) -> io::Result<PathBuf> {
    let mut random = [0; 8];
    SystemRandom.fill(&mut random);
    let name = format!("{prefix}-{:016x}", u64::from_le_bytes(random));
    private_folder_in(&scratch_places(), &name)
}

fn private_folder_in(places: &[PathBuf], name: &str) -> io::Result<PathBuf> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for place in places {
        let folder = Path::new(place).join(name);
        match DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_place_that_cannot_be_written_is_passed_over() {
        let good = tempfile::tempdir().unwrap();
        let places = [PathBuf::from("/proc"), PathBuf::from("/nowhere"), good.path().to_owned()];
        let folder = private_folder_in(&places, "x").unwrap();
        assert_eq!(folder, good.path().join("x"));
        assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        // One that somebody made before is not taken.
        assert_eq!(private_folder_in(&places[2..], "x").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }
}
