//! Errors of files and of RocksDB become errors of the store, and nothing else.

use mover::Error;
use std::error::Error as StdError;
use std::io;
use std::path::Path;

/// An I/O error while reading a file that must be there. If the file is missing or too short, that is damage, not a
/// failing disk.
pub fn reading(path: &Path, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof => {
            let failed = Error::integrity(format!("cannot read {}", path.display())).of_path(path);
            failed.because(error).hint("run `windlass verify`")
        }
        _ => storage("cannot read", path, error),
    }
}

/// An I/O error of the repository's storage, on `path`.
pub fn storage(doing: &str, path: &Path, error: io::Error) -> Error {
    let message = format!("{doing} {}", path.display());
    let failed = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::store_full(message)
            .because(error)
            .hint("free space on the repository's file system; nothing that was committed is affected"),
        io::ErrorKind::NotFound => Error::store_io(message).because(error).hint("run `windlass verify`"),
        // What stands there is not what a repository has.
        io::ErrorKind::InvalidData => Error::integrity(message)
            .because(error)
            .hint("find out who put it there; then bring the file back from a copy, or run `windlass verify`"),
        io::ErrorKind::PermissionDenied => Error::store_io(message).because(error).hint(
            "a repository belongs to one user: run this as that user, or give all of it to your user with `chown -R`",
        ),
        _ => Error::store_io(message).because(error),
    };
    failed.of_path(path)
}

/// An error of RocksDB while doing this.
pub fn rocks(message: &str, hint: &'static str, error: rocksdb::Error) -> Error {
    if FULL.iter().any(|full| error.as_ref().contains(full)) {
        return Error::store_full(message)
            .because(error)
            .hint("free space on the repository's file system; nothing that was committed is affected");
    }
    Error::store_io(message).because(error).hint(hint)
}

/// True for an error of RocksDB that says nothing of what is in its files: no room, no descriptors, a disk that did not
/// answer. It may be gone the next time, so nothing is removed for it.
pub fn is_passing(error: &rocksdb::Error) -> bool {
    let text: &str = error.as_ref();
    let mut passing = FULL.iter().chain(PASSING);
    // What it cannot open because of one of these it calls damaged.
    if passing.any(|passing| text.contains(passing)) {
        return true;
    }
    // Files that are not there, or are something else.
    text.starts_with("IO error") && !STRANGE.iter().any(|strange| text.contains(strange))
}

/// True when such an error, or one of a file, is behind this one.
pub fn came_from_passing(error: &Error) -> bool {
    let mut cause = StdError::source(error);
    while let Some(behind) = cause {
        if behind.downcast_ref::<rocksdb::Error>().is_some_and(is_passing) || behind.is::<io::Error>() {
            return true;
        }
        cause = behind.source();
    }
    false
}

/// Texts of strerror(3) for storage that is full.
const FULL: &[&str] = &["No space left on device", "Disk quota exceeded"];
const PASSING: &[&str] = &[
    "Input/output error",
    "Interrupted system call",
    "Too many open files",
    "Cannot allocate memory",
    "Permission denied",
    "Operation not permitted",
    "Read-only file system",
    "Resource temporarily unavailable",
    "Stale file handle",
];
const STRANGE: &[&str] =
    &["No such file or directory", "Not a directory", "Is a directory", "Too many levels of symbolic links"];

#[cfg(test)]
mod tests {
    use super::*;
    use rocksdb::{DB, Options};

    #[test]
    fn the_file_is_a_field_of_the_error() {
        let path = Path::new("/srv/main/config");
        for kind in [io::ErrorKind::NotFound, io::ErrorKind::StorageFull, io::ErrorKind::Other] {
            for error in [reading(path, kind.into()), storage("cannot create", path, kind.into())] {
                assert_eq!(error.subject().path.as_deref(), Some("/srv/main/config"), "{error}");
            }
        }
    }

    #[test]
    fn passing_errors_are_told_from_damage() {
        let folder = tempfile::tempdir().unwrap();
        let mut options = Options::default();
        options.create_if_missing(true);
        let path = folder.path().join("index");
        let opened = DB::open(&options, &path).unwrap();
        let error = DB::open(&options, &path).unwrap_err();
        assert!(is_passing(&error), "in use: {error}");
        drop(opened);
        std::fs::write(path.join("CURRENT"), "nothing\n").unwrap();
        let error = DB::open(&options, &path).unwrap_err();
        assert!(!is_passing(&error), "damaged: {error}");
        std::fs::write(path.join("CURRENT"), "MANIFEST-000099\n").unwrap();
        let error = DB::open(&options, &path).unwrap_err();
        assert!(!is_passing(&error), "a file is missing: {error}");
        std::fs::remove_dir_all(&path).unwrap();
        std::fs::write(&path, "a file").unwrap();
        let error = DB::open(&options, &path).unwrap_err();
        assert!(!is_passing(&error), "no folder: {error}");
    }
}
