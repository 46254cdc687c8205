//! Packs: header, records, footer. A pack without its footer can be scanned; a sealed one is named by its hash.

use chunker::{BLOB_HEADER_BYTES, BlobHeader, ChunkId, ChunkKind, PLAIN_BYTES_MAX};
use mover::{OwnerId, RecordError, RecordReader, RecordWriter, RepositoryId, Timestamp, WriterId};
use std::fmt;
use std::str::FromStr;

/// A pack's name: BLAKE3-256 of all its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PackName(pub [u8; 32]);

impl fmt::Display for PackName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&ChunkId(self.0), f)
    }
}

impl FromStr for PackName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let ChunkId(bytes) = text.parse()?;
        Ok(Self(bytes))
    }
}

impl fmt::Debug for PackName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&ChunkId(self.0), f)
    }
}

/// What a pack holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum PackKind {
    /// Chunks of disks and attachments.
    Data = 0,
    /// Map pages and manifests.
    Page = 1,
}

impl PackKind {
    /// Where chunks of this kind go.
    pub const fn of(kind: ChunkKind) -> Self {
        if kind.is_structure() { Self::Page } else { Self::Data }
    }

    /// The kind with this code.
    ///
    /// # Errors
    /// When there is none.
    pub const fn from_code(code: u8) -> Result<Self, RecordError> {
        match code {
            0 => Ok(Self::Data),
            1 => Ok(Self::Page),
            value => Err(RecordError::Value { field: "pack kind", value: value as u64 }),
        }
    }
}

/// The first bytes of a pack. The nonce makes every name unique, so a name never comes back (R4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackHeader {
    /// Kind of the chunks in the pack.
    pub kind: PackKind,
    /// The repository it was made for.
    pub repository: RepositoryId,
    /// The writer that made the pack.
    pub writer: WriterId,
    /// Term of that writer.
    pub term: u64,
    /// Reserved: zero in this version.
    pub owner: OwnerId,
    /// Fingerprint of the dedup domain's key.
    pub domain: [u8; 16],
    /// Random bytes that make the pack's name unique.
    pub nonce: [u8; 16],
    /// Time at which the pack was begun.
    pub created: Timestamp,
}

impl PackHeader {
    /// The bytes of the header, with their checksum.
    pub fn encode(&self) -> Vec<u8> {
        let mut to = RecordWriter::new();
        to.bytes(PACK_MAGIC).u16(PACK_VERSION).u8(self.kind as u8).u8(0).u16(super::config::CUT_FORMAT).u16(0);
        to.bytes(&self.repository.0).bytes(&self.writer.0).u64(self.term).bytes(&self.owner.0);
        to.bytes(&self.domain).bytes(&self.nonce).i64(self.created.0);
        let crc = crc32c::crc32c(to.as_slice());
        to.u32(crc);
        to.finish()
    }

    /// Reads the first [`PACK_HEADER_BYTES`] of a pack.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let bytes = bytes.get(..PACK_HEADER_BYTES).ok_or(RecordError::Short { field: "pack header" })?;
        let mut from = RecordReader::new(bytes);
        if from.bytes("pack magic", 8)? != PACK_MAGIC {
            return Err(RecordError::Value { field: "pack magic", value: 0 });
        }
        // First, because a damaged version is no newer one: in every version the checksum is here.
        let (body, checksum) = bytes.split_at(PACK_HEADER_BYTES - 4);
        if checksum != crc32c::crc32c(body).to_le_bytes() {
            return Err(RecordError::Hash { field: "pack header" });
        }
        let version = from.u16("pack version")?;
        if version != PACK_VERSION {
            return Err(RecordError::Newer { field: "pack version", value: version.into() });
        }
        let kind = PackKind::from_code(from.u8("pack kind")?)?;
        for (field, value, known) in [
            ("pack cipher", u16::from(from.u8("pack cipher")?), 0),
            ("pack cut", from.u16("pack cut")?, super::config::CUT_FORMAT),
            ("pack flags", from.u16("pack flags")?, 0),
        ] {
            if value != known {
                return Err(RecordError::Newer { field, value: value.into() });
            }
        }
        Ok(Self {
            kind,
            repository: RepositoryId(from.array("pack repository")?),
            writer: WriterId(from.array("pack writer")?),
            term: from.u64("pack term")?,
            owner: OwnerId(from.array("pack owner")?),
            domain: from.array("pack domain")?,
            nonce: from.array("pack nonce")?,
            created: Timestamp(from.i64("pack time")?),
        })
    }
}

