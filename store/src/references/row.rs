//! A row of counts: of all chunks whose ids begin with the same 20 bits. One row for each chunk would take five times
//! the room, and a sweep asks for ids that lie everywhere, so that every question would read another block.
//!
//! A row holds, for each of its chunks in ascending order, bytes 2 to 7 of the id, and how often it is referred to as a
//! zigzag LEB128 number that is not 0. Two ids with the same first 8 bytes are counted as one: together they die later.

use chunker::ChunkId;

/// The first 8 bytes of an id, in the order of ids.
pub fn head(id: &ChunkId) -> u64 {
    u64::from_be_bytes(*id.as_bytes().first_chunk().expect("ids are longer"))
}

/// The key of the row in which an id is counted: the first 20 bits of the id.
pub fn row_key(head: u64) -> [u8; ROW_KEY_BYTES] {
    let bytes = head.to_be_bytes();
    [bytes[0], bytes[1], bytes[2] & 0xf0]
}

/// Appends one count to a row.
pub fn push(row: &mut Vec<u8>, head: u64, count: i64) {
    row.extend_from_slice(&head.to_be_bytes()[2..]);
    let mut zigzag = ((count << 1) ^ (count >> 63)).cast_unsigned();
    while zigzag >= 0x80 {
        row.push(zigzag.to_le_bytes()[0] | 0x80);
        zigzag >>= 7;
    }
    row.push(zigzag.to_le_bytes()[0]);
}

/// The counts of the row under `key`; none of a row that is damaged.
pub fn counts(key: [u8; ROW_KEY_BYTES], mut row: &[u8]) -> Option<Vec<(u64, i64)>> {
    let mut counts = Vec::with_capacity(row.len() / (TAIL_BYTES + 1));
    while let Some((tail, rest)) = row.split_first_chunk::<TAIL_BYTES>() {
        let [a, b, c, d, e, f] = *tail;
        let head = u64::from_be_bytes([key[0], key[1], a, b, c, d, e, f]);
        let (mut zigzag, mut shift) = (0, 0);
        row = rest;
        loop {
            let (byte, rest) = row.split_first()?;
            row = rest;
            zigzag |= u64::from(byte & 0x7f).checked_shl(shift)?;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let count = (zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed();
        let fits = row_key(head) == key && counts.last().is_none_or(|(last, _)| *last < head);
        if !fits {
            return None;
        }
        counts.push((head, count));
    }
    row.is_empty().then_some(counts)
}

/// The sum of rows under one key, without ids whose counts add up to 0.
pub fn sum<'a>(key: &[u8], rows: impl Iterator<Item = &'a [u8]>) -> Option<Vec<u8>> {
    let key = key.try_into().ok()?;
    let mut all = Vec::new();
    for row in rows {
        all.append(&mut counts(key, row)?);
    }
    all.sort_unstable_by_key(|(head, _)| *head);
    let mut sum = Vec::new();
    for same in all.chunk_by(|(a, _), (b, _)| a == b) {
        match same.iter().try_fold(0_i64, |sum, (_, count)| sum.checked_add(*count))? {
            0 => {}
            count => push(&mut sum, same[0].0, count),
        }
    }
    Some(sum)
}

/// Bytes of a row's key.
pub const ROW_KEY_BYTES: usize = 3;
/// Bytes of an id that a row has of each chunk; the first four bits are in its key too.
const TAIL_BYTES: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// A row gives the same counts as a map, in whatever order additions are combined.
        #[test]
        fn rows_add_up_as_a_map_does(
            added in prop::collection::vec((0..1_u64 << 44, prop_oneof![-2..3_i64, any::<i32>().prop_map(i64::from)]), 0..60),
            few in 1..5_usize,
            parts in 1..4_usize,
        ) {
            let high = 0xabcd_e000_0000_0000;
            let mut model = BTreeMap::<u64, i64>::new();
            let rows: Vec<Vec<u8>> = added.iter().map(|(low, count)| {
                // A few chunks, so that they meet.
                let head = high | if few < 3 { low % 7 } else { *low };
                *model.entry(head).or_default() += count;
                let mut row = Vec::new();
                if *count != 0 {
                    push(&mut row, head, *count);
                }
                row
            }).collect();
            let key = row_key(high);
            let partly = rows.chunks(parts).map(|rows| sum(&key, rows.iter().map(Vec::as_slice)).unwrap());
            let partly: Vec<_> = partly.collect();
            let whole = sum(&key, partly.iter().map(Vec::as_slice)).unwrap();
            let expected: Vec<_> = model.into_iter().filter(|(_, count)| *count != 0).collect();
            prop_assert_eq!(counts(key, &whole).unwrap(), expected);
        }

        #[test]
        fn damage_is_told_or_read_and_never_panics(row in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Some(read) = counts([0, 0, 0], &row) {
                prop_assert!(read.is_sorted_by(|(a, _), (b, _)| a < b));
            }
            sum(&[0, 0, 0], [&row[..], &row[..]].into_iter());
        }
    }

    #[test]
    fn a_row_is_laid_out_as_it_says() {
        let mut row = Vec::new();
        push(&mut row, 0x1122_3344_5566_7788, 1);
        push(&mut row, 0x1122_3f44_5566_7788, -65);
        let key = row_key(0x1122_3344_5566_7788);
        assert_eq!(key, [0x11, 0x22, 0x30]);
        assert_eq!(row, [0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 2, 0x3f, 0x44, 0x55, 0x66, 0x77, 0x88, 0x81, 1]);
        assert_eq!(counts(key, &row).unwrap(), [(0x1122_3344_5566_7788, 1), (0x1122_3f44_5566_7788, -65)]);
        for damaged in [&row[..14], &row[..3], &[&row[7..], &row[..7]].concat()[..]] {
            assert_eq!(counts(key, damaged), None);
        }
        assert_eq!(counts([0x11, 0x22, 0x40], &row), None, "of another row");
    }
}
