//! Looking for machines: sockets of QEMUs that answer, and images in folders. Only what the configuration's patterns allow
//! is taken, and no more than limits say. A socket that does not answer holds up nobody else.

use super::config::{Discover, Glob, NameFrom};
use futures::StreamExt as _;
use mover::{Name, Result, blocking};
use proxy::{NamedSource, QemuIdentity, QmpAddress, SourceAddress, disk_size};
use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use wire::control::DISKS_MAX;

/// Sockets that a pattern names, in the order of their paths.
pub async fn sockets(pattern: &Glob, warn: &mut Vec<String>) -> Vec<PathBuf> {
    let is_socket = |path: &Path| std::fs::metadata(path).is_ok_and(|it| it.file_type().is_socket());
    paths(pattern, is_socket, warn).await
}

/// Who answers behind each of these sockets.
pub async fn who_answers(sockets: Vec<PathBuf>) -> BTreeMap<PathBuf, Result<QemuIdentity>> {
    let asked = sockets.into_iter().map(|socket| async {
        let address = QmpAddress { socket: socket.clone(), agent: None };
        (socket, QemuIdentity::ask(&address).await)
    });
    futures::stream::iter(asked).buffer_unordered(ASKED_AT_ONCE).collect().await
}

/// Machines whose images a pattern finds: each with its disks, and their sizes where these can be told.
pub async fn images(
    it: &Discover,
    pattern: &Glob,
    warn: &mut Vec<String>,
) -> BTreeMap<Name, Vec<(NamedSource, Option<u64>)>> {
    let below = fixed_part(pattern);
    let is_image = move |path: &Path| is_allowed(path, &below);
    let mut machines: BTreeMap<Name, Vec<(NamedSource, Option<u64>)>> = BTreeMap::new();
    for path in paths(pattern, is_image, warn).await {
        let Some((machine, disk)) = names(&path, it.name_from) else {
            warn.push(format!("{}: no machine and disk can be called after it", path.display()));
            continue;
        };
        let file = path.file_stem().unwrap_or_default().to_string_lossy();
        if it.exclude_disks.iter().any(|pattern| pattern.fits(&file)) {
            continue;
        }
        let disks = machines.entry(machine.clone()).or_default();
        if disks.len() >= DISKS_MAX || disks.iter().any(|(other, _)| other.name == disk) {
            warn.push(format!(
                "{}: machine {machine} has a disk {disk}, or {DISKS_MAX} disks, already",
                path.display()
            ));
            continue;
        }
        let address = SourceAddress::File { path, bitmap: None, format: None };
        disks.push((NamedSource { name: disk, address }, None));
    }
    for (disk, size) in machines.values_mut().flatten() {
        *size = size_of(&disk.address).await;
    }
    machines
}

/// Size of a disk, where it can be told soon.
pub async fn size_of(address: &SourceAddress) -> Option<u64> {
    let address = address.clone();
    in_time(SIZE_TIMEOUT, move || disk_size(&address)).await.flatten()
}

/// What `work` gives, unless its storage does not answer in time. A thread that hangs keeps its place, so that only a few
/// ever hang.
async fn in_time<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    static PLACES: Semaphore = Semaphore::const_new(THREADS_MAX);
    let done = async {
        let place = PLACES.acquire().await.expect("never closed");
        blocking(move || {
            let _place = place;
            work()
        })
        .await
    };
    timeout(limit, done).await.ok()
}

/// The name that a machine has by the socket of its QEMU.
pub fn name_of(socket: &Path, told: Option<&Name>, from: Option<NameFrom>) -> Option<Name> {
    let told = told.filter(|_| from != Some(NameFrom::File)).cloned();
    told.or_else(|| socket.file_stem()?.to_str()?.parse().ok())
}