/// What stands before each blob in a pack: it says where the blob belongs, so that a misplaced one shows.
pub fn record_header(nonce: &[u8; 16], ordinal: u32, id: &ChunkId) -> [u8; RECORD_HEADER_BYTES] {
    let mut to = RecordWriter::new();
    to.bytes(RECORD_MAGIC).u32(ordinal).bytes(nonce).bytes(id.as_bytes());
    to.finish().try_into().expect("a fixed layout")
}

/// Reads and checks what [`record_header`] writes.
///
/// # Errors
/// When it is not a record of this pack.
pub fn read_record_header(bytes: &[u8], nonce: &[u8; 16]) -> Result<(u32, ChunkId), RecordError> {
    let mut from = RecordReader::new(bytes);
    if from.bytes("record magic", 4)? != RECORD_MAGIC {
        return Err(RecordError::Value { field: "record magic", value: 0 });
    }
    let ordinal = from.u32("record ordinal")?;
    if from.array::<16>("record nonce")? != *nonce {
        return Err(RecordError::Hash { field: "record nonce" });
    }
    Ok((ordinal, ChunkId(from.array("record chunk")?)))
}

/// One record as the footer has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackEntry {
    /// Id of the chunk.
    pub id: ChunkId,
    /// Kind of the chunk.
    pub kind: ChunkKind,
    /// Offset of the record (its header, not its blob) in the pack.
    pub offset: u32,
    /// Length of the blob.
    pub blob_bytes: u32,
    /// Length of the plain bytes.
    pub plain_bytes: u32,
    /// First 16 bytes of the BLAKE3 of the blob: what a node without keys can verify.
    pub blob_hash: [u8; 16],
}

impl PackEntry {
    /// First byte after the record.
    pub fn end(&self) -> u64 {
        u64::from(self.offset) + RECORD_HEADER_BYTES as u64 + u64::from(self.blob_bytes)
    }
}

/// First 16 bytes of the BLAKE3 of a blob.
pub fn blob_hash(blob: &[u8]) -> [u8; 16] {
    blake3::hash(blob).as_bytes()[..16].try_into().expect("16 of 32 bytes")
}

/// The bytes after the last record: index of the records, and the trailer that finds it from the end.
pub fn encode_footer(entries: &[PackEntry]) -> Vec<u8> {
    let mut to = RecordWriter::new();
    to.bytes(FOOTER_MAGIC);
    to.list(entries, |to, entry| {
        to.bytes(entry.id.as_bytes()).u32(entry.offset).u32(entry.blob_bytes).u32(entry.plain_bytes);
        to.u8(entry.kind.code()).bytes(&[0; 3]).bytes(&entry.blob_hash);
    });
    to.no_extensions();
    let length = u32::try_from(to.len()).expect("a pack is bounded");
    let crc = crc32c::crc32c(to.as_slice());
    to.u32(length).u32(crc).bytes(END_MAGIC);
    to.finish()
}

/// Bytes of a footer (trailer included) with so many entries.
pub const fn footer_bytes_of(entries: usize) -> u64 {
    (FOOTER_MAGIC.len() + 4 + entries * ENTRY_BYTES + 4 + TRAILER_BYTES) as u64
}

/// Bytes of the footer (trailer included) of a pack that ends with `tail`.
///
/// # Errors
/// When it does not end with a trailer.
pub fn footer_bytes(tail: &[u8]) -> Result<u64, RecordError> {
    let trailer = tail.last_chunk::<TRAILER_BYTES>().ok_or(RecordError::Short { field: "pack trailer" })?;
    let mut from = RecordReader::new(trailer);
    let (length, _) = (from.u32("footer length")?, from.u32("footer checksum")?);
    if from.bytes("pack end", 8)? != END_MAGIC {
        return Err(RecordError::Value { field: "pack end", value: 0 });
    }
    Ok(u64::from(length) + TRAILER_BYTES as u64)
}

