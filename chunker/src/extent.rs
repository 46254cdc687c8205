//! Byte ranges of a disk, and sets of them.

use std::ops::Range;

/// A byte range of a disk. Never empty inside an [`ExtentSet`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Extent {
    /// Offset of the first byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

impl Extent {
    /// The extent of `length` bytes from `offset`.
    ///
    /// # Panics
    /// When the end does not fit 64 bits; ranges from outside are checked against the disk's size before.
    pub const fn new(offset: u64, length: u64) -> Self {
        assert!(offset.checked_add(length).is_some(), "extent ends past 2^64");
        Self { offset, length }
    }

    /// The first byte after it.
    pub const fn end(&self) -> u64 {
        self.offset + self.length
    }

    /// The same as a half-open range.
    pub const fn range(&self) -> Range<u64> {
        self.offset..self.end()
    }
}

impl From<Range<u64>> for Extent {
    fn from(range: Range<u64>) -> Self {
        Self::new(range.start, range.end.saturating_sub(range.start))
    }
}

/// A set of bytes of a disk: sorted, disjoint, coalesced extents. Every operation keeps that form.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExtentSet {
    extents: Vec<Extent>,
}

impl ExtentSet {
    /// An empty set.
    pub const fn new() -> Self {
        Self { extents: Vec::new() }
    }

    /// The bytes from 0 to `size`.
    pub fn whole(size: u64) -> Self {
        [Extent::new(0, size)].into_iter().collect()
    }

    /// The extents in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Extent> + Clone + '_ {
        self.extents.iter().copied()
    }

    /// Number of extents.
    pub fn len(&self) -> usize {
        self.extents.len()
    }

    /// True when it holds no byte.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Number of bytes in it.
    pub fn bytes(&self) -> u64 {
        self.extents.iter().map(|extent| extent.length).sum()
    }

    /// The first byte after the last extent; 0 when empty.
    pub fn end(&self) -> u64 {
        self.extents.last().map_or(0, Extent::end)
    }

    /// True when the byte at `offset` is in it.
    pub fn contains(&self, offset: u64) -> bool {
        let after = self.extents.partition_point(|extent| extent.offset <= offset);
        after > 0 && self.extents[after - 1].end() > offset
    }

    /// True when any byte of `extent` is in it.
    pub fn intersects(&self, extent: Extent) -> bool {
        let at = self.extents.partition_point(|have| have.end() <= extent.offset);
        extent.length > 0 && self.extents.get(at).is_some_and(|have| have.offset < extent.end())
    }

    /// Offset of the first byte of the set from `offset` on.
    pub fn next(&self, offset: u64) -> Option<u64> {
        let at = self.extents.partition_point(|have| have.end() <= offset);
        self.extents.get(at).map(|have| have.offset.max(offset))
    }

    /// Adds an extent. The cost is constant when extents arrive in order; otherwise all extents behind it are moved.
    pub fn insert(&mut self, extent: Extent) {
        if extent.length == 0 {
            return;
        }
        // All that touch or overlap the new one, neighbours included, become one.
        let from = self.extents.partition_point(|have| have.end() < extent.offset);
        let to = from + self.extents[from..].partition_point(|have| have.offset <= extent.end());
        let start = self.extents[from..to].first().map_or(extent.offset, |have| have.offset.min(extent.offset));
        let end = self.extents[from..to].last().map_or(extent.end(), |have| have.end().max(extent.end()));
        self.extents.splice(from..to, [Extent::new(start, end - start)]);
    }

    /// The bytes in either.
    pub fn union(&self, other: &Self) -> Self {
        let mut all: Vec<Extent> = self.iter().chain(other.iter()).collect();
        all.sort_unstable();
        all.into_iter().collect()
    }

    /// The bytes in both.
    pub fn intersect(&self, other: &Self) -> Self {
        let (mut left, mut right) = (self.iter().peekable(), other.iter().peekable());
        let mut both = Self::new();
        while let (Some(a), Some(b)) = (left.peek().copied(), right.peek().copied()) {
            let (start, end) = (a.offset.max(b.offset), a.end().min(b.end()));
            both.insert(Extent::from(start..end.max(start)));
            if a.end() <= b.end() {
                left.next()
            } else {
                right.next()
            };
        }
        both
    }

    /// The bytes in `self` that are not in `other`.
    pub fn subtract(&self, other: &Self) -> Self {
        self.intersect(&other.complement(self.end()))
    }

    /// The bytes below `size` that are not in it.
    pub fn complement(&self, size: u64) -> Self {
        let mut gaps = Self::new();
        let mut at = 0;
        for extent in self.iter().take_while(|extent| extent.offset < size) {
            gaps.insert(Extent::from(at..extent.offset.max(at)));
            at = extent.end();
        }
        gaps.insert(Extent::from(at..size.max(at)));
        gaps
    }

    /// Every extent grown outwards to multiples of `grid`, but not past `size` (the disk's last block may be short).
    pub fn align(&self, grid: u64, size: u64) -> Self {
        assert!(grid > 0, "a grid has a width");
        self.iter()
            .map(|extent| {
                let start = extent.offset / grid * grid;
                let end = extent.end().div_ceil(grid).saturating_mul(grid).min(size);
                Extent::from(start..end.max(start))
            })
            .collect()
    }

    /// The extents in order, cut so that none is longer than `length_max` and cuts fall on multiples of it.
    pub fn split(&self, length_max: u64) -> impl Iterator<Item = Extent> + '_ {
        assert!(length_max > 0, "a piece has a length");
        self.iter().flat_map(move |extent| {
            let mut at = extent.offset;
            std::iter::from_fn(move || {
                let end = (at / length_max + 1).saturating_mul(length_max).min(extent.end());
                let piece = (at < end).then(|| Extent::from(at..end));
                at = end;
                piece
            })
        })
    }
}

