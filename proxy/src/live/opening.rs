//! From a machine that runs to a snapshot of it: see the text of the module above.

use super::bitmaps::{Bitmaps, Plan};
use super::found::Files;
use super::graph::{Pause, Traces, is_running};
use super::inventory::{Inventory, LiveDisk};
use super::names::{Part, SessionNumber};
use super::placed::{Placed, Planned, undo_leftovers};
use super::quiesce::{Guest, Rested};
use super::scratch::{Scratch, usual_folder};
use super::session::LiveSession;
use super::watchdog::{Held, Watchdog, Word, is_held};
use super::{QemuMachine, agent_socket};
use crate::nbd::{CONNECTIONS_MAX, NbdDisk, Patience};
use crate::qmp::{Monitor, QmpError};
use crate::scratch::scratch_folder;
use crate::source::Evidence;
use bytes::Bytes;
use chunker::GRID_BYTES;
use futures::future::join_all;
use mover::{Error, Past, Result, Snapshot, Timestamp, Wanted, World, blocking};
use serde_json::{Value, json};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream as StdStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;

/// A snapshot on its way.
#[derive(Debug)]
pub struct Opening {
    placed: Placed,
    world: World,
    guest: Guest,
    sockets: Vec<StdStream>,
    warnings: Vec<String>,
    moment: Option<Moment>,
}

/// The moment of the snapshot.
#[derive(Debug)]
struct Moment {
    time: Timestamp,
    paused: Duration,
    rested: Rested,
}

impl Opening {
    /// Does everything that is slow. The guest notices nothing of it.
    ///
    /// # Errors
    /// See [`mover::MachineSource::open`]. What was put into QEMU is taken out again.
    pub async fn prepare(machine: &QemuMachine, wanted: &Wanted, past: &impl Past) -> Result<Self> {
        let path = machine.address.socket.clone();
        let mut monitor = Monitor::connect(&path).await?;
        let about = |error: QmpError| error.about(&path);
        let mut warnings = Vec::new();
        refuse_what_harms(&mut monitor, &path).await?;
        settle_leftovers(&mut monitor, machine, &mut warnings).await?;
        let inventory = Inventory::take(&mut monitor).await.map_err(about)?;
        if inventory.disks.is_empty() {
            return Err(Error::usage("the machine has no disk that can be backed up").context(path.display()));
        }
        warnings.extend(inventory.left_out.iter().map(|it| format!("not backed up: {it}")));
        let agent = agent_socket(&mut monitor, &machine.address).await.map_err(about)?;
        let guest = Guest::meet(agent.as_deref(), wanted.quiesce, &machine.world).await?;
        let held = Held::begin(&machine.world)?;
        let watchdog = Watchdog::start(&held, &monitor, guest.agent(), FREEZE_LIMIT).await?;
        let placed = Placed { path: path.clone(), monitor, held, watchdog, disks: Vec::new() };
        let world = machine.world.clone();
        let mut opening = Self { placed, world, guest, sockets: Vec::new(), warnings, moment: None };
        match opening.put_in(inventory, machine, wanted, past).await {
            Ok(()) => Ok(opening),
            Err(error) => Err(opening.abandon(error).await),
        }
    }

    /// Scratch space, the server, and the bitmaps' past.
    async fn put_in(
        &mut self,
        inventory: Inventory,
        machine: &QemuMachine,
        wanted: &Wanted,
        past: &impl Past,
    ) -> Result<()> {
        let session = self.placed.held.number;
        let path = self.placed.path.clone();
        let about = |error: QmpError| error.about(&path);
        let plan =
            Plan { repository: wanted.repository, wish: wanted.wish, session, monitor: &path, world: &machine.world };
        let folder = machine.scratch.clone().unwrap_or_else(usual_folder);
        let process = self.placed.monitor.process();
        for (at, disk) in inventory.disks.into_iter().enumerate() {
            let name = disk.name.clone();
            let then = past.disk(&name).await?;
            let checkpoint = then.as_ref().and_then(|it| it.tracking.checkpoint);
            let witness = then.and_then(|it| Evidence::read(&it.format_options).ok()).and_then(|it| it.witness);
            let bitmaps = Bitmaps::plan(&mut self.placed.monitor, &disk, (checkpoint, witness), &plan, past).await;
            let bitmaps = bitmaps.map_err(|error| error.on_disk(&name))?;
            let (place, size) = (folder.clone(), disk.image.layer.virtual_size);
            let scratch = blocking(move || Scratch::make(&place, size)).await.map_err(|error| {
                Error::source("scratch space cannot be made").because(error).context(folder.display()).hint(
                    "give a folder on a local disk with --scratch, with room for what the guest overwrites meanwhile",
                )
            })?;
            scratch.hand_over(&mut self.placed.monitor, session, at).await.map_err(about)?;
            let (looked, scratch) = (disk.clone(), Arc::new(scratch));
            let files = blocking(move || Files::look(&looked, process)).await;
            self.placed.disks.push(Planned { disk, files, bitmaps, scratch });
        }
        self.start_server().await?;
        self.make_witnesses().await
    }

