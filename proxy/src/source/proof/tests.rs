use super::*;
use crate::source::Described;
use chunker::Extent;
use mover::{CheckpointId, DiskId, MapRoot, RepositoryId, Timestamp, TrackingRecord};

const SIZE: u64 = 10 << 20;
const REPOSITORY: RepositoryId = RepositoryId([1; 16]);

/// What the doubt must say, and what is done to the sound case.
type Change = (&'static str, fn(&mut Case));

/// A parent, an image that continues it, and its bitmaps.
struct Case {
    parent: DiskRecord,
    candidates: Vec<TrackingName>,
    size: u64,
    chain: Vec<LayerIdentity>,
    evidence: Evidence,
    /// Name, granularity, recording, consistent, marks.
    bitmaps: Vec<(String, u64, bool, bool, ExtentSet)>,
    unusable: Option<&'static str>,
    wish: TrackingWish,
}

impl Case {
    fn sound() -> Self {
        let checkpoint = CheckpointId([7; 16]);
        let name = TrackingName::new(REPOSITORY, checkpoint, None);
        let witness = WitnessName { repository: [1; 4], id: [3; 16], size: SIZE };
        let evidence = || Evidence::seen("qcow2/raw", "7@1.0", Some(witness));
        let mut dirty = witness.mark(GRID_BYTES);
        dirty.insert(Extent::new(1 << 20, 1 << 16));
        let grain = u64::from(GRID_BYTES);
        let tracking = TrackingRecord {
            mode: mover::ChangeTracking::Full,
            reason: String::new(),
            checkpoint: Some(checkpoint),
            granularity: GRID_BYTES,
            bytes_read: 0,
            bytes_changed: 0,
            bytes_audited: 0,
        };
        let layer = |path: &str, inode| LayerIdentity {
            path: path.into(),
            device: 1,
            inode,
            size: 1,
            mtime: Timestamp(1),
            ctime: Timestamp(1),
        };
        let chain = vec![layer("/top", 7), layer("/base", 8)];
        let described = Described {
            size: SIZE,
            format: "qcow2",
            format_options: evidence().to_string(),
            chain: chain.clone(),
            ..Described::default()
        };
        let description = described.named("vda".parse().unwrap());
        Self {
            parent: description.record(DiskId([1; 16]), MapRoot::default(), tracking),
            candidates: vec![name],
            size: SIZE,
            chain,
            evidence: evidence(),
            bitmaps: vec![
                (name.to_string(), grain, true, true, dirty.clone()),
                (name.twin().to_string(), grain, true, true, dirty),
                (witness.to_string(), grain, false, true, witness.mark(GRID_BYTES)),
            ],
            unusable: None,
            wish: TrackingWish::Auto,
        }
    }

    fn judge(&self) -> Result<ExtentSet, Doubt> {
        let bitmaps = self.bitmaps.iter().map(|(name, granularity, recording, consistent, marks)| {
            let seen = SeenBitmap {
                granularity: *granularity,
                recording: *recording,
                consistent: *consistent,
                marks: Some(marks),
            };
            (name.as_str(), seen)
        });
        let bitmaps = bitmaps.collect();
        let seen =
            Seen { size: self.size, chain: &self.chain, evidence: &self.evidence, unusable: self.unusable, bitmaps };
        let parent = ParentDisk { repository: REPOSITORY, record: &self.parent };
        seen.proven(&self.candidates, Some(parent), self.wish).map(|(_, dirty)| dirty.clone())
    }
}

#[test]
fn a_sound_bitmap_is_believed() {
    let case = Case::sound();
    assert_eq!(case.judge().unwrap(), case.bitmaps[0].4);
}

/// What is done to the sound case, and what the doubt must say. The second part is about lies: bitmaps that are there
/// and say something false, of which the administrator must hear.
#[test]
fn each_fact_that_does_not_fit_is_a_doubt() {
    let absent: [Change; 16] = [
        ("requested", |it| it.wish = TrackingWish::Fingerprint),
        ("requested", |it| it.wish = TrackingWish::Full),
        ("its data is elsewhere", |it| it.unusable = Some("its data is elsewhere")),
        ("began no checkpoint", |it| it.parent.tracking.checkpoint = None),
        ("no sound bitmap", |it| it.parent.tracking.checkpoint = Some(CheckpointId([8; 16]))),
        ("no sound bitmap", |it| it.candidates.clear()),
        ("disappeared", |it| drop(it.bitmaps.remove(0))),
        ("disappeared", |it| drop(it.bitmaps.remove(1))),
        ("not saved cleanly", |it| it.bitmaps[0].3 = false),
        ("not recording", |it| it.bitmaps[0].2 = false),
        ("not recording", |it| it.bitmaps[1].2 = false),
        ("granularity", |it| it.bitmaps[0].1 = 512),
        ("10485760 bytes and had 5", |it| it.parent.size = 5),
        ("files below", |it| drop(it.chain.pop())),
        ("/base below the image is not what it was", |it| it.chain[1].mtime = Timestamp(2)),
        ("not known whether", |it| it.chain[1].inode = 0),
    ];
    for (told, change) in absent {
        let mut case = Case::sound();
        change(&mut case);
        let doubt = case.judge().unwrap_err();
        assert!(matches!(&doubt, Doubt::Absent(why) if why.contains(told)), "{told}: {doubt:?}");
    }
    let about_the_image: [Change; 5] = [
        ("another file", |it| it.evidence = Evidence::seen("qcow2/raw", "8@1.0", None)),
        ("layers", |it| it.evidence = Evidence::seen("qcow2/qcow2", "7@1.0", None)),
        ("earlier version", |it| it.parent.format_options.clear()),
        ("is gone", |it| drop(it.bitmaps.remove(2))),
        ("not sound", |it| it.bitmaps[2].2 = true),
    ];
    for (told, change) in about_the_image {
        let mut case = Case::sound();
        change(&mut case);
        let doubt = case.judge().unwrap_err();
        assert!(matches!(&doubt, Doubt::Absent(why) if why.contains(told)), "{told}: {doubt:?}");
    }
    let lies: [Change; 4] = [
        ("smaller and larger", |it| it.bitmaps[2].4 = ExtentSet::new()),
        ("smaller and larger", |it| it.bitmaps[2].4.insert(Extent::new(0, 1 << 16))),
        ("lacks the mark", |it| it.bitmaps[0].4 = ExtentSet::new()),
        ("its twin differ", |it| it.bitmaps[1].4.insert(Extent::new(0, 1 << 16))),
    ];
    for (told, change) in lies {
        let mut case = Case::sound();
        change(&mut case);
        let doubt = case.judge().unwrap_err();
        assert!(matches!(&doubt, Doubt::Lie(why) if why.contains(told)), "{told}: {doubt:?}");
    }
}

#[test]
fn the_first_backup_proves_nothing() {
    let evidence = Evidence::seen("qcow2", "7@1.0", None);
    let seen = Seen { size: 1, chain: &[], evidence: &evidence, unusable: None, bitmaps: BTreeMap::new() };
    assert!(matches!(seen.proven(&[], None, TrackingWish::Auto), Err(Doubt::Absent(_))));
}
