//! What `qemu-img info` tells of an image.

use super::graph::Graph;
use super::tool::{Fate, ToolError, run};
use serde::Deserialize;
use std::ffi::OsStr;
use std::time::Duration;

/// A qcow2 image.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageLayer {
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    #[serde(default)]
    cluster_size: u64,
    #[serde(default)]
    snapshots: Vec<InternalSnapshot>,
    #[serde(default)]
    format_specific: FormatSpecific,
}

/// A persistent dirty bitmap.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Bitmap {
    /// Name of the bitmap in the image.
    pub name: String,
    /// Bytes of the disk for one bit of the bitmap.
    pub granularity: u64,
    flags: Vec<String>,
}

/// A state of the disk that the image keeps.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct InternalSnapshot {
    date_sec: u64,
    date_nsec: u32,
}

impl Bitmap {
    /// True when writes are recorded in it.
    pub fn is_recording(&self) -> bool {
        self.has("auto")
    }

    /// True when it was saved by a clean close; otherwise it says nothing.
    pub fn is_consistent(&self) -> bool {
        !self.has("in-use")
    }

    /// What QEMU says of it.
    pub fn flags(&self) -> &[String] {
        &self.flags
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|it| it == flag)
    }
}

impl ImageLayer {
    /// The bitmaps stored in it.
    pub fn bitmaps(&self) -> &[Bitmap] {
        &self.format_specific.data.bitmaps
    }

    /// The bitmap of this name.
    pub fn bitmap(&self, name: &str) -> Option<&Bitmap> {
        self.bitmaps().iter().find(|bitmap| bitmap.name == name)
    }

    /// When each snapshot inside the image was made, as text that no two share.
    pub fn snapshots(&self) -> impl Iterator<Item = String> {
        self.snapshots.iter().map(|it| format!("{}.{:09}", it.date_sec, it.date_nsec))
    }

    /// True when bitmaps can be stored in it: a qcow2 image of version 3.
    pub fn keeps_bitmaps(&self) -> bool {
        self.format_specific.data.compat.as_deref().is_some_and(|it| it != "0.10")
    }

    /// The file that holds the image's data, where that is not the image itself.
    pub fn data_file(&self) -> Option<&str> {
        self.format_specific.data.data_file.as_deref()
    }

    /// True when QEMU marked the image as corrupt.
    pub fn is_corrupt(&self) -> bool {
        self.format_specific.data.corrupt
    }

    /// Options to make an image like it, as text.
    pub fn format_options(&self) -> String {
        let data = &self.format_specific.data;
        let mut options = vec![format!("cluster_size={}", self.cluster_size)];
        options.extend(data.compat.iter().map(|it| format!("compat={it}")));
        options.extend(data.compression_type.iter().map(|it| format!("compression_type={it}")));
        options.extend(data.extended_l2.then(|| "extended_l2=on".to_owned()));
        options.extend(data.data_file.iter().map(|it| format!("data_file={it}")));
        options.join(",")
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
struct FormatSpecific {
    #[serde(default)]
    data: FormatData,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct FormatData {
    compat: Option<String>,
    compression_type: Option<String>,
    extended_l2: bool,
    corrupt: bool,
    data_file: Option<String>,
    bitmaps: Vec<Bitmap>,
}

/// Looks at the image at the top of `image`. Takes QEMU's shared lock while it looks, so a running machine makes it fail
/// with [`ToolError::is_lock`].
///
/// # Errors
/// Those of `qemu-img info`.
pub async fn image_info(image: &Graph) -> Result<ImageLayer, ToolError> {
    let arguments = ["info", "--output=json"].map(OsStr::new);
    let answer = run(QEMU_IMG, arguments.into_iter().chain([image.as_ref()]), Fate::Shared(INFO_TIMEOUT)).await?;
    parse(&answer)
}

fn parse(answer: &[u8]) -> Result<ImageLayer, ToolError> {
    let wrong = |what: String| ToolError::Answer { program: QEMU_IMG, what };
    serde_json::from_slice(answer).map_err(|error| wrong(error.to_string()))
}

const QEMU_IMG: &str = "qemu-img";
/// For `qemu-img info`, which reads a header, bitmaps and lists of an image.
const INFO_TIMEOUT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_with_everything() {
        let answer = br#"
            { "children": [], "virtual-size": 1048576, "filename": "/a/top.qcow2", "cluster-size": 65536, "format": "qcow2",
              "snapshots": [ {"icount": 0, "vm-clock-nsec": 0, "name": "s1", "date-sec": 17, "date-nsec": 9, "id": "1"} ],
              "backing-filename": "base", "full-backing-filename": "/a/base",
              "format-specific": { "type": "qcow2", "data": { "compat": "1.1", "compression-type": "zstd",
                "data-file": "/a/data", "data-file-raw": false, "corrupt": true, "extended-l2": true, "refcount-bits": 16,
                "bitmaps": [ {"flags": ["in-use", "auto"], "name": "b0", "granularity": 65536},
                             {"flags": [], "name": "b1", "granularity": 512} ] } } }"#;
        let top = parse(answer).unwrap();
        assert!(top.is_corrupt());
        assert_eq!(top.snapshots().collect::<Vec<_>>(), ["17.000000009"]);
        assert_eq!(
            top.format_options(),
            "cluster_size=65536,compat=1.1,compression_type=zstd,extended_l2=on,data_file=/a/data"
        );
        let (b0, b1) = (top.bitmap("b0").unwrap(), top.bitmap("b1").unwrap());
        assert!(b0.is_recording() && !b0.is_consistent() && !b1.is_recording() && b1.is_consistent());
    }

    #[test]
    fn nonsense_is_an_error() {
        for answer in ["", "[]", "{}", "[{}]", "{\"virtual-size\":\"1\"}"] {
            assert!(parse(answer.as_bytes()).is_err(), "{answer}");
        }
    }
}