impl FromIterator<Extent> for ExtentSet {
    fn from_iter<I: IntoIterator<Item = Extent>>(extents: I) -> Self {
        let mut set = Self::new();
        extents.into_iter().for_each(|extent| set.insert(extent));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const SIZE: u64 = 96;

    fn bytes(set: &ExtentSet) -> BTreeSet<u64> {
        set.iter().flat_map(|extent| extent.range()).collect()
    }

    fn is_canonical(set: &ExtentSet) -> bool {
        set.iter().all(|extent| extent.length > 0) && set.extents.windows(2).all(|pair| pair[0].end() < pair[1].offset)
    }

    fn sets() -> impl Strategy<Value = ExtentSet> {
        prop::collection::vec((0..SIZE, 0..20u64), 0..8).prop_map(|pairs| {
            pairs.into_iter().map(|(offset, length)| Extent::new(offset, length.min(SIZE - offset))).collect()
        })
    }

    proptest! {
        #[test]
        fn set_algebra_is_that_of_bytes(a in sets(), b in sets(), grid in 1..17u64) {
            let (x, y) = (bytes(&a), bytes(&b));
            let all: BTreeSet<u64> = (0..SIZE).collect();
            for (made, want) in [
                (a.union(&b), &x | &y),
                (a.intersect(&b), &x & &y),
                (a.subtract(&b), &x - &y),
                (a.complement(SIZE), &all - &x),
                (a.split(grid).collect(), x.clone()),
                (a.align(grid, SIZE), all.iter().copied().filter(|byte| (byte / grid * grid..(byte / grid + 1) * grid).any(|b| x.contains(&b))).collect()),
            ] {
                prop_assert!(is_canonical(&made), "{made:?}");
                prop_assert_eq!(bytes(&made), want);
                prop_assert_eq!(made.bytes(), bytes(&made).len() as u64);
            }
            for byte in 0..SIZE {
                prop_assert_eq!(a.contains(byte), x.contains(&byte));
                prop_assert_eq!(a.next(byte), x.range(byte..).next().copied());
                let probe = Extent::new(byte, grid);
                prop_assert_eq!(a.intersects(probe), probe.range().any(|b| x.contains(&b)));
            }
            for piece in a.split(grid) {
                prop_assert!(piece.length > 0 && piece.offset / grid == (piece.end() - 1) / grid);
            }
        }
    }

    #[test]
    fn the_last_block_may_be_short() {
        let set: ExtentSet = [Extent::new(130, 5)].into_iter().collect();
        assert_eq!(set.align(64, 150).iter().collect::<Vec<_>>(), [Extent::new(128, 22)]);
    }
}
