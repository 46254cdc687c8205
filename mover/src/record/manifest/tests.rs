use super::*;
use crate::ErrorKind;
use proptest::prelude::*;

pub fn sample() -> Manifest {
    Manifest {
        point: PointId([1; 16]),
        machine: MachineId([2; 16]),
        machine_name: "web-01".parse().unwrap(),
        parent: Some(PointId([3; 16])),
        group: None,
        snapshot_time: Timestamp(1_700_000_000_000_000_000),
        begin_time: Timestamp(1),
        end_time: Timestamp(-2),
        guest_clock_offset_ns: Some(-5),
        consistency: Consistency::Filesystem,
        tags: vec!["nightly".into()],
        labels: [("k".to_owned(), "v".to_owned())].into(),
        producer: "windlass 0.1.0".into(),
        bytes_new: 77,
        extensions: Vec::new(),
        disks: vec![DiskRecord {
            id: DiskId([4; 16]),
            name: "sda".parse().unwrap(),
            size: 100 << 20,
            grid: GRID_BYTES,
            root: MapRoot { level: 1, id: Some(ChunkId([5; 32])) },
            logical_sector_bytes: 512,
            physical_sector_bytes: 4096,
            discard_bytes: 0,
            boot_order: 1,
            bus: "virtio".into(),
            serial: String::new(),
            format: "qcow2".into(),
            format_options: "{}".into(),
            chain: vec![LayerIdentity {
                path: "/images/a.qcow2".into(),
                device: 1,
                inode: 2,
                size: 3,
                mtime: Timestamp(4),
                ctime: Timestamp(5),
            }],
            tracking: TrackingRecord {
                mode: ChangeTracking::Bitmap,
                reason: "base proven".into(),
                checkpoint: Some(CheckpointId([6; 16])),
                granularity: 65_536,
                bytes_read: 7,
                bytes_changed: 8,
                bytes_audited: 0,
            },
        }],
        attachments: vec![Attachment {
            kind: "nvram".parse().unwrap(),
            name: "OVMF_VARS.fd".into(),
            bytes: 9,
            root: MapRoot { level: 0, id: Some(ChunkId([8; 32])) },
        }],
    }
}

#[test]
fn round_trip_and_every_cut_refused() {
    let bytes = sample().encode();
    assert_eq!(Manifest::decode(&bytes), Ok(sample()));
    for cut in 0..bytes.len() {
        assert!(Manifest::decode(&bytes[..cut]).is_err(), "cut at {cut}");
    }
    assert!(Manifest::decode(&[&bytes[..], &[0]].concat()).is_err());
}

#[test]
fn nonsense_is_refused() {
    let mut twice = sample();
    twice.disks.push(twice.disks[0].clone());
    let mut wrong_level = sample();
    wrong_level.disks[0].root.level = 0;
    let mut endless = sample();
    endless.disks[0].size = u64::MAX;
    let mut grid = sample();
    grid.disks[0].grid = 4096;
    let mut same_file = sample();
    same_file.attachments.push(same_file.attachments[0].clone());
    for bad in [twice, wrong_level, endless, grid, same_file] {
        assert!(Manifest::decode(&bad.encode()).is_err());
        let kind = if bad.disks[0].grid == GRID_BYTES { ErrorKind::Usage } else { ErrorKind::Version };
        assert_eq!(bad.encode_checked().unwrap_err().kind(), kind);
    }
    let mut two_files = sample();
    two_files.attachments.push(Attachment { name: "another".into(), ..two_files.attachments[0].clone() });
    assert_eq!(Manifest::decode(&two_files.encode()), Ok(two_files));
}

#[test]
fn an_attachment_is_as_long_as_its_map_can_be() {
    let (id, most) = (Some(ChunkId([8; 32])), 16 << 20);
    for (bytes, level, id, good) in [
        (0, 0, None, true),
        (0, 1, None, false),
        (1, 0, None, false),
        (0, 0, id, false),
        (1, 0, id, true),
        (most << 10, 0, id, true),
        ((most << 10) + 1, 0, id, false),
        (1024, 1, id, false),
        (1025, 1, id, true),
        (1 << 30, 3, id, false),
        ((1 << 30) + 1, 3, id, true),
        (u64::MAX, 3, id, true),
        (u64::MAX, 2, id, false),
        (u64::MAX, 4, id, false),
    ] {
        let mut manifest = sample();
        (manifest.attachments[0].bytes, manifest.attachments[0].root) = (bytes, MapRoot { level, id });
        assert_eq!(Manifest::decode(&manifest.encode()).is_ok(), good, "{bytes} bytes under a root of level {level}");
    }
}

#[test]
fn every_text_that_is_too_long_is_refused() {
    let long = || "x".repeat(crate::TEXT_BYTES_MAX + 1);
    let changes: [fn(&mut Manifest, String); 11] = [
        |it, long| it.tags.push(long),
        |it, long| it.labels = [(long, String::new())].into(),
        |it, long| it.labels = [(String::new(), long)].into(),
        |it, long| it.producer = long,
        |it, long| it.disks[0].bus = long,
        |it, long| it.disks[0].serial = long,
        |it, long| it.disks[0].format = long,
        |it, long| it.disks[0].format_options = long,
        |it, long| it.disks[0].chain[0].path = long,
        |it, long| it.disks[0].tracking.reason = long,
        |it, long| it.attachments[0].name = long,
    ];
    for change in changes {
        let mut manifest = sample();
        change(&mut manifest, long());
        assert_eq!(manifest.encode_checked().unwrap_err().kind(), ErrorKind::Usage);
        manifest = sample();
        change(&mut manifest, long()[1..].into());
        assert_eq!(Manifest::decode(&manifest.encode_checked().unwrap()), Ok(manifest));
    }
    let mut many = sample();
    many.tags = vec![long()[1..].into(); 65];
    assert_eq!(many.encode_checked().unwrap_err().kind(), ErrorKind::Usage, "longer than a manifest may be");
}

#[test]
fn labels_stand_in_order_and_once() {
    let mut manifest = sample();
    manifest.labels = [("k".to_owned(), "v".to_owned()), ("l".to_owned(), "v".to_owned())].into();
    let bytes = manifest.encode();
    let at = bytes.windows(12).position(|it| it == b"\x01\0k\x01\0v\x01\0l\x01\0v").unwrap();
    for (first, second) in [(b'l', b'k'), (b'k', b'k')] {
        let mut bad = bytes.clone();
        (bad[at + 2], bad[at + 8]) = (first, second);
        assert_eq!(Manifest::decode(&bad), Err(RecordError::Order { field: "labels" }));
    }
}

#[test]
fn unknown_extensions_are_skipped_unless_critical() {
    for (flags, fine) in [(0u16, true), (1, false)] {
        let mut bytes = sample().encode();
        bytes.truncate(bytes.len() - 4);
        let mut tag = RecordWriter::new();
        tag.u32(8 + 3).u16(9).u16(flags).u32(3).bytes(b"abc");
        bytes.extend(tag.finish());
        assert_eq!(Manifest::decode(&bytes).map(|it| it.encode()).ok(), fine.then_some(bytes));
    }
}

proptest! {
    /// What a copy carries must come out as it went in: changed bytes are refused, or encode to themselves.
    #[test]
    fn what_decodes_is_canonical(at: prop::sample::Index, value: u8) {
        let mut bytes = sample().encode();
        let at = at.index(bytes.len());
        bytes[at] = value;
        if let Ok(manifest) = Manifest::decode(&bytes) {
            prop_assert_eq!(manifest.encode(), bytes);
        }
    }
}
