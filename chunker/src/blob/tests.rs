use super::*;
use crate::DomainKey;
use proptest::prelude::*;

fn keys() -> DomainKeys {
    DomainKeys::new(&DomainKey([7; 32]))
}

fn open(blob: &Blob) -> Result<Vec<u8>, BlobError> {
    let mut plain = Vec::new();
    Decoder::default().decode(blob, &mut plain)?;
    Ok(plain)
}

fn text(length: usize) -> Vec<u8> {
    "the quick brown fox jumps over the lazy dog; ".bytes().cycle().take(length).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn round_trip(mut plain in prop::collection::vec(any::<u8>(), 0..5000), repeat in 0..4usize, level in prop_oneof![Just(Compression::None), (1..6).prop_map(Compression::Zstd)]) {
        for _ in 0..repeat { plain.extend_from_within(..); }
        let blob = Compressor::new(level).compress(ChunkKind::Data, &plain);
        prop_assert_eq!(blob.check(), Ok(()));
        let again = Blob::parse(blob.bytes().clone()).unwrap();
        prop_assert_eq!(&again, &blob);
        prop_assert_eq!(open(&again).unwrap(), plain);
        prop_assert!(blob.bytes().len() <= BLOB_HEADER_BYTES + blob.header().plain_bytes as usize);
    }

    #[test]
    fn foreign_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), fix: bool) {
        if fix && bytes.len() >= BLOB_HEADER_BYTES {
            bytes[..16].copy_from_slice(&[1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            let stored = (bytes.len() - BLOB_HEADER_BYTES) as u32;
            bytes[18..20].fill(0);
            bytes[20..24].copy_from_slice(&stored.to_le_bytes());
        }
        if let Ok(blob) = Blob::parse(bytes.into()) {
            let _ = blob.check();
            let _ = open(&blob);
        }
    }
}

#[test]
fn every_flipped_bit_is_seen() {
    let plain = text(700);
    let blob = Compressor::new(Compression::default()).compress(ChunkKind::Page, &plain);
    let id = keys().id(ChunkKind::Page, &plain);
    for bit in 0..blob.bytes().len() * 8 {
        let mut bytes = blob.bytes().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let Ok(bad) = Blob::parse(bytes.into()) else { continue };
        assert_eq!(bad.check(), Err(BlobError::Checksum), "bit {bit}");
        // What still decodes to the chunk is the chunk: a flip in a bit that carries no meaning.
        let mut out = Vec::new();
        if Decoder::default().decode_verified(&keys(), &id, &bad, &mut out).is_ok() {
            assert_eq!(out, plain, "bit {bit}");
        }
    }
}

#[test]
fn incompressible_stays_raw() {
    let noise: Vec<u8> = blake3::Hasher::new().finalize_xof().bytes_of(65_536);
    let blob = Compressor::new(Compression::default()).compress(ChunkKind::Data, &noise);
    assert_eq!(blob.header().codec, Codec::Raw);
    assert_eq!(open(&blob).unwrap(), noise);
}

trait Xof {
    fn bytes_of(self, length: usize) -> Vec<u8>;
}

impl Xof for blake3::OutputReader {
    fn bytes_of(mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.fill(&mut bytes);
        bytes
    }
}

/// Rows: what is changed in a good blob, and the error that names it.
#[test]
fn bad_headers_are_named() {
    let good = Compressor::new(Compression::default()).compress(ChunkKind::Data, &text(4096));
    let patched = |at: usize, value: &[u8]| {
        let mut bytes = good.bytes().to_vec();
        bytes[at..at + value.len()].copy_from_slice(value);
        Blob::parse(bytes.into()).unwrap_err()
    };
    for (at, field) in
        [(0, "version"), (1, "kind"), (2, "codec"), (3, "cipher"), (4, "key id"), (8, "dictionary id"), (12, "flags")]
    {
        assert_eq!(patched(at, &[9]), BlobError::Unknown { field, value: 9 });
    }
    let stored = good.header().stored_bytes;
    assert_eq!(patched(16, &u32::MAX.to_le_bytes()), BlobError::Limit { plain: u32::MAX, stored });
    assert_eq!(patched(16, &[0; 4]), BlobError::Limit { plain: 0, stored });
    assert!(matches!(patched(20, &[1, 0, 0, 0]), BlobError::Length { .. }));
    assert!(matches!(Blob::parse(good.bytes().slice(..20)), Err(BlobError::Length { .. })));
    assert!(matches!(Blob::parse(good.bytes().slice(..60)), Err(BlobError::Length { .. })));
}

/// A bomb (a small frame that decodes to more than declared), a frame that gives less, two frames, a skippable frame.
#[test]
fn crafted_frames_are_refused() {
    let frame = |length: usize| zstd::bulk::compress(&vec![0; length], 3).unwrap();
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0];
    for payload in
        [frame(1 << 20), frame(4095), [frame(2048), frame(2048)].concat(), [frame(4096), skippable.to_vec()].concat()]
    {
        let stored_bytes = payload.len() as u32;
        let header = BlobHeader { kind: ChunkKind::Data, codec: Codec::Zstd, plain_bytes: 4096, stored_bytes, crc: 0 };
        let mut bytes = Vec::new();
        header.write(&mut bytes);
        bytes.extend(payload);
        let blob = Blob::parse(bytes.into()).unwrap();
        assert!(matches!(open(&blob), Err(BlobError::Decode(_))));
    }
}

#[test]
fn a_wrong_chunk_is_named() {
    let blob = Compressor::new(Compression::default()).compress(ChunkKind::Data, b"one");
    let want = keys().id(ChunkKind::Data, b"two");
    let got = keys().id(ChunkKind::Data, b"one");
    let mut plain = Vec::new();
    let error = Decoder::default().decode_verified(&keys(), &want, &blob, &mut plain);
    assert_eq!(error, Err(BlobError::Fingerprint { want, got }));
}
