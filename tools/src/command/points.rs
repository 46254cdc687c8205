//! `windlass points`

use crate::cli::Points;
use crate::open::{self, Access};
use crate::output::table;
use crate::text::{local_time, short, size, utc_time};
use crate::windlass::{Context, Exit};
use mover::{PointFilter, RecoveryPoint, Repository as _, Result, Timestamp};
use serde::Serialize;

#[derive(Serialize)]
struct Listed {
    points: Vec<PointFields>,
}

/// A point as JSON.
#[derive(Serialize)]
pub struct PointFields {
    point: String,
    machine: String,
    machine_id: String,
    group: Option<String>,
    snapshot_time: String,
    commit_time: String,
    origin_repository: String,
    origin_commit_time: String,
    protected_until: Option<String>,
    bytes_logical: u64,
    bytes_new: u64,
    pinned: bool,
    forgotten: bool,
}

impl From<&RecoveryPoint> for PointFields {
    fn from(point: &RecoveryPoint) -> Self {
        Self {
            point: point.id.to_string(),
            machine: point.machine_name.to_string(),
            machine_id: point.machine.to_string(),
            group: point.group.map(|group| group.to_string()),
            snapshot_time: utc_time(point.snapshot_time),
            commit_time: utc_time(point.commit_time),
            origin_repository: point.origin.0.to_string(),
            origin_commit_time: utc_time(point.origin.1),
            protected_until: (point.protected_until > Timestamp(0)).then(|| utc_time(point.protected_until)),
            bytes_logical: point.bytes_logical,
            bytes_new: point.bytes_new,
            pinned: point.pinned,
            forgotten: point.forgotten,
        }
    }
}

pub async fn run(context: &Context, arguments: &Points) -> Result<Exit> {
    let repository =
        open::patiently(context, &arguments.place.repository, Access::Read, &arguments.place.patience).await?;
    let filter = PointFilter { machine: arguments.machine.clone(), forgotten: arguments.forgotten };
    let points = repository.list(&filter).await;
    let own = repository.config().id;
    open::close(repository).await?;
    let points = points?;
    context.out.document(&Listed { points: points.iter().map(PointFields::from).collect() });
    if points.is_empty() {
        context.out.line("no recovery points");
        return Ok(Exit::Done);
    }
    let mut rows = table(&["POINT", "MACHINE", "TIME", "SIZE", "NEW", "REMARKS"], &["SIZE", "NEW"]);
    for point in &points {
        let mut remarks = Vec::new();
        if point.pinned {
            remarks.push("pinned");
        }
        if point.origin.0 != own {
            remarks.push("copy");
        }
        rows.add_row([
            short(point.id),
            point.machine_name.to_string(),
            local_time(point.snapshot_time),
            size(point.bytes_logical),
            size(point.bytes_new),
            remarks.join(", "),
        ]);
    }
    context.out.table(&rows);
    Ok(Exit::Done)
}
