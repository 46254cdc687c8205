//! Cutting: a fixed grid for disks, content-defined cuts for byte streams.

use crate::Extent;
use fastcdc::v2020::FastCDC;

/// Width of a disk's grid. It is the granularity of QEMU's dirty bitmaps, so that only changed blocks are read.
pub const GRID_BYTES: u32 = 65_536;

/// The grid blocks that `extent` touches, as extents; the last one ends at `size`.
pub fn grid_blocks(extent: Extent, size: u64) -> impl Iterator<Item = Extent> {
    let grid = u64::from(GRID_BYTES);
    (extent.offset / grid..extent.end().min(size).div_ceil(grid))
        .map(move |block| Extent::from(block * grid..((block + 1) * grid).min(size)))
}

/// Cuts a byte stream where its content says so: FastCDC, 2020 variant with normalised chunking (Xia et al., "The
/// Design of Fast Content-Defined Chunking for Data Deduplication Based Storage Systems", IEEE TPDS 2020), 16 KiB to
/// 256 KiB, 64 KiB on average. Cut points are part of the format: golden vectors guard them.
#[derive(Default)]
pub struct StreamCutter {
    held: Vec<u8>,
}

impl StreamCutter {
    /// Takes the next bytes and returns the chunks that are complete, in order. Holds less than two chunks.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.held.extend_from_slice(bytes);
        self.cut(STREAM_CHUNK_BYTES_MAX)
    }

    /// The chunks of what is left at the end of the stream.
    pub fn finish(mut self) -> Vec<Vec<u8>> {
        self.cut(1)
    }

    /// Cuts as long as at least `enough` bytes are held: a cut is final when the longest chunk would fit.
    fn cut(&mut self, enough: usize) -> Vec<Vec<u8>> {
        let mut chunks = Vec::new();
        let mut at = 0;
        while self.held.len() - at >= enough {
            let window = &self.held[at..self.held.len().min(at + STREAM_CHUNK_BYTES_MAX)];
            let cutter =
                FastCDC::new(window, STREAM_CHUNK_BYTES_MIN, STREAM_CHUNK_BYTES_AVERAGE, STREAM_CHUNK_BYTES_MAX);
            let (_, cut) = cutter.cut(0, window.len());
            assert!(cut > 0 && cut <= window.len(), "a cut makes progress");
            chunks.push(window[..cut].to_vec());
            at += cut;
        }
        self.held.drain(..at);
        chunks
    }
}

const STREAM_CHUNK_BYTES_MIN: usize = 16 * 1024;
const STREAM_CHUNK_BYTES_AVERAGE: usize = 64 * 1024;
/// Longest piece of a stream.
pub const STREAM_CHUNK_BYTES_MAX: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bytes of a fixed linear congruential generator: the same on every machine and release.
    fn noise(length: usize, seed: u64) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56).to_le_bytes()[0]
        };
        (0..length).map(|_| next()).collect()
    }

    fn lengths(stream: &[u8], step: usize) -> Vec<usize> {
        let mut cutter = StreamCutter::default();
        let mut chunks: Vec<Vec<u8>> = stream.chunks(step).flat_map(|piece| cutter.push(piece)).collect();
        chunks.extend(cutter.finish());
        assert_eq!(chunks.concat(), stream);
        chunks.iter().map(Vec::len).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn cuts_do_not_depend_on_how_bytes_arrive(length in 0..900_000usize, step in 1000..400_000usize, seed: u64) {
            let stream = noise(length, seed);
            prop_assert_eq!(lengths(&stream, step), lengths(&stream, 1 + length));
        }
    }

    #[test]
    fn blocks_of_an_extent() {
        let grid = u64::from(GRID_BYTES);
        let blocks: Vec<Extent> = grid_blocks(Extent::new(grid - 1, 2), 2 * grid - 10).collect();
        assert_eq!(blocks, [Extent::new(0, grid), Extent::new(grid, grid - 10)]);
    }
}