    /// Starts QEMU's NBD server on a socket of ours without a name, on which we wait already.
    async fn start_server(&mut self) -> Result<()> {
        let failed = |error: io::Error| Error::internal("no socket can be made").because(error);
        let folder = scratch_folder().map_err(failed)?;
        let place = folder.path().join("nbd");
        let listener = UnixListener::bind(&place).map_err(failed)?;
        // One more for each witness to be made.
        let marks = self.placed.disks.iter().filter(|it| it.bitmaps.witness_to_make().is_some()).count();
        let each = connections_for(self.placed.disks.len());
        for _ in 0..self.placed.disks.len() * each + marks {
            self.sockets.push(StdStream::connect(&place).map_err(failed)?);
        }
        let name = self.placed.held.number.to_string();
        let got = self.placed.monitor.hand_over("getfd", json!({"fdname": name}), listener.as_fd()).await;
        got.map_err(|error| error.about(&self.placed.path))?;
        let server = json!({"addr": {"type": "fd", "data": {"str": name}}, "max-connections": 0});
        let mark = self.placed.held.number.part(Part::Server, 0);
        let marked = self.placed.monitor.add_file(&mark, listener.as_fd()).await;
        let marked = marked.map_err(|error| self.placed.about(error))?;
        let started = self.placed.monitor.tell("nbd-server-start", server).await;
        if started.as_ref().is_err_and(QmpError::is_refusal) {
            // It is not ours, so nobody may stop it for us.
            let unmark = json!({"fdset-id": marked});
            self.placed.monitor.tell("remove-fd", unmark).await.map_err(|error| self.placed.about(error))?;
        }
        started.map_err(|error| match error {
            QmpError::Refused { why, .. } if why.contains("already running") => {
                Error::busy("this QEMU runs an NBD server of somebody else").context(self.placed.path.display()).hint(
                    "another product may be backing the machine up; `nbd-server-stop` in the monitor ends one that was \
                     forgotten",
                )
            }
            error => error.about(&self.placed.path),
        })
    }

    /// Makes the witnesses that are missing. The mark is made on a node without content, because no bitmap can be marked
    /// without writing to its node.
    async fn make_witnesses(&mut self) -> Result<()> {
        let (session, path) = (self.placed.held.number, self.placed.path.clone());
        let about = |error: QmpError| error.about(&path);
        for at in 0..self.placed.disks.len() {
            let Some(witness) = self.placed.disks[at].bitmaps.witness_to_make() else { continue };
            let marker = session.part(Part::Marker, at);
            let mark = session.part(Part::Marks, at);
            let node = json!({"driver": "null-co", "node-name": marker, "size": witness.size});
            self.placed.monitor.tell("blockdev-add", node).await.map_err(about)?;
            let bitmap = json!({"node": marker, "name": mark, "granularity": GRID_BYTES});
            self.placed.monitor.tell("block-dirty-bitmap-add", bitmap).await.map_err(about)?;
            let add = json!({"type": "nbd", "id": marker, "node-name": marker, "name": marker, "writable": true});
            self.placed.monitor.tell("block-export-add", add).await.map_err(about)?;
            let socket = self.sockets.pop().into_iter().collect();
            let disk = open_export(socket, marker.clone(), Vec::new()).await;
            let disk = disk.map_err(|error| error.context(path.display()))?;
            for extent in witness.mark(GRID_BYTES).iter() {
                let zeroes = Bytes::from(vec![0; extent.length as usize]);
                let written = disk.write(extent.offset, zeroes).await;
                written
                    .map_err(|error| Error::source("a mark cannot be made").because(error).context(path.display()))?;
            }
            drop(disk);
            self.placed.monitor.tell("block-export-del", json!({"id": marker, "mode": "hard"})).await.map_err(about)?;
            self.placed.disks[at]
                .bitmaps
                .make_witness(&mut self.placed.monitor, &marker, &mark)
                .await
                .map_err(about)?;
        }
        Ok(())
    }

