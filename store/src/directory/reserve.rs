//! The files of the reserve: room that is kept for when others have filled the file system. How much is kept, and when it is
//! given up, is decided in `room`.

use super::Directory;
use std::io::ErrorKind;

impl Directory {
    /// Makes the files of the reserve that are not there, with as much as there is room for. False when it is not whole.
    pub(super) fn make_reserve(&self, bytes: u64) -> bool {
        let folder = self.root.join(RESERVE);
        let there = self.list_or_none(RESERVE).ok().flatten();
        let have = there.as_ref().map_or(0, Vec::len);
        if have >= RESERVE_FILES || bytes == 0 {
            return true;
        }
        let made = (|| {
            if there.is_none() {
                self.io.make_dir(&folder)?;
            }
            for number in 0..RESERVE_FILES {
                let path = folder.join(format!("{number:02}"));
                let file = match self.io.create(&path) {
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                    file => file?,
                };
                if let Err(error) = self.io.set_aside(&file, bytes / RESERVE_FILES as u64) {
                    let _ = self.io.remove(&path);
                    return Err(error);
                }
            }
            Ok(())
        })();
        if let Err(error) = &made {
            tracing::debug!(%error, "the reserve is not whole");
        }
        // Where nothing can be set aside there is no use in trying again.
        made.is_ok() || made.is_err_and(|error| error.kind() == ErrorKind::Unsupported)
    }

    /// Gives the reserve up. True when there was something.
    pub(super) fn remove_reserve(&self) -> bool {
        let names = self.list_or_none(RESERVE).ok().flatten().unwrap_or_default();
        let gone = names.iter().map(|name| self.io.remove(&self.root.join(RESERVE).join(name)));
        gone.filter(std::result::Result::is_ok).count() > 0
    }
}

/// Folder of the reserve.
pub(super) const RESERVE: &str = "reserve";
/// Files in the reserve, because a file system may run out of files too. This many are enough for the records of a
/// sweep, its counts, and packs that are packed again.
const RESERVE_FILES: usize = 32;
