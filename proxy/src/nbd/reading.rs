//! The buffer of one read: filled in any order, never zeroed first, never shown unfilled.

use bytes::{Bytes, BytesMut, buf::Limit};

/// A place to read bytes into; it takes no more than belong there.
pub type Landing<'a> = Limit<&'a mut BytesMut>;

/// One allocation of the request's length, cut into the pieces that the server's chunks fill. A gap is capacity
/// without content: nothing in here has bytes that were not received (or put as a hole), and a range leaves the gaps
/// when it is taken, so an overlap is noticed.
#[derive(Debug)]
pub struct ReadBuffer {
    length: u32,
    gaps: Vec<(u64, BytesMut)>,
    full: Vec<(u64, BytesMut)>,
}

impl ReadBuffer {
    /// Room for `length` bytes from `offset`; `length` is what we asked for, not what a peer said.
    pub fn new(offset: u64, length: u32) -> Self {
        let mut room = BytesMut::with_capacity(length as usize);
        let _spare = room.split_off(length as usize);
        Self { length, gaps: vec![(offset, room)], full: Vec::new() }
    }

    /// Takes out the empty piece for `length` bytes from `start`; `None` when any of them is outside or taken before.
    pub fn take(&mut self, start: u64, length: u32) -> Option<BytesMut> {
        let end = start.checked_add(length.into())?;
        let after = self.gaps.partition_point(|(from, _)| *from <= start);
        let at = after.checked_sub(1)?;
        let (from, gap) = &mut self.gaps[at];
        let from = *from;
        if end > from + gap.capacity() as u64 {
            return None;
        }
        let mut piece = gap.split_off((start - from) as usize);
        let rest = piece.split_off(length as usize);
        let mut keep = Vec::new();
        if gap.capacity() > 0 {
            keep.push((from, std::mem::take(gap)));
        }
        if rest.capacity() > 0 {
            keep.push((end, rest));
        }
        self.gaps.splice(at..=at, keep);
        Some(piece)
    }

    /// Puts back a piece that was taken, now full.
    pub fn put(&mut self, start: u64, piece: BytesMut) {
        self.full.push((start, piece));
    }

    /// All bytes; `None` when some were never received.
    pub fn finish(mut self) -> Option<Bytes> {
        self.full.sort_unstable_by_key(|(start, _)| *start);
        let mut pieces = self.full.into_iter().map(|(_, piece)| piece);
        let mut whole = pieces.next()?;
        // The pieces are neighbours in one allocation, so this joins them without copying.
        pieces.for_each(|piece| whole.unsplit(piece));
        (self.gaps.is_empty() && whole.len() == self.length as usize).then(|| whole.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BufMut;
    use proptest::prelude::*;

    #[test]
    fn any_order_gives_one_allocation() {
        let mut buffer = ReadBuffer::new(100, 10);
        let whole = buffer.gaps[0].1.as_ptr();
        for (start, bytes) in [(104, &b"efg"[..]), (100, b"abcd"), (107, b"hij")] {
            let mut piece = buffer.take(start, bytes.len() as u32).unwrap();
            piece.put_slice(bytes);
            buffer.put(start, piece);
        }
        let bytes = buffer.finish().unwrap();
        assert_eq!(&bytes[..], b"abcdefghij");
        assert_eq!(bytes.as_ptr(), whole);
    }

    #[test]
    fn nothing_twice_nothing_outside_nothing_missing() {
        let mut buffer = ReadBuffer::new(100, 10);
        for (start, length) in [(99, 1), (99, 2), (110, 1), (109, 2), (u64::MAX, 2), (0, 1)] {
            assert!(buffer.take(start, length).is_none(), "{start}+{length}");
        }
        let mut piece = buffer.take(103, 2).unwrap();
        piece.put_slice(b"xx");
        buffer.put(103, piece);
        for (start, length) in [(103, 1), (104, 1), (102, 2), (104, 2), (100, 10)] {
            assert!(buffer.take(start, length).is_none(), "{start}+{length}");
        }
        assert!(buffer.finish().is_none());
    }

    proptest! {
        #[test]
        fn filled_exactly_once_in_any_order(cuts in prop::collection::btree_set(1..200u32, 0..20), seed: u64) {
            let edges: Vec<u32> = [0].into_iter().chain(cuts).chain([200]).collect();
            let mut ranges: Vec<_> = edges.windows(2).map(|pair| (pair[0], pair[1])).collect();
            ranges.sort_by_key(|(from, _)| (u64::from(*from) + 1).wrapping_mul(seed | 1));
            let mut buffer = ReadBuffer::new(1000, 200);
            for (from, to) in ranges {
                let mut piece = buffer.take(1000 + u64::from(from), to - from).unwrap();
                (from..to).for_each(|byte| piece.put_u8(byte as u8));
                buffer.put(1000 + u64::from(from), piece);
            }
            let want: Vec<u8> = (0..200).collect();
            prop_assert_eq!(&buffer.finish().unwrap()[..], &want[..]);
        }
    }
}
