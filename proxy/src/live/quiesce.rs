//! Bringing the guest's file systems to rest for the moment of the snapshot, through its agent.

use super::watchdog::{Watchdog, Word};
use crate::agent::{Agent, AgentError, FreezeStatus};
use mover::{Consistency, Error, ErrorKind, Quiesce, Result, World};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// The agent of a machine, or why there is none.
#[derive(Debug)]
pub struct Guest {
    wish: Quiesce,
    agent: Result<Agent, String>,
    /// Guest clock minus the clock here, in nanoseconds.
    pub clock_offset_ns: Option<i64>,
    host_name: Option<String>,
    system: Option<String>,
}

/// A guest at the moment of the snapshot.
#[derive(Debug)]
pub struct Rest {
    /// True when its file systems were frozen and we are to thaw them.
    frozen: bool,
    since: Instant,
    lowered: Option<String>,
}

/// What came of it.
#[derive(Debug)]
pub struct Rested {
    /// State of the disks in the snapshot.
    pub consistency: Consistency,
    /// How long the guest stood still.
    pub duration: Duration,
    /// Why the state is lower than it could be.
    pub warning: Option<String>,
}

impl Guest {
    /// Connects to the agent at `path`, and asks whether it answers and what its clock says. What is slow is done here,
    /// long before the guest stands still.
    ///
    /// # Errors
    /// `Quiesce` when it does not answer and quiescing is required.
    pub async fn meet(path: Option<&Path>, wish: Quiesce, world: &World) -> Result<Self> {
        let mut guest =
            Self { wish, agent: Err("not wanted".into()), clock_offset_ns: None, host_name: None, system: None };
        if wish == Quiesce::Off {
            return Ok(guest);
        }
        guest.agent = match path {
            None => Err("the machine has no channel to a guest agent".to_owned()),
            Some(path) => match Agent::connect(path, world).await {
                Err(error) => {
                    Err(format!("the socket of the guest agent, {}, cannot be used: {error}", path.display()))
                }
                Ok(mut agent) => match agent.synchronise(MEET_TIMEOUT).await {
                    Ok(()) => Ok(agent),
                    Err(error) => Err(error.to_string()),
                },
            },
        };
        if let Ok(agent) = &mut guest.agent {
            let before = world.now().0;
            // Half of the time that the answer took belongs to each direction.
            let clock = agent.clock().await.ok();
            guest.clock_offset_ns = clock.map(|clock| clock - before.midpoint(world.now().0));
            guest.host_name = agent.host_name().await.ok();
            guest.system = agent.system().await.ok();
        }
        if let Err(why) = &guest.agent {
            guest.lowered(why.clone())?;
        }
        Ok(guest)
    }

    /// What the guest says of itself, as labels of the point. Nothing but its own word vouches for it.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let said = [("guest.hostname", &self.host_name), ("guest.os", &self.system)];
        let said = said.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.clone()?)));
        said.filter(|(_, value)| !value.is_empty()).collect()
    }

    /// The agent, for whoever watches.
    pub fn agent(&self) -> Option<&Agent> {
        self.agent.as_ref().ok()
    }

    /// Freezes the file systems. When this fails nothing stays frozen, as far as the guest answers; what it does not
    /// answer the watchdog goes on asking.
    ///
    /// # Errors
    /// `Quiesce` when quiescing is required; `Internal` when the watchdog is gone.
    pub async fn freeze(&mut self, watchdog: &mut Watchdog, limit: Duration) -> Result<Rest> {
        let since = Instant::now();
        let rest = |frozen, lowered| Rest { frozen, since, lowered };
        let Ok(agent) = &mut self.agent else {
            let why = self.agent.as_ref().err().cloned().filter(|_| self.wish != Quiesce::Off);
            return Ok(rest(false, why));
        };
        let why = match agent.freeze_status().await {
            Ok(FreezeStatus::Thawed) => None,
            Ok(FreezeStatus::Frozen) => Some(
                "its file systems are frozen already, by somebody else's backup or by hand; they are left alone"
                    .to_owned(),
            ),
            Err(error) => Some(error.to_string()),
        };
        if let Some(why) = why {
            return self.lowered(why).map(|why| rest(false, Some(why)));
        }
        watchdog.tell(Word::Freezing).await?;
        let why = match agent.freeze(limit).await {
            Ok(0) => "the guest froze no file system".to_owned(),
            Ok(_) => return Ok(rest(true, None)),
            Err(error) => error.to_string(),
        };
        // It may freeze now, when nobody waits for it any more.
        if thaw(agent).await.is_ok() {
            watchdog.tell(Word::Thawed).await?;
        }
        self.lowered(why).map(|why| rest(false, Some(why)))
    }

    /// Thaws what [`Self::freeze`] froze, and tells what the snapshot between the two is worth.
    ///
    /// # Errors
    /// `Quiesce` when quiescing is required and the file systems did not stand still all the time.
    pub async fn thaw(&mut self, rest: Rest, watchdog: &mut Watchdog) -> Result<Rested> {
        let Rest { frozen, since, lowered } = rest;
        let crash = |duration, warning| Rested { consistency: Consistency::Crash, duration, warning };
        let (true, Ok(agent)) = (frozen, &mut self.agent) else { return Ok(crash(Duration::ZERO, lowered)) };
        let thawed = thaw(agent).await;
        let duration = since.elapsed();
        if thawed.is_ok() {
            watchdog.tell(Word::Thawed).await?;
        }
        let why = match thawed {
            Ok(0) => {
                "the guest was thawed before the snapshot was complete, by somebody else or by the watchdog".to_owned()
            }
            Ok(_) => return Ok(Rested { consistency: Consistency::Filesystem, duration, warning: None }),
            Err(error) => {
                format!("it is not known whether the guest stood still: {error}; the watchdog goes on thawing it")
            }
        };
        self.lowered(why).map(|why| crash(duration, Some(why)))
    }

    /// Goes on with less, where that is allowed.
    fn lowered(&self, why: String) -> Result<String> {
        match self.wish {
            Quiesce::Require => Err(Error::new(ErrorKind::Quiesce, format!("the guest cannot be quiesced: {why}")).hint(
                "check the guest agent in the guest (qemu-guest-agent), or use --quiesce auto to take what is possible",
            )),
            Quiesce::Auto | Quiesce::Off => Ok(why),
        }
    }
}

/// Thaws, and asks again when the answer is lost: thawing twice does no harm. The sum of what the answers say counts.
async fn thaw(agent: &mut Agent) -> std::result::Result<u64, AgentError> {
    let mut attempt = 1;
    loop {
        match agent.thaw(THAW_ATTEMPT).await {
            Ok(count) => return Ok(count),
            Err(error) if attempt == THAW_ATTEMPTS => return Err(error),
            Err(error) => tracing::warn!(%error, attempt, "thawing again"),
        }
        attempt += 1;
    }
}

/// For an agent to answer at all.
const MEET_TIMEOUT: Duration = Duration::from_secs(3);
const THAW_ATTEMPT: Duration = Duration::from_secs(5);
const THAW_ATTEMPTS: u32 = 3;
