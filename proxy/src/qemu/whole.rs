//! Whether all that a qcow2 image refers to lies in its file. QEMU reads what lies behind the file's end as zeros, so an
//! image that was cut short (a copy that broke off, a full disk) would be backed up as a disk that lost its data.
//!
//! The image's own counts are read first: no cluster behind the end may be in use. If one is, the image may still be
//! whole, because a machine may have been killed when it had just taken room for its next write. So the tables are
//! searched for an entry that refers to a place behind the end. Layout: QEMU's `docs/interop/qcow2.txt`, "Host cluster
//! management" and "Cluster mapping".

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The first offset found to which the image refers and which lies behind the end of the file; none when the image is
/// whole. Also none for a file that is no sound qcow2 image, which other checks find.
///
/// # Errors
/// Those of reading.
pub fn cut_short_at(file: &File) -> io::Result<Option<u64>> {
    let Some(tables) = Tables::read(file)? else { return Ok(None) };
    if !tables.counts_behind_the_end(file)? {
        return Ok(None);
    }
    tables.refers_behind_the_end(file)
}

/// Where the tables of an image are.
struct Tables {
    cluster_bits: u32,
    l1_at: u64,
    l1_entries: u64,
    counts_at: u64,
    counts_bytes: u64,
    /// Bits of one count, as a power of two.
    count_order: u32,
    /// Entries of second tables have a word more.
    extended: bool,
    /// Data is in another file.
    apart: bool,
}

impl Tables {
    fn read(file: &File) -> io::Result<Option<Self>> {
        let head = read(file, 0, HEADER_BYTES)?;
        let (u32_at, u64_at) = (|at| word32(&head, at), |at| word64(&head, at));
        let is_v3 = u32_at(4) >= 3;
        let features = if is_v3 { u64_at(72) } else { 0 };
        let tables = Self {
            cluster_bits: u32_at(20),
            l1_at: u64_at(40),
            l1_entries: u32_at(36).into(),
            counts_at: u64_at(48),
            counts_bytes: u64::from(u32_at(56)) << u32_at(20).min(21),
            count_order: if is_v3 { u32_at(96) } else { 4 },
            extended: features & EXTENDED_BIT != 0,
            apart: features & DATA_FILE_BIT != 0,
        };
        let sound = (9..=21).contains(&tables.cluster_bits)
            && tables.l1_entries * 8 <= L1_BYTES_MAX
            && tables.counts_bytes <= COUNTS_BYTES_MAX
            && tables.count_order <= 6;
        Ok(sound.then_some(tables))
    }

    const fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Whether the image counts any cluster as used that begins behind the file's end, or the counts lie there themselves.
    fn counts_behind_the_end(&self, file: &File) -> io::Result<bool> {
        let length = file.metadata()?.len();
        let (first, each) = (length.div_ceil(self.cluster()), (self.cluster() * 8) >> self.count_order);
        let table = read(file, self.counts_at, self.counts_bytes)?;
        for (number, entry) in table.chunks_exact(8).enumerate().skip((first / each) as usize) {
            let (at, begins) = (word64(entry, 0) & OFFSET_MASK, number as u64 * each);
            if at == 0 {
                continue;
            }
            if at >= length {
                return Ok(true);
            }
            let block = read(file, at, self.cluster())?;
            // Counts that begin in the middle of a byte are looked at with the whole byte.
            let skipped = (first.saturating_sub(begins) << self.count_order).div_ceil(8) as usize;
            if block.iter().skip(skipped).any(|byte| *byte != 0) {
                return Ok(true);
            }
        }
        // A count of the end itself that was cut off.
        Ok(self.counts_at.saturating_add(self.counts_bytes) > length)
    }

    fn refers_behind_the_end(&self, file: &File) -> io::Result<Option<u64>> {
        let first = read(file, self.l1_at, self.l1_entries * 8)?;
        let behind = |at: u64, length: u64| at != 0 && at >= length;
        for entry in first.chunks_exact(8) {
            let at = word64(entry, 0) & OFFSET_MASK;
            if at == 0 {
                continue;
            }
            let second = read(file, at, self.cluster())?;
            // Now, because a machine that runs goes on writing: what it refers to is there by then.
            let length = file.metadata()?.len();
            if behind(at, length) {
                return Ok(Some(at));
            }
            let places = second.chunks_exact(if self.extended { 16 } else { 8 }).filter_map(|entry| self.data(entry));
            if let Some(at) = places.filter(|_| !self.apart).find(|at| behind(*at, length)) {
                return Ok(Some(at));
            }
        }
        let length = file.metadata()?.len();
        Ok(behind(self.l1_at, length).then_some(self.l1_at))
    }

    /// Where the bytes begin that an entry of a second table refers to; none when it stands for zeros or nothing.
    fn data(&self, entry: &[u8]) -> Option<u64> {
        let word = word64(entry, 0);
        if word & COMPRESSED_BIT != 0 {
            return Some(word & ((1 << (62 - (self.cluster_bits - 8))) - 1));
        }
        let is_data = if self.extended { word64(entry, 8) & u64::from(u32::MAX) != 0 } else { word & ZERO_BIT == 0 };
        is_data.then_some(word & OFFSET_MASK)
    }
}

/// So many bytes from `at` on; zeros behind the file's end, as QEMU has it.
fn read(file: &File, at: u64, length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    let mut have = 0;
    while have < bytes.len() {
        match file.read_at(&mut bytes[have..], at.saturating_add(have as u64)) {
            Ok(0) => break,
            Ok(more) => have += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

fn word32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn word64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

const HEADER_BYTES: u64 = 104;
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED_BIT: u64 = 1 << 62;
const ZERO_BIT: u64 = 1;
const EXTENDED_BIT: u64 = 1 << 4;
const DATA_FILE_BIT: u64 = 1 << 2;
/// QEMU's own limits.
const L1_BYTES_MAX: u64 = 32 << 20;
const COUNTS_BYTES_MAX: u64 = 8 << 20;
