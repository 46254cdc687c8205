//! Sweeps of a repository with many small chunks: how their cost depends on the number of chunks, and how much they
//! slow down a backup that runs at the same time.

use crate::judge::{Bound, judged};
use crate::measure::{Durable, measured, median, ran};
use crate::node::{Node, OF_NODE};
use crate::tools::Places;
use anyhow::{Context, Result, bail, ensure};
use chunker::{ChunkKind, Compression, DomainKeys, GRID_BYTES};
use mover::{
    Begin, ChangeTracking, Commit, Consistency, DiskId, DiskRecord, MachineId, Manifest, MapBuilder, MapReader,
    MapRoot, PageRef, PointDraft, PointId, Pool, Repository, TrackingRecord, Verification, World, WriteSession,
    with_compressor,
};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;
use store::{Access, Local, Session};

/// Prints the times of the parts of a sweep after ten points were forgotten: in a repository of twenty points, and in
/// one of `points` points. The two take turns, because the speed of a machine changes. Then prints how fast a backup is
/// while sweeps run.
///
/// # Errors
/// When a job fails, or a promise does not hold.
pub fn sweep(windlass: &Path, data: &Path, points: u32, rounds: u32) -> Result<()> {
    ensure!(points >= TIMES * TOGETHER, "at least {} points", TIMES * TOGETHER);
    let folder = tempfile::tempdir_in(data)?;
    let places = Places { work: folder.path().to_owned(), windlass: windlass.to_owned() };
    println!("{CHUNKS} chunks of 64 to 512 bytes a point; ten points are forgotten\n");
    println!(
        "{:>7} {:>11} {:>11} {:>9} {:>12} {:>13} {:>9} {:>9} {:>9}",
        "points", "chunks", "open s", "count s", "first check", "second check", "sweep s", "MB freed", "peak MiB"
    );
    let mut many = Filled::new(&places, OF_NODE, points)?;
    let (mut ratios, mut peak_mib, mut open_s) = (Vec::new(), 0_f64, 0_f64);
    for time in 0..TIMES {
        let few = Filled::new(&places, &format!("few{time}"), FEW)?.swept(&places, 0)?;
        let of_many = many.swept(&places, time)?;
        ratios.push(of_many.first_check_s / few.first_check_s);
        peak_mib = peak_mib.max(of_many.peak_mib);
        open_s = open_s.max(of_many.open_s);
    }
    println!();
    let share = beside_sweeps(&places, rounds)?;
    let all = judged(&[
        ("first check, of that with twenty points", median(ratios.into_iter()), Bound::AtMost(1.5)),
        ("peak memory of a sweep, MiB", peak_mib, Bound::Below(256.0)),
        ("opening the repository, s", open_s, Bound::Below(2.0)),
        ("speed of a backup beside sweeps, of one alone", share, Bound::AtLeast(0.8)),
    ]);
    ensure!(all, "not every promise holds");
    Ok(())
}

/// A repository whose references are all counted already.
struct Filled {
    name: String,
    points: Vec<PointId>,
    counted_s: f64,
    peak_bytes: u64,
}

struct Swept {
    open_s: f64,
    first_check_s: f64,
    peak_mib: f64,
}

impl Filled {
    fn new(places: &Places, name: &str, points: u32) -> Result<Self> {
        let path = places.path(name);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let points = runtime.block_on(fill(&path, points))?;
        // The first counts everything, the second nothing.
        let mut filled = Self { name: name.to_owned(), points, counted_s: 0.0, peak_bytes: 0 };
        for _ in 0..2 {
            let swept = measured(&filled.windlass(places, &["sweep"]), &places.work, Durable::ByItself)?;
            filled.counted_s = filled.counted_s.max(field(&swept.stdout, "counting_ms")? / 1e3);
            filled.peak_bytes = filled.peak_bytes.max(swept.sample.peak_bytes);
        }
        Ok(filled)
    }

    fn windlass(&self, places: &Places, arguments: &[&str]) -> Command {
        let mut command = Command::new(&places.windlass);
        command.args(arguments).arg("--json").arg("-r").arg(places.path(&self.name)).current_dir(&places.work);
        command
    }