/// The part of a pattern that is a path: nothing outside of that folder is taken, whatever links there are.
pub fn fixed_part(pattern: &Glob) -> PathBuf {
    let whole = Path::new(pattern.as_str());
    let is_fixed = |part: &Component<'_>| !part.as_os_str().to_string_lossy().contains(['*', '?', '[']);
    let fixed: PathBuf = whole.components().take_while(is_fixed).collect();
    if fixed == whole { fixed.parent().map_or(fixed.clone(), Path::to_owned) } else { fixed }
}

/// Whether an image may be opened: a file, not a link to one, that really lies in this folder.
pub fn is_allowed(path: &Path, below: &Path) -> bool {
    let is_file = std::fs::symlink_metadata(path).is_ok_and(|it| it.is_file());
    let real = || Some((std::fs::canonicalize(path).ok()?, std::fs::canonicalize(below).ok()?));
    is_file && real().is_some_and(|(path, below)| path.starts_with(below))
}

/// The names of machine and disk that an image has.
fn names(path: &Path, from: Option<NameFrom>) -> Option<(Name, Name)> {
    let stem: Name = path.file_stem()?.to_str()?.parse().ok()?;
    if from == Some(NameFrom::File) {
        return Some((stem, "disk0".parse().expect("a valid name")));
    }
    let folder = path.parent()?.file_name()?.to_str()?.parse().ok()?;
    Some((folder, stem))
}

/// What a pattern names and `is_one` accepts, within limits of number and time.
async fn paths(
    pattern: &Glob,
    is_one: impl Fn(&Path) -> bool + Send + 'static,
    warn: &mut Vec<String>,
) -> Vec<PathBuf> {
    let text = pattern.as_str().to_owned();
    let found = in_time(GLOB_TIMEOUT, move || {
        let options = glob::MatchOptions {
            require_literal_separator: true,
            require_literal_leading_dot: true,
            ..Default::default()
        };
        let all = glob::glob_with(&text, options).into_iter().flatten();
        let mut found: Vec<PathBuf> = all.flatten().filter(|path| is_one(path)).take(PATHS_MAX + 1).collect();
        found.sort();
        found
    });
    let Some(mut found) = found.await else {
        warn.push(format!("{}: the storage did not answer within {} s", pattern.as_str(), GLOB_TIMEOUT.as_secs()));
        return Vec::new();
    };
    if found.len() > PATHS_MAX {
        warn.push(format!("{}: more than {PATHS_MAX} files, and only so many are looked at", pattern.as_str()));
        found.truncate(PATHS_MAX);
    }
    found
}

/// Files that one pattern finds.
const PATHS_MAX: usize = 2048;
/// Sockets that are asked at the same time.
const ASKED_AT_ONCE: usize = 16;
/// For finding what a pattern names.
const GLOB_TIMEOUT: Duration = Duration::from_secs(30);
/// Threads that look at files.
const THREADS_MAX: usize = 8;
/// For reading the head of an image.
const SIZE_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn glob(text: String) -> Glob {
        text.try_into().unwrap()
    }

    fn discover(name_from: Option<NameFrom>) -> Discover {
        let exclude_disks = vec![glob("*-swap".into())];
        Discover { qmp: None, images: None, name_from, exclude: Vec::new(), exclude_disks, tags: Vec::new() }
    }

    #[test]
    fn parts_of_patterns_and_names() {
        for (pattern, fixed) in
            [("/srv/vms/*/*.qcow2", "/srv/vms"), ("/srv/vms/a.qcow2", "/srv/vms"), ("/a/b?/c", "/a"), ("/*", "/")]
        {
            assert_eq!(fixed_part(&glob(pattern.into())), Path::new(fixed), "{pattern}");
        }
        let socket = Path::new("/run/web.qmp");
        let told: Name = "db".parse().unwrap();
        assert_eq!(name_of(socket, Some(&told), None).unwrap().as_str(), "db");
        assert_eq!(name_of(socket, Some(&told), Some(NameFrom::File)).unwrap().as_str(), "web");
        assert_eq!(name_of(socket, None, None).unwrap().as_str(), "web");
        assert_eq!(name_of(Path::new("/run/-x.qmp"), None, None), None);
    }

    #[tokio::test]
    async fn only_files_below_the_pattern_become_disks() {
        let folder = tempfile::tempdir().unwrap();
        let (vms, outside) = (folder.path().join("vms"), folder.path().join("outside"));
        for sub in [vms.join("web"), vms.join("db"), vms.join("bad name"), outside.clone()] {
            std::fs::create_dir_all(sub).unwrap();
        }
        for file in
            ["web/vda.raw", "web/vdb.raw", "web/vdb.img.raw", "web/x-swap.raw", "bad name/vda.raw", "web/.hidden.raw"]
        {
            std::fs::write(vms.join(file), [7; 512]).unwrap();
        }
        std::fs::write(outside.join("secret.raw"), "s").unwrap();
        std::os::unix::fs::symlink(outside.join("secret.raw"), vms.join("db/vda.raw")).unwrap();
        std::os::unix::fs::symlink(&outside, vms.join("linked")).unwrap();
        let (pattern, mut warnings) = (glob(format!("{}/*/*.raw", vms.display())), Vec::new());
        let found = images(&discover(None), &pattern, &mut warnings).await;
        let names: Vec<_> = found
            .iter()
            .map(|(name, disks)| (name.as_str(), disks.iter().map(|it| (it.0.name.as_str(), it.1)).collect::<Vec<_>>()))
            .collect();
        let size = Some(512);
        assert_eq!(names, [("web", vec![("vda", size), ("vdb.img", size), ("vdb", size)])], "{warnings:?}");
        assert!(warnings.len() == 1 && warnings[0].contains("bad name"), "{warnings:?}");
        let found = images(&discover(Some(NameFrom::File)), &pattern, &mut Vec::new()).await;
        assert!(found.len() == 3 && found.values().all(|disks| disks[0].0.name.as_str() == "disk0"), "{found:?}");
    }

    /// A socket on which nobody says a word takes its time, and no other's.
    #[tokio::test]
    async fn who_is_silent_holds_up_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = |number: usize| folder.path().join(format!("{number}.qmp"));
        let _listeners: Vec<_> = (0..8).map(|it| std::os::unix::net::UnixListener::bind(path(it)).unwrap()).collect();
        std::fs::write(folder.path().join("file.qmp"), "").unwrap();
        let pattern = glob(format!("{}/*.qmp", folder.path().display()));
        let found = sockets(&pattern, &mut Vec::new()).await;
        assert_eq!(found.len(), 8, "a file is no socket");
        let began = std::time::Instant::now();
        let told = who_answers(found).await;
        assert!(told.len() == 8 && told.values().all(Result::is_err));
        assert!(began.elapsed() < Duration::from_secs(12), "together, not one after another");
    }
}
