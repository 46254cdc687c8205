//! The deny list: holders of certificates that are shut out before their certificate ends. It is a file with a line for
//! each holder, and is read again every second.
//!
//! If the file is missing, malformed or not a regular file, everybody is refused: the node cannot know who is meant,
//! and the administrator sees the mistake at once. If reading fails for a reason that may pass (no file descriptors, a
//! disk that does not answer for a moment), running jobs go on: the previous list is used for up to a minute.

use mover::Holder;
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::collections::HashSet;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The deny list of a node.
pub struct DenyList {
    path: PathBuf,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    looked: Option<Instant>,
    /// Since when reading fails for a reason that may pass.
    failing: Option<Instant>,
    shouted: Option<Instant>,
    /// The holders that are shut out; none while there is no usable list, and then everybody is refused.
    denied: Option<HashSet<String>>,
}

/// Why the list cannot be used.
enum Unusable {
    /// A reason that may pass: the previous list is used for a while.
    Passing(String),
    /// A reason that stays until somebody corrects the file.
    Lasting(String),
}

impl DenyList {
    /// The list in this file.
    pub fn new(path: PathBuf) -> Self {
        Self { path, seen: Mutex::default() }
    }

    /// True for somebody who is on it.
    pub fn denies(&self, holder: &Holder) -> bool {
        let mut seen = self.seen.lock().expect("no holder panics");
        if seen.looked.is_none_or(|looked| looked.elapsed() > LOOK_AGAIN) {
            seen.looked = Some(Instant::now());
            self.look(&mut seen);
        }
        seen.denied.as_ref().is_none_or(|denied| denied.contains(&holder.to_string()))
    }

    /// Reads the whole file each time, because the times and the size of a file do not prove that its content is
    /// unchanged.
    fn look(&self, seen: &mut Seen) {
        let what = match self.read() {
            Ok(denied) => {
                seen.denied = Some(denied);
                (seen.failing, seen.shouted) = (None, None);
                return;
            }
            Err(Unusable::Passing(what)) => {
                let failing = *seen.failing.get_or_insert_with(Instant::now);
                if failing.elapsed() > PASSING_MAX {
                    seen.denied = None;
                }
                what
            }
            Err(Unusable::Lasting(what)) => {
                seen.denied = None;
                what
            }
        };
        if seen.shouted.is_none_or(|shouted| shouted.elapsed() > SHOUT_AGAIN) {
            seen.shouted = Some(Instant::now());
            let holds = if seen.denied.is_some() {
                "the previous list is used for up to a minute"
            } else {
                "everybody is refused"
            };
            tracing::error!(path = %self.path.display(), what, "the deny list cannot be used: {holds}");
        }
    }

    /// Reads the file. It must be a regular file, not too long, and no symbolic link: somebody who can put a link there
    /// could make the node read any file.
    fn read(&self) -> Result<HashSet<String>, Unusable> {
        let failed = |error: std::io::Error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::PermissionDenied | ErrorKind::NotADirectory => {
                Unusable::Lasting(error.to_string())
            }
            _ if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
                Unusable::Lasting("it is a symbolic link".into())
            }
            _ => Unusable::Passing(error.to_string()),
        };
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
        let file = File::options().read(true).custom_flags(flags).open(&self.path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() || metadata.len() > LIST_BYTES_MAX {
            return Err(Unusable::Lasting(format!("it is not a file of at most {LIST_BYTES_MAX} bytes")));
        }
        let mut bytes = Vec::new();
        file.take(LIST_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
        let text = String::from_utf8(bytes).map_err(|error| Unusable::Lasting(error.to_string()))?;
        parse(&text).map_err(|line| Unusable::Lasting(format!("a line is not ROLE NAME: {line:?}")))
    }
}

/// The holders in the file. The error is the first line that is not a holder: then it is not known who is meant, and
/// the list is not used.
fn parse(text: &str) -> Result<HashSet<String>, String> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let holder = |line: &str| {
        let (role, name) = line.split_once(char::is_whitespace)?;
        Some(Holder::new(role.parse().ok()?, name.trim().parse().ok()?).to_string())
    };
    lines.filter(|line| !line.is_empty()).map(|line| holder(line).ok_or_else(|| line.to_owned())).collect()
}

const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long the previous list is used when reading fails for a reason that may pass.
const PASSING_MAX: Duration = Duration::from_secs(60);
const SHOUT_AGAIN: Duration = Duration::from_secs(60);
/// Longest list that is read: room for tens of thousands of lines.
const LIST_BYTES_MAX: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_again_and_fails_closed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deny");
        let list = DenyList::new(path.clone());
        let holder = |name: &str| Holder::new(mover::Role::Proxy, name.parse().unwrap());
        let again = || list.seen.lock().unwrap().looked = None;
        assert!(list.denies(&holder("a")), "not there, though it was named");
        std::fs::write(&path, "# gone\nproxy  a # with the host\n\nadmin b\n").unwrap();
        again();
        assert!(list.denies(&holder("a")) && !list.denies(&holder("b")));
        std::fs::write(&path, "").unwrap();
        again();
        assert!(!list.denies(&holder("a")));
        std::fs::write(&path, "Proxy a\n").unwrap();
        again();
        assert!(list.denies(&holder("b")), "who is meant is not known");
        std::fs::remove_file(&path).unwrap();
        again();
        assert!(list.denies(&holder("b")));
    }

    /// A list that was replaced is read, even if its times, its length and its inode are the same as before.
    #[test]
    fn a_list_with_the_same_time_and_length_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deny");
        let list = DenyList::new(path.clone());
        let holder = |name: &str| Holder::new(mover::Role::Proxy, name.parse().unwrap());
        let at = std::time::SystemTime::UNIX_EPOCH;
        for (text, denied, allowed) in [("proxy a\n", "a", "b"), ("proxy b\n", "b", "a")] {
            std::fs::write(&path, text).unwrap();
            std::fs::File::options().write(true).open(&path).unwrap().set_modified(at).unwrap();
            list.seen.lock().unwrap().looked = None;
            assert!(list.denies(&holder(denied)) && !list.denies(&holder(allowed)), "{text}");
        }
    }

    #[test]
    fn only_a_regular_file_is_a_list() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("deny"), folder.path().join("other"));
        let holder = Holder::new(mover::Role::Proxy, "a".parse().unwrap());
        std::fs::write(&other, "").unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        assert!(DenyList::new(path.clone()).denies(&holder), "through a link");
        assert!(!DenyList::new(other.clone()).denies(&holder));
        std::fs::write(&other, vec![b'\n'; (LIST_BYTES_MAX + 1) as usize]).unwrap();
        assert!(DenyList::new(other).denies(&holder), "too long");
        assert!(DenyList::new(folder.path().to_owned()).denies(&holder), "a folder");
    }

    #[test]
    fn an_error_that_may_pass_keeps_the_list_for_a_while() {
        let (mut seen, long_ago) = (Seen::default(), Instant::now().checked_sub(PASSING_MAX * 2).unwrap());
        let list = DenyList::new("/proc/self/mem".into());
        seen.denied = Some(HashSet::new());
        list.look(&mut seen);
        assert!(seen.denied.is_some() && seen.failing.is_some(), "it cannot be read, which may pass");
        seen.failing = Some(long_ago);
        list.look(&mut seen);
        assert!(seen.denied.is_none());
    }
}
