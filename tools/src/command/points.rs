//! `windlass points`

use crate::cli::Points;
use crate::context::{Context, Exit};
use crate::open::{self, Access, Opened};
use crate::output::table;
use crate::text::{escaped, local_time, short, size, utc_time};
use mover::{
    Lineage, PointFilter, PointId, RecoveryPoint, Repository as _, Result, Timestamp, in_order, qualifiers,
    suspect_times,
};
use serde::Serialize;
use std::collections::BTreeMap;

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
    /// Whose it is; none: the site's own.
    owner: Option<String>,
    owner_id: String,
    /// Who made it, as `ROLE NAME`; none: whoever opened the directory.
    holder: Option<String>,
    group: Option<String>,
    /// What selectors and rules go by: the snapshot's time, or one that an administrator has set.
    time: String,
    snapshot_time: String,
    commit_time: String,
    origin_repository: String,
    origin_commit_time: String,
    protected_until: Option<String>,
    bytes_logical: u64,
    bytes_new: u64,
    tags: Vec<String>,
    pinned: bool,
    forgotten: bool,
    /// Why its time cannot be right, where that was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    suspect: Option<String>,
}

impl From<&RecoveryPoint> for PointFields {
    fn from(point: &RecoveryPoint) -> Self {
        Self {
            point: point.id.to_string(),
            machine: point.machine_name.to_string(),
            machine_id: point.machine.to_string(),
            owner: point.owner_name.as_ref().map(ToString::to_string),
            owner_id: point.owner.to_string(),
            holder: point.holder.as_ref().map(ToString::to_string),
            group: point.group.map(|group| group.to_string()),
            time: utc_time(point.time()),
            snapshot_time: utc_time(point.snapshot_time),
            commit_time: utc_time(point.commit_time),
            origin_repository: point.origin.0.to_string(),
            origin_commit_time: utc_time(point.origin.1),
            protected_until: (point.protected_until > Timestamp(0)).then(|| utc_time(point.protected_until)),
            bytes_logical: point.bytes_logical,
            bytes_new: point.bytes_new,
            tags: point.tags().map(str::to_owned).collect(),
            pinned: point.pinned,
            forgotten: point.forgotten,
            suspect: None,
        }
    }
}

pub async fn run(context: &Context, arguments: &Points) -> Result<Exit> {
    let repository =
        open::patiently(context, &arguments.place.repository, Access::Read, &arguments.place.patience).await?;
    let found = listed(&repository, arguments).await;
    let own = repository.config().id;
    open::close(repository).await?;
    let mut points = found?;
    points.retain(|point| arguments.tag.iter().all(|tag| point.tags().any(|it| it == tag)));
    let suspects = if arguments.suspect_times { suspects(&points, context.world.now()) } else { BTreeMap::new() };
    points.retain(|point| !arguments.suspect_times || suspects.contains_key(&point.id));
    let fields = |point: &RecoveryPoint| PointFields { suspect: suspects.get(&point.id).cloned(), ..point.into() };
    context.out.document(&Listed { points: points.iter().map(fields).collect() });
    if points.is_empty() {
        context.out.line("no recovery points");
        return Ok(Exit::Done);
    }
    let mut rows = table(&["POINT", "MACHINE", "TIME", "SIZE", "NEW", "TAGS", "REMARKS"], &["SIZE", "NEW"]);
    let apart = qualifiers(&points.iter().collect::<Vec<_>>());
    for point in &points {
        let mut remarks = Vec::new();
        if point.pinned {
            remarks.push("pinned");
        }
        if point.origin.0 != own {
            remarks.push("copy");
        }
        if point.set_time().is_some() {
            remarks.push("time set");
        }
        remarks.extend(suspects.get(&point.id).map(String::as_str));
        rows.add_row([
            short(point.id),
            named(point, &apart),
            local_time(point.time()),
            size(point.bytes_logical),
            size(point.bytes_new),
            escaped(&point.tags().collect::<Vec<_>>().join(", ")),
            remarks.join(", "),
        ]);
    }
    context.out.table(&rows);
    Ok(Exit::Done)
}

/// The points that are asked for. A machine that has neither living nor forgotten ones is not there.
async fn listed(repository: &Opened, arguments: &Points) -> Result<Vec<RecoveryPoint>> {
    let Points { machine, forgotten, .. } = arguments;
    let of = |forgotten| {
        let name = machine.as_ref().map(|machine| machine.name.clone());
        async move { repository.list(&PointFilter { machine: name, forgotten }).await }
    };
    let mut points = of(*forgotten).await?;
    let Some(machine) = machine else { return Ok(points) };
    points.retain(|point| machine.fits(point));
    if points.is_empty() {
        machine.is_there(&of(!forgotten).await?)?;
    }
    Ok(points)
}

/// The points whose time cannot be right, and why, of each lineage by itself.
pub fn suspects(points: &[RecoveryPoint], now: Timestamp) -> BTreeMap<PointId, String> {
    let mut lineages: BTreeMap<Lineage, Vec<&RecoveryPoint>> = BTreeMap::new();
    for point in points {
        lineages.entry(point.lineage()).or_default().push(point);
    }
    let found = lineages.into_values().flat_map(|points| suspect_times(&in_order(points), now));
    found.map(|(point, why)| (point.id, why)).collect()
}

/// The machine as it can be typed: with what tells it from others, where there are others of its name.
pub fn named(point: &RecoveryPoint, apart: &BTreeMap<Lineage, String>) -> String {
    match apart.get(&point.lineage()) {
        Some(qualifier) => format!("{qualifier}/{}", point.machine_name),
        None => point.machine_name.to_string(),
    }
}
