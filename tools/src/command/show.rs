//! `windlass show`

mod log;

use super::points::PointFields;
use crate::cli::Show;
use crate::context::{Context, Exit};
use crate::open::{self, Access, Opened};
use crate::output::table;
use crate::text::{escaped, local_time, size, utc_time};
use mover::labels::of_tags;
use mover::{
    DiskRecord, Manifest, PointFilter, ReadSession as _, RecoveryPoint, Repository as _, Result, Selector, select,
};
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    point: PointFields,
    parent: Option<String>,
    consistency: &'static str,
    begin_time: String,
    end_time: String,
    labels: &'a BTreeMap<String, String>,
    producer: &'a str,
    disks: Vec<Disk<'a>>,
    attachments: Vec<Attached<'a>>,
}

#[derive(Serialize)]
struct Disk<'a> {
    name: &'a str,
    id: String,
    size: u64,
    format: &'a str,
    format_options: &'a str,
    change_tracking: &'static str,
    reason: &'a str,
    checkpoint: Option<String>,
    granularity: u32,
    bytes_read: u64,
    bytes_changed: u64,
    bytes_audited: u64,
    chain: Vec<&'a str>,
    bus: &'a str,
    serial: &'a str,
    boot_order: u32,
    logical_sector_bytes: u32,
    physical_sector_bytes: u32,
    discard_bytes: u32,
}

#[derive(Serialize)]
struct Attached<'a> {
    kind: &'a str,
    name: &'a str,
    size: u64,
}

pub async fn run(context: &Context, arguments: &Show) -> Result<Exit> {
    let repository =
        open::patiently(context, &arguments.place.repository, Access::Read, &arguments.place.patience).await?;
    let Some(point) = &arguments.point else {
        let shown = log::show(context, &repository, arguments.after).await;
        open::close(repository).await?;
        return shown.map(|()| Exit::Done);
    };
    let found = find(&repository, point).await;
    open::close(repository).await?;
    let (point, manifest) = found?;
    context.out.document(&Shown {
        point: (&point).into(),
        parent: manifest.parent.map(|parent| parent.to_string()),
        consistency: manifest.consistency.as_str(),
        begin_time: utc_time(manifest.begin_time),
        end_time: utc_time(manifest.end_time),
        labels: &manifest.labels,
        producer: &manifest.producer,
        disks: manifest.disks.iter().map(disk_fields).collect(),
        attachments: manifest
            .attachments
            .iter()
            .map(|it| Attached { kind: it.kind.as_str(), name: &it.name, size: it.bytes })
            .collect(),
    });
    print(context, &point, &manifest);
    Ok(Exit::Done)
}

async fn find(repository: &Opened, selector: &Selector) -> Result<(RecoveryPoint, Manifest)> {
    let points = repository.list(&PointFilter::default()).await?;
    let mut point = select(&points, selector)?.clone();
    let manifest = repository.read(&[point.id]).await?.manifest(point.id).await?;
    // Earlier versions kept tags in the manifest alone.
    for (key, value) in of_tags(&manifest.tags) {
        point.labels.entry(key).or_insert(value);
    }
    Ok((point, manifest))
}

fn disk_fields(disk: &DiskRecord) -> Disk<'_> {
    Disk {
        name: disk.name.as_str(),
        id: disk.id.to_string(),
        size: disk.size,
        format: &disk.format,
        format_options: &disk.format_options,
        change_tracking: disk.tracking.mode.as_str(),
        reason: &disk.tracking.reason,
        checkpoint: disk.tracking.checkpoint.map(|id| id.to_string()),
        granularity: disk.tracking.granularity,
        bytes_read: disk.tracking.bytes_read,
        bytes_changed: disk.tracking.bytes_changed,
        bytes_audited: disk.tracking.bytes_audited,
        chain: disk.chain.iter().map(|layer| layer.path.as_str()).collect(),
        bus: &disk.bus,
        serial: &disk.serial,
        boot_order: disk.boot_order,
        logical_sector_bytes: disk.logical_sector_bytes,
        physical_sector_bytes: disk.physical_sector_bytes,
        discard_bytes: disk.discard_bytes,
    }
}

fn print(context: &Context, point: &RecoveryPoint, manifest: &Manifest) {
    let out = &context.out;
    let row = |name: &str, value: String| out.line(&format!("{name:<13}{value}"));
    row("point", manifest.point.to_string());
    row("machine", format!("{} ({})", manifest.machine_name, manifest.machine));
    let set = point.set_time().map_or(String::new(), |_| {
        format!(" (set by an administrator; the clock said {})", local_time(point.snapshot_time))
    });
    row("time", local_time(point.time()) + &set);
    if let Some(holder) = &point.holder {
        row("owner", point.owner_name.as_ref().map_or("the site".into(), ToString::to_string));
        row("committed by", holder.to_string());
    }
    row("committed", local_time(point.commit_time));
    row("consistency", manifest.consistency.as_str().into());
    row("parent", manifest.parent.map_or("none".into(), |parent| parent.to_string()));
    let tags: Vec<&str> = point.tags().collect();
    if !tags.is_empty() {
        row("tags", escaped(&tags.join(", ")));
    }
    for (key, value) in &manifest.labels {
        row("label", escaped(&format!("{key}={value}")));
    }
    row("size", format!("{}, {} of it new", size(manifest.bytes_logical()), size(manifest.bytes_new)));
    row("made by", escaped(&manifest.producer));
    out.line("");
    let right = ["SIZE", "READ", "CHANGED"];
    let mut rows = table(&["DISK", "SIZE", "FORMAT", "READ", "CHANGED", "TRACKING", "REASON"], &right);
    for disk in &manifest.disks {
        rows.add_row([
            disk.name.to_string(),
            size(disk.size),
            escaped(&disk.format),
            size(disk.tracking.bytes_read),
            size(disk.tracking.bytes_changed),
            disk.tracking.mode.as_str().into(),
            escaped(&disk.tracking.reason),
        ]);
    }
    out.table(&rows);
    if !manifest.attachments.is_empty() {
        out.line("");
        let mut rows = table(&["ATTACHED", "NAME", "SIZE"], &["SIZE"]);
        for it in &manifest.attachments {
            rows.add_row([it.kind.to_string(), escaped(&it.name), size(it.bytes)]);
        }
        out.table(&rows);
    }
}
