//! Lines of bytes from a peer that may send anything: their length is bounded, and none is lost when nobody waits any
//! more.

use std::io;
use tokio::io::{AsyncRead, AsyncReadExt};

/// What was received of a peer and not taken yet.
#[derive(Debug)]
pub struct Lines {
    bytes: Vec<u8>,
    /// Bytes at the beginning that hold no end of a line.
    searched: usize,
    bytes_max: usize,
}

impl Lines {
    /// For lines of at most `bytes_max` bytes.
    pub const fn new(bytes_max: usize) -> Self {
        Self { bytes: Vec::new(), searched: 0, bytes_max }
    }

    /// The next line that is not empty, without its end; none when the peer closed. Dropping this future loses nothing.
    ///
    /// # Errors
    /// Of the peer; `InvalidData` for a line that is too long.
    pub async fn next(&mut self, from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
        loop {
            while let Some(at) = self.bytes[self.searched..].iter().position(|byte| *byte == b'\n') {
                let rest = self.bytes.split_off(self.searched + at + 1);
                let mut line = std::mem::replace(&mut self.bytes, rest);
                self.searched = 0;
                line.truncate(line.trim_ascii_end().len());
                if !line.is_empty() {
                    return Ok(Some(line));
                }
            }
            self.searched = self.bytes.len();
            if self.bytes.len() > self.bytes_max {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is too long"));
            }
            let mut piece = [0; 16 << 10];
            let got = from.read(&mut piece).await?;
            if got == 0 {
                return Ok(None);
            }
            self.bytes.extend_from_slice(&piece[..got]);
        }
    }
}

/// Words of a peer for a message: at most `chars_max` characters, and none that would do something to a terminal.
pub fn printable(words: &str, chars_max: usize) -> String {
    words.chars().filter(|it| !it.is_control()).take(chars_max).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_come_whole_and_bounded() {
        let mut lines = Lines::new(8);
        let mut from = &b"one\r\n\n two\nthree"[..];
        assert_eq!(lines.next(&mut from).await.unwrap().unwrap(), b"one");
        assert_eq!(lines.next(&mut from).await.unwrap().unwrap(), b" two");
        assert_eq!(lines.next(&mut from).await.unwrap(), None);
        let mut lines = Lines::new(8);
        let mut endless = tokio::io::repeat(b'x');
        assert_eq!(lines.next(&mut endless).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
