//! Giving a complete file a name that nothing has. A name always has a complete file, and when many race for a name,
//! one wins. There are three ways to do this, and the first that the file system can do is used: link(2), which needs
//! hard links; renameat2(2), which replaces nothing; or to look first whether the name is free, which only the holder
//! of the repository's lock may do.

use super::{Directory, INCOMING, INCOMING_OBJECT};
use crate::io::Names;
use rustix::io::Errno;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};

/// How names are given in one directory, as its file system turned out.
#[derive(Default)]
pub(super) struct Naming {
    way: AtomicU8,
    /// This process holds the lock.
    alone: AtomicBool,
}

const WAYS: [Names; 3] = [Names::Links, Names::Renames, Names::Replaces];

impl Directory {
    /// Notes that this process holds the repository's lock, and removes claims that a process left when it died. This
    /// is called before this process creates anything, so all claims are old.
    pub(super) fn hold_alone(&self) {
        self.naming.alone.store(true, Relaxed);
        let names = self.io.list(&self.root.join(INCOMING)).unwrap_or_default();
        let claims = names.iter().filter(|name| name.starts_with(INCOMING_CLAIM));
        claims.for_each(|name| self.remove_incoming(&self.root.join(INCOMING).join(name)));
    }

    /// Gives a complete, synced file under `incoming/` the name `to`, which nothing has; not durable yet. Tells whether the
    /// file has lost the name `from` with it.
    pub(super) fn name(&self, from: &Path, to: &Path) -> io::Result<bool> {
        for way in &WAYS[usize::from(self.naming.way.load(Relaxed))..] {
            let named = match way {
                Names::Links => self.io.link(from, to),
                Names::Renames => self.io.rename_new(from, to),
                Names::Replaces => self.replace_nothing(from, to),
            };
            match named {
                Err(error) if is_refused(*way, &error) => {}
                named => {
                    if named.is_ok() {
                        self.naming.way.store(*way as u8, Relaxed);
                    }
                    return named.map(|()| *way != Names::Links);
                }
            }
        }
        Err(ErrorKind::Unsupported.into())
    }

    /// Gives a name by looking first whether it is free. The lock excludes other processes of this computer. The claim
    /// excludes processes of other computers, which do not see the lock.
    fn replace_nothing(&self, from: &Path, to: &Path) -> io::Result<()> {
        if !self.naming.alone.load(Relaxed) {
            return Err(io::Error::other(
                "this file system has no hard links, so only the process that has the repository open for writing can add to it",
            ));
        }
        let name = to.file_name().unwrap_or_default().to_string_lossy();
        let claim = self.root.join(INCOMING).join(format!("{INCOMING_CLAIM}{name}"));
        if let Err(error) = self.io.create(&claim) {
            return Err(match error.kind() {
                ErrorKind::AlreadyExists => io::Error::other("another computer is writing to this repository"),
                _ => error,
            });
        }
        let named = match self.io.open(to) {
            Ok(_) => Err(ErrorKind::AlreadyExists.into()),
            Err(error) if error.kind() == ErrorKind::NotFound => self.io.rename(from, to),
            Err(error) => Err(error),
        };
        self.remove_incoming(&claim);
        named
    }
}

/// True when a file system says that it has no such operation.
fn is_refused(way: Names, error: &io::Error) -> bool {
    let Some(errno) = error.raw_os_error().map(Errno::from_raw_os_error) else { return false };
    match way {
        Names::Links => matches!(errno, Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::MLINK),
        Names::Renames => matches!(errno, Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP),
        Names::Replaces => false,
    }
}

/// Prefix of claims: files that reserve a name while it is being given. Older programs take them for objects that are
/// being written.
const INCOMING_CLAIM: &str = "object-claim-";

const _: () = assert!(INCOMING_OBJECT.len() < INCOMING_CLAIM.len());
