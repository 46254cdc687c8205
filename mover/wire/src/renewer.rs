//! Identities that renew themselves: past half of their life, with a new key each time, long before they end.

use super::{Current, join};
use crate::identity::{Credentials, Facts, Issued, NewKey, Registry};
use mover::{Error, ErrorKind, Result, Timestamp, World, blocking};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// Who signs the next certificate.
#[derive(Debug, Clone)]
pub enum Signer {
    /// The authority is here.
    Here(Arc<Registry>),
    /// The node that the folder names.
    There,
}

/// Keeps the identity in a folder valid. A daemon spawns [`Self::run`], and shows [`Self::current`].
#[derive(Debug)]
pub struct IdentityRenewer {
    folder: PathBuf,
    signer: Signer,
    world: World,
    current: watch::Sender<Arc<Credentials>>,
}

impl IdentityRenewer {
    /// Of the identity in this folder.
    ///
    /// # Errors
    /// As [`Credentials::load`].
    pub fn open(folder: &Path, signer: Signer, world: &World) -> Result<Self> {
        let current = watch::Sender::new(Arc::new(Credentials::load_at(folder, world.now())?));
        Ok(Self { folder: folder.to_owned(), signer, world: world.clone(), current })
    }

    /// The identity at the moment, for end points.
    pub fn current(&self) -> Current {
        Current::new(self.current.subscribe())
    }

    /// Renews for ever. What fails is logged and tried again: there is half of a life for it.
    pub async fn run(self) {
        let mut pause = PAUSE_MIN;
        loop {
            let facts = self.current.borrow().identity.facts().clone();
            let now = self.world.now();
            if !facts.is_due(now) {
                pause = PAUSE_MIN;
                // Never long: clocks are put right, and somebody may put another identity there.
                tokio::time::sleep(until(facts.due().0 - now.0).min(LOOK_EVERY)).await;
                self.look_again().await;
                continue;
            }
            match self.renew().await {
                Ok(()) => {
                    let current = self.current.borrow();
                    tracing::info!(holder = %current.identity.holder(), "identity renewed");
                }
                Err(error) => {
                    let left = not_renewed(&error, &facts, now);
                    // The less is left, the more often.
                    tokio::time::sleep(pause.min((left / 10).max(Duration::from_secs(1)))).await;
                    pause = (pause * 2).min(LOOK_AGAIN);
                    self.look_again().await;
                }
            }
        }
    }

    /// Renews once, if it is time.
    ///
    /// # Errors
    /// What the authority says, `Transport` when it cannot be reached, `Busy` when another process renews it.
    pub async fn renew(&self) -> Result<()> {
        self.show(renew(&self.folder, &self.signer, &self.world, PATIENCE).await?);
        Ok(())
    }

    async fn look_again(&self) {
        let (folder, now) = (self.folder.clone(), self.world.now());
        match blocking(move || Credentials::load_at(&folder, now)).await {
            Ok(found) => self.show(found),
            Err(error) => tracing::warn!(%error, "the identity cannot be read, the previous one stays in use"),
        }
    }

    fn show(&self, found: Credentials) {
        self.current.send_if_modified(|current| {
            let changed = current.identity.certificate() != found.identity.certificate();
            if changed {
                *current = Arc::new(found);
            }
            changed
        });
    }
}

/// The identity in a folder, renewed if it is time and the authority answers soon; else as it is, with a warning. For
/// programs that do one thing and end.
///
/// # Errors
/// As [`Credentials::load`].
pub async fn renewed_when_used(folder: &Path, world: &World) -> Result<Credentials> {
    let found = Credentials::load_at(folder, world.now())?;
    let facts = found.identity.facts();
    let tried = folder.join(TRIED);
    if !facts.is_due(world.now()) || tried_lately(&tried, world) {
        return Ok(found);
    }
    let renewing = renew(folder, &Signer::There, world, PATIENCE_OF_COMMANDS);
    let slow = |_| Err(Error::transport("the authority does not answer"));
    match timeout(PATIENCE_OF_COMMANDS, renewing).await.unwrap_or_else(slow) {
        Ok(renewed) => {
            let _ = std::fs::remove_file(tried);
            Ok(renewed)
        }
        // By another command.
        Err(error) if error.kind() == ErrorKind::Busy => Ok(found),
        Err(error) => {
            // Not with each command again. Where this cannot be written, the next one tries.
            let _ = std::fs::write(tried, format!("{}\n", world.now().0));
            not_renewed(&error, facts, world.now());
            Ok(found)
        }
    }
}

fn tried_lately(tried: &Path, world: &World) -> bool {
    let last = std::fs::read_to_string(tried).ok().and_then(|text| text.trim().parse::<i64>().ok());
    last.is_some_and(|last| (0..TRY_AGAIN.as_nanos() as i64).contains(&(world.now().0 - last)))
}

/// Renews the identity in a folder, unless somebody just did.
async fn renew(folder: &Path, signer: &Signer, world: &World, patience: Duration) -> Result<Credentials> {
    let (lock, old) = {
        let (folder, now) = (folder.to_owned(), world.now());
        blocking(move || Ok::<_, Error>((Credentials::lock(&folder)?, Credentials::load_at(&folder, now)?))).await?
    };
    if !old.identity.facts().is_due(world.now()) {
        return Ok(old);
    }
    let key = NewKey::generate()?;
    let holder = old.identity.holder().clone();
    let certificate_pem = match signer {
        Signer::Here(registry) => {
            let claim = key.claim(holder.to_string().as_bytes())?;
            registry.renew(&holder, &old.identity.facts().hosts, &claim)?
        }
        Signer::There => join::renew(&old, &Credentials::renewed_at(folder)?, &key, patience).await?,
    };
    let issued = Issued { certificate_pem, key_pem: key.pem() };
    let identity = issued.identity()?;
    old.trust.verify(identity.certificate(), world)?;
    if identity.holder() != &holder {
        return Err(Error::integrity(format!("the authority gave a certificate for {}", identity.holder())));
    }
    let (folder, now) = (folder.to_owned(), world.now());
    blocking(move || {
        old.replace(&folder, &issued)?;
        drop(lock);
        Credentials::load_at(&folder, now)
    })
    .await
}

/// Warns, and gives what is left of its life.
fn not_renewed(error: &Error, facts: &Facts, now: Timestamp) -> Duration {
    let left = until(facts.not_after.0 - now.0);
    let hint = error.remedy().unwrap_or_default();
    tracing::warn!(%error, hint, left_s = left.as_secs(), "the identity could not be renewed");
    left
}

/// Of nanoseconds, none when they have passed.
fn until(nanos: i64) -> Duration {
    Duration::from_nanos(u64::try_from(nanos).unwrap_or_default())
}

const TRIED: &str = "renewal.tried";
const PAUSE_MIN: Duration = Duration::from_secs(30);
/// How often to look again, because the clock may be put right, and somebody may put another identity there.
const LOOK_EVERY: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_secs(3600);
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a command waits for a renewal, which can also be done later.
const PATIENCE_OF_COMMANDS: Duration = Duration::from_secs(3);
const TRY_AGAIN: Duration = Duration::from_secs(600);
