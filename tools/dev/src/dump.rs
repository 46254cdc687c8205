//! Prints any file of a repository.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use chunker::{Blob, ChunkKind, Decoder};
use mover::{Manifest, Page, Timestamp};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use store::format::config::ConfigFile;
use store::format::pack::{PackEntry, PackHeader, RECORD_HEADER_BYTES, decode_footer, scan_records};
use store::format::record::LogRecord;
use store::state::Digest;

/// Prints `path`, which is told by its first bytes; with `decode` also the pages and manifests in a pack.
pub fn run(path: &Path, decode: bool) -> Result<()> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let text = text(bytes.into(), decode).with_context(|| path.display().to_string())?;
    let text = bytes_as_hex(&text);
    // A reader that went away is no failure.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    Ok(())
}

fn text(bytes: Bytes, decode: bool) -> Result<String> {
    let begins = |magic: &[u8]| bytes.starts_with(magic);
    if begins(b"WLPACK") {
        return pack(&bytes, decode);
    }
    if begins(b"WLLOGREC") {
        let (record, end) = LogRecord::decode(&bytes)?;
        return Ok(format!("{}\n{record:#?}\nhash {}\n", time(record.time), hex(&end.hash)));
    }
    if begins(b"WINDLASS") {
        return Ok(format!("{:#?}\n", ConfigFile::decode(&bytes)?));
    }
    if begins(b"WLPG") {
        return Ok(format!("{:#?}\n", Page::decode(&bytes)?));
    }
    if begins(b"WLMF") {
        return Ok(format!("{:#?}\n", Manifest::decode(&bytes)?));
    }
    match Digest::decode(&bytes) {
        Ok(digest) => Ok(format!("{:#?}\n", digest.state)),
        Err(error) => bail!("not a file of a repository ({error})"),
    }
}

fn pack(bytes: &Bytes, decode: bool) -> Result<String> {
    let header = PackHeader::decode(bytes)?;
    let (entries, state) = match decode_footer(bytes, header.kind, bytes.len() as u64) {
        Ok(entries) => (entries, "sealed".to_owned()),
        Err(error) => (scan_records(bytes, &header.nonce), format!("without a footer ({error}), scanned")),
    };
    let mut text = format!("{header:#?}\n{} records, {state}\n", entries.len());
    writeln!(text, "{:>10} {:>9} {:>9} {:<10} {:<5} chunk", "offset", "plain", "blob", "kind", "codec")?;
    for entry in &entries {
        let blob = blob(bytes, entry);
        let codec = blob.as_ref().map_or("?".into(), |blob| format!("{:?}", blob.header().codec).to_lowercase());
        let kind = format!("{:?}", entry.kind).to_lowercase();
        let (offset, plain, stored, id) = (entry.offset, entry.plain_bytes, entry.blob_bytes, entry.id);
        writeln!(text, "{offset:>10} {plain:>9} {stored:>9} {kind:<10} {codec:<5} {id}")?;
        if let Some(blob) = blob.filter(|_| decode && entry.kind.is_structure()) {
            structure(&mut text, entry, &blob)?;
        }
    }
    Ok(text)
}

fn blob(pack: &Bytes, entry: &PackEntry) -> Option<Blob> {
    let start = usize::try_from(entry.offset).ok()? + RECORD_HEADER_BYTES;
    let end = usize::try_from(entry.end()).ok()?;
    (start <= end && end <= pack.len()).then(|| Blob::parse(pack.slice(start..end)).ok()).flatten()
}

fn structure(text: &mut String, entry: &PackEntry, blob: &Blob) -> Result<()> {
    let mut plain = Vec::new();
    Decoder::default().decode(blob, &mut plain).with_context(|| format!("chunk {}", entry.id))?;
    match entry.kind {
        ChunkKind::Page => writeln!(text, "{:#?}", Page::decode(&plain)?)?,
        _ => writeln!(text, "{:#?}", Manifest::decode(&plain)?)?,
    }
    Ok(())
}

/// Debug output with each list of bytes on one line.
fn bytes_as_hex(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let mut made = String::with_capacity(text.len());
    let mut at = 0;
    while at < lines.len() {
        let number = |line: &&&str| line.trim().strip_suffix(',').and_then(|it| it.parse::<u8>().ok());
        let list: Vec<u8> = lines[at + 1..].iter().map_while(|line| number(&line)).collect();
        match lines.get(at + 1 + list.len()) {
            Some(end) if lines[at].ends_with('[') && !list.is_empty() && end.trim().starts_with(']') => {
                let (head, tail) = (lines[at].trim_end_matches('['), end.trim().trim_start_matches(']'));
                made.extend([head, &hex(&list), tail, "\n"]);
                at += list.len() + 2;
            }
            _ => {
                made.extend([lines[at], "\n"]);
                at += 1;
            }
        }
    }
    made
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn time(time: Timestamp) -> String {
    jiff::Timestamp::from_nanosecond(time.0.into()).map_or_else(|_| format!("{} ns", time.0), |it| it.to_string())
}
