//! The file `config`: what a repository is, written once.

use chunker::{DomainKey, GRID_BYTES};
use mover::{RecordError, RecordReader, RecordWriter, RepositoryConfig, RepositoryId, Timestamp, WriterId, digest};

/// The content of `config`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFile {
    /// What everybody knows of the repository.
    pub config: RepositoryConfig,
    /// The identity under which the holder of the directory's lock appends to the log.
    pub writer: WriterId,
    /// The file's bytes: repeated in digests, and the log's chain begins with their hash.
    pub bytes: Vec<u8>,
}

impl ConfigFile {
    /// The file of a new repository.
    pub fn new(config: RepositoryConfig, writer: WriterId) -> Self {
        let mut to = RecordWriter::new();
        to.bytes(CONFIG_MAGIC).u16(CONFIG_VERSION).u16(0).bytes(&config.id.0).i64(config.created.0);
        to.bytes(&config.domain.0).bytes(&config.domain.fingerprint());
        to.u16(CUT_FORMAT).u16(0).u32(GRID_BYTES).bytes(&writer.0).no_extensions();
        let hash = digest(to.as_slice());
        to.bytes(&hash);
        Self { config, writer, bytes: to.finish() }
    }

    /// Reads the file's bytes.
    ///
    /// # Errors
    /// What is wrong; a newer format is told apart.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut from = RecordReader::new(bytes);
        if from.bytes("config magic", 8)? != CONFIG_MAGIC {
            return Err(RecordError::Value { field: "config magic", value: 0 });
        }
        for (field, known) in [("repository format version", CONFIG_VERSION), ("repository features", 0)] {
            let value = from.u16(field)?;
            if value != known {
                return Err(RecordError::Newer { field, value: value.into() });
            }
        }
        let id = RepositoryId(from.array("repository id")?);
        let created = Timestamp(from.i64("creation time")?);
        let domain = DomainKey(from.array("domain key")?);
        if from.array("domain key fingerprint")? != domain.fingerprint() {
            return Err(RecordError::Hash { field: "domain key" });
        }
        for (field, known) in [("cut format", u32::from(CUT_FORMAT)), ("grid", GRID_BYTES)] {
            let value = from.u32(field)?;
            if value != known {
                return Err(RecordError::Newer { field, value: value.into() });
            }
        }
        let writer = WriterId(from.array("writer")?);
        from.extensions()?;
        let hashed = bytes.len() - from.remaining();
        if from.array("config hash")? != digest(&bytes[..hashed]) {
            return Err(RecordError::Hash { field: "config" });
        }
        from.end()?;
        Ok(Self { config: RepositoryConfig { id, domain, created }, writer, bytes: bytes.to_vec() })
    }
}

/// Grid of 64 KiB for disks, FastCDC 2020 of 16/64/256 KiB for streams.
pub const CUT_FORMAT: u16 = 1;
/// No configuration is longer.
pub const CONFIG_BYTES_MAX: u64 = 64 << 10;
/// How the file begins.
pub const CONFIG_MAGIC: &[u8; 8] = b"WINDLASS";
const CONFIG_VERSION: u16 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_every_flip_is_seen() {
        let config = RepositoryConfig { id: RepositoryId([1; 16]), domain: DomainKey([2; 32]), created: Timestamp(3) };
        let file = ConfigFile::new(config, WriterId([4; 16]));
        let bytes = file.bytes.clone();
        assert_eq!(ConfigFile::decode(&bytes), Ok(file));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(ConfigFile::decode(&bad).is_err(), "byte {at}");
            assert!(ConfigFile::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
        // What a later version adds stays as it is, as digests and the log's chain are compared with the file's bytes.
        for (flags, fine) in [(0, true), (1, false)] {
            let mut extended = bytes[..bytes.len() - 36].to_vec();
            extended.extend([&11u32.to_le_bytes()[..], &[9, 0, flags, 0, 3, 0, 0, 0], b"abc"].concat());
            extended.extend(digest(&extended));
            let read = ConfigFile::decode(&extended);
            assert_eq!(read.is_ok(), fine);
            assert!(read.map_or_else(|error| matches!(error, RecordError::Newer { .. }), |it| it.bytes == extended));
        }
        let mut newer = bytes;
        newer[8] = 2;
        assert!(matches!(ConfigFile::decode(&newer), Err(RecordError::Newer { .. })));
    }
}