    /// Freezes the guest, puts the snapshot below its disks, and thaws it.
    ///
    /// # Errors
    /// `Quiesce`, `Source`. The guest is thawed and goes on; what was put in is for [`Self::abandon`] to take out.
    pub async fn switch(&mut self) -> Result<()> {
        let rest = self.guest.freeze(&mut self.placed.watchdog, FREEZE_LIMIT - FREEZE_MARGIN).await?;
        let switched = self.stop_and_switch().await;
        let rested = self.guest.thaw(rest, &mut self.placed.watchdog).await;
        let ((time, paused), rested) = (switched?, rested?);
        self.moment = Some(Moment { time, paused, rested });
        Ok(())
    }

    async fn stop_and_switch(&mut self) -> Result<(Timestamp, Duration)> {
        let running = is_running(&mut self.placed.monitor).await.map_err(|error| self.placed.about(error))?;
        if running {
            self.placed.watchdog.tell(Word::Stopping).await?;
        }
        let pause = Pause::begin(&mut self.placed.monitor, running).await;
        let pause = pause.map_err(|error| self.placed.about(error))?;
        let (since, time) = (pause.since, self.world.now());
        let switched = put_below(&mut self.placed.monitor, self.placed.held.number, &self.placed.disks).await;
        let going = pause.end(&mut self.placed.monitor).await;
        let paused = if running { since.elapsed() } else { Duration::ZERO };
        if going.is_ok() {
            self.placed.watchdog.tell(Word::Going).await?;
        }
        switched.and_then(|()| going.map_err(|error| self.placed.about(error)))?;
        Ok((time, paused))
    }

    /// Connects to the views of the disks.
    ///
    /// # Errors
    /// `Source`. What was put in is taken out again.
    pub async fn connect(mut self) -> Result<LiveSession> {
        match self.connections().await {
            Ok(disks) => {
                let Moment { time, paused, rested } = self.moment.take().expect("switched before");
                let mut snapshot = Snapshot::at(time);
                snapshot.consistency = rested.consistency;
                snapshot.frozen = rested.duration;
                snapshot.paused = paused;
                snapshot.guest_clock_offset_ns = self.guest.clock_offset_ns;
                snapshot.warnings = std::mem::take(&mut self.warnings);
                snapshot.warnings.extend(rested.warning.map(|why| format!("the point is crash consistent: {why}")));
                Ok(LiveSession::new(self.placed, disks, snapshot))
            }
            Err(error) => Err(self.abandon(error).await),
        }
    }

    async fn connections(&mut self) -> Result<Vec<NbdDisk>> {
        let (session, each) = (self.placed.held.number, connections_for(self.placed.disks.len()));
        let mut opened = Vec::new();
        for (at, planned) in self.placed.disks.iter().enumerate() {
            let export = session.part(Part::Export, at);
            let add = json!({
                "type": "nbd", "id": export, "node-name": session.part(Part::View, at), "name": export,
                "writable": true, "bitmaps": planned.bitmaps.exported(),
            });
            self.placed.monitor.tell("block-export-add", add).await.map_err(|error| error.about(&self.placed.path))?;
            let copies = (0..planned.bitmaps.copied.len()).map(|at| planned.bitmaps.copy(at)).collect();
            let sockets = self.sockets.drain(..each.min(self.sockets.len())).collect();
            opened.push(open_export(sockets, export, copies));
        }
        // All at once: QEMU closes connections that say nothing for long.
        let opened = join_all(opened).await;
        self.sockets.clear();
        let named = opened.into_iter().zip(&self.placed.disks);
        named.map(|(disk, planned)| disk.map_err(|error| error.on_disk(&planned.disk.name))).collect()
    }

    /// Takes out again what was put in, and gives `error`, the reason.
    pub async fn abandon(mut self, error: Error) -> Error {
        self.sockets.clear();
        if let Err(second) = self.placed.abandon().await {
            tracing::warn!(error = %second, "the snapshot could not be taken out of QEMU");
        }
        error
    }
}

