//! The contents of a pack, read from the pack itself: its header, its records, and the records that are left when it is
//! damaged.

use crate::format::event::AddedPack;
use crate::format::pack::{
    PACK_BYTES_MAX, PACK_HEADER_BYTES, PackEntry, PackHeader, PackName, RECORD_HEADER_BYTES, decode_footer,
    footer_bytes, salvage_records,
};
use crate::objects::{Object, Objects};
use bytes::Bytes;
use chunker::{Blob, DomainKeys};
use mover::{Error, ErrorKind, Result, with_decoder};

/// The header of a pack that is open.
///
/// # Errors
/// `Integrity`, or of the storage.
pub fn header(pack: &dyn Object, name: &PackName) -> Result<PackHeader> {
    let bytes = pack.read(0, PACK_HEADER_BYTES)?;
    PackHeader::decode(&bytes).map_err(|error| Error::from(error).on_pack(name))
}

/// The records of a pack, from its footer; when the footer is damaged, the records that are left, each with the id that
/// follows from its content.
///
/// # Errors
/// `Integrity` when nothing is left, or of the storage.
pub fn records(objects: &dyn Objects, keys: &DomainKeys, pack: &AddedPack) -> Result<Vec<PackEntry>> {
    let damaged = match footer(objects, pack) {
        Err(error) if error.kind() == ErrorKind::Integrity => error,
        read => return read,
    };
    let name = &pack.name;
    let open = objects.open_pack(name)?;
    let length = open.length()?.min(PACK_BYTES_MAX);
    tracing::warn!(pack = %name, error = %damaged, "a pack's footer is damaged; its records are read instead");
    let bytes = open.read(0, usize::try_from(length).expect("a pack fits memory"))?;
    let salvaged = salvaged(keys, &bytes.into());
    if salvaged.is_empty() { Err(damaged) } else { Ok(salvaged) }
}

/// The records that are left of a pack whose footer is damaged.
pub fn salvaged(keys: &DomainKeys, pack: &Bytes) -> Vec<PackEntry> {
    salvage_records(pack).into_iter().map(|entry| by_content(keys, pack, entry)).collect()
}

/// The entry with the id that follows from its content. The id in the record's header counts only when the blob cannot
/// be decoded: without a footer, one damaged byte in that header would otherwise lose the chunk.
fn by_content(keys: &DomainKeys, pack: &Bytes, mut entry: PackEntry) -> PackEntry {
    let at = entry.offset as usize + RECORD_HEADER_BYTES;
    let mut plain = Vec::new();
    let opened = Blob::parse(pack.slice(at..at + entry.blob_bytes as usize))
        .is_ok_and(|blob| with_decoder(|decoder| decoder.decode(&blob, &mut plain)).is_ok());
    if opened {
        entry.id = keys.id(entry.kind, &plain);
    }
    entry
}

/// The records of a pack, all of them, from its footer.
///
/// # Errors
/// `Integrity`, or of the storage.
pub fn footer(objects: &dyn Objects, pack: &AddedPack) -> Result<Vec<PackEntry>> {
    let name = &pack.name;
    let open = objects.open_pack(name)?;
    let length = open.length()?;
    if length > PACK_BYTES_MAX {
        return Err(Error::integrity(format!("pack {name} has {length} bytes, more than the format allows")));
    }
    let read = |bytes: u64| {
        let bytes = bytes.min(length);
        let size = usize::try_from(bytes).expect("a pack fits memory");
        open.read(length - bytes, size)
    };
    let mut tail = read(FOOTER_GUESS)?;
    let decoded = match footer_bytes(&tail) {
        Ok(whole) if whole > tail.len() as u64 && whole <= length => {
            tail = read(whole)?;
            decode_footer(&tail, pack.kind, length)
        }
        Ok(_) => decode_footer(&tail, pack.kind, length),
        Err(error) => Err(error),
    };
    decoded.map_err(|error| Error::from(error).on_pack(name))
}

/// Read first, from the end of a pack: most footers are shorter, so one read is enough.
const FOOTER_GUESS: u64 = 256 << 10;
