//! A bitmap that shows whether an image was resized (T11).
//!
//! When an image shrinks, QEMU cuts its bitmaps off. When the image grows again, the new part of each bitmap is clean.
//! So a recording bitmap says "unchanged" of data that was cut off and grown again. A *witness* does not record. The
//! disk's last granule is marked in it when it is made, and nothing that happens to the disk sets this mark again. As
//! long as the mark is there, the disk always reached into its last granule. The last granule itself always counts as
//! changed. For this reason each recording bitmap begins with the same mark, which also shows when a recording bitmap
//! was cleared or made anew.
//!
//! A bitmap that was disabled for a while looks like one that never was. So each recording bitmap has a *twin*, which
//! records the same. A change that only one of them recorded shows that the other was disabled. If somebody does the
//! same to all bitmaps of an image, the witness changes too, and this is noticed.

use super::bitmap::{PREFIX, bitmap, prefix};
use super::graph::Graph;
use super::tool::{Fate, ToolError, create_qcow2, run};
use crate::scratch::scratch_folder;
use chunker::{Extent, ExtentSet};
use mover::{RepositoryId, World};
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

/// The name of a witness: `windlass-<repository 8 hex>-end-<random 32 hex>-<size of the disk in bytes>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WitnessName {
    /// First four bytes of the id of the repository that it was made for.
    pub repository: [u8; 4],
    /// Random: a witness that is made anew has another id.
    pub id: [u8; 16],
    /// Of the disk, in bytes.
    pub size: u64,
}

impl WitnessName {
    /// A new one for a disk of `size` bytes.
    pub fn random(repository: RepositoryId, size: u64, world: &World) -> Self {
        Self { repository: prefix(repository), id: world.random_bytes(), size }
    }

    /// True when a backup into `repository` made it.
    pub fn is_of(&self, repository: RepositoryId) -> bool {
        self.repository == prefix(repository)
    }

    /// What is marked in it: the last granule.
    pub fn mark(&self, granularity: u32) -> ExtentSet {
        let mut mark = ExtentSet::new();
        if let Some(last) = self.size.checked_sub(1) {
            let offset = last - last % u64::from(granularity);
            mark.insert(Extent::new(offset, self.size - offset));
        }
        mark
    }
}

impl fmt::Display for WitnessName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let repository = u32::from_be_bytes(self.repository);
        write!(f, "{PREFIX}{repository:08x}-end-{:032x}-{}", u128::from_be_bytes(self.id), self.size)
    }
}

impl FromStr for WitnessName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const NOT_OURS: &str = "not a name that Windlass gives";
        let parts: Vec<&str> = text.strip_prefix(PREFIX).ok_or(NOT_OURS)?.split('-').collect();
        let [repository, "end", id, size] = parts[..] else { return Err(NOT_OURS) };
        let name = Self {
            repository: u32::from_str_radix(repository, 16).map_err(|_| NOT_OURS)?.to_be_bytes(),
            id: u128::from_str_radix(id, 16).map_err(|_| NOT_OURS)?.to_be_bytes(),
            size: size.parse().map_err(|_| NOT_OURS)?,
        };
        // One spelling for one name, so that names can be compared as text.
        if name.to_string() == text { Ok(name) } else { Err(NOT_OURS) }
    }
}

/// Makes a witness in `image`. Its mark is made in a bitmap of an empty image of the same size, and taken over from
/// there, because no bitmap of an image that is kept can be marked without writing to the disk.
///
/// # Errors
/// Those of the tools.
pub async fn add_witness(image: &Graph, name: &WitnessName, granularity: u32) -> Result<(), ToolError> {
    let start = |error: io::Error| ToolError::Start { program: QEMU_IO, error };
    let folder = scratch_folder().map_err(start)?;
    let path = folder.path().join("marks.qcow2");
    create_qcow2(&path, name.size).await?;
    let grain = granularity.to_string();
    let add = ["bitmap", "--add", "-f", "qcow2", "-g", &grain].map(OsStr::new);
    let add = add.into_iter().chain([path.as_os_str(), OsStr::new(MARKS)]);
    run("qemu-img", add, Fate::Shared(MARK_TIMEOUT)).await?;
    mark(&path, &name.mark(granularity)).await?;
    // `-b` takes a path: a `json:` name would not do.
    let path = path.to_str().ok_or_else(|| start(io::Error::other("the folder for temporary files is no text")))?;
    let actions = ["--add", "--disable", "-g", &grain, "--merge", MARKS, "-b", path, "-F", "qcow2"];
    bitmap(&actions, image, &name.to_string()).await
}

async fn mark(path: &Path, mark: &ExtentSet) -> Result<(), ToolError> {
    let mut arguments = vec!["-f".to_owned(), "qcow2".to_owned()];
    for extent in mark.iter() {
        arguments.extend(["-c".to_owned(), format!("write -z {} {}", extent.offset, extent.length)]);
    }
    let arguments = arguments.iter().map(OsStr::new).chain([path.as_os_str()]);
    run(QEMU_IO, arguments, Fate::Shared(MARK_TIMEOUT)).await.map(drop)
}

const QEMU_IO: &str = "qemu-io";
const MARKS: &str = "marks";
/// For marking a small image of our own.
const MARK_TIMEOUT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_round_trip() {
        let name = WitnessName { repository: [0, 0xab, 1, 2], id: [7; 16], size: 4096 };
        let text = name.to_string();
        assert_eq!(text, format!("windlass-00ab0102-end-{}-4096", "07".repeat(16)));
        assert_eq!(text.parse(), Ok(name));
        assert!(text.parse::<super::super::TrackingName>().is_err(), "an earlier version takes it for somebody else's");
        for other in [text.replace("4096", "+4096"), text.replace("end", "END"), text.replace("07-4096", "7-4096")] {
            assert!(other.parse::<WitnessName>().is_err(), "{other}");
        }
    }

    #[test]
    fn the_mark_is_the_last_granule() {
        for (size, from) in [(512, 0), (65_536, 0), (65_536 + 512, 65_536), (10 << 20, (10 << 20) - 65_536)] {
            let mark = WitnessName { repository: [0; 4], id: [1; 16], size }.mark(65_536);
            assert!(mark.iter().eq([Extent::new(from, size - from)]), "{size}: {mark:?}");
        }
    }
}
