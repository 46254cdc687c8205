use super::*;
use chunker::{Compression, Compressor, DomainKey, DomainKeys};

fn header() -> PackHeader {
    PackHeader {
        kind: PackKind::Data,
        repository: RepositoryId([1; 16]),
        writer: WriterId([2; 16]),
        term: 3,
        owner: OwnerId::default(),
        domain: [4; 16],
        nonce: [5; 16],
        created: Timestamp(6),
    }
}

fn pack(chunks: u8) -> (Vec<u8>, Vec<PackEntry>) {
    let keys = DomainKeys::new(&DomainKey([7; 32]));
    let mut compressor = Compressor::new(Compression::default());
    let mut bytes = header().encode();
    let mut entries = Vec::new();
    for number in 0..chunks {
        let plain = vec![number; 100 + usize::from(number)];
        let id = keys.id(ChunkKind::Data, &plain);
        let blob = compressor.compress(ChunkKind::Data, &plain);
        entries.push(PackEntry {
            id,
            kind: ChunkKind::Data,
            offset: u32::try_from(bytes.len()).unwrap(),
            blob_bytes: blob.header().blob_bytes(),
            plain_bytes: blob.header().plain_bytes,
            blob_hash: blob_hash(blob.bytes()),
        });
        bytes.extend(record_header(&[5; 16], number.into(), &id));
        bytes.extend_from_slice(blob.bytes());
    }
    bytes.extend(encode_footer(&entries));
    (bytes, entries)
}

#[test]
fn footer_and_scan_agree() {
    for chunks in [0, 1, 5] {
        let (bytes, entries) = pack(chunks);
        assert_eq!(PackHeader::decode(&bytes), Ok(header()));
        assert_eq!(decode_footer(&bytes, PackKind::Data, bytes.len() as u64), Ok(entries.clone()));
        assert_eq!(scan_records(&bytes, &[5; 16]), entries);
    }
}

#[test]
fn cut_anywhere_the_whole_records_before_are_found() {
    let (bytes, entries) = pack(4);
    for cut in 0..bytes.len() {
        let found = scan_records(&bytes[..cut], &[5; 16]);
        let whole = entries.iter().filter(|entry| entry.end() <= cut as u64).count();
        assert_eq!(found, entries[..whole], "cut at {cut}");
    }
}

#[test]
fn every_flip_in_header_and_footer_is_seen() {
    let (bytes, entries) = pack(3);
    let records_end = usize::try_from(entries[2].end()).unwrap();
    for at in (0..PACK_HEADER_BYTES).chain(records_end..bytes.len()) {
        let mut bad = bytes.clone();
        bad[at] ^= 4;
        let seen = PackHeader::decode(&bad).is_err() || decode_footer(&bad, PackKind::Data, bad.len() as u64).is_err();
        assert!(seen, "byte {at}");
    }
}

/// The footer is damaged, and also one byte of a record: only that record is lost, whichever byte it is.
#[test]
fn what_is_around_damage_is_salvaged() {
    let (bytes, entries) = pack(4);
    assert_eq!(salvage_records(&bytes), entries);
    let end = usize::try_from(entries[3].end()).unwrap();
    for at in 0..end {
        let mut bad = bytes.clone();
        bad[at] ^= 1;
        *bad.last_mut().unwrap() ^= 1;
        let found = salvage_records(&bad);
        let hit = |it: &PackEntry| (it.offset as usize..it.end() as usize).contains(&at);
        for (number, entry) in entries.iter().enumerate().filter(|(_, entry)| !hit(entry)) {
            assert!(found.contains(entry), "byte {at}: record {number}");
        }
    }
    assert!(salvage_records(&[]).is_empty() && salvage_records(&bytes[..PACK_HEADER_BYTES + 9]).is_empty());
}

#[test]
fn a_record_of_another_pack_does_not_count() {
    let (bytes, _) = pack(3);
    assert!(scan_records(&bytes, &[6; 16]).is_empty());
}

#[test]
fn a_footer_that_lies_about_its_length_is_refused() {
    let (bytes, _) = pack(2);
    for length in [0, 1, u32::MAX] {
        let mut bad = bytes.clone();
        let at = bad.len() - TRAILER_BYTES;
        bad[at..at + 4].copy_from_slice(&length.to_le_bytes());
        assert!(decode_footer(&bad, PackKind::Data, bad.len() as u64).is_err());
    }
    assert!(decode_footer(&bytes[bytes.len() - 40..], PackKind::Data, bytes.len() as u64).is_err());
}

#[test]
fn a_footer_whose_checksum_holds_is_not_believed_for_that() {
    let (bytes, entries) = pack(2);
    let footer = bytes.len() - usize::try_from(footer_bytes(&bytes).unwrap()).unwrap();
    // Into the second entry: its kind, each reserved byte, its plain length and offset.
    let changed = |at: usize, value: &[u8]| {
        let mut bad = bytes.clone();
        let (at, trailer) = (footer + 12 + ENTRY_BYTES + at, bad.len() - TRAILER_BYTES);
        bad[at..at + value.len()].copy_from_slice(value);
        let crc = crc32c::crc32c(&bad[footer..trailer]).to_le_bytes();
        bad[trailer + 4..trailer + 8].copy_from_slice(&crc);
        decode_footer(&bad, PackKind::Data, bad.len() as u64)
    };
    let plain_bytes = |length: u32| changed(40, &length.to_le_bytes());
    assert_eq!(changed(40, &entries[1].plain_bytes.to_le_bytes()), Ok(entries.clone()));
    assert!(plain_bytes(PLAIN_BYTES_MAX).is_ok() && plain_bytes(PLAIN_BYTES_MAX + 1).is_err());
    let kind = |kind: ChunkKind| changed(44, &[kind.code()]);
    assert!(kind(ChunkKind::Attachment).is_ok());
    assert!(kind(ChunkKind::Page).is_err() && kind(ChunkKind::Manifest).is_err() && changed(44, &[4]).is_err());
    assert!(decode_footer(&bytes, PackKind::Page, bytes.len() as u64).is_err(), "a pack of another kind");
    assert!((45..48).all(|at| changed(at, &[1]).is_err()));
    assert!(changed(32, &(entries[1].offset + 1).to_le_bytes()).is_err());
}
