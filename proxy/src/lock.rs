//! QEMU's image locks (its `block/file-posix.c`): what a process does with an image, and what it forbids others, are
//! shared locks on single bytes of the image file. A conflict is found by asking for somebody else's lock.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;

/// What an image file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Reading one moment: nobody may write or resize meanwhile.
    Read,
    /// Writing: nobody may use it meanwhile.
    Write,
}

/// What became of taking the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Locked {
    /// Held until the file is closed.
    Held,
    /// Somebody uses the image in a way that does not go with ours.
    Conflict,
    /// The file system has no such locks.
    Unsupported,
}

/// Takes QEMU's lock on `file`, which must be open for reading. It lasts as long as the open file does. A loop device
/// takes no lock. So for [`Purpose::Write`], a loop device that shows `file` counts as a conflict.
///
/// # Errors
/// Those of `fcntl`.
pub fn lock_image(file: &File, purpose: Purpose) -> io::Result<Locked> {
    let (used, forbidden): (&[i64], &[i64]) = match purpose {
        Purpose::Read => (&[CONSISTENT_READ], &[WRITE, RESIZE]),
        Purpose::Write => (&[CONSISTENT_READ, WRITE, RESIZE], &[CONSISTENT_READ, WRITE, WRITE_UNCHANGED, RESIZE]),
    };
    let ours = used.iter().map(|bit| USED + bit).chain(forbidden.iter().map(|bit| FORBIDDEN + bit));
    if purpose == Purpose::Write && is_behind_loop(&file.metadata()?) {
        return Ok(Locked::Conflict);
    }
    // First take, then look: of two that start at once at least one sees the other.
    for byte in ours {
        match fcntl(file, libc::F_OFD_SETLK, libc::F_RDLCK, byte) {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
                return Ok(Locked::Conflict);
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOLCK | libc::EOPNOTSUPP)) => {
                return Ok(Locked::Unsupported);
            }
            Err(error) => return Err(error),
        }
    }
    let theirs = forbidden.iter().map(|bit| USED + bit).chain(used.iter().map(|bit| FORBIDDEN + bit));
    for byte in theirs {
        // Would an exclusive lock be in the way of anybody's?
        if fcntl(file, libc::F_OFD_GETLK, libc::F_WRLCK, byte)? != libc::F_UNLCK {
            return Ok(Locked::Conflict);
        }
    }
    Ok(Locked::Held)
}

/// True for a file that some loop device shows as its own, as far as that can be seen.
fn is_behind_loop(file: &Metadata) -> bool {
    let Ok(devices) = std::fs::read_dir("/sys/block") else { return false };
    let shown = devices.flatten().filter_map(|device| std::fs::read(device.path().join("loop/backing_file")).ok());
    let mut shown = shown.filter_map(|path| std::fs::metadata(OsStr::from_bytes(path.trim_ascii_end())).ok());
    shown.any(|it| (it.dev(), it.ino()) == (file.dev(), file.ino()))
}

/// Gives the lock type that the kernel answers.
fn fcntl(file: &File, command: i32, kind: i32, byte: i64) -> io::Result<i32> {
    let mut lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        // The kernel wants 0 for locks of open file descriptions.
        l_pid: 0,
    };
    // SAFETY: the descriptor is open as long as `file` is borrowed, and the kernel reads and writes only `lock`.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(lock.l_type.into()) }
}

const USED: i64 = 100;
const FORBIDDEN: i64 = 200;
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const WRITE_UNCHANGED: i64 = 2;
const RESIZE: i64 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_share_writers_do_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(file.path()).unwrap();
        let (one, two, three) = (open(), open(), open());
        assert_eq!(lock_image(&one, Purpose::Read).unwrap(), Locked::Held);
        assert_eq!(lock_image(&two, Purpose::Read).unwrap(), Locked::Held);
        assert_eq!(lock_image(&three, Purpose::Write).unwrap(), Locked::Conflict);
        drop((one, two, three));
        let (one, two) = (open(), open());
        assert_eq!(lock_image(&one, Purpose::Write).unwrap(), Locked::Held);
        assert_eq!(lock_image(&two, Purpose::Read).unwrap(), Locked::Conflict);
    }
}
