//! Who is who: a site's certificate authority, and the certificates of nodes, proxies and administrators with their
//! roles.

mod facts;
mod folder;
mod key;
mod registry;
mod token;

pub use facts::{Facts, utc};
pub use folder::{Credentials, create_private, is_guarded, is_private, put_guarded};
pub use key::{KeyClaim, NewKey};
pub use registry::{LIFE, PENDING_MAX, Registry, TOKEN_VALID_MAX, Wanted};
pub use token::{Address, PORT, Token};

use mover::{Error, ErrorKind, Holder, Name, Result, Role, World};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType,
};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::sign::CertifiedKey;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use webpki::{EndEntityCert, KeyUsage};

/// Whom a certificate that was verified names.
///
/// # Errors
/// `NotAuthorised` when it is not a certificate of a site.
pub fn holder_of(certificate: &CertificateDer<'_>) -> Result<Holder> {
    let none =
        |what: &str| Error::new(ErrorKind::NotAuthorised, format!("not a certificate of a Windlass site: {what}"));
    let parsed = EndEntityCert::try_from(certificate).map_err(|error| none(&error.to_string()))?;
    let mut holders = parsed.valid_uri_names().filter_map(|uri| uri.strip_prefix(URI_SCHEME));
    let (holder, more) = (holders.next(), holders.next());
    let (Some(holder), None) = (holder, more) else { return Err(none("it must have exactly one role")) };
    let (role, name) = holder.split_once('/').ok_or_else(|| none("it has no role"))?;
    let (name, owner) = match name.split_once(URI_OWNER) {
        Some((name, owner)) => (name, Some(owner.parse().map_err(|_| none("its owner is not a valid name"))?)),
        None => (name, None),
    };
    let holder = Holder {
        role: role.parse().map_err(|_| none("its role is unknown"))?,
        name: name.parse().map_err(|_| none("its name is not valid"))?,
        owner,
    };
    holder.check().map_err(|error| none(&error.message()))?;
    Ok(holder)
}

/// How a certificate names its holder.
fn uri_of(holder: &Holder) -> String {
    let owner = holder.owner.as_ref().map_or_else(String::new, |owner| format!("{URI_OWNER}{owner}"));
    format!("{URI_SCHEME}{}/{}{owner}", holder.role.as_str(), holder.name)
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
        Ok(Self { authority: authority.map_err(|error| Error::usage("not a certificate").because(error))? })
    }

    /// The authority's certificate.
    pub const fn authority(&self) -> &CertificateDer<'static> {
        &self.authority
    }

    /// BLAKE3-256 of the authority's certificate: what a token carries.
    pub fn fingerprint(&self) -> [u8; 32] {
        mover::digest(&self.authority)
    }

    /// Refuses a certificate that nobody of the site would accept now.
    ///
    /// # Errors
    /// `NotAuthorised`.
    pub fn verify(&self, certificate: &CertificateDer<'_>, world: &World) -> Result<()> {
        let refused =
            |error: String| Error::new(ErrorKind::NotAuthorised, format!("the certificate cannot be used: {error}"));
        let now = Duration::from_nanos(u64::try_from(world.now().0).unwrap_or_default());
        let roots = self.roots().map_err(|error| refused(error.to_string()))?;
        let parsed = EndEntityCert::try_from(certificate).map_err(|error| refused(error.to_string()))?;
        let (known, now) = (provider().signature_verification_algorithms.all, UnixTime::since_unix_epoch(now));
        parsed
            .verify_for_usage(known, &roots.roots, &[], now, KeyUsage::client_auth(), None, None)
            .map_err(|error| refused(error.to_string()))?;
        Ok(())
    }

    /// The trusted authority, in the form that rustls takes.
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
#[derive(Clone)]
pub struct Identity {
    certified: Arc<CertifiedKey>,
    holder: Holder,
    facts: Facts,
    /// Signs what must be recognised after a restart; a renewed identity keeps it.
    lasting: [u8; 32],
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
    /// `Usage` when they are no certificate and its key.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self> {
        let wrong = |error| Error::usage("not a certificate with its key").because(error);
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(wrong)?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(wrong)?;
        let (holder, facts) = (holder_of(&certificate)?, Facts::of(&certificate)?);
        let lasting = blake3::derive_key("windlass 2026-11 lasting key of a node", key.secret_der());
        let certified = CertifiedKey::from_der(vec![certificate], key, &provider())
            .map_err(|error| Error::usage("not a certificate with its key").because(error))?;
        Ok(Self { certified: Arc::new(certified), holder, facts, lasting })
    }

    /// Holder that the certificate names.
    pub const fn holder(&self) -> &Holder {
        &self.holder
    }

    /// How long it is valid, and where its holder is reached.
    pub const fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The certificate as DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certified.cert[0]
    }

    /// Certificate and key in the form that TLS takes.
    pub fn certified(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }

    /// A secret of its holder that stays when the key is renewed.
    pub const fn lasting(&self) -> &[u8; 32] {
        &self.lasting
    }
}

