//! Sparse bytes of a disk.

use bytes::Bytes;
use chunker::{Extent, ExtentSet, GRID_BYTES, grid_blocks, is_zero};
use std::collections::BTreeMap;

/// The bytes of a disk of any size; blocks of zeros take no memory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Image {
    size: u64,
    blocks: BTreeMap<u64, Bytes>,
}

impl Image {
    /// Zeros.
    pub fn new(size: u64) -> Self {
        Self { size, blocks: BTreeMap::new() }
    }

    /// Size in bytes.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The bytes of `extent`.
    pub fn read(&self, extent: Extent) -> Bytes {
        assert!(extent.end() <= self.size, "read past the end: {extent:?} of {}", self.size);
        let mut made = Vec::new();
        for block in grid_blocks(extent, self.size) {
            let part = block.offset.max(extent.offset) - block.offset..block.end().min(extent.end()) - block.offset;
            match self.blocks.get(&block.offset) {
                Some(bytes) => made.extend_from_slice(&bytes[as_usize(part.start)..as_usize(part.end)]),
                None => made.resize(made.len() + as_usize(part.end - part.start), 0),
            }
        }
        made.into()
    }

    /// Replaces the bytes at `offset`.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let extent = Extent::new(offset, bytes.len() as u64);
        assert!(extent.end() <= self.size, "write past the end: {extent:?} of {}", self.size);
        for block in grid_blocks(extent, self.size) {
            let (from, to) = (block.offset.max(offset), block.end().min(extent.end()));
            let mut whole = self.read(block).to_vec();
            let part = &bytes[as_usize(from - offset)..as_usize(to - offset)];
            whole[as_usize(from - block.offset)..as_usize(to - block.offset)].copy_from_slice(part);
            self.keep(block.offset, whole);
        }
    }

    /// Makes `extent` zeros.
    pub fn zero(&mut self, extent: Extent) {
        assert!(extent.end() <= self.size, "zero past the end: {extent:?} of {}", self.size);
        let grid = u64::from(GRID_BYTES);
        let whole = extent.offset.div_ceil(grid) * grid..extent.end() / grid * grid;
        let inner: Vec<u64> =
            if whole.is_empty() { Vec::new() } else { self.blocks.range(whole.clone()).map(|(at, _)| *at).collect() };
        inner.into_iter().for_each(|at| {
            self.blocks.remove(&at);
        });
        let edges: ExtentSet = [extent].into_iter().collect();
        let inside = if whole.is_empty() { ExtentSet::new() } else { [Extent::from(whole)].into_iter().collect() };
        for edge in edges.subtract(&inside).iter() {
            self.write(edge.offset, &vec![0; as_usize(edge.length)]);
        }
    }

    /// Changes the size; what is added is zeros.
    pub fn resize(&mut self, size: u64) {
        if size < self.size {
            self.zero(Extent::from(size..self.size));
        }
        let last = self.size.min(size) / u64::from(GRID_BYTES) * u64::from(GRID_BYTES);
        self.size = size;
        if let Some(block) = self.blocks.remove(&last) {
            let mut bytes = block.to_vec();
            bytes.resize(as_usize((size - last).min(GRID_BYTES.into())), 0);
            self.keep(last, bytes);
        }
    }

    /// Whole blocks of zeros, as a file system tells holes.
    pub fn zeroes(&self) -> ExtentSet {
        let data: ExtentSet = self.blocks.iter().map(|(at, bytes)| Extent::new(*at, bytes.len() as u64)).collect();
        data.complement(self.size)
    }

    fn keep(&mut self, block: u64, bytes: Vec<u8>) {
        if is_zero(&bytes) {
            self.blocks.remove(&block);
        } else {
            self.blocks.insert(block, bytes.into());
        }
    }
}

/// Bytes that do not compress, always the same for one seed.
pub fn noise(seed: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; as_usize(length)];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn as_usize(value: u64) -> usize {
    usize::try_from(value).expect("fits memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_its_bytes() {
        let mut plain = vec![0u8; 300_000];
        let mut image = Image::new(300_000);
        for step in 0..200u64 {
            let at = as_usize(step * 7919 % plain.len() as u64);
            let length = as_usize(step * 104_729 % 150_000).min(plain.len() - at);
            if step % 3 == 0 {
                plain[at..at + length].fill(0);
                image.zero(Extent::new(at as u64, length as u64));
            } else if step % 10 == 1 {
                let size = 100_000 + as_usize(step * 15_485_863 % 250_000);
                plain.resize(size, 0);
                image.resize(size as u64);
            } else {
                let bytes = noise(step, length as u64);
                plain[at..at + length].copy_from_slice(&bytes);
                image.write(at as u64, &bytes);
            }
            assert_eq!(image.read(Extent::new(0, plain.len() as u64)), plain, "step {step}");
        }
    }
}