/// Puts copiers and views below all devices, and begins and copies the bitmaps, while the machine stands still.
async fn put_below(monitor: &mut Monitor, session: SessionNumber, disks: &[Planned]) -> Result<()> {
    for (at, Planned { disk, .. }) in disks.iter().enumerate() {
        put_one_below(monitor, session, at, disk).await.map_err(|error| {
            Error::source(error.to_string()).on_disk(&disk.name).hint(
                "this device or driver does not let a snapshot be put below it while it runs; back it up when the machine \
                 is shut down",
            )
        })?;
    }
    let actions: Vec<Value> = disks.iter().flat_map(|planned| planned.bitmaps.actions()).collect();
    if actions.is_empty() {
        return Ok(());
    }
    monitor.tell("transaction", json!({"actions": actions})).await.map_err(|error| Error::source(error.to_string()))
}

async fn put_one_below(
    monitor: &mut Monitor,
    session: SessionNumber,
    at: usize,
    disk: &LiveDisk,
) -> Result<(), QmpError> {
    let (copier, view) = (session.part(Part::Copier, at), session.part(Part::View, at));
    let node = json!({
        "driver": "copy-before-write", "node-name": copier, "file": disk.node,
        "target": session.part(Part::Scratch, at), "on-cbw-error": "break-snapshot",
        "cbw-timeout": COPY_LIMIT.as_secs(),
    });
    monitor.tell("blockdev-add", node).await?;
    monitor.tell("qom-set", json!({"path": disk.device, "property": "drive", "value": copier})).await?;
    // Without `discard` QEMU takes what is given back, and keeps it.
    let view = json!({"driver": "snapshot-access", "node-name": view, "file": copier, "discard": "unmap"});
    monitor.tell("blockdev-add", view).await
}

/// Refuses a QEMU that the end of an NBD connection can end: 7.2.22 aborts (`nbd_blockdev_client_closed`) when the client
/// of a disk in an iothread goes, and nobody can keep a killed backup's connections open.
async fn refuse_what_harms(monitor: &mut Monitor, path: &Path) -> Result<()> {
    let (major, minor) = monitor.version();
    if major >= SOUND_WITH_IOTHREADS {
        return Ok(());
    }
    let threads: Vec<Value> = monitor.ask("query-iothreads", json!({})).await.map_err(|error| error.about(path))?;
    if threads.is_empty() {
        return Ok(());
    }
    Err(Error::usage(format!("QEMU {major}.{minor} with iothreads may end when a backup ends"))
        .context(path.display())
        .hint("run the machine on QEMU 10 or without iothreads, or back it up when it is shut down"))
}

/// Takes out what a run left that was killed together with its watchdog.
async fn settle_leftovers(monitor: &mut Monitor, machine: &QemuMachine, warnings: &mut Vec<String>) -> Result<()> {
    let path = &machine.address.socket;
    let traces = Traces::look(monitor, None).await.map_err(|error| error.about(path))?;
    if traces.is_empty() {
        return Ok(());
    }
    if traces.sessions().any(is_held) {
        return Err(Error::busy("another backup of this machine is running").context(path.display()));
    }
    undo_leftovers(monitor, path, &traces, &machine.world).await?;
    warnings.push("an earlier backup was killed and had left its snapshot in QEMU; it is removed now".to_owned());
    Ok(())
}

async fn open_export(sockets: Vec<StdStream>, export: String, bitmaps: Vec<String>) -> Result<NbdDisk> {
    let sockets =
        sockets.into_iter().map(|socket| socket.set_nonblocking(true).and_then(|()| UnixStream::from_std(socket)));
    let failed = |error: io::Error| Error::internal("a socket cannot be used").because(error);
    let sockets = sockets.collect::<io::Result<Vec<_>>>().map_err(failed)?;
    let opened = NbdDisk::over(sockets, &export, &bitmaps, Patience::own()).await;
    opened.map_err(|error| Error::source("QEMU does not serve the snapshot").because(error))
}

/// Connections for each of so many disks; all of them wait in one queue of a socket.
const fn connections_for(disks: usize) -> usize {
    if disks * CONNECTIONS_MAX <= CONNECTIONS_ALL { CONNECTIONS_MAX } else { 1 }
}

/// Major version of the first QEMU that was tried with iothreads and is sound.
const SOUND_WITH_IOTHREADS: u32 = 10;
/// How long the guest may stand still. The watchdog enforces it.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);
/// What is left of that for the switch and for thawing.
const FREEZE_MARGIN: Duration = Duration::from_secs(3);
/// How long a guest's write may wait for scratch space, once: then the snapshot is given up. Linux gives a disk up after
/// 30 s.
const COPY_LIMIT: Duration = Duration::from_secs(15);
/// Connections that wait at once.
const CONNECTIONS_ALL: usize = 96;
