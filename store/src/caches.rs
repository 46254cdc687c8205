//! Where an open repository keeps what can be made again from its objects: in folders of this computer, whatever its
//! storage is.

use std::path::{Path, PathBuf};

/// The folder of them. Nothing is lost with any.
#[derive(Debug, Clone)]
pub struct Caches(PathBuf);

impl Caches {
    /// Those below `folder`.
    pub fn new(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    /// The index.
    pub fn index(&self) -> PathBuf {
        self.0.join("index")
    }

    /// An index that is being made, and will take the place of the other.
    pub fn index_new(&self) -> PathBuf {
        self.0.join("index.new")
    }

    /// The counts of references.
    pub fn references(&self) -> PathBuf {
        self.0.join("references")
    }
}
