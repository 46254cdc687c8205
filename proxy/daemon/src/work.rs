//! Carrying a job out. A job that is carried out twice makes one point: the point's id is in the job (`wire::control::job`),
//! and the store finds it committed (`store::session`).

use super::machines::{Machine, Machines, Place};
use mover::{
    Allow, Audit, BackupOptions, Error, ErrorKind, Examination, ExaminedDisk, LastPoint, MachineId, Manifest, Name,
    Pool, Power, Progress, Quiesce, ReadSession as _, Repository as _, Result, Stop, TrackingWish, Verification, World,
    backup_machine, parent_of,
};
use proxy::{AnyMachine, Before, OfflineMachine, QemuMachine};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedMutexGuard, Semaphore};
use wire::control::{Job, Made, Work};
use wire::{Endpoint, Peer, Remote};

/// What jobs of all nodes share.
pub struct Host {
    pub machines: Arc<Machines>,
    /// Words by which administrators choose among proxies.
    pub labels: Vec<Name>,
    /// Jobs that may be carried out at once.
    room: Semaphore,
    pub endpoint: Endpoint,
    pool: Pool,
    image_roots: Vec<PathBuf>,
    scratch: Option<PathBuf>,
    pub world: World,
    /// Random for each process: tells this process from a later one.
    pub instance: [u8; 16],
}

impl Host {
    pub fn new(
        config: &super::config::Config,
        machines: Arc<Machines>,
        endpoint: Endpoint,
        pool: Pool,
        world: World,
    ) -> Self {
        let room = Semaphore::new(config.jobs.get().into());
        let instance = world.random_bytes();
        let (image_roots, scratch, labels) =
            (config.image_roots.clone(), config.scratch.clone(), config.labels.clone());
        Self { machines, labels, room, endpoint, pool, image_roots, scratch, world, instance }
    }

    /// Does what a job wants, with a repository of the node that asks for it. Says so when it has to wait.
    pub async fn carry_out(
        self: Arc<Self>,
        job: Job,
        node: Peer,
        stop: Stop,
        progress: Arc<Progress>,
        say: impl Fn(String),
    ) -> Result<Made> {
        let work = job.work()?;
        let machine = self.machines.named(&job.machine).ok_or_else(|| self.unknown(&job.machine))?;
        match work {
            Work::Backup(options) => self.back_up(&job, &machine, *options, node, stop, progress, say).await,
            Work::Examine => {
                let found = stop.race(self.examine(&job, &machine, node, &stop)).await?;
                Ok(Made::Examination(Box::new(found)))
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "all that a job has")]
    async fn back_up(
        &self,
        job: &Job,
        machine: &Machine,
        mut options: BackupOptions,
        node: Peer,
        stop: Stop,
        progress: Arc<Progress>,
        say: impl Fn(String),
    ) -> Result<Made> {
        let _turn = match machine.turn.clone().try_lock_owned() {
            Ok(turn) => turn,
            Err(_) => self.wait_for_turn(machine, &stop, &say).await?,
        };
        let _room = match self.room.try_acquire() {
            Ok(room) => room,
            Err(_) => {
                say("waits until another job has ended".into());
                stop.race(async { Ok(self.room.acquire().await.expect("never closed")) }).await?
            }
        };
        options.machine = stop.race(machine.confirm()).await?;
        // The job may name it by its id.
        options.machine_name = machine.offered.name.clone();
        let connecting =
            Remote::connect(self.endpoint.clone(), node, job.repository.as_str(), Some(&options.machine_name));
        let repository = stop.race(connecting).await?;
        let source = self.source(machine, &stop);
        let means = (&self.pool, &self.world);
        let made = backup_machine(&repository, &source, &options, &stop, means, &progress).await;
        repository.close().await;
        made.map(|report| Made::Backup(Box::new(report)))
    }

    /// Looking at a machine takes so little time that nobody needs to be told of it.
    async fn wait_for_turn(
        &self,
        machine: &Machine,
        stop: &Stop,
        say: &impl Fn(String),
    ) -> Result<OwnedMutexGuard<()>> {
        let turn = machine.turn.clone().lock_owned();
        tokio::pin!(turn);
        let soon = async {
            tokio::select! {
                turn = &mut turn => Ok(Some(turn)),
                () = tokio::time::sleep(SOON) => Ok(None),
            }
        };
        if let Some(turn) = stop.race(soon).await? {
            return Ok(turn);
        }
        say(format!("waits until another job of {} has ended", machine.offered.name));
        stop.race(async { Ok(turn.await) }).await
    }

    /// What the next backup of a machine will do.
    async fn examine(&self, job: &Job, machine: &Machine, node: Peer, stop: &Stop) -> Result<Examination> {
        let turn = machine.turn.clone();
        let Ok(_turn) = tokio::time::timeout(GLANCE, turn.lock_owned()).await else {
            return Ok(unseen(
                machine,
                "a backup of this machine is under way, so its disks cannot be examined now".into(),
            ));
        };
        let id = match machine.confirm().await {
            Ok(id) => id,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Busy | ErrorKind::Source) => {
                return Ok(unseen(machine, error.message()));
            }
            Err(error) => return Err(error),
        };
        let name = &machine.offered.name;
        let repository = Remote::connect(self.endpoint.clone(), node, job.repository.as_str(), Some(name)).await?;
        let continued = continued(&repository, name, id).await;
        let id = repository.config().id;
        repository.close().await;
        let continued = continued?;
        let before = Before { repository: id, parent: continued.as_ref().map(|(_, manifest)| manifest) };
        let mut found = match self.source(machine, stop).examine(before).await {
            Ok(found) => found,
            Err(error) => unseen(machine, error.message()),
        };
        found.last = continued.map(|(last, _)| last);
        Ok(found)
    }

