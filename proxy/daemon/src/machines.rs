//! The machines of this host: those that the configuration names, and those that are found. They are looked for again and
//! again; what is found is the same whenever the host is the same.

use super::config::{Config, Discover, Glob, NameFrom};
use super::discover::{fixed_part, images, is_allowed, name_of, size_of, sockets, who_answers};
use mover::{Error, ErrorKind, MachineId, Name, Power, Result, blocking};
use proxy::{Hooks, NamedSource, QemuIdentity, QmpAddress, SourceAddress};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex as StdMutex};
use std::time::Duration;
use tokio::sync::{Mutex, watch};
use tokio::time::{MissedTickBehavior, interval};
use wire::control::{DISKS_MAX, MACHINES_BYTES_MAX, MACHINES_MAX, OfferedDisk, OfferedMachine};

/// The machines of this host.
pub struct Machines {
    config: Config,
    found: watch::Sender<Arc<Vec<Arc<Machine>>>>,
    /// By what is locked: a socket, or the disks of a machine.
    turns: StdMutex<BTreeMap<String, Turn>>,
    /// Warnings that were given, so that each is given once for as long as it is true.
    warned: StdMutex<BTreeSet<String>>,
}

/// Held by the one job of a machine that is carried out, and while its QEMU is asked who it is. Two at once would only find
/// it busy.
pub type Turn = Arc<Mutex<()>>;

/// A machine that can be backed up.
#[derive(Debug)]
pub struct Machine {
    /// As administrators know it.
    pub offered: OfferedMachine,
    pub place: Place,
    pub hooks: Option<Hooks>,
    pub turn: Turn,
    /// For messages: where it comes from.
    pub origin: String,
    /// How it was named, when it was found and not named by the configuration.
    found_by: Option<FoundBy>,
}

/// Where the disks of a machine are.
#[derive(Debug, Clone)]
pub enum Place {
    /// In the QEMU that it runs in.
    Qemu(QmpAddress),
    /// In files, devices and exports, while it does not run.
    Disks(Vec<NamedSource>),
}

#[derive(Debug, Clone)]
enum FoundBy {
    Socket(Option<NameFrom>),
    /// Images in this folder.
    Images(PathBuf),
}

/// One round of looking.
struct Round<'a> {
    machines: &'a Machines,
    before: Arc<Vec<Arc<Machine>>>,
    answers: BTreeMap<PathBuf, Result<QemuIdentity>>,
    made: Vec<Machine>,
    warnings: Vec<String>,
}

impl Machines {
    pub fn new(config: Config) -> Self {
        let (found, _) = watch::channel(Arc::default());
        Self { config, found, turns: StdMutex::default(), warned: StdMutex::default() }
    }

    /// Looks for machines again and again, for ever.
    pub async fn keep(self: Arc<Self>) {
        let mut every = interval(Duration::from_secs(self.config.discover_seconds.get().into()));
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        every.tick().await;
        loop {
            every.tick().await;
            self.look().await;
        }
    }

    /// Those that are there now, and word of every change.
    pub fn watch(&self) -> watch::Receiver<Arc<Vec<Arc<Machine>>>> {
        self.found.subscribe()
    }

    /// Those that are there now.
    pub fn all(&self) -> Arc<Vec<Arc<Machine>>> {
        self.found.borrow().clone()
    }

    /// The machine that is called so, by name or by id.
    pub fn named(&self, called: &Name) -> Option<Arc<Machine>> {
        let all = self.all();
        let by_name = all.iter().find(|it| it.offered.name == *called);
        by_name.or_else(|| all.iter().find(|it| it.offered.is_called(called))).cloned()
    }

    /// Looks once.
    pub async fn look(&self) {
        let mut round = Round {
            machines: self,
            before: self.all(),
            answers: BTreeMap::new(),
            made: Vec::new(),
            warnings: Vec::new(),
        };
        round.run().await;
        let Round { mut made, mut warnings, .. } = round;
        limit(&mut made, &mut warnings);
        self.warn(warnings);
        let now: Vec<Arc<Machine>> = made.into_iter().map(Arc::new).collect();
        self.found.send_if_modified(|before| {
            let changed = before.iter().map(|it| &it.offered).ne(now.iter().map(|it| &it.offered));
            if changed {
                tracing::info!(machines = now.len(), "the machines of this host changed");
            }
            *before = Arc::new(now);
            changed
        });
        self.turns.lock().expect("no holder panics").retain(|_, turn| Arc::strong_count(turn) > 1);
    }

