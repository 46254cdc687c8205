//! Power cuts: what of a log of writes is on the disk afterwards.

use crate::block_log::Entry;
use bytes::Bytes;
use windlass_tests::draw::Draw;
use windlass_tests::fake::Image;

/// A moment at which the power goes: what was written before the last flush is there, and any part of what was written
/// after it.
#[derive(Debug, Clone, Copy)]
pub struct PowerCut {
    /// Entries of the log before it.
    pub at: usize,
    /// Entries up to the last flush, and with it.
    pub flushed: usize,
    /// How many of a hundred blocks that were written since then are there: none, all, or a random choice.
    pub percent: usize,
    /// Says which.
    pub seed: u64,
}

/// `count` power cuts after entry `from`, in the order of the log. Half of them, or less if there are less flushes, leave
/// nothing of what came after a flush, and lie evenly over the flushes; the others leave random parts, and lie evenly over
/// the entries.
pub fn choose(entries: &[Entry], from: usize, count: usize, draw: &mut Draw) -> Vec<PowerCut> {
    let flushes: Vec<usize> =
        (from..entries.len()).filter(|at| entries[*at] == Entry::Flush).map(|at| at + 1).collect();
    let plain = (count / 2).min(flushes.len());
    let mut cuts: Vec<PowerCut> = (0..plain)
        .map(|number| flushes[within(number, plain, flushes.len(), draw)])
        .map(|at| PowerCut { at, flushed: at, percent: 0, seed: 0 })
        .collect();
    for number in plain..count {
        let at = from + 1 + within(number - plain, count - plain, entries.len() - from, draw);
        let flushed = entries[..at].iter().rposition(|entry| *entry == Entry::Flush).map_or(0, |at| at + 1);
        let percent = [10, 50, 90, 100][draw.below(4)];
        cuts.push(PowerCut { at, flushed, percent, seed: draw.number() });
    }
    cuts.sort_by_key(|cut| cut.at);
    cuts
}

/// Somewhere in the part of this number, of `0..limit` in so many parts.
fn within(number: usize, parts: usize, limit: usize, draw: &mut Draw) -> usize {
    let (start, end) = (number * limit / parts, (number + 1) * limit / parts);
    start + draw.below((end - start).max(1))
}

/// The disk as power cuts leave it, one after the other.
pub struct Disk<'a> {
    entries: &'a [Entry],
    /// With everything before entry `flushed`.
    durable: Image,
    flushed: usize,
}

impl<'a> Disk<'a> {
    /// A disk that held `image` before the first entry.
    pub fn new(entries: &'a [Entry], image: Image) -> Self {
        Self { entries, durable: image, flushed: 0 }
    }

    /// What is left after `cut`, which must not lie before an earlier one.
    pub fn after(&mut self, cut: &PowerCut) -> Image {
        for entry in &self.entries[self.flushed..cut.flushed] {
            match entry {
                Entry::Write(offset, bytes) => self.durable.write(*offset, bytes),
                Entry::Discard(extent) => self.durable.zero(*extent),
                Entry::Flush => {}
            }
        }
        self.flushed = cut.flushed;
        let (mut left, mut draw) = (self.durable.clone(), Draw::new(cut.seed));
        for entry in &self.entries[cut.flushed..cut.at] {
            let mut kept = || draw.below(100) < cut.percent;
            match entry {
                Entry::Write(offset, bytes) => write_blocks(&mut left, *offset, bytes.clone(), kept),
                Entry::Discard(extent) if kept() => left.zero(*extent),
                Entry::Discard(_) | Entry::Flush => {}
            }
        }
        left
    }
}

/// A disk keeps or loses whole blocks of 4 KiB, however many of them were in one write.
fn write_blocks(image: &mut Image, mut at: u64, mut bytes: Bytes, mut kept: impl FnMut() -> bool) {
    while !bytes.is_empty() {
        let length = (BLOCK_BYTES - at % BLOCK_BYTES).min(bytes.len() as u64);
        let block = bytes.split_to(usize::try_from(length).expect("a block"));
        if kept() {
            image.write(at, &block);
        }
        at += length;
    }
}

const BLOCK_BYTES: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use chunker::Extent;

    fn write(block: u64, value: u8, blocks: usize) -> Entry {
        Entry::Write(block * BLOCK_BYTES, vec![value; blocks * 4096].into())
    }

    fn values(image: &Image) -> Vec<u8> {
        let all = image.read(Extent::new(0, image.size()));
        let blocks: Vec<&[u8]> = all.chunks(4096).collect();
        assert!(blocks.iter().all(|block| block.iter().all(|byte| *byte == block[0])), "blocks are whole");
        blocks.iter().map(|block| block[0]).collect()
    }

    #[test]
    fn what_was_flushed_is_there_and_any_part_of_the_rest() {
        let entries = [write(0, 1, 3), Entry::Flush, write(1, 2, 2), write(3, 3, 1), Entry::Flush, write(0, 4, 1)];
        let mut seen = std::collections::BTreeSet::new();
        let mut disk = Disk::new(&entries, Image::new(4 * BLOCK_BYTES));
        for seed in 0..200 {
            let left = values(&disk.after(&PowerCut { at: 4, flushed: 2, percent: 50, seed }));
            assert!(
                left[0] == 1 && [1, 2].contains(&left[1]) && [1, 2].contains(&left[2]) && [0, 3].contains(&left[3])
            );
            seen.insert(left);
        }
        assert_eq!(seen.len(), 8, "each part of three blocks");
        for (cut, left) in [((5, 5, 0), [1, 2, 2, 3]), ((6, 5, 0), [1, 2, 2, 3]), ((6, 5, 100), [4, 2, 2, 3])] {
            let (at, flushed, percent) = cut;
            assert_eq!(values(&disk.after(&PowerCut { at, flushed, percent, seed: 0 })), left, "{cut:?}");
        }
    }

    #[test]
    fn cuts_lie_everywhere() {
        let entries: Vec<Entry> =
            (0..50).flat_map(|number| [write(number, 1, 1), write(number, 2, 1), Entry::Flush]).collect();
        let cuts = choose(&entries, 9, 400, &mut Draw::new(1));
        assert_eq!(cuts.len(), 400);
        let flushes = (9..150).filter(|at| entries[*at] == Entry::Flush).count();
        let plain: Vec<usize> = cuts.iter().filter(|cut| cut.percent == 0).map(|cut| cut.at).collect();
        assert_eq!(plain.len(), flushes, "after each flush once");
        assert!(plain.is_sorted_by(|one, other| one < other));
        for at in 10..=150 {
            assert!(cuts.iter().any(|cut| cut.at == at), "none at {at}");
        }
        for cut in &cuts {
            let flush = (0..cut.at).rev().find(|at| entries[*at] == Entry::Flush).unwrap();
            assert_eq!(cut.flushed, flush + 1);
        }
    }
}
