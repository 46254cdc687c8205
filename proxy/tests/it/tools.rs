//! What the tests share: images, processes, and a backup reduced to its source side.

use chunker::{Extent, ExtentSet};
use mover::Past;
use mover::{
    ChangeTracking, Changed, CheckpointId, DiskId, DiskRecord, MapRoot, Name, Outcome, ParentDisk, RepositoryId,
    Result, Source, TrackingRecord, TrackingWish, World, level_of,
};
use proxy::{NamedSource, SnapshotSession, SourceOptions};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

pub const GRID: u64 = 65_536;
pub const MIB: u64 = 1 << 20;

/// A temporary folder.
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// An empty qcow2 image.
    pub fn qcow2(&self, name: &str, size: u64) -> PathBuf {
        let path = self.path(name);
        run("qemu-img", &["create", "-q", "-f", "qcow2", text(&path), &size.to_string()]);
        path
    }

    /// A sparse raw file.
    pub fn raw(&self, name: &str, size: u64) -> PathBuf {
        let path = self.path(name);
        std::fs::File::create(&path).unwrap().set_len(size).unwrap();
        path
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs a tool that must succeed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {words}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs `qemu-io` commands on an image.
pub fn qemu_io(path: &Path, format: &str, commands: &[&str]) {
    let mut arguments = vec!["-f", format];
    commands.iter().for_each(|command| arguments.extend(["-c", command]));
    arguments.push(text(path));
    run("qemu-io", &arguments);
}

/// All bytes of an image as QEMU reads them.
pub fn content(path: &Path, format: &str) -> Vec<u8> {
    let place = Place::new();
    let raw = place.path("raw");
    run("qemu-img", &["convert", "-f", format, "-O", "raw", text(path), text(&raw)]);
    std::fs::read(raw).unwrap()
}

/// A process that is ended with the test.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// nbdkit on a unix socket; returns its URI.
pub fn nbdkit(place: &Place, name: &str, arguments: &[&str]) -> (Running, String) {
    let socket = place.path(name);
    let child = Command::new("nbdkit")
        .args(["-f", "-U", text(&socket)])
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let running = Running(child);
    listens(&socket);
    (running, format!("nbd+unix:///?socket={}", text(&socket)))
}

/// Waits until a server takes connections: its socket is there a moment earlier.
pub fn listens(socket: &Path) {
    while std::os::unix::net::UnixStream::connect(socket).is_err() {
        std::thread::yield_now();
    }
}

/// A writer that holds an image open for writing, as a machine does.
pub fn machine(path: &Path, format: &str) -> Running {
    use std::io::{BufRead, BufReader, Write};
    let mut child = Command::new("qemu-io")
        .args(["-f", format, text(path)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It answers a command when it has the image.
    writeln!(child.stdin.as_mut().unwrap(), "length").unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    Running(child)
}

pub fn repository() -> RepositoryId {
    RepositoryId(*b"test repository.")
}

/// Bitmaps that a committed backup leaves: one of changes, its twin, a witness.
pub const SET: usize = 3;

/// The bitmap of changes in an image that was backed up.
pub fn changes(path: &Path) -> String {
    let all = bitmaps(path);
    let of = |name: &String| !name.contains("-twin-") && !name.contains("-end-");
    all.into_iter().find(of).expect("it was backed up")
}

/// The bitmaps of an image as `qemu-img info` names them.
pub fn bitmaps(path: &Path) -> Vec<String> {
    let info: serde_json::Value =
        serde_json::from_str(&run("qemu-img", &["info", "--output=json", text(path)])).unwrap();
    let list = info["format-specific"]["data"]["bitmaps"].as_array().cloned().unwrap_or_default();
    list.iter().map(|bitmap| bitmap["name"].as_str().unwrap().to_owned()).collect()
}

/// The state that backups build up: what the repository would hold of one disk.
#[derive(Default)]
pub struct Store {
    /// The disk as the newest point has it.
    pub bytes: Vec<u8>,
    /// The record of the newest point.
    pub parent: Option<DiskRecord>,
    /// Every checkpoint of a committed point.
    pub committed: BTreeSet<CheckpointId>,
}

/// What one backup did.
pub struct Report {
    pub changed: Changed,
    pub bytes_read: u64,
}

/// Opens a session on one disk.
pub async fn open(source: &str, wish: TrackingWish, committed: &BTreeSet<CheckpointId>) -> Result<SnapshotSession> {
    open_after(source, wish, &Remembered { committed, parent: None }).await
}

/// Opens a session on one disk that was backed up before.
pub async fn open_after(source: &str, wish: TrackingWish, past: &Remembered<'_>) -> Result<SnapshotSession> {
    let options = SourceOptions {
        wanted: mover::Wanted { repository: repository(), wish, quiesce: mover::Quiesce::Auto },
        image_roots: Vec::new(),
        world: World::system(),
    };
    let source = NamedSource::only(source.parse()?);
    SnapshotSession::open(vec![source], &options, past).await
}

/// The checkpoints that were committed, and the newest point.
pub struct Remembered<'a> {
    pub committed: &'a BTreeSet<CheckpointId>,
    pub parent: Option<&'a DiskRecord>,
}

impl Past for Remembered<'_> {
    async fn is_committed(&self, checkpoint: CheckpointId) -> Result<bool> {
        Ok(self.committed.contains(&checkpoint))
    }

    async fn disk(&self, _: &Name) -> Result<Option<DiskRecord>> {
        Ok(self.parent.cloned())
    }
}

impl Store {
    /// One backup: reads what may have changed and patches it in.
    pub async fn backup(&mut self, source: &str, wish: TrackingWish) -> Result<Report> {
        let past = Remembered { committed: &self.committed, parent: self.parent.as_ref() };
        let session = open_after(source, wish, &past).await?;
        let made = self.read(&session, wish).await;
        let (outcome, made) = match made {
            Ok(made) => (Outcome::Committed, made),
            Err(error) => {
                session.finish(Outcome::Abandoned).await?;
                return Err(error);
            }
        };
        let (report, bytes, record) = made;
        self.committed.extend(record.tracking.checkpoint);
        (self.bytes, self.parent) = (bytes, Some(record));
        session.finish(outcome).await?;
        Ok(report)
    }

    /// Everything of a backup but the commit.
    pub async fn read(&self, session: &SnapshotSession, wish: TrackingWish) -> Result<(Report, Vec<u8>, DiskRecord)> {
        let description = session.disks()[0].clone();
        let size = description.size;
        let parent = self.parent.as_ref().map(|record| ParentDisk { repository: repository(), record });
        let changed = session.changed(0, parent, wish).await?;
        let (mut bytes, read) = match changed.mode {
            ChangeTracking::Bitmap => {
                let dirty = changed.dirty.align(GRID, size);
                let mut bytes = self.bytes.clone();
                dirty.intersect(&changed.zeroes).iter().for_each(|it| bytes[range(it)].fill(0));
                (bytes, dirty.subtract(&changed.zeroes))
            }
            _ => (vec![0; size as usize], ExtentSet::whole(size).subtract(&changed.zeroes)),
        };
        for extent in read.split(4 * MIB) {
            let got = session.read(0, extent).await?;
            assert_eq!(got.len() as u64, extent.length);
            bytes[range(extent)].copy_from_slice(&got);
        }
        session.check().await?;
        let record = record(session, &changed);
        Ok((Report { changed, bytes_read: read.bytes() }, bytes, record))
    }
}

/// The disk record that a backup would write.
pub fn record(session: &SnapshotSession, changed: &Changed) -> DiskRecord {
    let description = session.disks()[0].clone();
    DiskRecord {
        id: DiskId::default(),
        name: description.name,
        size: description.size,
        grid: GRID as u32,
        root: MapRoot { level: level_of(description.size), id: None },
        logical_sector_bytes: 0,
        physical_sector_bytes: 0,
        discard_bytes: 0,
        boot_order: 0,
        bus: String::new(),
        serial: String::new(),
        format: description.format,
        format_options: description.format_options,
        chain: description.chain,
        tracking: TrackingRecord {
            mode: changed.mode,
            reason: changed.reason.clone(),
            checkpoint: changed.checkpoint.map(|(id, _)| id),
            granularity: changed.checkpoint.map_or(0, |(_, granularity)| granularity),
            bytes_read: 0,
            bytes_changed: 0,
            bytes_audited: 0,
        },
    }
}

pub fn range(extent: Extent) -> std::ops::Range<usize> {
    extent.offset as usize..extent.end() as usize
}
