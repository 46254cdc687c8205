use super::*;
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
    for bad in [twice, wrong_level, endless, grid] {
        assert!(Manifest::decode(&bad.encode()).is_err());
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
    #[test]
    fn flipped_bytes_never_panic(at in 0..600usize, value: u8) {
        let mut bytes = sample().encode();
        let at = at % bytes.len();
        bytes[at] = value;
        let _ = Manifest::decode(&bytes);
    }
}
