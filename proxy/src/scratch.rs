//! Folders for what tools are handed: sockets, small images. Nobody else can look into them.

use mover::scratch_places;
use std::io;
use tempfile::TempDir;

/// Makes a folder, which is removed with the value. Takes only places in which the path of a socket is short enough.
/// Tries several of them, because a service may be able to write in few places.
///
/// # Errors
/// Of the last place tried.
pub fn scratch_folder() -> io::Result<TempDir> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for place in scratch_places().into_iter().filter(|place| place.as_os_str().len() <= FOLDER_BYTES_MAX) {
        // Made with mode 0700.
        match tempfile::Builder::new().prefix("windlass-").tempdir_in(place) {
            Ok(folder) => return Ok(folder),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A socket's path has at most 107 bytes; ours adds 16 or so to the folder's.
const FOLDER_BYTES_MAX: usize = 80;
