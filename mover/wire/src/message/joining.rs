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
    /// Whom.
    pub wanted: Wanted,
    /// For how long, in seconds.
    pub valid_s: u32,
}

/// Until when somebody is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    /// By the authority's clock.
    pub expires: Timestamp,
}

/// Uses a token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinIn {
    /// The token's secret.
    pub secret: [u8; 32],
    /// The key to be certified; its purpose is the hash of the secret.
    pub claim: KeyClaim,
}

/// Without the secret.
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

/// A certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certified {
    /// The certificate as PEM.
    pub certificate: String,
    /// The authority's as PEM.
    pub authority: String,
}
