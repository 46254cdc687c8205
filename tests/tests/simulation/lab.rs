//! Everything that one run consists of, beside the network: two nodes, whose repositories outlive them as disks do, a proxy
//! with a machine, an administrator.

use crate::chance::{self, Dice};
use crate::journal::Journal;
use crate::network::{Air, Ids, Socket};
use crate::site::Site;
use mover::{Error, ErrorKind, Mem, Pool, Repository, Result, Role, World};
use quinn::{Endpoint, EndpointConfig, ServerConfig, TokioRuntime};
use std::cell::{Cell, RefCell, RefMut};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use windlass_tests::fake::Machine;
use wire::identity::{Identity, Trust};
use wire::{Congestion, Node, Peer, Remote, client_config, endpoint_config, server_config};

pub struct Lab {
    pub air: Arc<Air>,
    pub journal: RefCell<Journal>,
    pub a: Storage,
    pub b: Storage,
    pub proxy: Host,
    pub admin: Host,
    pub machine: Machine,
    /// All faults are over: what begins now must go well.
    pub calm: Cell<bool>,
    trust: Trust,
}

/// A machine that runs a program.
pub struct Host {
    pub name: &'static str,
    pub world: World,
    pub dice: RefCell<Dice>,
    pub pool: Pool,
    ids: Ids,
    identity: Identity,
}

/// A storage node, its address, and what is on its disk.
pub struct Storage {
    pub host: Host,
    pub mem: Mem,
    address: IpAddr,
    stop: RefCell<Option<watch::Sender<bool>>>,
}

impl Host {
    fn new(seed: u64, name: &'static str, identity: Identity) -> Self {
        let dice = RefCell::new(Dice::new(seed, &format!("what {name} does")));
        Self { name, world: chance::world(seed, name), dice, pool: Pool::inline(), ids: Ids::new(name), identity }
    }

    /// Waits a little.
    pub async fn think(&self, longest_ms: u64) {
        let pause = self.dice.borrow_mut().pause(0..longest_ms);
        tokio::time::sleep(pause).await;
    }
}

impl Lab {
    pub fn new(seed: u64, a: IpAddr, b: IpAddr) -> Rc<Self> {
        let site = Site::new();
        let world = chance::world(seed, "disks");
        let first = Mem::new(&world);
        let second = Mem::in_domain(&world, first.config().domain.clone());
        let storage = |name, address: IpAddr, mem| {
            let identity = site.identity(Role::Node, name, vec![address.to_string()]);
            Storage { host: Host::new(seed, name, identity), mem, address, stop: RefCell::default() }
        };
        let client = |name, role| Host::new(seed, name, site.identity(role, name, Vec::new()));
        Rc::new(Self {
            air: Arc::new(Air::new(seed)),
            journal: RefCell::default(),
            a: storage("a", a, first),
            b: storage("b", b, second),
            proxy: client("proxy", Role::Proxy),
            admin: client("admin", Role::Admin),
            machine: Machine::new(&world, &[DISK_BYTES]),
            calm: Cell::new(false),
            trust: site.trust(),
        })
    }

    pub fn journal(&self) -> RefMut<'_, Journal> {
        self.journal.borrow_mut()
    }

    pub fn storage(&self, name: &str) -> Option<&Storage> {
        [&self.a, &self.b].into_iter().find(|storage| storage.host.name == name)
    }

    /// What a node runs.
    pub async fn serve(&self, storage: &Storage) -> turmoil::Result {
        let identity = &storage.host.identity;
        let answers = server_config(identity, &self.trust, Congestion::default())?;
        let endpoint = self.endpoint(&storage.host, PORT, endpoint_config(identity), Some(answers)).await?;
        let (stop, stopped) = watch::channel(false);
        *storage.stop.borrow_mut() = Some(stop);
        let node = Node::new(storage.host.world.clone()).with(REPOSITORY, storage.mem.clone()).on_one_thread();
        Arc::new(node).serve(endpoint, stopped).await;
        Ok(())
    }

    /// The end point of a program that only asks.
    pub async fn client(&self, host: &Host) -> turmoil::Result<Endpoint> {
        Ok(self.endpoint(host, 0, EndpointConfig::default(), None).await?)
    }

    async fn endpoint(
        &self,
        host: &Host,
        port: u16,
        mut config: EndpointConfig,
        answers: Option<ServerConfig>,
    ) -> std::io::Result<Endpoint> {
        let ids = host.ids.clone();
        config.cid_generator(move || Box::new(ids.clone()));
        config.rng_seed(Some(host.world.random_bytes()));
        let socket = Socket::bind(host.name, port, self.air.clone()).await?;
        Endpoint::new_with_abstract_socket(config, answers, Arc::new(socket), Arc::new(TokioRuntime))
    }

    pub async fn connect(&self, host: &Host, endpoint: &Endpoint, to: &Storage) -> Result<Remote> {
        let mut config = client_config(&host.identity, &self.trust, Congestion::default())?;
        let ids = host.ids.clone();
        config.initial_dst_cid_provider(Arc::new(move || ids.next()));
        let peer = Peer { patience: PATIENCE, ..Peer::new(to.address.to_string(), PORT, config) };
        Remote::connect(endpoint.clone(), peer, REPOSITORY, None).await
    }

    /// Runs a job: it ends in time; it ends well when it began in calm; and when it fails, then for the network.
    pub async fn job<T>(&self, what: &str, job: impl Future<Output = Result<T>>) -> Option<T> {
        let (calm, began) = (self.calm.get(), tokio::time::Instant::now());
        let ended = tokio::time::timeout(JOB_MAX, job).await;
        let took = began.elapsed();
        match ended {
            Ok(Ok(done)) => {
                tracing::info!(what, ?took, "done");
                return Some(done);
            }
            Ok(Err(error)) => {
                tracing::info!(what, ?took, %error, "failed");
                let mut journal = self.journal();
                journal.jobs.failed += 1;
                if calm {
                    journal.blame(format!("{what} failed although nothing was wrong: {error}"));
                } else if !names_the_network(&error) {
                    journal.blame(format!("{what} failed for another reason than the network: {error}"));
                }
            }
            Err(_) => self.journal().blame(format!("{what} did not end")),
        }
        None
    }
}

impl Storage {
    /// Write sessions that were ever begun here.
    pub fn begun(&self) -> u64 {
        self.mem.operations().get("begin").copied().unwrap_or_default()
    }

    /// Tells the node to finish what it has.
    pub fn stop(&self) {
        if let Some(stop) = self.stop.borrow_mut().take() {
            let _ = stop.send(true);
        }
    }
}

fn names_the_network(error: &Error) -> bool {
    error.kind() == ErrorKind::Transport && error.message().contains("cannot be reached")
}

/// Of the machine's only disk.
pub const DISK_BYTES: u64 = 3 << 20;
const REPOSITORY: &str = "repo";
const PORT: u16 = 7000;
/// Of a client with a node that went away.
const PATIENCE: Duration = Duration::from_secs(15);
/// Longer than all faults together with the patience that follows the last.
const JOB_MAX: Duration = Duration::from_secs(240);
