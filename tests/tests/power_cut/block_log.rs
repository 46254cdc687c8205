//! The log of what was written to a block device, in the format of Linux' dm-log-writes, which QEMU's `blklogwrites` keeps
//! too. Sources: Linux, Documentation/admin-guide/device-mapper/log-writes.rst and drivers/md/dm-log-writes.c.
//!
//! | sector | bytes, little endian |
//! |---|---|
//! | 0 | magic u64, version u64 (1), number of entries u64, sector size u32 |
//! | then each entry | sector u64, number of sectors u64, flags u64, length of data u64; zeros up to the next sector |
//! | after it | what was written; nothing for a discard |
//!
//! Entries are in the order in which the device was asked. The number of entries is brought up to date by each flush.

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use chunker::Extent;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// One thing that the device was asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// Bytes at an offset.
    Write(u64, Bytes),
    /// Reads as zeros from then on: loop devices make holes.
    Discard(Extent),
    /// What was written before is durable.
    Flush,
}

/// All entries of a log.
///
/// # Errors
/// When it is none, or holds what this lab knows no meaning of.
pub fn decode(log: &Bytes) -> Result<Vec<Entry>> {
    let (count, sector_bytes) = decode_super(log)?;
    let mut at = sector_bytes;
    let mut entries = Vec::new();
    for number in 0..count {
        let (entry, length) = decode_entry(log, at, sector_bytes).with_context(|| format!("entry {number} at {at}"))?;
        entries.push(entry);
        at += length;
    }
    Ok(entries)
}

/// How many entries the log at `path` had at the last flush: none before the first, which writes its head.
///
/// # Errors
/// When it is none, or cannot be read.
pub fn flushed_entries(path: &Path) -> Result<usize> {
    let mut head = [0; SUPER_BYTES];
    let file = File::open(path)?;
    if file.metadata()?.len() >= head.len() as u64 {
        file.read_exact_at(&mut head, 0)?;
    }
    if head == [0; SUPER_BYTES] { Ok(0) } else { Ok(decode_super(&head)?.0) }
}

fn decode_super(log: &[u8]) -> Result<(usize, usize)> {
    let (magic, version, count) = (number(log, 0)?, number(log, 8)?, number(log, 16)?);
    ensure!(magic == MAGIC && version == VERSION, "no log of writes: magic {magic:#x}, version {version}");
    let sector_bytes = usize::try_from(number(log, 24)? & u64::from(u32::MAX))?;
    ensure!(sector_bytes >= SUPER_BYTES, "sectors of {sector_bytes} bytes");
    Ok((usize::try_from(count)?, sector_bytes))
}

/// The entry at `at`, and its length.
fn decode_entry(log: &Bytes, at: usize, sector_bytes: usize) -> Result<(Entry, usize)> {
    let field = |index: usize| number(log, at + 8 * index);
    let (sector, sectors, flags, data) = (field(0)?, field(1)?, field(2)?, field(3)?);
    ensure!(data == 0, "{data} bytes of a mark, which nobody made");
    let offset = sector * sector_bytes as u64;
    let length = usize::try_from(sectors)? * sector_bytes;
    Ok(match flags {
        0 => {
            let from = at + sector_bytes;
            ensure!(from + length <= log.len(), "it ends in the middle of a write");
            (Entry::Write(offset, log.slice(from..from + length)), sector_bytes + length)
        }
        FLUSH if length == 0 => (Entry::Flush, sector_bytes),
        DISCARD => (Entry::Discard(Extent::new(offset, length as u64)), sector_bytes),
        // Loop devices know no write that is durable by itself, and no flush that writes.
        _ => bail!("flags {flags:#x} over {length} bytes"),
    })
}

fn number(log: &[u8], at: usize) -> Result<u64> {
    let bytes = log.get(at..at + 8).context("it ends early")?;
    Ok(u64::from_le_bytes(bytes.try_into()?))
}

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const SUPER_BYTES: usize = 32;
const FLUSH: u64 = 1;
const DISCARD: u64 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn sector(fields: [u64; 4]) -> Vec<u8> {
        let mut bytes: Vec<u8> = fields.iter().flat_map(|field| field.to_le_bytes()).collect();
        bytes.resize(512, 0);
        bytes
    }

    fn log(entries: &[Vec<u8>], count: u64) -> Bytes {
        let mut bytes = sector([MAGIC, VERSION, count, 512]);
        bytes.extend(entries.concat());
        bytes.into()
    }

    #[test]
    fn entries_are_what_was_asked() {
        let entries = [sector([3, 2, 0, 0]), vec![7; 1024], sector([5, 9, DISCARD, 0]), sector([0, 0, FLUSH, 0])];
        let expected =
            [Entry::Write(1536, vec![7; 1024].into()), Entry::Discard(Extent::new(2560, 4608)), Entry::Flush];
        assert_eq!(decode(&log(&entries, 3)).unwrap(), expected);
        // Entries after those that are counted may be half there.
        assert_eq!(decode(&log(&entries, 1)).unwrap(), expected[..1]);
    }

    #[test]
    fn what_has_no_meaning_is_refused() {
        for (entry, count) in [([3, 2, 0, 0], 1), ([0, 1, FLUSH, 0], 1), ([0, 0, 8, 0], 1), ([0, 0, 1, 4], 1)] {
            assert!(decode(&log(&[sector(entry)], count)).is_err(), "{entry:?}");
        }
        assert!(decode(&log(&[], 1)).is_err(), "it ends early");
        assert!(decode(&Bytes::from_static(&[1; 512])).is_err(), "another magic");
    }
}
