//! Jobs across links that are long, narrow or leaky.

use crate::measure::ran;
use crate::node::Node;
use crate::relay::{LinkShape, Relay};
use crate::tools::Places;
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

/// Prints what each link gives: seconds and the share of its rate that was blobs.
///
/// # Errors
/// When a job fails, or a restored image differs.
pub fn wan(windlass: &Path, data: &Path) -> Result<()> {
    let folder = tempfile::tempdir_in(data)?;
    let places = Places { work: folder.path().to_owned(), windlass: windlass.to_owned() };
    let mut disk = Vec::new();
    File::open(data.join("day1.raw"))?.take(DISK_BYTES).read_to_end(&mut disk).context("day1.raw")?;
    fs::write(places.path("disk.raw"), &disk)?;
    println!(
        "{:<34} {:>10} {:>9} {:>10} {:>10} {:>9}",
        "link", "new data", "of rate", "no change", "restore", "of rate"
    );
    for (rtt_ms, lost_per_mille, congestion) in LINKS {
        let shape = LinkShape { rtt: Duration::from_millis(rtt_ms), rate: RATE, lost_per_mille, seed: 1 };
        let node = Node::start(&places)?;
        let relay = Relay::start(node.socket()?, shape)?;
        let address = format!("quic://127.0.0.1:{}/main?congestion={congestion}", relay.port);
        let timed = |arguments: &[&str]| -> Result<(f64, f64)> {
            let (before, began) = (relay.passed(), Instant::now());
            ran(node.windlass_at(&places, arguments, &address))?;
            let wall = began.elapsed().as_secs_f64();
            Ok((wall, (relay.passed() - before) as f64 * 8.0 / wall / RATE as f64))
        };
        let backup = ["backup", "--machine", "web", "disk.raw"];
        let (first, of_rate) = timed(&backup)?;
        let (second, _) = timed(&backup)?;
        let (restored, restore_rate) = timed(&["restore", "web@latest", "--to", "restored.raw"])?;
        if fs::read(places.path("restored.raw"))? != disk {
            bail!("the restored disk differs");
        }
        fs::remove_file(places.path("restored.raw"))?;
        let link = format!("{rtt_ms} ms, {:.1} % lost, {congestion}", lost_per_mille as f64 / 10.0);
        println!("{link:<34} {first:>8.2} s {of_rate:>9.2} {second:>8.2} s {restored:>8.2} s {restore_rate:>9.2}");
        drop((relay, node));
        fs::remove_dir_all(places.path(crate::node::OF_NODE))?;
        fs::remove_dir_all(places.path("site"))?;
    }
    Ok(())
}

const RATE: u64 = 200_000_000;
const DISK_BYTES: u64 = 600 << 20;
/// Round trip, loss, congestion control of the client.
const LINKS: [(u64, u64, &str); 6] =
    [(0, 0, "cubic"), (150, 0, "cubic"), (20, 20, "cubic"), (20, 20, "bbr"), (150, 20, "cubic"), (150, 20, "bbr")];