    fn warn(&self, warnings: Vec<String>) {
        let now: BTreeSet<String> = warnings.into_iter().collect();
        let mut before = self.warned.lock().expect("no holder panics");
        for what in now.difference(&before) {
            tracing::warn!("{what}");
        }
        *before = now;
    }

    fn turn(&self, of: &str) -> Turn {
        self.turns.lock().expect("no holder panics").entry(of.to_owned()).or_default().clone()
    }
}

impl Round<'_> {
    async fn run(&mut self) {
        let config = &self.machines.config;
        let mut found = Vec::new();
        for it in &config.discover {
            found.push(match &it.qmp {
                Some(pattern) => sockets(pattern, &mut self.warnings).await,
                None => Vec::new(),
            });
        }
        self.ask(found.iter().flatten().cloned().collect()).await;
        for machine in &config.machine {
            self.configured(machine).await;
        }
        for (it, sockets) in config.discover.iter().zip(found) {
            sockets.into_iter().for_each(|socket| self.behind_socket(it, socket));
            if let Some(pattern) = &it.images {
                self.in_images(it, pattern).await;
            }
        }
    }

    /// Asks all QEMUs at once who they are, but for those that a job of ours talks to.
    async fn ask(&mut self, found: Vec<PathBuf>) {
        let configured = self.machines.config.machine.iter().filter_map(|it| Some(it.source.as_ref()?.socket.clone()));
        let all: BTreeSet<PathBuf> = found.into_iter().chain(configured).collect();
        let (mut held, mut free) = (Vec::new(), Vec::new());
        for socket in all {
            if let Ok(turn) = self.machines.turn(&socket.to_string_lossy()).try_lock_owned() {
                held.push(turn);
                free.push(socket);
            }
        }
        self.answers = who_answers(free).await;
    }

    /// What was known of the machine behind a socket before. Also used while it does not answer.
    fn known(&self, socket: &PathBuf) -> Option<OfferedMachine> {
        let at = |it: &&Arc<Machine>| matches!(&it.place, Place::Qemu(address) if address.socket == *socket);
        self.before.iter().find(at).map(|it| it.offered.clone())
    }

    async fn configured(&mut self, it: &super::config::Machine) {
        let (name, tags) = (it.name.clone(), it.tags.clone());
        let origin = format!("[[machine]] {name}");
        let (mut id, mut power, mut disks) = (None, Power::Off, Vec::new());
        let place = match &it.source {
            Some(address) => {
                match (self.answers.get(&address.socket), self.known(&address.socket)) {
                    (Some(Ok(told)), _) => (id, power, disks) = (told.id, told.power, offered(&told.disks)),
                    (Some(Err(error)), _) if error.kind() == ErrorKind::NotFound => {}
                    (_, Some(known)) => (id, power, disks) = (known.id, known.power, known.disks),
                    (_, None) => power = Power::Unknown,
                }
                Place::Qemu(address.clone())
            }
            None => {
                let sources: Vec<NamedSource> = it.disk.iter().cloned().map(NamedSource::from).collect();
                for source in &sources {
                    disks.push(OfferedDisk { name: source.name.clone(), size: size_of(&source.address).await });
                }
                Place::Disks(sources)
            }
        };
        self.add(OfferedMachine { name, id, power, disks, tags }, place, it.hooks(), origin, None);
    }

    fn behind_socket(&mut self, it: &Discover, socket: PathBuf) {
        let configured = self.machines.config.machine.iter().filter_map(|it| it.source.as_ref());
        if configured.into_iter().any(|address| address.socket == socket) {
            return;
        }
        let origin = socket.display().to_string();
        let known = self.known(&socket);
        let offered = match self.answers.remove(&socket) {
            Some(Ok(told)) => {
                let Some(name) = name_of(&socket, told.name.as_ref(), it.name_from) else {
                    self.warnings.push(format!("{origin}: its machine has no name that can be used"));
                    return;
                };
                let (id, power) = (told.id, told.power);
                OfferedMachine { name, id, power, disks: offered(&told.disks), tags: it.tags.clone() }
            }
            answer => {
                if let Some(Err(error)) = answer {
                    self.warnings.push(format!("{origin}: {error}"));
                    if error.kind() == ErrorKind::NotFound {
                        return;
                    }
                }
                // A job talks to it, or something else does.
                let Some(known) = known else { return };
                known
            }
        };
        if it.exclude.iter().any(|pattern| pattern.fits(offered.name.as_str())) {
            return;
        }
        let place = Place::Qemu(QmpAddress { socket, agent: None });
        self.add(offered, place, None, origin, Some(FoundBy::Socket(it.name_from)));
    }

    async fn in_images(&mut self, it: &Discover, pattern: &Glob) {
        for (name, disks) in images(it, pattern, &mut self.warnings).await {
            if it.exclude.iter().any(|pattern| pattern.fits(name.as_str())) {
                continue;
            }
            // It runs: then its QEMU knows better, and the images are for when it does not.
            if self.made.iter().any(|it| it.offered.name == name && matches!(it.place, Place::Qemu(_))) {
                continue;
            }
            let sizes = disks.iter().map(|(disk, size)| OfferedDisk { name: disk.name.clone(), size: *size }).collect();
            let offered = OfferedMachine { name, id: None, power: Power::Off, disks: sizes, tags: it.tags.clone() };
            let origin = format!("images {}", pattern.as_str());
            let place = Place::Disks(disks.into_iter().map(|(disk, _)| disk).collect());
            self.add(offered, place, None, origin, Some(FoundBy::Images(fixed_part(pattern))));
        }
    }

    /// Adds a machine, unless there is one of that name, or the same one at another socket.
    fn add(
        &mut self,
        mut offered: OfferedMachine,
        place: Place,
        hooks: Option<Hooks>,
        origin: String,
        found_by: Option<FoundBy>,
    ) {
        let same =
            |it: &&Machine| it.offered.name == offered.name || it.offered.id.is_some() && it.offered.id == offered.id;
        if let Some(first) = self.made.iter().find(same) {
            self.warnings.push(format!(
                "machine {} of {origin} is left out: {} of {} has the same name or id",
                offered.name, first.offered.name, first.origin
            ));
            return;
        }
        offered.disks.truncate(DISKS_MAX);
        let turn = match &place {
            Place::Qemu(address) => self.machines.turn(&address.socket.to_string_lossy()),
            Place::Disks(_) => self.machines.turn(&format!("disks of {}", offered.name)),
        };
        self.made.push(Machine { offered, place, hooks, turn, origin, found_by });
    }
}

