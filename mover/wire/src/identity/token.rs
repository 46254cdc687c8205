//! Join tokens. A token has a secret, the fingerprint of the authority to trust, and the address of the node to ask.
//! Only the authority knows the role and the name that the token is for. `join` makes and uses tokens, `registry` is
//! the authority's memory of them.

use mover::{Error, Result, World};
use std::fmt;
use std::str::FromStr;

/// Where a node is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address {
    /// Name or address of the host.
    pub host: String,
    /// UDP port.
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Address {
    type Err = Error;

    /// `host[:port]`; an IPv6 address stands in brackets.
    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::usage(format!("{text:?} is not host[:port]; write an IPv6 address in brackets"));
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or_else(bad)?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| bad())?;
                (host, if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or_else(bad)?) })
            }
            None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
        };
        let plain = |byte: u8| byte.is_ascii_graphic() && !b"/?#@[]\"'\\".contains(&byte);
        if host.is_empty() || host.len() > HOST_BYTES_MAX || !host.bytes().all(plain) {
            return Err(bad());
        }
        let port = port.map_or(Ok(PORT), |port| port.parse().map_err(|_| bad()))?;
        Ok(Self { host: host.to_owned(), port })
    }
}

/// A join token: to be brought to whoever joins, and used once.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Known to whoever holds the token. The authority keeps its hash.
    pub secret: [u8; 32],
    /// BLAKE3-256 of the authority's certificate.
    pub authority: [u8; 32],
    /// The node that gives certificates out.
    pub address: Address,
}

impl Token {
    /// A new token. The authority does not know it yet.
    pub fn new(authority: [u8; 32], address: Address, world: &World) -> Self {
        Self { secret: world.random_bytes(), authority, address }
    }

    /// The hash by which the authority knows the token.
    pub fn hash(&self) -> [u8; 32] {
        Self::hash_of(&self.secret)
    }

    /// The hash of a secret.
    pub fn hash_of(secret: &[u8; 32]) -> [u8; 32] {
        blake3::derive_key("windlass 2026-11 join token", secret)
    }
}

/// Shows the address, and never the secret.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token(of {})", self.address)
    }
}

/// The whole token, with the secret.
impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}-{}-{}", hex(&self.secret), hex(&self.authority), self.address)
    }
}

impl FromStr for Token {
    type Err = Error;

    /// No error repeats the text: it may hold the secret.
    fn from_str(text: &str) -> Result<Self> {
        let bad =
            |why: &str| Error::usage(format!("not a join token: {why}")).hint("`windlass token create` prints one");
        let text = text.trim();
        let rest = text.strip_prefix(PREFIX).ok_or_else(|| bad("it does not begin like one"))?;
        let mut parts = rest.splitn(3, '-');
        let mut bytes = || parts.next().and_then(from_hex).ok_or_else(|| bad("it is incomplete or was changed"));
        let (secret, authority) = (bytes()?, bytes()?);
        let address = parts.next().and_then(|address| address.parse().ok());
        Ok(Self { secret, authority, address: address.ok_or_else(|| bad("it does not name a node"))? })
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn from_hex(text: &str) -> Option<[u8; 32]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let pairs: &[[u8; 2]; 32] = text.as_bytes().as_chunks::<2>().0.try_into().ok().filter(|_| text.len() == 64)?;
    let mut bytes = [0; 32];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

/// The UDP port of a node that says nothing else.
pub const PORT: u16 = 7440;
const PREFIX: &str = "windlass-token-1-";
const HOST_BYTES_MAX: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token(host: &str) -> Token {
        Token { secret: [0x1a; 32], authority: [0xb2; 32], address: Address { host: host.into(), port: 7440 } }
    }

    /// A change here is a change of the format: it belongs into one commit with PROTOCOL.md and another prefix.
    #[test]
    fn golden_text() {
        let (secret, authority) = ("1a".repeat(32), "b2".repeat(32));
        for (host, address) in [("store-1.example", "store-1.example:7440"), ("2001:db8::7", "[2001:db8::7]:7440")] {
            let text = format!("windlass-token-1-{secret}-{authority}-{address}");
            assert_eq!(token(host).to_string(), text);
            assert_eq!(format!(" {text}\n").parse::<Token>().unwrap(), token(host));
        }
        assert_eq!(hex(&token("a").hash()), "a13310f0fc9e414a60102fe8e660a08c4bef7bd3978c41293dd6048a4c6afc1f");
        assert!(!format!("{:?}", token("a")).contains("1a1a"));
    }

    #[test]
    fn garbage_is_refused_and_not_repeated() {
        let good = token("a").to_string();
        for bad in [
            "",
            "windlass-token-1-",
            "windlass-token-2-",
            &good[..good.len() - 7],
            &good[..100],
            &good.replacen("1a", "1A", 1),
            &good.replacen("1a", "é", 1),
            &good.replace("a:7440", "a:70000"),
            &good.replace("a:7440", "a/b:1"),
            &good.replace("a:7440", "[::1"),
            &good.replace("a:7440", "[a]:1"),
        ] {
            let error = bad.parse::<Token>().unwrap_err();
            assert!(!error.to_string().contains("1a1a") && error.remedy().is_some(), "{bad}: {error}");
        }
    }

    #[test]
    fn addresses() {
        for (text, host, port) in [("a", "a", 7440), ("a:1", "a", 1), ("[::1]", "::1", 7440), ("[::1]:2", "::1", 2)] {
            assert_eq!(text.parse::<Address>().unwrap(), Address { host: host.into(), port });
        }
        for bad in ["", ":1", "a:", "::1", "[::1]1", "a b", "a@b"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn foreign_text_is_no_panic(text in "(windlass-token-1-)?[0-9a-f\\-\\[\\]:é]{0,200}") {
            if let Ok(token) = text.parse::<Token>() {
                prop_assert_eq!(token.to_string().parse::<Token>().unwrap(), token);
            }
        }
    }
}
