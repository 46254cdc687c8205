//! `windlass proxy`

use super::machine::{MachineFields, joined, machine_rows};
use crate::cli::ProxyAction;
use crate::context::{Context, Exit};
use crate::output::table;
use crate::site::Node;
use crate::text::{ago, counted};
use mover::{Error, Name, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use wire::control::{ProxyStatus, machine_places};

/// A proxy as JSON.
#[derive(Serialize)]
struct ProxyFields<'a> {
    proxy: &'a str,
    owner: &'a str,
    labels: Vec<&'a str>,
    /// False when its connection was lost a short time ago.
    attends: bool,
    /// Milliseconds since it attends, or since it was lost.
    since_ms: u64,
    /// Jobs that are not over.
    jobs: u32,
    machines: Vec<MachineFields>,
}

pub async fn run(context: &Context, action: &ProxyAction) -> Result<Exit> {
    match action {
        ProxyAction::List { at } => list(context, Node::at(context, at).await?).await,
        ProxyAction::Show { name, at } => show(context, Node::at(context, at).await?, name).await,
    }
}

async fn list(context: &Context, node: Node) -> Result<Exit> {
    let proxies = node.asked(async |jobs| jobs.proxies().await).await?;
    context.out.document(&BTreeMap::from([("proxies", proxies.iter().map(ProxyFields::from).collect::<Vec<_>>())]));
    if proxies.is_empty() {
        context.out.line("no proxy attends this node");
        return Ok(Exit::Done);
    }
    let mut rows = table(&["PROXY", "OWNER", "STATE", "SINCE", "LABELS", "JOBS", "MACHINES"], &["JOBS", "MACHINES"]);
    for proxy in &proxies {
        rows.add_row([
            proxy.name.to_string(),
            proxy.owner.to_string(),
            state(proxy).into(),
            ago(proxy.since_ms),
            joined(&proxy.labels),
            proxy.jobs.to_string(),
            proxy.machines.len().to_string(),
        ]);
    }
    context.out.table(&rows);
    Ok(Exit::Done)
}

async fn show(context: &Context, node: Node, name: &Name) -> Result<Exit> {
    let proxies = node.asked(async |jobs| jobs.proxies().await).await?;
    let Some(proxy) = proxies.iter().find(|proxy| proxy.name == *name) else {
        return Err(Error::not_found(format!("proxy {name} does not attend this node"))
            .hint("`windlass proxy list` shows who does; start windlass-proxy on its host"));
    };
    context.out.document(&ProxyFields::from(proxy));
    let row = |name: &str, value: String| context.out.line(&format!("{name:<10}{value}"));
    row("proxy", proxy.name.to_string());
    row("owner", proxy.owner.to_string());
    row("state", format!("{} since {}", state(proxy), ago(proxy.since_ms)));
    row("labels", joined(&proxy.labels));
    row("jobs", counted(proxy.jobs.into(), "job") + " not over");
    context.out.line("");
    context.out.table(&machine_rows(&machine_places(std::slice::from_ref(proxy))));
    Ok(Exit::Done)
}

const fn state(proxy: &ProxyStatus) -> &'static str {
    if proxy.attends { "attends" } else { "away" }
}

impl<'a> From<&'a ProxyStatus> for ProxyFields<'a> {
    fn from(proxy: &'a ProxyStatus) -> Self {
        Self {
            proxy: proxy.name.as_str(),
            owner: proxy.owner.as_str(),
            labels: proxy.labels.iter().map(Name::as_str).collect(),
            attends: proxy.attends,
            since_ms: proxy.since_ms,
            jobs: proxy.jobs,
            machines: machine_places(std::slice::from_ref(proxy)).iter().map(MachineFields::from).collect(),
        }
    }
}
