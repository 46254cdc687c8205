//! The folders in which identities are kept, and files that only their owner can read.

use super::{Address, Identity, Issued, Trust};
use mover::{Error, Result, Timestamp, World};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// An identity and the authority that it trusts, as a folder keeps them: `identity.pem` has certificate and key,
/// `ca.pem` the authority's certificate, and `authority` the node that renews the identity. After a renewal
/// `previous.pem` has the identity before it.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// Certificate and key of the holder.
    pub identity: Identity,
    /// Certificate of the site's authority: what it has signed is believed.
    pub trust: Trust,
}

impl Credentials {
    /// Reads a folder. Refuses a key that others can read. Refuses a folder or file that others can write, because
    /// somebody who replaces `ca.pem` or another file decides whom this program trusts.
    ///
    /// # Errors
    /// `Usage`.
    pub fn load(folder: &Path) -> Result<Self> {
        Self::load_at(folder, World::system().now())
    }

    /// The same at another time.
    pub(crate) fn load_at(folder: &Path, now: Timestamp) -> Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).map_err(|error| {
                Error::usage(path.display().to_string()).because(error).hint(
                    "`windlass token join` and `windlass-store issue` create such a folder; set WINDLASS_IDENTITY to it",
                )
            })
        };
        let pem = read(IDENTITY)?;
        is_guarded(folder)?;
        is_private(&folder.join(IDENTITY))?;
        for name in [AUTHORITY, RENEWED_AT, LASTING, PREVIOUS].map(|name| folder.join(name)) {
            if name.exists() {
                is_guarded(&name)?;
            }
        }
        let mut identity = Identity::from_pem(&pem, &pem).map_err(|error| {
            error
                .context(folder.join(IDENTITY).display())
                .hint("it must hold a complete certificate and its key: bring it back from a copy, or join again")
        })?;
        if let Some(previous) = previous_in_time(folder, &identity, now) {
            identity = previous;
        }
        if let Ok(lasting) = fs::read(folder.join(LASTING)) {
            let wrong = |_| Error::usage(format!("{} does not have 32 bytes", folder.join(LASTING).display()));
            identity.lasting = lasting.try_into().map_err(wrong)?;
        }
        Ok(Self { identity, trust: Trust::from_pem(&read(AUTHORITY)?)? })
    }

    /// Makes a folder. `renewed_at` is the node that holds the authority, where it is known.
    ///
    /// # Errors
    /// `Usage` when it cannot be made, or holds an identity already.
    pub fn store(folder: &Path, issued: &Issued, authority_pem: &str, renewed_at: Option<&Address>) -> Result<()> {
        Self::prepare(folder)?;
        let path = folder.join(IDENTITY);
        put_guarded(&folder.join(AUTHORITY), authority_pem)?;
        if let Some(address) = renewed_at {
            put_guarded(&folder.join(RENEWED_AT), &format!("{address}\n"))?;
        }
        create_private(&path, issued.pem().as_bytes())
    }

    /// Makes the folder itself, for what must fail before a token is used up.
    ///
    /// # Errors
    /// As [`Self::store`].
    pub fn prepare(folder: &Path) -> Result<()> {
        if Self::is_in(folder) {
            return Err(Error::usage(format!("{} already holds an identity", folder.display()))
                .hint("choose another folder with --out, or move this one away"));
        }
        make_private_folder(folder)
    }

    /// True for a folder that holds an identity.
    pub fn is_in(folder: &Path) -> bool {
        folder.join(IDENTITY).exists()
    }

    /// The node that renews the identity of this folder.
    ///
    /// # Errors
    /// `Usage` when the folder does not tell.
    pub fn renewed_at(folder: &Path) -> Result<Address> {
        let path = folder.join(RENEWED_AT);
        let text = fs::read_to_string(&path).map_err(|error| {
            Error::usage(path.display().to_string())
                .because(error)
                .hint("write host:port of the node that holds the site's authority into this file")
        })?;
        text.trim().parse().map_err(|error: Error| error.context(path.display()))
    }

    /// Puts a renewed identity in the place of the old one. A program that reads the folder finds one of the two, and
    /// always the whole of it.
    ///
    /// # Errors
    /// `Usage`.
    pub(crate) fn replace(&self, folder: &Path, issued: &Issued) -> Result<()> {
        let lasting = folder.join(LASTING);
        if !lasting.exists() {
            put_private(&lasting, self.identity.lasting())?;
        }
        let path = folder.join(IDENTITY);
        let pem = fs::read_to_string(&path).map_err(|error| Error::usage(path.display().to_string()).because(error))?;
        // One that was renewed while the clock was wrong is not worth keeping: then the one before it is there already.
        if Identity::from_pem(&pem, &pem).is_ok_and(|it| it.certificate() == self.identity.certificate()) {
            put_private(&folder.join(PREVIOUS), pem.as_bytes())?;
        }
        put_private(&path, issued.pem().as_bytes())
    }

    /// Takes the lock for renewing the identity of this folder. The lock ends with the process.
    ///
    /// # Errors
    /// `Busy` when another process holds the lock.
    pub(crate) fn lock(folder: &Path) -> Result<File> {
        let failed = |error| Error::usage(folder.display().to_string()).because(error);
        let lock = File::open(folder).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(lock),
            Err(fs::TryLockError::WouldBlock) => {
                Err(Error::busy(format!("{}: another process is renewing it", folder.display())))
            }
            Err(fs::TryLockError::Error(error)) => Err(failed(error)),
        }
    }
}

