//! Addresses of nodes.

use super::Congestion;
use crate::identity::Address;
use mover::{Error, Name, Result};
use serde::Deserialize;
use std::fmt;
use std::str::FromStr;

/// A node: `quic://host[:port][?congestion=cubic|bbr]`; an IPv6 address stands in brackets.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct NodeAddress {
    /// Host and UDP port.
    pub at: Address,
    /// How to react to loss.
    pub congestion: Congestion,
}

impl NodeAddress {
    /// The node that an address names, and its repository where one stands behind it.
    pub fn parse(text: &str) -> Option<(Self, Option<Name>)> {
        let text = text.strip_prefix("quic://")?;
        let (text, congestion) = match text.split_once('?') {
            None => (text, Congestion::Cubic),
            Some((text, "congestion=cubic")) => (text, Congestion::Cubic),
            Some((text, "congestion=bbr")) => (text, Congestion::Bbr),
            Some(_) => return None,
        };
        let (authority, name) = match text.split_once('/') {
            Some((authority, name)) => (authority, Some(name.parse().ok()?)),
            None => (text, None),
        };
        Some((Self { at: authority.parse().ok()?, congestion }, name))
    }
}

impl FromStr for NodeAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match Self::parse(text) {
            Some((node, None)) => Ok(node),
            _ => Err(Error::usage(format!("{text:?} is not the address of a node"))
                .hint("write quic://host or quic://host:port")),
        }
    }
}

impl TryFrom<String> for NodeAddress {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "quic://{}", self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_and_what_stands_behind_them() {
        let node = |text: &str| NodeAddress::parse(text).map(|(it, name)| (it.to_string(), name.map(String::from)));
        let main = Some("main".to_owned());
        assert_eq!(node("quic://a/main"), Some(("quic://a:7440".into(), main.clone())));
        assert_eq!(node("quic://[::1]:1/main?congestion=bbr"), Some(("quic://[::1]:1".into(), main)));
        assert_eq!(node("quic://[::1]"), Some(("quic://[::1]:7440".into(), None)));
        assert_eq!(node("quic://a:9"), Some(("quic://a:9".into(), None)));
        for wrong in
            ["a", "quic://", "quic:///x", "quic://a:x", "quic://a/../b", "quic://a?x=1", "quic://[::1]1", "quic://a/"]
        {
            assert_eq!(node(wrong), None, "{wrong}");
        }
        assert!("quic://a/main".parse::<NodeAddress>().is_err());
    }
}
