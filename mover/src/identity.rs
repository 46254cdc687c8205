//! Who is who: a site's certificate authority, and the certificates of nodes, proxies and administrators with their
//! roles.

use crate::{Error, Name, Result, World};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::str::FromStr;
use time::{Duration, OffsetDateTime};
use webpki::EndEntityCert;

/// What a certificate lets its holder do; the table is in `wire::access`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// A storage node: reads from other nodes what it is to copy.
    Node,
    /// A proxy: backs up and restores.
    Proxy,
    /// An administrator.
    Admin,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Node, Self::Proxy, Self::Admin];

    /// Its name in certificates and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Proxy => "proxy",
            Self::Admin => "admin",
        }
    }
}

impl FromStr for Role {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|role| role.as_str() == text);
        found.ok_or_else(|| Error::usage(format!("{text:?} is no role")).hint("node, proxy or admin"))
    }
}

/// Whom a certificate names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Holder {
    /// What it may do.
    pub role: Role,
    /// Its name within the site.
    pub name: Name,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role.as_str(), self.name)
    }
}

impl Holder {
    /// Whom a certificate that was verified names.
    ///
    /// # Errors
    /// `NotAuthorised` when it is none of a site's.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self> {
        let none =
            |what: &str| Error::new(crate::ErrorKind::NotAuthorised, format!("a certificate of no site: {what}"));
        let parsed = EndEntityCert::try_from(certificate).map_err(|error| none(&error.to_string()))?;
        let mut holders = parsed.valid_uri_names().filter_map(|uri| uri.strip_prefix(URI_SCHEME));
        let (holder, more) = (holders.next(), holders.next());
        let (Some(holder), None) = (holder, more) else { return Err(none("it has no role, or several")) };
        let (role, name) = holder.split_once('/').ok_or_else(|| none("it has no role"))?;
        Ok(Self {
            role: role.parse().map_err(|_| none("its role is not known"))?,
            name: name.parse().map_err(|_| none("its name is none"))?,
        })
    }

    fn uri(&self) -> String {
        format!("{URI_SCHEME}{}/{}", self.role.as_str(), self.name)
    }
}

/// Whom to believe: the certificate of the site's authority.
#[derive(Debug, Clone)]
pub struct Trust {
    authority: CertificateDer<'static>,
}

impl Trust {
    /// From PEM.
    ///
    /// # Errors
    /// `Usage` when it is no certificate.
    pub fn from_pem(pem: &str) -> Result<Self> {
        let authority = CertificateDer::from_pem_slice(pem.as_bytes());
        Ok(Self { authority: authority.map_err(|error| Error::usage("no certificate").because(error))? })
    }

    /// For rustls.
    ///
    /// # Errors
    /// When it cannot be an authority.
    pub fn roots(&self) -> Result<RootCertStore, rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.clone())?;
        Ok(roots)
    }
}

/// A certificate with its key.
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    holder: Holder,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.holder)
    }
}

impl Identity {
    /// From PEM.
    ///
    /// # Errors
    /// `Usage` when they are no certificate and key.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self> {
        let wrong = |error| Error::usage("no certificate with its key").because(error);
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(wrong)?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(wrong)?;
        Ok(Self { holder: Holder::of(&certificate)?, certificate, key })
    }

    /// Whom it names.
    pub const fn holder(&self) -> &Holder {
        &self.holder
    }

    /// The certificates to show.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.clone()]
    }

    /// The key.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }
}

/// A certificate and its key as PEM, to be kept.
pub struct Issued {
    /// The certificate.
    pub certificate_pem: String,
    /// The key: for a file that only its owner can read.
    pub key_pem: String,
}

impl Issued {
    /// For use.
    ///
    /// # Errors
    /// None in practice.
    pub fn identity(&self) -> Result<Identity> {
        Identity::from_pem(&self.certificate_pem, &self.key_pem)
    }
}

/// An identity with whom it believes, as a folder keeps them: `ca.pem`, `cert.pem`, `key.pem`.
#[derive(Debug)]
pub struct Credentials {
    /// Who one is.
    pub identity: Identity,
    /// Whom to believe.
    pub trust: Trust,
}

