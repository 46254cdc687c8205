//! Putting the nodes of a snapshot into a running QEMU, and taking them out again.
//!
//! What is to be taken out is read from QEMU itself, so it does not matter who put it there, or how far that came: the
//! end of a session, the watchdog of one that was killed, the next start and `doctor` all call [`undo`].

use super::hanging::hanging_folder;
use super::inventory::{Node, object_place};
use super::names::{Part, SessionNumber};
use crate::qmp::{Monitor, QmpError};
use serde::Deserialize;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// What Windlass has in a QEMU, of one session or of several.
#[derive(Debug, Default)]
pub struct Traces {
    exports: Vec<String>,
    foreign_exports: bool,
    nodes: BTreeSet<String>,
    /// Place of a device, and the copier that it uses.
    devices: Vec<(String, String)>,
    /// The node below each copier.
    below: BTreeMap<String, String>,
    /// Node and name of bitmaps that belong to a session.
    bitmaps: Vec<(String, String)>,
    /// Sets of open files.
    files: Vec<u64>,
    /// True when the NBD server is ours.
    server: bool,
    sessions: BTreeSet<SessionNumber>,
}

#[derive(Deserialize)]
struct Export {
    id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Drive {
    qdev: Option<String>,
    inserted: Option<Node>,
}

#[derive(Deserialize)]
struct Graph {
    nodes: Vec<GraphNode>,
    edges: Vec<Edge>,
}

#[derive(Deserialize)]
struct GraphNode {
    id: u64,
    name: String,
}

#[derive(Deserialize)]
struct Edge {
    parent: u64,
    child: u64,
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct FileSet {
    fdset_id: u64,
    fds: Vec<OpenFile>,
}

#[derive(Deserialize)]
struct OpenFile {
    opaque: Option<String>,
}

impl Traces {
    /// Looks for them: those of `only`, or of every session.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub async fn look(monitor: &mut Monitor, only: Option<SessionNumber>) -> Result<Self, QmpError> {
        let mut traces = Self::default();
        let counts = |name: &str| SessionNumber::of(name).filter(|it| only.is_none_or(|only| only == *it));
        let exports: Vec<Export> = monitor.ask("query-block-exports", json!({})).await?;
        for Export { id } in exports {
            match counts(&id) {
                Some(session) => {
                    traces.sessions.insert(session);
                    traces.exports.push(id);
                }
                None => traces.foreign_exports = true,
            }
        }
        for Node { node_name, dirty_bitmaps } in Node::all(monitor).await? {
            let Some(node) = node_name else { continue };
            for bitmap in dirty_bitmaps.iter().filter(|it| counts(&it.name).is_some() && counts(&node).is_none()) {
                traces.bitmaps.push((node.clone(), bitmap.name.clone()));
                traces.sessions.extend(counts(&bitmap.name));
            }
            if let Some(session) = counts(&node) {
                traces.sessions.insert(session);
                traces.nodes.insert(node);
            }
        }
        let files: Vec<FileSet> = monitor.ask("query-fdsets", json!({})).await?;
        for set in files {
            for opaque in set.fds.iter().filter_map(|file| file.opaque.as_deref()) {
                let Some(session) = counts(opaque) else { continue };
                traces.sessions.insert(session);
                traces.files.push(set.fdset_id);
                traces.server |= session.is_part(opaque, Part::Server);
            }
        }
        if traces.nodes.is_empty() {
            return Ok(traces);
        }
        let drives: Vec<Drive> = monitor.ask("query-block", json!({})).await?;
        for Drive { qdev, inserted } in drives {
            let node = inserted.and_then(|it| it.node_name);
            if let (Some(qdev), Some(node)) = (qdev, node.filter(|it| traces.nodes.contains(it))) {
                traces.devices.push((object_place(&qdev), node));
            }
        }
        let graph: Graph = monitor.ask("x-debug-query-block-graph", json!({})).await?;
        let names: BTreeMap<u64, &str> = graph.nodes.iter().map(|it| (it.id, it.name.as_str())).collect();
        for Edge { parent, child, name } in &graph.edges {
            let (Some(parent), Some(child)) = (names.get(parent), names.get(child)) else { continue };
            if name == "file" && traces.nodes.contains(*parent) {
                traces.below.insert((*parent).to_owned(), (*child).to_owned());
            }
        }
        Ok(traces)
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// The sessions that left them.
    pub fn sessions(&self) -> impl Iterator<Item = SessionNumber> {
        self.sessions.iter().copied()
    }

    /// Number of disks that can be read as they were.
    pub fn views(&self) -> usize {
        self.parts(Part::View).count()
    }

