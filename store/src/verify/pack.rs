//! One pack: its footer, or every byte of it, a window at a time.

use crate::directory::pack_object;
use crate::error::reading;
use crate::format::event::AddedPack;
use crate::format::pack::{
    PACK_BYTES_MAX, PACK_HEADER_BYTES, PackEntry, PackHeader, RECORD_HEADER_BYTES, TRAILER_BYTES, blob_hash,
    decode_footer, footer_bytes, read_record_header, scan_records,
};
use crate::local::Inner;
use bytes::Bytes;
use chunker::{Blob, ChunkId, ChunkKind};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use mover::{Depth, Error, ErrorKind, Pacer, Result, blocking, with_opener};
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

/// What the check of one pack found.
#[derive(Default)]
pub struct Checked {
    pub chunks: u64,
    pub bytes_read: u64,
    pub bad: Vec<(ChunkId, String)>,
    pub errors: Vec<String>,
    /// Nothing in it can be read.
    pub unreadable: bool,
    /// The storage failed; the only error then.
    pub unread: bool,
}

impl Checked {
    /// Nothing was found.
    pub const fn is_sound(&self) -> bool {
        self.bad.is_empty() && self.errors.is_empty()
    }
}

/// Looks at a pack. Memory: a few windows of [`WINDOW_BYTES`], or of one blob that is longer; all of the pack only when its
/// footer is damaged.
pub async fn check_pack(inner: &Arc<Inner>, pack: &AddedPack, depth: Depth, pacer: &Pacer) -> Checked {
    let mut checked = Checked::default();
    if let Err(error) = look(inner, pack, depth, pacer, &mut checked).await {
        checked.unreadable = error.kind() == ErrorKind::Integrity;
        checked.unread = !checked.unreadable;
        checked.errors = vec![error.to_string()];
    }
    checked
}

async fn look(inner: &Arc<Inner>, pack: &AddedPack, depth: Depth, pacer: &Pacer, checked: &mut Checked) -> Result<()> {
    let (opener, added) = (inner.clone(), pack.clone());
    let (file, frame) = blocking(move || Frame::read(&opener, &added)).await?;
    let nonce = frame.header.as_ref().map(|header| header.nonce).unwrap_or_default();
    let entries: Arc<[PackEntry]> = match frame.entries {
        Ok(entries) => entries.into(),
        Err(what) => {
            checked.errors.push(what);
            let (inner, file, pack) = (inner.clone(), file.clone(), pack.clone());
            blocking(move || Ok::<_, Error>(scan_records(&read(&inner, &file, &pack, 0..pack.bytes)?, &nonce)))
                .await?
                .into()
        }
    };
    checked.chunks = entries.len() as u64;
    if u64::from(pack.chunks) != checked.chunks {
        checked.errors.push(format!("the log says {} chunks, the pack has {}", pack.chunks, checked.chunks));
    }
    let header = frame.header;
    if depth != Depth::Structure {
        let first = if depth == Depth::Decode { Look::Decode } else { Look::Checksum };
        let records = Records { inner, pack, file: &file, entries: &entries, nonce };
        let (name, bad) = records.check(first, pacer).await?;
        checked.bytes_read = pack.bytes;
        checked.bad = bad;
        if name != pack.name.0 && first == Look::Checksum {
            // Checksums find rot; which blob it is that somebody changed with care, its hash tells.
            (_, checked.bad) = records.check(Look::Hash, pacer).await?;
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

/// What stands around the records.
struct Frame {
    header: std::result::Result<PackHeader, String>,
    entries: std::result::Result<Vec<PackEntry>, String>,
}

impl Frame {
    /// Blocking.
    fn read(inner: &Inner, pack: &AddedPack) -> Result<(Arc<File>, Self)> {
        let file = inner.directory.open_pack(&pack.name)?;
        let length = inner.directory.io().length(&file);
        let length = length.map_err(|error| reading(pack_object(&pack.name).as_ref(), error))?;
        if length != pack.bytes || length > PACK_BYTES_MAX {
            return Err(Error::integrity(format!("it has {length} bytes instead of {}", pack.bytes)));
        }
        let header = read(inner, &file, pack, 0..length.min(PACK_HEADER_BYTES as u64))?;
        let header = PackHeader::decode(&header).map_err(|error| error.to_string());
        let tail = read(inner, &file, pack, length.saturating_sub(TRAILER_BYTES as u64)..length)?;
        let entries = match footer_bytes(&tail) {
            Ok(footer) => {
                let footer = read(inner, &file, pack, length.saturating_sub(footer)..length)?;
                decode_footer(&footer, pack.kind, length)
            }
            Err(error) => Err(error),
        };
        let entries = entries.map_err(|error| error.to_string());
        Ok((Arc::new(file), Self { header, entries }))
    }
}

fn read(inner: &Inner, file: &File, pack: &AddedPack, bytes: Range<u64>) -> Result<Vec<u8>> {
    let length = usize::try_from(bytes.end - bytes.start).expect("a pack fits memory");
    let read = inner.directory.io().read_at(file, bytes.start, length);
    read.map_err(|error| reading(pack_object(&pack.name).as_ref(), error))
}

/// How a record is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Its place, and the blob's checksum.
    Checksum,
    /// And the hash that the footer has.
    Hash,
    /// Its place, and the chunk: decoded and fingerprinted.
    Decode,
}

/// The records of a pack.
struct Records<'a> {
    inner: &'a Arc<Inner>,
    pack: &'a AddedPack,
    file: &'a Arc<File>,
    entries: &'a Arc<[PackEntry]>,
    nonce: [u8; 16],
}

impl Records<'_> {
    /// Reads all of the pack, in order. Gives its name, and what is wrong with which chunks.
    async fn check(&self, look: Look, pacer: &Pacer) -> Result<([u8; 32], Vec<(ChunkId, String)>)> {
        let mut hasher = blake3::Hasher::new();
        let (mut bad, mut decoding) = (Vec::new(), FuturesUnordered::new());
        for (bytes, records) in windows(self.entries, self.pack.bytes) {
            pacer.wait(bytes.end - bytes.start).await;
            let (inner, file, pack) = (self.inner.clone(), self.file.clone(), self.pack.clone());
            let (entries, nonce, start) = (self.entries.clone(), self.nonce, bytes.start);
            let wrong = move |window: &Bytes, inner: &Inner| {
                let mut plain = Vec::new();
                let check = |at: usize| {
                    let entry = &entries[at];
                    let what = check_record(inner, window, start, entry, at, &nonce, look, &mut plain).err()?;
                    Some((entry.id, what))
                };
                records.filter_map(check).collect::<Vec<_>>()
            };
            // Everything but decoding is done while the bytes are in the processor's cache.
            let (hashed, window, here) = blocking(move || {
                let window = Bytes::from(read(&inner, &file, &pack, bytes)?);
                hasher.update(&window);
                if look == Look::Decode {
                    return Ok((hasher, window, Err((inner, wrong))));
                }
                let here = wrong(&window, &inner);
                Ok::<_, Error>((hasher, window, Ok(here)))
            })
            .await?;
            hasher = hashed;
            match here {
                Ok(found) => bad.extend(found),
                Err((inner, wrong)) => {
                    let pool = inner.pool.clone();
                    decoding.push(async move { pool.run(move || wrong(&window, &inner)).await }.boxed());
                    if decoding.len() > WINDOWS_AHEAD {
                        bad.extend(decoding.next().await.unwrap_or_default());
                    }
                }
            }
        }
        while let Some(found) = decoding.next().await {
            bad.extend(found);
        }
        Ok((*hasher.finalize().as_bytes(), bad))
    }
}

