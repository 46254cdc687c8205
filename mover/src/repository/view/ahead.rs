//! Finds the readers that read in order, and decides how far ahead to fetch for them. No I/O, no clock.

use chunker::Extent;

/// Readers that were seen lately, the last one last.
pub struct Streams {
    readers: Vec<Reader>,
    /// How far ahead is fetched for all readers together.
    ahead_max: u64,
    size: u64,
    reads: u64,
}

/// A reader that may be reading in order.
struct Reader {
    /// Where the next read is expected.
    next: u64,
    /// What lies before this is fetched, or on its way.
    fetched: u64,
    /// How far ahead of `next` is fetched. It grows the longer the reader reads in order.
    window: u64,
    /// The read that was its last.
    last: u64,
}

impl Streams {
    pub fn new(ahead_max: u64, size: u64) -> Self {
        Self { readers: Vec::new(), ahead_max, size, reads: 0 }
    }

    /// What to fetch now that `read` is asked for, in pieces of at most [`PIECE_BYTES`] that end at multiples of it.
    pub fn next(&mut self, read: Extent) -> Vec<Extent> {
        if self.ahead_max == 0 {
            return Vec::new();
        }
        self.reads += 1;
        let now = self.reads;
        self.readers.retain(|reader| reader.last + IDLE_READS >= now);
        // Reads of one client may overtake each other a little.
        let follows = |it: &Reader| read.offset <= it.next + NEAR_BYTES && read.end() + NEAR_BYTES >= it.next;
        let Some(at) = self.readers.iter().rposition(follows) else {
            if self.readers.len() == READERS_MAX {
                self.readers.remove(0);
            }
            self.readers.push(Reader { next: read.end(), fetched: read.end(), window: 0, last: now });
            return Vec::new();
        };
        let mut reader = self.readers.remove(at);
        reader.last = now;
        // What one has fetched ahead must not push out what another is about to read.
        let others = self.readers.iter().filter(|other| other.window > 0).count() as u64;
        let window_max = self.ahead_max / (others + 1);
        if read.end() > reader.next {
            reader.next = read.end();
            reader.window = (reader.window * 2).max(PIECE_BYTES);
        }
        reader.window = reader.window.min(window_max);
        let (from, to) = (reader.fetched.max(reader.next), (reader.next + reader.window).min(self.size));
        let mut pieces = Vec::new();
        // Whole pieces: small ones would cost a request each.
        let to = if to == self.size { to } else { to / PIECE_BYTES * PIECE_BYTES };
        let mut at = from;
        while at < to {
            let end = ((at / PIECE_BYTES + 1) * PIECE_BYTES).min(to);
            pieces.push(Extent::from(at..end));
            at = end;
        }
        reader.fetched = at.max(reader.fetched);
        self.readers.push(reader);
        pieces
    }
}

/// Bytes fetched together: large enough to read packs in runs, small enough that decoding begins soon.
pub const PIECE_BYTES: u64 = 4 << 20;
/// So far from where a read is expected it still belongs to the same reader.
const NEAR_BYTES: u64 = 1 << 20;
const READERS_MAX: usize = 8;
/// A reader that did not read during so many reads of all readers counts as gone.
const IDLE_READS: u64 = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(streams: &mut Streams, offset: u64, length: u64) -> Vec<Extent> {
        streams.next(Extent::from(offset..offset + length))
    }

    #[test]
    fn more_is_fetched_the_longer_somebody_reads_in_order_and_nothing_twice() {
        let (mut streams, step) = (Streams::new(4 * PIECE_BYTES, 64 * PIECE_BYTES), PIECE_BYTES / 4);
        let (mut fetched, mut farthest) = (0, 0);
        for number in 0..200 {
            let at = number * step;
            for piece in read(&mut streams, at, step) {
                assert!(piece.offset >= fetched && piece.length <= PIECE_BYTES, "{piece:?} after {fetched}");
                fetched = piece.end();
            }
            assert!(fetched <= at + step + 4 * PIECE_BYTES, "no farther than asked for");
            farthest = farthest.max(fetched.saturating_sub(at));
        }
        assert!(farthest > 3 * PIECE_BYTES, "{farthest}");
    }

    #[test]
    fn readers_share_what_is_fetched_ahead() {
        let (mut streams, ahead) = (Streams::new(8 * PIECE_BYTES, 1 << 40), 8 * PIECE_BYTES);
        let (readers, far) = (4_u64, 1 << 36);
        let mut fetched = vec![0; readers as usize];
        for number in 0..100 {
            let at = number * PIECE_BYTES;
            for reader in 0..readers {
                for piece in read(&mut streams, reader * far + at, PIECE_BYTES) {
                    fetched[reader as usize] = piece.end() - reader * far;
                }
            }
            if number > 20 {
                let ahead_now: u64 = fetched.iter().map(|end| end.saturating_sub(at + PIECE_BYTES)).sum();
                assert!(ahead_now <= ahead, "{ahead_now} bytes are fetched ahead of all");
                assert!(fetched.iter().all(|end| *end > at + PIECE_BYTES), "each has its part");
            }
        }
        // Those who have gone leave their part to who is still there.
        for number in 100..2000 {
            let at = number * PIECE_BYTES;
            fetched[0] = read(&mut streams, at, PIECE_BYTES).last().map_or(fetched[0], Extent::end);
        }
        assert!(fetched[0] >= 2000 * PIECE_BYTES + 7 * PIECE_BYTES);
    }

    #[test]
    fn nothing_is_fetched_for_who_reads_here_and_there() {
        let mut streams = Streams::new(4 * PIECE_BYTES, 1 << 40);
        for number in 0..100_u64 {
            let at = number * 7919 % 101 * (PIECE_BYTES * 3);
            assert_eq!(read(&mut streams, at, 4096), []);
        }
    }

    #[test]
    fn several_readers_are_told_apart_and_the_end_is_the_end() {
        let size = 8 * PIECE_BYTES + 17;
        let mut streams = Streams::new(4 * PIECE_BYTES, size);
        let (mut low, mut high) = (0, 0);
        for number in 0..4 {
            low += read(&mut streams, number * PIECE_BYTES, PIECE_BYTES).len();
            let at = (4 + number) * PIECE_BYTES;
            let pieces = read(&mut streams, at, PIECE_BYTES);
            high += pieces.len();
            assert!(pieces.iter().all(|piece| piece.end() <= size));
        }
        assert!(low > 0 && high > 0);
        assert_eq!(Streams::new(0, size).next(Extent::from(0..1)), []);
    }
}