    fn source(&self, machine: &Machine, stop: &Stop) -> AnyMachine {
        let (name, hooks) = (machine.offered.name.clone(), machine.hooks.clone());
        let (stop, world) = (stop.clone(), self.world.clone());
        match &machine.place {
            Place::Qemu(address) => {
                let (address, scratch) = (address.clone(), self.scratch.clone());
                AnyMachine::Qemu(QemuMachine { name, address, hooks, scratch, stop, world })
            }
            Place::Disks(disks) => {
                let (disks, image_roots) = (disks.clone(), self.image_roots.clone());
                AnyMachine::Offline(OfflineMachine { name, disks, hooks, image_roots, stop, world })
            }
        }
    }

    fn unknown(&self, machine: &Name) -> Error {
        let all = self.machines.all();
        let mut known: Vec<&str> = all.iter().map(|it| it.offered.name.as_str()).collect();
        let more = known.len().saturating_sub(NAMED_MAX);
        known.truncate(NAMED_MAX);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") + &more };
        Error::not_found(format!("it has no machine {machine} (it has: {known})")).hint(
            "add it to windlass-proxy.toml there, and restart windlass-proxy; what [[discover]] finds is looked for every \
             `discover_seconds`",
        )
    }
}

/// The point that a backup of this machine continues, and its manifest.
async fn continued(repository: &Remote, name: &Name, id: Option<MachineId>) -> Result<Option<(LastPoint, Manifest)>> {
    let options = BackupOptions {
        machine_name: name.clone(),
        machine: id,
        point: None,
        wish: TrackingWish::Auto,
        compression: Default::default(),
        verification: Verification::Decode,
        tags: Vec::new(),
        attachments: Vec::new(),
        rate: None,
        audit: Audit::Usual,
        allow: Allow::default(),
        quiesce: Quiesce::Auto,
    };
    let Some(parent) = parent_of(repository, &options).await? else { return Ok(None) };
    let reader = repository.read(&[parent.id]).await?;
    let manifest = reader.manifest(parent.id).await?;
    Ok(Some((LastPoint { point: parent.id, time: parent.time() }, manifest)))
}

/// What is known of a machine that cannot be looked at now.
fn unseen(machine: &Machine, why: String) -> Examination {
    let offered = &machine.offered;
    let disk = |it: &wire::control::OfferedDisk| ExaminedDisk {
        name: it.name.clone(),
        size: it.size,
        format: String::new(),
        incremental: false,
        reason: "not known: it could not be examined".into(),
    };
    Examination {
        name: offered.name.clone(),
        id: offered.id,
        power: Power::Unknown,
        agent_answers: false,
        agent: "not asked".into(),
        disks: offered.disks.iter().map(disk).collect(),
        remarks: vec![why],
        last: None,
    }
}

/// For a look at a machine to end, before a backup says that it waits.
const SOON: Duration = Duration::from_secs(12);
/// How long a look waits for another.
const GLANCE: Duration = Duration::from_secs(2);
/// Machines that an error names.
const NAMED_MAX: usize = 20;
