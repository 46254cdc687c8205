//! Every durable format against files that were written once: what encodes must give the same bytes, and what was
//! written must decode for ever. With `WINDLASS_WRITE_GOLDEN` the files are written instead (`cargo dev golden`); a
//! difference then is a change of the format, and belongs into one commit with FORMAT.md and a version.

use bytes::Bytes;
use chunker::{
    BLOB_HEADER_BYTES, Blob, ChunkId, ChunkKind, Codec, Compression, Compressor, Decoder, DomainKey, DomainKeys,
    GRID_BYTES, StreamCutter,
};
use mover::{
    Attachment, ChangeTracking, CheckpointId, Consistency, DiskId, DiskRecord, GroupId, LayerIdentity, LogHead,
    MachineId, Manifest, MapRoot, OwnerId, Page, PageRef, PointId, RecordReader, RecordWriter, RepositoryConfig,
    RepositoryId, SessionId, Timestamp, TrackingRecord, WriterId, digest,
};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use store::format::config::ConfigFile;
use store::format::event::{AddedPack, CommittedPoint, Doomed, Dropped, Event, Orphan, SessionOpened};
use store::format::pack::{
    PACK_HEADER_BYTES, PackEntry, PackHeader, PackKind, PackName, RECORD_HEADER_BYTES, blob_hash, decode_footer,
    encode_footer, read_record_header, record_header, scan_records,
};
use store::format::record::LogRecord;
use store::state::{Digest, State, Void};

#[test]
fn golden_config() {
    let kept = golden("config", &config().bytes);
    assert_eq!(ConfigFile::decode(&kept), Ok(config()));
}

#[test]
fn golden_chunk_ids() {
    let mut text = String::new();
    writeln!(text, "domain {}", hex(&domain().fingerprint())).expect("a string");
    for kind in ChunkKind::ALL {
        for plain in [&b""[..], b"windlass", &noise(GRID_BYTES as usize)] {
            let id = DomainKeys::new(&domain()).id(kind, plain);
            writeln!(text, "{kind:?} of {} bytes {id}", plain.len()).expect("a string");
        }
    }
    golden("chunk-ids.txt", text.as_bytes());
}

#[test]
fn golden_stream_cuts() {
    let repeated: Vec<u8> = noise(70_000).iter().copied().cycle().take(1 << 20).collect();
    let streams = [("noise", noise(2 << 20)), ("zeros", vec![0; 600_000]), ("repeated", repeated), ("short", noise(9))];
    let mut text = String::new();
    for (name, stream) in streams {
        let mut cutter = StreamCutter::default();
        let mut chunks = cutter.push(&stream);
        chunks.extend(cutter.finish());
        assert_eq!(chunks.concat(), stream);
        let lengths: Vec<String> = chunks.iter().map(|chunk| chunk.len().to_string()).collect();
        writeln!(text, "{name}: {}", lengths.join(" ")).expect("a string");
    }
    golden("stream-cuts.txt", text.as_bytes());
}

/// Another zstd may compress to other bytes. Then the names below get its version, and the old files stay: whatever any
/// release has written must decode.
#[test]
fn golden_blobs() {
    let text = b"one line of many that are alike\n".repeat(2048);
    let samples: [(&str, Codec, &[u8], Compression); 5] = [
        ("blob-zstd-1.5.7-level-3", Codec::Zstd, &text, Compression::Zstd(3)),
        ("blob-zstd-1.5.7-level-1", Codec::Zstd, &text, Compression::Zstd(1)),
        ("blob-raw", Codec::Raw, &noise(1000), Compression::Zstd(3)),
        ("blob-uncompressed", Codec::Raw, b"windlass", Compression::None),
        ("blob-empty", Codec::Raw, b"", Compression::Zstd(3)),
    ];
    for (name, codec, plain, compression) in samples {
        let kept = golden(name, Compressor::new(compression).compress(ChunkKind::Data, plain).bytes());
        assert_opens(name, kept, codec, plain);
    }
    for entry in std::fs::read_dir(root().join("tests/golden")).expect("the golden files") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy();
        if name.starts_with("blob-zstd-") {
            assert_opens(&name, std::fs::read(&path).expect("a file"), Codec::Zstd, &text);
        }
    }
}