    /// Forgets ten points that were committed in one session, and sweeps. Their chunks are in the same few packs,
    /// however many points the repository has.
    fn swept(&mut self, places: &Places, time: u32) -> Result<Swept> {
        let began = Instant::now();
        ran(self.windlass(places, &["points"]))?;
        let open_s = began.elapsed().as_secs_f64();
        let first = (time * TOGETHER) as usize;
        let forgotten: Vec<String> = self.points[first..first + 10].iter().map(PointId::to_string).collect();
        let mut forget = vec!["forget"];
        forget.extend(forgotten.iter().map(String::as_str));
        ran(self.windlass(places, &forget))?;
        let sweep = self.windlass(places, &["sweep", "--repack-from", "20"]);
        let swept = measured(&sweep, &places.work, Durable::ByItself)?;
        let of = |name: &str| field(&swept.stdout, name);
        let first_check_s = of("first_check_ms")? / 1e3;
        self.peak_bytes = self.peak_bytes.max(swept.sample.peak_bytes);
        let peak_mib = self.peak_bytes as f64 / 1_048_576.0;
        ensure!(of("points_final")? == 10.0 && of("packs_deleted")? > 0.0, "nothing was swept: {}", swept.stdout);
        println!(
            "{:>7} {:>11} {open_s:>11.2} {:>9.2} {first_check_s:>12.2} {:>13.2} {:>9.2} {:>9.1} {peak_mib:>9.0}",
            self.points.len(),
            self.points.len() as u64 * CHUNKS,
            self.counted_s,
            of("second_check_ms")? / 1e3,
            swept.sample.wall_s,
            of("bytes_reclaimed")? / 1e6,
        );
        Ok(Swept { open_s, first_check_s, peak_mib })
    }
}

/// Backs up into a node, in turn alone and while sweeps run one after the other. Gives the median speed of a backup
/// during sweeps, as a share of that of a backup alone.
fn beside_sweeps(places: &Places, rounds: u32) -> Result<f64> {
    let node = Node::serve(places, "")?;
    let disk = places.path("disk.raw");
    let backup = |machine: String| -> Result<f64> {
        random_disk(&disk)?;
        let disk = disk.to_str().context("a path")?;
        let began = Instant::now();
        ran(node.windlass(places, &["backup", "--machine", &machine, "--compression", "none", disk]))?;
        Ok(began.elapsed().as_secs_f64())
    };
    let forget = || -> Result<()> {
        let points: serde_json::Value = serde_json::from_str(&ran(node.windlass(places, &["points"]))?)?;
        let oldest = points["points"].as_array().context("points")?.iter().take(10);
        let oldest = oldest.map(|it| it["point"].as_str().context("a point")).collect::<Result<Vec<_>>>()?;
        ran(node.windlass(places, &[&["forget"], &oldest[..]].concat())).map(drop)
    };
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        alone.push(backup(format!("m{round}alone"))?);
        forget()?;
        let done = AtomicBool::new(false);
        let (took, swept) = std::thread::scope(|scope| {
            let sweeping = scope.spawn(|| -> Result<u32> {
                let mut swept = 0;
                while !done.load(Relaxed) {
                    ran(node.windlass(places, &["sweep"]))?;
                    swept += 1;
                }
                Ok(swept)
            });
            let took = backup(format!("m{round}beside"));
            done.store(true, Relaxed);
            (took, sweeping.join().expect("it does not panic"))
        });
        beside.push(took?);
        let (round, swept) = (round as usize, swept?);
        println!("round {}: alone {:.2} s, beside {swept} sweeps {:.2} s", round + 1, alone[round], beside[round]);
    }
    Ok(median(alone.into_iter()) / median(beside.into_iter()))
}

fn random_disk(path: &Path) -> Result<()> {
    let mut bytes = vec![0; DISK_BYTES];
    blake3::Hasher::new().update(&World::system().random_bytes::<16>()).finalize_xof().fill(&mut bytes);
    Ok(fs::write(path, bytes)?)
}

