//! Machines that proxies offer: `windlass machine list` and `show`.

use crate::cli::{AtNode, Place, Through};
use crate::context::{Context, Exit};
use crate::output::table;
use crate::site::Node;
use crate::text::{escaped, local_time, short, size, utc_time};
use comfy_table::Table;
use mover::{Examination, ExaminedDisk, JobId, Name, Progress, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use wire::control::{Job, MachinePlace, OfferedDisk, Told, machine_places};

/// A machine that is offered, as JSON.
#[derive(Serialize)]
pub struct MachineFields {
    machine: String,
    machine_id: Option<String>,
    owner: String,
    power: &'static str,
    proxies: Vec<String>,
    tags: Vec<String>,
    disks: Vec<DiskFields>,
}

#[derive(Serialize)]
struct DiskFields {
    name: String,
    size: Option<u64>,
}

/// What was found of a machine, as JSON.
#[derive(Serialize)]
struct ExaminationFields<'a> {
    machine: &'a str,
    machine_id: Option<String>,
    proxy: &'a str,
    power: &'static str,
    agent_answers: bool,
    agent: &'a str,
    last_point: Option<String>,
    last_time: Option<String>,
    disks: Vec<ExaminedFields<'a>>,
    remarks: &'a [String],
}

#[derive(Serialize)]
struct ExaminedFields<'a> {
    name: &'a str,
    size: Option<u64>,
    format: &'a str,
    /// Whether the next backup will read only what changed.
    incremental: bool,
    reason: &'a str,
}

pub async fn list(context: &Context, at: &AtNode, tag: Option<&Name>) -> Result<Exit> {
    let proxies = Node::at(context, at).await?.asked(async |jobs| jobs.proxies().await).await?;
    let mut places = machine_places(&proxies);
    places.retain(|place| tag.is_none_or(|tag| place.machine.tags.contains(tag)));
    context.out.document(&BTreeMap::from([("machines", places.iter().map(MachineFields::from).collect::<Vec<_>>())]));
    if places.is_empty() {
        context.out.line("no proxy offers such a machine");
    } else {
        context.out.table(&machine_rows(&places));
    }
    Ok(Exit::Done)
}

/// Machines for people.
pub fn machine_rows(places: &[MachinePlace]) -> Table {
    let mut rows = table(&["MACHINE", "OWNER", "POWER", "DISKS", "SIZE", "PROXIES", "TAGS"], &["DISKS", "SIZE"]);
    for MachinePlace { machine, owner, proxies } in places {
        let disks = &machine.disks;
        let sum = disks.iter().try_fold(0_u64, |sum, disk| Some(sum.saturating_add(disk.size?)));
        rows.add_row([
            machine.name.to_string(),
            owner.to_string(),
            machine.power.as_str().into(),
            if disks.is_empty() { "?".into() } else { disks.len().to_string() },
            sum.filter(|_| !disks.is_empty()).map_or("?".into(), size),
            joined(proxies),
            joined(&machine.tags),
        ]);
    }
    rows
}

/// Names for people.
pub fn joined(names: &[Name]) -> String {
    names.iter().map(Name::as_str).collect::<Vec<_>>().join(", ")
}

pub async fn show(context: &Context, name: &Name, through: &Through, place: &Place) -> Result<Exit> {
    let attempt = async || {
        let (node, repository) = Node::of(context, &place.repository, "this").await?;
        let job = Job::examine(JobId::random(&context.world), name.clone(), repository);
        let mut proxy = through.proxy.clone();
        let hear = |told: Told<'_>| {
            if let Told::Given(given) = told {
                proxy = Some(given.clone());
            }
        };
        let report = node.run(context, through, job, &Progress::default(), hear).await?;
        Ok((report.examination()?, proxy))
    };
    let (found, proxy) =
        place.patience.wait().retry(&context.stop, |busy| context.out.waits_for(busy), attempt).await?;
    // The node said who does it before it said anything else.
    print_examination(context, &found, proxy.as_ref().unwrap_or(&found.name));
    Ok(Exit::Done)
}

/// Prints what a proxy found of a machine.
pub fn print_examination(context: &Context, found: &Examination, proxy: &Name) {
    context.out.document(&ExaminationFields {
        machine: found.name.as_str(),
        machine_id: found.id.map(|id| id.to_string()),
        proxy: proxy.as_str(),
        power: found.power.as_str(),
        agent_answers: found.agent_answers,
        agent: &found.agent,
        last_point: found.last.map(|last| last.point.to_string()),
        last_time: found.last.map(|last| utc_time(last.time)),
        disks: found.disks.iter().map(ExaminedFields::from).collect(),
        remarks: &found.remarks,
    });
    let row = |name: &str, value: String| context.out.line(&format!("{name:<12}{value}"));
    row("machine", found.name.to_string());
    row("id", found.id.map_or("the hypervisor gave none".into(), |id| id.to_string()));
    row("proxy", proxy.to_string());
    row("power", found.power.as_str().into());
    row("agent", escaped(&found.agent));
    let last = found.last.map(|last| format!("{} of {}", short(last.point), local_time(last.time)));
    row("last point", last.unwrap_or_else(|| "none that a backup would continue".into()));
    for remark in &found.remarks {
        row("remark", escaped(remark));
    }
    context.out.line("");
    let mut rows = table(&["DISK", "SIZE", "FORMAT", "NEXT BACKUP", "BECAUSE"], &["SIZE"]);
    for disk in &found.disks {
        rows.add_row([
            disk.name.to_string(),
            disk.size.map_or("?".into(), size),
            escaped(&disk.format),
            if disk.incremental { "reads what changed" } else { "reads everything" }.into(),
            escaped(&disk.reason),
        ]);
    }
    context.out.table(&rows);
}

impl From<&MachinePlace> for MachineFields {
    fn from(MachinePlace { machine, owner, proxies }: &MachinePlace) -> Self {
        let texts = |names: &[Name]| names.iter().map(ToString::to_string).collect();
        let disk = |disk: &OfferedDisk| DiskFields { name: disk.name.to_string(), size: disk.size };
        Self {
            machine: machine.name.to_string(),
            machine_id: machine.id.map(|id| id.to_string()),
            owner: owner.to_string(),
            power: machine.power.as_str(),
            proxies: texts(proxies),
            tags: texts(&machine.tags),
            disks: machine.disks.iter().map(disk).collect(),
        }
    }
}

impl<'a> From<&'a ExaminedDisk> for ExaminedFields<'a> {
    fn from(disk: &'a ExaminedDisk) -> Self {
        let (name, size, format) = (disk.name.as_str(), disk.size, disk.format.as_str());
        Self { name, size, format, incremental: disk.incremental, reason: &disk.reason }
    }
}
