//! `windlass doctor`

use super::points::suspects;
use crate::cli::Doctor;
use crate::cli::Patience;
use crate::context::{Context, Exit};
use crate::open::{self, Access, Local};
use crate::output::table;
use crate::text::{counted, escaped};
use mover::{PointFilter, Repository as _, Result};
use proxy::Finding;
use std::collections::BTreeMap;
use tokio::process::Command;

pub async fn run(context: &Context, arguments: &Doctor) -> Result<Exit> {
    if let Some(address) = arguments.repository.as_ref().filter(|_| arguments.accept_rollback) {
        Local::accept_rollback(address.directory()?, context.pool.clone(), context.world.clone()).await?;
        context.out.document(&serde_json::json!({ "repository": address.to_string(), "rollback_accepted": true }));
        context.out.done(&format!("{address}: the rollback is accepted, and the repository is used as it is now"));
        return Ok(Exit::Done);
    }
    let mut findings = Vec::new();
    for (program, purpose) in PROGRAMS {
        findings.push(installed(program, purpose).await);
    }
    if let Some(address) = &arguments.repository {
        let (sound, remark) = match totals(context, address).await {
            Ok(found) => found,
            Err(error) => (false, error.message()),
        };
        findings.push(Finding { subject: address.to_string(), sound, remark });
    }
    if let Some(machine) = &arguments.machine {
        findings.extend(proxy::examine(machine, arguments.scratch.clone(), arguments.undo).await);
    }
    context.out.document(&BTreeMap::from([("findings", &findings)]));
    let mut rows = table(&["WHAT", "STATE", "REMARK"], &[]);
    for finding in &findings {
        let state = if finding.sound { "ok" } else { "look" };
        rows.add_row([escaped(&finding.subject), state.into(), escaped(&finding.remark)]);
    }
    context.out.table(&rows);
    Ok(if findings.iter().all(|finding| finding.sound) { Exit::Done } else { Exit::Warnings })
}

async fn installed(program: &str, purpose: &str) -> Finding {
    let version = Command::new(program).arg("--version").output().await;
    let version = version.ok().filter(|it| it.status.success()).and_then(|it| {
        let text = String::from_utf8_lossy(&it.stdout).into_owned();
        text.lines().next().map(str::to_owned)
    });
    let sound = version.is_some();
    let remark = version.unwrap_or_else(|| format!("not usable, and needed {purpose}: install qemu-utils"));
    Finding { subject: program.into(), sound, remark }
}

async fn totals(context: &Context, address: &crate::address::RepositoryAddress) -> Result<(bool, String)> {
    let repository = open::patiently(context, address, Access::Read, &Patience { wait: None }).await?;
    let stats = repository.stats().await;
    let points = repository.list(&PointFilter::default()).await;
    open::close(repository).await?;
    let stats = stats?;
    let suspects = suspects(&points?, context.world.now());
    let mut remark = format!("{}, {}", counted(stats.points, "point"), counted(stats.suspects, "damaged chunk"));
    if !suspects.is_empty() {
        remark += &format!(
            ", {} with a time that cannot be right: see `windlass points --suspect-times`",
            counted(suspects.len() as u64, "point")
        );
    }
    Ok((suspects.is_empty(), remark))
}

const PROGRAMS: [(&str, &str); 2] = [("qemu-img", "for qcow2 images"), ("qemu-nbd", "for qcow2 images")];
