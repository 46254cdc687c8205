use super::*;
use proptest::prelude::*;

const GRID: u64 = GRID_BYTES as u64;

/// Extents of a disk of `blocks`, from a bit for each.
fn blocks_of(bits: &[bool], size: u64) -> ExtentSet {
    let blocks = bits.iter().enumerate().filter(|(_, bit)| **bit).map(|(at, _)| Extent::new(at as u64 * GRID, GRID));
    blocks.collect::<ExtentSet>().intersect(&ExtentSet::whole(size))
}

/// One increment that stops after `pieces_max` pieces: what it audits, where the next goes on, whether a turn ended.
fn increment(clean: &ExtentSet, size: u64, position: u64, share: Share, pieces_max: usize) -> (ExtentSet, u64, bool) {
    let ring = Ring::new(size, position);
    let parts = ring.parts(clean, share.blocks);
    let mut pieces = parts.iter().flat_map(Part::pieces);
    let done: Vec<Piece> = pieces.by_ref().take(pieces_max).collect();
    let stopped = pieces.next().is_some();
    let reached = if stopped { done.last().map_or(ring.from, |it| it.reached) } else { ring.from + share.blocks };
    (done.iter().map(|it| it.extent).collect(), reached % ring.blocks * GRID, reached >= ring.blocks)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// T8: whatever is clean in ⌈100 / percent⌉ increments that follow each other is audited in one of them at least,
    /// whatever else changes meanwhile and wherever the first begins.
    #[test]
    fn a_percentage_is_a_turn(
        percent in 1..=100u8,
        size in 1..300 * GRID,
        begin in 0..400 * GRID,
        masks in prop::collection::vec(prop::collection::vec(any::<bool>(), 300), 3),
    ) {
        let always = blocks_of(&masks[0].iter().zip(&masks[1]).map(|(a, b)| *a && *b).collect::<Vec<_>>(), size);
        let (mut position, mut audited) = (begin, ExtentSet::new());
        for number in 0..100usize.div_ceil(percent.into()) {
            let clean = blocks_of(&masks[number % 3], size).union(&always);
            let share = Share::of(Audit::Percent(percent), size, size).unwrap();
            let (one, next, _) = increment(&clean, size, position, share, usize::MAX);
            prop_assert!(one.subtract(&clean).is_empty());
            prop_assert!(next < size && next.is_multiple_of(GRID));
            audited = audited.union(&one);
            position = next;
        }
        prop_assert!(always.subtract(&audited).is_empty());
    }

    /// However early increments stop, nothing is passed over: between two ends of a turn every clean extent is audited,
    /// and a turn ends because each increment audits something.
    #[test]
    fn stopping_early_skips_nothing(
        size in 1..300 * GRID,
        bits in prop::collection::vec(any::<bool>(), 300),
        stops in prop::collection::vec(1..4usize, 1..20),
    ) {
        let clean = blocks_of(&bits, size);
        prop_assume!(!clean.is_empty());
        let share = Share::of(Audit::Usual, size, clean.bytes()).unwrap();
        let (mut position, mut audited, mut turns) = (0, ExtentSet::new(), 0);
        for number in 0.. {
            let (one, next, completed) = increment(&clean, size, position, share, stops[number % stops.len()]);
            prop_assert!(!one.is_empty());
            audited = audited.union(&one);
            position = next;
            turns += u32::from(completed);
            if completed {
                prop_assert!(clean.subtract(&audited).is_empty());
                break;
            }
            prop_assert!(number <= 300);
        }
        prop_assert_eq!(turns, 1);
    }

    #[test]
    fn positions_are_read_back(positions in prop::collection::btree_map(any::<[u8; 16]>(), 1..u64::MAX, 0..5)) {
        let positions: BTreeMap<DiskId, u64> = positions.into_iter().map(|(id, at)| (DiskId(id), at)).collect();
        let mut bytes = extension(&positions);
        prop_assert_eq!(&read_positions(&bytes).unwrap(), &positions);
        prop_assert!(RecordReader::new(&[&(bytes.len() as u32).to_le_bytes()[..], &bytes].concat()).extensions().is_ok());
        // Beside others, and cut off anywhere it is no panic.
        bytes.splice(0..0, [9, 0, 0, 0, 2, 0, 0, 0, 1, 2]);
        prop_assert_eq!(&read_positions(&bytes).unwrap(), &positions);
        for end in 0..bytes.len() {
            let _ = read_positions(&bytes[..end]);
        }
    }
}

#[test]
fn a_position_has_these_bytes() {
    let positions = BTreeMap::from([(DiskId([7; 16]), 0x30000), (DiskId([8; 16]), 0)]);
    let mut want = vec![2, 0, 0, 0, 28, 0, 0, 0, 1, 0, 0, 0];
    want.extend([7; 16]);
    want.extend([0, 0, 3, 0, 0, 0, 0, 0]);
    assert_eq!(extension(&positions), want);
    assert!(extension(&BTreeMap::from([(DiskId([8; 16]), 0)])).is_empty());
}

#[test]
fn the_usual_audit_has_three_limits() {
    let share = Share::of(Audit::Usual, 1 << 40, 1 << 38).unwrap();
    assert_eq!((share.blocks, share.bytes), (1 << 24, (1u64 << 38).div_ceil(100)));
    let limit = share.limit(Duration::from_secs(100), None);
    assert_eq!((limit.bytes, limit.time), (1 << 30, Duration::from_secs(2)));
    // What --rate allows in that time.
    assert_eq!(share.limit(Duration::from_secs(100), Some(1000)).bytes, 2000);
    // A percentage that was asked for has none.
    let share = Share::of(Audit::Percent(10), 1 << 40, 1 << 38).unwrap();
    assert_eq!((share.blocks, share.limit(Duration::ZERO, Some(1)).bytes), ((1u64 << 24).div_ceil(10), u64::MAX));
    assert_eq!(Share::of(Audit::Percent(0), 1 << 40, 1 << 38), None);
    assert_eq!(Share::of(Audit::Percent(100), 1 << 40, 0), None);
}

#[test]
fn a_difference_is_found_in_the_block_it_is_in() {
    let keys = DomainKeys::new(&chunker::DomainKey([1; 32]));
    let size = 3 * GRID + 10;
    let mut bytes = vec![1; size as usize];
    bytes[GRID as usize..2 * GRID as usize].fill(0);
    let mut page = Page::disk(0);
    for (at, block) in grid_blocks(Extent::new(0, size), size).enumerate().filter(|(at, _)| *at != 1) {
        let plain = &bytes[block.offset as usize..block.end() as usize];
        page.set(at as u64, PageRef::Chunk(keys.id(ChunkKind::Data, plain)));
    }
    let find =
        |bytes: &[u8]| first_difference(&keys, &Bytes::copy_from_slice(bytes), Extent::new(0, size), size, Some(&page));
    assert_eq!(find(&bytes), None);
    for at in [0, GRID, 2 * GRID - 1, size - 1] {
        let mut other = bytes.clone();
        other[at as usize] ^= 2;
        assert_eq!(find(&other), Some(at / GRID * GRID));
    }
    assert_eq!(first_difference(&keys, &vec![0; 100].into(), Extent::new(0, 100), 100, None), None);
}
