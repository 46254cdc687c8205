//! The blob: a chunk encoded exactly as it stands on the wire and in a pack.

use crate::{ChunkId, ChunkKind, DomainKeys};
use bytes::Bytes;
use std::fmt;
use std::io::Cursor;
use zstd::bulk;
use zstd::zstd_safe::CParameter;

/// Bytes of a blob before its payload.
pub const BLOB_HEADER_BYTES: usize = 28;

/// Longest plain chunk of any kind. It bounds the output of every decoder.
pub const PLAIN_BYTES_MAX: u32 = 16 << 20;

/// How the payload is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Codec {
    /// The plain bytes themselves.
    Raw = 0,
    /// One zstd frame (RFC 8878).
    Zstd = 1,
}

/// How chunks are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Every blob has codec raw.
    None,
    /// zstd at this level, raw where that does not pay.
    Zstd(i32),
}

impl Default for Compression {
    fn default() -> Self {
        Self::Zstd(ZSTD_LEVEL_DEFAULT)
    }
}

/// Why bytes are not a blob, or a blob is not its chunk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlobError {
    /// The bytes end early or go on after the payload.
    #[error("blob of {have} bytes declares {declared}")]
    Length {
        /// Number of bytes that are there.
        have: u64,
        /// Header plus payload as declared.
        declared: u64,
    },
    /// A field has a value this version does not know, or a reserved field is in use.
    #[error("blob header field {field} has the unknown value {value}")]
    Unknown {
        /// The field's name in FORMAT.md.
        field: &'static str,
        /// Value of the field.
        value: u32,
    },
    /// Declared plain length over [`PLAIN_BYTES_MAX`], or stored length over plain length.
    #[error("blob declares {plain} plain and {stored} stored bytes")]
    Limit {
        /// Declared plain length.
        plain: u32,
        /// Declared stored length.
        stored: u32,
    },
    /// Header and payload do not match their checksum.
    #[error("blob checksum mismatch")]
    Checksum,
    /// The payload does not decode to the declared length.
    #[error("blob does not decode: {0}")]
    Decode(String),
    /// Decoded bytes have another fingerprint than asked for.
    #[error("blob decodes to chunk {got}, not {want}")]
    Fingerprint {
        /// The id asked for.
        want: ChunkId,
        /// The id of the decoded bytes.
        got: ChunkId,
    },
}

/// The fields of a blob's header; layout in FORMAT.md. Key and dictionary ids, cipher and flags are reserved: 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobHeader {
    /// Kind of the chunk.
    pub kind: ChunkKind,
    /// How the payload is compressed.
    pub codec: Codec,
    /// Length of the plain bytes.
    pub plain_bytes: u32,
    /// Length of the payload.
    pub stored_bytes: u32,
    /// CRC32C over the other header bytes and the payload.
    pub crc: u32,
}

impl BlobHeader {
    /// Reads a header from the first [`BLOB_HEADER_BYTES`] of `bytes`; what follows is not looked at.
    ///
    /// # Errors
    /// Too few bytes, unknown values, lengths over the limits.
    pub fn parse(bytes: &[u8]) -> Result<Self, BlobError> {
        let Some(header) = bytes.first_chunk::<BLOB_HEADER_BYTES>() else {
            return Err(BlobError::Length { have: bytes.len() as u64, declared: BLOB_HEADER_BYTES as u64 });
        };
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let unknown = |field, value| Err(BlobError::Unknown { field, value });
        let reserved = [("version", u32::from(header[0] ^ BLOB_VERSION)), ("cipher", header[3].into())]
            .into_iter()
            .chain([("key id", word(4)), ("dictionary id", word(8)), ("flags", word(12))]);
        for (field, value) in reserved {
            if value != 0 {
                return unknown(field, if field == "version" { header[0].into() } else { value });
            }
        }
        let Some(kind) = ChunkKind::from_code(header[1]) else { return unknown("kind", header[1].into()) };
        let codec = match header[2] {
            0 => Codec::Raw,
            1 => Codec::Zstd,
            other => return unknown("codec", other.into()),
        };
        let made = Self { kind, codec, plain_bytes: word(16), stored_bytes: word(20), crc: word(24) };
        let fits = match codec {
            Codec::Raw => made.stored_bytes == made.plain_bytes,
            Codec::Zstd => made.stored_bytes < made.plain_bytes,
        };
        if !fits || made.plain_bytes > PLAIN_BYTES_MAX {
            return Err(BlobError::Limit { plain: made.plain_bytes, stored: made.stored_bytes });
        }
        Ok(made)
    }

