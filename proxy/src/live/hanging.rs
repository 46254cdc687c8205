//! Whether scratch space answers. A file system that hangs costs the guest one write that waits; but to take the
//! snapshot out, QEMU must wait until everything that it wrote is done, and the guest with it. So that is not begun
//! while a file system with scratch space hangs.

use rustix::fs::{Mode, OFlags};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;
use tokio::process::Command;
use tokio::time::timeout;

/// The first folder, among those in which this process has files without a name, that does not answer.
pub async fn hanging_folder(process: u32) -> Option<PathBuf> {
    for folder in folders(process) {
        if !answers(&folder).await {
            return Some(folder);
        }
    }
    None
}

/// Folders of files that lost their names: scratch space is among them. Empty where the system does not tell.
fn folders(process: u32) -> BTreeSet<PathBuf> {
    let Ok(open) = std::fs::read_dir(format!("/proc/{process}/fd")) else { return BTreeSet::new() };
    let links = open.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links.filter_map(|link| folder_of(link.into_os_string())).take(FOLDERS_MAX).collect()
}

/// The folder in what the kernel says of a file without a name: `/var/tmp/#1234 (deleted)`.
fn folder_of(link: OsString) -> Option<PathBuf> {
    let mut bytes = link.into_vec();
    bytes.truncate(bytes.strip_suffix(b" (deleted)")?.len());
    let path = PathBuf::from(OsString::from_vec(bytes));
    path.parent().filter(|folder| folder.is_absolute()).map(Path::to_owned)
}

/// True unless a write there hangs. A process of its own tries it, because a thread that hangs could not be left.
async fn answers(folder: &Path) -> bool {
    let mut command = Command::new("/proc/self/exe");
    command.arg(WORD).arg(folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    match command.spawn() {
        Ok(mut child) => timeout(ANSWER_TIMEOUT, child.wait()).await.is_ok(),
        Err(_) => true,
    }
}

/// Writes into a folder when this process was started for that.
pub fn run_if_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    arguments.next().filter(|word| word == WORD)?;
    let wrote = arguments.next().map(|folder| write_into(Path::new(&folder)));
    Some(if matches!(wrote, Some(Ok(()))) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn write_into(folder: &Path) -> io::Result<()> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR)?);
    file.write_all(&[0; 512])?;
    file.sync_data()
}

/// The argument that makes this program try a folder. No command for people.
const WORD: &str = "try-folder";
/// For a small write to be durable. Slow disks under load need seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Folders that are tried: scratch space lies in one.
const FOLDERS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_files_without_names() {
        let folder = |link: &str| folder_of(link.into());
        assert_eq!(folder("/var/tmp/#1234 (deleted)"), Some("/var/tmp".into()));
        assert_eq!(folder("/var/tmp/disk.raw"), None);
        assert_eq!(folder("/memfd:x (deleted)"), Some("/".into()));
        assert_eq!(folder("socket:[1] (deleted)"), None);
    }
}
