//! One pack: its footer, or every byte of it, a window at a time.

use crate::contents::salvaged;
use crate::format::event::AddedPack;
use crate::format::pack::{
    PACK_BYTES_MAX, PACK_HEADER_BYTES, PackEntry, PackHeader, RECORD_HEADER_BYTES, TRAILER_BYTES, blob_hash,
    decode_footer, footer_bytes, read_record_header,
};
use crate::objects::Object;
use crate::repository::Inner;
use bytes::Bytes;
use chunker::{Blob, ChunkId, ChunkKind};
use mover::{Depth, Error, ErrorKind, RateLimiter, Result, blocking, with_decoder};
use std::ops::Range;
use std::sync::Arc;

/// What the check of one pack found.
#[derive(Default)]
pub struct Checked {
    pub chunks: u64,
    /// The records that were looked at.
    pub entries: Arc<[PackEntry]>,
    pub bytes_read: u64,
    pub bad: Vec<(ChunkId, String)>,
    pub errors: Vec<String>,
    /// Nothing in it can be read.
    pub unreadable: bool,
    /// The storage failed. Then this is the only error.
    pub unread: bool,
}

impl Checked {
    /// True when nothing wrong was found.
    pub const fn is_sound(&self) -> bool {
        self.bad.is_empty() && self.errors.is_empty()
    }

    /// True when the pack was read, and some of its records could not be found.
    pub fn has_lost(&self, pack: &AddedPack) -> bool {
        self.unreadable || !self.unread && self.chunks < pack.chunks.into()
    }
}

/// Looks at a pack. Memory: a window of [`WINDOW_BYTES`], or one blob that is longer; all of the pack only when its footer is
/// damaged.
pub async fn check_pack(inner: &Arc<Inner>, pack: &AddedPack, depth: Depth, pacer: &RateLimiter) -> Checked {
    let mut checked = Checked::default();
    if let Err(error) = look(inner, pack, depth, pacer, &mut checked).await {
        checked.unreadable = error.kind() == ErrorKind::Integrity;
        checked.unread = !checked.unreadable;
        checked.errors = vec![error.to_string()];
    }
    checked
}

async fn look(
    inner: &Arc<Inner>,
    pack: &AddedPack,
    depth: Depth,
    pacer: &RateLimiter,
    checked: &mut Checked,
) -> Result<()> {
    let (reading, added) = (inner.clone(), pack.clone());
    let (open, frame) = blocking(move || Frame::read(&reading, &added)).await?;
    let nonce = frame.header.as_ref().map(|header| header.nonce).unwrap_or_default();
    let whole = frame.entries.is_ok();
    let entries: Arc<[PackEntry]> = match frame.entries {
        Ok(entries) => entries.into(),
        Err(what) => {
            checked.errors.push(what);
            let (inner, open, bytes) = (inner.clone(), open.clone(), pack.bytes);
            let scan = move || Ok::<_, Error>(salvaged(&inner.keys, &read(&*open, 0..bytes)?.into()));
            blocking(scan).await?.into()
        }
    };
    checked.chunks = entries.len() as u64;
    checked.entries = entries.clone();
    if u64::from(pack.chunks) != checked.chunks {
        checked.errors.push(format!("the log says {} chunks, the pack has {}", pack.chunks, checked.chunks));
    }
    let header = frame.header;
    if depth != Depth::Structure {
        let first = if depth == Depth::Decode { Look::Decode } else { Look::Checksum };
        let scan = |look| Scan {
            inner: inner.clone(),
            pack: pack.clone(),
            open: open.clone(),
            entries: entries.clone(),
            nonce,
            whole,
            look,
            name: blake3::Hasher::new(),
            bad: Vec::new(),
            plain: Vec::new(),
        };
        let (name, bad) = scan(first).through(pacer).await?;
        checked.bytes_read = pack.bytes;
        checked.bad = bad;
        if name != pack.name.0 && first == Look::Checksum {
            // Checksums find rot; which blob it is that somebody changed with care, its hash tells.
            (_, checked.bad) = scan(Look::Hash).through(pacer).await?;
            checked.bytes_read += pack.bytes;
        }
        if name != pack.name.0 && checked.bad.is_empty() && checked.errors.is_empty() && header.is_ok() {
            checked.errors.push("the pack's bytes do not match its name".into());
        }
    }
    if let Err(what) = header {
        checked.errors.push(what);
        checked.unreadable = true;
    }
    Ok(())
}

