//! What a running QEMU has: its disks, and what each of them is made of, as the monitor tells it.

use crate::lines::printable;
use crate::qemu::ImageLayer;
use crate::qmp::{Monitor, QmpError};
use crate::source::SeenBitmap;
use chunker::ExtentSet;
use mover::Name;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// A disk of a running machine.
#[derive(Debug, Clone)]
pub struct LiveDisk {
    /// Its name in points.
    pub name: Name,
    /// Place of its device in QEMU's tree of objects; the property `drive` there says which node the device uses.
    pub device: String,
    /// The node that the device uses.
    pub node: String,
    /// Its name as a drive; empty when it has none.
    pub drive: String,
    /// The driver of that node: `qcow2`, `raw` or another.
    pub driver: String,
    /// What the node is made of.
    pub image: LiveImage,
    /// Dirty bitmaps of the node.
    pub bitmaps: Vec<NodeBitmap>,
    /// virtio, scsi, nvme, ide or usb; empty when it is another.
    pub bus: String,
    /// Serial number that the guest sees; empty without.
    pub serial: String,
    /// Position in the boot order from 1, 0 when it is not in it.
    pub boot_order: u32,
    /// Sector sizes and discard granularity in bytes, 0 when unknown.
    pub logical_sector_bytes: u32,
    /// See [`Self::logical_sector_bytes`].
    pub physical_sector_bytes: u32,
    /// See [`Self::logical_sector_bytes`].
    pub discard_bytes: u32,
}

/// An image that is open in a QEMU, and those below it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LiveImage {
    /// Its file, as QEMU calls it.
    pub filename: String,
    /// Its format.
    pub format: String,
    /// What `qemu-img info` would tell of it.
    #[serde(flatten)]
    pub layer: ImageLayer,
    /// The image below it.
    pub backing_image: Option<Box<LiveImage>>,
}

/// A dirty bitmap of a node.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct NodeBitmap {
    /// Its name; bitmaps of running jobs have none.
    #[serde(default)]
    pub name: String,
    /// Bytes of the disk for one bit.
    pub granularity: u64,
    /// True when writes are recorded in it.
    pub recording: bool,
    /// True when it was not saved cleanly and says nothing.
    #[serde(default)]
    pub inconsistent: bool,
}

/// The disks of a machine, and what was left out of them.
#[derive(Debug)]
pub struct Inventory {
    /// Its disks, in the order in which QEMU lists them.
    pub disks: Vec<LiveDisk>,
    /// Drives that are not backed up, and why, for people.
    pub left_out: Vec<String>,
    /// The variables of the firmware, when it has some.
    pub firmware: Option<Firmware>,
}

/// A file with the variables of a machine's firmware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firmware {
    /// Its file, as QEMU calls it.
    pub file: String,
}

/// A block node.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Node {
    /// Its name.
    pub node_name: Option<String>,
    /// Its dirty bitmaps.
    #[serde(default)]
    pub dirty_bitmaps: Vec<NodeBitmap>,
}

impl Node {
    /// All nodes of a QEMU.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub async fn all(monitor: &mut Monitor) -> Result<Vec<Self>, QmpError> {
        monitor.ask("query-named-block-nodes", json!({"flat": true})).await
    }
}

impl NodeBitmap {
    /// The bitmap for a proof, with what it marks.
    pub const fn seen<'a>(&self, marks: Option<&'a ExtentSet>) -> SeenBitmap<'a> {
        SeenBitmap { granularity: self.granularity, recording: self.recording, consistent: !self.inconsistent, marks }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Drive {
    device: String,
    qdev: Option<String>,
    removable: bool,
    inserted: Option<Inserted>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Inserted {
    node_name: String,
    ro: bool,
    drv: String,
    image: LiveImage,
    #[serde(default)]
    dirty_bitmaps: Vec<NodeBitmap>,
}

impl Inventory {
    /// Asks for it.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub async fn take(monitor: &mut Monitor) -> Result<Self, QmpError> {
        let drives: Vec<Drive> = monitor.ask("query-block", json!({})).await?;
        let mut made = Self { disks: Vec::new(), left_out: Vec::new(), firmware: None };
        let mut names = BTreeSet::new();
        for (at, drive) in drives.into_iter().enumerate() {
            let Some(place) = drive.qdev.as_deref().map(object_place) else {
                made.left_out.extend(drive.inserted.map(|it| format!("node {} is in no device", it.node_name)));
                continue;
            };
            let Some(inserted) = drive.inserted else { continue };
            let shown = if drive.device.is_empty() { place.clone() } else { drive.device.clone() };
            if is_firmware(&place) {
                let variables = Firmware { file: inserted.image.filename };
                made.firmware = made.firmware.or((!inserted.ro).then_some(variables));
                continue;
            }
            if drive.removable || inserted.ro {
                let why = if drive.removable { "a removable medium" } else { "read-only" };
                made.left_out.push(format!("{shown} is {why}"));
                continue;
            }
            let name = name_of(drive.qdev.as_deref(), &drive.device, at, &mut names);
            made.disks.push(described(monitor, name, (place, drive.device), inserted).await?);
        }
        Ok(made)
    }
}

