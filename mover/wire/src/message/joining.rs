//! What is said about tokens and certificates.

use crate::identity::{KeyClaim, Wanted};
use mover::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Asks the authority to expect somebody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenIn {
    /// Hash of the token's secret: the secret itself goes to whoever joins.
    pub hash: [u8; 32],
    /// Role, name, owner and hosts of whoever joins.
    pub wanted: Wanted,
    /// How long the token can be used, in seconds.
    pub valid_s: u32,
}

/// Until when somebody is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    /// End of the token's validity, by the authority's clock.
    pub expires: Timestamp,
}

/// Asks for a certificate with a token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinIn {
    /// The token's secret.
    pub secret: [u8; 32],
    /// The key to be certified; its purpose is the hash of the secret.
    pub claim: KeyClaim,
}

/// Never shows the secret.
impl fmt::Debug for JoinIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinIn(..)")
    }
}

/// Asks for another certificate for oneself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewIn {
    /// The key to be certified; its purpose is `ROLE NAME`.
    pub claim: KeyClaim,
}

/// A certificate that the authority gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certified {
    /// The certificate as PEM.
    pub certificate: String,
    /// The authority's certificate as PEM.
    pub authority: String,
}