/// The parts of a pack before and after its records.
struct Frame {
    header: std::result::Result<PackHeader, String>,
    entries: std::result::Result<Vec<PackEntry>, String>,
}

impl Frame {
    /// Reads header and footer. Blocking.
    fn read(inner: &Inner, pack: &AddedPack) -> Result<(Arc<dyn Object>, Self)> {
        let open = inner.objects.open_pack(&pack.name)?;
        let length = open.length()?;
        if length != pack.bytes || length > PACK_BYTES_MAX {
            return Err(Error::integrity(format!("it has {length} bytes instead of {}", pack.bytes)));
        }
        let header = read(&*open, 0..length.min(PACK_HEADER_BYTES as u64))?;
        let header = PackHeader::decode(&header).map_err(|error| error.to_string());
        let tail = read(&*open, length.saturating_sub(TRAILER_BYTES as u64)..length)?;
        let entries = match footer_bytes(&tail) {
            Ok(footer) => {
                let footer = read(&*open, length.saturating_sub(footer)..length)?;
                decode_footer(&footer, pack.kind, length)
            }
            Err(error) => Err(error),
        };
        let entries = entries.map_err(|error| error.to_string());
        Ok((open, Self { header, entries }))
    }
}

fn read(open: &dyn Object, bytes: Range<u64>) -> Result<Vec<u8>> {
    open.read(bytes.start, usize::try_from(bytes.end - bytes.start).expect("a pack fits memory"))
}

/// How a record is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Its place, and the blob's checksum.
    Checksum,
    /// The same, and the hash of the blob that the footer has.
    Hash,
    /// Its place, and the chunk: decoded and fingerprinted.
    Decode,
}

/// A way through all of a pack, in order.
struct Scan {
    inner: Arc<Inner>,
    pack: AddedPack,
    open: Arc<dyn Object>,
    entries: Arc<[PackEntry]>,
    nonce: [u8; 16],
    /// The entries are those of the footer, so that each record must have the number of its place among them.
    whole: bool,
    look: Look,
    name: blake3::Hasher,
    bad: Vec<(ChunkId, String)>,
    plain: Vec<u8>,
}

impl Scan {
    /// Gives the name that the bytes have, and what is wrong with which chunks. All checks of a window are done on one
    /// thread, while its bytes are in the processor's cache. Other threads check other packs.
    async fn through(mut self, pacer: &RateLimiter) -> Result<([u8; 32], Vec<(ChunkId, String)>)> {
        let windows = windows(&self.entries, self.pack.bytes);
        let together = if pacer.is_limited() { 1 } else { windows.len().max(1) };
        for windows in windows.chunks(together) {
            pacer.wait(windows.iter().map(|(bytes, _)| bytes.end - bytes.start).sum()).await;
            let windows = windows.to_vec();
            self = blocking(move || {
                for (bytes, records) in windows {
                    self.look_at(bytes, records)?;
                }
                Ok::<_, Error>(self)
            })
            .await?;
        }
        Ok((*self.name.finalize().as_bytes(), self.bad))
    }

    fn look_at(&mut self, bytes: Range<u64>, records: Range<usize>) -> Result<()> {
        let start = bytes.start;
        let window = Bytes::from(read(&*self.open, bytes)?);
        self.name.update(&window);
        for ordinal in records {
            if let Err(what) = self.check_record(&window, start, ordinal) {
                self.bad.push((self.entries[ordinal].id, what));
            }
        }
        Ok(())
    }