    /// Bytes of header and payload together.
    pub const fn blob_bytes(&self) -> u32 {
        self.stored_bytes + BLOB_HEADER_BYTES as u32
    }

    fn write(&self, to: &mut Vec<u8>) {
        to.extend([BLOB_VERSION, self.kind.code(), self.codec as u8, 0]);
        to.extend([0; 12]);
        for word in [self.plain_bytes, self.stored_bytes, self.crc] {
            to.extend(word.to_le_bytes());
        }
    }
}

/// An encoded chunk whose header has been read. Cloning shares the bytes.
#[derive(Clone)]
pub struct Blob {
    header: BlobHeader,
    bytes: Bytes,
    /// The checksum was compared; the bytes cannot change since.
    checked: bool,
}

impl Blob {
    /// Takes bytes that must be exactly one blob. Neither the checksum nor the content is looked at.
    ///
    /// # Errors
    /// As [`BlobHeader::parse`], or bytes missing or left over.
    pub fn parse(bytes: Bytes) -> Result<Self, BlobError> {
        let header = BlobHeader::parse(&bytes)?;
        if bytes.len() as u64 != u64::from(header.blob_bytes()) {
            return Err(BlobError::Length { have: bytes.len() as u64, declared: header.blob_bytes().into() });
        }
        Ok(Self { header, bytes, checked: false })
    }

    /// The decoded header.
    pub const fn header(&self) -> &BlobHeader {
        &self.header
    }

    /// The bytes of header and payload.
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Compares header and payload with their checksum. This finds damage, but does not prove which chunk it is.
    ///
    /// # Errors
    /// [`BlobError::Checksum`].
    pub fn check(&self) -> Result<(), BlobError> {
        let sound = self.checked || checksum(&self.bytes[..CRC_AT], self.payload()) == self.header.crc;
        if sound { Ok(()) } else { Err(BlobError::Checksum) }
    }

    /// As [`Self::check`]. The blob that is returned, and its clones, are not checked again.
    ///
    /// # Errors
    /// [`BlobError::Checksum`].
    pub fn checked(mut self) -> Result<Self, BlobError> {
        self.check()?;
        self.checked = true;
        Ok(self)
    }

    fn payload(&self) -> &[u8] {
        &self.bytes[BLOB_HEADER_BYTES..]
    }
}

impl PartialEq for Blob {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Blob {}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.header.fmt(f)
    }
}

/// Encodes chunks; keeps its compression context and buffer. One for each worker.
pub struct Compressor {
    compressor: Option<bulk::Compressor<'static>>,
    scratch: Vec<u8>,
}

impl Compressor {
    /// A compressor with this compression.
    ///
    /// # Panics
    /// When zstd cannot allocate a context.
    pub fn new(compression: Compression) -> Self {
        let compressor = match compression {
            Compression::None => None,
            Compression::Zstd(level) => Some(compressor(level).expect("memory for a zstd context")),
        };
        Self { compressor, scratch: Vec::new() }
    }