fn assert_opens(name: &str, kept: Vec<u8>, codec: Codec, plain: &[u8]) {
    let blob = Blob::parse(kept.into()).expect("a blob of version 1");
    assert_eq!((blob.header().codec, blob.check()), (codec, Ok(())), "{name}");
    let (mut got, keys) = (Vec::new(), DomainKeys::new(&domain()));
    let opened = Decoder::default().decode_verified(&keys, &keys.id(ChunkKind::Data, plain), &blob, &mut got);
    assert_eq!((opened, got.as_slice()), (Ok(()), plain), "{name}");
}

#[test]
fn golden_pages() {
    for (name, page) in pages() {
        let kept = golden(name, &page.encode());
        assert_eq!(Page::decode(&kept), Ok(page), "{name}");
    }
}

#[test]
fn golden_manifest() {
    let kept = golden("manifest", &manifest().encode());
    assert_eq!(Manifest::decode(&kept), Ok(manifest()));
}

#[test]
fn golden_packs() {
    for kind in [PackKind::Data, PackKind::Page] {
        let (made, entries) = pack(kind);
        let kept = golden(&format!("pack-{kind:?}").to_lowercase(), &made);
        assert_eq!(PackHeader::decode(&kept), Ok(pack_header(kind)));
        assert_eq!(decode_footer(&kept, kind, kept.len() as u64).as_ref(), Ok(&entries));
        assert_eq!(scan_records(&kept, &pack_header(kind).nonce), entries);
        for (ordinal, entry) in (0u32..).zip(&entries) {
            let record = read_record_header(&kept[entry.offset as usize..], &pack_header(kind).nonce);
            assert_eq!(record, Ok((ordinal, entry.id)));
        }
    }
}

#[test]
fn golden_log_record() {
    let record = record(7, [6; 32], 3, every_event());
    let kept = golden("log-record", &record.encode());
    let (decoded, end) = LogRecord::decode(&kept).expect("a record of version 1");
    assert_eq!(decoded, record);
    assert_eq!(end, LogHead { sequence: 7, hash: digest(&kept[..kept.len() - 32]) });
}

/// The digest of a short history: so the rules of replay are held as well, not only the bytes.
#[test]
fn golden_digest() {
    let (log, state) = history();
    golden("log", &log.concat());
    let made = Digest::new(config().bytes, state);
    let kept = golden("digest", &made.encode());
    assert_eq!(Digest::decode(&kept), Ok(made));
    let empty = Digest::new(config().bytes, State::new(RepositoryId([1; 16]), &config().bytes));
    assert_eq!(Digest::decode(&golden("digest-empty", &empty.encode())), Ok(empty));
}

