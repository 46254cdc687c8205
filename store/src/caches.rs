//! The caches of an open repository. They can be made again from its objects, and are in folders of this computer, also
//! when the objects are stored elsewhere.

use std::path::{Path, PathBuf};

/// The folder in which the caches are. No data is lost when a cache is deleted.
#[derive(Debug, Clone)]
pub struct Caches(PathBuf);

impl Caches {
    /// The caches below `folder`.
    pub fn new(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    /// The folder of the index.
    pub fn index(&self) -> PathBuf {
        self.0.join("index")
    }

    /// The folder of an index that is being made, and will replace the other.
    pub fn index_new(&self) -> PathBuf {
        self.0.join("index.new")
    }

    /// The folder of the counts of references.
    pub fn references(&self) -> PathBuf {
        self.0.join("references")
    }
}