/// Reads a footer from the last bytes of a pack of this kind and of `pack_bytes`; `tail` holds at least
/// [`footer_bytes`].
///
/// # Errors
/// What is wrong: entries must lie in order inside the pack, and be of chunks that belong into it.
pub fn decode_footer(tail: &[u8], pack: PackKind, pack_bytes: u64) -> Result<Vec<PackEntry>, RecordError> {
    let whole = footer_bytes(tail)?;
    let start = (tail.len() as u64).checked_sub(whole).ok_or(RecordError::Short { field: "footer" })?;
    let start = usize::try_from(start).map_err(|_| RecordError::Short { field: "footer" })?;
    let (body, trailer) = tail[start..].split_at(tail.len() - start - TRAILER_BYTES);
    if trailer[4..8] != crc32c::crc32c(body).to_le_bytes() {
        return Err(RecordError::Hash { field: "pack footer" });
    }
    let mut from = RecordReader::new(body);
    if from.bytes("footer magic", 8)? != FOOTER_MAGIC {
        return Err(RecordError::Value { field: "footer magic", value: 0 });
    }
    let records_end = pack_bytes.checked_sub(whole).ok_or(RecordError::Short { field: "pack" })?;
    let mut at = PACK_HEADER_BYTES as u64;
    let entries = from.list("footer entries", ENTRY_BYTES, |from| {
        let id = ChunkId(from.array("entry chunk")?);
        let (offset, blob_bytes) = (from.u32("entry offset")?, from.u32("entry length")?);
        let plain_bytes = from.u32("entry plain length")?;
        let code = from.u8("entry kind")?;
        let kind = ChunkKind::from_code(code).filter(|kind| PackKind::of(*kind) == pack);
        let kind = kind.ok_or(RecordError::Value { field: "entry kind", value: code.into() })?;
        if from.array::<3>("entry reserved")? != [0; 3] {
            return Err(RecordError::Value { field: "entry reserved", value: 1 });
        }
        if plain_bytes > PLAIN_BYTES_MAX {
            return Err(RecordError::Value { field: "entry plain length", value: plain_bytes.into() });
        }
        let entry = PackEntry { id, kind, offset, blob_bytes, plain_bytes, blob_hash: from.array("entry hash")? };
        if u64::from(offset) != at || (blob_bytes as usize) < BLOB_HEADER_BYTES || entry.end() > records_end {
            return Err(RecordError::Value { field: "entry offset", value: offset.into() });
        }
        at = entry.end();
        Ok(entry)
    })?;
    if at != records_end {
        return Err(RecordError::Value { field: "records end", value: at });
    }
    from.extensions()?;
    from.end()?;
    Ok(entries)
}

/// The complete records at the front of a pack whose footer is missing or damaged: each record that is whole and whose
/// blob's checksum holds, up to the first that is not. Fingerprints are not looked at.
pub fn scan_records(pack: &[u8], nonce: &[u8; 16]) -> Vec<PackEntry> {
    let mut entries = Vec::new();
    let mut at = PACK_HEADER_BYTES;
    while let Some(entry) = scan_record(pack, at, nonce, entries.len()) {
        at = usize::try_from(entry.end()).expect("inside a pack in memory");
        entries.push(entry);
    }
    entries
}

fn scan_record(pack: &[u8], at: usize, nonce: &[u8; 16], ordinal: usize) -> Option<PackEntry> {
    let (have, id) = read_record_header(pack.get(at..)?, nonce).ok()?;
    let blob = blob_of(pack, at)?;
    (usize::try_from(have).ok()? == ordinal && blob.check().is_ok()).then(|| entry_of(id, at, &blob))?
}