/// A repository of so many points, each with chunks of its own.
async fn fill(path: &Path, points: u32) -> Result<Vec<PointId>> {
    let world = World::system();
    Local::init(path, None, &world)?;
    let local = Local::open(path, Access::Write, Pool::new(0)?, world.clone()).await?;
    let keys = DomainKeys::new(&local.config().domain);
    let mut made = Vec::new();
    // Several in a session, so many that packs become full: what comes of small ones is another question.
    for first in (0..points).step_by(TOGETHER as usize) {
        let ids: Vec<PointId> = (first..points.min(first + TOGETHER)).map(|_| PointId::random(&world)).collect();
        let verification = Verification::Checksum;
        let begin = Begin { point: ids[0], parents: Vec::new(), holder: None, verification };
        let (session, _) = local.begin(begin).await?;
        let mut drafts = Vec::new();
        for (point, number) in ids.iter().zip(first..) {
            let (size, root) = disk(&session, &keys, number).await?;
            drafts.push(PointDraft {
                manifest: manifest(&world, *point, size, root)?,
                origin: None,
                labels: Default::default(),
            });
        }
        match session.commit(&drafts).await? {
            Commit::Committed(_) => made.extend(ids),
            Commit::Missing(ids) => bail!("{} chunks are missing", ids.len()),
        }
    }
    local.close().await?;
    Ok(made)
}

/// Stores the disk of point `number`, all of whose chunks nobody else has.
async fn disk(session: &Session, keys: &DomainKeys, number: u32) -> Result<(u64, MapRoot)> {
    let none = None::<(MapRoot, &MapReader<'_, Session>)>;
    let size = CHUNKS * u64::from(GRID_BYTES);
    let mut builder = MapBuilder::new(size, none, keys);
    for batch in 0..CHUNKS / BATCH {
        let keys = keys.clone();
        let compress = move |at: u64| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&number.to_le_bytes()).update(&(batch * BATCH + at).to_le_bytes());
            let mut plain = [0; 512];
            hasher.finalize_xof().fill(&mut plain);
            let plain = &plain[..64 + usize::from(plain[0]) * 7 / 4];
            let blob = with_compressor(Compression::None, |compressor| compressor.compress(ChunkKind::Data, plain));
            (keys.id(ChunkKind::Data, plain), blob)
        };
        let chunks: Vec<_> = (0..BATCH).map(compress).collect();
        for (at, (id, _)) in chunks.iter().enumerate() {
            builder.set(batch * BATCH + at as u64, PageRef::Chunk(*id)).await?;
        }
        session.put(chunks).await?;
    }
    let (root, pages) = builder.finish();
    let page = |page: mover::NewPage| {
        let blob =
            with_compressor(Compression::default(), |compressor| compressor.compress(ChunkKind::Page, &page.plain));
        (page.id, blob)
    };
    session.put(pages.into_iter().map(page).collect()).await?;
    Ok((size, root))
}

fn manifest(world: &World, point: PointId, size: u64, root: MapRoot) -> Result<Manifest> {
    let tracking = TrackingRecord {
        mode: ChangeTracking::Full,
        reason: "made".into(),
        checkpoint: None,
        granularity: 0,
        bytes_read: size,
        bytes_changed: size,
        bytes_audited: 0,
    };
    let disk = DiskRecord {
        id: DiskId::random(world),
        name: "disk0".parse().map_err(anyhow::Error::msg)?,
        size,
        grid: GRID_BYTES,
        root,
        logical_sector_bytes: 512,
        physical_sector_bytes: 512,
        discard_bytes: 0,
        boot_order: 0,
        bus: String::new(),
        serial: String::new(),
        format: "raw".into(),
        format_options: String::new(),
        chain: Vec::new(),
        tracking,
    };
    Ok(Manifest {
        point,
        machine: MachineId::random(world),
        machine_name: "made".parse().map_err(anyhow::Error::msg)?,
        parent: None,
        group: None,
        snapshot_time: world.now(),
        begin_time: world.now(),
        end_time: world.now(),
        guest_clock_offset_ns: None,
        consistency: Consistency::Crash,
        tags: Vec::new(),
        labels: BTreeMap::new(),
        producer: "windlass bench".into(),
        disks: vec![disk],
        attachments: Vec::new(),
        bytes_new: 0,
        extensions: Vec::new(),
    })
}

/// A number of the summary, the last line.
fn field(printed: &str, name: &str) -> Result<f64> {
    let summary: serde_json::Value = serde_json::from_str(printed.lines().last().context("a summary")?)?;
    summary[name].as_f64().with_context(|| format!("{name} in {summary}"))
}

const FEW: u32 = 20;
/// Chunks of each point.
const CHUNKS: u64 = 10_000;
const BATCH: u64 = 2_500;
/// Points of one session. Their chunks nearly fill two packs.
const TOGETHER: u32 = 13;
/// Sweeps with few and with many points.
const TIMES: u32 = 3;
const DISK_BYTES: usize = 1 << 30;
