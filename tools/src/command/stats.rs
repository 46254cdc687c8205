//! `windlass stats`

use crate::cli::Stats;
use crate::context::{Context, Exit};
use crate::open::{self, Access, Opened};
use crate::text::{count, counted, local_time, size, utc_time};
use chunker::ChunkId;
use mover::{Repository as _, Result, ScrubTotals};
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
    /// What points need; as the last sweep found it.
    bytes_live: Option<u64>,
    bytes_dead: Option<u64>,
    bytes_waiting: u64,
    bytes_free: Option<u64>,
    bytes_reserved: u64,
    /// How many, and the first of them.
    chunks_suspect: u64,
    wanted: Vec<String>,
    /// Packs that were never verified whole, and the earliest time at which one of the others was.
    packs_unverified: u64,
    oldest_verified: Option<String>,
    /// Of a node that reads it again and again.
    scrub: Option<Scrub>,
}

#[derive(Serialize)]
struct Scrub {
    packs: u64,
    packs_left: u64,
    bytes_read: u64,
    chunks_damaged: u64,
}

impl From<ScrubTotals> for Scrub {
    fn from(totals: ScrubTotals) -> Self {
        let ScrubTotals { packs, bytes: bytes_read, chunks_damaged, packs_left } = totals;
        Self { packs, packs_left, bytes_read, chunks_damaged }
    }
}

pub async fn run(context: &Context, arguments: &Stats) -> Result<Exit> {
    let repository =
        open::patiently(context, &arguments.place.repository, Access::Read, &arguments.place.patience).await?;
    let told = told(&repository).await;
    open::close(repository).await?;
    let (stats, wanted) = told?;
    let gone = |dead: u64| stats.bytes_stored.saturating_sub(dead).saturating_sub(stats.bytes_waiting);
    let bytes_live = stats.bytes_dead.map(gone);
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
        bytes_live,
        bytes_dead: stats.bytes_dead,
        bytes_waiting: stats.bytes_waiting,
        bytes_free: stats.bytes_free,
        bytes_reserved: stats.bytes_reserved,
        chunks_suspect: stats.suspects,
        wanted: wanted.iter().map(ChunkId::to_string).collect(),
        packs_unverified: stats.packs_unverified,
        oldest_verified: stats.oldest_verified.map(utc_time),
        scrub: stats.scrub.map(Scrub::from),
    });
    let row = |name: &str, value: String| context.out.line(&format!("{name:<13}{value:>12}"));
    row("points", count(stats.points));
    row("chunks", count(stats.chunks));
    row("packs", count(stats.packs));
    row("logical", size(stats.bytes_logical));
    row("stored", size(stats.bytes_stored));
    row("ratio", dedup_ratio.map_or("-".into(), |ratio| format!("{ratio:.2}")));
    if let (Some(live), Some(dead)) = (bytes_live, stats.bytes_dead) {
        row("live", size(live));
        row("dead", size(dead));
    }
    if stats.bytes_waiting > 0 {
        row("waiting", size(stats.bytes_waiting));
    }
    if let Some(free) = stats.bytes_free {
        row("free", size(free));
        row("reserved", size(stats.bytes_reserved));
    }
    if stats.packs_unverified > 0 {
        row("unverified", counted(stats.packs_unverified, "pack"));
    }
    if let Some(oldest) = stats.oldest_verified {
        row("verified", format!("since {}", local_time(oldest)));
    }
    if let Some(scrub) = stats.scrub {
        let left = format!("{} left", counted(scrub.packs_left, "pack"));
        row("scrub", format!("{} read, {left}, {}", size(scrub.bytes), counted(scrub.chunks_damaged, "damaged chunk")));
    }
    if stats.suspects > 0 {
        row("damaged", counted(stats.suspects, "chunk"));
        wanted.iter().take(WANTED_SHOWN).for_each(|chunk| context.out.line(&format!("  {chunk}")));
    }
    Ok(Exit::Done)
}

/// Totals, and the first chunks that are wanted.
async fn told(repository: &Opened) -> Result<(mover::Stats, Vec<ChunkId>)> {
    let stats = repository.stats().await?;
    let wanted = if stats.suspects > 0 { repository.wanted(None).await? } else { Vec::new() };
    Ok((stats, wanted))
}

/// Of wanted chunks, to a person.
const WANTED_SHOWN: usize = 10;
