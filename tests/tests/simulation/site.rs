//! A site whose certificates are the same each time: made with keys that follow from names, and with signatures that
//! always have the same length, because lengths of packets are part of what is replayed.

use mover::{Holder, Role};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType, SerialNumber,
    date_time_ymd,
};
use wire::identity::{Identity, Trust};

pub struct Site {
    authority_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Site {
    pub fn new() -> Self {
        let mut params = params("authority", Vec::new());
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let key = key("authority");
        let authority_pem = params.self_signed(&key).expect("a certificate").pem();
        Self { authority_pem, issuer: Issuer::new(params, key) }
    }

    pub fn trust(&self) -> Trust {
        Trust::from_pem(&self.authority_pem).expect("a certificate")
    }

    /// Somebody of this site, reached under `hosts`.
    pub fn identity(&self, role: Role, name: &str, hosts: Vec<String>) -> Identity {
        let holder = Holder::new(role, name.parse().expect("a name"));
        let mut params = params(name, hosts);
        let uri = format!("windlass://{}/{}", role.as_str(), holder.name);
        params.subject_alt_names.push(SanType::URI(uri.try_into().expect("a URI")));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = key(name);
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Identity::from_pem(&certificate.pem(), &key.serialize_pem()).expect("a certificate")
    }
}

fn params(name: &str, hosts: Vec<String>) -> CertificateParams {
    let mut params = CertificateParams::new(hosts).expect("hosts");
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from(vec![1; 8]));
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2100, 1, 1);
    params
}

fn key(name: &str) -> KeyPair {
    // PKCS #8 around the 32 bytes of an Ed25519 key (RFC 8410, 7).
    let mut der = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    der.extend(blake3::derive_key("windlass simulation keys", name.as_bytes()));
    KeyPair::try_from(der).expect("a key")
}
