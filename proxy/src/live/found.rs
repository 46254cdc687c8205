//! What an image of a running machine is made of, as far as this host can see its files.

use super::inventory::{LiveDisk, LiveImage};
use crate::qemu::WitnessName;
use crate::source::{Evidence, file_identity, identity, untold_identity};
use mover::LayerIdentity;
use std::fs::Metadata;
use std::path::{Path, PathBuf};

/// The files of a disk.
#[derive(Debug)]
pub struct Files {
    /// The image and those below it, top first.
    pub chain: Vec<LayerIdentity>,
    /// Formats of the layers, as a point records them.
    layers: String,
    /// Which file the image is.
    which: String,
}

impl Files {
    /// Looks at them. A file that cannot be seen from here has no identity, and proves nothing.
    pub fn look(disk: &LiveDisk, process: Option<u32>) -> Self {
        let (mut chain, mut layers, mut which) = (Vec::new(), Vec::new(), String::new());
        let mut next = Some(&disk.image);
        while let Some(image) = next.filter(|_| chain.len() < LAYERS_MAX) {
            let path = place(image, process);
            let metadata = path.as_deref().and_then(|path| std::fs::metadata(path).ok());
            if let (true, Some(metadata)) = (chain.is_empty(), &metadata) {
                which = file_identity(metadata);
            }
            // Whoever writes to a device leaves no trace in what can be seen of it.
            let seen = path.filter(|_| metadata.as_ref().is_some_and(Metadata::is_file));
            chain.push(
                seen.and_then(|path| identity(&path).ok()).unwrap_or_else(|| untold_identity(image.filename.clone())),
            );
            layers.push(image.format.as_str());
            next = image.backing_image.as_deref();
        }
        Self { chain, layers: layers.join("/"), which }
    }

    /// What a point records of the image, with the witness that it has.
    pub fn evidence(&self, disk: &LiveDisk, witness: Option<WitnessName>) -> Evidence {
        Evidence::of(self.layers.clone(), &disk.image.layer, self.which.clone(), witness)
    }
}

/// Where this host sees the image's file. QEMU's paths are relative to the folder that it was started in.
fn place(image: &LiveImage, process: Option<u32>) -> Option<PathBuf> {
    let path = Path::new(&image.filename);
    if path.is_absolute() {
        return Some(path.to_owned());
    }
    // Not a path: json:{...}, nbd://...
    if image.filename.contains(':') {
        return None;
    }
    let folder = std::fs::read_link(format!("/proc/{}/cwd", process?)).ok()?;
    Some(folder.join(path))
}

/// Longest chain of images.
const LAYERS_MAX: usize = 200;
