//! The site's authority at work: it keeps the tokens that wait to be used, and gives certificates.

use super::folder::{create_private, is_guarded, make_private_folder, sync};
use super::token::{from_hex, hex};
use super::{Authority, Holder, KeyClaim, Role, Token, Trust};
use mover::{Error, ErrorKind, Result, Timestamp, World};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

/// The authority with its pending tokens. Each token has a file that is named by the hash of its secret, so somebody
/// who reads the folder cannot use the tokens. A token is used up when its file is removed.
pub struct Registry {
    authority: Authority,
    tokens: PathBuf,
    life: Duration,
    world: World,
    /// Held while tokens are counted and one is added.
    adding: Mutex<()>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registry({})", self.tokens.display())
    }
}

/// Whom a token is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Role, name and owner of whoever joins with the token.
    pub holder: Holder,
    /// Of a node: names and addresses under which it is reached.
    pub hosts: Vec<String>,
}

impl Registry {
    /// A registry of `authority`, with its tokens below `folder`. Its certificates are valid for `life`.
    ///
    /// # Errors
    /// `Usage` when the folder of tokens cannot be made, or others can write it.
    pub fn open(authority: Authority, folder: &Path, life: Duration, world: World) -> Result<Self> {
        let tokens = folder.join(TOKENS);
        make_private_folder(&tokens)?;
        // Whoever puts a file there joins.
        is_guarded(&tokens)?;
        Ok(Self { authority, tokens, life, world, adding: Mutex::default() })
    }

    /// The trust in certificates that this authority has signed.
    ///
    /// # Errors
    /// None in practice.
    pub fn trust(&self) -> Result<Trust> {
        self.authority.trust()
    }

    /// The authority's certificate as PEM.
    pub fn certificate_pem(&self) -> &str {
        self.authority.certificate_pem()
    }

    /// Expects somebody who joins with the secret of this hash, and gives the time at which this ends. The same call
    /// again gives the same time.
    ///
    /// # Errors
    /// `Usage` for what no certificate can say, `Busy` when too many are expected.
    pub fn expect(&self, hash: &[u8; 32], wanted: &Wanted, valid: Duration) -> Result<Timestamp> {
        wanted.check()?;
        if valid > TOKEN_VALID_MAX || valid.is_zero() {
            return Err(Error::usage(format!(
                "a token can be valid for 1 s to {} days",
                TOKEN_VALID_MAX.as_secs() / 86_400
            )));
        }
        let _adding = self.adding.lock().expect("no holder panics");
        if self.sweep()? >= PENDING_MAX {
            return Err(Error::busy(format!("there are already {PENDING_MAX} unused tokens"))
                .hint(format!("wait until some expire, or remove files from {}", self.tokens.display())));
        }
        let expires = Timestamp(self.world.now().0.saturating_add(valid.as_nanos() as i64));
        let path = self.path(hash);
        if !path.exists() {
            let pending = Pending { wanted: wanted.clone(), expires };
            create_private(&path, pending.to_string().as_bytes())?;
            return Ok(expires);
        }
        match self.pending(&path)? {
            Some(pending) if pending.wanted == *wanted => Ok(pending.expires),
            _ => Err(Error::usage("a token with this hash exists already, for another holder")),
        }
    }

    /// Uses a token up and gives its holder, unless `denied`, a certificate for the key it claims, as PEM.
    ///
    /// # Errors
    /// `NotAuthorised` when there is no such token any more, or the key is not proven.
    pub fn join(
        &self,
        secret: &[u8; 32],
        claim: &KeyClaim,
        denied: impl Fn(&Holder) -> bool,
    ) -> Result<(Holder, String)> {
        let hash = Token::hash_of(secret);
        let key = claim.check(&hash)?;
        let (path, now) = (self.path(&hash), self.world.now());
        let gone = || {
            Error::new(ErrorKind::NotAuthorised, "this token is not valid: it was used already, or it has expired")
                .hint("ask an administrator for a new one, made with `windlass token create`; a token works once")
        };
        let pending = self.pending(&path)?.ok_or_else(gone)?;
        if denied(&pending.wanted.holder) {
            return Err(Error::new(ErrorKind::NotAuthorised, format!("{} was revoked", pending.wanted.holder)));
        }
        // Whose removal succeeds has it, before anything is given: however many ask at once, and if it ends in between.
        match fs::remove_file(&path).and_then(|()| sync(&self.tokens)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(gone()),
            Err(error) => return Err(self.failed(error)),
        }
        if pending.expires <= now {
            return Err(gone());
        }
        let Wanted { holder, hosts } = pending.wanted;
        let certificate = self.authority.certify(&holder, &hosts, &key, self.life, &self.world)?;
        Ok((holder, certificate))
    }

