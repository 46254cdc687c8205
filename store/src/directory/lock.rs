//! The lock of a directory's one writer. It goes with the process, so it is never stale.

use super::Directory;
use crate::error::storage;
use crate::io::open_regular;
use mover::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;

/// Held until it is dropped, or the process ends.
pub struct Lock(#[expect(dead_code, reason = "what is open is locked")] File);

impl Directory {
    /// Makes this process the one that adds packs here, and removes what others left of names that were being given.
    ///
    /// # Errors
    /// `Busy` when another process is; of the storage.
    pub fn lock(&self) -> Result<Lock> {
        let path = self.root.join(LOCK);
        let fail = |error| storage("cannot open", &path, error);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = open_regular(&path, &mut options).map_err(fail)?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                let _ = (&file).take(20).read_to_string(&mut holder);
                let holder = holder.trim();
                let by = if holder.is_empty() { String::new() } else { format!(" by process {holder}") };
                return Err(Error::busy(format!("{} is in use{by}", self.root.display())).hint(
                    "wait until it has ended, or use --wait; a repository that windlass-store serves is used as quic://HOST/NAME",
                ));
            }
            Err(error) => return Err(storage("cannot lock", &path, error.into())),
        }
        // For the message above only.
        let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
        self.hold_alone();
        Ok(Lock(file))
    }
}

/// The file that is locked.
pub(super) const LOCK: &str = "lock";