impl Credentials {
    /// Reads a folder. A key that others can read is refused.
    ///
    /// # Errors
    /// `Usage`.
    pub fn load(folder: &Path) -> Result<Self> {
        let failed = |path: &Path, error: io::Error| {
            Error::usage(path.display().to_string())
                .because(error)
                .hint("`windlass-store issue` makes such a folder; name it with WINDLASS_IDENTITY")
        };
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).map_err(|error| failed(&path, error))
        };
        let key = folder.join(KEY);
        let mode = fs::metadata(&key).map_err(|error| failed(&key, error))?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(Error::usage(format!("{} can be read by others", key.display()))
                .hint(format!("chmod 600 {}; when others may have read it, have it revoked", key.display())));
        }
        let identity = Identity::from_pem(&read(CERTIFICATE)?, &read(KEY)?);
        let identity = identity.map_err(|error| error.context(folder.display()))?;
        Ok(Self { identity, trust: Trust::from_pem(&read(AUTHORITY)?)? })
    }

    /// Makes a folder.
    ///
    /// # Errors
    /// `Usage` when it cannot be made, or holds an identity already.
    pub fn store(folder: &Path, issued: &Issued, authority_pem: &str) -> Result<()> {
        let failed = |error| Error::usage(folder.display().to_string()).because(error);
        fs::create_dir_all(folder).map_err(failed)?;
        create_private(&folder.join(KEY), &issued.key_pem)?;
        fs::write(folder.join(CERTIFICATE), &issued.certificate_pem).map_err(failed)?;
        fs::write(folder.join(AUTHORITY), authority_pem).map_err(failed)
    }
}

/// Makes a file that must not be there, for its owner's eyes only from the first moment on.
///
/// # Errors
/// `Usage`.
pub fn create_private(path: &Path, text: &str) -> Result<()> {
    let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    made.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| Error::usage(path.display().to_string()).because(error))
}

/// A site's certificate authority.
pub struct Authority {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority")
    }
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// `Internal`.
    pub fn create(site: &Name, world: &World) -> Result<Self> {
        let mut params = authority_of(site);
        valid(&mut params, world, AUTHORITY_DAYS)?;
        let key = KeyPair::generate().map_err(failed)?;
        let certificate_pem = params.self_signed(&key).map_err(failed)?.pem();
        Ok(Self { certificate_pem, issuer: Issuer::new(params, key) })
    }

    /// One that was kept.
    ///
    /// # Errors
    /// `Usage` when they are no certificate and key.
    pub fn from_pem(site: &Name, certificate: &str, key: &str) -> Result<Self> {
        let wrong = |error| Error::usage("no key of an authority").because(error);
        Trust::from_pem(certificate)?;
        let issuer = Issuer::new(authority_of(site), KeyPair::from_pem(key).map_err(wrong)?);
        Ok(Self { certificate_pem: certificate.to_owned(), issuer })
    }

    /// The certificate to be trusted, as PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The key as PEM: for a file that only its owner can read.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Whom to believe.
    ///
    /// # Errors
    /// None in practice.
    pub fn trust(&self) -> Result<Trust> {
        Trust::from_pem(&self.certificate_pem)
    }

    /// A certificate for `holder`, who is reached under `hosts`, for so many days.
    ///
    /// # Errors
    /// `Usage` when a host is no name or address.
    pub fn issue(&self, holder: &Holder, hosts: &[String], days: u32, world: &World) -> Result<Issued> {
        let mut params = CertificateParams::new(hosts.to_vec())
            .map_err(|error| Error::usage("a host that is no name or address").because(error))?;
        let uri = holder.uri().try_into().map_err(failed)?;
        params.subject_alt_names.push(SanType::URI(uri));
        params.distinguished_name.push(DnType::CommonName, holder.to_string());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if holder.role == Role::Node {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        valid(&mut params, world, days)?;
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Issued { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }
}

/// What an authority is called and may do: follows from the site's name alone, so its certificate need not be parsed.
fn authority_of(site: &Name) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, format!("Windlass site {site}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// From a little before now, for clocks that are not quite right.
fn valid(params: &mut CertificateParams, world: &World, days: u32) -> Result<()> {
    let now = OffsetDateTime::from_unix_timestamp_nanos(world.now().0.into());
    let now = now.map_err(|error| Error::internal("the clock is wrong").because(error))?;
    params.not_before = now - Duration::minutes(CLOCK_SKEW_MINUTES);
    params.not_after = now + Duration::days(days.into());
    Ok(())
}

fn failed(error: rcgen::Error) -> Error {
    Error::internal("a certificate could not be made").because(error)
}

const KEY: &str = "key.pem";
const CERTIFICATE: &str = "cert.pem";
const AUTHORITY: &str = "ca.pem";
const URI_SCHEME: &str = "windlass://";
const AUTHORITY_DAYS: u32 = 3650;
const CLOCK_SKEW_MINUTES: i64 = 10;
