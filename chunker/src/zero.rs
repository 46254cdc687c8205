//! Zero detection at the speed of memory.

/// True when every byte is zero (also for no bytes at all).
pub fn is_zero(bytes: &[u8]) -> bool {
    // Whole blocks are folded without a branch so that the compiler uses vector registers; a block of data ends the
    // scan after its first 128 bytes almost always.
    let (blocks, rest) = bytes.as_chunks::<128>();
    blocks.iter().all(|block| block.iter().fold(0, |all, byte| all | byte) == 0) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::is_zero;

    #[test]
    fn one_bit_anywhere_is_seen() {
        for length in [0, 1, 127, 128, 129, 4096, 65_536 + 7] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes));
            for at in (0..length).step_by(1 + length / 61) {
                bytes[at] = 0x10;
                assert!(!is_zero(&bytes), "byte {at} of {length}");
                bytes[at] = 0;
            }
        }
    }
}
