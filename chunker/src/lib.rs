//! Bytes: extents, cutting, fingerprints and encoded blobs.
//!
//! Pure CPU. Architecture Invariant: no I/O, no async, no serde; nothing here knows files, networks or repositories.
//! The byte layout of a blob is in `FORMAT.md`, section "Blob".

mod blob;
mod cut;
mod extent;
mod fingerprint;
mod keys;
mod zero;

pub use blob::{
    BLOB_HEADER_BYTES, Blob, BlobError, BlobHeader, Codec, Compression, Compressor, Decoder, PLAIN_BYTES_MAX,
};
pub use cut::{GRID_BYTES, STREAM_CHUNK_BYTES_MAX, StreamCutter, grid_blocks};
pub use extent::{Extent, ExtentSet};
pub use fingerprint::{ChunkId, ChunkKind};
pub use keys::{DomainKey, DomainKeys};
pub use zero::is_zero;
