//! Errors of files become errors of the store, and nothing else.

use mover::Error;
use std::io;
use std::path::Path;

/// An I/O error while reading what must be there: that it is not, or ends early, is damage and not a failing disk.
pub fn reading(path: &Path, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof => {
            Error::integrity(format!("cannot read {}", path.display())).because(error).hint("run `windlass verify`")
        }
        _ => storage("cannot read", path, error),
    }
}

/// An I/O error of the repository's storage, on `path`.
pub fn storage(doing: &str, path: &Path, error: io::Error) -> Error {
    let message = format!("{doing} {}", path.display());
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::store_full(message)
            .because(error)
            .hint("free space on the repository's file system; nothing that was committed is affected"),
        io::ErrorKind::NotFound => Error::store_io(message).because(error).hint("run `windlass verify`"),
        _ => Error::store_io(message).because(error),
    }
}