/// A change of a format that FORMAT.md does not follow must not go unseen.
#[test]
fn golden_format_mentions_every_event_and_magic() {
    let format = std::fs::read_to_string(root().join("FORMAT.md")).expect("FORMAT.md");
    let log = format.split("\n## ").find(|section| section.starts_with("10. Log")).expect("a section about the log");
    let codes: Vec<u16> = every_event().iter().map(Event::code).collect();
    let unknown = |code: &u16| {
        let mut to = RecordWriter::new();
        to.u16(*code).u16(0).u32(0);
        matches!(Event::read(&mut RecordReader::new(to.as_slice())), Ok(Event::Unknown { .. }))
    };
    let known: Vec<u16> = (0..=u16::MAX).filter(|code| !unknown(code)).collect();
    assert_eq!(codes, known, "the sample has an event of each code");
    for code in codes {
        assert!(log.contains(&format!("\n| {code} | ")), "FORMAT.md does not describe event {code}");
    }
    let (pack, entries) = pack(PackKind::Data);
    let footer = entries.last().expect("entries").end();
    let footer = usize::try_from(footer).expect("a small pack");
    let magics = [
        config().bytes[..8].to_vec(),
        pack[..8].to_vec(),
        pack[PACK_HEADER_BYTES..PACK_HEADER_BYTES + 4].to_vec(),
        pack[footer..footer + 8].to_vec(),
        pack[pack.len() - 8..].to_vec(),
        pages()[0].1.encode()[..4].to_vec(),
        manifest().encode()[..4].to_vec(),
        record(1, [0; 32], 1, Vec::new()).encode()[..8].to_vec(),
        Digest::new(Vec::new(), State::new(RepositoryId([1; 16]), &config().bytes)).encode()[..8].to_vec(),
    ];
    for magic in magics {
        let text = format!("`{}`", magic.escape_ascii());
        assert!(format.contains(&text), "FORMAT.md does not mention the magic {text}");
    }
    assert!(format.contains("offset | size"), "FORMAT.md has byte tables");
    for bytes in [BLOB_HEADER_BYTES, PACK_HEADER_BYTES, RECORD_HEADER_BYTES] {
        assert!(format.contains(&format!("| {bytes} |")) || format.contains(&format!("offset {bytes} ")), "{bytes}");
    }
}

/// Compares with the file of this name, or writes it; gives what is in it now.
fn golden(name: &str, made: &[u8]) -> Vec<u8> {
    let path = root().join("tests/golden").join(name);
    if std::env::var_os("WINDLASS_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, made).expect("a writable clone");
    }
    let kept =
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; see `cargo dev golden`", path.display()));
    let differs = kept.iter().zip(made).position(|(a, b)| a != b).unwrap_or(kept.len().min(made.len()));
    assert!(
        kept == made,
        "{name} has changed at byte {differs} ({} bytes, now {}): a repository's format is kept for ever",
        kept.len(),
        made.len()
    );
    kept
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").to_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes that do not compress, from a linear congruential generator.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_le_bytes()[7]
    };
    (0..length).map(|_| next()).collect()
}

fn domain() -> DomainKey {
    DomainKey([7; 32])
}

fn config() -> ConfigFile {
    let (id, created) = (RepositoryId([1; 16]), Timestamp(1_793_491_200_000_000_000));
    ConfigFile::new(RepositoryConfig { id, domain: domain(), created }, WriterId([2; 16]))
}

