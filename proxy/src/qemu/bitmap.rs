//! Persistent dirty bitmaps of an offline qcow2 image, and the names Windlass gives them.
//! Whether one is believed is decided in `source/proof`.

use super::graph::Graph;
use super::tool::{Fate, ToolError, run};
use mover::{CheckpointId, RepositoryId};
use std::ffi::OsStr;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The name of a bitmap that Windlass keeps: `windlass-<repository 8 hex>-<checkpoint>-<base checkpoint>` (T1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrackingName {
    /// First four bytes of the id of the repository that it was made for.
    pub repository: [u8; 4],
    /// The checkpoint that it records changes since.
    pub checkpoint: CheckpointId,
    /// The checkpoint before that one; all zero when there was none.
    pub base: CheckpointId,
}

impl TrackingName {
    /// The name for a checkpoint of a backup into `repository`.
    pub fn new(repository: RepositoryId, checkpoint: CheckpointId, base: Option<CheckpointId>) -> Self {
        Self { repository: prefix(repository), checkpoint, base: base.unwrap_or_default() }
    }

    /// True when a backup into `repository` made it.
    pub fn is_of(&self, repository: RepositoryId) -> bool {
        self.repository == prefix(repository)
    }

    /// Its twin's name.
    pub fn twin(&self) -> TwinName {
        TwinName { repository: self.repository, checkpoint: self.checkpoint }
    }
}

/// The name of a bitmap's twin, which records the same: `windlass-<repository 8 hex>-twin-<checkpoint>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TwinName {
    /// First four bytes of the id of the repository that it was made for.
    pub repository: [u8; 4],
    /// The checkpoint of the bitmap.
    pub checkpoint: CheckpointId,
}

impl TwinName {
    /// True when a backup into `repository` made it.
    pub fn is_of(&self, repository: RepositoryId) -> bool {
        self.repository == prefix(repository)
    }
}

impl fmt::Display for TwinName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{:08x}-twin-{}", u32::from_be_bytes(self.repository), self.checkpoint)
    }
}

impl FromStr for TwinName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const NOT_OURS: &str = "not a name that Windlass gives";
        let parts: Vec<&str> = text.strip_prefix(PREFIX).ok_or(NOT_OURS)?.split('-').collect();
        let [repository, "twin", checkpoint] = parts[..] else { return Err(NOT_OURS) };
        let name = Self {
            repository: u32::from_str_radix(repository, 16).map_err(|_| NOT_OURS)?.to_be_bytes(),
            checkpoint: checkpoint.parse().map_err(|_| NOT_OURS)?,
        };
        // One spelling for one name, so that names can be compared as text.
        if name.to_string() == text { Ok(name) } else { Err(NOT_OURS) }
    }
}

impl fmt::Display for TrackingName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{:08x}-{}-{}", u32::from_be_bytes(self.repository), self.checkpoint, self.base)
    }
}

impl FromStr for TrackingName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const NOT_OURS: &str = "not a name that Windlass gives";
        let parts: Vec<&str> = text.strip_prefix(PREFIX).ok_or(NOT_OURS)?.split('-').collect();
        let [repository, checkpoint, base] = parts[..] else { return Err(NOT_OURS) };
        let number = u32::from_str_radix(repository, 16).map_err(|_| NOT_OURS)?;
        let name = Self { repository: number.to_be_bytes(), checkpoint: checkpoint.parse()?, base: base.parse()? };
        // One spelling for one name, so that names can be compared as text.
        if name.to_string() == text { Ok(name) } else { Err(NOT_OURS) }
    }
}

/// Adds a recording bitmap of this granularity in bytes. It begins with all marks of bitmap `marks` of the same image.
/// This is not atomic: if the process is killed in the middle, other bitmaps of the image may be lost, but never wrong.
/// So the process runs to its own end, even when the caller is gone.
///
/// # Errors
/// Those of `qemu-img bitmap`.
pub async fn add_bitmap(image: &Graph, name: &str, granularity: u32, marks: &str) -> Result<(), ToolError> {
    bitmap(&["--add", "-g", &granularity.to_string(), "--merge", marks], image, name).await
}

/// Removes a bitmap; not atomic either.
///
/// # Errors
/// Those of `qemu-img bitmap --remove`.
pub async fn remove_bitmap(image: &Graph, name: &str) -> Result<(), ToolError> {
    bitmap(&["--remove"], image, name).await
}

/// `qemu-img bitmap` on an image that is to be kept: never interrupted (T4).
pub(super) async fn bitmap(actions: &[&str], image: &Graph, name: &str) -> Result<(), ToolError> {
    let arguments = ["bitmap"].iter().chain(actions).map(OsStr::new);
    let arguments = arguments.chain([image.as_ref(), OsStr::new(name)]);
    run("qemu-img", arguments, Fate::Detached(BITMAP_TIMEOUT)).await.map(drop)
}

/// First four bytes of a repository's id: what bitmaps bear of it.
pub(super) fn prefix(repository: RepositoryId) -> [u8; 4] {
    let [a, b, c, d, ..] = repository.0;
    [a, b, c, d]
}

/// For `qemu-img bitmap`, which writes all bitmaps of an image.
const BITMAP_TIMEOUT: Duration = Duration::from_secs(600);
pub(super) const PREFIX: &str = "windlass-";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_round_trip() {
        let name = TrackingName::new(RepositoryId(*b"\x00\xab23456789abcdef"), CheckpointId([7; 16]), None);
        let text = name.to_string();
        assert_eq!(text, format!("windlass-00ab3233-{}-{}", "07".repeat(16), "00".repeat(16)));
        assert_eq!(text.parse(), Ok(name));
        assert!(name.is_of(RepositoryId(*b"\x00\xab23other repos.")));
        let twin = name.twin().to_string();
        assert_eq!(twin, format!("windlass-00ab3233-twin-{}", "07".repeat(16)));
        assert_eq!(twin.parse(), Ok(name.twin()));
        assert!(twin.parse::<TrackingName>().is_err() && text.parse::<TwinName>().is_err());
        assert!(twin.replace("00ab", "00AB").parse::<TwinName>().is_err());
    }

    #[test]
    fn other_names_are_not_ours() {
        let id = "07".repeat(16);
        for text in [
            String::new(),
            "windlass-".into(),
            "cp0".into(),
            format!("windlass-00ab3233-{id}"),
            format!("windlass-00ab3233-{id}-{id}-{id}"),
            format!("windlass-00AB3233-{id}-{id}"),
            format!("windlass-0ab3233-{id}-{id}"),
            format!("windlass-+0ab3233-{id}-{id}"),
            format!("Windlass-00ab3233-{id}-{id}"),
            format!("windlass-00ab3233-{id}-07"),
        ] {
            assert!(text.parse::<TrackingName>().is_err(), "{text}");
        }
    }
}
