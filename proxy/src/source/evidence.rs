//! What a point records about an image in addition to its chain, so that the next backup can tell whether it may
//! believe the image's bitmaps (T11). The record is text, before the options of the format.

use crate::qemu::{ImageLayer, WitnessName};
use std::collections::BTreeSet;
use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::UNIX_EPOCH;

/// Facts about an image at the moment of its checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// Formats of the layers: the same files in other formats are another disk.
    layers: String,
    /// When the snapshots inside it were made; none when there are too many of them.
    snapshots: Option<BTreeSet<String>>,
    /// Which file it is, as [`file_identity`] says it.
    file: String,
    /// The witness that is in it.
    pub witness: Option<WitnessName>,
}

impl Evidence {
    /// What is seen now; `layers` as [`Chain::formats`](super::chain::Chain::formats) says them.
    pub fn of(layers: String, top: &ImageLayer, file: String, witness: Option<WitnessName>) -> Self {
        let snapshots: BTreeSet<String> = top.snapshots().collect();
        let snapshots = (snapshots.len() <= SNAPSHOTS_MAX).then_some(snapshots);
        Self { layers, snapshots, file, witness }
    }

    /// Evidence of an image without snapshots, for tables of cases.
    #[cfg(test)]
    pub fn seen(layers: &str, file: &str, witness: Option<WitnessName>) -> Self {
        Self { layers: layers.into(), snapshots: Some(BTreeSet::new()), file: file.into(), witness }
    }

    /// Reads what a point recorded.
    ///
    /// # Errors
    /// Why it proves nothing.
    pub fn read(options: &str) -> Result<Self, String> {
        let earlier = || "the parent was made by an earlier version, which recorded less about the image".to_owned();
        let mut parts = options.splitn(5, ',');
        let mut next = |key: &str| parts.next()?.strip_prefix(key)?.strip_prefix('=').map(str::to_owned);
        let layers = next(LAYERS).ok_or_else(earlier)?;
        let snapshots = next(SNAPSHOTS).ok_or_else(earlier)?;
        let file = next(FILE).ok_or_else(earlier)?;
        let witness = next(WITNESS).ok_or_else(earlier)?;
        Ok(Self {
            layers,
            snapshots: match snapshots.as_str() {
                MANY => None,
                list => Some(list.split_terminator('+').map(str::to_owned).collect()),
            },
            file,
            witness: witness.parse().ok(),
        })
    }

    /// Compares with what the parent recorded.
    ///
    /// # Errors
    /// Why the image may hold another disk than one that its bitmaps tell of.
    pub fn continues(&self, then: &Self) -> Result<(), String> {
        if self.layers != then.layers {
            return Err(format!("the layers of the image are {} and were {} in the parent", self.layers, then.layers));
        }
        // `qemu-img convert --bitmaps` takes the bitmaps of the image along, and with them what a backing file holds that
        // came there for a moment: no bitmap knows of that.
        if self.file != then.file {
            return Err("the image is another file than in the parent: it was copied, converted or put back".to_owned());
        }
        // `qemu-img convert -l SNAPSHOT --bitmaps` makes an image with an old state and the bitmaps of the present one.
        // It has no snapshots, so one that was there is missing.
        match (&self.snapshots, &then.snapshots) {
            (Some(now), Some(then)) if then.is_subset(now) => Ok(()),
            (Some(_), Some(_)) => {
                Err("a snapshot inside the image is gone: it may have been made from that one".to_owned())
            }
            _ => Err(format!("the image has more than {SNAPSHOTS_MAX} snapshots inside")),
        }
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let snapshots = match &self.snapshots {
            None => MANY.to_owned(),
            Some(list) => list.iter().map(String::as_str).collect::<Vec<_>>().join("+"),
        };
        let witness = self.witness.map(|it| it.to_string()).unwrap_or_default();
        write!(f, "{LAYERS}={},{SNAPSHOTS}={snapshots},{FILE}={},{WITNESS}={witness}", self.layers, self.file)
    }
}

/// Which file an image is, so that another file in its place is noticed. This is its inode and, where the file system
/// keeps it, its time of birth, in seconds with nine decimals. Empty for a device, about which they say nothing.
pub fn file_identity(metadata: &Metadata) -> String {
    if !metadata.is_file() {
        return String::new();
    }
    let born = metadata.created().ok().and_then(|it| it.duration_since(UNIX_EPOCH).ok());
    let born = born.map(|it| format!("{}.{:09}", it.as_secs(), it.subsec_nanos())).unwrap_or_default();
    format!("{}@{born}", metadata.ino())
}

const LAYERS: &str = "layers";
const SNAPSHOTS: &str = "snapshots";
const FILE: &str = "file";
const WITNESS: &str = "witness";
const MANY: &str = "many";
/// Snapshots that a point names.
const SNAPSHOTS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(layers: &str, snapshots: Option<&[&str]>) -> Evidence {
        let snapshots = snapshots.map(|list| list.iter().map(|it| (*it).to_owned()).collect());
        let witness = Some(WitnessName { repository: [1; 4], id: [2; 16], size: 3 });
        Evidence { layers: layers.into(), snapshots, file: "7@1.000000002".into(), witness }
    }

    #[test]
    fn text_round_trip() {
        let bare = Evidence { witness: None, ..evidence("qcow2", None) };
        for it in [evidence("qcow2/raw", Some(&[])), evidence("qcow2", Some(&["1.000000002", "3.000000004"])), bare] {
            // What a header names stands behind it, and changes nothing.
            let text = format!("{it},cluster_size=65536,data_file=/a,layers=raw,witness=x");
            assert_eq!(Evidence::read(&text), Ok(it));
        }
        for text in ["", "cluster_size=65536,compat=1.1", "layers=qcow2,snapshots=,witness=,compat=1.1"] {
            assert!(Evidence::read(text).unwrap_err().contains("earlier version"), "{text}");
        }
    }

    #[test]
    fn what_contradicts() {
        let then = evidence("qcow2/raw", Some(&["1.0", "2.0"]));
        evidence("qcow2/raw", Some(&["1.0", "2.0", "3.0"])).continues(&then).unwrap();
        for now in [
            evidence("qcow2/qcow2", Some(&["1.0", "2.0"])),
            evidence("qcow2/raw", Some(&["2.0"])),
            evidence("qcow2/raw", None),
            Evidence { file: "7@".into(), ..evidence("qcow2/raw", Some(&["1.0", "2.0"])) },
        ] {
            now.continues(&then).unwrap_err();
        }
        evidence("qcow2", Some(&[])).continues(&evidence("qcow2", None)).unwrap_err();
    }
}