    /// Another certificate, as PEM, for a `holder` that has one, and that is reached under `hosts` as before.
    ///
    /// # Errors
    /// `NotAuthorised` when the key is not proven.
    pub fn renew(&self, holder: &Holder, hosts: &[String], claim: &KeyClaim) -> Result<String> {
        let key = claim.check(holder.to_string().as_bytes())?;
        self.authority.certify(holder, hosts, &key, self.life, &self.world)
    }

    /// Removes what has expired or was never written to its end, and counts the others.
    fn sweep(&self) -> Result<usize> {
        let mut waiting = 0;
        for entry in fs::read_dir(&self.tokens).map_err(|error| self.failed(error))? {
            let path = entry.map_err(|error| self.failed(error))?.path();
            // What is not a token's file is somebody else's.
            if path.file_name().and_then(|name| from_hex(name.to_str()?)).is_none() {
                continue;
            }
            match self.pending(&path)? {
                Some(pending) if pending.expires > self.world.now() => waiting += 1,
                _ => drop(fs::remove_file(&path)),
            }
        }
        Ok(waiting)
    }

    fn pending(&self, path: &Path) -> Result<Option<Pending>> {
        match fs::read_to_string(path) {
            Ok(text) => Ok(Pending::parse(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn path(&self, hash: &[u8; 32]) -> PathBuf {
        self.tokens.join(hex(hash))
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::store_io(self.tokens.display().to_string()).because(error)
    }
}

impl Wanted {
    fn check(&self) -> Result<()> {
        self.holder.check()?;
        let node = self.holder.role == Role::Node;
        if node == self.hosts.is_empty() {
            let hint = "give --host for each name or address of a node, and for no other role";
            return Err(Error::usage("a node needs a host, and other roles cannot have one").hint(hint));
        }
        let good = |host: &String| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
            (1..=HOST_BYTES_MAX).contains(&host.len()) && host.bytes().all(plain)
        };
        if self.hosts.len() > HOSTS_MAX || !self.hosts.iter().all(good) {
            return Err(Error::usage(format!("a host is not a name or address, or there are more than {HOSTS_MAX}")));
        }
        Ok(())
    }
}

/// A token that waits: lines of text.
#[derive(Debug, PartialEq, Eq)]
struct Pending {
    wanted: Wanted,
    expires: Timestamp,
}

impl fmt::Display for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Wanted { holder, hosts } = &self.wanted;
        let owner = holder.owner.as_ref().map_or_else(String::new, |owner| format!(" {owner}"));
        writeln!(f, "windlass token 1\n{holder}{owner}\n{}", self.expires.0)?;
        hosts.iter().try_for_each(|host| writeln!(f, "{host}"))?;
        // What is not whole does not end so.
        writeln!(f, "end")
    }
}

impl Pending {
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.strip_prefix("windlass token 1\n")?.strip_suffix("\nend\n")?.lines();
        let (role, name) = lines.next()?.split_once(' ')?;
        let (name, owner) = name.split_once(' ').map_or((name, None), |(name, owner)| (name, Some(owner)));
        let owner = owner.map(str::parse).transpose().ok()?;
        let holder = Holder { role: role.parse().ok()?, name: name.parse().ok()?, owner };
        let expires = Timestamp(lines.next()?.parse().ok()?);
        let wanted = Wanted { holder, hosts: lines.map(str::to_owned).collect() };
        wanted.check().ok()?;
        Some(Self { wanted, expires })
    }
}

/// How long a certificate is valid that is given for a token, or renewed.
pub const LIFE: Duration = Duration::from_secs(7 * 86_400);
/// Tokens that may wait to be used.
pub const PENDING_MAX: usize = 1024;
/// How long a token may wait.
pub const TOKEN_VALID_MAX: Duration = Duration::from_secs(30 * 86_400);
const TOKENS: &str = "tokens";
const HOSTS_MAX: usize = 16;
const HOST_BYTES_MAX: usize = 253;