    fn parts(&self, part: Part) -> impl Iterator<Item = &String> {
        self.nodes.iter().filter(move |node| self.sessions.iter().any(|it| it.is_part(node, part)))
    }
}

/// Takes everything out that `traces` lists: the exports, the nodes below the devices while the machine stands still,
/// scratch space, and bitmaps that only belonged to a session. Goes on after a failure, so that as much as possible goes.
/// If the machine is `running`, a watchdog must know that it may stand still meanwhile.
///
/// # Errors
/// The first failure; `Hangs` before anything is begun.
pub async fn undo(monitor: &mut Monitor, traces: &Traces, running: bool) -> Result<(), QmpError> {
    if !traces.devices.is_empty()
        && let Some(process) = monitor.process()
        && let Some(folder) = hanging_folder(process).await
    {
        return Err(QmpError::Hangs { folder });
    }
    let mut failed = None;
    let mut note = |done: Result<(), QmpError>| {
        if let Err(error) = done {
            failed.get_or_insert(error);
        }
    };
    note(end_exports(monitor, &traces.exports).await);
    if traces.server && !traces.foreign_exports {
        // Refused when it was killed before it had started.
        note(match monitor.tell("nbd-server-stop", json!({})).await {
            Err(error) if error.is_refusal() => Ok(()),
            done => done,
        });
    }
    if traces.devices.is_empty() {
        note(remove_copiers(monitor, traces).await);
    } else {
        match Pause::begin(monitor, running).await {
            Ok(pause) => {
                note(remove_copiers(monitor, traces).await);
                note(pause.end(monitor).await);
            }
            Err(error) => note(Err(error)),
        }
    }
    for node in traces.parts(Part::Scratch).chain(traces.parts(Part::Marker)) {
        note(monitor.tell("blockdev-del", json!({"node-name": node})).await);
    }
    for set in &traces.files {
        note(monitor.tell("remove-fd", json!({"fdset-id": set})).await);
    }
    for (node, name) in &traces.bitmaps {
        note(monitor.tell("block-dirty-bitmap-remove", json!({"node": node, "name": name})).await);
    }
    failed.map_or(Ok(()), Err)
}

async fn end_exports(monitor: &mut Monitor, exports: &[String]) -> Result<(), QmpError> {
    for id in exports {
        // Gone already, or going.
        match monitor.tell("block-export-del", json!({"id": id, "mode": "hard"})).await {
            Err(error) if !error.is_refusal() => return Err(error),
            _ => {}
        }
    }
    let deadline = Instant::now() + EXPORT_TIMEOUT;
    loop {
        let left: Vec<Export> = monitor.ask("query-block-exports", json!({})).await?;
        if !left.iter().any(|it| exports.contains(&it.id)) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(QmpError::Late { command: "block-export-del".into(), limit: EXPORT_TIMEOUT });
        }
        sleep(EXPORT_POLL).await;
    }
}

async fn remove_copiers(monitor: &mut Monitor, traces: &Traces) -> Result<(), QmpError> {
    for node in traces.parts(Part::View) {
        monitor.tell("blockdev-del", json!({"node-name": node})).await?;
    }
    for (device, copier) in &traces.devices {
        if let Some(below) = traces.below.get(copier) {
            monitor.tell("qom-set", json!({"path": device, "property": "drive", "value": below})).await?;
        }
    }
    for node in traces.parts(Part::Copier) {
        monitor.tell("blockdev-del", json!({"node-name": node})).await?;
    }
    Ok(())
}

/// A machine that stands still because we stopped its processors; one that stood still before is left so.
#[derive(Debug)]
pub struct Pause {
    ours: bool,
    /// When it was stopped.
    pub since: Instant,
}

#[derive(Deserialize)]
struct Status {
    status: String,
    running: bool,
}

impl Pause {
    /// Stops the machine, if `running` says that it runs.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub async fn begin(monitor: &mut Monitor, running: bool) -> Result<Self, QmpError> {
        let since = Instant::now();
        if running && let Err(error) = monitor.tell("stop", json!({})).await {
            // It may stand still all the same, later: QEMU carries out what it was told, one after the other.
            if !error.is_refusal() {
                let _ = monitor.tell("cont", json!({})).await;
            }
            return Err(error);
        }
        Ok(Self { ours: running, since })
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub async fn end(self, monitor: &mut Monitor) -> Result<(), QmpError> {
        if self.ours { monitor.tell("cont", json!({})).await } else { Ok(()) }
    }
}

/// Whether the machine's processors run. One that somebody paused is not to be set going.
///
/// # Errors
/// See [`QmpError`].
pub async fn is_running(monitor: &mut Monitor) -> Result<bool, QmpError> {
    Ok(monitor.ask::<Status>("query-status", json!({})).await?.running)
}

/// The state in which the machine is, as QEMU calls it.
///
/// # Errors
/// See [`QmpError`].
pub async fn run_state(monitor: &mut Monitor) -> Result<String, QmpError> {
    Ok(monitor.ask::<Status>("query-status", json!({})).await?.status)
}

/// For exports to end: their connections are closed, and requests under way are waited for.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(30);
const EXPORT_POLL: Duration = Duration::from_millis(5);
