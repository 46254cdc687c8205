//! Jobs across links that are long, narrow or leaky: a node behind a [`Relay`].

use crate::judge::Bound::{AtLeast, AtMost};
use crate::judge::judged;
use crate::measure::{compare, ran};
use crate::node::{Node, OF_NODE};
use crate::relay::{Relay, Shape};
use crate::tools::Places;
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// A link, and what is done across it.
struct Row {
    round_trip_ms: u64,
    lost_per_mille: u64,
    congestion: &'static str,
    disk_bytes: u64,
}

/// What it took.
#[derive(Clone, Copy)]
struct Made {
    /// Shares of the link's rate that were blobs.
    new_share: f64,
    restore_share: f64,
    /// Seconds of a second machine with the same disk.
    second_s: f64,
}

/// Prints what each link gives, and whether what is promised holds.
///
/// # Errors
/// When a job fails, a restored image differs, or a promise does not hold.
pub fn wan(windlass: &Path, data: &Path) -> Result<()> {
    println!(
        "a link of {} Mbit/s each way, a queue of one round trip (at least 20 ms); shares of it that were blobs",
        RATE / 1_000_000
    );
    println!("{:<30} {:>10} {:>7} {:>12} {:>10} {:>7}", "link", "new data", "share", "nothing new", "restore", "share");
    let mut made = Vec::new();
    for row in &ROWS {
        made.push(run(windlass, data, row)?);
    }
    let [near, far, leaky @ ..] = &made[..] else { unreachable!("there are rows") };
    let [leaky_cubic, leaky_bbr, far_cubic, far_bbr] = leaky else { unreachable!("there are six rows") };
    println!();
    let all = judged(&[
        ("new data at 150 ms, share of the link", far.new_share, AtLeast(0.9)),
        ("restore at 150 ms, share of the link", far.restore_share, AtLeast(0.8)),
        ("nothing new: time at 150 ms, of that at 0 ms", far.second_s / near.second_s, AtMost(1.5)),
        ("2 % lost at 20 ms: BBR, of the loss-free rate", leaky_bbr.new_share / near.new_share, AtLeast(0.5)),
        ("2 % lost at 150 ms: BBR, of the loss-free rate", far_bbr.new_share / far.new_share, AtLeast(0.5)),
    ]);
    println!(
        "     2 % lost: Cubic, of the loss-free rate: {:.3} at 20 ms, {:.3} at 150 ms",
        leaky_cubic.new_share / near.new_share,
        far_cubic.new_share / far.new_share
    );
    ensure!(all, "not every promise holds");
    Ok(())
}

fn run(windlass: &Path, data: &Path, row: &Row) -> Result<Made> {
    let folder = tempfile::tempdir_in(data)?;
    let places = Places { work: folder.path().to_owned(), windlass: windlass.to_owned() };
    let mut disk = File::open(data.join("day1.raw"))?.take(row.disk_bytes);
    std::io::copy(&mut disk, &mut File::create(places.path("disk.raw"))?).context("day1.raw")?;
    // Each end decides for what it sends.
    let node = Node::start_with(&places, &format!("congestion = {:?}\n", row.congestion))?;
    let shape = Shape {
        delay: Duration::from_millis(row.round_trip_ms) / 2,
        rate: RATE,
        lost_per_mille: row.lost_per_mille,
        seed: 1,
        ..Shape::default()
    };
    let relay = Relay::start(SocketAddr::from(([127, 0, 0, 1], node.port())), shape)?;
    let address = format!("quic://127.0.0.1:{}/main?congestion={}", relay.port, row.congestion);
    let timed = |arguments: &[&str]| -> Result<f64> {
        let began = Instant::now();
        ran(node.windlass_at(&places, arguments, &address))?;
        Ok(began.elapsed().as_secs_f64())
    };
    let first = timed(&["backup", "--machine", "web", "disk.raw"])?;
    let blobs = crate::measure::bytes_below(&places.path(OF_NODE).join("packs"))? as f64;
    let second_s = timed(&["backup", "--machine", "second", "disk.raw"])?;
    let restored = timed(&["restore", "web@latest", "--to", "restored.raw"])?;
    compare(&places.path("restored.raw"), &places.path("disk.raw"))?;
    let share = |seconds: f64| blobs * 8.0 / seconds / RATE as f64;
    let made = Made { new_share: share(first), restore_share: share(restored), second_s };
    let link = format!("{} ms, {} % lost, {}", row.round_trip_ms, row.lost_per_mille as f64 / 10.0, row.congestion);
    println!(
        "{link:<30} {first:>8.2} s {:>7.3} {second_s:>10.2} s {restored:>8.2} s {:>7.3}",
        made.new_share, made.restore_share
    );
    let Relay { up, down, .. } = &relay;
    for (way, traffic) in [("up", up), ("down", down)] {
        let [packets, lost, dropped] = [&traffic.packets, &traffic.lost, &traffic.dropped].map(|it| it.load(Relaxed));
        eprintln!("  {way}: {packets} packets, {lost} lost, {dropped} found no room");
    }
    Ok(made)
}

const RATE: u64 = 200_000_000;
const WHOLE: u64 = u64::MAX;
/// Bytes of the disk that is used on links with loss. They are fewer for slower links, because the rate shows in less
/// time there.
const PART: u64 = 600 << 20;
const SOME: u64 = 100 << 20;
const LITTLE: u64 = 24 << 20;
const ROWS: [Row; 6] = [
    Row { round_trip_ms: 0, lost_per_mille: 0, congestion: "cubic", disk_bytes: WHOLE },
    Row { round_trip_ms: 150, lost_per_mille: 0, congestion: "cubic", disk_bytes: WHOLE },
    Row { round_trip_ms: 20, lost_per_mille: 20, congestion: "cubic", disk_bytes: SOME },
    Row { round_trip_ms: 20, lost_per_mille: 20, congestion: "bbr", disk_bytes: PART },
    Row { round_trip_ms: 150, lost_per_mille: 20, congestion: "cubic", disk_bytes: LITTLE },
    Row { round_trip_ms: 150, lost_per_mille: 20, congestion: "bbr", disk_bytes: PART },
];
