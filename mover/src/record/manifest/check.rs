//! Checks that a manifest makes sense, in addition to its layout.

use super::Manifest;
use crate::{Error, MapRoot, PAGE_ENTRIES, RecordError, Result, check_text};
use chunker::PLAIN_BYTES_MAX;
use std::collections::BTreeSet;

impl Manifest {
    /// As [`Self::encode`], for a manifest that was made elsewhere. Refuses a manifest that does not read back
    /// unchanged.
    ///
    /// # Errors
    /// `Usage`; `Version` for an extension that must be understood and is not.
    pub fn encode_checked(&self) -> Result<Vec<u8>> {
        self.texts().try_for_each(|(what, text)| check_text(what, text))?;
        let (bytes, nonsense) = (self.encode(), Error::usage("a manifest that makes no sense"));
        match Self::decode(&bytes) {
            Ok(same) if same == *self => Ok(bytes),
            Ok(_) => Err(nonsense),
            Err(error @ RecordError::Newer { .. }) => Err(error.into()),
            Err(error) => Err(nonsense.because(error)),
        }
    }

    /// Every text in the manifest except names, each with words that say what it is.
    fn texts(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let tags = self.tags.iter().map(|tag| ("a tag", tag.as_str()));
        let labels = self.labels.iter().flat_map(|(key, value)| [("a label's key", key), ("a label's value", value)]);
        let disks = self.disks.iter().flat_map(|disk| {
            let own = [
                ("a bus", &disk.bus),
                ("a serial number", &disk.serial),
                ("a disk's format", &disk.format),
                ("a disk's format options", &disk.format_options),
                ("the reason of a disk's tracking", &disk.tracking.reason),
            ];
            own.into_iter().chain(disk.chain.iter().map(|layer| ("the path of an image", &layer.path)))
        });
        let attachments = self.attachments.iter().map(|it| ("an attachment's name", &it.name));
        let others = labels.chain(disks).chain(attachments).map(|(what, text)| (what, text.as_str()));
        tags.chain(others).chain([("the producer", self.producer.as_str())])
    }

    /// Checks that no two disks have the same name or id, and no two attachments the same kind and name, so that each
    /// can be asked for.
    pub(super) fn check_distinct(&self) -> Result<(), RecordError> {
        let names: BTreeSet<_> = self.disks.iter().map(|disk| &disk.name).collect();
        let ids: BTreeSet<_> = self.disks.iter().map(|disk| disk.id).collect();
        if names.len() != self.disks.len() || ids.len() != self.disks.len() {
            return Err(RecordError::Value { field: "disks with one name", value: self.disks.len() as u64 });
        }
        let attachments: BTreeSet<_> = self.attachments.iter().map(|it| (&it.kind, &it.name)).collect();
        if attachments.len() != self.attachments.len() {
            let value = self.attachments.len() as u64;
            return Err(RecordError::Value { field: "attachments with one name", value });
        }
        Ok(())
    }
}

/// Whether the map of a stream of so many bytes can have this root. A chunk has 1 to 16 MiB bytes, and a root is no
/// higher than its chunks need.
pub(super) const fn stream_fits(bytes: u64, root: MapRoot) -> bool {
    if root.id.is_none() {
        return bytes == 0 && root.level == 0;
    }
    let below = PAGE_ENTRIES.pow(root.level as u32);
    let chunks_min = if root.level == 0 { 1 } else { below + 1 };
    bytes >= chunks_min && bytes.div_ceil(PLAIN_BYTES_MAX as u64) <= below * PAGE_ENTRIES
}