/// Cuts a pack between records: about [`WINDOW_BYTES`] each, with the numbers of the records in it. What belongs to no
/// record goes with what is beside it.
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

#[allow(clippy::too_many_arguments, reason = "they are of one record")]
fn check_record(
    inner: &Inner,
    window: &Bytes,
    start: u64,
    entry: &PackEntry,
    ordinal: usize,
    nonce: &[u8; 16],
    look: Look,
    plain: &mut Vec<u8>,
) -> std::result::Result<(), String> {
    let inside = |offset: u64| usize::try_from(offset - start).expect("inside a window");
    let (at, end) = (inside(entry.offset.into()), inside(entry.end()));
    let blob_at = at + RECORD_HEADER_BYTES;
    let (have, id) = read_record_header(&window[at..blob_at], nonce).map_err(|error| error.to_string())?;
    if id != entry.id || usize::try_from(have) != Ok(ordinal) {
        return Err("the record in its place is another one".into());
    }
    let blob = window.slice(blob_at..end);
    if look == Look::Hash && blob_hash(&blob) != entry.blob_hash {
        return Err("the stored bytes do not match their hash".into());
    }
    let blob = Blob::parse(blob).map_err(|error| error.to_string())?;
    if blob.header().kind != entry.kind || blob.header().plain_bytes != entry.plain_bytes {
        return Err("the footer describes another blob".into());
    }
    let blob = blob.checked().map_err(|error| error.to_string())?;
    if look == Look::Decode {
        plain.clear();
        with_opener(|opener| opener.open_verified(&inner.prints, &entry.id, &blob, plain))
            .map_err(|error| error.to_string())?;
        if entry.kind == ChunkKind::Page {
            mover::Page::decode(plain).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

/// Read at once; small enough to stay in the processor's cache until it is looked at.
const WINDOW_BYTES: u64 = 2 << 20;
/// Windows of a pack that wait for being decoded while the next is read.
const WINDOWS_AHEAD: usize = 2;

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
