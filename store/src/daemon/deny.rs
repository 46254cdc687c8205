//! Who is shut out before the certificate ends: a file with a line for each, looked at again when it has changed.

use mover::identity::Holder;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

/// The deny list of a node.
pub struct DenyList {
    path: PathBuf,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    looked: Option<Instant>,
    changed: Option<SystemTime>,
    /// None while it cannot be read: then nobody may do anything.
    denied: Option<HashSet<String>>,
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

    fn look(&self, seen: &mut Seen) {
        let changed = std::fs::metadata(&self.path).and_then(|metadata| metadata.modified());
        if seen.denied.is_some() && changed.as_ref().ok() == seen.changed.as_ref() {
            return;
        }
        match changed.and_then(|changed| Ok((changed, std::fs::read_to_string(&self.path)?))) {
            Ok((changed, text)) => {
                seen.denied = self.parse(&text);
                seen.changed = Some(changed);
            }
            Err(error) => {
                tracing::error!(path = %self.path.display(), %error, "the deny list cannot be read: everybody is refused");
                seen.denied = None;
            }
        }
    }
}

impl DenyList {
    /// None when a line is no holder's: who was meant is not known, so nobody is let in.
    fn parse(&self, text: &str) -> Option<HashSet<String>> {
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
        let holder = |line: &str| {
            let (role, name) = line.split_once(char::is_whitespace)?;
            Some(Holder::new(role.parse().ok()?, name.trim().parse().ok()?).to_string())
        };
        let parsed = lines.filter(|line| !line.is_empty()).map(|line| holder(line).ok_or(line));
        parsed.collect::<Result<_, _>>().map_or_else(
            |line| {
                let path = self.path.display();
                tracing::error!(%path, line, "the deny list has a line that is no ROLE NAME: everybody is refused");
                None
            },
            Some,
        )
    }
}

const LOOK_AGAIN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_again_and_fails_closed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deny");
        let list = DenyList::new(path.clone());
        let holder = |name: &str| Holder::new(mover::identity::Role::Proxy, name.parse().unwrap());
        let again = || list.seen.lock().unwrap().looked = None;
        assert!(list.denies(&holder("a")), "not there, though it was named");
        std::fs::write(&path, "# gone\nproxy  a # with the host\n\nadmin b\n").unwrap();
        again();
        assert!(list.denies(&holder("a")) && !list.denies(&holder("b")));
        std::fs::write(&path, "").unwrap();
        std::fs::File::open(&path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        again();
        assert!(!list.denies(&holder("a")));
        std::fs::write(&path, "Proxy a\n").unwrap();
        again();
        assert!(list.denies(&holder("b")), "who is meant is not known");
        std::fs::remove_file(&path).unwrap();
        again();
        assert!(list.denies(&holder("b")));
    }
}