impl Machine {
    /// Asks once more, when a job begins, whether this is still the machine that was found, because files and sockets may
    /// belong to another one by now. Gives the hypervisor's id of it. To be called by whoever has its turn.
    ///
    /// # Errors
    /// `NotFound` when it is another one; those of the QEMU.
    pub async fn confirm(&self) -> Result<Option<MachineId>> {
        let moved = || {
            Error::not_found(format!("{} is not machine {} any more", self.origin, self.offered.name))
                .hint("run the command again when the proxy has looked for machines once more (`discover_seconds`)")
        };
        match (&self.place, &self.found_by) {
            (Place::Qemu(address), found_by) => {
                let told = QemuIdentity::ask(address).await?;
                let Some(FoundBy::Socket(from)) = found_by else { return Ok(told.id) };
                let name = name_of(&address.socket, told.name.as_ref(), *from);
                let same = told.id == self.offered.id && name.as_ref() == Some(&self.offered.name);
                if same { Ok(told.id) } else { Err(moved()) }
            }
            (Place::Disks(disks), Some(FoundBy::Images(below))) => {
                let (disks, below) = (disks.clone(), below.clone());
                let allowed = move || {
                    disks.iter().all(|disk| match &disk.address {
                        SourceAddress::File { path, .. } => is_allowed(path, &below),
                        SourceAddress::Nbd(_) => false,
                    })
                };
                if blocking(allowed).await { Ok(None) } else { Err(moved()) }
            }
            (Place::Disks(_), _) => Ok(None),
        }
    }
}

/// Leaves out what is more than a node takes.
fn limit(made: &mut Vec<Machine>, warnings: &mut Vec<String>) {
    let (mut bytes, all) = (0, made.len());
    let mut kept = 0;
    for machine in made.iter_mut() {
        if bytes + machine.offered.bytes() > MACHINES_BYTES_MAX {
            // Its disks are the least of what must be known before a backup.
            machine.offered.disks.clear();
        }
        bytes += machine.offered.bytes();
        if bytes > MACHINES_BYTES_MAX || kept == MACHINES_MAX {
            break;
        }
        kept += 1;
    }
    made.truncate(kept);
    if kept < all {
        warnings.push(format!("{all} machines were found, and only the first {kept} are offered to nodes"));
    }
}

fn offered(disks: &[(Name, u64)]) -> Vec<OfferedDisk> {
    disks.iter().map(|(name, size)| OfferedDisk { name: name.clone(), size: Some(*size) }).collect()
}