/// The identity before `identity`, when only the earlier one is valid now, because `identity` was made while the clock
/// was ahead.
fn previous_in_time(folder: &Path, identity: &Identity, now: Timestamp) -> Option<Identity> {
    if identity.facts().not_before <= now {
        return None;
    }
    let path = folder.join(PREVIOUS);
    is_private(&path).ok()?;
    let pem = fs::read_to_string(&path).ok()?;
    let previous = Identity::from_pem(&pem, &pem).ok()?;
    let usable = previous.holder() == identity.holder() && previous.facts().are_valid_at(now);
    usable.then_some(previous)
}

/// Makes or replaces a private file in one step. Only one process may do this at a time.
fn put_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |error| Error::usage(path.display().to_string()).because(error);
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = Path::new(&new);
    // Of an attempt that ended in between.
    match fs::remove_file(new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    create_private(new, bytes)?;
    fs::rename(new, path).and_then(|()| sync(path.parent().unwrap_or(Path::new(".")))).map_err(failed)
}

/// Writes a file that others may read and nobody else may write, whatever the umask.
///
/// # Errors
/// `Usage`.
pub fn put_guarded(path: &Path, text: &str) -> Result<()> {
    let made = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path);
    made.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| Error::usage(path.display().to_string()).because(error))
}

/// Makes a new file, durably. From the first moment on, only its owner can read it. Fails when the file is there
/// already.
///
/// # Errors
/// `Usage`.
pub fn create_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    made.and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        sync(path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new(".")))
    })
    .map_err(|error| Error::usage(path.display().to_string()).because(error))
}

/// Refuses a file or folder that others can write, because its mode allows that or because it belongs to another user.
///
/// # Errors
/// `Usage`.
pub fn is_guarded(path: &Path) -> Result<()> {
    let shown = path.display();
    let metadata = fs::metadata(path).map_err(|error| Error::usage(shown.to_string()).because(error))?;
    if metadata.permissions().mode() & 0o022 != 0 {
        return Err(Error::usage(format!("others can write to {shown}"))
            .hint(format!("check that its content is right, then run `chmod go-w {shown}`")));
    }
    // Who is root reads what is anybody's when he is told to.
    let (own, of) = (rustix::process::geteuid().as_raw(), metadata.uid());
    if of == own || of == 0 || own == 0 {
        return Ok(());
    }
    Err(Error::usage(format!("{shown} belongs to user {of}, who can change it"))
        .hint(format!("check that its content is right, then run `chown {own} {shown}`")))
}

/// Refuses a secret that others can read, or write.
///
/// # Errors
/// `Usage`.
pub fn is_private(path: &Path) -> Result<()> {
    is_guarded(path)?;
    let shown = path.display();
    let metadata = fs::metadata(path).map_err(|error| Error::usage(shown.to_string()).because(error))?;
    if metadata.permissions().mode() & 0o077 == 0 {
        return Ok(());
    }
    Err(Error::usage(format!("others can read {shown}"))
        .hint(format!("run `chmod 600 {shown}`; if others may have read it, have it revoked")))
}

pub(super) fn make_private_folder(folder: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| Error::usage(folder.display().to_string()).because(error))
}

/// Makes the making and removing of names in a folder durable.
pub(super) fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

const IDENTITY: &str = "identity.pem";
/// The identity before the last renewal. It is used when the clock was wrong at that renewal.
const PREVIOUS: &str = "previous.pem";
const AUTHORITY: &str = "ca.pem";
const RENEWED_AT: &str = "authority";
const LASTING: &str = "lasting.key";
