//! How we say to QEMU's tools what to open. Every file and every format is named, so that the tools follow no header
//! and guess nothing (T10).

use crate::address::ImageFormat;
use mover::{Error, Result};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::path::Path;

/// An image as QEMU is to open it, in its `json:` form. If no backing file is given, the form says that there is none,
/// even when the header names one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Graph {
    node: Value,
    text: String,
}

/// What holds bytes of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file: QEMU's driver `file`.
    Regular,
    /// A block device: QEMU's driver `host_device`.
    Device,
}

impl Graph {
    /// An image of `format` in the file at `path`, with a data file and a backing file where they are given.
    ///
    /// # Errors
    /// `Usage` for a path that is no text: the tools take none but text.
    pub fn of(
        format: ImageFormat,
        path: &Path,
        kind: FileKind,
        data: Option<(&Path, FileKind)>,
        backing: Option<&Self>,
    ) -> Result<Self> {
        let mut node = json!({ "driver": format.as_str(), "file": file(path, kind)? });
        if format == ImageFormat::Qcow2 {
            // Null is not the same as nothing: the tools would open what the header names.
            node["backing"] = backing.map_or(Value::Null, |it| it.node.clone());
            if let Some((path, kind)) = data {
                node["data-file"] = file(path, kind)?;
            }
        }
        let text = format!("json:{node}");
        Ok(Self { node, text })
    }

    /// A qcow2 image in a regular file that stands alone.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn alone(path: &Path) -> Result<Self> {
        Self::of(ImageFormat::Qcow2, path, FileKind::Regular, None, None)
    }
}

impl AsRef<OsStr> for Graph {
    fn as_ref(&self) -> &OsStr {
        self.text.as_ref()
    }
}

fn file(path: &Path, kind: FileKind) -> Result<Value> {
    let driver = match kind {
        FileKind::Regular => "file",
        FileKind::Device => "host_device",
    };
    let path = path.to_str().ok_or_else(|| {
        Error::usage(format!("the path {} is not valid UTF-8", path.display())).hint("rename the file")
    })?;
    Ok(json!({ "driver": driver, "filename": path }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_said() {
        let base = Graph::of(ImageFormat::Raw, Path::new("/b,\"x"), FileKind::Device, None, None).unwrap();
        let data = Some((Path::new("/d"), FileKind::Regular));
        let top = Graph::of(ImageFormat::Qcow2, Path::new("/a"), FileKind::Regular, data, Some(&base)).unwrap();
        let text = top.as_ref().to_str().unwrap().strip_prefix("json:").unwrap();
        let want = json!({
            "driver": "qcow2",
            "file": { "driver": "file", "filename": "/a" },
            "data-file": { "driver": "file", "filename": "/d" },
            "backing": { "driver": "raw", "file": { "driver": "host_device", "filename": "/b,\"x" } },
        });
        assert_eq!(serde_json::from_str::<Value>(text).unwrap(), want);
        assert_eq!(Graph::alone(Path::new("/a")).unwrap().node["backing"], Value::Null);
    }
}
