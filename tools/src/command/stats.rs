//! `windlass stats`

use crate::cli::Stats;
use crate::open::{self, Access};
use crate::text::{count, size};
use crate::windlass::{Context, Exit};
use mover::{Repository as _, Result};
use serde::Serialize;

#[derive(Serialize)]
struct Totals {
    points: u64,
    chunks: u64,
    packs: u64,
    bytes_logical: u64,
    bytes_stored: u64,
    /// Logical by stored bytes; none while nothing is stored.
    dedup_ratio: Option<f64>,
    chunks_suspect: u64,
}

pub async fn run(context: &Context, arguments: &Stats) -> Result<Exit> {
    let repository =
        open::patiently(context, &arguments.place.repository, Access::Read, &arguments.place.patience).await?;
    let stats = repository.stats().await;
    open::close(repository).await?;
    let stats = stats?;
    let dedup_ratio = (stats.bytes_stored > 0).then(|| {
        let ratio = stats.bytes_logical as f64 / stats.bytes_stored as f64;
        (ratio * 100.0).round() / 100.0
    });
    context.out.document(&Totals {
        points: stats.points,
        chunks: stats.chunks,
        packs: stats.packs,
        bytes_logical: stats.bytes_logical,
        bytes_stored: stats.bytes_stored,
        dedup_ratio,
        chunks_suspect: stats.suspects,
    });
    let row = |name: &str, value: String| context.out.line(&format!("{name:<13}{value:>12}"));
    row("points", count(stats.points));
    row("chunks", count(stats.chunks));
    row("packs", count(stats.packs));
    row("logical", size(stats.bytes_logical));
    row("stored", size(stats.bytes_stored));
    row("ratio", dedup_ratio.map_or("-".into(), |ratio| format!("{ratio:.2}")));
    if stats.suspects > 0 {
        row("damaged", count(stats.suspects));
    }
    Ok(Exit::Done)
}