    /// Encodes one chunk. The same bytes, kind and compression give the same blob for one version of zstd.
    ///
    /// # Panics
    /// When `plain` is longer than [`PLAIN_BYTES_MAX`].
    pub fn compress(&mut self, kind: ChunkKind, plain: &[u8]) -> Blob {
        let plain_bytes = u32::try_from(plain.len()).expect("a chunk has a bounded length");
        assert!(plain_bytes <= PLAIN_BYTES_MAX, "a chunk has a bounded length");
        // Room for the compressed form only as far as it pays; zstd stops when it runs out, and the chunk stays raw,
        // which also makes restoring it cheaper.
        let room = plain.len() - plain.len() / 32 - plain.len().min(1);
        if self.scratch.len() < room {
            self.scratch.resize(room, 0);
        }
        let compressed =
            self.compressor.as_mut().and_then(|it| it.compress_to_buffer(plain, &mut self.scratch[..room]).ok());
        let (codec, payload) = match compressed {
            Some(length) => (Codec::Zstd, &self.scratch[..length]),
            None => (Codec::Raw, plain),
        };
        let stored_bytes = u32::try_from(payload.len()).expect("not longer than plain");
        let mut header = BlobHeader { kind, codec, plain_bytes, stored_bytes, crc: 0 };
        let mut bytes = Vec::with_capacity(BLOB_HEADER_BYTES + payload.len());
        header.write(&mut bytes);
        header.crc = checksum(&bytes[..CRC_AT], payload);
        bytes[CRC_AT..].copy_from_slice(&header.crc.to_le_bytes());
        bytes.extend_from_slice(payload);
        Blob { header, bytes: bytes.into(), checked: false }
    }
}

/// Decodes blobs; keeps its decompression context. One for each worker.
pub struct Decoder {
    decompressor: bulk::Decompressor<'static>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { decompressor: bulk::Decompressor::new().expect("memory for a zstd context") }
    }
}

impl Decoder {
    /// Decodes and appends the plain bytes to `plain`; on error `plain` is as before. Allocates at most the declared
    /// plain length.
    ///
    /// # Errors
    /// [`BlobError::Decode`] when the payload is not exactly the declared bytes.
    pub fn decode(&mut self, blob: &Blob, plain: &mut Vec<u8>) -> Result<(), BlobError> {
        let payload = blob.payload();
        let want = usize::try_from(blob.header.plain_bytes).expect("at most 16 MiB");
        match blob.header.codec {
            Codec::Raw => plain.extend_from_slice(payload),
            Codec::Zstd => {
                let frame = zstd::zstd_safe::find_frame_compressed_size(payload);
                if frame != Ok(payload.len()) {
                    return Err(BlobError::Decode("payload is not one zstd frame".into()));
                }
                let start = plain.len();
                // Behind what is there, into memory that nobody clears first.
                plain.reserve(want);
                let mut end = Cursor::new(&mut *plain);
                end.set_position(start as u64);
                let error = match self.decompressor.decompress_to_buffer(payload, &mut end) {
                    Ok(got) if got == want => return Ok(()),
                    Ok(got) => BlobError::Decode(format!("{got} bytes instead of {want}")),
                    Err(error) => BlobError::Decode(error.to_string()),
                };
                plain.truncate(start);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Decodes and compares with the fingerprint: afterwards the chunk `id` is appended to `plain`, or an error says
    /// why not and `plain` is as before.
    ///
    /// # Errors
    /// As [`Self::decode`], or [`BlobError::Fingerprint`].
    pub fn decode_verified(
        &mut self,
        keys: &DomainKeys,
        id: &ChunkId,
        blob: &Blob,
        plain: &mut Vec<u8>,
    ) -> Result<(), BlobError> {
        let start = plain.len();
        self.decode(blob, plain)?;
        let got = keys.id(blob.header.kind, &plain[start..]);
        if got == *id {
            return Ok(());
        }
        plain.truncate(start);
        Err(BlobError::Fingerprint { want: *id, got })
    }
}

fn compressor(level: i32) -> std::io::Result<bulk::Compressor<'static>> {
    let mut compressor = bulk::Compressor::new(level)?;
    if level == ZSTD_LEVEL_DEFAULT {
        // Tables that stay in the nearest cache, and are cleared for each chunk: on chunks of 64 KiB 6 % faster for 0.3 %
        // more bytes than what the level is meant for.
        compressor.set_parameter(CParameter::HashLog(14))?;
        compressor.set_parameter(CParameter::ChainLog(13))?;
    }
    Ok(compressor)
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(header), payload)
}

const BLOB_VERSION: u8 = 1;
const CRC_AT: usize = 24;
const ZSTD_LEVEL_DEFAULT: i32 = 3;

#[cfg(test)]
mod tests;