/// The records of a pack that the log knows and whose footer is damaged: each whose blob's checksum holds, whatever the
/// bytes around it say; damaged blobs are skipped. This is not for packs that may be unfinished: bytes behind their
/// last record may belong to another pack.
pub fn salvage_records(pack: &[u8]) -> Vec<PackEntry> {
    let sound = |at: usize| blob_of(pack, at).filter(|blob| blob.check().is_ok());
    let nonce = nonce_of(pack);
    let (mut entries, mut next) = (Vec::new(), Some(PACK_HEADER_BYTES));
    while let Some(at) = next {
        if let (Some(blob), Some(id)) = (sound(at), pack.get(at + RECORD_ID_OFFSET..).and_then(<[u8]>::first_chunk)) {
            entries.extend(entry_of(ChunkId(*id), at, &blob));
            next = Some(at + RECORD_HEADER_BYTES + blob.bytes().len());
        } else {
            // What it says of its length may be what is damaged.
            let behind = blob_of(pack, at).map(|blob| at + RECORD_HEADER_BYTES + blob.bytes().len());
            let found = || next_record(pack, at + 1, nonce.as_ref()?);
            next = behind.filter(|behind| sound(*behind).is_some()).or_else(found);
        }
    }
    entries
}

/// The nonce of a pack, from its header or, when that is damaged, its first record.
fn nonce_of(pack: &[u8]) -> Option<[u8; 16]> {
    let of_record = || {
        let record = pack.get(PACK_HEADER_BYTES..)?;
        record.starts_with(RECORD_MAGIC).then(|| record.get(RECORD_NONCE_OFFSET..)?.first_chunk().copied())?
    };
    PackHeader::decode(pack).ok().map(|header| header.nonce).or_else(of_record)
}

/// Where the first record begins, at or after `from`, that has the nonce of this pack. Nobody can have put such bytes
/// into a chunk on purpose, because the nonce is chosen only when the pack is written.
fn next_record(pack: &[u8], from: usize, nonce: &[u8; 16]) -> Option<usize> {
    let is_record = |bytes: &[u8]| bytes.starts_with(RECORD_MAGIC) && bytes[RECORD_NONCE_OFFSET..] == *nonce;
    let mut windows = pack.get(from..)?.windows(RECORD_NONCE_OFFSET + nonce.len());
    windows.position(is_record).map(|at| from + at)
}

/// The blob of the record at `at`, if it is as long as it says.
fn blob_of(pack: &[u8], at: usize) -> Option<chunker::Blob> {
    let body = pack.get(at + RECORD_HEADER_BYTES..)?;
    let bytes = body.get(..usize::try_from(BlobHeader::parse(body).ok()?.blob_bytes()).ok()?)?;
    chunker::Blob::parse(bytes::Bytes::copy_from_slice(bytes)).ok()
}

fn entry_of(id: ChunkId, at: usize, blob: &chunker::Blob) -> Option<PackEntry> {
    let header = blob.header();
    Some(PackEntry {
        id,
        kind: header.kind,
        offset: u32::try_from(at).ok()?,
        blob_bytes: header.blob_bytes(),
        plain_bytes: header.plain_bytes,
        blob_hash: blob_hash(blob.bytes()),
    })
}

/// Bytes before the first record.
pub const PACK_HEADER_BYTES: usize = 116;
/// Bytes before each blob.
pub const RECORD_HEADER_BYTES: usize = 56;
/// Offset of the pack's nonce in the bytes before a blob.
const RECORD_NONCE_OFFSET: usize = 8;
/// Offset of the chunk's id in the bytes before a blob.
const RECORD_ID_OFFSET: usize = RECORD_HEADER_BYTES - 32;
/// Bytes of each footer entry.
pub const ENTRY_BYTES: usize = 64;
/// Largest pack that is read: twice what is written, for packs of single large chunks.
pub const PACK_BYTES_MAX: u64 = 128 << 20;
/// Bytes at the end of a pack, with which the footer is found.
pub const TRAILER_BYTES: usize = 16;
const PACK_MAGIC: &[u8; 8] = b"WLPACK\r\n";
const PACK_VERSION: u16 = 1;
const RECORD_MAGIC: &[u8; 4] = b"WLRC";
const FOOTER_MAGIC: &[u8; 8] = b"WLFOOTER";
const END_MAGIC: &[u8; 8] = b"WLPACKED";

#[cfg(test)]
mod tests;
