//! FORMAT.md is complete: `restore.py`, which was written from it alone, restores what Windlass backed up.

use bytes::Bytes;
use chunker::{Compression, Extent};
use mover::{
    Audit, BackupOptions, BackupReport, NewAttachment, OwnerId, PointId, Pool, Progress, SessionId, Timestamp,
    TrackingWish, Verification, World, WriterId, backup,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use store::format::event::{Event, SessionOpened};
use store::format::record::LogRecord;
use store::state::Digest;
use store::{Access, Local};
use windlass_tests::fake::{Image, Machine, Trouble, noise};
use windlass_tests::kept::replay;

#[tokio::test]
async fn the_script_restores_every_point() {
    let kept = Kept::new().await;
    for (point, images) in &kept.points {
        for (disk, image) in ["sda", "sdb"].iter().zip(images) {
            kept.assert_restores(&point.to_string(), disk, image);
        }
    }
    let (_, newest) = kept.points.last().expect("points");
    kept.assert_restores("web-01", "sda", &newest[0]);
    let refused = kept.restore("web-01", "sdz");
    assert!(!refused.status.success() && text(&refused).contains("there is no disk sdz"), "{}", text(&refused));
}

/// What a restore needs is what FORMAT.md says: neither the index nor footers, and nothing that is not proven.
#[tokio::test]
async fn the_script_notices_damage() {
    let kept = Kept::new().await;
    for name in ["index", "incoming"] {
        fs::remove_dir_all(kept.repository().join(name)).expect("it is there");
    }
    fs::remove_file(kept.repository().join("lock")).expect("it is there");
    let packs = kept.packs();
    packs.iter().for_each(|pack| flip(pack, -1));
    let (point, images) = kept.points.last().expect("points");
    kept.assert_restores(&point.to_string(), "sda", &images[0]);

    // The payload of every pack's first record, so of something that each point needs.
    packs.iter().for_each(|pack| flip(pack, 116 + 56 + 28));
    let refused = kept.restore(&point.to_string(), "sda");
    assert!(!refused.status.success() && text(&refused).contains("nowhere sound"), "{}", text(&refused));
    packs.iter().for_each(|pack| flip(pack, 116 + 56 + 28));

    flip(&kept.repository().join(format!("log/{:020}/{:020}", 0, 2)), 110);
    let refused = kept.restore(&point.to_string(), "sda");
    assert!(!refused.status.success() && text(&refused).contains("hash does not match"), "{}", text(&refused));
}

/// A log whose beginning was pruned, while a later version reads.
#[tokio::test]
async fn the_script_begins_with_a_digest() {
    let kept = Kept::new().await;
    let root = kept.repository();
    let mut state = replay(&root);
    let opened = SessionOpened {
        session: SessionId([1; 16]),
        writes: false,
        owner: OwnerId::default(),
        point: PointId::default(),
        pins: vec![kept.points[0].0],
        extensions: b"\x09\0\0\0\x03\0\0\0abc".to_vec(),
    };
    let record = LogRecord {
        sequence: state.end().sequence + 1,
        previous: state.end().hash,
        repository: state.repository(),
        writer: WriterId([2; 16]),
        term: 0,
        nonce: [3; 16],
        time: Timestamp(4),
        events: vec![Event::SessionOpened(opened)],
    };
    let (_, hashed) = LogRecord::decode(&record.encode()).expect("a record");
    assert_eq!(state.apply(&record, hashed.hash), Ok(Vec::new()));
    let (end, log) = (state.end().sequence, root.join(format!("log/{:020}", 0)));
    let config = fs::read(root.join("config")).expect("the configuration");
    fs::write(root.join(format!("state/{end:020}")), Digest::new(config, state).encode()).expect("a digest");
    for entry in fs::read_dir(&log).expect("the log") {
        fs::remove_file(entry.expect("an entry").path()).expect("a record");
    }
    for (point, images) in &kept.points {
        kept.assert_restores(&point.to_string(), "sdb", &images[1]);
    }
}

#[test]
fn the_script_is_short() {
    let lines = fs::read_to_string(script()).expect("the script").lines().count();
    assert!(lines <= 220, "{lines} lines");
}

/// A repository with some points, and what their disks were.
struct Kept {
    folder: tempfile::TempDir,
    points: Vec<(PointId, Vec<Image>)>,
}

impl Kept {
    async fn new() -> Self {
        let mut kept = Self { folder: tempfile::tempdir().expect("a folder"), points: Vec::new() };
        let (world, pool) = (World::system(), Pool::new(2).expect("threads"));
        Local::init(&kept.repository(), None, &world).expect("an empty folder");
        // Two levels of pages, sizes beside the grid, blocks that compress and blocks that do not, duplicates.
        let machine = Machine::new(&world, &[(70 << 20) + 1234, 100_000]);
        machine.write(0, 0, &noise(1, 3 << 20));
        machine.write(0, 65 << 20, &b"the same line again\n".repeat(20_000));
        machine.write(0, (70 << 20) - 100, &noise(2, 1334));
        machine.write(1, 65_536, &noise(1, 100_000 - 65_536));
        kept.back_up(&machine, Trouble::default(), &pool, &world).await.expect("a backup");
        machine.write(0, 5_000_000, &noise(3, 300_000));
        machine.discard(0, Extent::new(1 << 20, 1 << 20));
        let broken = Trouble { fail_read_after: Some(1), ..Trouble::default() };
        kept.back_up(&machine, broken, &pool, &world).await.expect_err("a read fails");
        kept.back_up(&machine, Trouble::default(), &pool, &world).await.expect("a backup");
        machine.resize(0, 66 << 20);
        machine.resize(1, 200_001);
        machine.write(1, 150_000, b"at the end");
        kept.back_up(&machine, Trouble::default(), &pool, &world).await.expect("a backup");
        kept
    }

    /// One run of a process: the repository is opened and closed.
    async fn back_up(
        &mut self,
        machine: &Machine,
        trouble: Trouble,
        pool: &Pool,
        world: &World,
    ) -> mover::Result<BackupReport> {
        let repository = Local::open(&self.repository(), Access::Write, pool.clone(), world.clone()).await?;
        let source = machine.snapshot_with(trouble);
        let made = backup(&repository, source, &options(), pool, world, &Progress::default()).await;
        if let Ok(report) = &made {
            self.points.push((report.point.id, machine.images()));
        }
        repository.close().await?;
        made
    }

    fn repository(&self) -> PathBuf {
        self.folder.path().join("repository")
    }

    fn target(&self) -> PathBuf {
        self.folder.path().join("disk.raw")
    }

    fn restore(&self, point: &str, disk: &str) -> Output {
        let _ = fs::remove_file(self.target());
        let mut command = Command::new(python());
        command.arg(script()).arg(self.repository()).args([point, disk]).arg(self.target());
        command.output().expect("the script can be started")
    }

    fn assert_restores(&self, point: &str, disk: &str, image: &Image) {
        let restored = self.restore(point, disk);
        assert!(restored.status.success(), "{}", text(&restored));
        let bytes = fs::read(self.target()).expect("the script wrote it");
        assert_eq!(bytes.len() as u64, image.size());
        let same = bytes == image.read(Extent::new(0, image.size()));
        assert!(same, "disk {disk} of {point} is not what it was");
    }

    fn packs(&self) -> Vec<PathBuf> {
        let list = |path: &Path| -> Vec<PathBuf> {
            fs::read_dir(path).expect("a folder").map(|entry| entry.expect("an entry").path()).collect()
        };
        let packs: Vec<PathBuf> = list(&self.repository().join("packs")).iter().flat_map(|it| list(it)).collect();
        assert!(packs.len() >= 6, "each backup made a data pack and a page pack");
        packs
    }
}

fn options() -> BackupOptions {
    let attachment = NewAttachment {
        kind: "domain".parse().expect("a name"),
        name: "web-01.xml".into(),
        bytes: Bytes::from_static(b"<domain/>"),
    };
    BackupOptions {
        machine_name: "web-01".parse().expect("a name"),
        machine: None,
        point: None,
        wish: TrackingWish::Auto,
        compression: Compression::default(),
        verification: Verification::Decode,
        tags: vec!["nightly".into()],
        attachments: vec![attachment],
        rate: None,
        audit: Audit::Percent(0),
        allow: mover::Allow { shrink: true, format_change: false },
        quiesce: mover::Quiesce::Auto,
    }
}

/// Turns one bit of a file; negative offsets count from its end.
fn flip(path: &Path, at: isize) {
    let mut bytes = fs::read(path).expect("a file");
    let at = if at < 0 { bytes.len() - at.unsigned_abs() } else { at.unsigned_abs() };
    bytes[at] ^= 1;
    fs::write(path, bytes).expect("written");
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("restore.py")
}

/// A Python that has what the script imports: the environment that `check` makes beside cargo's output, or the machine's.
fn python() -> PathBuf {
    let made = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("python").join("bin/python");
    let found = [made.clone(), PathBuf::from("python3")].into_iter().find(|python| {
        let asked = Command::new(python).args(["-c", "import blake3, zstandard"]).output();
        asked.is_ok_and(|asked| asked.status.success())
    });
    found.unwrap_or_else(|| {
        let folder = made.parent().and_then(Path::parent).expect("a folder").display();
        panic!(
            "this test needs Python 3.11 with two modules; ./check installs them, and so does:\n  \
             apt-get install python3-venv; python3 -m venv {folder} && {folder}/bin/pip install blake3 zstandard"
        )
    })
}