fn pages() -> [(&'static str, Page); 4] {
    let mut leaf = Page::disk(0);
    leaf.set(0, PageRef::Chunk(ChunkId([0x10; 32])));
    leaf.set(2, PageRef::Unreadable);
    leaf.set(3, PageRef::Chunk(ChunkId([0x11; 32])));
    let mut full = Page::disk(0);
    (0..1024u64).for_each(|at| full.set(at, PageRef::Chunk(ChunkId(digest(&at.to_le_bytes())))));
    let mut inner = Page::disk(2);
    inner.set(5, PageRef::Chunk(ChunkId([0x12; 32])));
    let stream = Page::stream(0, &[(ChunkId([0x13; 32]), 70_000), (ChunkId([0x14; 32]), 5)]);
    [("page-leaf", leaf), ("page-full", full), ("page-inner", inner), ("page-stream", stream)]
}

/// Every optional part present on the first disk, absent on the second.
fn manifest() -> Manifest {
    let tracking = TrackingRecord {
        mode: ChangeTracking::Bitmap,
        reason: "base proven".into(),
        checkpoint: Some(CheckpointId([0x26; 16])),
        granularity: 65_536,
        bytes_read: 1 << 20,
        bytes_changed: 1 << 19,
        bytes_audited: 65_536,
    };
    let layer = LayerIdentity {
        path: "/images/vda.qcow2".into(),
        device: 64_769,
        inode: 131_074,
        size: 3 << 30,
        mtime: Timestamp(1_793_491_200_000_000_001),
        ctime: Timestamp(-1),
    };
    let first = DiskRecord {
        id: DiskId([0x24; 16]),
        name: "vda".parse().expect("a name"),
        size: (10 << 30) + 512,
        grid: GRID_BYTES,
        root: MapRoot { level: 1, id: Some(ChunkId([0x25; 32])) },
        logical_sector_bytes: 512,
        physical_sector_bytes: 4096,
        discard_bytes: 65_536,
        boot_order: 1,
        bus: "virtio".into(),
        serial: "WL-1".into(),
        format: "qcow2".into(),
        format_options: "cluster_size=65536".into(),
        chain: vec![layer],
        tracking: tracking.clone(),
    };
    let second = DiskRecord {
        id: DiskId([0x27; 16]),
        name: "vdb".parse().expect("a name"),
        size: 0,
        root: MapRoot { level: 0, id: None },
        chain: Vec::new(),
        tracking: TrackingRecord { mode: ChangeTracking::Full, checkpoint: None, granularity: 0, ..tracking },
        ..first.clone()
    };
    let attachment = Attachment {
        kind: "domain".parse().expect("a name"),
        name: "web-01.xml — überall".into(),
        bytes: 70_005,
        root: MapRoot { level: 0, id: Some(ChunkId([0x28; 32])) },
    };
    Manifest {
        point: PointId([0x20; 16]),
        machine: MachineId([0x21; 16]),
        machine_name: "web-01".parse().expect("a name"),
        parent: Some(PointId([0x22; 16])),
        group: Some(GroupId([0x23; 16])),
        snapshot_time: Timestamp(1_793_491_200_000_000_002),
        begin_time: Timestamp(1_793_491_199_000_000_000),
        end_time: Timestamp(1_793_491_260_000_000_000),
        guest_clock_offset_ns: Some(-1_500_000),
        consistency: Consistency::Application,
        tags: vec!["nightly".into(), "before-upgrade".into()],
        labels: BTreeMap::from([("tier".into(), "gold".into()), ("a".into(), String::new())]),
        producer: "windlass 0.1.0".into(),
        disks: vec![first, second],
        attachments: vec![attachment],
        bytes_new: 524_288,
        extensions: Vec::new(),
    }
}

fn pack_header(kind: PackKind) -> PackHeader {
    PackHeader {
        kind,
        repository: RepositoryId([1; 16]),
        writer: WriterId([2; 16]),
        term: 3,
        owner: OwnerId([0x30; 16]),
        domain: domain().fingerprint(),
        nonce: [0x31; 16],
        created: Timestamp(1_793_491_200_000_000_003),
    }
}

/// A whole pack. Its blobs are raw, so that it does not depend on zstd.
fn pack(kind: PackKind) -> (Vec<u8>, Vec<PackEntry>) {
    let chunks: Vec<(ChunkKind, Vec<u8>)> = match kind {
        PackKind::Data => vec![(ChunkKind::Data, noise(300)), (ChunkKind::Attachment, b"<domain/>".to_vec())],
        PackKind::Page => {
            vec![(ChunkKind::Page, pages()[0].1.encode()), (ChunkKind::Manifest, manifest().encode())]
        }
    };
    let (header, keys) = (pack_header(kind), DomainKeys::new(&domain()));
    let (mut bytes, mut entries) = (header.encode(), Vec::new());
    for (ordinal, (kind, plain)) in (0u32..).zip(&chunks) {
        let id = keys.id(*kind, plain);
        let blob: Bytes = Compressor::new(Compression::None).compress(*kind, plain).bytes().clone();
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("short");
        entries.push(PackEntry {
            id,
            kind: *kind,
            offset: length(&bytes),
            blob_bytes: length(&blob),
            plain_bytes: length(plain),
            blob_hash: blob_hash(&blob),
        });
        bytes.extend(record_header(&header.nonce, ordinal, &id));
        bytes.extend(blob);
    }
    bytes.extend(encode_footer(&entries));
    (bytes, entries)
}

fn record(sequence: u64, previous: [u8; 32], term: u64, events: Vec<Event>) -> LogRecord {
    LogRecord {
        sequence,
        previous,
        repository: RepositoryId([1; 16]),
        writer: WriterId([2; 16]),
        term,
        nonce: [0x40; 16],
        time: Timestamp(1_793_491_200_000_000_000 + i64::try_from(sequence).expect("a small number")),
        events,
    }
}

fn point(id: u8, session: u8, optional: bool) -> CommittedPoint {
    CommittedPoint {
        session: SessionId([session; 16]),
        point: PointId([id; 16]),
        manifest: ChunkId([id; 32]),
        owner: OwnerId([0x30; 16]),
        machine: MachineId([0x21; 16]),
        machine_name: "web-01".parse().expect("a name"),
        group: optional.then_some(GroupId([0x23; 16])),
        snapshot_time: Timestamp(1_793_491_200_000_000_002),
        origin: optional.then_some((RepositoryId([0x50; 16]), Timestamp(1_793_491_100_000_000_000))),
        protected_until: Timestamp(if optional { 1_800_000_000_000_000_000 } else { 0 }),
        bytes_logical: 10 << 30,
        bytes_new: 524_288,
        extensions: if optional { extension() } else { Vec::new() },
    }
}

fn opened(session: u8, writes: bool, pins: &[u8]) -> Event {
    Event::SessionOpened(SessionOpened {
        session: SessionId([session; 16]),
        writes,
        owner: OwnerId([0x30; 16]),
        point: PointId([if writes { 0x20 } else { 0 }; 16]),
        pins: points(pins),
        extensions: if writes { extension() } else { Vec::new() },
    })
}

/// One that no version has a use for, and that need not be understood.
fn extension() -> Vec<u8> {
    let mut to = RecordWriter::new();
    to.u16(0xfffe).u16(0).u32(5).bytes(b"later");
    to.finish()
}

fn points(ids: &[u8]) -> Vec<PointId> {
    ids.iter().map(|id| PointId([*id; 16])).collect()
}

fn added(name: u8, kind: PackKind) -> AddedPack {
    AddedPack { name: PackName([name; 32]), kind, bytes: 58_000_000, chunks: 900 }
}

/// One event of each code, ascending.
fn every_event() -> Vec<Event> {
    let (chunk, pack, token) = (ChunkId([0x60; 32]), PackName([0x61; 32]), [0x62; 16]);
    let end = LogHead { sequence: 99, hash: [0x63; 32] };
    let orphan = Orphan { name: PackName([0x64; 32]), writer: WriterId([0x65; 16]), term: 2 };
    vec![
        Event::WriterTerm,
        opened(0x66, true, &[0x22, 0x23]),
        Event::SessionClosed(SessionId([0x66; 16])),
        Event::SessionFenced(SessionId([0x67; 16])),
        Event::PacksAdded(vec![added(0x68, PackKind::Data), added(0x69, PackKind::Page)]),
        Event::PointCommitted(point(0x20, 0x66, true)),
        Event::Forgotten(points(&[1, 2])),
        Event::Unforgotten(points(&[2])),
        Event::Pinned(points(&[3])),
        Event::Unpinned(points(&[3])),
        Event::Annotated(PointId([4; 16]), "reason".into(), "vor dem Umbau, größer".into()),
        Event::ChunkSuspect(chunk, pack),
        Event::ChunkHealed(chunk, pack),
        Event::SweepBegun(token),
        Event::Doomed(Doomed {
            token,
            marked: 98,
            marked_too: points(&[5]),
            packs: vec![pack],
            finalised: points(&[1, 6]),
        }),
        Event::Dropped(Dropped {
            token,
            marked: 99,
            marked_too: points(&[5]),
            packs: vec![pack],
            orphans: vec![orphan],
        }),
        Event::SweepEnded(token),
        Event::Role(1),
        Event::Configuration("keep-daily".into(), "7".into()),
        Event::PeerSeen(RepositoryId([0x50; 16]), end),
        Event::NewIncarnation(end),
    ]
}

/// Some records, and the state after them. Something of each kind is left in it, and three events are void.
fn history() -> (Vec<Vec<u8>>, State) {
    let (suspect, token) = (ChunkId([0x60; 32]), [0x62; 16]);
    let end = LogHead { sequence: 99, hash: [0x63; 32] };
    let doomed = |marked, packs: &[u8], finalised: &[u8]| {
        let packs = packs.iter().map(|name| PackName([*name; 32])).collect();
        Event::Doomed(Doomed { token, marked, marked_too: Vec::new(), packs, finalised: points(finalised) })
    };
    let packs = [0x70, 0x71, 0x72, 0x73].map(|name| added(name, PackKind::Data)).to_vec();
    let dropped = Dropped {
        token,
        marked: 5,
        marked_too: Vec::new(),
        packs: vec![PackName([0x70; 32])],
        orphans: vec![Orphan { name: PackName([0x64; 32]), writer: WriterId([2; 16]), term: 0 }],
    };
    let batches = [
        vec![Event::WriterTerm, opened(0x66, true, &[])],
        vec![
            Event::PacksAdded(packs),
            Event::PointCommitted(point(0x20, 0x66, true)),
            Event::PointCommitted(point(0x22, 0x66, false)),
            Event::PointCommitted(point(0x23, 0x66, false)),
            Event::SessionClosed(SessionId([0x66; 16])),
        ],
        vec![
            Event::Forgotten(points(&[0x22])),
            Event::Forgotten(points(&[0x23])),
            Event::Unforgotten(points(&[0x23])),
            Event::Pinned(points(&[0x23])),
            Event::Annotated(PointId([0x23; 16]), "reason".into(), "upgrade".into()),
        ],
        vec![Event::SweepBegun(token), Event::ChunkSuspect(suspect, PackName([0x72; 32]))],
        vec![doomed(4, &[0x70, 0x71], &[0x22])],
        vec![Event::Dropped(dropped), Event::PacksAdded(vec![added(0x70, PackKind::Data)])],
        vec![
            opened(0x67, true, &[0x20]),
            opened(0x69, false, &[]),
            opened(0x68, false, &[0x23, 0x20, 0x23]),
            Event::PacksAdded(vec![added(0x74, PackKind::Page)]),
            Event::Role(1),
            Event::Configuration("keep-daily".into(), "7".into()),
            Event::Configuration("keep-weekly".into(), "4".into()),
            Event::Configuration("keep-weekly".into(), String::new()),
            Event::PeerSeen(RepositoryId([0x50; 16]), end),
            Event::NewIncarnation(end),
            Event::PointCommitted(point(0x24, 0x68, false)),
            Event::Forgotten(points(&[0x20])),
        ],
        vec![Event::PointCommitted(point(0x24, 0x67, false))],
        vec![Event::Forgotten(points(&[0x24])), Event::SessionFenced(SessionId([0x69; 16]))],
    ];
    let mut state = State::new(RepositoryId([1; 16]), &config().bytes);
    let (mut log, mut voids) = (Vec::new(), Vec::new());
    for events in batches {
        let made = record(state.end().sequence + 1, state.end().hash, 1, events).encode();
        let (decoded, end) = LogRecord::decode(&made).expect("just encoded");
        let void = state.apply(&decoded, end.hash).expect("it follows");
        voids.extend(void.into_iter().map(|(at, void)| (end.sequence, at, void)));
        log.push(made);
    }
    assert_eq!(voids, [(6, 1, Void::PackTwice), (7, 10, Void::Session), (7, 11, Void::Protected)]);
    (log, state)
}