    fn check_record(&mut self, window: &Bytes, start: u64, ordinal: usize) -> std::result::Result<(), String> {
        let entry = &self.entries[ordinal];
        let inside = |offset: u64| usize::try_from(offset - start).expect("inside a window");
        let (at, end) = (inside(entry.offset.into()), inside(entry.end()));
        let blob_at = at + RECORD_HEADER_BYTES;
        let (have, id) = read_record_header(&window[at..blob_at], &self.nonce).map_err(|error| error.to_string())?;
        if id != entry.id || self.whole && usize::try_from(have) != Ok(ordinal) {
            return Err("another record is in its place".into());
        }
        let blob = window.slice(blob_at..end);
        if self.look == Look::Hash && blob_hash(&blob) != entry.blob_hash {
            return Err("the stored bytes do not match their hash".into());
        }
        let blob = Blob::parse(blob).map_err(|error| error.to_string())?;
        if blob.header().kind != entry.kind || blob.header().plain_bytes != entry.plain_bytes {
            return Err("the footer describes another blob".into());
        }
        let blob = blob.checked().map_err(|error| error.to_string())?;
        if self.look == Look::Decode {
            let (keys, plain) = (&self.inner.keys, &mut self.plain);
            plain.clear();
            with_decoder(|decoder| decoder.decode_verified(keys, &entry.id, &blob, plain))
                .map_err(|error| error.to_string())?;
            if entry.kind == ChunkKind::Page {
                mover::Page::decode(plain).map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }
}

/// Cuts a pack between records: about [`WINDOW_BYTES`] each, with the numbers of the records in it. Bytes that belong
/// to no record are in the same window as their neighbours.
fn windows(entries: &[PackEntry], pack_bytes: u64) -> Vec<(Range<u64>, Range<usize>)> {
    let mut windows = Vec::new();
    let (mut from, mut first) = (0, 0);
    for (at, entry) in entries.iter().enumerate() {
        if entry.end() - from >= WINDOW_BYTES {
            windows.push((from..entry.end(), first..at + 1));
            (from, first) = (entry.end(), at + 1);
        }
    }
    let mut records = first..entries.len();
    while from < pack_bytes {
        let to = match records.end {
            // The last records and what follows them, as long as that is no more than a footer.
            end if end > records.start => entries[end - 1].end().max(pack_bytes.min(from + WINDOW_BYTES)),
            _ => pack_bytes.min(from + WINDOW_BYTES),
        };
        windows.push((from..to, records));
        (from, records) = (to, 0..0);
    }
    windows
}

/// Bytes of one read. They are few enough to stay in the processor's cache until they are checked.
const WINDOW_BYTES: u64 = 512 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(blobs: &[u32]) -> Vec<PackEntry> {
        let mut at = PACK_HEADER_BYTES as u32;
        let made = blobs.iter().map(|&blob_bytes| {
            let (id, kind) = (ChunkId([0; 32]), ChunkKind::Data);
            let made = PackEntry { id, kind, offset: at, blob_bytes, plain_bytes: 0, blob_hash: [0; 16] };
            at = u32::try_from(made.end()).unwrap();
            made
        });
        made.collect()
    }

    #[test]
    fn every_byte_is_in_one_window_and_every_record_whole() {
        for (blobs, beyond) in [
            (vec![], 10),
            (vec![], 9 << 20),
            (vec![100], 0),
            (vec![5 << 20], 7),
            (vec![1 << 20; 9], 5 << 20),
            (vec![70; 90_000], 1),
        ] {
            let entries = entries(&blobs);
            let records_end = entries.last().map_or(PACK_HEADER_BYTES as u64, PackEntry::end);
            let (mut at, mut record) = (0, 0);
            for (bytes, records) in windows(&entries, records_end + beyond) {
                assert_eq!(bytes.start, at);
                assert!(bytes.end > at);
                at = bytes.end;
                for number in records {
                    assert_eq!(number, record);
                    assert!(u64::from(entries[number].offset) >= bytes.start && entries[number].end() <= bytes.end);
                    record += 1;
                }
            }
            assert_eq!((at, record), (records_end + beyond, entries.len()));
        }
    }
}
