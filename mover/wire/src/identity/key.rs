//! Keys are made where they are used, and never sent. Only the public half is sent, with a proof that the sender has
//! the private half.

use super::provider;
use mover::{Error, ErrorKind, Result};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls::pki_types::alg_id;
use serde::{Deserialize, Serialize};

/// A key that has no certificate yet.
pub struct NewKey(KeyPair);

/// The public half of a key, signed by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyClaim {
    /// A point of P-256, uncompressed (SEC 1, 2.3.3).
    pub point: Vec<u8>,
    /// ECDSA with SHA-256 over what it is for and the point, as DER.
    pub signature: Vec<u8>,
}

impl NewKey {
    /// Makes a new key of P-256.
    ///
    /// # Errors
    /// `Internal`.
    pub fn generate() -> Result<Self> {
        Ok(Self(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?))
    }

    /// Claims it for a purpose: a signature for one does not serve another.
    ///
    /// # Errors
    /// `Internal`.
    pub fn claim(&self, purpose: &[u8]) -> Result<KeyClaim> {
        let point = self.0.der_bytes().to_vec();
        let signature = self.0.sign(&signed(purpose, &point)).map_err(failed)?;
        Ok(KeyClaim { point, signature })
    }

    /// The key as PEM: for a file that only its owner can read.
    pub fn pem(&self) -> String {
        self.0.serialize_pem()
    }
}

impl KeyClaim {
    /// The public key, when the signature proves that the sender has the private half.
    ///
    /// # Errors
    /// `NotAuthorised`.
    pub fn check(&self, purpose: &[u8]) -> Result<impl PublicKeyData + use<>> {
        let known = provider().signature_verification_algorithms.all;
        let wanted = known
            .iter()
            .find(|it| it.public_key_alg_id() == alg_id::ECDSA_P256 && it.signature_alg_id() == alg_id::ECDSA_SHA256);
        let wanted = wanted.ok_or_else(|| Error::internal("this build does not know ECDSA with P-256"))?;
        // Verifying refuses what is no point of the curve, too.
        let proven = self.point.len() == POINT_BYTES
            && wanted.verify_signature(&self.point, &signed(purpose, &self.point), &self.signature).is_ok();
        match proven {
            true => Ok(Point(self.point.clone())),
            false => Err(Error::new(ErrorKind::NotAuthorised, "the sender did not prove that it has the key")),
        }
    }
}

struct Point(Vec<u8>);

impl PublicKeyData for Point {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

fn signed(purpose: &[u8], point: &[u8]) -> Vec<u8> {
    [PREFIX, purpose, point].concat()
}

fn failed(error: rcgen::Error) -> Error {
    Error::internal("a key could not be made").because(error)
}

const PREFIX: &[u8] = b"windlass 2026-11 key for a certificate\0";
const POINT_BYTES: usize = 65;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_key_that_one_has() {
        let claim = NewKey::generate().unwrap().claim(b"a").unwrap();
        assert_eq!(claim.check(b"a").ok().unwrap().der_bytes(), claim.point);
        assert!(claim.check(b"b").is_err(), "for another purpose");
        let other = NewKey::generate().unwrap().claim(b"a").unwrap();
        assert!(KeyClaim { point: other.point.clone(), ..claim.clone() }.check(b"a").is_err());
        let mut off = claim.clone();
        off.point[40] ^= 1;
        assert!(off.check(b"a").is_err(), "not on the curve");
        for point in [Vec::new(), vec![0], vec![0; 65], claim.point[..64].to_vec()] {
            assert!(KeyClaim { point, ..claim.clone() }.check(b"a").is_err());
        }
        assert!(KeyClaim { signature: Vec::new(), ..claim }.check(b"a").is_err());
    }
}