/// A certificate and its key as PEM, to be kept.
pub struct Issued {
    /// The certificate as PEM.
    pub certificate_pem: String,
    /// The key: for a file that only its owner can read.
    pub key_pem: String,
}

impl Issued {
    /// Reads certificate and key, so that they can be shown to others.
    ///
    /// # Errors
    /// None in practice.
    pub fn identity(&self) -> Result<Identity> {
        Identity::from_pem(&self.certificate_pem, &self.key_pem)
    }

    /// Both in one text, to be replaced in one step.
    fn pem(&self) -> String {
        format!("{}{}", self.certificate_pem, self.key_pem)
    }
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
    /// Makes a new authority, with a key and a certificate of its own.
    ///
    /// # Errors
    /// `Internal`.
    pub fn create(site: &Name, world: &World) -> Result<Self> {
        let mut params = authority_of(site);
        valid(&mut params, world, AUTHORITY_LIFE)?;
        let key = KeyPair::generate().map_err(failed)?;
        let certificate_pem = params.self_signed(&key).map_err(failed)?.pem();
        Ok(Self { certificate_pem, issuer: Issuer::new(params, key) })
    }

    /// One that was kept.
    ///
    /// # Errors
    /// `Usage` when they are no certificate and key.
    pub fn from_pem(site: &Name, certificate: &str, key: &str) -> Result<Self> {
        let wrong = |error| Error::usage("not the key of a certificate authority").because(error);
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

    /// The trust in certificates that this authority has signed.
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
        let key = KeyPair::generate().map_err(failed)?;
        let certificate_pem = self.certify(holder, hosts, &key, Duration::from_secs(u64::from(days) * DAY_S), world)?;
        Ok(Issued { certificate_pem, key_pem: key.serialize_pem() })
    }

    /// A certificate for the key of `holder`, who is reached under `hosts`, as PEM.
    ///
    /// # Errors
    /// `Usage` when a host is no name or address.
    pub fn certify(
        &self,
        holder: &Holder,
        hosts: &[String],
        key: &impl PublicKeyData,
        life: Duration,
        world: &World,
    ) -> Result<String> {
        holder.check()?;
        let mut params = CertificateParams::new(hosts.to_vec())
            .map_err(|error| Error::usage("a host is not a name or address").because(error))?;
        let uri = uri_of(holder).try_into().map_err(failed)?;
        params.subject_alt_names.push(SanType::URI(uri));
        params.distinguished_name.push(DnType::CommonName, holder.to_string());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if holder.role == Role::Node {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        valid(&mut params, world, life)?;
        Ok(params.signed_by(key, &self.issuer).map_err(failed)?.pem())
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
fn valid(params: &mut CertificateParams, world: &World, life: Duration) -> Result<()> {
    let now = OffsetDateTime::from_unix_timestamp_nanos(world.now().0.into());
    let now = now.map_err(|error| Error::internal("the clock shows a time that cannot be used").because(error))?;
    params.not_before = now - CLOCK_SKEW.min(life / 10);
    params.not_after = now + life;
    Ok(())
}

/// One crypto provider: rustls panics when it must choose.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn failed(error: rcgen::Error) -> Error {
    Error::internal("a certificate could not be made").because(error)
}

const URI_SCHEME: &str = "windlass://";
const URI_OWNER: &str = "?owner=";
const DAY_S: u64 = 86_400;
const AUTHORITY_LIFE: Duration = Duration::from_secs(3650 * DAY_S);
const CLOCK_SKEW: Duration = Duration::from_secs(600);
