//! `windlass diff`

use crate::cli::Diff;
use crate::context::{Context, Exit};
use crate::open::{self, Access, Opened};
use crate::output::table;
use crate::text::{count, size};
use chunker::{DomainKeys, Extent, GRID_BYTES};
use mover::{
    ChangedRun, DiskRecord, MapReader, MapRoot, PointFilter, PointId, ReadSession, Repository as _, Result, RunKind,
    changed_runs, select,
};
use serde::Serialize;

#[derive(Serialize)]
struct Difference {
    from: String,
    to: String,
    disks: Vec<DiskDifference>,
}

#[derive(Serialize)]
struct DiskDifference {
    name: String,
    /// None where the point has no such disk.
    size_from: Option<u64>,
    size_to: Option<u64>,
    bytes_changed: u64,
    extents: Vec<Piece>,
}

#[derive(Serialize)]
struct Piece {
    offset: u64,
    length: u64,
    /// What the newer point has there: data or zero.
    kind: &'static str,
}

pub async fn run(context: &Context, arguments: &Diff) -> Result<Exit> {
    let repository =
        open::patiently(context, &arguments.place.repository, Access::Read, &arguments.place.patience).await?;
    let found = context.stop.race(differences(&repository, arguments)).await;
    open::close(repository).await?;
    let found = found?;
    context.out.document(&found);
    print(context, &found);
    Ok(Exit::Done)
}

async fn differences(repository: &Opened, arguments: &Diff) -> Result<Difference> {
    let points = repository.list(&PointFilter::default()).await?;
    let (from, to) = (select(&points, &arguments.from)?.id, select(&points, &arguments.to)?.id);
    let pinned: &[PointId] = if from == to { &[from] } else { &[from, to] };
    let session = repository.read(pinned).await?;
    let (old, new) = (session.manifest(from).await?, session.manifest(to).await?);
    let keys = DomainKeys::new(&repository.config().domain);
    let mut disks = Vec::new();
    for disk in &new.disks {
        disks.push(of_disk(&session, &keys, old.disk(&disk.name), Some(disk)).await?);
    }
    for disk in old.disks.iter().filter(|disk| new.disk(&disk.name).is_none()) {
        disks.push(of_disk(&session, &keys, Some(disk), None).await?);
    }
    Ok(Difference { from: from.to_string(), to: to.to_string(), disks })
}

async fn of_disk<R: ReadSession>(
    session: &R,
    keys: &DomainKeys,
    old: Option<&DiskRecord>,
    new: Option<&DiskRecord>,
) -> Result<DiskDifference> {
    let reader = MapReader::new(session, keys);
    let root = |disk: Option<&DiskRecord>| disk.map_or(MapRoot::default(), |disk| disk.root);
    let size = |disk: Option<&DiskRecord>| disk.map(|disk| disk.size);
    let end = size(old).max(size(new)).unwrap_or(0);
    let runs = changed_runs(root(old), root(new), &reader).await?;
    let extent = |run: &ChangedRun| {
        let grid = u64::from(GRID_BYTES);
        let start = run.block.saturating_mul(grid).min(end);
        Extent::from(start..run.block.saturating_add(run.blocks).saturating_mul(grid).min(end))
    };
    let kind = |run: &ChangedRun| if run.kind == RunKind::Data { "data" } else { "zero" };
    let piece = |run: &ChangedRun| {
        let Extent { offset, length } = extent(run);
        Piece { offset, length, kind: kind(run) }
    };
    let extents: Vec<Piece> = runs.iter().map(piece).filter(|piece| piece.length > 0).collect();
    let name = new.or(old).map_or(String::new(), |disk| disk.name.to_string());
    let bytes_changed = extents.iter().map(|piece| piece.length).sum();
    Ok(DiskDifference { name, size_from: size(old), size_to: size(new), bytes_changed, extents })
}

fn print(context: &Context, found: &Difference) {
    let shown = |bytes: Option<u64>| bytes.map_or("-".into(), size);
    let mut rows = table(&["DISK", "FROM", "TO", "CHANGED", "EXTENTS"], &["FROM", "TO", "CHANGED", "EXTENTS"]);
    for disk in &found.disks {
        rows.add_row([
            disk.name.clone(),
            shown(disk.size_from),
            shown(disk.size_to),
            size(disk.bytes_changed),
            count(disk.extents.len() as u64),
        ]);
    }
    context.out.table(&rows);
    for disk in found.disks.iter().filter(|disk| !disk.extents.is_empty()) {
        context.out.line("");
        let mut rows = table(&["DISK", "OFFSET", "LENGTH", "NOW"], &["OFFSET", "LENGTH"]);
        for piece in &disk.extents {
            rows.add_row([
                disk.name.clone(),
                piece.offset.to_string(),
                piece.length.to_string(),
                piece.kind.to_string(),
            ]);
        }
        context.out.table(&rows);
    }
}
