//! Carrying a job out. A job that is carried out twice makes one point: the point's id is in the job (`wire::control::job`),
//! and the store finds it committed (`store::session`).

use super::config::Config;
use mover::{BackupReport, Error, Name, Pool, Progress, Result, Stop, World, backup_machine};
use proxy::{AnyMachine, Hooks, NamedSource, OfflineMachine, QemuMachine, QmpAddress};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{Mutex, Semaphore};
use wire::control::Job;
use wire::{Endpoint, Peer, Remote};

/// What jobs of all nodes share.
pub struct Host {
    machines: BTreeMap<Name, Machine>,
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

struct Machine {
    place: Place,
    hooks: Option<Hooks>,
    /// Held by the one job of this machine that is carried out. Two at once would only find the images busy.
    turn: Mutex<()>,
}

/// Where the disks of a machine are.
enum Place {
    /// In the QEMU that it runs in.
    Qemu(QmpAddress),
    /// In files, devices and exports, while it does not run.
    Disks(Vec<NamedSource>),
}

impl Host {
    pub fn new(config: &Config, endpoint: Endpoint, pool: Pool, world: World) -> Self {
        let machine = |it: &super::config::Machine| {
            let place = match &it.source {
                Some(address) => Place::Qemu(address.clone()),
                None => Place::Disks(it.disk.iter().cloned().map(NamedSource::from).collect()),
            };
            (it.name.clone(), Machine { place, hooks: it.hooks(), turn: Mutex::default() })
        };
        let machines = config.machine.iter().map(machine).collect();
        let room = Semaphore::new(config.jobs.get().into());
        let instance = world.random_bytes();
        let (image_roots, scratch) = (config.image_roots.clone(), config.scratch.clone());
        Self { machines, room, endpoint, pool, image_roots, scratch, world, instance }
    }

    /// Backs a machine up into a repository of the node that asks for it. Says so when it has to wait.
    pub async fn carry_out(
        self: Arc<Self>,
        job: Job,
        node: Peer,
        stop: Stop,
        progress: Arc<Progress>,
        say: impl Fn(String),
    ) -> Result<BackupReport> {
        let options = job.backup_options()?;
        let machine = self.machines.get(&job.machine).ok_or_else(|| self.unknown(&job.machine))?;
        let _turn = match machine.turn.try_lock() {
            Ok(turn) => turn,
            Err(_) => {
                say(format!("waits until another backup of {} has ended", job.machine));
                stop.race(async { Ok(machine.turn.lock().await) }).await?
            }
        };
        let _room = match self.room.try_acquire() {
            Ok(room) => room,
            Err(_) => {
                say("waits until another job has ended".into());
                stop.race(async { Ok(self.room.acquire().await.expect("never closed")) }).await?
            }
        };
        let connecting = Remote::connect(self.endpoint.clone(), node, job.repository.as_str(), Some(&job.machine));
        let repository = stop.race(connecting).await?;
        let source = self.source(&job.machine, machine, &stop);
        let means = (&self.pool, &self.world);
        let made = backup_machine(&repository, &source, &options, &stop, means, &progress).await;
        repository.close().await;
        made
    }

    fn source(&self, name: &Name, machine: &Machine, stop: &Stop) -> AnyMachine {
        let (name, hooks) = (name.clone(), machine.hooks.clone());
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
        let known: Vec<&str> = self.machines.keys().map(Name::as_str).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        Error::not_found(format!("its configuration has no machine {machine} (it has: {known})"))
            .hint("add it to windlass-proxy.toml there, and restart windlass-proxy")
    }
}