/// Adds what the device shows to the guest. A device without one of the properties leaves it unknown.
async fn described(
    monitor: &mut Monitor,
    name: Name,
    (device, drive): (String, String),
    inserted: Inserted,
) -> Result<LiveDisk, QmpError> {
    let mut property = async |name: &str| -> Result<Value, QmpError> {
        match monitor.execute("qom-get", json!({"path": device, "property": name})).await {
            Err(error) if error.is_refusal() => Ok(Value::Null),
            answer => answer,
        }
    };
    let kind = property("type").await?;
    let number = |value: &Value| value.as_u64().and_then(|it| u32::try_from(it).ok()).unwrap_or(0);
    let serial = property("serial").await?;
    // -1: not in the boot order. Ours begins at 1.
    let boot_order = property("bootindex").await?.as_i64().and_then(|it| u32::try_from(it + 1).ok()).unwrap_or(0);
    let logical_sector_bytes = number(&property("logical_block_size").await?);
    let physical_sector_bytes = number(&property("physical_block_size").await?);
    let discard_bytes = number(&property("discard_granularity").await?);
    Ok(LiveDisk {
        bus: bus_of(kind.as_str().unwrap_or_default(), &device).to_owned(),
        name,
        device,
        node: inserted.node_name,
        drive,
        driver: inserted.drv,
        image: inserted.image,
        bitmaps: inserted.dirty_bitmaps,
        serial: printable(serial.as_str().unwrap_or_default(), SERIAL_CHARS_MAX),
        boot_order,
        logical_sector_bytes,
        physical_sector_bytes,
        discard_bytes,
    })
}

/// `query-block` calls a device by its id, or by its place in the tree of objects.
pub fn object_place(qdev: &str) -> String {
    if qdev.starts_with('/') { qdev.to_owned() } else { format!("/machine/peripheral/{qdev}") }
}

fn is_firmware(place: &str) -> bool {
    place.rsplit('/').next().is_some_and(|last| last.starts_with("system.flash"))
}

/// The id of the device; without one the name of the drive; without that its number. What no two disks share.
fn name_of(qdev: Option<&str>, device: &str, at: usize, names: &mut BTreeSet<Name>) -> Name {
    let id = qdev.and_then(|it| match it.strip_prefix("/machine/peripheral/") {
        Some(rest) => rest.split('/').next(),
        None => (!it.starts_with('/')).then_some(it),
    });
    let wanted = id.into_iter().chain([device]).find_map(|it| it.parse::<Name>().ok());
    let numbered = || (at..).map(|it| format!("disk{it}").parse::<Name>().expect("a valid name"));
    let name = wanted.into_iter().chain(numbered()).find(|it| !names.contains(it)).expect("numbers do not end");
    names.insert(name.clone());
    name
}

fn bus_of(kind: &str, place: &str) -> &'static str {
    match kind {
        _ if place.contains("usb") => "usb",
        "nvme" | "nvme-ns" => "nvme",
        it if it.starts_with("virtio-blk") || it.starts_with("vhost-user-blk") => "virtio",
        it if it.starts_with("scsi-") => "scsi",
        it if it.starts_with("ide-") => "ide",
        _ => "",
    }
}

const SERIAL_CHARS_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_disks() {
        let mut names = BTreeSet::new();
        let mut name = |qdev, device, at| name_of(Some(qdev), device, at, &mut names).to_string();
        assert_eq!(name("/machine/peripheral/vda/virtio-backend", "", 0), "vda");
        assert_eq!(name("sda", "drive0", 1), "sda");
        assert_eq!(name("/machine/peripheral-anon/device[2]/virtio-backend", "virtio0", 2), "virtio0");
        assert_eq!(name("/machine/peripheral-anon/device[3]", "", 3), "disk3");
        // Twice the same, or no name at all: a number.
        assert_eq!(name("vda", "", 4), "disk4");
        assert_eq!(name("../x", "a/b", 5), "disk5");
    }

    #[test]
    fn devices() {
        assert_eq!(object_place("sda"), "/machine/peripheral/sda");
        assert_eq!(object_place("/machine/x"), "/machine/x");
        assert!(is_firmware("/machine/system.flash1") && !is_firmware("/machine/peripheral/vda"));
        assert_eq!(bus_of("scsi-hd", "/machine/peripheral/usb0/usb0.0/legacy[0]"), "usb");
        assert_eq!(bus_of("virtio-blk-device", "/machine/peripheral/vda/virtio-backend"), "virtio");
    }
}
